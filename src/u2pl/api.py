"""What the commands do, as Python calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from u2pl.config import Config, load_config
from u2pl.data.check import quick_check
from u2pl.data.sources import Dataset, load_dataset
from u2pl.engine.checkpoint import write_json
from u2pl.engine.evaluate import Evaluation
from u2pl.engine.evaluate import evaluate as evaluate_models
from u2pl.engine.loop import Progress, check_against_data, fit
from u2pl.engine.pictures import DEFAULT_KINDS
from u2pl.engine.predict import find_images, predict_images
from u2pl.engine.run_folder import RunFolder
from u2pl.engine.tiles import Tiling
from u2pl.engine.trained import SegmentationModel, load_model
from u2pl.engine.world import ALONE, World, joined
from u2pl.errors import UserError
from u2pl.exporting import export_run
from u2pl.recipes import SETTINGS, get_recipe
from u2pl.weak import make_seeds

logger = logging.getLogger(__name__)


def make_config(
    recipe: str = "default",
    *,
    setting: str | None = None,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """A recipe with a setting, a seed and single numbers changed.

    Args:
        recipe: a recipe's name, or a path to a YAML file of settings.
        setting: ``semi``; ``adapt``, where labelled and unlabelled images are of two domains;
            ``weak``, which first makes seed masks from image tags; or
            ``supervised``, which leaves the unlabelled images out. None keeps the recipe's.
        seed: of every random draw; None keeps the recipe's.
        overrides: by dotted key, such as ``{"train.steps": 2000}``; they win over the rest.

    Raises:
        UserError: for an unknown recipe, setting or key, or a value out of range.
    """
    is_file = recipe.endswith((".yaml", ".yml"))
    config = load_config(Path(recipe)) if is_file else get_recipe(recipe)
    setting = setting or config.setting
    if setting not in SETTINGS:
        raise UserError(
            f"Expected a setting of {', '.join(SETTINGS)}, got '{setting}'.", exit_code=2
        )
    for name in ("setting", "recipe"):
        if name in (overrides or {}):
            raise UserError(f"Give the {name} as --{name}, not as {name}=….", exit_code=2)
    changes: dict[str, Any] = {"setting": setting}
    # what a file says of itself stands, but a supervised run never sees unlabelled images
    if setting != config.setting or setting == "supervised":
        changes |= SETTINGS[setting]
    if seed is not None:
        changes["train.seed"] = seed
    return config.with_overrides(changes | dict(overrides or {}))


def train(
    dataset: str | Path,
    *,
    recipe: str = "default",
    out: str | Path,
    setting: str | None = None,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_evaluation: Callable[[int, dict[str, Evaluation]], None] = lambda *_: None,
    on_seeds: Callable[[str, int, int], None] = lambda *_: None,
    world: World = ALONE,
) -> dict[str, Any]:
    """Check a data set, train on it, and leave a run folder.

    Args:
        dataset: a dataset.yaml, or its folder.
        recipe: see :func:`make_config`.
        out: the run folder; it must not hold a run yet, unless ``resume``.
        setting: see :func:`make_config`.
        seed: see :func:`make_config`.
        overrides: see :func:`make_config`.
        resume: go on from the run's last checkpoint with the run's own settings; of
            ``overrides`` only ``train.stop_after`` may be given.
        on_progress: called with each row of training metrics.
        on_evaluation: called with each evaluation.
        on_seeds: called on the way from tags to seeds; see :func:`u2pl.weak.make_seeds`.
        world: which process of several this one is; each makes the same call. The command line
            finds out by itself under torchrun and SLURM.

    Returns:
        The last evaluation; see :func:`u2pl.engine.loop.fit`.

    Raises:
        UserError: for whatever the user can mend, before training starts where it can be known.
    """
    folder = RunFolder(Path(out))
    if resume:
        config = resumed_config(folder, overrides or {})
    else:
        config = make_config(recipe, setting=setting, seed=seed, overrides=overrides)
    is_weak = config.setting == "weak"
    data = load_dataset(dataset, require=("unlabeled" if is_weak else "labeled", "val"))
    check_against_data(config, data)
    quick_check(data)
    if config.setting != "supervised" and not data.unlabeled:
        logger.warning("%s has no unlabelled images: training sees the labels alone.", data.path)
    with joined(world):
        if is_weak:
            # the first process makes the seeds; the others wait and find them made
            for turn in (True, False):
                if world.is_first is turn:
                    made = resume or not turn
                    data = make_seeds(config, data, folder, resume=made, on_progress=on_seeds)
                world.wait()
            resume = True  # the folder is there
        return fit(
            config,
            data,
            folder,
            resume=resume,
            on_progress=on_progress,
            on_evaluation=on_evaluation,
            world=world,
        )


def resumed_config(folder: RunFolder, overrides: Mapping[str, Any]) -> Config:
    """The settings a run was started with.

    Raises:
        UserError: where there is no run, or an override would change what was begun.
    """
    other = [key for key in overrides if key != "train.stop_after"]
    if other:
        raise UserError(
            f"A resumed run keeps its settings; '{other[0]}' cannot be changed now. "
            "Only train.stop_after can.",
            exit_code=2,
        )
    config = folder.read_config()
    folder.refuse_links()
    return config.with_overrides({"train.stop_after": overrides.get("train.stop_after")})


def load(
    run: str | Path, *, weights: str = "ema", checkpoint: str = "last", device: str | None = None
) -> SegmentationModel:
    """Rebuild a run's network: ``mask, entropy, reliable = load("runs/a").predict("a.jpg")``.

    Args:
        run: the run folder.
        weights: ``ema`` (the teacher) or ``student``.
        checkpoint: ``last`` or ``best``.
        device: None takes a GPU where there is one.

    Raises:
        UserError: where there is no finished run.
    """
    if weights not in ("ema", "student") or checkpoint not in ("last", "best"):
        raise UserError(
            f"Expected weights ema or student and checkpoint last or best, got '{weights}' and "
            f"'{checkpoint}'.",
            exit_code=2,
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_model(Path(run), weights=weights, checkpoint=checkpoint, device=device)


def predict(
    run: str | Path,
    source: str | Path,
    *,
    out: str | Path,
    save: Iterable[str] = DEFAULT_KINDS,
    weights: str = "ema",
    checkpoint: str = "last",
    resume: bool = False,
    skip_damaged: bool = False,
    tile: int = Tiling.size,
    overlap: int = Tiling.overlap,
    every: int = 1,
    on_image: Callable[[int, int], None] = lambda *_: None,
    world: World = ALONE,
) -> dict[str, Any]:
    """Label images and write the results as PNG, with a ``manifest.jsonl`` of what is whole.

    Args:
        run: the run folder.
        source: an image, folder, glob pattern, list (.txt) or video.
        out: gets a folder for each kind of picture.
        save: of ``masks``, ``colors``, ``overlays``, ``entropy`` and ``reliable``.
        weights: ``ema`` or ``student``.
        checkpoint: ``last`` or ``best``.
        resume: pass over images whose results are whole.
        skip_damaged: count images that cannot be read, and go on.
        tile: side in pixels of the tiles that a large image is cut into, a multiple of 32; 0
            sees every image at once.
        overlap: pixels that neighbouring tiles share, a multiple of 32.
        every: of a video, label each so many frames.
        on_image: called with images done and images in all.
        world: which process of several this is; each makes the same call.

    Returns:
        See :func:`u2pl.engine.predict.predict_images`.

    Raises:
        UserError: where run, source or options do not fit.
    """
    tiling = Tiling(size=tile, overlap=overlap)
    device = f"cuda:{world.device}" if torch.cuda.is_available() and world.size > 1 else None
    model = load(run, weights=weights, checkpoint=checkpoint, device=device)
    return predict_images(
        model,
        Path(source),
        Path(out),
        kinds=save,
        on_image=on_image,
        tiling=tiling,
        every=every,
        manifest=True,
        resume=resume,
        skip_damaged=skip_damaged,
        world=world,
    )


def export(
    run: str | Path,
    *,
    format: str = "onnx",
    out: str | Path | None = None,
    weights: str = "ema",
    checkpoint: str = "last",
    verify: bool = False,
    images: str | Path | None = None,
    num_images: int = 16,
) -> dict[str, Any]:
    """Write a run's network as a file that other programs run.

    Args:
        run: the run folder.
        format: ``onnx``, ``pt2`` (torch.export), ``safetensors``, or ``hf``, a folder for the
            Hugging Face Hub.
        out: the folder of the files; None takes ``export/FORMAT`` in the run folder.
        weights: ``ema`` or ``student``.
        checkpoint: ``last`` or ``best``.
        verify: compare masks and logits with u2pl's own.
        images: to compare on: a file, folder, glob pattern or list; None takes the run's val
            images.
        num_images: compare on the first so many.

    Returns:
        ``format``, ``files``, ``size``, ``smallest_side``, ``encoder_license``; with ``verify``
        also ``equal_pixels`` (a fraction), ``max_abs_difference`` (of logits), ``images``.

    Raises:
        UserError: where run, format or images do not fit, or a package is missing.
    """
    folder, files = RunFolder(Path(run)), None
    if num_images < 1:
        raise UserError(f"Expected at least 1 image to compare on, got {num_images}.", exit_code=2)
    if verify and images is not None:
        files = find_images(Path(images))[1][:num_images]
    elif verify:
        data = load_dataset(folder.dataset, require=("val",))
        files = [sample.image for sample in data.val[:num_images]]
    target = folder.path / "export" / format if out is None else Path(out)
    if out is None:
        folder.refuse_links()
    return export_run(
        folder.path, target, format=format, weights=weights, checkpoint=checkpoint, images=files
    )


def evaluate(
    run: str | Path,
    *,
    dataset: str | Path | None = None,
    split: str = "val",
    protocol: str | None = None,
    weights: str = "ema",
    checkpoint: str = "last",
) -> dict[str, Any]:
    """Score a run's network on a split.

    Args:
        run: the run folder.
        dataset: a dataset.yaml with the same classes; None takes the run's own.
        split: ``val`` or ``test``.
        protocol: ``whole`` or ``slide``; None takes the run's own.
        weights: ``ema`` or ``student``.
        checkpoint: ``last`` or ``best``.

    Returns:
        ``miou`` and ``iou`` in percent, ``protocol``, ``weights``, ``step``, ``images``,
        ``split_sha256``, ``confusion``; also written to ``eval/`` in the run folder.

    Raises:
        UserError: where run, split or classes do not fit.
    """
    folder = RunFolder(Path(run))
    config = folder.read_config()
    folder.refuse_links()
    if protocol is not None:
        config = config.with_overrides({"evaluation.protocol": protocol})
    model = load(run, weights=weights, checkpoint=checkpoint)
    if split not in ("val", "test"):
        raise UserError(f"Expected the split val or test, got '{split}'.", exit_code=2)
    data: Dataset = load_dataset(folder.dataset if dataset is None else dataset, require=(split,))
    if data.classes != model.classes:
        raise UserError(
            f"The run's classes are {', '.join(model.classes)}; {data.path} has "
            f"{', '.join(data.classes)}."
        )
    scores = evaluate_models(
        {"model": model.network},
        data.sections[split],
        data,
        config,
        device=model.network.mean.device,
    )
    result = scores["model"].to_json(weights=weights, step=model.card.step)
    result |= {"split": split, "checkpoint": checkpoint}
    name = f"{split}-{result['protocol']}-{weights}-{checkpoint}.json"
    write_json(folder.path / "eval" / name, result)
    return result
