"""What a dataset.yaml says: which files are labelled, unlabelled, for validation and for test.

.. code-block:: yaml

    classes: [sky, road, car]     # in the order of ids; or {name: sky, color: [70, 130, 180]} each
    ignore_index: 255             # of unknown pixels
    mask_format: index            # or rgb (needs colors; ignore_color may be set), or binary;
                                  # a section may have its own, or an id_map {7: road, 26: car}
    root: .                       # from the folder of this file
    labeled: {images: images, masks: masks, list: labeled.txt}
    unlabeled: {images: unlabeled}
    val: {images: val/images, masks: val/masks}
    test: {images: test/images, masks: test/masks}
    tags: tags.csv                # image,classes: which classes an unlabelled image may hold;
                                  # or {voc_xml: FOLDER}, or {masks: FOLDER}

``images`` and ``masks`` are a folder, a glob, a list of files, or a .txt file that holds such a
list, a path a line. In a folder a mask has the relative path of its image with the suffix .png; in
globs what the last part's wildcards match is compared (``*_left.png`` with ``*_ids.png``), in lists
the stem. ``list`` is a text file with a name, a stem or a path a line, which selects and orders.
``unlabeled`` may have ``shards``, tars of images, beside ``images`` or alone; see
:mod:`u2pl.data.shards`.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from u2pl.data.class_counts import class_pixels
from u2pl.data.file_list import FileList, JoinedList, names_of, paths_of
from u2pl.data.images import Color, MaskFormat, read_mask
from u2pl.data.shards import Shard, ShardList, find_shards
from u2pl.data.storage import ImageFile, Member
from u2pl.data.tags import class_ids, read_csv_tags, read_voc_tags
from u2pl.errors import UserError, is_clean, nearest_name, shown
from u2pl.plain_files import read_text, read_yaml

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
_TAG_KINDS = ("file", "voc_xml", "masks")
_MAX_ID = 65535  # of a 16-bit PNG
_MAX_VISITS = 32  # of one folder on a walk that follows links

T = TypeVar("T")


@dataclass(frozen=True)
class MaskEncoding:
    """How a mask file spells class ids; a section's samples share one.

    The default is what :func:`u2pl.data.images.write_mask` writes.

    Attributes:
        format: see :func:`u2pl.data.images.read_mask`.
        id_map: pairs of an id in the file, 0 to 65535, and the class id that it stands for; ids
            that are not there are ignored. None: the ids in the file are class ids.
    """

    format: MaskFormat = "index"
    id_map: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class Sample:
    """One image of a section.

    Attributes:
        name: path inside the images folder without suffix, with forward slashes; of an image in
            a shard also that of the shard. Names of different sections may be equal.
        image: the file, or the place in a shard.
        mask: its mask file; None in the unlabelled section.
        tags: sorted ids of the classes that the image may hold; None where nothing is said.
        mask_encoding: how ``mask`` is read.
    """

    name: str
    image: ImageFile
    mask: Path | None = None
    tags: tuple[int, ...] | None = None
    mask_encoding: MaskEncoding = MaskEncoding()

    @property
    def file(self) -> Path:
        """The image's own file.

        Raises:
            UserError: where the image lies in a shard, so that no list of files can name it.
        """
        if isinstance(self.image, Path):
            return self.image
        raise UserError(
            f"{self.image} lies in a shard, but this needs an image that is a file; unpack it into "
            "a folder, and take it out of the shard."
        )


@dataclass(frozen=True)
class Dataset:
    """A dataset.yaml, resolved to files. No image has been opened yet.

    Attributes:
        path: the dataset.yaml.
        classes: names in the order of their ids.
        colors: one RGB colour a class, 0 to 255; PASCAL VOC's palette where none are given.
        ignore_index: the id of unknown pixels in labels.
        ignore_color: the colour of unknown pixels in RGB masks.
        labeled, unlabeled, val, test: the samples, in the order of their list or of their names;
            tuples, or a :class:`~u2pl.data.file_list.SampleList`.
        shards: the tars of unlabelled images.
    """

    path: Path
    classes: tuple[str, ...]
    colors: tuple[Color, ...]
    ignore_index: int = 255
    ignore_color: Color | None = None
    labeled: Sequence[Sample] = ()
    unlabeled: Sequence[Sample] = ()
    val: Sequence[Sample] = ()
    test: Sequence[Sample] = ()
    shards: tuple[Shard, ...] = ()

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.classes)

    @property
    def sections(self) -> dict[str, Sequence[Sample]]:
        """The four sections by name; absent ones are empty."""
        return {name: getattr(self, name) for name in SECTIONS}

    def read_mask(self, sample: Sample) -> npt.NDArray[np.int64]:
        """Return the mask of a sample that has one as class ids [H, W] int64.

        Raises:
            UserError: see :func:`u2pl.data.images.read_mask`.
        """
        assert sample.mask is not None, "only samples of the unlabelled section have no mask"
        encoding = sample.mask_encoding
        return read_mask(
            sample.mask,
            num_classes=self.num_classes,
            mask_format=encoding.format,
            colors=self.colors,
            ignore_index=self.ignore_index,
            ignore_color=self.ignore_color,
            id_map=None if encoding.id_map is None else dict(encoding.id_map),
        )


def load_dataset(path: Path | str, *, require: Sequence[str] = ("labeled", "val")) -> Dataset:
    """Read a dataset.yaml and find its files; each folder is listed once, no image is opened.

    Only ``tags: {masks: ...}`` opens masks: those of the unlabelled images, once, as
    :func:`u2pl.data.class_counts.class_pixels` remembers what they hold.

    Args:
        path: the file, or the folder that holds a ``dataset.yaml``.
        require: the sections that must hold at least one image.

    Raises:
        UserError: where the file is missing or faulty, files or masks are missing, names clash,
            or an image stands in a training section and also in val or test.
    """
    path = Path(path)
    if os.path.isdir(path):
        path = path / "dataset.yaml"
    tree = _read_yaml(path)
    _refuse_unknown_keys(path, tree, _KEYS)
    classes, given_colors = _parse_classes(path, tree.get("classes"))
    ignore_index = _parse_ignore_index(path, tree.get("ignore_index", 255), len(classes))
    ignore_color = tree.get("ignore_color")
    if ignore_color is not None:
        ignore_color = _parse_color(path, ignore_color)
    encodings = _Encodings(path, classes, given_colors, ignore_color)
    mask_format = encodings.parse_format(tree.get("mask_format", "index"))
    finder = _Finder(path, _parse_root(path, tree.get("root")))
    shards = _find_shards(finder, tree)
    sections = {
        name: _find_section(finder, name, tree.get(name), encodings, mask_format, shards)
        for name in SECTIONS
    }
    for name in require:
        if not sections[name]:
            raise UserError(
                f"{path}: expected images in the section '{name}', found none; "
                "give it a folder of images, or mend its list."
            )
    _refuse_leaks(path, sections)
    dataset = Dataset(
        path=path,
        classes=classes,
        colors=given_colors or default_colors(len(classes)),
        ignore_index=ignore_index,
        ignore_color=ignore_color,
        shards=shards,
        **sections,
    )
    if tree.get("tags") is None:
        return dataset
    return replace(dataset, unlabeled=_with_tags(finder, dataset, tree["tags"], mask_format))


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
    return hashlib.sha256("\n".join(names_of(samples)).encode()).hexdigest()


def with_masks_of(
    samples: Iterable[Sample], folder: Path, encoding: MaskEncoding
) -> tuple[Sample, ...]:
    """The samples of which a folder holds ``NAME.png``, with that mask, to measure by.

    Args:
        samples: of any section.
        folder: masks that the data set does not name.
        encoding: how they are read.
    """
    masks = ((sample, folder / f"{sample.name}.png") for sample in samples)
    return tuple(
        replace(sample, mask=mask, mask_encoding=encoding)
        for sample, mask in masks
        if os.path.isfile(mask)
    )


def list_unlabeled(dataset: Dataset, samples: Sequence[Sample]) -> tuple[list[Path], bool]:
    """Return what a new dataset.yaml must name to have these unlabelled images, in this order.

    Args:
        dataset: that they are of.
        samples: of any of its sections.

    Returns:
        The files, and whether all of the data set's shards come behind them.

    Raises:
        UserError: where it would be some of the images in shards, which no list of files names.
    """
    files = [sample.image for sample in samples if isinstance(sample.image, Path)]
    if len(files) == len(samples):
        return files, False
    every = [image for _, image in ShardList(dataset.shards).items()]
    if [sample.image for sample in samples[len(files) :]] != every:
        raise UserError(
            f"{dataset.path}: {len(samples) - len(files)} of {len(every)} images in shards would "
            "be in 'unlabeled', but only whole shards can be named, behind all files; take 'list' "
            "out of 'unlabeled', or unpack the shards into a folder."
        )
    return files, True


def write_lists(dataset: Dataset, folder: Path) -> None:
    """Write the names of each section, one a line, to ``labeled.txt``, ``unlabeled.txt``, ...

    The files can serve as a dataset.yaml's ``list``. ``test.txt`` is left out if it were empty.
    """
    for name, samples in dataset.sections.items():
        if samples or name != "test":
            text = "".join(f"{sample_name}\n" for sample_name in names_of(samples))
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def _read_yaml(path: Path) -> dict[Any, Any]:
    try:
        tree = read_yaml(path)
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; write one as docs/getting-started.md shows."
        ) from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except ValueError:
        raise UserError(f"{path} is not a YAML file.") from None
    if not isinstance(tree, dict):
        raise UserError(
            f"{path}: expected keys such as 'classes' and 'labeled', got {type(tree).__name__}."
        )
    return tree


def _refuse_unknown_keys(
    path: Path, tree: dict[Any, Any], known: Sequence[str], where: str = ""
) -> None:
    for key in tree:
        if key not in known:
            name = key if isinstance(key, str) else shown(key)
            raise UserError(f"{path}: unknown key '{name}'{where}.{nearest_name(name, known)}")


def _parse_classes(path: Path, items: Any) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    """Return the names and, where given, the colours."""
    if not isinstance(items, list) or not items:
        raise UserError(f"{path}: expected 'classes' to be a list of names, got {shown(items)}.")
    names: list[str] = []
    colors: list[Color] = []
    for item in items:
        name = item
        if isinstance(item, dict):
            if "name" not in item or not set(item) <= {"name", "color"}:
                raise UserError(f"{path}: expected a class as {{name, color}}, got {shown(item)}.")
            name = item["name"]
            if "color" in item:
                colors.append(_parse_color(path, item["color"]))
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise UserError(f"{path}: expected a class name, got {shown(name)}; put it in quotes.")
        names.append(_checked_name(path, name))
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{path}: the class '{twice[0]}' stands there twice; names must differ.")
    if colors and len(colors) < len(names):
        raise UserError(
            f"{path}: {len(colors)} of {len(names)} classes have a color; give all or none."
        )
    return tuple(names), tuple(colors)


def _checked_name(path: Path, name: str | int) -> str:
    """Return a class name that can stand in a table, a file and a line of text."""
    if isinstance(name, int):
        name = shown(name)
    if not name.strip() or not is_clean(name):
        raise UserError(
            f"{path}: expected class names of visible characters, got {shown(name)}; rename it."
        )
    return name


def _parse_color(path: Path, value: Any) -> Color:
    if (
        isinstance(value, list)
        and len(value) == 3
        and all(type(v) is int and 0 <= v <= 255 for v in value)
    ):
        return (value[0], value[1], value[2])
    raise UserError(
        f"{path}: expected a color as [red, green, blue] of 0 to 255, got {shown(value)}."
    )


def _parse_ignore_index(path: Path, value: Any, num_classes: int) -> int:
    if type(value) is not int or not num_classes <= value <= _MAX_ID:
        raise UserError(
            f"{path}: expected ignore_index between {num_classes} (the number of classes) and "
            f"{_MAX_ID}, got {shown(value)}; it must not be the id of a class."
        )
    return value


@dataclass(frozen=True)
class _Encodings:
    """Checks what one dataset.yaml says of its mask files against its classes."""

    yaml_path: Path
    classes: tuple[str, ...]
    colors: tuple[Color, ...]
    ignore_color: Color | None

    def parse(self, section: str, spec: dict[Any, Any], default: MaskFormat) -> MaskEncoding:
        """Return how the masks of a section are read."""
        mask_format = self.parse_format(spec.get("mask_format", default), f" of '{section}'")
        if spec.get("id_map") is None:
            return MaskEncoding(mask_format)
        if mask_format != "index":
            raise UserError(
                f"{self.yaml_path}: the id_map of '{section}' needs index masks, but mask_format "
                f"is {mask_format}; give '{section}' mask_format: index, or no id_map."
            )
        return MaskEncoding(mask_format, self._parse_id_map(section, spec["id_map"]))

    def parse_format(self, value: Any, where: str = "") -> MaskFormat:
        """Return a mask_format that goes with the classes."""
        formats: tuple[MaskFormat, ...] = get_args(MaskFormat)
        if value not in formats:
            raise UserError(
                f"{self.yaml_path}: expected mask_format{where} to be one of "
                f"{', '.join(formats)}, got {shown(value)}."
            )
        if value == "binary" and len(self.classes) != 2:
            raise UserError(
                f"{self.yaml_path}: mask_format binary needs exactly two classes, "
                f"got {len(self.classes)}."
            )
        if value == "rgb" and not self.colors:
            raise UserError(
                f"{self.yaml_path}: mask_format rgb needs a color for each class; "
                "write classes as {name: ..., color: [r, g, b]}."
            )
        used = [*self.colors, self.ignore_color] if self.ignore_color else [*self.colors]
        if value == "rgb" and len(set(used)) < len(used):
            raise UserError(f"{self.yaml_path}: two classes (or a class and ignore) share a color.")
        checked: MaskFormat = value
        return checked

    def _parse_id_map(self, section: str, value: Any) -> tuple[tuple[int, int], ...]:
        where = f"{self.yaml_path}: the id_map of '{section}'"
        if not isinstance(value, dict) or not value:
            raise UserError(f"{where} must name classes as {{id: class}}, got {shown(value)}.")
        pairs = []
        for file_id, target in value.items():
            if type(file_id) is not int or not 0 <= file_id <= _MAX_ID:
                raise UserError(f"{where} must have ids from 0 to {_MAX_ID}, got {shown(file_id)}.")
            if type(target) is int and 0 <= target < len(self.classes):
                pairs.append((file_id, target))
            elif target in self.classes:
                pairs.append((file_id, self.classes.index(target)))
            else:
                raise UserError(
                    f"{where} gives {file_id} to the unknown class {shown(target)}; name one of "
                    f"'classes' or its id, 0 to {len(self.classes) - 1}."
                    f"{nearest_name(shown(target), self.classes)}"
                )
        return tuple(sorted(pairs))


def _checked_path(yaml_path: Path, where: str, value: Any) -> str:
    """Return a path that an operating system can be asked for; it need not exist."""
    if not isinstance(value, str):
        raise UserError(
            f"{yaml_path}: expected a path for {where}, got {shown(value)}; put it in quotes."
        )
    if not is_clean(value):
        raise UserError(
            f"{yaml_path}: the path {shown(value)} of {where} has control characters, or is no "
            "UTF-8; rename it."
        )
    return value


def _parse_root(path: Path, value: Any) -> Path:
    # Resolved once here, so that files can be compared as text later on.
    root = Path(os.path.realpath(path.parent / _checked_path(path, "'root'", value or ".")))
    if not os.path.isdir(root):
        raise UserError(f"{path}: the root folder {root} does not exist.")
    for place in (str(path), str(root)):  # they are shown, and written to run folders
        _checked_path(path, "this data set", place)
    return root


@dataclass(frozen=True)
class _Entry:
    """A file: its name for the user, and the key that pairs an image with its mask."""

    name: str
    key: str
    path: Path


@dataclass(frozen=True)
class _Packed:
    """An image in a shard, as a list may name it."""

    name: str
    key: str
    path: Member


E = TypeVar("E", bound=_Entry | _Packed)


@dataclass
class _Finder:
    """Turns folders, globs and lists of one dataset.yaml into files."""

    yaml_path: Path
    root: Path
    _listed: dict[str, list[str]] = field(default_factory=dict)
    _resolved: dict[str, str] = field(default_factory=dict)

    def find(self, spec: Any, *, where: str, suffixes: Iterable[str]) -> list[_Entry]:
        """Return the files that ``spec`` names, in the order of their names (or of a list)."""
        base, relative, head, tail = self._relative(spec, where, suffixes)
        entries, folders = [], dict[str, Path]()
        for item in relative:
            name = os.path.splitext(item)[0]
            folder, _, stem = name.rpartition("/")
            if folder not in folders:  # a path made of many parts takes long, a million times
                folders[folder] = Path(base, folder)
            stem = stem.removeprefix(head).removesuffix(tail)
            key = f"{folder}/{stem}" if folder else stem
            entries.append(_Entry(name, key, folders[folder] / item[len(folder) :].lstrip("/")))
        return entries

    def find_plain(self, spec: Any, *, where: str, suffixes: Iterable[str]) -> FileList:
        """As :meth:`find`, where no file has to be paired with another; a name belongs to one."""
        base, relative, _, _ = self._relative(spec, where, suffixes)
        files = FileList(base, relative)
        if len(set(files.names())) < len(files):
            self.refuse_twice(files.names(), where)
        return files

    def refuse_twice(self, names: Iterable[str], where: str) -> None:
        """Raise where a name belongs to two files."""
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise UserError(
                f"{self.yaml_path}: {len(twice)} names of {where} belong to more than one file: "
                f"{_first_three(twice)}; rename the files, or give a glob such as 'images/*.jpg'."
            )

    def _relative(
        self, spec: Any, where: str, suffixes: Iterable[str]
    ) -> tuple[str, list[str], str, str]:
        """Return a folder, the files in it that ``spec`` names, and a glob's fixed ends."""
        for item in spec if isinstance(spec, list) else [spec]:
            if isinstance(item, str):
                _checked_path(self.yaml_path, where, item)
        if self.is_folder(spec):
            base = os.path.realpath(self.root / spec)
            relative, head, tail = self._list_folder(base), "", ""
        elif isinstance(spec, str) and re.search(r"[*?\[]", spec):
            base, relative, head, tail = self._match(spec, where)
        elif isinstance(spec, list) and spec and all(isinstance(item, str) for item in spec):
            base, relative = self._list_given(spec, where)
            head, tail = "", ""
        elif isinstance(spec, str) and spec.lower().endswith(".txt"):
            base, relative = self._list_given(self._read_paths(spec, where), where)
            head, tail = "", ""
        elif isinstance(spec, str):
            raise UserError(
                f"{self.yaml_path}: the folder {self.root / spec} of {where} does not exist."
            )
        else:
            raise UserError(
                f"{self.yaml_path}: expected a folder, a glob or a list of files for {where}, "
                f"got {shown(spec)}."
            )
        wanted = tuple(suffixes)
        relative = [
            item
            for item in relative
            # a name such as '.png' has no suffix
            if item.lower().endswith(wanted)
            and (item[item.rfind("/") + 1] != "." or os.path.splitext(item)[1])
        ]
        # all names in one look, as nearly always all are clean
        odd = [] if is_clean("".join(relative)) else [n for n in relative if not is_clean(n)]
        if odd:
            names = [os.path.splitext(item)[0] for item in odd]
            raise UserError(
                f"{self.yaml_path}: {len(odd)} file names of {where} have control characters, or "
                f"are no UTF-8: {_first_three(names)}; rename the files."
            )
        return base, relative, head, tail

    def find_masks(self, spec: Any, *, where: str) -> list[_Entry]:
        """Return mask files; of a folder, which may hold the images too, the .png alone."""
        suffixes = (".png",) if self.is_folder(spec) else IMAGE_SUFFIXES
        return self.find(spec, where=where, suffixes=suffixes)

    def is_folder(self, spec: Any) -> bool:
        """Return whether ``spec`` names a folder."""
        return isinstance(spec, str) and os.path.isdir(self.root / spec)

    def resolve(self, item: str) -> str:
        """Return the path of a file with its folder's links followed, so that equal is equal."""
        folder, name = os.path.split(os.path.normpath(self.root / item))
        if folder not in self._resolved:
            self._resolved[folder] = os.path.realpath(folder)
        return os.path.join(self._resolved[folder], name)

    def _list_folder(self, folder: str) -> list[str]:
        """Return the relative paths of all files below ``folder``, sorted; hidden ones left out."""
        if folder not in self._listed:
            found, visits = [], Counter[tuple[int, int]]()
            for parent, folders, files in os.walk(
                folder, followlinks=True, onerror=self._refuse_unreadable
            ):
                state = os.stat(parent)
                visits[state.st_dev, state.st_ino] += 1
                if visits[state.st_dev, state.st_ino] > _MAX_VISITS:
                    raise UserError(
                        f"{self.yaml_path}: links below {folder} lead to "
                        f"{os.path.realpath(parent)} again and again; take out the link that "
                        "leads back."
                    )
                folders[:] = [name for name in folders if not name.startswith(".")]
                inside = PurePosixPath(Path(parent).relative_to(folder).as_posix())
                prefix = "" if str(inside) == "." else f"{inside}/"
                found += [prefix + name for name in files if not name.startswith(".")]
            self._listed[folder] = sorted(found)
        return self._listed[folder]

    def _refuse_unreadable(self, error: OSError) -> None:
        raise UserError(
            f"{self.yaml_path}: cannot list the folder {error.filename}: {error.strerror}."
        )

    def _match(self, pattern: str, where: str) -> tuple[str, list[str], str, str]:
        """Return the glob's fixed folder, the files below it, and the last part's fixed ends."""
        parts = PurePosixPath(Path(pattern).as_posix()).parts
        fixed = 0
        while fixed < len(parts) - 1 and not re.search(r"[*?\[]", parts[fixed]):
            fixed += 1
        if ".." in parts[fixed:]:  # names would lead out of the folders that results go to
            raise UserError(
                f"{self.yaml_path}: the glob '{pattern}' of {where} has '..' behind a wildcard; "
                "only what stands before the first wildcard may lead upwards."
            )
        base = os.path.realpath(self.root.joinpath(*parts[:fixed]))
        rest = re.sub(r"(\*\*/)+", "**/", "/".join(parts[fixed:]))
        if "**" in rest and os.path.isdir(base):
            self._list_folder(base)  # refuses links that lead back, which glob would follow
        found = glob.glob(rest, root_dir=base, recursive=True)
        stem = os.path.splitext(parts[-1])[0]
        head, tail = re.split(r"[*?\[]", stem)[0], re.split(r"[*?\]]", stem)[-1]
        return base, sorted(Path(item).as_posix() for item in found), head, tail

    def _read_paths(self, spec: str, where: str) -> list[str]:
        """Return the paths that a text file holds, one a line."""
        paths = _read_list(self.root / spec, self.yaml_path, where)
        if not paths:
            raise UserError(f"{self.yaml_path}: the file {spec} of {where} names no file.")
        for path in paths:
            _checked_path(self.yaml_path, where, path)
        return paths

    def _list_given(self, items: list[str], where: str) -> tuple[str, list[str]]:
        """Return the folder that all files of a list share, and the files below it."""
        paths = [self.resolve(item) for item in items]
        missing = [path for path in paths if not os.path.isfile(path)]
        if missing:
            raise UserError(
                f"{self.yaml_path}: {len(missing)} files of {where} do not exist: "
                f"{_first_three(missing)}."
            )
        base = os.path.commonpath([os.path.dirname(path) for path in paths])
        return base, [Path(os.path.relpath(path, base)).as_posix() for path in paths]


