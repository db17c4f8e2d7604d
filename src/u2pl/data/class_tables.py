"""Classes of published data sets: names, ids in their files, colours, each with its source."""

from __future__ import annotations

from u2pl.data.images import Color

VOC: tuple[str, ...] = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
"""Of PASCAL VOC 2012, in the order of their ids (its development kit, VOCinit.m)."""

CITYSCAPES: tuple[tuple[int, str, Color], ...] = (
    (7, "road", (128, 64, 128)), (8, "sidewalk", (244, 35, 232)), (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)), (13, "fence", (190, 153, 153)), (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)), (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)), (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)), (24, "person", (220, 20, 60)), (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)), (27, "truck", (0, 0, 70)), (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)), (32, "motorcycle", (0, 0, 230)), (33, "bicycle", (119, 11, 32)),
)  # fmt: skip
"""The id in ``*_labelIds.png``, name and colour of the 19 classes that are scored, in the order of
their train ids (cityscapesScripts, ``helpers/labels.py``). Every other id is ignored; the licence
plate's id of -1 stands in no file. GTA5's masks have the same ids, its licence plates 34."""

SYNTHIA: dict[int, str] = {
    3: "road", 4: "sidewalk", 2: "building", 21: "wall", 5: "fence", 7: "pole",
    15: "traffic light", 9: "traffic sign", 6: "vegetation", 1: "sky", 10: "person", 17: "rider",
    8: "car", 19: "bus", 12: "motorcycle", 11: "bicycle",
}  # fmt: skip
"""The id in SYNTHIA-RAND-CITYSCAPES's masks of the 16 classes that it shares with Cityscapes, in
the order of Cityscapes's train ids (the set's README; the ids as in ADVENT's loader). Ignored are
0 void, 13 parking slot, 14 road work, 16 terrain, 18 truck, 20 train and 22 lane marking."""

SYNTHIA_ONLY_16: frozenset[str] = frozenset({"wall", "fence", "pole"})
"""The classes that the protocol of 13 classes leaves out (mIoU* of AdaptSegNet, ADVENT, DACS)."""

ADE20K: tuple[str, ...] = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass",
    "cabinet", "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain",
    "chair", "car", "water", "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field",
    "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp", "bathtub", "railing",
    "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter", "sand", "sink",
    "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs", "runway", "case",
    "pool table", "pillow", "screen door", "stairway", "river", "bridge", "bookcase", "blind",
    "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove", "palm",
    "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus",
    "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight", "booth",
    "television receiver", "airplane", "dirt track", "apparel", "pole", "land", "bannister",
    "escalator", "ottoman", "bottle", "buffet", "poster", "stage", "van", "ship", "fountain",
    "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool", "barrel", "basket",
    "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank",
    "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen",
    "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan",
    "pier", "crt screen", "plate", "monitor", "bulletin board", "shower", "radiator", "glass",
    "clock", "flag",
)  # fmt: skip
"""The 150 of SceneParsing; the first has id 1, and 0 is no class (``objectInfo150.txt`` of the
archive, of whose synonyms one is taken, as mmsegmentation does)."""

COCO: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""The 80 things, in the order of their category ids (``instances_val2017.json``)."""

CAMVID: tuple[tuple[str, tuple[Color, ...]], ...] = (
    ("sky", ((128, 128, 128),)),
    # building, bridge, wall, tunnel, archway
    ("building", ((128, 0, 0), (0, 128, 64), (64, 192, 0), (64, 0, 64), (192, 0, 128))),
    ("pole", ((192, 192, 128), (0, 0, 64))),  # column or pole, traffic cone
    # road, lane markings for driving and not
    ("road", ((128, 64, 128), (128, 0, 192), (192, 0, 64))),
    # sidewalk, parking block, road shoulder
    ("pavement", ((0, 0, 192), (64, 192, 128), (128, 128, 192))),
    ("tree", ((128, 128, 0), (192, 192, 0))),  # tree, other vegetation
    # sign, other text, traffic light
    ("sign symbol", ((192, 128, 128), (128, 128, 64), (0, 64, 64))),
    ("fence", ((64, 64, 128),)),
    # car, pick-up, truck or bus, train, other moving
    ("car", ((64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64))),
    # pedestrian, child, luggage or pram, animal
    ("pedestrian", ((64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64))),
    ("bicyclist", ((0, 128, 192), (192, 0, 192))),  # bicyclist, motorcycle or scooter
)
"""SegNet's 11 classes in the order of their ids, each with the colours of CamVid's 32 that it
unites, its own first (``label_colors.txt``; the groups as in MathWorks's ``camvidPixelLabelIDs``,
"following the original SegNet training methodology"). The 32nd colour is void, black."""

IDD: tuple[tuple[str, Color, tuple[str, ...]], ...] = (
    ("road", (128, 64, 128), ()),
    ("drivable fallback", (81, 0, 81), ("parking",)),
    ("sidewalk", (244, 35, 232), ()),
    ("non-drivable fallback", (152, 251, 152), ("rail track",)),
    ("person", (220, 20, 60), ("animal",)),
    ("rider", (255, 0, 0), ()),
    ("motorcycle", (0, 0, 230), ()),
    ("bicycle", (119, 11, 32), ()),
    ("autorickshaw", (255, 204, 54), ()),
    ("car", (0, 0, 142), ()),
    ("truck", (0, 0, 70), ()),
    ("bus", (0, 60, 100), ()),
    ("vehicle fallback", (136, 143, 153), ("caravan", "trailer", "train")),
    ("curb", (220, 190, 40), ()),
    ("wall", (102, 102, 156), ()),
    ("fence", (190, 153, 153), ()),
    ("guard rail", (180, 165, 180), ()),
    ("billboard", (174, 64, 67), ()),
    ("traffic sign", (220, 220, 0), ()),
    ("traffic light", (250, 170, 30), ()),
    ("pole", (153, 153, 153), ("polegroup",)),
    ("obs-str-bar-fallback", (169, 187, 214), ()),
    ("building", (70, 70, 70), ()),
    ("bridge", (150, 100, 100), ("tunnel",)),
    ("vegetation", (107, 142, 35), ()),
    ("sky", (70, 130, 180), ("fallback background",)),
)
"""Level 3's 26 classes in the order of their ids, colours, and the other labels of the polygons
that each unites (AutoNUE's ``helpers/anue_labels.py``)."""

IDD_IGNORED: tuple[str, ...] = (
    "unlabeled", "ego vehicle", "rectification border", "out of roi", "license plate",
)  # fmt: skip
"""Labels of IDD's polygons that are no class."""
