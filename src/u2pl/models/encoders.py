"""timm encoders: ImageNet weights from timm's hub, from a local file, or none."""

from __future__ import annotations

import logging
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders.timm_universal import TimmUniversalEncoder
from segmentation_models_pytorch.encoders.timm_vit import TimmViTEncoder
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from u2pl.config import ModelSettings
from u2pl.errors import UserError, nearest_name
from u2pl.models.small import SmallEncoder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build_encoder(
    name: str, *, output_stride: int, pretrained: bool, weights: Path | None, vit: bool
) -> nn.Module:
    """Make an encoder that returns feature maps from fine to coarse.

    Args:
        name: a timm model, or ``small``.
        output_stride: of the coarsest map; timm's transformers know only their own.
        pretrained: whether to load ImageNet weights.
        weights: a local file to load them from instead of timm's hub.
        vit: whether the decoder reads a plain vision transformer's blocks (DPT).

    Returns:
        A module with ``out_channels``.

    Raises:
        UserError: for an unknown name, a file that does not fit, weights that cannot be had, or
            an encoder that cannot do what the decoder needs.
    """
    if name == "small":
        if vit:
            raise UserError(
                "The 'small' encoder is no vision transformer; use another decoder than dpt."
            )
        if weights is not None:
            raise UserError("The 'small' encoder has no ImageNet weights; leave model.weights out.")
        if output_stride == 32:
            raise UserError(
                "The 'small' encoder has output stride 8 or 16; set model.output_stride."
            )
        return SmallEncoder(output_stride=output_stride)
    check_known(name)
    arguments: dict[str, Any] = {"pretrained": pretrained or weights is not None}
    if weights is not None:
        arguments["pretrained_cfg_overlay"] = {"state_dict": read_weights(name, weights)}
    try:
        # timm lists the classifier's tensors, and its hub speaks of tokens
        with quiet_libraries("timm"):
            if vit:
                encoder: nn.Module = ViTEncoder(name, dynamic_img_size=True, **arguments)
            else:
                encoder = TimmUniversalEncoder(name, output_stride=output_stride, **arguments)
            return encoder
    except Exception as error:
        if arguments["pretrained"] and weights is None:
            raise UserError(
                f"The pretrained weights of '{name}' could not be loaded from timm's hub "
                f"({type(error).__name__}). Pass a local file with model.weights=FILE, or train "
                "from scratch with model.pretrained=false."
            ) from None
        decoder = "decoder dpt" if vit else f"output stride {output_stride}"
        raise UserError(
            f"The timm model '{name}' does not work as an encoder here ({decoder}): {error}"
        ) from None


def keep_statistics(encoder: nn.Module) -> None:
    """Let BatchNorm normalise by its running averages and not move them, until ``train`` is next
    called; its weights are trained all the same."""
    for module in encoder.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


class ViTEncoder(TimmViTEncoder):  # type: ignore[misc]
    """Four evenly spaced blocks of a plain vision transformer, each through its last LayerNorm.

    So DINOv2's own code reads its blocks, and UniMatch V2 after it. Without, features of different
    blocks differ in size by orders of magnitude.
    """

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        """Features [B, K, H / patch, W / patch] of each block, and its tokens for the image."""
        tokens: list[Tensor | None]
        found = self.model.forward_intermediates(
            images,
            indices=self._output_indices,
            norm=True,
            intermediates_only=True,
            return_prefix_tokens=self.has_prefix_tokens,
        )
        if not self.has_prefix_tokens:
            return found, [None] * len(found)
        features, tokens = map(list, zip(*found, strict=True))
        return features, tokens


