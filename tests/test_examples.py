"""The examples run as they stand, and what they promise of resuming holds."""

from __future__ import annotations

from pathlib import Path

import plain_pytorch as plain
import pytest
import torch

SMALL = ["--labeled", "3", "--unlabeled", "3", "--size", "32", "--batch", "2"]


def test_plain_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 <= plain.main(["--steps", "3", *SMALL]) <= 100
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("step    0  loss ")
    assert "loss_c" in first
    assert last.startswith("teacher's mIoU on 32 other streets: ")


def method_and_streets(steps: int, *more: str) -> tuple[plain.U2PL, plain.Streets]:
    arguments = ["--steps", str(steps), *SMALL, *more]
    options = plain.options_parser("").parse_args(arguments)
    torch.manual_seed(0)
    method = plain.U2PL(plain.Network(plain.NUM_CLASSES, 8), plain.NUM_CLASSES, 8)
    return method, plain.Streets(options)


def test_plain_example_uses_every_part() -> None:
    """With a teacher that is sure the contrast takes part, and reaches the student alone."""
    method, streets = method_and_streets(4, "--tags")
    optimizer = plain.optimizer_of(method, 0.01)
    with torch.no_grad():
        method.student.segmentation_head.weight *= 30
        method.teacher.segmentation_head.weight *= 30
    for _, terms in plain.train(method, optimizer, streets, range(4), torch.device("cpu")):
        assert all(term.isfinite() for term in terms.values())
    assert terms["loss_c"] > 0
    assert method.prototypes.seen.any()
    assert (method.queues.num_keys > 0).any()
    assert not method.teacher.training
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    head = method.student.representation_head[1]
    assert head.weight.grad is not None
    assert head.weight.grad.abs().sum() > 0
    moved = method.teacher.segmentation_head.weight - method.student.segmentation_head.weight
    assert 0 < moved.abs().max() < 1


def test_plain_example_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """The state dict holds all there is: queues, prototypes, teacher."""
    device, path = torch.device("cpu"), tmp_path / "state.pt"
    whole, streets = method_and_streets(4)
    list(plain.train(whole, plain.optimizer_of(whole, 0.01), streets, range(4), device))

    first, _ = method_and_streets(4)
    optimizer = plain.optimizer_of(first, 0.01)
    list(plain.train(first, optimizer, streets, range(2), device))
    torch.save({"method": first.state_dict(), "optimizer": optimizer.state_dict()}, path)

    second, _ = method_and_streets(4)
    optimizer, saved = plain.optimizer_of(second, 0.01), torch.load(path, weights_only=True)
    second.load_state_dict(saved["method"])
    optimizer.load_state_dict(saved["optimizer"])
    list(plain.train(second, optimizer, streets, range(2, 4), device))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_checkpoint_of_the_plain_example_is_read_where_it_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--steps", "2", *SMALL, "--checkpoint", str(tmp_path / "state.pt")]
    score = plain.main(arguments)
    capsys.readouterr()
    assert plain.main(arguments) == score
    assert "step" not in capsys.readouterr().out


# Lightning's advice about this machine, and a deprecation within Lightning, are not the example's.
@pytest.mark.filterwarnings("ignore::lightning_fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_lightning_example_makes_the_same_training() -> None:
    pytest.importorskip("pytorch_lightning")
    import with_lightning

    arguments = ["--steps", "3", *SMALL]
    module = with_lightning.main(arguments)
    options = plain.options_parser("").parse_args(arguments)
    torch.manual_seed(0)
    method = plain.U2PL(plain.Network(plain.NUM_CLASSES, 32), plain.NUM_CLASSES, 32)
    optimizer = plain.optimizer_of(method, options.lr)
    list(plain.train(method, optimizer, plain.Streets(options), range(3), torch.device("cpu")))
    for name, tensor in method.state_dict().items():
        torch.testing.assert_close(module.method.state_dict()[name], tensor, msg=name)
