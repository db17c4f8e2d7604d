"""All measurements of ``u2pl bench``, and their result as plain values and as a page."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from u2pl.bench import inputs, memory, steps
from u2pl.bench.clock import Clock, in_turns, ratio
from u2pl.bench.inputs import Source
from u2pl.bench.kernels import kernel_time
from u2pl.bench.loops import Loops
from u2pl.bench.method import Method, RecordedMethod
from u2pl.bench.predicting import predicting
from u2pl.bench.shapes import step_peaks
from u2pl.bench.workload import CITYSCAPES, VOC, Inputs, Workload, make_inputs
from u2pl.config import Config
from u2pl.data.sources import Dataset, default_colors
from u2pl.doctor import devices, versions
from u2pl.errors import UserError

PARTS = ("method", "step", "predict", "input")
"""What can be measured: the method alone, whole steps and evaluation, prediction, the loader."""
RATIOS = (
    "method_vs_loops_voc513",
    "method_vs_loops_city769",
    "step_vs_networks",
    "step_vs_bare",
    "predict_vs_bare_forward",
    "evaluation_share",
    "input_vs_step",
)


def bench(
    *,
    parts: Sequence[str] = PARTS,
    repetitions: int = 5,
    overrides: Mapping[str, Any] | None = None,
    workloads: Sequence[Workload] = (VOC, CITYSCAPES),
    device: str | None = None,
    run: Path | None = None,
    on_part: Callable[[str], None] = lambda _: None,
    on_result: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure, each ratio within one run, the two sides of it in turns.

    Args:
        parts: of :data:`PARTS`.
        repetitions: of each timed work, after one that does not count.
        overrides: settings of the whole steps and of the input, by dotted key.
        workloads: of the part ``method``.
        device: ``cpu`` or ``cuda``; None takes a GPU where there is one.
        run: folder whose images and settings the part ``input`` measures; None paints images.
        on_part: called with what is measured next.
        on_result: called after each part with the result so far.

    Returns:
        ``ratios`` (None where not measured), ``spread`` (least and largest of the turns),
        ``phases`` (milliseconds by phase), ``phase_memory`` (bytes by phase), ``seconds``,
        ``memory`` (bytes), ``gpu`` (kernels and the milliseconds that they take together; None on
        a CPU), ``input`` (images a second of the loader and of the step, milliseconds by phase),
        ``host_syncs_per_step``, ``device``, ``threads``, ``versions`` and ``commit``.

    Raises:
        UserError: (exit status 2) for an unknown part, setting or device.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or repetitions < 1:
        raise UserError(
            f"Expected parts of {', '.join(PARTS)} and at least one repetition, got "
            f"'{', '.join(parts)}' and {repetitions}.",
            exit_code=2,
        )
    place = choose_device(device)
    result: dict[str, Any] = {
        "ratios": dict.fromkeys(RATIOS),
        "spread": {},
        "phases": {},
        "phase_memory": {},
        "seconds": {},
        "memory": {},
        "gpu": {},
        "input": {},
        "host_syncs_per_step": None,
        "repetitions": repetitions,
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "machine": devices(),
        "commit": commit(),
    }
    if "method" in parts:
        for workload in workloads:
            on_part(f"the method alone, {workload.name}")
            measure_method(result, workload, place, repetitions)
            on_result(result)
    if "step" in parts:
        on_part("whole steps")
        measure_steps(result, place, repetitions, dict(overrides or {}))
        on_result(result)
    if "predict" in parts:
        on_part("prediction")
        with predicting(place) as works:
            found = in_turns(works, repetitions=repetitions)
        note(result, "predict_vs_bare_forward", found["forward"], found["predict"])
        result["seconds"]["predict"] = {n: statistics.median(each) for n, each in found.items()}
        on_result(result)
    if "input" in parts:
        on_part("the loader")
        with inputs.sources(run, place, dict(overrides or {})) as sources:
            measure_input(result, sources, place, repetitions)
        on_result(result)
    return result


def choose_device(name: str | None) -> torch.device:
    """The device to measure on."""
    if name not in (None, "cpu", "cuda"):
        raise UserError(f"Expected the device cpu or cuda, got '{name}'.", exit_code=2)
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("There is no GPU here that torch can use; take --device cpu.", exit_code=2)
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def note(result: dict[str, Any], name: str, slow: list[float], fast: list[float]) -> None:
    """Keep the ratio of the medians, and how far the turns lie apart."""
    found = ratio(slow, fast)
    result["ratios"][name] = found["median"]
    result["spread"][name] = [found["least"], found["largest"]]


def measure_method(
    result: dict[str, Any], workload: Workload, device: torch.device, repetitions: int
) -> None:
    """Thresholds, masks, prototypes, queues and contrast: ours, and the same work in loops."""
    tensors = make_inputs(workload, device)
    works: dict[str, Method | Loops] = {
        "method": Method(workload, tensors),
        "loops": Loops(workload, tensors),
    }
    clocks: dict[str, list[Clock]] = {name: [] for name in works}

    def run(name: str) -> float:
        clock = Clock(device)
        works[name].run(clock)
        clocks[name].append(clock)
        return clock.total

    for work in works.values():
        work.fill_queues()
    turns: dict[str, Callable[[], float]] = {name: partial(run, name) for name in works}
    method = Method(workload, tensors)
    method.fill_queues()
    if device.type == "cuda":
        turns["recorded"] = RecordedMethod(method).run
    found = in_turns(turns, repetitions=repetitions)
    ours = found.get("recorded", found["method"])  # as training does it
    note(result, f"method_vs_loops_{workload.name}", found["loops"], ours)
    computed = {
        name: statistics.median(clock.cpu_seconds for clock in clocks[name][1:]) for name in works
    }
    result["seconds"][workload.name] = {
        name: {"wall": statistics.median(found[name]), "cpu": computed[name]} for name in works
    }
    if "recorded" in found:
        result["seconds"][workload.name]["recorded"] = {
            "wall": statistics.median(found["recorded"])
        }
    result["phases"][workload.name] = {
        name: {
            phase: 1000 * statistics.median(clock.seconds[phase] for clock in clocks[name][1:])
            for phase in clocks[name][-1].seconds
        }
        for name in works
    }
    result["phase_memory"][workload.name] = {
        name: peaks_of(work, tensors) for name, work in works.items()
    }
    result["memory"][workload.name] = {
        "queue_bytes": sum(workload.capacities) * workload.feature_size * 4,
        "method_peak_bytes": memory.peak_bytes(method.run, device),
    }
    busy = kernel_time(method.run, device)
    result["gpu"][workload.name] = {"method": busy}


def peaks_of(work: Method | Loops, inputs: Inputs) -> dict[str, int]:
    """The most bytes held in each phase, beyond inputs, queues and prototypes."""
    phases = memory.PhaseMemory([*vars(inputs).values(), *work.kept])
    work.run(phases)
    return phases.peaks


def measure_steps(
    result: dict[str, Any], device: torch.device, repetitions: int, overrides: dict[str, Any]
) -> None:
    """Whole steps with and without contrast, their memory, and an evaluation's share."""
    kinds = steps.step_kinds(device, overrides)
    config = kinds["method"].config
    classes = tuple(str(class_id) for class_id in range(steps.NUM_CLASSES))
    dataset = Dataset(Path("bench"), classes, default_colors(steps.NUM_CLASSES))
    works: dict[str, Callable[[], float]] = {name: one.run for name, one in kinds.items()}
    for name, in_between in (("evaluation", True), ("last evaluation", False)):
        works[name] = steps.evaluation_work(kinds["method"], dataset, in_between=in_between)
    found = in_turns(works, repetitions=repetitions)
    note(result, "step_vs_networks", found["method"], found["networks"])
    note(result, "step_vs_bare", found["method"], found["bare"])
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    result["seconds"]["step"] = medians
    result["ratios"]["evaluation_share"] = steps.evaluation_share(
        medians["method"], medians["evaluation"], medians["last evaluation"], config
    )
    result["host_syncs_per_step"] = kinds["method"].host_syncs()
    peaks = {
        name: memory.peak_bytes(partial(one.step, recorded=False), device)
        for name, one in kinds.items()
    }
    queues = {"queue_bytes": memory.queue_bytes(steps.NUM_CLASSES, config)}
    by_shapes = step_peaks(overrides)
    for name, found_peaks in (("step", peaks), ("step as a GPU makes it, by shapes", by_shapes)):
        result["memory"][name] = queues | {
            f"{kind}_peak_bytes": found_peaks[kind] for kind in kinds
        }
    result["gpu"]["step"] = {name: kernel_time(one.run, device) for name, one in kinds.items()}
    result["step"] = describe_step(config)