def _find_shards(finder: _Finder, tree: dict[Any, Any]) -> tuple[Shard, ...]:
    """Return the tars of unlabelled images; none where the yaml names none."""
    for section in SECTIONS:
        spec = tree.get(section)
        if isinstance(spec, dict) and spec.get("shards") is not None and section != "unlabeled":
            raise UserError(
                f"{finder.yaml_path}: 'shards' are for 'unlabeled' alone, not for '{section}', "
                "whose images have masks; unpack them into a folder.",
                exit_code=2,
            )
    spec = tree.get("unlabeled")
    if not isinstance(spec, dict) or spec.get("shards") is None:
        return ()
    return find_shards(
        spec["shards"], root=finder.root, yaml_path=finder.yaml_path, suffixes=IMAGE_SUFFIXES
    )


def _find_section(
    finder: _Finder,
    section: str,
    spec: Any,
    encodings: _Encodings,
    default: MaskFormat,
    shards: Sequence[Shard],
) -> Sequence[Sample]:
    """Return the samples of one section; none where the yaml has no such section."""
    if spec is None:
        return ()
    yaml_path = finder.yaml_path
    may_have = "images" if section != "unlabeled" else "images' or 'shards"
    if not isinstance(spec, dict) or (
        "images" not in spec and not (section == "unlabeled" and shards)
    ):
        raise UserError(
            f"{yaml_path}: expected '{section}' to have '{may_have}', got {shown(spec)}."
        )
    keys = ("images", "masks", "list", "mask_format", "id_map", "shards")
    _refuse_unknown_keys(yaml_path, spec, keys, f" in '{section}'")
    if section == "unlabeled":
        return _find_unlabeled(finder, spec, shards)
    where = f"'{section}: images'"
    images = finder.find(spec["images"], where=where, suffixes=IMAGE_SUFFIXES)
    finder.refuse_twice((entry.name for entry in images), where)
    if spec.get("list") is not None:
        images = _select(finder, section, images, spec["list"])
    if spec.get("masks") is None:
        raise UserError(f"{yaml_path}: the section '{section}' needs 'masks', a folder of masks.")
    encoding = encodings.parse(section, spec, default)
    return tuple(_pair(finder, section, images, spec["masks"], encoding))


