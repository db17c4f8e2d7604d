"""Recipes of the weakly supervised setting: seed masks from image tags, and training on them."""

from __future__ import annotations

from u2pl.config import (
    Config,
    DataSettings,
    MethodSettings,
    ModelSettings,
    OptimizerSettings,
    TrainSettings,
    WeakSettings,
)
from u2pl.recipes import semi


def voc_tags() -> Config:
    """PASCAL VOC 2012 from tags on one GPU: ResNet-101; the classifier's numbers are IRN's."""
    return Config(
        recipe="voc-tags",
        setting="weak",
        model=ModelSettings(encoder="resnet101", output_stride=8),
        data=DataSettings(crop=(513, 513), batch_labeled=8, batch_unlabeled=8),
        method=MethodSettings(background_class=0, labeled_symmetric_weight=0.1),
        optimizer=OptimizerSettings(lr=1e-3, head_lr_factor=10.0),
        train=TrainSettings(steps=20_000, supervised_steps=1300),
        weak=WeakSettings(lr=0.1),
    )


def msrc21_small() -> Config:
    """MSRC-21 from tags on two CPU cores within minutes: ImageNet EfficientNet-Lite0, FPN.

    The pretrained encoder comes from timm's hub, or from a file given as ``model.weights``.
    """
    return semi.camvid_small().with_overrides(
        {
            "recipe": "msrc21-small",
            "setting": "weak",
            "model.encoder": "tf_efficientnet_lite0",
            # a photograph shows two or three of 21 classes: the statistics of eight are noise
            "model.frozen_norm": True,
            "data.resize": 160,
            "data.crop": (128, 128),
            "data.scale": (0.75, 1.5),
            "data.batch_labeled": 8,
            "data.batch_unlabeled": 8,
            "data.jitter": 0.2,
            "method.mixing": "none",
            "method.initial_unreliable_fraction": 0.2,
            "method.refine_iterations": 5,
            # rare classes learn sooner without reverse cross-entropy, and the training is short
            "method.symmetric_weight": 0.0,
            "method.unsupervised_ramp_steps": 250,
            "optimizer.lr": 5e-5,
            "optimizer.head_lr_factor": 20.0,
            "train.steps": 1000,
            # pseudo-labels of a net that has not yet learnt the seeds unlearn them
            "train.supervised_steps": 500,
            "train.eval_every": 500,
            "weak.steps": 400,
            "weak.batch_size": 8,
            "weak.scale": (0.8, 1.25),
            "weak.low": 0.0,
            "weak.margin": 0.0,
            "weak.kept_share": 0.6,  # by one margin for all, some classes would get hardly a seed
        }
    )


def demo_weak() -> Config:
    """The painted close-ups of ``u2pl demo --setting weak``, known by their tags alone."""
    return semi.demo().with_overrides(
        {
            "recipe": "demo-weak",
            "setting": "weak",
            "data.scale": (0.67, 1.5),
            # with 4 images a step even all true masks teach no person and no pole
            "data.batch_labeled": 12,
            "data.batch_unlabeled": 12,
            # such short a training is not over-fitted: all that makes images harder costs more
            # than it gives
            "data.jitter": 0.0,
            "method.mixing": "none",
            "method.initial_unreliable_fraction": 0.2,
            # a net from scratch draws blobs where images have edges
            "method.refine_iterations": 5,
            # rare classes learn sooner without reverse cross-entropy, and the training is short
            "method.symmetric_weight": 0.0,
            "method.unsupervised_ramp_steps": 200,
            "optimizer.lr": 3e-3,
            "train.steps": 1200,
            "train.supervised_steps": 300,
            "train.eval_every": 1200,
            "train.checkpoint_every": 600,
            "weak.steps": 1500,
            "weak.pooling_sharpness": 2.0,  # people and signs are small
            "weak.scale": (0.67, 1.0),
            "weak.output_stride": 16,
            "weak.tag_prior": 1.5,
            "weak.cam_scores": "probability",
            "weak.cam_scales": (0.67, 1.0, 1.33),
            "weak.low": 0.0,
            "weak.margin": 0.0,
            "weak.kept_share": 0.75,  # by one margin for all, small things would get no seed
        }
    )
