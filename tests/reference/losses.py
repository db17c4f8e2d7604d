"""Eq. 2-4 and 8, one pixel or anchor at a time."""

from __future__ import annotations

import math

from reference.prototypes import Vectors, cosine
from reference.types import ClassMaps, LabelMaps


def softmax(scores: list[float]) -> list[float]:
    largest = max(scores)
    powers = [math.exp(score - largest) for score in scores]
    return [power / sum(powers) for power in powers]


def labeled_pixels(
    logits: ClassMaps, labels: LabelMaps, ignore_index: int
) -> list[tuple[list[float], int]]:
    """(probabilities, label) of every labelled pixel."""
    pixels = []
    for image, label_map in zip(logits, labels, strict=True):
        for y, row in enumerate(label_map):
            for x, label in enumerate(row):
                if label != ignore_index:
                    pixels.append((softmax([class_map[y][x] for class_map in image]), label))
    return pixels


def cross_entropy(logits: ClassMaps, labels: LabelMaps, ignore_index: int) -> float:
    """Mean of -log p(label) over the labelled pixels; 0 without any."""
    pixels = labeled_pixels(logits, labels, ignore_index)
    total = sum(-math.log(probs[label]) for probs, label in pixels)
    return total / len(pixels) if pixels else 0.0


def ohem_cross_entropy(
    logits: ClassMaps, labels: LabelMaps, ignore_index: int, threshold: float, min_kept: int
) -> float:
    """Mean over the pixels with p(label) <= threshold, or over the ``min_kept`` hardest."""
    own = sorted(p[label] for p, label in labeled_pixels(logits, labels, ignore_index))
    hard = [p for p in own if p <= threshold]
    if len(hard) < min_kept:
        hard = own[:min_kept]
    return sum(-math.log(p) for p in hard) / len(hard) if hard else 0.0


def reverse_cross_entropy(
    logits: ClassMaps, labels: LabelMaps, ignore_index: int, floor: float
) -> float:
    """Mean of -Σ_c p(c) log max(y(c), floor)."""
    pixels = labeled_pixels(logits, labels, ignore_index)
    total = 0.0
    for probs, label in pixels:
        for c, p in enumerate(probs):
            target = 1.0 if c == label else 0.0
            total -= p * math.log(max(target, floor))
    return total / len(pixels) if pixels else 0.0


def weighted_symmetric_cross_entropy(
    logits: ClassMaps,
    labels: LabelMaps,
    weights: list[list[list[float]]],
    ignore_index: int,
    reverse_weight: float,
) -> float:
    """Σ of each labelled pixel's weight times its CE + ξ·RCE, over the count of those pixels."""
    total, count = 0.0, 0
    for image, label_map, weight_map in zip(logits, labels, weights, strict=True):
        for y, row in enumerate(label_map):
            for x, label in enumerate(row):
                if label == ignore_index:
                    continue
                pixel = [[[[class_map[y][x]]] for class_map in image]]
                loss = cross_entropy(pixel, [[[label]]], ignore_index)
                loss += reverse_weight * reverse_cross_entropy(
                    pixel, [[[label]]], ignore_index, 1e-4
                )
                total += weight_map[y][x] * loss
                count += 1
    return total / count if count else 0.0


def contrastive_loss(
    anchors: list[Vectors],
    positives: Vectors,
    negatives: list[list[Vectors]],
    active: list[bool],
    temperature: float,
) -> float:
    """Eq. 4: -1/(C M) Σ_c Σ_m log of the positive's share, over the active classes."""
    if not any(active):
        return 0.0
    total = 0.0
    for c, is_active in enumerate(active):
        if not is_active:
            continue
        for anchor, keys in zip(anchors[c], negatives[c], strict=True):
            positive = math.exp(cosine(anchor, positives[c]) / temperature)
            others = sum(math.exp(cosine(anchor, key) / temperature) for key in keys)
            total -= math.log(positive / (positive + others))
    return total / (active.count(True) * len(anchors[0]))


def soft_symmetric_cross_entropy(
    logits: ClassMaps,
    targets: ClassMaps,
    kept: list[list[list[bool]]],
    weights: list[list[list[float]]],
    reverse_weight: float,
    floor: float,
) -> float:
    """Mean over the kept pixels of the weighted -Σ y log p - ξ Σ p log max(y, floor)."""
    total, count = 0.0, 0
    for b, image in enumerate(logits):
        for y in range(len(image[0])):
            for x in range(len(image[0][0])):
                if not kept[b][y][x]:
                    continue
                probs = softmax([class_map[y][x] for class_map in image])
                target = [class_map[y][x] for class_map in targets[b]]
                loss = 0.0
                for p, t in zip(probs, target, strict=True):
                    loss -= t * math.log(p) + reverse_weight * p * math.log(max(t, floor))
                total += weights[b][y][x] * loss
                count += 1
    return total / count if count else 0.0