def _find_unlabeled(
    finder: _Finder, spec: dict[Any, Any], shards: Sequence[Shard]
) -> Sequence[Sample]:
    """Return the unlabelled samples: those of files, then those in shards."""
    _refuse_mask_keys(finder.yaml_path, spec)
    where = "'unlabeled: images'"
    members = ShardList(shards)
    if spec.get("list") is not None:
        images: list[_Entry | _Packed] = []
        if "images" in spec:
            images += finder.find(spec["images"], where=where, suffixes=IMAGE_SUFFIXES)
        images += [_Packed(name, name, member) for name, member in members.items()]
        finder.refuse_twice((entry.name for entry in images), where)
        chosen = _select(finder, "unlabeled", images, spec["list"])
        return tuple(Sample(entry.name, entry.path) for entry in chosen)
    if "images" not in spec:
        return members
    files = finder.find_plain(spec["images"], where=where, suffixes=IMAGE_SUFFIXES)
    if not shards:
        return files
    joined = JoinedList(files, members)
    finder.refuse_twice(joined.names(), "'unlabeled'")
    return joined


def _refuse_mask_keys(yaml_path: Path, spec: dict[Any, Any]) -> None:
    for key in ("mask_format", "id_map"):
        if key in spec:
            raise UserError(f"{yaml_path}: 'unlabeled' has no masks to read; take its {key} out.")


