"""U2PL+ in a training loop of your own: plain PyTorch and the method's parts.

    python examples/plain_pytorch.py --steps 300

Trains a small network on painted streets, some with masks and most without, and prints the
teacher's mIoU. docs/how-to/own-loop.md goes through it piece by piece. Put your own network in
place of `Network`, your own data in place of `Streets`, and keep the rest.

B images, C classes, H x W pixels, h x w cells of the feature grid, D numbers a feature.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from u2pl import contrast, losses, mixing, partition
from u2pl.data.synthetic import CLASSES, IGNORE_INDEX, paint_scene
from u2pl.teacher import follow, make_teacher, teacher_decay

NUM_CLASSES = len(CLASSES)


# --- data: whatever you have ------------------------------------------------------------------


class Batch(NamedTuple):
    """What a step needs. Without tags `possible_u` is True everywhere."""

    images_l: Tensor  # [B, 3, H, W] float32, RGB in [0, 1]
    labels_l: Tensor  # [B, H, W] int64, class ids or IGNORE_INDEX
    weak_u: Tensor  # [B, 3, H, W], geometry changed only: what the teacher sees
    strong_u: Tensor  # [B, 3, H, W], the same pixels with colours changed: what the student sees
    valid_u: Tensor  # [B, H, W] bool, False on padding
    possible_u: Tensor  # [B, C] bool, the classes that an image may show

    def to(self, device: torch.device) -> Batch:
        return Batch(*(tensor.to(device) for tensor in self))


def paint(num_scenes: int, *, first: int, size: int) -> tuple[Tensor, Tensor]:
    """Images [n, 3, H, W] and masks [n, H, W]; another `first` gives other scenes."""
    generators = (np.random.default_rng(first + n) for n in range(num_scenes))
    scenes = [paint_scene(size=(size, size), generator=generator) for generator in generators]
    images = torch.stack([torch.from_numpy(image) for image, _ in scenes])
    masks = torch.stack([torch.from_numpy(mask) for _, mask in scenes])
    return images.movedim(-1, 1).float() / 255, masks.long()


class Streets(Dataset[Batch]):
    """Item t is the whole batch of step t, a function of seed and t: so a run can go on exactly."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.images_l, self.labels_l = paint(options.labeled, first=0, size=options.size)
        self.images_u, hidden = paint(options.unlabeled, first=10_000, size=options.size)
        self.possible_u = torch.ones(options.unlabeled, NUM_CLASSES, dtype=torch.bool)
        if options.tags:  # somebody has noted which classes each image shows
            classes = torch.arange(NUM_CLASSES)
            self.possible_u = (hidden.flatten(1)[:, :, None] == classes).any(dim=1)

    def __len__(self) -> int:
        return int(self.options.steps)

    def __getitem__(self, step: int) -> Batch:
        size, generator = self.options.batch, seeded(self.options.seed, step)
        rows_l = torch.randint(len(self.images_l), (size,), generator=generator)
        rows_u = torch.randint(len(self.images_u), (size,), generator=generator)
        images_l, labels_l = self.images_l[rows_l], self.labels_l[rows_l]
        weak_u = self.images_u[rows_u]
        if step % 2:  # a weak view may be mirrored; nothing else that moves pixels comes after it
            images_l, labels_l, weak_u = images_l.flip(-1), labels_l.flip(-1), weak_u.flip(-1)
        gain = 0.6 + 0.8 * torch.rand(size, 3, 1, 1, generator=generator)
        shift = 0.2 * torch.randn(size, 1, 1, 1, generator=generator)
        strong_u = ((weak_u - 0.5) * gain + 0.5 + shift).clamp(0, 1)
        valid_u = torch.ones_like(weak_u[:, 0], dtype=torch.bool)
        return Batch(images_l, labels_l, weak_u, strong_u, valid_u, self.possible_u[rows_u])


def seeded(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed * 1_000_003 + step)


