"""Eq. 5-8, pixel by pixel."""

from __future__ import annotations

import math

from reference.types import BoolMaps, ClassMaps, LabelMaps, Maps


def prediction_entropy(probs: ClassMaps) -> Maps:
    """Eq. 5: H = -Σ p log p, where 0 log 0 is 0."""
    entropy = []
    for image in probs:
        rows = []
        for y in range(len(image[0])):
            row = []
            for x in range(len(image[0][0])):
                total = 0.0
                for class_map in image:
                    p = class_map[y][x]
                    if p > 0:
                        total -= p * math.log(p)
                row.append(total)
            rows.append(row)
        entropy.append(rows)
    return entropy


def unreliable_fraction(step: int, total_steps: int, initial: float) -> float:
    """Eq. 7: α_0 (1 - t / T), never below 0."""
    return max(initial - initial * step / total_steps, 0.0)


def entropy_threshold(entropy: Maps, valid: BoolMaps, fraction: float) -> float:
    """Eq. 6: the 1 - α quantile over the valid pixels, linear between neighbours."""
    values = []
    for image, valid_image in zip(entropy, valid, strict=True):
        for row, valid_row in zip(image, valid_image, strict=True):
            values += [h for h, counts in zip(row, valid_row, strict=True) if counts]
    if not values:
        return math.inf
    values.sort()
    position = (1 - fraction) * (len(values) - 1)
    below = math.floor(position)
    above = math.ceil(position)
    share = position - below
    return (1 - share) * values[below] + share * values[above]


def pseudo_labels(
    probs: ClassMaps, entropy: Maps, threshold: float, valid: BoolMaps, ignore_index: int
) -> LabelMaps:
    """Eq. 6: the argmax where the pixel is valid and no less sure than γ."""
    result = []
    for b, image in enumerate(probs):
        rows = []
        for y in range(len(image[0])):
            row = []
            for x in range(len(image[0][0])):
                scores = [class_map[y][x] for class_map in image]
                if valid[b][y][x] and entropy[b][y][x] <= threshold:
                    row.append(scores.index(max(scores)))
                else:
                    row.append(ignore_index)
            rows.append(row)
        result.append(rows)
    return result


def confident_share(probs: ClassMaps, valid: BoolMaps, threshold: float) -> float:
    """Valid pixels whose largest probability reaches the threshold, over the valid pixels."""
    confident, count = 0, 0
    for image, valid_map in zip(probs, valid, strict=True):
        for y, row in enumerate(valid_map):
            for x, is_valid in enumerate(row):
                if is_valid:
                    count += 1
                    confident += max(class_map[y][x] for class_map in image) >= threshold
    return confident / count if count else 0.0


def restrict_to_tags(probs: ClassMaps, possible: list[list[bool]]) -> ClassMaps:
    """No probability for absent classes; the rest is divided by its sum."""
    result = []
    for image, tags in zip(probs, possible, strict=True):
        if not any(tags):
            result.append(image)
            continue
        restricted = [[[0.0] * len(row) for row in class_map] for class_map in image]
        for y in range(len(image[0])):
            for x in range(len(image[0][0])):
                total = sum(image[c][y][x] for c in range(len(image)) if tags[c])
                for c in range(len(image)):
                    if tags[c]:
                        even = 1 / tags.count(True)
                        restricted[c][y][x] = image[c][y][x] / total if total > 0 else even
        result.append(restricted)
    return result


def confident_pseudo_labels(
    probs: ClassMaps, valid: BoolMaps, threshold: float, ignore_index: int
) -> LabelMaps:
    """The likeliest class of the valid pixels where its probability reaches the threshold."""
    labels = []
    for image, valid_map in zip(probs, valid, strict=True):
        rows = []
        for y, row in enumerate(valid_map):
            pixels = []
            for x, is_valid in enumerate(row):
                own = [class_map[y][x] for class_map in image]
                kept = is_valid and max(own) >= threshold
                pixels.append(own.index(max(own)) if kept else ignore_index)
            rows.append(pixels)
        labels.append(rows)
    return labels