def _select(finder: _Finder, section: str, images: Sequence[E], spec: Any) -> list[E]:
    """Return the images that a list file names, in its order."""
    path = finder.root / _checked_path(finder.yaml_path, f"'{section}: list'", spec)
    wanted = _read_list(path, finder.yaml_path, f"'{section}'")
    by_name = {entry.key: entry for entry in images} | {entry.name: entry for entry in images}
    by_stem = _unique_stems(images)
    by_path = {entry.path: entry for entry in images} if wanted else {}
    chosen: dict[str, E] = {}
    missing = []
    for item in wanted:
        plain, suffix = os.path.splitext(item)
        name = plain if suffix.lower() in IMAGE_SUFFIXES else item
        entry = by_name.get(item) or by_name.get(name) or by_stem.get(name)
        if entry is None and is_clean(item):
            entry = by_path.get(Path(finder.resolve(item)))
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


def _read_list(path: Path, yaml_path: Path, where: str) -> list[str]:
    """Return the lines of a list file, without empty ones and comments."""
    try:
        lines = read_text(path).splitlines()
    except FileNotFoundError:
        raise UserError(f"{yaml_path}: the list {path} of {where} does not exist.") from None
    except (OSError, ValueError):
        raise UserError(f"{yaml_path}: the list {path} is not a text file.") from None
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def _pair(
    finder: _Finder, section: str, images: list[_Entry], spec: Any, encoding: MaskEncoding
) -> list[Sample]:
    """Return a sample for each image, with its mask."""
    is_folder = finder.is_folder(spec)
    masks = finder.find_masks(spec, where=f"'{section}: masks'")
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
        samples.append(Sample(entry.name, entry.path, mask, mask_encoding=encoding))
    if missing:
        raise UserError(
            f"{finder.yaml_path}: {len(missing)} of {len(images)} images in '{section}' have no "
            f"mask in {spec}: {_first_three(missing)}; add a .png of the same name, or list only "
            "images that have one."
        )
    return samples


