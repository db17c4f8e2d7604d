from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from records import NAMES, scores_of, write, write_run
from u2pl.errors import UserError
from u2pl.report.compare import compare_records, difference, paired_interval, statement
from u2pl.report.record import Record, read_record


def records(folder: Path, scores: dict[float, dict[int, float]], **options: Any) -> list[Record]:
    """Runs by weight of the contrast and by seed, with these mIoU."""
    return [
        read_record(
            write_run(
                folder / f"{weight}-{seed}",
                seed=seed,
                miou=miou,
                method__contrastive_weight=weight,
                **options,
            )
        )
        for weight, by_seed in scores.items()
        for seed, miou in by_seed.items()
    ]


def test_runs_that_differ_in_the_seed_alone_are_one_group(tmp_path: Path) -> None:
    scores = {0.0: {0: 50.0, 1: 52.0, 2: 54.0}, 0.1: {0: 53.0, 1: 54.0, 2: 58.0}}
    result = compare_records(records(tmp_path, scores))
    first, second = result["groups"]
    assert (first["n"], first["mean"], first["deviation"]) == (3, 52.0, 2.0)
    assert (second["mean"], second["deviation"]) == (55.0, pytest.approx(7**0.5))
    assert first["label"] == "semi, method.contrastive_weight=0.0"
    assert second["settings"] == {"method.contrastive_weight": 0.1}
    assert first["iou"] == {"sky": 52.0, "road": 52.0, "car": None}
    (item,) = result["differences"]
    assert item["differences"] == [3.0, 2.0, 4.0]
    # mean 3, deviation 1, t of 2 degrees of freedom 4.303
    assert item["interval"] == pytest.approx([3 - 4.303 / 3**0.5, 3 + 4.303 / 3**0.5])
    assert item["statement"].endswith("ahead by more than the seeds differ.")
    assert json.loads(json.dumps(result))["runs"][0]["miou_student"] == 49.0


def test_two_seeds_are_too_few_to_say(tmp_path: Path) -> None:
    result = compare_records(records(tmp_path, {0.0: {0: 50.0, 1: 50.1}, 0.1: {0: 70.0, 1: 70.1}}))
    (item,) = result["differences"]
    assert item["interval"] is None
    assert item["statement"] == (
        "+20.00 on 2 common seeds, ahead on 2 of them: too few seeds to say."
    )


def test_only_common_seeds_are_compared(tmp_path: Path) -> None:
    result = compare_records(records(tmp_path, {0.0: {0: 50.0, 7: 90.0}, 0.1: {0: 51.0, 9: 10.0}}))
    (item,) = result["differences"]
    assert (item["seeds"], item["differences"]) == ([0], [1.0])
    assert "on 1 common seed," in item["statement"]
    nothing = difference({"label": "a", "seeds": {1: 5.0}}, {"label": "b", "seeds": {2: 5.0}})
    assert nothing["mean"] is None
    assert nothing["statement"] == "No seed in common: nothing can be said of the pair."


def test_difference_that_seeds_could_make_is_called_none() -> None:
    gaps = [3.0, -2.0, 1.0]
    said = statement(gaps, paired_interval(gaps))
    assert said.startswith("+0.67 on 3 common seeds, ahead on 2 of them; 95 % interval ")
    assert said.endswith("no difference that stands out from that between seeds.")
    lower = [-1.0, -1.1, -0.9]
    said = statement(lower, paired_interval(lower))
    assert said.endswith("behind by more than the seeds differ.")


@pytest.mark.parametrize(
    ("n", "t"), [(3, 4.303), (5, 2.776), (11, 2.228), (31, 2.042), (40, 2.042)]
)
def test_interval_has_students_t(n: int, t: float) -> None:
    gaps = [float(i % 2) for i in range(n)]
    mean = sum(gaps) / n
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / (n - 1)) ** 0.5
    interval = paired_interval(gaps)
    assert interval is not None
    low, high = interval
    assert (high - low) / 2 == pytest.approx(t * deviation / n**0.5)
    assert (high + low) / 2 == pytest.approx(mean)


def test_equal_differences_have_an_interval_of_no_width() -> None:
    assert paired_interval([1.0, 1.0, 1.0]) == (1.0, 1.0)


def test_repeated_seed_counts_once(tmp_path: Path) -> None:
    again = read_record(write_run(tmp_path / "again", miou=54.0, method__contrastive_weight=0.0))
    result = compare_records([*records(tmp_path, {0.0: {0: 50.0, 1: 60.0}}), again])
    (group,) = result["groups"]
    assert (group["n"], len(group["runs"]), group["mean"]) == (2, 3, 56.0)
    assert group["seeds"] == {0: 52.0, 1: 60.0}