@contextmanager
def quiet_libraries(*names: str) -> Iterator[None]:
    """Keep back what libraries, named as their loggers, tell of their own insides."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_known(name: str) -> None:
    """Raise UserError, with the nearest name, where timm has no such model."""
    family, _, tag = name.partition(".")
    if not timm.is_model(family):
        raise UserError(
            f"timm has no model '{name}'.{nearest_name(name, [*timm.list_models(), 'small'])}",
            exit_code=2,
        )
    if tag and name not in (known := timm.list_models(f"{family}.*", pretrained=True)):
        raise UserError(
            f"timm's '{family}' has no weights '{tag}'.{nearest_name(name, known)}", exit_code=2
        )


def read_weights(name: str, path: Path) -> dict[str, Tensor]:
    """Read a file that holds every tensor of a timm model but its classifier's.

    timm itself ignores what is missing when it builds an encoder, so that a wrong file would
    train from scratch without a word. Nothing in the file is executed.

    Args:
        name: a timm model.
        path: a safetensors file, or one written by ``torch.save`` that holds plain tensors, by
            themselves or under ``state_dict`` or ``model``.

    Returns:
        The file's tensors by name.

    Raises:
        UserError: for a missing or unreadable file, absent tensors, tensors of another shape, or
            numbers that are not finite.
    """
    if not os.path.isfile(path):
        raise UserError(f"model.weights: there is no file {path}.")
    model: Any = timm.create_model(name, pretrained=False)
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
    heads = {prefix for prefix, module in model.named_modules() if module is classifier}
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state.get("model", state))
        state = {
            key.removeprefix("module."): tensor
            for key, tensor in state.items()
            if isinstance(tensor, Tensor)
        }
    except Exception:
        raise UserError(
            f"model.weights: {path} is neither a safetensors file nor a file of plain tensors."
        ) from None
    expected = {
        key: tensor.shape
        for key, tensor in model.state_dict().items()
        if key.rpartition(".")[0] not in heads and not key.endswith("num_batches_tracked")
    }
    missing = [key for key in expected if key not in state]
    if missing:
        raise UserError(
            f"model.weights: {path} is not for timm's '{name}': {len(missing)} of "
            f"{len(expected)} tensors are missing, '{missing[0]}' for one."
        )
    for key, shape in expected.items():
        if state[key].shape != shape and not is_other_grid(model, key, tuple(state[key].shape)):
            raise UserError(
                f"model.weights: {path} is not for timm's '{name}': expected '{key}' of shape "
                f"{tuple(shape)}, got {tuple(state[key].shape)}."
            )
        if not state[key].isfinite().all():
            raise UserError(
                f"model.weights: {path} is damaged: '{key}' holds numbers that are not finite."
            )
    return state


def is_other_grid(model: Any, key: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor holds a model's position embeddings for another square of patches.

    timm resamples them as it loads them.
    """
    own: Tensor | None = getattr(model, "pos_embed", None)
    if key != "pos_embed" or own is None or len(shape) != own.ndim or own.ndim != 3:
        return False
    tokens = (
        0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 1)
    )
    patches = shape[1] - tokens
    is_square = patches > 0 and math.isqrt(patches) ** 2 == patches
    return is_square and (shape[0], shape[2]) == (own.shape[0], own.shape[2])


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the RGB values in [0, 1] that an encoder was trained with."""
    if name == "small":
        return IMAGENET_MEAN, IMAGENET_STD
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        return IMAGENET_MEAN, IMAGENET_STD
    return tuple(config.mean), tuple(config.std)


def patch_size(encoder: nn.Module) -> int:
    """Edge in pixels of a vision transformer's patches."""
    size = encoder.model.patch_embed.patch_size  # type: ignore[union-attr]
    return int(size[0]) if isinstance(size, tuple) else int(torch.as_tensor(size))


def cell_size(settings: ModelSettings) -> int:
    """Edge in pixels of a cell of the encoder's last grid, from the settings alone.

    >>> cell_size(ModelSettings(encoder="vit_small_patch14_dinov2.lvd142m", decoder="dpt"))
    14
    """
    if settings.decoder != "dpt":
        return settings.output_stride
    named = re.search(r"patch(\d+)", settings.encoder)
    return int(named[1]) if named else 16
