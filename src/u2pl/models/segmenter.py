"""The network: encoder h, segmentation head f and representation head g."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPPPooling, DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.encoders.timm_vit import TimmViTEncoder
from torch import Tensor, nn
from torch.nn import functional as F

from u2pl.config import ModelSettings
from u2pl.errors import UserError
from u2pl.models.dpt import DPT
from u2pl.models.encoders import build_encoder, keep_statistics, normalization, patch_size
from u2pl.models.small import conv_block

STRIDE = 4
"""Pixels a cell of the feature grid spans, for every decoder."""


class SegmentationOutput(NamedTuple):
    """What a :class:`Segmenter` says of B images of H x W pixels.

    Attributes:
        logits: [B, C, h, w] on the feature grid, h = ceil(H / 4), w = ceil(W / 4).
        features: [B, D, h, w] of unit length, or None where none were asked for.
        auxiliary: [n, C, h, w], the auxiliary head's logits of the images that were asked for, or
            None where none were.
    """

    logits: Tensor
    features: Tensor | None
    auxiliary: Tensor | None = None


class Segmenter(nn.Module):
    """timm encoder, decoder, and two heads side by side on the decoder's features [P].

    Takes RGB in [0, 1] of any size and normalises it itself.

    Args:
        settings: names and sizes.
        num_classes: C, at least 2.
        load_pretrained: False leaves the encoder's weights random whatever ``settings`` say; for
            a network whose own weights are loaded next.

    Raises:
        UserError: see :func:`~u2pl.models.encoders.build_encoder`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, settings: ModelSettings, num_classes: int, *, load_pretrained: bool = True
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.frozen_norm = settings.frozen_norm
        self.encoder = build_encoder(
            settings.encoder,
            output_stride=settings.output_stride,
            pretrained=settings.pretrained and load_pretrained,
            weights=settings.weights if settings.pretrained and load_pretrained else None,
            vit=settings.decoder == "dpt",
        )
        self.decoder, self.multiple = build_decoder(self.encoder, settings)
        self.map_sizes = map_sizes(self.encoder)
        channels = settings.decoder_channels
        self.segmentation_head = head(
            channels, settings.head_channels, num_classes, dropout=settings.dropout
        )
        self.representation_head = head(channels, settings.head_channels, settings.feature_size)
        if settings.auxiliary_weight > 0:
            self.auxiliary_head = auxiliary_head(
                self.map_sizes[-2], settings.head_channels, num_classes, dropout=settings.dropout
            )
        mean, std = normalization(settings.encoder)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.train()

    def train(self, mode: bool = True) -> Segmenter:
        """As of any module, but with ``frozen_norm`` the encoder's BatchNorm stays at rest."""
        super().train(mode)
        if self.frozen_norm:
            keep_statistics(self.encoder)
        return self

    def forward(
        self,
        images: Tensor,
        *,
        with_features: bool = True,
        channel_factors: Sequence[Tensor] | None = None,
        num_auxiliary: int = 0,
    ) -> SegmentationOutput:
        """Logits and unit features on the feature grid.

        Args:
            images: [B, 3, H, W], RGB in [0, 1].
            with_features: False leaves the representation head out.
            channel_factors, num_auxiliary: see :meth:`decode`.
        """
        grid, auxiliary = self.decode(
            images, channel_factors=channel_factors, num_auxiliary=num_auxiliary
        )
        logits, features = self.segmentation_head(grid), None
        if with_features:
            features = F.normalize(self.representation_head(grid), dim=1)
        return SegmentationOutput(logits, features, auxiliary)

    def decode(
        self,
        images: Tensor,
        *,
        channel_factors: Sequence[Tensor] | None = None,
        num_auxiliary: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        """What both heads read; a training step runs the heads by themselves.

        Args:
            images: [B, 3, H, W], RGB in [0, 1].
            channel_factors: for each of ``map_sizes`` [B, K], what the encoder's channels are
                multiplied by on their way to the decoder; see :mod:`u2pl.perturbation`.
            num_auxiliary: of so many images at the front the auxiliary head's logits too; only for
                a network that has one.

        Returns:
            [B, K, h, w] of the decoder, and the auxiliary head's logits [n, C, h, w] or None.
        """
        height, width = images.shape[-2:]
        pad = (-width % self.multiple, -height % self.multiple)
        normalized = F.pad((images - self.mean) / self.std, (0, pad[0], 0, pad[1]))
        encoded = self.encoder(normalized)
        maps = encoded[0] if isinstance(encoded, tuple) else encoded
        if channel_factors is not None:
            encoded = scale_channels(encoded, channel_factors)
        decoded = self.decoder(*encoded) if isinstance(encoded, tuple) else self.decoder(encoded)
        rows, columns = -(-height // STRIDE), -(-width // STRIDE)
        auxiliary = None
        if num_auxiliary:
            coarse = self.auxiliary_head(maps[-2][:num_auxiliary])
            auxiliary = resized_to(decoded, coarse)[..., :rows, :columns]
        return decoded[..., :rows, :columns], auxiliary

    def segmentation_logits(self, grid: Tensor) -> Tensor:
        """[B, C, h, w] of what :meth:`decode` returned."""
        logits: Tensor = self.segmentation_head(grid)
        return logits

    def features_at(self, grid: Tensor, cells: Tensor) -> Tensor:
        """Unit features of some cells, as of the map that :meth:`forward` makes.

        That map is not made, nor any other of D channels, and most of the head's last layer is
        spared.

        Args:
            grid: [B, K, h, w] of :meth:`decode`.
            cells: [n] int64, positions in the flattened grid of all images, repeats allowed.

        Returns:
            [n, D].
        """
        last = self.representation_head[-1]
        assert isinstance(last, nn.Conv2d), "as head makes it"
        embedded = at_cells(self.representation_head[:-1](grid), cells)
        return F.normalize(F.linear(embedded, last.weight.flatten(1), last.bias), dim=1)


def at_cells(maps: Tensor, cells: Tensor) -> Tensor:
    """Read maps at some cells.

    Args:
        maps: [B, K, h, w].
        cells: [...] int64, positions in the flattened grid [B, h, w].

    Returns:
        [..., K].

    >>> maps = torch.arange(8).view(2, 2, 1, 2)  # two images of two channels and two cells
    >>> at_cells(maps, torch.tensor([0, 3]))
    tensor([[0, 2],
            [5, 7]])
    """
    area = maps.shape[-2] * maps.shape[-1]
    # indexed as they lie: to bring the channels behind the cells first would copy all of them
    return maps.flatten(2).transpose(1, 2)[cells // area, cells % area]


def map_sizes(encoder: nn.Module) -> list[int]:
    """Channels of each map that a decoder reads, the image itself left out."""
    sizes = list(encoder.out_channels)  # type: ignore[arg-type]
    return sizes if isinstance(encoder, TimmViTEncoder) else sizes[1:]


def scale_channels(encoded: Any, factors: Sequence[Tensor]) -> Any:
    """Multiply each map's channels, image by image.

    Args:
        encoded: what an encoder returns: maps [B, K, h, w], of a pyramid the image first; of a
            plain transformer a tuple of maps and prefix tokens.
        factors: for each map but the image [B, K].
    """
    if isinstance(encoded, tuple):
        return scale_channels(encoded[0], factors), *encoded[1:]
    kept = len(encoded) - len(factors)  # the image, where it is there
    scaled = [
        features * factor[:, :, None, None].to(features.dtype)
        for features, factor in zip(encoded[kept:], factors, strict=True)
    ]
    return [*encoded[:kept], *scaled]


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring [B, C, h, w] from the feature grid to pixels, bilinear, ``align_corners=False``.

    Args:
        logits: on a grid whose cells span 4 x 4 pixels from the top left corner.
        size: (H, W) of the images, at most 4 h and 4 w.

    Returns:
        [B, C, H, W].
    """
    full = F.interpolate(logits, scale_factor=STRIDE, mode="bilinear", align_corners=False)
    return full[..., : size[0], : size[1]]


def head(
    in_channels: int, channels: int, out_channels: int, *, dropout: float = 0.0
) -> nn.Sequential:
    """Two Conv-BN-ReLU blocks and a 1x1 convolution: the shape of f and of g [P]."""
    return nn.Sequential(
        conv_block(in_channels, channels),
        conv_block(channels, channels),
        nn.Dropout2d(dropout),
        nn.Conv2d(channels, out_channels, 1),
    )


def auxiliary_head(
    in_channels: int, channels: int, out_channels: int, *, dropout: float
) -> nn.Sequential:
    """A Conv-BN-ReLU block and a 1x1 convolution, as PSPNet has them [C]."""
    return nn.Sequential(
        conv_block(in_channels, channels),
        nn.Dropout2d(dropout),
        nn.Conv2d(channels, out_channels, 1),
    )


def resized_to(like: Tensor, maps: Tensor) -> Tensor:
    """Bring maps to the grid of others, bilinear, ``align_corners=False``."""
    size = (like.shape[-2], like.shape[-1])
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


class PooledBatchNorm(nn.BatchNorm2d):
    """BatchNorm of globally pooled features, of which an image has but one value a channel.

    A batch of a single image has no spread to normalise by; it takes the running statistics.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, K, 1, 1] to the same shape."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


def build_decoder(encoder: nn.Module, settings: ModelSettings) -> tuple[nn.Module, int]:
    """Make the decoder for an encoder.

    Returns:
        The decoder, which gives ``settings.decoder_channels``, and the number that image sides
        are padded to a multiple of.

    Raises:
        UserError: where the two do not go together.
    """
    channels = list(encoder.out_channels)  # type: ignore[arg-type]
    if settings.decoder == "deeplabv3plus":
        return deeplabv3plus(channels, settings), settings.output_stride
    if settings.decoder == "dpt":
        patch, tokens = patch_size(encoder), bool(encoder.has_prefix_tokens)
        width = settings.decoder_channels
        return DPT(channels, patch=patch, width=width, has_prefix_tokens=tokens), patch
    if settings.encoder == "small" or settings.output_stride != 32:
        raise UserError(
            f"The {settings.decoder} decoder needs five encoder stages and model.output_stride=32; "
            "use deeplabv3plus with the 'small' encoder or another stride."
        )
    if settings.decoder == "fpn":
        return fpn(channels, settings), 32
    segformer = SegformerDecoder(
        encoder_channels=channels,
        encoder_depth=len(channels) - 1,
        segmentation_channels=settings.decoder_channels,
    )
    return segformer, 32


def deeplabv3plus(channels: list[int], settings: ModelSettings) -> nn.Module:
    """Atrous pyramid on the coarsest map, joined with the map at stride 4."""
    if settings.output_stride == 32:
        raise UserError("DeepLabV3+ needs model.output_stride 8 or 16, got 32.")
    decoder: nn.Module = DeepLabV3PlusDecoder(
        encoder_channels=channels,
        encoder_depth=len(channels) - 1,
        out_channels=settings.decoder_channels,
        atrous_rates=settings.atrous_rates,
        output_stride=settings.output_stride,
        aspp_separable=True,
        aspp_dropout=settings.dropout,
    )
    for module in decoder.modules():
        if isinstance(module, ASPPPooling):
            module[2] = PooledBatchNorm(settings.decoder_channels)
    return decoder


def fpn(channels: list[int], settings: ModelSettings) -> nn.Module:
    """Feature pyramid of the four coarsest maps, summed at stride 4."""
    width = settings.decoder_channels
    if width % 32:
        raise UserError(f"FPN takes model.decoder_channels in multiples of 32, got {width}.")
    decoder: nn.Module = FPNDecoder(
        encoder_channels=channels,
        encoder_depth=len(channels) - 1,
        pyramid_channels=width,
        segmentation_channels=width,
        dropout=settings.dropout,
    )
    return decoder