def test_bookkeeping_does_not_part_a_group(tmp_path: Path) -> None:
    runs = [
        read_record(write_run(tmp_path / "a", train__log_every=5)),
        read_record(write_run(tmp_path / "b", seed=1, data__num_workers=1)),
    ]
    result = compare_records(runs)
    assert len(result["groups"]) == 1
    assert result["differences"] == []


def test_groups_have_short_names_that_differ(tmp_path: Path) -> None:
    many = {"optimizer__lr": 9e-4, "train__steps": 41, "method__num_anchors": 9}
    runs = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", data__flip=False, **many),
        write_run(tmp_path / "c", data__flip=False, **(many | {"method__num_negatives": 9})),
    ]
    labels = [group["label"] for group in compare_records(list(map(read_record, runs)))["groups"]]
    assert len(set(labels)) == 3
    assert all(label.startswith("semi, ") and label.endswith(" more") for label in labels[:2])


def test_what_makes_runs_hard_to_compare_is_noted(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    tree = json.loads((runs[1] / "eval/val.json").read_text())
    tree["ema"]["split_sha256"] = "1" * 64
    tree["ema"]["protocol"] = "slide"
    tree["finished"] = False
    (runs[1] / "eval/val.json").write_text(json.dumps(tree))
    (runs[1] / "environment.json").write_text('{"split_sha256": {"labeled": "2"}}')
    notes = " ".join(compare_records([read_record(run) for run in runs])["notes"])
    for words in ("list of images", "protocol", "list of labelled images", "to the end: b."):
        assert words in notes, words


def test_several_comparisons_are_warned_of(tmp_path: Path) -> None:
    result = compare_records(records(tmp_path, {0.0: {0: 1.0}, 0.1: {0: 1.0}, 0.2: {0: 1.0}}))
    assert any("one in twenty" in note for note in result["notes"])


def test_run_that_has_not_ended_is_refused(tmp_path: Path) -> None:
    runs = [
        read_record(write_run(tmp_path / "a")),
        read_record(write_run(tmp_path / "b", ended=False)),
    ]
    with pytest.raises(UserError) as caught:
        compare_records(runs)
    assert str(caught.value) == (
        f"{tmp_path / 'b'} has no eval/val.json yet, which is written when training ends; leave "
        "the run out."
    )


def test_one_run_is_nothing_to_compare(tmp_path: Path) -> None:
    run = read_record(write_run(tmp_path / "a"))
    with pytest.raises(UserError, match="Expected at least two runs to compare, got 1") as caught:
        compare_records([run])
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="stands there twice"):
        compare_records([run, run])


def test_named_result_is_compared_over_seeds(tmp_path: Path) -> None:
    """As `u2pl evaluate` leaves it, on another split by another protocol than the training."""
    scores = {0.0: {0: 50.0, 1: 52.0, 2: 54.0}, 0.1: {0: 53.0, 1: 54.0, 2: 58.0}}
    runs, name = records(tmp_path, scores), "test-slide-24-ema-best"
    for i, run in enumerate(runs):
        own = scores_of(NAMES, miou=30.0 + i, step=20) | {"protocol": "slide"}
        write(run.path / "eval" / f"{name}.json", own)
    result = compare_records(runs, name)
    assert result["scored"] == name
    first, second = result["groups"]
    assert (first["mean"], first["deviation"], first["mean_student"]) == (31.0, 1.0, None)
    assert second["seeds"] == {0: 33.0, 1: 34.0, 2: 35.0}
    assert first["iou"]["sky"] == 31.0
    assert {row["step"] for row in result["runs"]} == {20}


def test_windows_of_other_sizes_are_another_protocol(tmp_path: Path) -> None:
    runs = records(tmp_path, {0.0: {0: 50.0, 1: 52.0}})
    for crop, run in zip((24, 32), runs, strict=True):
        numbers = {"protocol_settings": {"crop": [crop, crop]}}
        write(run.path / "eval" / "a.json", scores_of(NAMES) | numbers)
    assert "The runs were not scored by the same protocol." in compare_records(runs, "a")["notes"]


@pytest.mark.parametrize("name", ["none", "../config", "", "a/b"])
def test_result_that_a_run_lacks_is_told(tmp_path: Path, name: str) -> None:
    runs = records(tmp_path, {0.0: {0: 50.0, 1: 52.0}})
    with pytest.raises(UserError, match=rf"has no eval/{name}\.json; name a file of eval/"):
        compare_records(runs, name)
