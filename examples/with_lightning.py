"""The same method in a LightningModule: Lightning brings loop, devices, precision, checkpoints.

    pip install pytorch-lightning
    python examples/with_lightning.py --steps 300

Network, data and the method's step are those of plain_pytorch.py, which lies beside this file.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from plain_pytorch import (
    NUM_CLASSES,
    U2PL,
    Batch,
    Network,
    Streets,
    mean_iou,
    optimizer_of,
    options_parser,
    paint,
    seeded,
)
from pytorch_lightning import LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.optim.lr_scheduler import PolynomialLR
from torch.utils.data import DataLoader


class Segmentation(LightningModule):
    """Teacher, prototypes and queues are submodules, so Lightning moves, saves and loads them."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.options = options
        self.method = U2PL(Network(NUM_CLASSES, 32), NUM_CLASSES, 32)
        self.val_images, self.val_masks = paint(32, first=20_000, size=options.size)

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_of(self.method, self.options.lr)
        schedule = PolynomialLR(optimizer, self.options.steps, power=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, _: int) -> Batch:
        return batch.to(device)

    def training_step(self, batch: Batch, _: int) -> Mapping[str, Tensor]:
        step = self.global_step  # and not the index: after a resume it goes on
        generator = seeded(self.options.seed, step, self.device)
        terms = self.method.step(batch, step, self.options.steps, generator)
        self.log_dict({name: term.detach() for name, term in terms.items()}, prog_bar=True)
        return terms  # Lightning optimises "loss"

    def on_train_batch_end(self, *_: Any) -> None:
        self.method.follow(self.global_step - 1)  # the optimiser has counted its step already

    def on_train_end(self) -> None:
        teacher = self.method.teacher
        score = mean_iou(teacher, self.val_images, self.val_masks, self.device)
        print(f"teacher's mIoU on {len(self.val_images)} other streets: {score:.1f} %")


def main(argv: Sequence[str] | None = None) -> Segmentation:
    """Train, and return the trained module."""
    options = options_parser("U2PL+ in a LightningModule").parse_args(argv)
    seed_everything(options.seed, verbose=False)
    module = Segmentation(options)
    trainer = Trainer(
        max_steps=options.steps,
        devices=1,  # several would each choose keys and anchors of their own part of the batch
        logger=False,
        enable_checkpointing=False,  # Lightning's hold everything, the teacher and queues too
        enable_model_summary=False,
        enable_progress_bar=options.steps > 20,
    )
    # the teacher is in evaluation mode on purpose
    warnings.filterwarnings("ignore", message="Found .* in eval mode at the start of training")
    trainer.fit(module, DataLoader(Streets(options), batch_size=None))
    return module


if __name__ == "__main__":
    main()
