"""A configuration, batches and states so small that a step takes a moment on one core."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch.nn import functional as F

from u2pl import make_config
from u2pl.config import Config
from u2pl.data.batch import Batch, LabeledBatch, UnlabeledBatch
from u2pl.engine.state import TrainState, initial_state
from u2pl.engine.trained import ModelCard, SegmentationModel
from u2pl.models import Segmenter

IGNORE = 255
NUM_CLASSES = 3
SIZE = (32, 32)


def tiny_overrides(**changes: Any) -> dict[str, Any]:
    """Settings by dotted key over the recipe ``demo``; ``train__steps=9`` changes train.steps."""
    values: dict[str, Any] = {
        "model.decoder_channels": 16,
        "model.head_channels": 16,
        "model.feature_size": 8,
        "data.crop": [32, 32],
        "data.batch_labeled": 2,
        "data.batch_unlabeled": 2,
        "data.num_workers": 0,
        "method.initial_unreliable_fraction": 0.2,
        "method.queue_size": 64,
        "method.num_anchors": 8,
        "method.num_negatives": 5,
        "method.keys_per_step": 8,
        "train.steps": 4,
        "train.supervised_steps": 0,
        "train.precision": "32-true",
        "train.log_every": 1,
        "train.eval_every": 100,
        "train.checkpoint_every": 100,
    }
    return values | {key.replace("__", "."): value for key, value in changes.items()}


def tiny_config(**changes: Any) -> Config:
    """The recipe ``demo`` with :func:`tiny_overrides`."""
    return make_config("demo", overrides=tiny_overrides(**changes))


def assignments(overrides: dict[str, Any]) -> list[str]:
    """Overrides as the command line takes them."""
    return [f"{key}={value}".replace(" ", "") for key, value in overrides.items()]


def tiny_batch(
    *,
    num_labeled: int = 2,
    num_unlabeled: int | None = 2,
    num_classes: int = NUM_CLASSES,
    seed: int = 0,
    context: int = 0,
) -> Batch:
    """Blocks of classes, each with its own grey value; None gives no unlabelled half."""
    generator = torch.Generator().manual_seed(seed)
    count = num_labeled + (num_unlabeled or 0)
    blocks = torch.randint(0, num_classes, (count, 4, 4), generator=generator)
    labels = blocks.repeat_interleave(SIZE[0] // 4, 1).repeat_interleave(SIZE[1] // 4, 2)
    images = (labels / num_classes).unsqueeze(1).repeat(1, 3, 1, 1)
    images = (images + 0.1 * torch.rand(images.shape, generator=generator)).clamp(0, 1)
    labeled = LabeledBatch(images[:num_labeled], labels[:num_labeled])
    if num_unlabeled is None:
        return Batch(labeled, None)
    weak = images[num_labeled:]
    return Batch(
        labeled,
        UnlabeledBatch(
            weak=weak,
            strong=((0.8 * weak).contiguous(),),
            valid=torch.ones(num_unlabeled, *SIZE, dtype=torch.bool),
            possible_classes=torch.ones(num_unlabeled, num_classes, dtype=torch.bool),
            context=F.pad(weak, (context,) * 4, mode="reflect") if context else None,
            offsets=torch.full((num_unlabeled, 2), context) if context else None,
        ),
    )


def tiny_state(config: Config, *, num_classes: int = NUM_CLASSES) -> tuple[Fabric, TrainState]:
    """A fresh state on the CPU, set up as training does it."""
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    state = initial_state(config, num_classes, IGNORE, torch.device("cpu"))
    state.student, state.optimizer = fabric.setup(state.student, state.optimizer)
    state.student.train()
    return fabric, state


def patches(size: tuple[int, int] = (41, 57), *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """An image [H, W, 3] of nine by nine patches of any colour."""
    colors = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    image = colors.repeat(size[0] // 9 + 1, axis=0).repeat(size[1] // 9 + 1, axis=1)
    return np.ascontiguousarray(image[: size[0], : size[1]])


def tiny_model(
    *,
    classes: tuple[str, ...] = tuple("abcdefg"),
    resize: int | None = None,
    protocol: Literal["whole", "slide"] = "whole",
) -> SegmentationModel:
    """A network of random weights that gives each class to some of the :func:`patches`."""
    torch.manual_seed(0)
    network = Segmenter(tiny_config().model, len(classes), load_pretrained=False).eval()
    last = network.segmentation_head[-1]
    with torch.no_grad():
        images = torch.from_numpy(patches(seed=1)).permute(2, 0, 1)[None] / 255
        logits = network(images).logits
        scale = 2 / logits.std(dim=(0, 2, 3))
        last.bias.sub_(logits.mean(dim=(0, 2, 3))).mul_(scale)
        last.weight.mul_(scale.view(-1, 1, 1, 1))
    card = ModelCard(
        classes=classes,
        colors=tuple((20 * i, 250 - 20 * i, 99) for i in range(len(classes))),
        resize=resize,
        protocol=protocol,
        crop=(32, 32),
        stride_fraction=0.5,
        reliable_entropy=0.9,
        step=1,
        ignore_index=IGNORE,
        recipe="demo",
    )
    return SegmentationModel(network, card).requires_grad_(False)
