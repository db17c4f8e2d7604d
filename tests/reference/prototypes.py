"""Eq. 12, its moving mean, and the denoising in probabilities."""

from __future__ import annotations

import math

from reference.types import ClassMaps, ClassMasks

Vectors = list[list[float]]


def class_means(features: ClassMaps, mask: ClassMasks) -> tuple[Vectors, list[int]]:
    """Eq. 12: add up the features of each class's pixels, divide by their number."""
    feature_size, num_classes = len(features[0]), len(mask[0])
    means = [[0.0] * feature_size for _ in range(num_classes)]
    counts = [0] * num_classes
    for image, image_mask in zip(features, mask, strict=True):
        for c in range(num_classes):
            for y, row in enumerate(image_mask[c]):
                for x, member in enumerate(row):
                    if member:
                        counts[c] += 1
                        for d in range(feature_size):
                            means[c][d] += image[d][y][x]
    for c, count in enumerate(counts):
        if count > 0:
            means[c] = [total / count for total in means[c]]
    return means, counts


class Prototypes:
    """z⁺_c ← m z⁺_c + (1 - m) mean, m = min(1 - 1/t, bound), t the updates of class c."""

    def __init__(self, num_classes: int, feature_size: int, momentum: float) -> None:
        self.momentum = momentum
        self.vectors = [[0.0] * feature_size for _ in range(num_classes)]
        self.num_updates = [0] * num_classes

    def update(self, means: Vectors, counts: list[int]) -> None:
        for c, count in enumerate(counts):
            if count == 0:
                continue
            self.num_updates[c] += 1
            m = min(1 - 1 / self.num_updates[c], self.momentum)
            self.vectors[c] = [
                m * old + (1 - m) * new for old, new in zip(self.vectors[c], means[c], strict=True)
            ]


def cosine(a: list[float], b: list[float]) -> float:
    """⟨a, b⟩ of the two directions; 0 where one of them has no length."""
    length = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / length if length > 0 else 0.0


def denoised_probs(
    probs: ClassMaps, features: ClassMaps, prototypes: Vectors, seen: list[bool], temperature: float
) -> ClassMaps:
    """p'(c) = p(c) s(c) / Σ p s, s the softmax of the similarities over τ_d.

    A class without a prototype gets the mean similarity of those that have one.
    """
    num_classes = len(prototypes)
    result = [[[list(row) for row in class_map] for class_map in image] for image in probs]
    for b, image in enumerate(probs):
        for y in range(len(image[0])):
            for x in range(len(image[0][0])):
                z = [feature_map[y][x] for feature_map in features[b]]
                known = [cosine(z, prototypes[c]) for c in range(num_classes) if seen[c]]
                mean = sum(known) / len(known) if known else 0.0
                weights = []
                for c in range(num_classes):
                    similarity = cosine(z, prototypes[c]) if seen[c] else mean
                    weights.append(math.exp(similarity / temperature))
                weights = [weight / sum(weights) for weight in weights]
                products = [image[c][y][x] * weights[c] for c in range(num_classes)]
                for c in range(num_classes):
                    result[b][c][y][x] = products[c] / sum(products)
    return result
