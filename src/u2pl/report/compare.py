"""Several runs side by side: means over seeds, and differences with what can be said of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from u2pl.errors import UserError
from u2pl.report.record import Record, Result, Scores, read_scores

FEWEST_SEEDS = 3
"""Below, an interval of Student's t says next to nothing: with 2 it is 9 deviations wide."""

# Of Student's t with 1 to 30 degrees of freedom, two-sided 95 %. For more, the last is a little
# too wide, which is the careful side.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip

# What does not change what a run learns, or names places that differ from seed to seed.
_BOOKKEEPING = frozenset(
    {
        "recipe",
        "train.seed",
        "train.stop_after",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.log_every",
        "train.watchdog_minutes",
        "data.num_workers",
        "data.cache",
        "data.cache_gigabytes",
        "data.cache_folder",
        "weak.true_masks",
        "weak.seeds_from",
    }
)


@dataclass(frozen=True)
class Ended:
    """A run with the scores to compare.

    Attributes:
        record: the run.
        result: the last evaluation of its training.
        scores: what is compared: the last teacher's, or those of a named result.
        student: the last student's; None of a named result.
        settings: by dotted key, but for the seed and for what is bookkeeping.
    """

    record: Record
    result: Result
    scores: Scores
    student: Scores | None
    settings: dict[str, Any]


def compare_records(records: Sequence[Record], scores: str | None = None) -> dict[str, Any]:
    """Group runs by their settings without the seed, and compare each group with the first.

    Args:
        records: runs with an ``eval/val.json``, at least two.
        scores: a result in the ``eval/`` of each run, without suffix; None takes the last teacher
            on val.

    Returns:
        ``scored`` (what the figures are of), ``runs``, ``groups`` (``label``, ``settings`` in
        which groups differ, ``runs``, ``n`` seeds, ``mean``, ``deviation`` (of a sample; None for
        one seed), ``iou`` by class), ``differences`` of each later group from the first, and
        ``notes`` on what makes the runs hard to compare. docs/reference/cli.md has every key.
        Figures are in percent.

    Raises:
        UserError: for fewer than two runs, one that has no result, or one that stands twice.
    """
    runs = [_ended(record, scores) for record in records]
    _refuse_few(records)
    members: dict[str, list[Ended]] = {}
    for run in runs:
        members.setdefault(repr(sorted(run.settings.items())), []).append(run)
    firsts = [group[0] for group in members.values()]
    settings = [first.settings for first in firsts]
    labels = _labels(settings, [first.record.config.recipe for first in firsts])
    varied = differing(settings)
    groups = [
        _group(label, group, varied) for label, group in zip(labels, members.values(), strict=True)
    ]
    return {
        "scored": scores or "val, last checkpoint",
        "runs": [_row(run) for run in runs],
        "groups": groups,
        "differences": [difference(group, groups[0]) for group in groups[1:]],
        "notes": _notes(runs, len(groups)),
    }


def _ended(record: Record, scores: str | None) -> Ended:
    if record.result is None:
        raise UserError(
            f"{record.path} has no eval/val.json yet, which is written when training ends; leave "
            "the run out."
        )
    settings = flat(record.config.model_dump(mode="json"))
    kept = {key: value for key, value in settings.items() if key not in _BOOKKEEPING}
    if scores is not None:
        return Ended(record, record.result, read_scores(record.path, scores), None, kept)
    return Ended(record, record.result, record.result.ema, record.result.student, kept)


def _refuse_few(records: Sequence[Record]) -> None:
    places = [record.path.resolve() for record in records]
    twice = [place for index, place in enumerate(places) if place in places[:index]]
    if twice:
        raise UserError(f"The run {twice[0]} stands there twice; name it once.", exit_code=2)
    if len(records) < 2:
        raise UserError(
            f"Expected at least two runs to compare, got {len(records)}; name more run folders.",
            exit_code=2,
        )


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key.

    >>> flat({"a": 1, "b": {"c": 2}})
    {'a': 1, 'b.c': 2}
    """
    settings: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            settings |= flat(value, f"{prefix}{key}.")
        else:
            settings[f"{prefix}{key}"] = value
    return settings


def _labels(settings: Sequence[dict[str, Any]], recipes: Sequence[str]) -> list[str]:
    """A name for each group: no longer than it takes to tell them apart.

    The setting; the recipe, where there are several; then, among groups that are alike so far, at
    most three of the values in which they differ.
    """
    several = len(set(recipes)) > 1
    names = [
        f"{recipe}, {one['setting']}" if several else str(one["setting"])
        for one, recipe in zip(settings, recipes, strict=True)
    ]
    labels = []
    for name, one in zip(names, settings, strict=True):
        alike = [
            other for other_name, other in zip(names, settings, strict=True) if other_name == name
        ]
        varied = [f"{key}={one[key]}" for key in differing(alike)]
        more = [f"and {len(varied) - 3} more"] if len(varied) > 3 else []
        labels.append(", ".join([name, *varied[:3], *more]))
    return [
        f"{label} ({labels[: place + 1].count(label)})" if labels.count(label) > 1 else label
        for place, label in enumerate(labels)
    ]


def differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The keys, but for ``setting``, whose values are not the same in all.

    >>> differing([{"setting": "semi", "a": 1, "b": 2}, {"setting": "adapt", "a": 1, "b": 3}])
    ['b']
    """
    return [
        key
        for key in settings[0]
        if key != "setting" and any(other[key] != settings[0][key] for other in settings)
    ]


