"""What a dataset.yaml says: which files are labelled, unlabelled, for validation and for test.

.. code-block:: yaml

    classes: [sky, road, car]     # in the order of ids; or {name: sky, color: [70, 130, 180]} each
    ignore_index: 255             # of unknown pixels
    mask_format: index            # or rgb (needs colors; ignore_color may be set), or binary
    root: .                       # from the folder of this file
    labeled: {images: images, masks: masks, list: labeled.txt}
    unlabeled: {images: unlabeled}
    val: {images: val/images, masks: val/masks}
    test: {images: test/images, masks: test/masks}
    tags: tags.csv                # image,classes: which classes an unlabelled image may hold

``images`` and ``masks`` are a folder, a glob or a list of files. In a folder a mask has the
relative path of its image with the suffix .png; in globs what the last part's wildcards match is
compared (``*_left.png`` with ``*_ids.png``), in lists the stem. ``list`` is a text file with a
name, a stem or a path a line, which selects and orders.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import yaml

from u2pl.data.images import Color, MaskFormat, read_mask
from u2pl.errors import UserError, nearest_name

SECTIONS = ("labeled", "unlabeled", "val", "test")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

_KEYS = (
    *SECTIONS,
    "classes",
    "ignore_index",
    "ignore_color",
    "mask_format",
    "root",
    "tags",
)
_MAX_ID = 65535  # of a 16-bit PNG


@dataclass(frozen=True)
class Sample:
    """One image of a section.

    Attributes:
        name: path inside the images folder without suffix, with forward slashes.
        image: the file.
        mask: its mask file; None in the unlabelled section.
        tags: sorted ids of the classes that the image may hold; None where nothing is said.
        mask_format: how its mask file spells class ids; None as the data set's files do.
    """

    name: str
    image: Path
    mask: Path | None = None
    tags: tuple[int, ...] | None = None
    mask_format: MaskFormat | None = None


@dataclass(frozen=True)
class Dataset:
    """A dataset.yaml, resolved to files. No image has been opened yet.

    Attributes:
        path: the dataset.yaml.
        classes: names in the order of their ids.
        colors: one RGB colour a class, 0 to 255; PASCAL VOC's palette where none are given.
        ignore_index: the id of unknown pixels in labels.
        mask_format: how mask files spell class ids, see :func:`u2pl.data.images.read_mask`.
        ignore_color: the colour of unknown pixels in RGB masks.
        labeled, unlabeled, val, test: the samples, in the order of their list or of their names.
        tags: the CSV file of image tags.
    """

    path: Path
    classes: tuple[str, ...]
    colors: tuple[Color, ...]
    ignore_index: int = 255
    mask_format: MaskFormat = "index"
    ignore_color: Color | None = None
    labeled: tuple[Sample, ...] = ()
    unlabeled: tuple[Sample, ...] = ()
    val: tuple[Sample, ...] = ()
    test: tuple[Sample, ...] = ()
    tags: Path | None = None

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.classes)

    @property
    def sections(self) -> dict[str, tuple[Sample, ...]]:
        """The four sections by name; absent ones are empty."""
        return {name: getattr(self, name) for name in SECTIONS}

    def read_mask(
        self, path: Path, *, mask_format: MaskFormat | None = None
    ) -> npt.NDArray[np.int64]:
        """Return a mask file of this data set as class ids [H, W] int64.

        Args:
            path: the file.
            mask_format: how it spells class ids; None as the data set's files do.

        Raises:
            UserError: see :func:`u2pl.data.images.read_mask`.
        """
        return read_mask(
            path,
            num_classes=self.num_classes,
            mask_format=mask_format or self.mask_format,
            colors=self.colors,
            ignore_index=self.ignore_index,
            ignore_color=self.ignore_color,
        )


def load_dataset(path: Path | str, *, require: Sequence[str] = ("labeled", "val")) -> Dataset:
    """Read a dataset.yaml and find its files; each folder is listed once, no image is opened.

    Args:
        path: the file, or the folder that holds a ``dataset.yaml``.
        require: the sections that must hold at least one image.

    Raises:
        UserError: where the file is missing or faulty, files or masks are missing, names clash,
            or an image stands in a training section and also in val or test.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "dataset.yaml"
    tree = _read_yaml(path)
    for key in tree:
        if key not in _KEYS:
            raise UserError(f"{path}: unknown key '{key}'.{nearest_name(str(key), _KEYS)}")
    classes, given_colors = _parse_classes(path, tree.get("classes"))
    ignore_index = _parse_ignore_index(path, tree.get("ignore_index", 255), len(classes))
    mask_format, ignore_color = _parse_mask_format(path, tree, classes, given_colors)
    finder = _Finder(path, _parse_root(path, tree.get("root")))
    sections = {name: _find_section(finder, name, tree.get(name)) for name in SECTIONS}
    for name in require:
        if not sections[name]:
            raise UserError(
                f"{path}: expected images in the section '{name}', found none; "
                "give it a folder of images, or mend its list."
            )
    _refuse_leaks(path, sections)
    tags = None
    if tree.get("tags") is not None:
        tags = finder.root / str(tree["tags"])
        sections["unlabeled"] = _with_tags(sections["unlabeled"], tags, classes)
    return Dataset(
        path=path,
        classes=classes,
        colors=given_colors or default_colors(len(classes)),
        ignore_index=ignore_index,
        mask_format=mask_format,
        ignore_color=ignore_color,
        tags=tags,
        **{name: tuple(samples) for name, samples in sections.items()},
    )