# --- network: whatever gives logits and features on one grid ----------------------------------


def block(
    in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, dilation, dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class Network(nn.Module):
    """Two heads side by side on one backbone: classes, and features to compare pixels by."""

    def __init__(self, num_classes: int, feature_size: int, *, width: int = 48) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            block(3, width // 2, stride=2),
            block(width // 2, width, stride=2),
            *(block(width, width, dilation=dilation) for dilation in (1, 2, 4)),
        )
        self.segmentation_head = nn.Conv2d(width, num_classes, 1)
        self.representation_head = nn.Sequential(
            block(width, width), nn.Conv2d(width, feature_size, 1)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, C, h, w] and features [B, D, h, w] of unit length."""
        maps = self.backbone(images)
        return self.segmentation_head(maps), F.normalize(self.representation_head(maps), dim=1)


def at_full_size(logits: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(logits, size=like.shape[-2:], mode="bilinear", align_corners=False)


# --- the method -------------------------------------------------------------------------------


class Targets(NamedTuple):
    """The unlabelled images after mixing, and what the teacher says of their pixels."""

    images: Tensor  # [B, 3, H, W]
    pseudo_labels: Tensor  # [B, H, W] int64, IGNORE_INDEX where the teacher is not sure
    unreliable: Tensor  # [B, H, W] bool: not sure, and so good for negatives
    num_valid: Tensor  # scalar
    probs: Tensor  # [2B, C, h, w], labelled images first, as the next two
    features: Tensor  # [2B, D, h, w]
    certain_negatives: Tensor  # [2B, C, h, w] bool, from tags


class Pairs(NamedTuple):
    """What the contrast compares: M anchors a class, and N negatives an anchor."""

    anchors: Tensor  # [C, M] int64, indices into the 2B·h·w cells
    positives: Tensor  # [C, D]
    negatives: Tensor  # [C, M, N, D]
    active: Tensor  # [C] bool, the classes that have all three


class U2PL(nn.Module):
    """Student, teacher and the contrast's memory: one state dict holds them all."""

    def __init__(self, student: Network, num_classes: int, feature_size: int) -> None:
        super().__init__()
        self.student = student
        self.teacher = make_teacher(student)
        self.prototypes = contrast.MomentumPrototypes(num_classes, feature_size)
        self.queues = contrast.NegativeQueues([2_000] * num_classes, feature_size)

    def train(self, mode: bool = True) -> U2PL:
        super().train(mode)
        self.teacher.eval()  # it answers as it would when it is used
        return self

    @torch.no_grad()
    def look(self, batch: Batch, alpha: float, generator: torch.Generator) -> Targets:
        """Let the teacher look once at all images, mix, and split by entropy (Eq. 5-7)."""
        logits, features = self.teacher(torch.cat([batch.images_l, batch.weak_u]))
        logits_l, logits_u = logits.chunk(2)
        features_l, features_u = features.chunk(2)

        low_rank, _ = contrast.rank_bounds(logits.shape[1])
        certain = contrast.tag_negative_mask(
            batch.possible_u,
            mixing.on_grid(batch.valid_u, logits.shape[-2:]),
            contrast.class_rank(logits_u),
            low_rank=low_rank,
        )
        logits_u = contrast.denoise_logits(
            logits_u, features_u, self.prototypes.vectors, self.prototypes.seen, temperature=0.5
        )
        probs_u = partition.restrict_to_tags(logits_u.softmax(dim=1), batch.possible_u)
        full = at_full_size(logits_u, batch.weak_u).softmax(dim=1)
        full = partition.restrict_to_tags(full, batch.possible_u)
        entropy, predictions = partition.prediction_entropy(full), full.argmax(dim=1)

        size = (batch.weak_u.shape[-2], batch.weak_u.shape[-1])
        mix = mixing.cutmix(len(full), size, device=full.device, generator=generator)
        images, entropy, predictions = map(mix.apply, (batch.strong_u, entropy, predictions))
        valid, probs_u, features_u = map(mix.apply, (batch.valid_u, probs_u, features_u))
        certain = mix.apply(certain)

        threshold = partition.entropy_threshold(entropy, valid, unreliable_fraction=alpha)
        pseudo_labels = partition.pseudo_labels(
            predictions, entropy, threshold, valid, ignore_index=IGNORE_INDEX
        )
        return Targets(
            images=images,
            pseudo_labels=pseudo_labels,
            unreliable=partition.unreliable_mask(entropy, threshold, valid),
            num_valid=valid.sum(),
            probs=torch.cat([logits_l.softmax(dim=1), probs_u]),
            features=torch.cat([features_l, features_u]),
            certain_negatives=torch.cat([torch.zeros_like(certain), certain]),
        )

    @torch.no_grad()
    def pair(self, labels_l: Tensor, targets: Targets, generator: torch.Generator) -> Pairs:
        """Choose anchors, positives and negatives; prototypes and queues move on (Eq. 9-16)."""
        probs, features = targets.probs, targets.features
        grid = (probs.shape[-2], probs.shape[-1])
        labels = mixing.on_grid(torch.cat([labels_l, targets.pseudo_labels]), grid)
        unreliable = mixing.on_grid(targets.unreliable, grid)

        low_rank, high_rank = contrast.rank_bounds(probs.shape[1])
        rank_l, rank_u = contrast.class_rank(probs).chunk(2)
        negatives_l = contrast.labeled_negative_mask(
            labels[: len(labels_l)], rank_l, low_rank=low_rank
        )
        negatives_u = contrast.unlabeled_negative_mask(
            unreliable, rank_u, low_rank=low_rank, high_rank=high_rank
        )
        negatives = torch.cat([negatives_l, negatives_u]) | targets.certain_negatives
        anchors = contrast.anchor_mask(labels, probs)

        self.prototypes.update(*contrast.class_means(features, anchors))
        self.queues.push(
            contrast.by_pixel(features),
            contrast.by_class(negatives),
            max_keys=256,
            generator=generator,
        )
        index, has_anchor = contrast.sample_with_replacement(
            contrast.by_class(anchors), 64, generator=generator
        )
        return Pairs(
            anchors=index,
            positives=self.prototypes.vectors,
            negatives=self.queues.sample(64, 50, generator=generator),
            active=has_anchor & (self.queues.num_keys > 0),
        )

    def losses(self, batch: Batch, targets: Targets, pairs: Pairs) -> dict[str, Tensor]:
        """Let the student see labelled and mixed images, and compare (Eq. 1-4, 8)."""
        logits, features = self.student(torch.cat([batch.images_l, targets.images]))
        logits_l, logits_u = at_full_size(logits, targets.images).chunk(2)
        loss_s = losses.cross_entropy(logits_l, batch.labels_l, ignore_index=IGNORE_INDEX)
        loss_u = losses.symmetric_cross_entropy(
            logits_u, targets.pseudo_labels, ignore_index=IGNORE_INDEX, reverse_weight=0.1
        )
        num_kept = (targets.pseudo_labels != IGNORE_INDEX).sum()
        loss_u = losses.unsupervised_weight(targets.num_valid, num_kept) * loss_u
        loss_c = losses.contrastive_loss(
            contrast.by_pixel(features)[pairs.anchors],
            pairs.positives,
            pairs.negatives,
            pairs.active,
        )
        loss = loss_s + loss_u + 0.1 * loss_c
        return {"loss": loss, "loss_s": loss_s, "loss_u": loss_u, "loss_c": loss_c}

    def step(
        self, batch: Batch, step: int, total_steps: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The losses of one step; backward pass and optimiser are the caller's.

        A network from scratch sees the labels alone at first, as its teacher knows nothing yet.
        """
        warmup = total_steps // 6
        if step < warmup:
            logits = at_full_size(self.student(batch.images_l)[0], batch.images_l)
            loss_s = losses.cross_entropy(logits, batch.labels_l, ignore_index=IGNORE_INDEX)
            return {"loss": loss_s, "loss_s": loss_s}
        alpha = partition.unreliable_fraction(step - warmup, total_steps - warmup)
        targets = self.look(batch, alpha, generator)
        pairs = self.pair(batch.labels_l, targets, generator)
        return self.losses(batch, targets, pairs)

    def follow(self, step: int) -> None:
        """After the optimiser's step: the teacher moves towards the student."""
        follow(self.teacher, self.student, decay=teacher_decay(step))


# --- the loop: yours --------------------------------------------------------------------------


def train(
    method: U2PL,
    optimizer: torch.optim.Optimizer,
    streets: Streets,
    steps: range,
    device: torch.device,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Make the updates of these steps; say each one's losses."""
    total, seed = len(streets), streets.options.seed
    method.train()
    for step, batch in zip(steps, DataLoader(streets, None, sampler=steps), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = streets.options.lr * (1 - step / total) ** 0.9
        terms = method.step(batch.to(device), step, total, seeded(seed, step, device))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        method.follow(step)
        yield step, terms


@torch.no_grad()
def mean_iou(network: nn.Module, images: Tensor, masks: Tensor, device: torch.device) -> float:
    """In percent: one confusion matrix over all images, the mean over classes that occur."""
    confusion = torch.zeros(NUM_CLASSES, NUM_CLASSES, dtype=torch.long)
    for some, mask in zip(images.split(16), masks.split(16), strict=True):
        predictions = at_full_size(network(some.to(device))[0], some).argmax(dim=1).cpu()
        known = mask != IGNORE_INDEX
        pairs = NUM_CLASSES * mask[known] + predictions[known]
        confusion += pairs.bincount(minlength=NUM_CLASSES**2).view_as(confusion)
    hits, occurs = confusion.diagonal(), confusion.sum(dim=1) > 0
    union = confusion.sum(dim=0) + confusion.sum(dim=1) - hits
    return float(100 * (hits / union.clamp_min(1))[occurs].mean())


def optimizer_of(method: U2PL, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(method.student.parameters(), lr, momentum=0.9, weight_decay=1e-4)


def options_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--batch", type=int, default=4, help="labelled, and as many unlabelled")
    parser.add_argument("--labeled", type=int, default=8, help="streets with masks")
    parser.add_argument("--unlabeled", type=int, default=64, help="streets without")
    parser.add_argument("--size", type=int, default=64, help="side of a street in pixels")
    parser.add_argument("--tags", action="store_true", help="know which classes each one shows")
    return parser


def main(argv: Sequence[str] | None = None) -> float:
    """Train, and return the teacher's mIoU in percent."""
    parser = options_parser("U2PL+ in plain PyTorch")
    parser.add_argument("--checkpoint", type=Path, help="written at the end; read if it is there")
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(options.seed)
    method = U2PL(Network(NUM_CLASSES, 32), NUM_CLASSES, 32).to(device)
    optimizer, first = optimizer_of(method, options.lr), 0
    if options.checkpoint and options.checkpoint.exists():
        saved = torch.load(options.checkpoint, weights_only=True)
        method.load_state_dict(saved["method"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]

    streets, steps = Streets(options), range(first, options.steps)
    for step, terms in train(method, optimizer, streets, steps, device):
        if step % 20 == 0 or step == options.steps - 1:
            shown = "  ".join(f"{name} {value.item():.3f}" for name, value in terms.items())
            print(f"step {step:4}  {shown}")
    if options.checkpoint:
        state = {"method": method.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state | {"step": options.steps}, options.checkpoint)
    score = mean_iou(method.teacher, *paint(32, first=20_000, size=options.size), device)
    print(f"teacher's mIoU on 32 other streets: {score:.1f} %")
    return score


if __name__ == "__main__":
    main()
