from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from tiny import tiny_batch, tiny_config, tiny_state
from u2pl.engine import step as step_module
from u2pl.engine.guard import FirstFailure, are_finite, gradient_norm
from u2pl.engine.step import training_step

NAN, INF = math.nan, math.inf


def scalars(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_gradient_norm_is_that_of_all_gradients_together() -> None:
    first, second, third = (nn.Parameter(torch.zeros(n)) for n in (2, 1, 4))
    first.grad, second.grad = torch.tensor([2.0, 3.0]), torch.tensor([6.0])
    assert gradient_norm([first, second, third]).item() == pytest.approx(7.0)
    assert gradient_norm([third]).item() == 0
    second.grad = torch.tensor([NAN])
    assert not gradient_norm([first, second]).isfinite()


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["loss", "loss_s", "loss_u", "loss_c", "grad_norm"])
def test_each_watched_value_counts(name: str, bad: float) -> None:
    good = {"loss": 1.0, "loss_s": 1.0, "loss_u": 0.0, "loss_c": 3.0, "grad_norm": 9.0}
    assert are_finite(scalars(**good))
    assert not are_finite(scalars(**{**good, name: bad}))


def test_other_values_may_be_infinite() -> None:
    """The entropy threshold is, where no pixel is valid."""
    assert are_finite(scalars(loss=1.0, entropy_threshold=INF))


def test_first_failure_is_remembered_with_what_was_not_finite() -> None:
    failure = FirstFailure(torch.device("cpu"))
    failure.look(1, scalars(loss=1.0, loss_s=1.0))
    assert failure.found() is None
    failure.look(2, scalars(loss=NAN, loss_s=1.0, loss_u=INF))
    failure.look(3, scalars(loss=INF, loss_s=INF))
    failure.look(4, scalars(loss=1.0, loss_s=1.0))
    found = failure.found()
    assert found is not None
    step, values = found
    assert step == 2
    assert list(values) == ["loss_u", "loss"]  # the term before the sum
    assert values["loss_u"] == INF
    assert math.isnan(values["loss"])


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_step_that_is_not_finite_leaves_weights_and_moments_alone(
    name: str, where: str, max_grad_norm: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(optimizer__name=name, optimizer__max_grad_norm=max_grad_norm)
    fabric, state = tiny_state(config)
    training_step(fabric, state, tiny_batch(), config)  # there are moments now
    before = copy.deepcopy([p.detach() for p in state.student.parameters()])
    moments = copy.deepcopy(state.optimizer.state_dict()["state"])
    original = step_module.backward_in_parts

    def spoil(*arguments: object) -> dict[str, torch.Tensor]:
        terms = original(*arguments)  # type: ignore[arg-type]
        if where == "loss":
            return terms | {"loss_u": torch.tensor(NAN)}
        gradient = next(state.student.parameters()).grad
        assert gradient is not None
        gradient.fill_(INF)
        return terms

    with monkeypatch.context() as patch:
        patch.setattr(step_module, "backward_in_parts", spoil)
        values = training_step(fabric, state, tiny_batch(seed=1), config)
    assert not are_finite(values)
    assert all(torch.equal(a, b) for a, b in zip(before, state.student.parameters(), strict=True))
    for key, old in moments.items():
        for kind, tensor in state.optimizer.state_dict()["state"][key].items():
            assert torch.equal(tensor, old[kind]), kind
    training_step(fabric, state, tiny_batch(seed=2), config)
    assert not torch.equal(before[0], next(state.student.parameters()))


def test_gradient_norm_is_told_as_it_was_before_clipping() -> None:
    norms = []
    for limit in (None, 1e-3):
        config = tiny_config(optimizer__max_grad_norm=limit)
        fabric, state = tiny_state(config)
        norms.append(training_step(fabric, state, tiny_batch(), config)["grad_norm"].item())
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert norms[0] > 1e-3
