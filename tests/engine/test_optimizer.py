from __future__ import annotations

import pytest
import torch
from torch import nn

from u2pl.config import OptimizerSettings
from u2pl.engine.optimizer import build_optimizer, learning_rate_factor, set_learning_rate


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.encoder_like = nn.Conv2d(4, 2, 1)  # its name only begins like the encoder's


def group_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, object]:
    (group,) = [
        g for g in optimizer.param_groups if any(member is parameter for member in g["params"])
    ]
    return group


def test_every_parameter_is_in_one_group() -> None:
    net = Net()
    for name in ("sgd", "adamw"):
        optimizer = build_optimizer(net, OptimizerSettings(name=name))
        members = [p for group in optimizer.param_groups for p in group["params"]]
        assert len(members) == len(list(net.parameters()))
        assert {id(p) for p in members} == {id(p) for p in net.parameters()}


def test_heads_learn_faster_than_the_encoder() -> None:
    net = Net()
    optimizer = build_optimizer(net, OptimizerSettings(lr=0.01, head_lr_factor=5))
    assert group_of(optimizer, net.encoder[0].weight)["base_lr"] == 0.01
    assert group_of(optimizer, net.encoder_like.weight)["base_lr"] == pytest.approx(0.05)


def test_sgd_decays_everything_and_has_the_momentum() -> None:
    optimizer = build_optimizer(Net(), OptimizerSettings(momentum=0.7, weight_decay=0.02))
    assert isinstance(optimizer, torch.optim.SGD)
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.02}
    assert {g["momentum"] for g in optimizer.param_groups} == {0.7}


def test_adamw_does_not_decay_vectors() -> None:
    net = Net()
    optimizer = build_optimizer(net, OptimizerSettings(name="adamw", weight_decay=0.02))
    assert isinstance(optimizer, torch.optim.AdamW)
    for parameter in net.parameters():
        expected = 0.02 if parameter.ndim > 1 else 0.0
        assert group_of(optimizer, parameter)["weight_decay"] == expected


@pytest.mark.parametrize("power", [0.0, 0.9, 2.0])
def test_poly_schedule_follows_its_formula(power: float) -> None:
    factors = [learning_rate_factor(t, 10, power=power) for t in range(10)]
    assert factors == pytest.approx([(1 - t / 10) ** power for t in range(10)])
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] > 0


def test_rate_rises_linearly_first() -> None:
    factors = [learning_rate_factor(t, 100, power=0, warmup_steps=4) for t in range(6)]
    assert factors == [0.25, 0.5, 0.75, 1, 1, 1]


def test_setting_a_rate_twice_does_not_compound() -> None:
    optimizer = build_optimizer(Net(), OptimizerSettings(lr=0.01, head_lr_factor=10))
    for _ in range(2):
        set_learning_rate(optimizer, 0.5)
    assert sorted({g["lr"] for g in optimizer.param_groups}) == pytest.approx([0.005, 0.05])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_optimizer_with_clipping_does_not_undo_the_loss_scale_itself(name: str) -> None:
    clipped = OptimizerSettings(name=name, max_grad_norm=1.0)
    scaled = build_optimizer(Net(), clipped, scaled=True)
    assert not getattr(scaled, "_step_supports_amp_scaling", False)  # Fabric would refuse to clip
    free = OptimizerSettings(name=name)
    for other in (build_optimizer(Net(), clipped), build_optimizer(Net(), free, scaled=True)):
        assert {group["fused"] for group in other.param_groups} == {True}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weights_whose_loss_begins_later_learn_from_then_on(momentum: float) -> None:
    """As the representation head does after a supervised warm-up; by the definition of SGD."""
    net = Net()
    settings = OptimizerSettings(lr=0.1, head_lr_factor=1, momentum=momentum, weight_decay=0.0)
    optimizer = build_optimizer(net, settings)
    early, late = list(net.parameters())[:2]
    before = late.detach().clone()
    for step in range(3):
        early.grad = torch.ones_like(early)
        late.grad = torch.ones_like(late) if step else None
        optimizer.step()
    moved = 1 + (1 + momentum)  # the sum of two steps' moving sums of gradients
    torch.testing.assert_close(late.detach(), before - 0.1 * moved)