def _unique_stems(entries: Iterable[E]) -> dict[str, E]:
    """Return the entries by the last part of their name and of their key, where no other has it."""
    stems = [
        (stem, entry)
        for entry in entries
        for stem in {entry.name.rpartition("/")[2], entry.key.rpartition("/")[2]}
    ]
    counts = Counter(stem for stem, _ in stems)
    return {stem: entry for stem, entry in stems if counts[stem] == 1}


def _refuse_leaks(path: Path, sections: Mapping[str, Sequence[Sample]]) -> None:
    """Raise where an image to train on is also one to be scored on."""
    for held_out in ("val", "test"):
        scored = {str(sample.image): sample.name for sample in sections[held_out]}
        for train in ("labeled", "unlabeled"):
            trained = scored.keys() & paths_of(sections[train])
            shared = [name for image, name in scored.items() if image in trained]
            if shared:
                raise UserError(
                    f"{path}: {len(shared)} images stand in '{train}' and also in '{held_out}': "
                    f"{_first_three(shared)}; give each section its own folder or list."
                )


def _with_tags(
    finder: _Finder, dataset: Dataset, spec: Any, mask_format: MaskFormat
) -> tuple[Sample, ...]:
    """Return the unlabelled samples with their tags; None for an image of which nothing is said."""
    path, classes, samples = dataset.path, dataset.classes, dataset.unlabeled
    spec = {"file": spec} if isinstance(spec, str) else spec
    kinds = [kind for kind in _TAG_KINDS if isinstance(spec, dict) and kind in spec]
    if len(kinds) != 1:
        raise UserError(
            f"{path}: expected tags to be a CSV file, or to have one of "
            f"{', '.join(_TAG_KINDS)}, got {shown(spec)}."
        )
    kind, keys = kinds[0], (*_TAG_KINDS, "always", "skip")
    _refuse_unknown_keys(path, spec, keys, " in 'tags'")
    if "skip" in spec and kind != "voc_xml":
        raise UserError(f"{path}: only voc_xml takes 'skip' in 'tags'.")
    always = class_ids(
        _parse_names(path, spec, "always"), classes, path=path, context=" in 'tags: always'"
    )
    if kind == "file":
        rows = read_csv_tags(
            finder.root / _checked_path(path, "'tags'", spec["file"]),
            classes,
            suffixes=IMAGE_SUFFIXES,
            may_be_empty=bool(always),
        )
        found = _by_name(samples, rows)
    else:
        files = _find_tag_files(finder, kind, spec[kind], samples)
        if kind == "voc_xml":
            skip = _parse_names(path, spec, "skip")
            for name in skip:
                if name in classes:
                    raise UserError(f"{path}: 'tags: skip' names the class '{name}'; take it out.")
            found = [
                read_voc_tags(file, classes, skip=skip, may_be_empty=bool(always)) if file else None
                for file in files
            ]
        else:
            found = _read_mask_tags(dataset, files, MaskEncoding(mask_format))
    if samples and all(tags is None for tags in found):
        raise UserError(
            f"{path}: the tags name no image of 'unlabeled'; expected names such as "
            f"'{samples[0].name}'."
        )
    return tuple(
        sample if tags is None else replace(sample, tags=tuple(sorted(tags | always)))
        for sample, tags in zip(samples, found, strict=True)
    )


