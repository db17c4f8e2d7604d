"""Eq. 9-15: for every image, class and pixel, is it an anchor or a negative of that class?"""

from __future__ import annotations

from collections.abc import Callable

from reference.types import BoolMaps, ClassMaps, ClassMasks, LabelMaps, RankMaps


def class_rank(probs: ClassMaps) -> RankMaps:
    """Eq. 13: how many classes are likelier; of equal ones the smaller id goes first."""
    ranks = []
    for image in probs:
        maps = []
        for c, own in enumerate(image):
            rows = []
            for y in range(len(own)):
                row = []
                for x in range(len(own[0])):
                    ahead = 0
                    for other, other_map in enumerate(image):
                        likelier = other_map[y][x] > own[y][x]
                        tied_and_first = other_map[y][x] == own[y][x] and other < c
                        ahead += likelier or tied_and_first
                    row.append(ahead)
                rows.append(row)
            maps.append(rows)
        ranks.append(maps)
    return ranks


def _where(like: RankMaps | ClassMaps, rule: Callable[[int, int, int, int], bool]) -> ClassMasks:
    """Ask ``rule(b, c, y, x)`` at every place of a [B][C][h][w] list."""
    height, width = len(like[0][0]), len(like[0][0][0])
    return [
        [
            [[rule(b, c, y, x) for x in range(width)] for y in range(height)]
            for c in range(len(like[0]))
        ]
        for b in range(len(like))
    ]


def label_mask(labels: LabelMaps, like: ClassMaps | RankMaps) -> ClassMasks:
    """The label is c."""
    return _where(like, lambda b, c, y, x: labels[b][y][x] == c)


def anchor_mask(labels: LabelMaps, probs: ClassMaps, threshold: float) -> ClassMasks:
    """Eq. 9-11: the label is c and p(c) > δ_p."""
    return _where(probs, lambda b, c, y, x: labels[b][y][x] == c and probs[b][c][y][x] > threshold)


def labeled_negative_mask(labels: LabelMaps, ranks: RankMaps, low_rank: int) -> ClassMasks:
    """Eq. 14: there is a label, it is not c, and O(c) < r_l."""
    num_classes = len(ranks[0])

    def rule(b: int, c: int, y: int, x: int) -> bool:
        label = labels[b][y][x]
        return 0 <= label < num_classes and label != c and ranks[b][c][y][x] < low_rank

    return _where(ranks, rule)


def unlabeled_negative_mask(
    unreliable: BoolMaps, ranks: RankMaps, low_rank: int, high_rank: int
) -> ClassMasks:
    """Eq. 15: the pixel is unreliable and r_l <= O(c) < r_h."""
    return _where(
        ranks,
        lambda b, c, y, x: unreliable[b][y][x] and low_rank <= ranks[b][c][y][x] < high_rank,
    )


def tag_negative_mask(
    possible: list[list[bool]], valid: BoolMaps, ranks: RankMaps, low_rank: int
) -> ClassMasks:
    """The image has tags, c is not among them, and O(c) < r_l on a valid pixel."""

    def rule(b: int, c: int, y: int, x: int) -> bool:
        tagged = any(possible[b])
        return tagged and not possible[b][c] and valid[b][y][x] and ranks[b][c][y][x] < low_rank

    return _where(ranks, rule)
