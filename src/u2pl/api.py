"""What the commands do, as Python calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from u2pl.app.desk import Desk, find_runs
from u2pl.app.server import serve
from u2pl.config import Config, load_config
from u2pl.data.check import quick_check
from u2pl.data.sources import Dataset, Sample, load_dataset, with_masks_of
from u2pl.engine.checkpoint import write_json
from u2pl.engine.evaluate import Evaluation
from u2pl.engine.evaluate import evaluate as evaluate_models
from u2pl.engine.inspection import inspect_run
from u2pl.engine.loop import Progress, check_against_data, fit
from u2pl.engine.pictures import DEFAULT_KINDS
from u2pl.engine.predict import find_images, predict_images
from u2pl.engine.protocol import protocol_settings, scored_classes
from u2pl.engine.run_folder import RunFolder
from u2pl.engine.tiles import Tiling
from u2pl.engine.trained import ModelCard, SegmentationModel, load_model
from u2pl.engine.world import ALONE, World, joined
from u2pl.errors import UserError
from u2pl.exporting import export_run
from u2pl.labeling import LabelOptions, label_images
from u2pl.recipes import SETTINGS, get_method, get_recipe
from u2pl.report import compare_records, read_record, write_comparison, write_report
from u2pl.weak import make_seeds, with_background

logger = logging.getLogger(__name__)


def make_config(
    recipe: str = "default",
    *,
    setting: str | None = None,
    method: str | None = None,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """A recipe with a setting, a method, a seed and single numbers changed.

    Args:
        recipe: a recipe's name, or a path to a YAML file of settings.
        setting: ``semi``; ``adapt``, where labelled and unlabelled images are of two domains;
            ``weak``, which first makes seed masks from image tags; or
            ``supervised``, which leaves the unlabelled images out. None keeps the recipe's.
        method: a name of :data:`u2pl.recipes.METHODS`, such as ``unimatch``, to compare with in
            the same step; None keeps the recipe's.
        seed: of every random draw; None keeps the recipe's.
        overrides: by dotted key, such as ``{"train.steps": 2000}``; they win over the rest.

    Raises:
        UserError: for an unknown recipe, setting, method or key, or a value out of range.
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
    if method is not None:
        if setting == "supervised":
            raise UserError(
                f"A supervised run has no use for the method '{method}'; leave --method out, or "
                "choose another setting.",
                exit_code=2,
            )
        changes |= get_method(method)
    if seed is not None:
        changes["train.seed"] = seed
    return config.with_overrides(changes | dict(overrides or {}))


