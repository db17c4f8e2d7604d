"""A trained network's labels for annotators, and which images they should look at first."""

from u2pl.labeling.label import LabelOptions, label_images

__all__ = ["LabelOptions", "label_images"]
