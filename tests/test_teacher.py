from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from u2pl.teacher import follow, make_teacher, teacher_decay


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    net(torch.randn(4, 2, 3, 3))  # moves BatchNorm's statistics
    return net


@pytest.mark.parametrize(
    ("step", "decay"), [(0, 0), (1, 1 / 2), (9, 0.9), (98, 98 / 99), (99, 0.99)]
)
def test_decay_rises_from_0_to_its_bound(step: int, decay: float) -> None:
    assert teacher_decay(step) == pytest.approx(decay)
    assert teacher_decay(step + 1) >= teacher_decay(step)
    assert teacher_decay(10**6) == 0.99


def test_bound_of_the_decay_is_a_setting() -> None:
    assert teacher_decay(10**6, maximum=0.5) == 0.5
    assert teacher_decay(10**6, maximum=0) == 0


def test_weights_move_by_the_equation() -> None:
    teacher, student = network(0), network(1)
    before, ours = copy.deepcopy(teacher.state_dict()), student.state_dict()
    follow(teacher, student, decay=0.9)
    for key, tensor in teacher.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.9 * before[key] + 0.1 * ours[key])
    assert not torch.equal(teacher[0].weight, before["0.weight"])


def test_batchnorm_statistics_are_averaged_and_the_counter_copied() -> None:
    teacher, student = network(0), network(1)
    student(torch.randn(4, 2, 3, 3))
    mean = 0.5 * (teacher[1].running_mean + student[1].running_mean)
    follow(teacher, student, decay=0.5)
    torch.testing.assert_close(teacher[1].running_mean, mean)
    assert teacher[1].num_batches_tracked == student[1].num_batches_tracked == 2


def test_decay_0_copies_exactly_and_1_keeps() -> None:
    teacher, student = network(0), network(1)
    follow(teacher, student, decay=0.0)
    for key, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, student.state_dict()[key])
    kept = copy.deepcopy(teacher.state_dict())
    follow(teacher, network(2), decay=1.0)
    assert all(
        torch.equal(tensor, kept[key])
        for key, tensor in teacher.state_dict().items()
        if tensor.is_floating_point()
    )


def test_student_is_left_alone_and_gets_no_gradient() -> None:
    teacher, student = network(0).requires_grad_(False), network(1)
    before = copy.deepcopy(student.state_dict())
    follow(teacher, student, decay=0.3)
    assert all(torch.equal(t, before[k]) for k, t in student.state_dict().items())
    assert all(p.grad_fn is None for p in [*teacher.parameters(), *student.parameters()])


def test_new_teacher_is_the_student_and_shares_nothing_with_it() -> None:
    student = network(0)
    teacher = make_teacher(student)
    assert student.training
    assert not any(module.training for module in teacher.modules())
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, student.state_dict()[name])
        assert tensor.data_ptr() != student.state_dict()[name].data_ptr()
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
