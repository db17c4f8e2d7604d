"""Folders as the test servers of PASCAL VOC and Cityscapes take them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from u2pl.data.class_tables import CITYSCAPES, VOC
from u2pl.data.images import Color
from u2pl.data.sources import default_colors
from u2pl.engine.protocol import plain_name
from u2pl.errors import UserError, nearest_name


@dataclass(frozen=True)
class Server:
    """What a server wants of each image: a PNG with ids of its own.

    Attributes:
        name: as ``--server`` takes it.
        folder: below the results' folder.
        file: what an image's name without suffix must match; group 1 begins the result's name.
        example: of such a name.
        end: of the result's name.
        ids: class name to id.
        colors: of a palette, one an id; None for a grey PNG.
    """

    name: str
    folder: Path
    file: re.Pattern[str]
    example: str
    end: str
    ids: dict[str, int]
    colors: tuple[Color, ...] | None

    @property
    def kind(self) -> str:
        """The kind of picture that it is among those of a prediction."""
        return f"{self.name}-server"

    def place(self, name: Path) -> Path:
        """Where the result of an image goes, below the results' folder.

        Raises:
            UserError: for a name that the server would not know.
        """
        found = self.file.fullmatch(name.stem)
        if found is None:
            raise UserError(
                f"The {self.name} server knows images by names such as {self.example}, got "
                f"'{name.stem}'; give it its own images."
            )
        return self.folder / f"{found[1]}{self.end}"

    def table(self, classes: Sequence[str]) -> npt.NDArray[np.uint8]:
        """The server's id of each class, [C] uint8, by name.

        Raises:
            UserError: for a class that the server does not score.
        """
        known = {plain_name(name): label for name, label in self.ids.items()}
        for name in classes:
            if plain_name(name) not in known:
                raise UserError(
                    f"The {self.name} server has no class '{name}'.{nearest_name(name, self.ids)} "
                    "Train on its own classes to score there."
                )
        return np.array([known[plain_name(name)] for name in classes], np.uint8)


SERVERS: dict[str, Server] = {
    # "comp6" may train on any data but the test set, as a network with pretrained weights does
    "voc": Server(
        name="voc",
        folder=Path("results/VOC2012/Segmentation/comp6_test_cls"),
        file=re.compile(r"(\d{4}_\d{6})"),
        example="2008_000006",
        end=".png",
        ids={name: label for label, name in enumerate(VOC)},
        colors=default_colors(len(VOC)),
    ),
    # the scripts look for CITY_123456_123456*.png, with the ids of *_labelIds.png at full size
    "cityscapes": Server(
        name="cityscapes",
        folder=Path("cityscapes"),
        file=re.compile(r"(.+_\d{6}_\d{6})(?:_leftImg8bit)?"),
        example="berlin_000000_000019_leftImg8bit",
        end="_pred_labelIds.png",
        ids={name: label for label, name, _ in CITYSCAPES},
        colors=None,
    ),
}
"""By name; after the VOC development kit, and cityscapesscripts' evalPixelLevelSemanticLabeling."""

_BY_KIND = {server.kind: server for server in SERVERS.values()}


def server_of(kind: str) -> Server | None:
    """The server of a kind of picture; None for any other kind."""
    return _BY_KIND.get(kind)


def server_named(name: str) -> Server:
    """A server by its name.

    Raises:
        UserError: (exit status 2) for one that there is not.
    """
    if name not in SERVERS:
        raise UserError(
            f"Expected a server of {', '.join(SERVERS)}, got '{name}'."
            f"{nearest_name(name, SERVERS)}",
            exit_code=2,
        )
    return SERVERS[name]


def place_of(kind: str, name: Path) -> Path:
    """Where a kind of picture of an image goes, below the results' folder.

    >>> place_of("masks", Path("a/b.png")).as_posix()
    'masks/a/b.png'
    """
    server = server_of(kind)
    return Path(kind) / name if server is None else server.place(name)


def refuse_unfit(server: Server, names: Sequence[Path], classes: Sequence[str]) -> None:
    """Raise UserError where a server would not take the results of these images."""
    server.table(classes)
    seen: dict[Path, Path] = {}
    for name in names:
        place = server.place(name)
        if place in seen:
            raise UserError(
                f"{seen[place]} and {name} would both be {place.name} for the {server.name} "
                "server; label one of them."
            )
        seen[place] = name
