"""From a run to the files of a format, and a check that they say what the run says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from u2pl.config import ModelSettings
from u2pl.data.images import read_image
from u2pl.engine.predict import make_folder
from u2pl.engine.run_folder import RunFolder
from u2pl.engine.trained import SegmentationModel, load_model, read_card
from u2pl.errors import UserError, nearest_name
from u2pl.exporting.formats import (
    FORMATS,
    Run,
    onnx_bytes,
    pt2_bytes,
    require,
    run_model,
    run_onnx,
    run_pt2,
    safetensors_bytes,
    trace,
    write_below,
)
from u2pl.exporting.graph import INPUT, OUTPUTS
from u2pl.exporting.licenses import encoder_license, license_sentence
from u2pl.exporting.model_card import model_card, read_history
from u2pl.exporting.verify import compare

Size = tuple[int, int]


def export_run(
    run: Path,
    out: Path,
    *,
    format: str,
    weights: str = "ema",
    checkpoint: str = "last",
    images: Iterable[Path] | None = None,
) -> dict[str, Any]:
    """Write a run's network in a format, and compare it with ours where there are images.

    Args:
        run: the run folder.
        out: the folder of the files.
        format: of :data:`~u2pl.exporting.formats.FORMATS`.
        weights: ``ema`` or ``student``.
        checkpoint: ``last`` or ``best``.
        images: to compare on; None compares nothing.

    Returns:
        ``format``, ``files``, ``size`` (height and width that images must have, or None for any),
        ``smallest_side``, ``encoder_license``; with images also ``equal_pixels``,
        ``max_abs_difference`` and ``images``.

    Raises:
        UserError: where the run, the format or the folder does not fit, or a package is missing.
    """
    if format not in FORMATS:
        raise UserError(
            f"Expected the format {', '.join(FORMATS)}, got '{format}'."
            f"{nearest_name(format, FORMATS)}",
            exit_code=2,
        )
    for package in _packages(format, verifies=images is not None):
        require(package)
    folder = RunFolder(run)
    model = load_model(run, weights=weights, checkpoint=checkpoint)
    settings, _ = read_card(folder)
    about = describe(model, settings, weights=weights)
    make_folder(out)
    size = None
    if format in ("onnx", "pt2"):
        files, runs, size = _graph(model, about, out, format)
    else:
        files = _weights(model, settings, about, out)
        runs = [lambda: run_model(load_model(out))]
    if format == "hf":
        others, graph_runs, size = _graph(model, about, out / "onnx", "onnx")
        config = {"id2label": dict(enumerate(about["classes"])), **about}
        page = model_card(about, encoder_license(settings), read_history(folder, weights=weights))
        files += [
            *others,
            write_below(out, "config.json", _json(config)),
            write_below(out, "README.md", page.encode()),
        ]
        runs += graph_runs
    result = {
        "format": format,
        "files": [str(file) for file in files],
        "size": None if size is None else list(size),
        "smallest_side": about["smallest_side"],
        "encoder_license": about["encoder_license"],
    }
    if images is not None:
        result |= _verified(model, runs, list(images), size)
    return result


def describe(model: SegmentationModel, settings: ModelSettings, *, weights: str) -> dict[str, Any]:
    """What goes with the weights into every format, as plain values.

    Args:
        model: a run's network.
        settings: of it.
        weights: ``ema`` or ``student``.
    """
    license = encoder_license(settings)
    return {
        **{key: value for key, value in asdict(model.card).items() if key in _TOLD},
        "weights": weights,
        "encoder": settings.encoder,
        "decoder": settings.decoder,
        "encoder_license": {**license._asdict(), "sentence": license_sentence(license)},
        "input": f"{INPUT}: uint8 [batch, height, width, 3], RGB; scaled and normalised inside",
        "outputs": list(OUTPUTS),
        "padding": (
            f"sides are padded right and below to multiples of {model.network.multiple} with the "
            "encoder's mean colour, and cut again, inside"
        ),
        "smallest_side": model.network.multiple + 1,
        "protocol": "whole",
        "scored_protocol": model.card.seen_by.name,
        "u2pl": metadata.version("u2pl"),
    }


_TOLD = {"classes", "colors", "ignore_index", "resize", "reliable_entropy", "step", "recipe"}
_PACKAGES = {
    "onnx": ("onnx", "onnxscript"),
    "pt2": (),
    "safetensors": (),
    "hf": ("onnx", "onnxscript", "huggingface_hub"),
}


def _packages(format: str, *, verifies: bool) -> tuple[str, ...]:
    """What has to be installed; looked for before any work."""
    runtime = ("onnxruntime",) if verifies and format in ("onnx", "hf") else ()
    return (*_PACKAGES[format], *runtime)


def _graph(
    model: SegmentationModel, about: dict[str, Any], out: Path, format: str
) -> tuple[list[Path], list[Callable[[], Run]], Size | None]:
    """Write the graph as ``onnx`` or ``pt2``: the file, how to run it, the size it is tied to."""
    traced = trace(model)
    told = about | {"size": None if traced.size is None else list(traced.size)}
    if format == "onnx":
        path = write_below(out, "model.onnx", onnx_bytes(traced, told))
        return [path], [lambda: run_onnx(path)], traced.size
    content = pt2_bytes(traced, told)
    return [write_below(out, "model.pt2", content)], [lambda: run_pt2(content)], traced.size


def _weights(
    model: SegmentationModel, settings: ModelSettings, about: dict[str, Any], out: Path
) -> list[Path]:
    """Write the weights and what ``u2pl.load`` needs beside them."""
    # the network's own weights are all here: nothing is to be loaded first, least of all by a path
    card = {"model": settings.without_pretrained().model_dump(mode="json"), **asdict(model.card)}
    return [
        write_below(out, "model.safetensors", safetensors_bytes(model, about)),
        write_below(out, "model.json", _json(card)),
    ]


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _verified(
    model: SegmentationModel,
    runs: list[Callable[[], Run]],
    files: list[Path],
    size: Size | None,
) -> dict[str, Any]:
    """The worst comparison of what was written with ours."""
    if not files:
        raise UserError("There is no image to compare on; name some with --images.")
    found = [compare(model, run(), (read_image(file) for file in files), size=size) for run in runs]
    return {
        "equal_pixels": min(result["equal_pixels"] for result in found),
        "max_abs_difference": max(result["max_abs_difference"] for result in found),
        "images": len(files),
    }
