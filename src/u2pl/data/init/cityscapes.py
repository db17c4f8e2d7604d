"""Cityscapes' tree: leftImg8bit/ and gtFine/, by split and city."""

from __future__ import annotations

from pathlib import Path

from u2pl.data.images import Color
from u2pl.data.init.draft import Draft, Encoding, Request, list_images
from u2pl.errors import UserError

NAME = "cityscapes"

# The ids in *_labelIds.png, names and colours of the 19 classes that are scored, in the order of
# their train ids, after cityscapesscripts.helpers.labels. Every other id is ignored.
LABELS: tuple[tuple[int, str, Color], ...] = (
    (7, "road", (128, 64, 128)), (8, "sidewalk", (244, 35, 232)), (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)), (13, "fence", (190, 153, 153)), (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)), (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)), (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)), (24, "person", (220, 20, 60)), (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)), (27, "truck", (0, 0, 70)), (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)), (32, "motorcycle", (0, 0, 230)), (33, "bicycle", (119, 11, 32)),
)  # fmt: skip
_SPLITS = {"train": "labeled", "val": "val"}


def recognize(folder: Path) -> str | None:
    """Return why a folder looks like Cityscapes' tree, or None."""
    if (folder / "leftImg8bit").is_dir() and (folder / "gtFine").is_dir():
        return "leftImg8bit/ and gtFine/"
    return None


def draft(request: Request) -> Draft:
    """Return what Cityscapes' tree says; its test split has no labels and is left out.

    Raises:
        UserError: where there are no masks with ids, or other classes are asked for.
    """
    root = request.root
    if request.classes is not None:
        raise UserError("Cityscapes' ids have classes of their own; leave --classes out.")
    result = Draft(NAME, _encoding())
    result.conclusions.append(
        f"Classes: the {len(LABELS)} of Cityscapes that are scored, from the ids in "
        "*_labelIds.png by an id_map; all other ids are ignored."
    )
    for split, section in _SPLITS.items():
        images = _count(root / "leftImg8bit" / split, "_leftImg8bit.png")
        masks = _count(root / "gtFine" / split, "_gtFine_labelIds.png")
        if images and not masks:
            raise UserError(
                f"Expected *_gtFine_labelIds.png in {root / 'gtFine' / split}, found none; unpack "
                "gtFine_trainvaltest.zip there."
            )
        if images:
            result.sections[section] = {
                "images": f"leftImg8bit/{split}/*/*_leftImg8bit.png",
                "masks": f"gtFine/{split}/*/*_gtFine_labelIds.png",
            }
            result.conclusions.append(f"{section}: {images} images of leftImg8bit/{split}/.")
    extra = _count(root / "leftImg8bit" / "train_extra", "_leftImg8bit.png")
    if extra:
        result.sections["unlabeled"] = {"images": "leftImg8bit/train_extra/*/*_leftImg8bit.png"}
        result.conclusions.append(
            f"unlabeled: {extra} images of leftImg8bit/train_extra/, without their coarse masks."
        )
    else:
        result.conclusions.append("unlabeled: none; `u2pl data split` can make some.")
    return result


def _encoding() -> Encoding:
    return Encoding(
        classes=tuple(name for _, name, _ in LABELS),
        colors=tuple(color for _, _, color in LABELS),
        id_map={label: name for label, name, _ in LABELS},
    )


def _count(folder: Path, end: str) -> int:
    return sum(file.endswith(end) for file in list_images(folder)) if folder.is_dir() else 0