def default_colors(num_classes: int) -> tuple[Color, ...]:
    """Return PASCAL VOC's palette: the bits of an id, dealt to red, green and blue.

    >>> default_colors(3)
    ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    """
    colors = []
    for class_id in range(num_classes):
        rgb, rest = [0, 0, 0], class_id
        for bit in range(7, -1, -1):
            for channel in range(3):
                rgb[channel] |= (rest >> channel & 1) << bit
            rest >>= 3
        colors.append((rgb[0], rgb[1], rgb[2]))
    return tuple(colors)


def split_hash(samples: Iterable[Sample]) -> str:
    """Return the SHA-256, in hex, of the samples' names joined by newlines in their order."""
    return hashlib.sha256("\n".join(sample.name for sample in samples).encode()).hexdigest()


def write_lists(dataset: Dataset, folder: Path) -> None:
    """Write the names of each section, one a line, to ``labeled.txt``, ``unlabeled.txt``, ...

    The files can serve as a dataset.yaml's ``list``. ``test.txt`` is left out if it were empty.
    """
    for name, samples in dataset.sections.items():
        if samples or name != "test":
            text = "".join(f"{sample.name}\n" for sample in samples)
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def _read_yaml(path: Path) -> dict[Any, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; write one as docs/getting-started.md shows."
        ) from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"{path} is not a YAML file.") from None
    if not isinstance(tree, dict):
        raise UserError(
            f"{path}: expected keys such as 'classes' and 'labeled', got {type(tree).__name__}."
        )
    return tree


def _parse_classes(path: Path, items: Any) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    """Return the names and, where given, the colours."""
    if not isinstance(items, list) or not items:
        raise UserError(f"{path}: expected 'classes' to be a list of names, got {items!r}.")
    names: list[str] = []
    colors: list[Color] = []
    for item in items:
        name = item
        if isinstance(item, dict):
            if "name" not in item or not set(item) <= {"name", "color"}:
                raise UserError(f"{path}: expected a class as {{name, color}}, got {item}.")
            name = item["name"]
            if "color" in item:
                colors.append(_parse_color(path, item["color"]))
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise UserError(f"{path}: expected a class name, got {name!r}; put it in quotes.")
        names.append(str(name))
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{path}: the class '{twice[0]}' stands there twice; names must differ.")
    if colors and len(colors) < len(names):
        raise UserError(
            f"{path}: {len(colors)} of {len(names)} classes have a color; give all or none."
        )
    return tuple(names), tuple(colors)


def _parse_color(path: Path, value: Any) -> Color:
    if (
        isinstance(value, list)
        and len(value) == 3
        and all(type(v) is int and 0 <= v <= 255 for v in value)
    ):
        return (value[0], value[1], value[2])
    raise UserError(f"{path}: expected a color as [red, green, blue] of 0 to 255, got {value!r}.")


