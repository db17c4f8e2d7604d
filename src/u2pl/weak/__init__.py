"""Image tags to seed masks: a classifier, its activation maps, their refinement, their labels."""

from u2pl.refinement import refine_maps
from u2pl.weak.cam import class_activation_maps
from u2pl.weak.classifier import TagClassifier, train_classifier
from u2pl.weak.pipeline import make_seeds, with_background
from u2pl.weak.seeds import seed_labels

__all__ = [
    "TagClassifier",
    "class_activation_maps",
    "make_seeds",
    "refine_maps",
    "seed_labels",
    "train_classifier",
    "with_background",
]
