"""ADE20K as SceneParsing: 150 classes; what has none is ignored."""

from __future__ import annotations

from u2pl.data.class_tables import ADE20K
from u2pl.data.init.draft import Encoding, list_images, name_of
from u2pl.data.prepare.job import Benchmark, Draft, Job, Part, Section, require_pairs

_ADE = Part(
    name="ade20k",
    archives=("ADEChallengeData2016.zip",),
    page="http://sceneparsing.csail.mit.edu/",
    holds=("images/training", "images/validation", "annotations/training"),
    places=("ADEChallengeData2016", "", "ade/ADEChallengeData2016"),
)
_SPLITS = {"labeled": "training", "val": "validation"}


def _draft(job: Job) -> Draft:
    root = job.tree(_ADE)
    draft = Draft(Encoding(ADE20K))
    draft.notes.append("Masks: ids 1 to 150 through an id_map; 0, no class, is ignored.")
    for section, split in _SPLITS.items():
        images, masks = root / "images" / split, root / "annotations" / split
        names = [name_of(file) for file in list_images(images, (".jpg",))]
        there = frozenset(name_of(file) for file in list_images(masks, (".png",)))
        require_pairs(_ADE, names, there, where=masks)
        keys = {
            "images": job.spell(images),
            "masks": job.spell(masks),
            "id_map": dict(enumerate(ADE20K, start=1)),
        }
        draft.sections[section] = Section(keys, len(names), _ADE)
    return draft


BENCHMARK = Benchmark(
    name="ade20k",
    title="ADE20K, SceneParsing 150",
    variants={},
    counts={"": {"labeled": 20210, "val": 2000}},
    parts=(_ADE,),
    licence=(
        "ADE20K: images for non-commercial research and education alone, annotations under the "
        "BSD 3-clause licence (https://groups.csail.mit.edu/vision/datasets/ADE20K/terms/). Cite "
        "Zhou et al., CVPR 2017."
    ),
    draft=_draft,
)
