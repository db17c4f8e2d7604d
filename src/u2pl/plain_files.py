"""Text, YAML and JSON of files that anybody may have written: plain values, and an end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

_DEEPEST = 40  # levels of lists and mappings
_WIDEST_MERGE = 10_000  # keys that << may bring together
_MERGE_TAG = "tag:yaml.org,2002:merge"


def parse_yaml(text: str) -> Any:
    """Return what a YAML text holds, as plain values.

    Raises:
        ValueError: where it is no YAML, holds a value that cannot be, is nested deeper than
            40 levels, has a key twice in one mapping, or grows without bound by ``<<``.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds, as plain values.

    Raises:
        OSError: see :func:`read_bytes`.
        ValueError: see :func:`parse_yaml`; also where it is no UTF-8.
    """
    return parse_yaml(read_text(path))


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text, with or without a byte order mark.

    Raises:
        OSError: see :func:`read_bytes`.
        ValueError: where it is no UTF-8.
    """
    return read_bytes(path).decode("utf-8-sig")


def read_bytes(path: Path) -> bytes:
    """Return what a plain file holds.

    Raises:
        OSError: where it cannot be read, or is a pipe or a device, which may have no end.
        ValueError: where no file can have such a path.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise OSError(0, "it is no plain file")
    return path.read_bytes()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file of one a line; a line that a crash has torn is left out.

    Raises:
        OSError: see :func:`read_bytes`.
        ValueError: where no file can have such a path.
    """
    rows = []
    for line in read_bytes(path).decode("utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with its own crashes and endless cases made errors."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._flattened: set[int] = set()

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Compose a node, unless it lies too deep for Python's stack."""
        self._depth += 1
        if self._depth > _DEEPEST:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise ConstructorError(None, None, f"more than {_DEEPEST} levels deep", mark)
        node: Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        """Make a value; of one that its tag forbids (``!!int x``) PyYAML knows no error."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, IndexError, KeyError, AttributeError, OverflowError) as error:
            raise ConstructorError(None, None, f"no such value: {error}", node.start_mark) from None

    def flatten_mapping(self, node: MappingNode) -> None:
        """Merge what ``<<`` names, after a look for keys that stand twice and for its size."""
        if id(node) in self._flattened:
            return
        self._flattened.add(id(node))
        seen, merged = set(), 0
        for key, value in node.value:
            if key.tag == _MERGE_TAG:
                for part in value.value if isinstance(value, SequenceNode) else [value]:
                    if isinstance(part, MappingNode):
                        self.flatten_mapping(part)
                        merged += len(part.value)
            elif isinstance(key, ScalarNode):
                if (key.tag, key.value) in seen:
                    raise ConstructorError(
                        None, None, f"'{key.value}' stands twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        if merged > _WIDEST_MERGE:
            raise ConstructorError(None, None, "too many merged keys", node.start_mark)
        super().flatten_mapping(node)
