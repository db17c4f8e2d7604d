"""DPT's decoder over the blocks of a plain vision transformer, for patches of any size."""

from __future__ import annotations

import math

import torch
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder
from torch import Tensor, nn
from torch.nn import functional as F

_FINEST = 8  # cells of DPT's answer along a patch
_STRIDE = 4  # pixels along a cell that is wanted


class DPT(nn.Module):
    """Four blocks put together at four scales, and brought to cells of 4 x 4 pixels.

    The four scales are 4, 2, 1 and 1/2 cells a patch whatever the patch, as Depth Anything and
    UniMatch V2 have it for patches of 14 pixels, so that a crop of 518 has the 37 x 37 patches that
    DINOv2 was trained with. An odd grid is made even by repeating its last row or column.

    Args:
        channels: of each block's features.
        patch: edge of a patch in pixels.
        width: channels inside, and of the result.
        has_prefix_tokens: whether each block also gives a token for the whole image.
    """

    def __init__(
        self, channels: list[int], *, patch: int, width: int, has_prefix_tokens: bool
    ) -> None:
        super().__init__()
        self.patch = patch
        self.blocks = DPTDecoder(
            encoder_out_channels=channels,
            encoder_output_strides=[16] * len(channels),  # 4, 2, 1 and 1/2 cells a patch
            encoder_has_prefix_tokens=has_prefix_tokens,
            readout="cat" if has_prefix_tokens else "ignore",
            intermediate_channels=[width] * len(channels),
            fusion_channels=width,
        )

    def forward(self, features: list[Tensor], prefix_tokens: list[Tensor | None]) -> Tensor:
        """Each block's [B, K, rows, columns] to [B, width, h, w], h = ceil(rows * patch / 4)."""
        rows, columns = features[0].shape[-2:]
        even = [extended(one, rows % 2, columns % 2) for one in features]
        decoded = self.blocks(even, prefix_tokens)[..., : _FINEST * rows, : _FINEST * columns]
        scale = self.patch / (_FINEST * _STRIDE)
        past = math.ceil(1 / scale)  # the last cell may reach past the last patch
        cells = F.interpolate(
            extended(decoded, past, past), scale_factor=scale, mode="bilinear", align_corners=False
        )
        height, width = (-(-side * self.patch // _STRIDE) for side in (rows, columns))
        return cells[..., :height, :width]


def extended(maps: Tensor, down: int, right: int) -> Tensor:
    """Maps [..., H, W] with the last row repeated ``down`` times, then the last column ``right``.

    >>> extended(torch.tensor([[1, 2], [3, 4]]), 1, 2)
    tensor([[1, 2, 2, 2],
            [3, 4, 4, 4],
            [3, 4, 4, 4]])
    """
    # what torch's own padding does, but its gradient is not deterministic on a GPU
    below = maps[..., -1:, :].expand(*maps.shape[:-2], down, maps.shape[-1])
    maps = torch.cat([maps, below], dim=-2)
    beside = maps[..., -1:].expand(*maps.shape[:-1], right)
    return torch.cat([maps, beside], dim=-1)