def _parse_ignore_index(path: Path, value: Any, num_classes: int) -> int:
    if type(value) is not int or not num_classes <= value <= _MAX_ID:
        raise UserError(
            f"{path}: expected ignore_index between {num_classes} (the number of classes) and "
            f"{_MAX_ID}, got {value!r}; it must not be the id of a class."
        )
    return value


def _parse_mask_format(
    path: Path, tree: dict[Any, Any], classes: Sequence[str], colors: Sequence[Color]
) -> tuple[MaskFormat, Color | None]:
    value = tree.get("mask_format", "index")
    formats: tuple[MaskFormat, ...] = get_args(MaskFormat)
    if value not in formats:
        raise UserError(
            f"{path}: expected mask_format to be one of {', '.join(formats)}, got {value!r}."
        )
    if value == "binary" and len(classes) != 2:
        raise UserError(
            f"{path}: mask_format binary needs exactly two classes, got {len(classes)}."
        )
    if value == "rgb" and not colors:
        raise UserError(
            f"{path}: mask_format rgb needs a color for each class; "
            "write classes as {name: ..., color: [r, g, b]}."
        )
    ignore_color = tree.get("ignore_color")
    if ignore_color is not None:
        ignore_color = _parse_color(path, ignore_color)
    used = [*colors, ignore_color] if ignore_color is not None else [*colors]
    if value == "rgb" and len(set(used)) < len(used):
        raise UserError(f"{path}: two classes (or a class and ignore) share a color.")
    return value, ignore_color


def _parse_root(path: Path, value: Any) -> Path:
    # Resolved once here, so that files can be compared as text later on.
    root = Path(os.path.realpath(path.parent / str(value or ".")))
    if not root.is_dir():
        raise UserError(f"{path}: the root folder {root} does not exist.")
    return root


@dataclass(frozen=True)
class _Entry:
    """A file: its name for the user, and the key that pairs an image with its mask."""

    name: str
    key: str
    path: Path


@dataclass
class _Finder:
    """Turns folders, globs and lists of one dataset.yaml into files."""

    yaml_path: Path
    root: Path
    _listed: dict[str, list[str]] = field(default_factory=dict)

    def find(self, spec: Any, *, where: str, suffixes: Iterable[str]) -> list[_Entry]:
        """Return the files that ``spec`` names, in the order of their names (or of a list)."""
        if isinstance(spec, str) and (self.root / spec).is_dir():
            base = os.path.realpath(self.root / spec)
            relative, head, tail = self._list_folder(base), "", ""
        elif isinstance(spec, str) and re.search(r"[*?\[]", spec):
            base, relative, head, tail = self._match(spec)
        elif isinstance(spec, list) and spec and all(isinstance(item, str) for item in spec):
            base, relative = self._list_given(spec, where)
            head, tail = "", ""
        elif isinstance(spec, str):
            raise UserError(
                f"{self.yaml_path}: the folder {self.root / spec} of {where} does not exist."
            )
        else:
            raise UserError(
                f"{self.yaml_path}: expected a folder, a glob or a list of files for {where}, "
                f"got {spec!r}."
            )
        wanted = frozenset(suffixes)
        entries = []
        for item in relative:
            name, suffix = os.path.splitext(item)
            if suffix.lower() in wanted:
                folder, _, stem = name.rpartition("/")
                stem = stem.removeprefix(head).removesuffix(tail)
                key = f"{folder}/{stem}" if folder else stem
                entries.append(_Entry(name, key, Path(base, item)))
        return entries

    def _list_folder(self, folder: str) -> list[str]:
        """Return the relative paths of all files below ``folder``, sorted; hidden ones left out."""
        if folder not in self._listed:
            found = []
            for parent, folders, files in os.walk(folder, followlinks=True):
                folders[:] = [name for name in folders if not name.startswith(".")]
                inside = PurePosixPath(Path(parent).relative_to(folder).as_posix())
                prefix = "" if str(inside) == "." else f"{inside}/"
                found += [prefix + name for name in files if not name.startswith(".")]
            self._listed[folder] = sorted(found)
        return self._listed[folder]

    def _match(self, pattern: str) -> tuple[str, list[str], str, str]:
        """Return the glob's fixed folder, the files below it, and the last part's fixed ends."""
        parts = PurePosixPath(Path(pattern).as_posix()).parts
        fixed = 0
        while fixed < len(parts) - 1 and not re.search(r"[*?\[]", parts[fixed]):
            fixed += 1
        base = os.path.realpath(self.root.joinpath(*parts[:fixed]))
        rest = "/".join(parts[fixed:])
        found = glob.glob(rest, root_dir=base, recursive=True)
        stem = os.path.splitext(parts[-1])[0]
        head, tail = re.split(r"[*?\[]", stem)[0], re.split(r"[*?\]]", stem)[-1]
        return base, sorted(Path(item).as_posix() for item in found), head, tail

    def _list_given(self, items: list[str], where: str) -> tuple[str, list[str]]:
        """Return the folder that all files of a list share, and the files below it."""
        paths = [os.path.normpath(self.root / item) for item in items]
        missing = [path for path in paths if not os.path.isfile(path)]
        if missing:
            raise UserError(
                f"{self.yaml_path}: {len(missing)} files of {where} do not exist: "
                f"{_first_three(missing)}."
            )
        base = os.path.commonpath([os.path.dirname(path) for path in paths])
        return base, [Path(os.path.relpath(path, base)).as_posix() for path in paths]


