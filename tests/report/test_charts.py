from __future__ import annotations

from pathlib import Path

import plotly.graph_objects
import pytest

from records import write_run
from u2pl.losses import contrastive_floor
from u2pl.report import charts
from u2pl.report.charts import Figure
from u2pl.report.compare import compare_records
from u2pl.report.record import Record, read_record


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return read_record(write_run(tmp_path / "run"))


def test_every_figure_is_one_that_plotly_knows(record: Record, tmp_path: Path) -> None:
    assert record.result is not None
    assert record.inspection is not None
    section = record.inspection.sections["val"]
    other = read_record(write_run(tmp_path / "other", seed=1))
    figures = charts.training_curves(record) | {
        "class_iou": charts.class_iou(record.result),
        "confusion": charts.confusion(record.result),
        "coverage": charts.coverage(record.inspection),
        "precision": charts.precision(section),
        "keys": charts.key_errors(section),
        "groups": charts.seeds_of_groups(compare_records([record, other])["groups"]),
    }
    assert {"losses", "miou", "shares"} <= set(figures)
    for figure in figures.values():
        plotly.graph_objects.Figure(figure)  # raises for a property that there is not
        assert figure["data"]


def lines(figure: Figure) -> dict[str, Figure]:
    return {line["name"]: line for line in figure["data"]}


def test_contrastive_loss_is_drawn_with_its_floor_and_only_while_there_is_contrast(
    record: Record,
) -> None:
    drawn = lines(charts.losses(record))
    contrast = drawn["L_c, contrast"]
    assert contrast["x"] == list(range(11, 41))
    assert set(contrast["y"]) == {2.0}
    method = record.config.method
    floor = contrastive_floor(method.num_negatives, temperature=method.temperature)
    line = drawn[f"floor of L_c, {floor:.3f}"]
    assert line["y"] == [floor, floor]
    assert line["x"] == [11, 40]
    assert len(drawn["L_s, labelled"]["x"]) == 40


def test_shares_are_the_reliable_share_alpha_and_the_queues(record: Record) -> None:
    drawn = lines(charts.shares(record))
    assert {name: set(line["y"]) for name, line in drawn.items()} == {
        "reliable share": {0.8},
        "α_t": {0.2},
        "queue fill": {0.5},
    }


def test_threshold_without_a_number_has_no_chart(record: Record) -> None:
    """Every γ_t in this log is null."""
    assert "threshold" not in charts.training_curves(record)


def test_confusion_is_in_percent_of_the_true_class(record: Record) -> None:
    assert record.result is not None
    (heat,) = charts.confusion(record.result)["data"]
    assert heat["z"][0] == [90.0, 10.0, 0.0]
    assert heat["customdata"][0][1] == ["sky", "road", 10]


def test_long_curve_is_thinned_and_keeps_its_end() -> None:
    rows = [{"step": step} for step in range(4001)]
    kept = charts.thinned(rows, 100)
    assert len(kept) == 100
    assert kept[-1]["step"] == 4000
    assert charts.thinned(rows[:7], 100) == rows[:7]


def test_names_are_no_markup_in_labels(tmp_path: Path) -> None:
    names = ("<b>bold</b>", '<a href="x">', "&amp;")
    record = read_record(write_run(tmp_path / "run", names=names))
    assert record.result is not None
    figure = charts.class_iou(record.result)
    labels = figure["layout"]["yaxis"]["ticktext"]
    assert labels[0] == "&lt;b&gt;bold&lt;/b&gt;"
    assert labels[2] == "&amp;amp;"
    assert not any("<" in label for label in labels)


def test_two_classes_that_look_alike_when_shortened_keep_a_bar_each(tmp_path: Path) -> None:
    names = ("x" * 60 + "a", "x" * 60 + "b", "c")
    record = read_record(write_run(tmp_path / "run", names=names))
    assert record.result is not None
    assert charts.class_iou(record.result)["data"][0]["y"] == [0, 1, 2]
