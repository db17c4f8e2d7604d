"""Recipes for the tables of the paper: PASCAL VOC 2012 and Cityscapes, with its networks and ours.

[P] stands in U2PL's paper, [C] only in its authors' code, [V2] in UniMatch V2 (arXiv 2410.10777)
and its public code; what has no mark is ours. Both count in passes over the unlabelled images (of
Cityscapes' half: the labelled ones), so the number of steps differs from split to split:
:func:`passes` gives it, and docs/how-to/paper-benchmarks.md has a table. A recipe's own number is
that of the fewest labels.
"""

from __future__ import annotations

from typing import Any, Literal

from u2pl.config import (
    Config,
    DataSettings,
    EvaluationSettings,
    MethodSettings,
    ModelSettings,
    OptimizerSettings,
    TrainSettings,
)

Benchmark = Literal["voc-classic", "voc-blender", "cityscapes"]
"""Where the labelled images are drawn from: VOC's own 1 464 masks; these and SBD's, 10 582 in all;
or Cityscapes' 2 975."""

IMAGES = {"voc-classic": 10_582, "voc-blender": 10_582, "cityscapes": 2_975}
"""To train on, labelled or not [P]."""

FEWEST_LABELS = {"voc-classic": 92, "voc-blender": 662, "cityscapes": 186}
"""The smallest of the published splits, one sixteenth of what the labels are drawn from [P]."""

_RESNETS = {"r101": "resnet101.tv_in1k", "r50": "resnet50.tv_in1k"}
# torchvision's weights, the nearest to the authors' of what timm has
_VITS = {
    "dinov2-s": "vit_small_patch14_dinov2.lvd142m",
    "dinov2-b": "vit_base_patch14_dinov2.lvd142m",
}


def passes(benchmark: Benchmark, number: int, *, batch: int, labels: int | None = None) -> int:
    """Steps that a number of passes over the longer list takes, the last part batch left out [C].

    Args:
        benchmark: which images there are.
        number: of passes.
        batch: images of a list in a step.
        labels: labelled images; None is the smallest published split.

    >>> passes("voc-classic", 80, batch=16), passes("cityscapes", 200, batch=16, labels=1488)
    (52400, 18600)
    """
    labels = FEWEST_LABELS[benchmark] if labels is None else labels
    return max(labels, IMAGES[benchmark] - labels) // batch * number


def paper(benchmark: Benchmark, network: str) -> Config:
    """U2PL's numbers [P] with a ResNet, ``r101`` as in the paper or ``r50``.

    The method's own numbers are the defaults, U2PL+'s.
    """
    is_voc = benchmark != "cityscapes"
    side = 513 if is_voc else 769  # [P]
    epochs, warm_up = (80, 1) if is_voc else (200, 20)  # [P]; [C] has no warm-up on Cityscapes
    steps = passes(benchmark, epochs, batch=16)
    return Config(
        recipe=f"{benchmark}-{network}",
        model=ModelSettings(
            encoder=_RESNETS[network],  # [P: ResNet-101]
            decoder="deeplabv3plus",  # [P]
            output_stride=8,  # [P]
            atrous_rates=(12, 24, 36),  # [P]
            auxiliary_weight=0.0 if is_voc else 0.4,  # [P]
        ),
        data=DataSettings(
            crop=(side, side),
            scale=(0.5, 2.0),  # [P]
            batch_labeled=16,  # [P]
            batch_unlabeled=16,  # [P]
            jitter=0.0,  # [C]: strong means mixed, colours stay
            grayscale_probability=0.0,  # [C]
            blur_probability=0.0,  # [C]
        ),
        method=MethodSettings(
            background_class=0 if is_voc else None,  # [P]; Cityscapes has none
            mixing="cutmix",  # [P]
            mix_probability=0.5,  # [C]
        ),
        optimizer=OptimizerSettings(
            name="sgd",  # [P]
            lr=1e-3 if is_voc else 1e-2,  # [P]
            # [P: 10]; on Cityscapes the code's 1, which made the published numbers: 0.1 is much
            head_lr_factor=10.0 if is_voc else 1.0,
            momentum=0.9,  # [P]
            weight_decay=1e-4 if is_voc else 5e-4,  # [P]
            poly_power=0.9,  # [P]
        ),
        train=TrainSettings(
            steps=steps,
            supervised_steps=passes(benchmark, warm_up, batch=16),
            ohem=not is_voc,  # [P], with its 0.7 and 100 000 of the batch; [C] counts them a GPU
            eval_every=steps // 20,
            checkpoint_every=1000,
        ),
        evaluation=evaluation(benchmark, side),
    )


def today(benchmark: Benchmark, network: str) -> Config:
    """DINOv2 under DPT, ``dinov2-s`` or ``dinov2-b``, with UniMatch V2's optimiser and views."""
    is_voc = benchmark != "cityscapes"
    side = 518 if is_voc else 798  # [V2]: 37 and 57 patches
    epochs, batch = (60, 16) if is_voc else (180, 8)  # [V2], of four GPUs together
    steps = passes(benchmark, epochs, batch=batch)
    ohem: dict[str, Any] = {} if is_voc else {"ohem": True, "ohem_min_kept": 800_000}
    return Config(
        recipe=f"{benchmark}-{network}",
        model=ModelSettings(
            encoder=_VITS[network],
            decoder="dpt",  # [V2]
            decoder_channels=64 if network == "dinov2-s" else 128,  # [V2]
        ),
        data=DataSettings(
            crop=(side, side),
            scale=(0.5, 2.0),  # [V2]
            batch_labeled=batch,
            batch_unlabeled=batch,
            jitter=0.5,  # [V2], hue 0.25
            jitter_probability=0.8,  # [V2]
            grayscale_probability=0.2,  # [V2]
            blur_probability=0.5,  # [V2]
        ),
        method=MethodSettings(
            background_class=0 if is_voc else None,
            mixing="cutmix",  # [V2]
            mix_probability=0.5,  # [V2]
            ema_decay=0.996,  # [V2]
        ),
        optimizer=OptimizerSettings(
            name="adamw",  # [V2]
            lr=5e-6,  # [V2]
            head_lr_factor=40.0,  # [V2]
            weight_decay=1e-2,  # [V2]
            poly_power=0.9,  # [V2]
        ),
        train=TrainSettings(
            steps=steps,
            # [V2] has no warm-up, as its threshold of 0.95 keeps a new head's guesses out
            supervised_steps=passes(benchmark, 1, batch=batch),
            **ohem,  # [V2]: 0.7, and 200 000 on each of four GPUs
            eval_every=steps // 20,
            checkpoint_every=1000,
        ),
        evaluation=evaluation(benchmark, side),
    )


def evaluation(benchmark: Benchmark, side: int) -> EvaluationSettings:
    """Whole images on VOC; on Cityscapes windows of the training's crop [P: 769; V2: 798]."""
    if benchmark == "cityscapes":
        return EvaluationSettings(protocol="slide", crop=(side, side), stride_fraction=2 / 3)  # [C]
    return EvaluationSettings(protocol="whole")  # [P]