def _find_section(finder: _Finder, section: str, spec: Any) -> list[Sample]:
    """Return the samples of one section; none where the yaml has no such section."""
    if spec is None:
        return []
    yaml_path = finder.yaml_path
    if not isinstance(spec, dict) or "images" not in spec:
        raise UserError(f"{yaml_path}: expected '{section}' to have 'images', got {spec!r}.")
    keys = ("images", "masks", "list")
    for key in spec:
        if key not in keys:
            raise UserError(
                f"{yaml_path}: unknown key '{key}' in '{section}'.{nearest_name(str(key), keys)}"
            )
    where = f"'{section}: images'"
    images = finder.find(spec["images"], where=where, suffixes=IMAGE_SUFFIXES)
    twice = [name for name, count in Counter(e.name for e in images).items() if count > 1]
    if twice:
        raise UserError(
            f"{yaml_path}: {len(twice)} names of {where} belong to more than one file: "
            f"{_first_three(twice)}; rename the files, or give a glob such as 'images/*.jpg'."
        )
    if spec.get("list") is not None:
        images = _select(finder, section, images, finder.root / str(spec["list"]))
    if section == "unlabeled":
        return [Sample(entry.name, entry.path) for entry in images]
    if spec.get("masks") is None:
        raise UserError(f"{yaml_path}: the section '{section}' needs 'masks', a folder of masks.")
    return _pair(finder, section, images, spec["masks"])