def measure_input(
    result: dict[str, Any], sources: Sequence[Source], device: torch.device, repetitions: int
) -> None:
    """The loader alone against the need of the step; the ratio kept is that of the first source."""
    first = sources[0]  # all have one configuration
    config, workers = first.config, inputs.loader_processes(first.config)
    step = steps.Steps(config, device, num_classes=first.dataset.num_classes)
    loadings = {
        source.name: inputs.Loading(source, device, workers=workers, num_batches=4 * (workers + 1))
        for source in sources
    }
    works = {name: loading.run for name, loading in loadings.items()} | {"step": step.run}
    found = in_turns(works, repetitions=repetitions)
    note(result, "input_vs_step", found["step"], found[first.name])
    for name, loading in loadings.items():
        result["input"][name] = {
            "images_per_second": {
                "loader": loading.images_per_batch / statistics.median(found[name]),
                "step": loading.images_per_batch / statistics.median(found["step"]),
            },
            "workers": workers,
            "milliseconds": loading.phases(),
            "step": describe_step(config, first.dataset.num_classes),
        }


def describe_step(config: Config, num_classes: int = steps.NUM_CLASSES) -> str:
    """What the whole step is of."""
    model, data = config.model, config.data
    return (
        f"{model.encoder}, {model.decoder}, stride {model.output_stride}, "
        f"{data.batch_labeled} + {data.batch_unlabeled} crops of {data.crop[0]}x{data.crop[1]}, "
        f"{num_classes} classes"
    )


def commit() -> str | None:
    """The commit of the checkout that this package lies in; None where it is installed."""
    git = Path(__file__).resolve().parents[3] / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head[:12]
        name = head.removeprefix("ref: ")
        if (git / name).is_file():
            return (git / name).read_text().strip()[:12]
        packed = [line.split() for line in (git / "packed-refs").read_text().splitlines()]
    except (OSError, UnicodeDecodeError):
        return None
    return next((line[0][:12] for line in packed if line[1:] == [name]), None)
