"""Small things that many tests need."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

CLASS_NAMES = ("ground", "wall", "tree", "car", "lamp", "sign")
CLASS_COLORS = (
    (40, 40, 60),
    (220, 60, 50),
    (60, 200, 70),
    (70, 90, 230),
    (230, 220, 60),
    (200, 70, 210),
)


def draw_scene(
    rng: np.random.Generator, *, size: tuple[int, int], num_classes: int, must_hold: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return an image [H, W, 3] and its mask [H, W]: noisy rectangles on a ground of class 0.

    Each class has its own colour, so a net can learn the mask from the image. The class
    ``must_hold`` is always there, each other one in half of the scenes.
    """
    height, width = size
    mask = np.zeros(size, np.uint8)
    others = [c for c in range(1, num_classes) if c != must_hold and rng.random() < 0.5]
    for class_id in [*others, must_hold]:
        h, w = rng.integers(height // 4, height // 2), rng.integers(width // 4, width // 2)
        y, x = rng.integers(0, height - h), rng.integers(0, width - w)
        mask[y : y + h, x : x + w] = class_id
    colors = np.array(CLASS_COLORS, np.float64)[mask]
    shade = rng.uniform(0.8, 1.1)
    image = colors * shade + rng.normal(0, 12, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8), mask


def encode_mask(mask: npt.NDArray[np.uint8], mask_format: str) -> npt.NDArray[np.uint8]:
    """Return class ids as the pixels of a file in ``mask_format``."""
    if mask_format == "rgb":
        return np.array(CLASS_COLORS, np.uint8)[mask]
    return mask * 255 if mask_format == "binary" else mask


def write_dataset(
    folder: Path,
    *,
    num_labeled: int = 4,
    num_unlabeled: int = 6,
    num_val: int = 3,
    num_classes: int = 3,
    size: tuple[int, int] = (40, 56),
    seed: int = 0,
    mask_format: str = "index",
    tags: bool = False,
) -> Path:
    """Write a tiny data set below ``folder`` and return the path of its dataset.yaml.

    ``images/labeled_0.png`` with ``masks/labeled_0.png``, ``unlabeled/unlabeled_0.png`` without
    a mask, ``val/images/val_0.png`` with ``val/masks/val_0.png``; ``tags`` adds a tags.csv that
    says truly which classes each unlabelled image holds. A section of 0 images is left out.
    """
    rng = np.random.default_rng(seed)
    sections = {
        "labeled": (num_labeled, "images", "masks"),
        "unlabeled": (num_unlabeled, "unlabeled", None),
        "val": (num_val, "val/images", "val/masks"),
    }
    names = list(CLASS_NAMES[:num_classes])
    classes: list[Any] = names
    if mask_format == "rgb":
        classes = [{"name": n, "color": list(c)} for n, c in zip(names, CLASS_COLORS, strict=False)]
    tree: dict[str, Any] = {"classes": classes, "mask_format": mask_format}
    tag_lines = ["image,classes"]
    for section, (count, image_folder, mask_folder) in sections.items():
        if count == 0:
            continue
        tree[section] = {"images": image_folder}
        (folder / image_folder).mkdir(parents=True, exist_ok=True)
        if mask_folder is not None:
            tree[section]["masks"] = mask_folder
            (folder / mask_folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            must_hold = 1 + i % (num_classes - 1)
            image, mask = draw_scene(rng, size=size, num_classes=num_classes, must_hold=must_hold)
            file = f"{section}_{i}.png"
            Image.fromarray(image).save(folder / image_folder / file)
            if mask_folder is not None:
                Image.fromarray(encode_mask(mask, mask_format)).save(folder / mask_folder / file)
            else:
                present = ";".join(names[c] for c in np.unique(mask))
                tag_lines.append(f"{section}_{i},{present}")
    if tags:
        tree["tags"] = "tags.csv"
        (folder / "tags.csv").write_text("\n".join(tag_lines) + "\n")
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def tar_bytes(members: Mapping[str, bytes], *, tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    """Return a tar with these members, in this order."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def write_shard_dataset(
    folder: Path, *, num_shards: int = 2, shards: object = "pool/*.tar", **options: Any
) -> Path:
    """As :func:`write_dataset`, the unlabelled images twice: in ``unlabeled``, and in shards.

    The files lie in ``unlabeled/pool-000.tar/a/b_0.png`` and so on, ``files.yaml`` names them, and
    the shards hold them under the same names, so that both data sets are the same.
    ``dataset.yaml`` names the shards.
    """
    path = write_dataset(folder, **options)
    tree = yaml.safe_load(path.read_text())
    images = sorted((folder / "unlabeled").iterdir())
    (folder / "pool").mkdir()
    for number in range(num_shards):
        members = {}
        for place, image in enumerate(images[number::num_shards]):
            name, label = f"a/b_{place}.png", f"pool-{number:03}.tar"
            members |= {name: image.read_bytes(), f"a/b_{place}.json": b"{}"}
            target = folder / "unlabeled" / label / name
            target.parent.mkdir(parents=True, exist_ok=True)
            image.rename(target)
        (folder / "pool" / f"pool-{number:03}.tar").write_bytes(tar_bytes(members))
    (folder / "files.yaml").write_text(yaml.safe_dump(tree))
    path.write_text(yaml.safe_dump(tree | {"unlabeled": {"shards": shards}}))
    return path
