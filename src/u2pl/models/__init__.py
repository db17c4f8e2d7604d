"""Images to logits and features."""

from u2pl.models.segmenter import SegmentationOutput, Segmenter, upsample

__all__ = ["SegmentationOutput", "Segmenter", "upsample"]
