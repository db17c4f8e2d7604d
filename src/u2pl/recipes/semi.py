"""Recipes of the semi-supervised setting: each returns a complete configuration."""

from __future__ import annotations

from u2pl.config import (
    Config,
    DataSettings,
    MethodSettings,
    ModelSettings,
    OptimizerSettings,
    TrainSettings,
)


def default() -> Config:
    """One's own folders on one GPU: ResNet-50 with ImageNet weights, crops of 512."""
    return Config(
        recipe="default",
        train=TrainSettings(steps=20_000, supervised_steps=500),
    )


def camvid() -> Config:
    """CamVid at 480x360 on a GPU: ImageNet ResNet-50, DeepLabV3+."""
    return Config(
        recipe="camvid",
        data=DataSettings(
            resize=360, crop=(352, 352), scale=(0.5, 2.0), batch_labeled=8, batch_unlabeled=8
        ),
        optimizer=OptimizerSettings(lr=2e-3, head_lr_factor=10.0),
        train=TrainSettings(steps=10_000, supervised_steps=500, eval_every=500),
    )


def camvid_small() -> Config:
    """CamVid at 240x180 on two CPU cores within minutes: ImageNet MobileNetV2, FPN.

    The pretrained encoder comes from timm's hub, or from a file given as ``model.weights``.
    """
    return Config(
        recipe="camvid-small",
        model=ModelSettings(
            encoder="mobilenetv2_100",
            decoder="fpn",
            output_stride=32,
            decoder_channels=64,
            head_channels=64,
            feature_size=64,
        ),
        data=DataSettings(
            resize=180,
            crop=(96, 128),
            scale=(0.75, 1.75),
            batch_labeled=4,
            batch_unlabeled=4,
            jitter=0.4,
            grayscale_probability=0.0,
            blur_probability=0.0,
            num_workers=0,
        ),
        method=MethodSettings(
            initial_unreliable_fraction=0.4,
            queue_size=4000,
            num_anchors=64,
            keys_per_step=256,
            mix_probability=1.0,
        ),
        optimizer=OptimizerSettings(name="adamw", lr=5e-4, head_lr_factor=4.0, weight_decay=1e-2),
        # labels alone still learn rare classes at step 1500, and a teacher must know a class before
        # its pseudo-labels can teach it
        train=TrainSettings(
            steps=3000, supervised_steps=1500, eval_every=1000, checkpoint_every=500
        ),
    )


def demo() -> Config:
    """The painted streets of ``u2pl demo``: a small net from scratch, minutes on two CPU cores."""
    return Config(
        recipe="demo",
        model=ModelSettings(
            encoder="small",
            decoder="deeplabv3plus",
            output_stride=16,
            atrous_rates=(1, 2, 3),
            pretrained=False,
            decoder_channels=96,
            head_channels=64,
            feature_size=64,
        ),
        data=DataSettings(
            crop=(64, 64),
            scale=(0.75, 1.5),
            batch_labeled=4,
            batch_unlabeled=8,
            jitter=0.4,
            grayscale_probability=0.0,
            blur_probability=0.0,  # at 64 pixels a blur hides poles and people altogether
            num_workers=0,
            cache="memory",  # 12 MB; decoding was a twentieth of a step
        ),
        method=MethodSettings(
            initial_unreliable_fraction=0.4,  # a net from scratch is wrong more often at first
            queue_size=2000,
            num_anchors=64,
            keys_per_step=128,
            mix_probability=1.0,
            denoise_temperature=0.25,  # what prototypes say is worth most where labels are few
        ),
        optimizer=OptimizerSettings(name="adamw", lr=2e-3, head_lr_factor=1.0, weight_decay=1e-2),
        train=TrainSettings(
            steps=3600, supervised_steps=600, eval_every=3600, checkpoint_every=900, log_every=10
        ),
    )
