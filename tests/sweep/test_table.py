from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from u2pl.sweep.file import Sweep
from u2pl.sweep.plot import write_plot
from u2pl.sweep.results import Status
from u2pl.sweep.table import make_table, markdown, write_table


class FakeCell:
    """What a table asks of a cell."""

    steps = 9

    def __init__(self, row: str, share: str | None, seed: int) -> None:
        self.row, self.share, self.seed = row, share, seed
        self.folder = Path(row) / str(share) / str(seed)


def table_of(
    mious: dict[tuple[str, str | None, int], float | None], **changes: Any
) -> dict[str, Any]:
    """A table of these scores; a cell with None is missing."""
    rows = {row: changes.pop(row, {}) for row in dict.fromkeys(row for row, _, _ in mious)}
    shares = [share for share in dict.fromkeys(share for _, share, _ in mious) if share]
    sweep = Sweep.model_validate(
        {"name": "a <b>", "seeds": [0, 1, 2], "shares": shares, "rows": rows, **changes}
    )
    cells, status = [], {}
    for place, miou in mious.items():
        cell = FakeCell(*place)
        cells.append(cell)
        score = {"miou": miou, "iou": {"sky": miou, "car|s": None if place[2] == 1 else 5.0}}
        result = {
            **dict(zip(("row", "share", "seed"), place, strict=True)),
            "scores": {"val": {"ema": score}},
            "seconds": 10.0,
            "commit": f"c{place[2] // 2}",
            "seeds": {"miou": 30.0, "precision": None},
        }
        status[cell.folder] = Status("missing") if miou is None else Status("done", result=result)
    return make_table(sweep, cells, status)  # type: ignore[arg-type]


def test_mean_deviation_and_paired_difference_by_hand() -> None:
    scores = {("a", None, s): v for s, v in enumerate((50.0, 52.0, 57.0))}
    scores |= {("b", None, s): v for s, v in enumerate((51.0, 55.0, None))}
    table = table_of(scores)
    first, second = table["rows"]
    assert first["scores"]["val ema"]["mean"] == pytest.approx(53.0)
    assert first["scores"]["val ema"]["deviation"] == pytest.approx(13**0.5)  # 26 / (3 - 1)
    assert first["iou"] == {"sky": pytest.approx(53.0), "car|s": None}  # seed 1 has no such pixel
    assert second["n"] == 2
    (gap,) = table["differences"]
    assert (gap["base"], gap["seeds"], gap["differences"]) == ("a", [0, 1], [1.0, 3.0])
    assert gap["mean"] == pytest.approx(2.0)
    assert table["notes"] == [
        "1 of 6 cells are not done.",
        "The cells were trained with several commits: c0, c1.",
        "± is the standard deviation over seeds (n - 1).",
    ]


def test_base_may_be_any_row_and_is_that_of_the_same_share() -> None:
    scores = {("a", "1/8", 0): 50.0, ("a", "1/4", 0): 60.0, ("b", "1/8", 0): 45.0}
    (gap,) = table_of(scores, base="b")["differences"]
    assert (gap["row"], gap["share"], gap["differences"]) == ("a", "1/8", [5.0])


def test_page_has_every_figure_and_no_name_breaks_it() -> None:
    page = markdown(table_of({("a", None, 0): 50.0, ("a", None, 1): None}, a={"about": "x|y"}))
    assert page.startswith("# a &lt;b>\n")
    assert "| a | x\\|y | 0 | 50.0 | 10 |" in page
    assert "| IoU in %, val, teacher | sky | car\\|s |" in page
    assert "| the seed masks themselves | n | miou |" in page
    assert "| a | 1 | 30.0 | – | – | – |" in page
    assert "| a | 1 | missing |  |" in page


def test_empty_table_says_so(tmp_path: Path) -> None:
    table = table_of({("a", None, 0): None})
    assert [file.name for file in write_table(table, tmp_path)] == ["table.json", "table.md"]
    assert "1 of 1 cells are not done." in (tmp_path / "table.md").read_text()


def test_picture_is_of_rows_with_several_shares(tmp_path: Path) -> None:
    scores = {("a", "1/8", s): 50.0 + s for s in (0, 1)} | {("b", "1/8", 0): 40.0}
    assert write_plot(table_of(scores), tmp_path / "a.png") is None
    scores |= {("a", "1/4", 0): 60.0}
    path = write_plot(table_of(scores), tmp_path / "a.png")
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")
