"""The network from bytes to mask as one graph, whose arithmetic on sizes can be exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from u2pl.engine.trained import SegmentationModel
from u2pl.models import Segmenter
from u2pl.models.segmenter import STRIDE
from u2pl.partition import prediction_entropy

INPUT = "images"
OUTPUTS = ("mask", "entropy", "reliable", "logits")


class ExportGraph(nn.Module):
    """Images as they are decoded to masks: scaling, normalisation, padding and cropping inside.

    Computes what :class:`~u2pl.models.Segmenter` and :func:`~u2pl.models.upsample` do, spelled so
    that a graph of it holds for other sizes than the one it was traced with: no negative
    numbers are divided (ONNX rounds them another way), and what is cropped is picked row by row
    (a slice's strides would tie the graph to whether the traced size was a multiple).

    Args:
        model: a run's network; on the CPU, in evaluation mode.
    """

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.network: Segmenter = model.network
        self.reliable_entropy = float(model.card.reliable_entropy)
        self.mask_dtype = torch.uint8 if len(model.classes) <= 256 else torch.int32

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the network says of images [B, H, W, 3] uint8, RGB.

        Sides that are no multiple of the network's stride are padded right and below with the
        encoder's mean colour; the padding is cut off again.

        Returns:
            mask [B, H, W] uint8 (int32 above 256 classes); entropy [B, H, W] float32 in nats;
            reliable [B, H, W] bool, entropy up to that of the surest pixels of val; logits
            [B, C, H, W] float32. A plain tuple: torch.export saves no other.
        """
        network, multiple = self.network, self.network.multiple
        rgb = images.permute(0, 3, 1, 2).float() / 255
        normalized = (rgb - network.mean) / network.std
        height, width = images.shape[1], images.shape[2]
        padded_h, padded_w = (_times(side, multiple) * multiple for side in (height, width))
        padded = F.pad(normalized, (0, padded_w - width, 0, padded_h - height))
        encoded = network.encoder(padded)
        is_tuple = isinstance(encoded, tuple)
        decoded = network.decoder(*encoded) if is_tuple else network.decoder(encoded)
        grid_logits = network.segmentation_head(
            first(decoded, _times(height, STRIDE), _times(width, STRIDE))
        )
        full = F.interpolate(grid_logits, scale_factor=STRIDE, mode="bilinear", align_corners=False)
        logits = first(full, height, width)
        probs = logits.softmax(dim=1)
        entropy = prediction_entropy(probs)
        mask = probs.argmax(dim=1).to(self.mask_dtype)
        return mask, entropy, entropy <= self.reliable_entropy, logits


def _times(length: int, part: int) -> int:
    """How many parts cover a length."""
    return (length + part - 1) // part


def first(maps: Tensor, height: int, width: int) -> Tensor:
    """The first rows and columns of [B, K, H, W], as a tensor of its own."""
    rows = torch.arange(height, device=maps.device)
    columns = torch.arange(width, device=maps.device)
    return maps.index_select(2, rows).index_select(3, columns)
