"""The page that stands before a model on the Hugging Face Hub, made of what the run folder says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from u2pl.engine.run_folder import RunFolder
from u2pl.errors import UserError, printable
from u2pl.exporting.formats import require
from u2pl.exporting.licenses import EncoderLicense, license_sentence
from u2pl.plain_files import read_text, read_yaml


@dataclass(frozen=True)
class History:
    """What a run folder tells of a model beside its weights; whatever is not there is empty.

    Attributes:
        name: of the run folder.
        counts: images of each section.
        config: the run's settings.
        scores: of the teacher or the student, as ``eval/val.json`` has them.
    """

    name: str
    counts: dict[str, int]
    config: dict[str, Any]
    scores: dict[str, Any]


def read_history(folder: RunFolder, *, weights: str) -> History:
    """Read what is told about a run; parts that are missing or damaged are left out."""
    counts = {}
    for section in ("labeled", "unlabeled", "val", "test"):
        names = _read(folder.path / "splits" / f"{section}.txt", read_text)
        if isinstance(names, str):
            counts[section] = len([line for line in names.splitlines() if line.strip()])
    config = _read(folder.config, read_yaml)
    result = _read(folder.result, lambda path: json.loads(read_text(path)))
    scores = result.get(weights) if isinstance(result, dict) else None
    return History(
        name=folder.path.resolve().name,
        counts=counts,
        config=config if isinstance(config, dict) else {},
        scores=scores if isinstance(scores, dict) else {},
    )


def _read(path: Path, reader: Any) -> Any:
    try:
        return reader(path)
    except (OSError, ValueError, RecursionError, UserError):
        return None


def model_card(about: dict[str, Any], license: EncoderLicense, history: History) -> str:
    """The README.md of a model: front matter for the Hub, then data, recipe, scores, licence, use.

    Args:
        about: see :func:`~u2pl.exporting.export.describe`.
        license: of the encoder's first weights.
        history: what the run folder says.
    """
    hub = require("huggingface_hub")
    miou = history.scores.get("miou")
    results = None
    if isinstance(miou, int | float):
        results = [
            hub.EvalResult(
                task_type="image-segmentation",
                dataset_type="custom",
                dataset_name="val",
                metric_type="mean_iou",
                metric_name="mIoU, percent",
                metric_value=round(miou, 2),
            )
        ]
    data = hub.ModelCardData(
        model_name=printable(history.name),
        library_name="u2pl",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "semi-supervised", "u2pl"],
        # what was made from non-commercial weights is passed on as non-commercial
        license=_hub_license(license),
        eval_results=results,
    )
    parts = [f"---\n{data.to_yaml()}\n---", _head(about, license, history)]
    parts += [_data(about, history), _recipe(about, history), _scores(about, history), _use(about)]
    return "\n\n".join(parts) + "\n"


def _hub_license(license: EncoderLicense) -> str | None:
    if not license.is_non_commercial:
        return None
    return license.name if license.name.startswith("cc-") else "other"


def _head(about: dict[str, Any], license: EncoderLicense, history: History) -> str:
    warning = "> **Not for commercial use.** " if license.is_non_commercial else ""
    return (
        f"# {_plain(history.name)}\n\nSemantic segmentation of {len(about['classes'])} classes: "
        f"{about['encoder']} with {about['decoder']}, trained by u2pl {about['u2pl']}.\n\n"
        f"## Licence\n\n{warning}{license_sentence(license)} "
        "The data that it was trained on may have terms too. Say here under which licence you "
        "pass this model on."
    )


def _data(about: dict[str, Any], history: History) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in history.counts.items())
    rows = "\n".join(
        f"| {number} | {_plain(name)} | {', '.join(map(str, color))} |"
        for number, (name, color) in enumerate(zip(about["classes"], about["colors"], strict=True))
    )
    return (
        f"## Data\n\nImages: {counts or 'not known'}. Pixels of value {about['ignore_index']} "
        f"were ignored.\n\n| Id | Class | Colour |\n|---|---|---|\n{rows}"
    )


def _recipe(about: dict[str, Any], history: History) -> str:
    train = history.config.get("train")
    seed = train.get("seed", "not known") if isinstance(train, dict) else "not known"
    setting = _plain(str(history.config.get("setting", "not known")))
    return (
        f"## Recipe\n\nRecipe {_plain(str(about['recipe']))}, setting {setting}, "
        f"seed {_plain(str(seed))}, {about['step']} steps, weights "
        f"{about['weights']}. Every setting is in the run's `config.yaml`."
    )


def _scores(about: dict[str, Any], history: History) -> str:
    miou, iou = history.scores.get("miou"), history.scores.get("iou")
    if not isinstance(miou, int | float) or not isinstance(iou, dict):
        return "## Scores\n\nNot known."
    rows = "\n".join(
        f"| {_plain(str(name))} | {'–' if value is None else format(float(value), '.2f')} |"
        for name, value in iou.items()
    )
    number = history.scores.get("images", "?")
    return (
        f"## Scores\n\nmIoU {miou:.2f} % on the {number} val images that the run was followed "
        f"with, at the last step. Protocol: {_plain(str(history.scores.get('protocol')))}, one "
        "confusion matrix over all pixels, a class without a true pixel left out of the mean."
        f"\n\n| Class | IoU, % |\n|---|---|\n{rows}"
    )


def _use(about: dict[str, Any]) -> str:
    resize = about["resize"]
    first = f"Bring the short side to {resize} pixels first.\n\n" if resize else ""
    return (
        f"## Use\n\n{first}`entropy` is in nats; a pixel is reliable where it is at most "
        f"{about['reliable_entropy']:.4f}.\n\n```python\nimport u2pl\n\n"
        'mask, entropy, reliable = u2pl.load("FOLDER").predict("image.jpg")\n```\n\n'
        "Without u2pl:\n\n```python\nimport numpy as np\nimport onnxruntime\nfrom PIL import "
        'Image\n\nsession = onnxruntime.InferenceSession("onnx/model.onnx")\n'
        'image = np.asarray(Image.open("image.jpg").convert("RGB"))[None]  # uint8 [1, H, W, 3]\n'
        'mask, entropy, reliable, logits = session.run(None, {"images": image})\n```'
    )


def _plain(text: str) -> str:
    """A name out of a file as words of a page: on one line, with nothing that Markdown reads."""
    marks = r"\`*_[]<>#|!"
    return "".join(f"\\{c}" if c in marks else c for c in printable(text))