def _row(run: Ended) -> dict[str, Any]:
    """A run's figures."""
    return {
        "run": str(run.record.path),
        "recipe": run.record.config.recipe,
        "setting": run.record.config.setting,
        "seed": run.record.config.train.seed,
        "step": run.scores.step,
        "finished": run.result.finished,
        "miou": run.scores.miou,
        "miou_student": None if run.student is None else run.student.miou,
        "best": run.result.best.miou if run.result.best.miou >= 0 else None,
    }


def _group(label: str, members: Sequence[Ended], varied: Sequence[str]) -> dict[str, Any]:
    rows = [_row(run) for run in members]
    by_seed = _by_seed(rows, "miou")
    means = list(by_seed.values())
    classes = dict.fromkeys(name for run in members for name in run.scores.iou)
    return {
        "label": label,
        "settings": {key: members[0].settings[key] for key in varied},
        "runs": rows,
        "n": len(means),
        "seeds": by_seed,
        "mean": _mean(means),
        "deviation": stdev(means) if len(means) > 1 else None,
        "mean_student": _mean(list(_by_seed(rows, "miou_student").values())),
        "iou": {
            name: _mean([v for run in members if (v := run.scores.iou.get(name)) is not None])
            for name in classes
        },
    }


def _by_seed(rows: Sequence[dict[str, Any]], key: str) -> dict[int, float]:
    """A figure by seed; where a seed was run several times, their mean."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row[key] is not None:
            found.setdefault(row["seed"], []).append(row[key])
    return {seed: fmean(found[seed]) for seed in sorted(found)}


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def difference(group: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Compare two groups over the seeds that both have.

    Returns:
        ``label``, ``base``, ``seeds`` (those in common), ``differences`` in mIoU, their ``mean``,
        ``deviation`` and 95 % ``interval`` by Student's t (both None where there are too few), and
        a ``statement``.
    """
    seeds = sorted(group["seeds"].keys() & base["seeds"].keys())
    gaps = [group["seeds"][seed] - base["seeds"][seed] for seed in seeds]
    interval = paired_interval(gaps)
    return {
        "label": group["label"],
        "base": base["label"],
        "seeds": seeds,
        "differences": gaps,
        "mean": _mean(gaps),
        "deviation": stdev(gaps) if len(gaps) > 1 else None,
        "interval": None if interval is None else list(interval),
        "statement": statement(gaps, interval),
    }


def paired_interval(gaps: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of a mean of paired differences, by Student's t; None where too few.

    >>> low, high = paired_interval([1.0, 2.0, 3.0])
    >>> round(low, 2), round(high, 2)
    (-0.48, 4.48)
    """
    if len(gaps) < FEWEST_SEEDS:
        return None
    t = _T95[min(len(gaps) - 1, len(_T95)) - 1]
    half = t * stdev(gaps) / math.sqrt(len(gaps))
    return fmean(gaps) - half, fmean(gaps) + half


def statement(gaps: Sequence[float], interval: tuple[float, float] | None) -> str:
    """Say what differences over common seeds show, and no more.

    >>> statement([1.0, 2.0], None)
    '+1.50 on 2 common seeds, ahead on 2 of them: too few seeds to say.'
    """
    if not gaps:
        return "No seed in common: nothing can be said of the pair."
    ahead = sum(gap > 0 for gap in gaps)
    seeds = f"{len(gaps)} common seed{'s' if len(gaps) > 1 else ''}"
    shown = f"{fmean(gaps):+.2f} on {seeds}, ahead on {ahead} of them"
    if interval is None:
        return f"{shown}: too few seeds to say."
    low, high = interval
    shown += f"; 95 % interval {low:+.2f} to {high:+.2f}"
    if low > 0 or high < 0:
        return f"{shown}: {'ahead' if low > 0 else 'behind'} by more than the seeds differ."
    return f"{shown}: no difference that stands out from that between seeds."


def _notes(runs: Sequence[Ended], num_groups: int) -> list[str]:
    """What a reader must know before believing a difference."""
    notes = []
    if len({run.scores.split_sha256 for run in runs}) > 1:
        notes.append("The runs were not scored on the same list of images.")
    if len({(*run.scores.iou, *(run.scores.miou_classes or ())) for run in runs}) > 1:
        notes.append("The runs do not have the same classes.")
    if len({(s.protocol, repr(s.protocol_settings)) for s in (run.scores for run in runs)}) > 1:
        notes.append("The runs were not scored by the same protocol.")
    labeled = {_list_hash(run.record, "labeled") for run in runs}
    if len(labeled) > 1:
        notes.append("The runs were not trained on the same list of labelled images.")
    unfinished = [run.record.name for run in runs if not run.result.finished]
    if unfinished:
        notes.append(f"Not trained to the end: {', '.join(unfinished)}.")
    if num_groups > 2:
        notes.append(
            f"{num_groups - 1} groups are compared with the first: one in twenty intervals misses "
            "by chance, and the best of several looks better than it is."
        )
    notes.append(
        "Intervals take the paired differences as normal, and are about seeds: other images, or "
        "another draw of labelled ones, may differ by more."
    )
    return notes


def _list_hash(record: Record, section: str) -> str | None:
    hashes = record.environment.get("split_sha256")
    value = hashes.get(section) if isinstance(hashes, dict) else None
    return value if isinstance(value, str) else None
