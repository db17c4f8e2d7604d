"""What train.compile compiles: the same numbers, one graph a function, nothing compiled twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tiny import tiny_batch, tiny_config, tiny_state
from u2pl.config import Config
from u2pl.engine import compiled
from u2pl.engine.compiled import compile_teacher
from u2pl.engine.step import training_step

# the compiler warns of its own doings, within torch: old modules, gradients that it looks for
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _light_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are captured and then run as they are."""
    monkeypatch.setitem(compiled.OPTIONS, "backend", "eager")
    compiled._compiled.cache_clear()
    torch._dynamo.utils.counters.clear()
    yield
    compiled._compiled.cache_clear()
    torch._dynamo.reset()


def losses(config: Config, *, steps: int) -> list[float]:
    fabric, state = tiny_state(config)
    rows = []
    for t in range(steps):
        # the first two steps are of different kinds: there are no prototypes yet
        with torch._dynamo.config.patch(error_on_recompile=t > 1):
            values = training_step(fabric, state, tiny_batch(seed=t), config)
        rows.append(values["loss"].item())
    return rows


@pytest.mark.parametrize(
    "method",
    [
        {"method__mixing": "cutmix"},
        {"method__mixing": "classmix_labeled"},
        {"method__refine_iterations": 2, "method__refine_dilations": (1, 3)},
    ],
)
def test_method_is_whole_graphs_compiled_once_and_says_the_same(method: dict[str, Any]) -> None:
    changes = {**method, "train__steps": 9}
    plain = losses(tiny_config(**changes), steps=1)
    assert losses(tiny_config(train__compile=["method"], **changes), steps=4)[:1] == plain
    # judgement, threshold, pairs, loss; each a whole graph, or compiling it would have failed
    assert compiled._compiled.cache_info().currsize == 4
    assert not torch._dynamo.utils.counters["graph_break"]


def test_student_is_compiled_once_and_says_the_same() -> None:
    changes = {"train__steps": 9}
    plain = losses(tiny_config(**changes), steps=4)
    compiled_losses = losses(tiny_config(train__compile=["student"], **changes), steps=4)
    assert compiled_losses == pytest.approx(plain, rel=1e-4)
    # decoder and encoder; segmentation head; features of the anchors
    assert compiled._compiled.cache_info().currsize == 3


def test_networks_keep_their_names_when_they_are_compiled() -> None:
    config = tiny_config(train__compile=["student", "teacher"])
    _, state = tiny_state(config)
    before = [*state.student.state_dict()], [*state.teacher.state_dict()]
    compile_teacher(state, config)
    assert before == ([*state.student.state_dict()], [*state.teacher.state_dict()])
    assert state.teacher._compiled_call_impl is not None


def test_nothing_is_compiled_by_default() -> None:
    config = tiny_config()
    _, state = tiny_state(config)
    compile_teacher(state, config)
    assert config.train.compile == ()
    assert state.teacher._compiled_call_impl is None
    assert compiled.of_method(losses, config) is losses
