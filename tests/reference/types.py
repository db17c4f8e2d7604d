"""Nested lists by the order of their axes."""

from __future__ import annotations

Maps = list[list[list[float]]]
"""[B][h][w]"""
LabelMaps = list[list[list[int]]]
"""[B][h][w]"""
BoolMaps = list[list[list[bool]]]
"""[B][h][w]"""
ClassMaps = list[list[list[list[float]]]]
"""[B][C][h][w], or [B][D][h][w] for features"""
RankMaps = list[list[list[list[int]]]]
"""[B][C][h][w]"""
ClassMasks = list[list[list[list[bool]]]]
"""[B][C][h][w]"""