def _select(finder: _Finder, section: str, images: list[_Entry], path: Path) -> list[_Entry]:
    """Return the images that a list file names, in its order."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{finder.yaml_path}: the list {path} of '{section}' does not exist."
        ) from None
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{finder.yaml_path}: the list {path} is not a text file.") from None
    wanted = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    by_name = {entry.key: entry for entry in images} | {entry.name: entry for entry in images}
    by_stem = _unique_stems(images)
    by_path = {entry.path: entry for entry in images} if wanted else {}
    chosen: dict[str, _Entry] = {}
    missing = []
    for item in wanted:
        plain, suffix = os.path.splitext(item)
        name = plain if suffix.lower() in IMAGE_SUFFIXES else item
        entry = by_name.get(item) or by_name.get(name) or by_stem.get(name)
        entry = entry or by_path.get(Path(os.path.normpath(finder.root / item)))
        if entry is None:
            missing.append(item)
        elif entry.name in chosen:
            raise UserError(f"{path}: '{item}' stands there twice; each image may be listed once.")
        else:
            chosen[entry.name] = entry
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(wanted)} entries have no image in '{section}': "
            f"{_first_three(missing)}; mend the list or the folder."
        )
    return list(chosen.values())


def _pair(finder: _Finder, section: str, images: list[_Entry], spec: Any) -> list[Sample]:
    """Return a sample for each image, with its mask."""
    is_folder = isinstance(spec, str) and (finder.root / spec).is_dir()
    suffixes = [".png"] if is_folder else IMAGE_SUFFIXES
    masks = finder.find(spec, where=f"'{section}: masks'", suffixes=suffixes)
    by_key = {entry.key: entry.path for entry in masks}
    # Files of a glob or a list may lie anywhere, so there the bare stem will do if it is unique.
    mask_stems = {} if is_folder else _unique_stems(masks)
    image_stems = {} if is_folder else _unique_stems(images)
    samples, missing = [], []
    for entry in images:
        mask = by_key.get(entry.key) or by_key.get(entry.name)
        stem = entry.key.rpartition("/")[2]
        if mask is None and stem in mask_stems and stem in image_stems:
            mask = mask_stems[stem].path
        if mask is None:
            missing.append(entry.name)
        samples.append(Sample(entry.name, entry.path, mask))
    if missing:
        raise UserError(
            f"{finder.yaml_path}: {len(missing)} of {len(images)} images in '{section}' have no "
            f"mask in {spec}: {_first_three(missing)}; add a .png of the same name, or list only "
            "images that have one."
        )
    return samples


def _unique_stems(entries: Iterable[_Entry]) -> dict[str, _Entry]:
    """Return the entries by the last part of their name and of their key, where no other has it."""
    stems = [
        (stem, entry)
        for entry in entries
        for stem in {entry.name.rpartition("/")[2], entry.key.rpartition("/")[2]}
    ]
    counts = Counter(stem for stem, _ in stems)
    return {stem: entry for stem, entry in stems if counts[stem] == 1}


def _refuse_leaks(path: Path, sections: dict[str, list[Sample]]) -> None:
    """Raise where an image to train on is also one to be scored on."""
    for train in ("labeled", "unlabeled"):
        train_images = {sample.image for sample in sections[train]}
        for held_out in ("val", "test"):
            shared = [s.name for s in sections[held_out] if s.image in train_images]
            if shared:
                raise UserError(
                    f"{path}: {len(shared)} images stand in '{train}' and also in '{held_out}': "
                    f"{_first_three(shared)}; give each section its own folder or list."
                )


def _with_tags(samples: list[Sample], path: Path, classes: Sequence[str]) -> list[Sample]:
    """Return the samples with the tags of the CSV; images without a row keep None."""
    rows = _read_tags(path, classes)
    stems = Counter(sample.name.rpartition("/")[2] for sample in samples)
    tagged = []
    for sample in samples:
        stem = sample.name.rpartition("/")[2]
        tags = rows.get(sample.name)
        if tags is None and stems[stem] == 1:
            tags = rows.get(stem)
        tagged.append(Sample(sample.name, sample.image, sample.mask, tags))
    if samples and all(sample.tags is None for sample in tagged):
        raise UserError(
            f"{path}: no row names an image of 'unlabeled'; the first column must hold names such "
            f"as '{samples[0].name}'."
        )
    return tagged


def _read_tags(path: Path, classes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the class ids of each row, under the image's name without its suffix."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except FileNotFoundError:
        raise UserError(f"The tags {path} do not exist.") from None
    except (OSError, UnicodeDecodeError, csv.Error):
        raise UserError(f"The tags {path} are not a CSV file.") from None
    if not rows or [cell.strip() for cell in rows[0]] != ["image", "classes"]:
        raise UserError(f"{path}: expected the header 'image,classes'.")
    ids = {name: class_id for class_id, name in enumerate(classes)}
    tags: dict[str, tuple[int, ...]] = {}
    for row in rows[1:]:
        image, suffix = os.path.splitext(row[0].strip())
        image = image if suffix.lower() in IMAGE_SUFFIXES else row[0].strip()
        names = [name.strip() for name in (row[1] if len(row) == 2 else "").split(";")]
        names = [name for name in names if name]
        if not names:
            raise UserError(
                f"{path}: expected 'image,class;class' for '{image}', got {row}; "
                "leave out images whose classes are not known."
            )
        for name in names:
            if name not in ids:
                raise UserError(
                    f"{path}: unknown class '{name}' for '{image}'.{nearest_name(name, classes)}"
                )
        tags[image] = tuple(sorted({ids[name] for name in names}))
    return tags


def _first_three(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