def train(
    dataset: str | Path,
    *,
    recipe: str = "default",
    out: str | Path,
    setting: str | None = None,
    method: str | None = None,
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
        method: see :func:`make_config`.
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
        config = make_config(recipe, setting=setting, method=method, seed=seed, overrides=overrides)
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
    save: Iterable[str] | None = None,
    server: str | None = None,
    protocol: str | None = None,
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
        save: of ``masks``, ``colors``, ``overlays``, ``entropy`` and ``reliable``; None is all but
            ``colors``, and none of them beside a server's files.
        server: ``voc`` or ``cityscapes``: write the folder that this test server takes.
        protocol: such as ``slide-769`` or ``whole-ms-flip``; None takes the run's own.
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
    if protocol is not None:
        model.card = seen_otherwise(model.card, protocol)
    if save is None:
        save = DEFAULT_KINDS if server is None else ()
    return predict_images(
        model,
        Path(source),
        Path(out),
        kinds=save,
        server=server,
        on_image=on_image,
        tiling=tiling,
        every=every,
        manifest=True,
        resume=resume,
        skip_damaged=skip_damaged,
        world=world,
    )


def seen_otherwise(card: ModelCard, protocol: str) -> ModelCard:
    """What a network's answers mean where it sees images by another protocol.

    Raises:
        UserError: (exit status 2) for a name that is none, or one that does not see whole images.
    """
    named = protocol_settings(protocol)
    if named["evaluation.protocol"] == "center-crop":
        raise UserError(
            "center-crop scores the middle of an image and says nothing of the rest; predict by "
            "whole or slide.",
            exit_code=2,
        )
    return replace(card, **{key.removeprefix("evaluation."): named[key] for key in named})


def label(
    run: str | Path,
    images: str | Path,
    *,
    out: str | Path,
    format: str = "png",
    top: int | None = None,
    max_entropy: float | None = None,
    simplify: float = LabelOptions.simplify,
    min_area: float = LabelOptions.min_area,
    url: str = LabelOptions.url,
    weights: str = "ema",
    checkpoint: str = "last",
    resume: bool = False,
    skip_damaged: bool = False,
    on_image: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Write pseudo-labels for annotators, unreliable pixels unlabelled, and what to label next.

    Args:
        run: the run folder.
        images: an image, folder, glob pattern or list (.txt). Those that stand in ``labeled``,
            ``val`` or ``test`` of the run's data set are left out.
        out: gets ``masks/``, the format's files, ``ranking.csv`` and ``ranking.html``.
        format: ``png``, ``coco``, ``cvat``, ``labelstudio`` or ``yolo``.
        top: hand out so many images, the first of the ranking; None hands out all.
        max_entropy: γ in nats, above which a pixel is unreliable; None takes the run's.
        simplify: pixels that a polygon may lie off the outline.
        min_area: parts of fewer pixels have no polygon.
        url: what stands before an image's path in Label Studio's tasks.
        weights: ``ema`` or ``student``.
        checkpoint: ``last`` or ``best``.
        resume: pass over images whose labels are whole.
        skip_damaged: count images that cannot be read, and go on.
        on_image: called with images done and images in all.

    Returns:
        See :func:`u2pl.labeling.label.label_images`.

    Raises:
        UserError: where run, images or options do not fit.
    """
    options = LabelOptions(
        format=format,
        top=top,
        max_entropy=max_entropy,
        simplify=simplify,
        min_area=min_area,
        url=url,
        resume=resume,
        skip_damaged=skip_damaged,
    ).checked()
    model = load(run, weights=weights, checkpoint=checkpoint)
    return label_images(model, Path(run), Path(images), Path(out), options, on_image=on_image)


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
        files = [sample.file for sample in data.val[:num_images]]
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
    all_weights: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score a run's network on a split.

    Args:
        run: the run folder.
        dataset: a dataset.yaml with the same classes; None takes the run's own.
        split: ``val`` or ``test``.
        protocol: such as ``whole``, ``slide-769``, ``center-crop-513`` or ``slide-ms-flip``; None
            takes the run's own. See :func:`u2pl.engine.protocol.protocol_settings`.
        weights: ``ema`` or ``student``.
        checkpoint: ``last`` or ``best``.
        all_weights: score teacher and student of the last and the best checkpoint side by side.
        overrides: by dotted key, of the group ``evaluation`` alone; they win over the protocol.

    Returns:
        ``miou`` and ``iou`` in percent, ``protocol`` and ``protocol_settings``, ``weights``,
        ``checkpoint``, ``step``, ``split``, ``images``, ``split_sha256``, ``confusion``; also
        written to ``eval/`` in the run folder. With ``all_weights`` also ``all``, a list of such
        results, each in a file of its own.

    Raises:
        UserError: where run, split, classes or protocol do not fit.
    """
    folder = RunFolder(Path(run))
    config = scoring_config(folder.read_config(), protocol, overrides or {})
    folder.refuse_links()
    if split not in ("val", "test"):
        raise UserError(f"Expected the split val or test, got '{split}'.", exit_code=2)
    asked = (weights, checkpoint)
    keys = dict.fromkeys([asked, *(every_weights(folder) if all_weights else ())])
    models = {key: load(run, weights=key[0], checkpoint=key[1]) for key in keys}
    model = models[asked]
    data: Dataset = load_dataset(folder.dataset if dataset is None else dataset, require=(split,))
    refuse_other_classes(data, model.classes)
    scored_classes(config.evaluation.classes, data.classes)  # refused before anything is scored
    scores = evaluate_models(
        {"-".join(key): loaded.network for key, loaded in models.items()},
        data.sections[split],
        data,
        config,
        device=model.network.mean.device,
    )
    results = {}
    for key, loaded in models.items():
        score = scores["-".join(key)]
        result = score.to_json(weights=key[0], step=loaded.card.step)
        results[key] = result | {"split": split, "checkpoint": key[1]}
        name = score_file(score, split, *key, is_other=dataset is not None)
        write_json(folder.path / "eval" / name, results[key])
    return results[asked] | ({"all": list(results.values())} if all_weights else {})


def scoring_config(config: Config, protocol: str | None, overrides: Mapping[str, Any]) -> Config:
    """A run's settings with another protocol.

    Raises:
        UserError: (exit status 2) where a setting is none of an evaluation's.
    """
    other = [key for key in overrides if not key.startswith("evaluation.")]
    if other:
        raise UserError(
            f"Scoring takes settings of the group evaluation alone; '{other[0]}' belongs to the "
            "training, which is over.",
            exit_code=2,
        )
    named = {} if protocol is None else protocol_settings(protocol)
    return config.with_overrides(named | dict(overrides))


def every_weights(folder: RunFolder) -> list[tuple[str, str]]:
    """Teacher and student of the last checkpoint, and of the best where there is one."""
    checkpoints = ["last", *(["best"] if folder.checkpoint("best").is_file() else [])]
    return [(weights, checkpoint) for checkpoint in checkpoints for weights in ("ema", "student")]


def score_file(
    score: Evaluation, split: str, weights: str, checkpoint: str, *, is_other: bool
) -> str:
    """The name of a result's file: other images, numbers or classes are another file."""
    parts = [split, score.protocol.label]
    if score.scored is not None:
        parts.append(f"{len(score.scored)}classes")
    if is_other:
        parts.append(score.split_sha256[:8])
    return "-".join([*parts, weights, checkpoint]) + ".json"


def inspect(
    run: str | Path,
    *,
    true_masks: str | Path | None = None,
    max_images: int = 500,
    on_image: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Measure a run's teacher where masks are known: its pseudo-labels and negative keys.

    Args:
        run: the folder of a run that has ended; its data set must still be there.
        true_masks: a folder with ``NAME.png`` of unlabelled images, read as the masks of val are,
            which no training has seen; None takes ``weak.true_masks``, or looks at val alone.
        max_images: at most so many of each section, evenly spread.
        on_image: called with images done and images in all.

    Returns:
        What is written to ``eval/inspection.json``; pictures go to ``pictures/inspection/``.

    Raises:
        UserError: where run, data and masks do not fit.
    """
    folder = RunFolder(Path(run))
    config = folder.read_config()
    if max_images < 1:
        raise UserError(f"Expected at least one image, got {max_images}.", exit_code=2)
    data = load_dataset(folder.dataset, require=("val",))
    refuse_other_classes(data, load(run, device="cpu").classes)
    sections = {"val": data.val}
    masks = config.weak.true_masks if true_masks is None else Path(true_masks)
    if masks is not None:
        known = known_samples(data, masks)
        if config.setting == "weak":
            background = config.method.background_class
            known = tuple(with_background(sample, background) for sample in known)
        sections["unlabeled"] = known
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return inspect_run(
        folder, data, sections, device=device, max_images=max_images, on_image=on_image
    )


def known_samples(data: Dataset, masks: Path) -> tuple[Sample, ...]:
    """The unlabelled images of which a folder holds the mask.

    Raises:
        UserError: where there is none.
    """
    known = with_masks_of(data.unlabeled, masks, data.val[0].mask_encoding)
    if not known:
        such = f", such as {data.unlabeled[0].name}.png" if data.unlabeled else ""
        raise UserError(
            f"{masks} holds no mask of an unlabelled image of the run{such}; name another folder."
        )
    return known


def make_report(
    run: str | Path,
    *,
    out: str | Path | None = None,
    look: bool = True,
    true_masks: str | Path | None = None,
    max_images: int = 500,
    on_image: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Write one HTML page about a run, everything inside.

    Args:
        run: the run folder. While training goes on the page has what is known by then.
        out: the file; None takes ``report.html`` in the run folder.
        look: first :func:`inspect` a run that has ended. Without, the page has what an earlier
            inspection found.
        true_masks, max_images, on_image: see :func:`inspect`.

    Returns:
        ``report`` (the path), ``bytes``, ``pictures`` (images shown), ``ended`` (whether training
        has) and ``inspection`` (None where there is none).

    Raises:
        UserError: where there is no run, or run and data do not fit.
    """
    folder = RunFolder(Path(run))
    folder.read_config()
    folder.refuse_links()
    ended = folder.model.is_file()
    inspection = None
    if look and ended:
        inspection = inspect(run, true_masks=true_masks, max_images=max_images, on_image=on_image)
    record = read_record(folder.path)
    if inspection is None and record.inspection is not None:
        inspection = record.inspection.model_dump(mode="json")
    written = write_report(record, folder.path / "report.html" if out is None else Path(out))
    return {**written, "ended": ended, "inspection": inspection}


def compare(
    runs: Sequence[str | Path], *, scores: str | None = None, out: str | Path | None = None
) -> dict[str, Any]:
    """Compare runs that have ended, grouped by their settings without the seed.

    Args:
        runs: run folders; the group of the first is what the others are compared with.
        scores: a result in each run's ``eval/``, without suffix, as :func:`evaluate` left it; None
            takes the last teacher on val, as training scored it.
        out: an HTML page to write; None writes none.

    Returns:
        See :func:`u2pl.report.compare.compare_records`; with a page also ``report``, its path.

    Raises:
        UserError: where a run has not ended, or there are fewer than two.
    """
    result = compare_records([read_record(Path(run)) for run in runs], scores)
    if out is not None:
        result["report"] = write_comparison(result, Path(out))["report"]
    return result


def open_app(
    run: str | Path = "runs",
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    browser: bool = True,
    on_ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Show images through a run in a browser, until Ctrl-C or SIGTERM.

    Args:
        run: the run folder, or a folder of runs to choose from.
        host: the address to listen at; ``0.0.0.0`` lets other machines in, without a password.
        port: None takes the first free one from 7860 on.
        browser: whether to open the page in the system's browser.
        on_ready: called with the page's address.

    Raises:
        UserError: where there is no run that has ended, Gradio is not installed, or the address
            cannot be listened at.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    serve(
        Desk(find_runs(Path(run)), device=device),
        host=host,
        port=port,
        browser=browser,
        on_ready=on_ready,
    )


def refuse_other_classes(data: Dataset, classes: tuple[str, ...]) -> None:
    """Raise UserError where a data set has other classes than a run."""
    if data.classes != classes:
        raise UserError(
            f"The run's classes are {', '.join(classes)}; {data.path} has "
            f"{', '.join(data.classes)}."
        )