def _parse_names(path: Path, spec: dict[Any, Any], key: str) -> list[str]:
    """Return a list of names under ``key``; none where it is not there."""
    names = spec.get(key, [])
    if not isinstance(names, list):
        raise UserError(
            f"{path}: expected 'tags: {key}' to be a list of names, got {shown(names)}."
        )
    return [name if isinstance(name, str) else shown(name) for name in names]


def _find_tag_files(
    finder: _Finder, kind: str, spec: Any, samples: Sequence[Sample]
) -> list[Path | None]:
    """Return the XML or mask file of each sample; none of them is opened."""
    where = f"'tags: {kind}'"
    if kind == "voc_xml":
        entries = finder.find(spec, where=where, suffixes=(".xml",))
    else:
        entries = finder.find_masks(spec, where=where)
    by_key = {entry.key: entry.path for entry in entries}
    return _by_name(samples, by_key | {entry.name: entry.path for entry in entries})


def _read_mask_tags(
    dataset: Dataset, files: Sequence[Path | None], encoding: MaskEncoding
) -> list[frozenset[int] | None]:
    """Return the classes that each mask holds; None where there is no mask, or all is ignored."""
    masked = {file: Sample(file.stem, file, file, mask_encoding=encoding) for file in files if file}
    rows = class_pixels(dataset, list(masked.values()))
    present = {
        file: frozenset(np.flatnonzero(row).tolist())
        for file, row in zip(masked, rows, strict=True)
    }
    return [(present[file] or None) if file else None for file in files]


def _by_name(samples: Sequence[Sample], table: Mapping[str, T]) -> list[T | None]:
    """Return what the table has under each sample's name, or under its stem where that is sure."""
    stems = Counter(sample.name.rpartition("/")[2] for sample in samples)
    found = []
    for sample in samples:
        stem = sample.name.rpartition("/")[2]
        by_stem = table.get(stem) if stems[stem] == 1 else None
        found.append(table.get(sample.name, by_stem))
    return found


def _first_three(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
