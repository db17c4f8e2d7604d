"""Several processes on this machine, which talk by gloo, against one."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from factories import write_dataset
from processes import SETTINGS, Processes, finish, start
from tiny import assignments, tiny_config
from u2pl.engine.loop import check_against_world
from u2pl.engine.run_folder import RunFolder, read_metrics
from u2pl.engine.shared_norm import share_statistics
from u2pl.engine.world import ALONE, World, pack_bits, unpack_bits
from u2pl.errors import UserError
from u2pl.models import Segmenter


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(
        tmp_path_factory.mktemp("data"), num_labeled=6, num_unlabeled=9, num_val=5, size=(40, 40)
    )


@pytest.fixture(scope="module")
def alone(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    ((status, _, error),) = finish(start(dataset, out, 1))
    assert status == 0, error
    return out


@pytest.fixture(scope="module")
def together(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    out = tmp_path_factory.mktemp("together") / "run"
    ended = finish(start(dataset, out, 2))
    assert [status for status, _, _ in ended] == [0, 0], ended
    return out, ended


def test_two_processes_train_as_one(alone: Path, together: tuple[Path, list[Any]]) -> None:
    """One batch, one threshold, one set of anchors and keys, whoever holds the images."""
    rows = [read_metrics(RunFolder(path).metrics) for path in (alone, together[0])]
    assert len(rows[0]) == len(rows[1]) == 9
    ties = 0
    for ours, theirs in zip(*rows, strict=True):
        assert ours["step"] == theirs["step"]
        tied = other_pixels(ours, theirs) > 0
        ties += tied
        for name in ("loss", "loss_s", "loss_u", "loss_c", "entropy_threshold"):
            if name in ours:
                decided = tied and name in ("loss", "loss_u")
                expected = pytest.approx(ours[name], rel=1e-3 if decided else 1e-5)
                assert theirs[name] == expected, name
        for name in ("negatives_offered", "active_classes", "queue_fill", "unsupervised_weight"):
            if name in ours:
                decided = tied and name == "unsupervised_weight"
                expected = pytest.approx(ours[name], rel=1e-3 if decided else 1e-6)
                assert theirs[name] == expected, name
    assert ties <= 2
    assert rows[0][-2]["loss_c"] > 0
    for name in ("ema", "student"):
        scores = [json.loads((p / "eval/val.json").read_text())[name] for p in (alone, together[0])]
        assert scores[0]["images"] == scores[1]["images"] == 5
        total = [sum(map(sum, score["confusion"])) for score in scores]
        assert total == [5 * 40 * 40] * 2  # each pixel once
        assert scores[1]["miou"] == pytest.approx(scores[0]["miou"], abs=0.2)


def other_pixels(ours: dict[str, Any], theirs: dict[str, Any]) -> int:
    """Pixels that are reliable in one run alone: at most one, whose entropy is the threshold.

    A net this young gives 4 096 pixels entropies between 1.0901 and 1.0904, which float32 tells
    apart by 1e-7: several are equal but for rounding, and then rounding decides about one.
    """
    if "reliable_share" not in ours:
        return 0
    pixels = 4 * 32 * 32 * abs(ours["reliable_share"] - theirs["reliable_share"])
    assert pixels < 1.5
    return round(pixels)


def test_queues_and_prototypes_are_those_of_one_process(
    alone: Path, together: tuple[Path, list[Any]]
) -> None:
    ours, theirs = (
        torch.load(RunFolder(path).checkpoint("last"), weights_only=True)
        for path in (alone, together[0])
    )
    for name, tensor in ours["queues"].items():
        torch.testing.assert_close(theirs["queues"][name], tensor, rtol=1e-3, atol=1e-4)
    for name, tensor in ours["prototypes"].items():
        torch.testing.assert_close(theirs["prototypes"][name], tensor, rtol=1e-3, atol=1e-4)


def test_first_process_alone_speaks(together: tuple[Path, list[Any]]) -> None:
    (_, first, first_error), (_, second, second_error) = together[1]
    assert "val mIoU teacher" in first
    assert second == ""
    assert "Traceback" not in first_error + second_error


def test_run_of_two_goes_on_with_one(dataset: Path, alone: Path, tmp_path: Path) -> None:
    stopped = [*["--recipe", "demo"], *assignments(SETTINGS), "train.stop_after=6"]
    ended = finish(start(dataset, tmp_path / "a", 2, settings=stopped))
    assert [status for status, _, _ in ended] == [0, 0], ended
    ((status, _, error),) = finish(start(dataset, tmp_path / "a", 1, settings=["--resume"]))
    assert status == 0, error
    ours, theirs = (read_metrics(RunFolder(p).metrics)[-2] for p in (alone, tmp_path / "a"))
    assert theirs["step"] == 8
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)


def wait_for_rows(run: Path, number: int, processes: Processes) -> None:
    metrics, deadline = RunFolder(run).metrics, time.monotonic() + 90
    while not (metrics.exists() and metrics.read_text().count("\n") >= number):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.1)


ENDLESS = ["--recipe", "demo", *assignments(SETTINGS | {"train.steps": 100_000})]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_death_of_one_ends_the_others_with_a_sentence(dataset: Path, tmp_path: Path) -> None:
    settings = [*ENDLESS, "train.checkpoint_every=2"]
    processes = start(dataset, tmp_path / "a", 2, settings=settings)
    wait_for_rows(tmp_path / "a", 5, processes)
    processes[1].kill()
    started = time.monotonic()
    (status, _, error), _ = finish(processes, seconds=60)
    assert time.monotonic() - started < 60
    assert status == 1
    sentences = [line for line in error.splitlines() if line.startswith("Error: ")]
    assert sentences == [
        "Error: Process 0 of 2 has lost the others: one of them has ended. Look at its message; "
        "then go on from the last checkpoint with --resume."
    ]
    assert "Traceback" not in error
    goal = [f"train.stop_after={len(read_metrics(RunFolder(tmp_path / 'a').metrics)) + 2}"]
    ended = finish(start(dataset, tmp_path / "a", 2, settings=["--resume", *goal]))
    assert [status for status, _, _ in ended] == [0, 0], ended


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_signal_to_one_stops_all_after_the_same_step(dataset: Path, tmp_path: Path) -> None:
    processes = start(dataset, tmp_path / "a", 2, settings=ENDLESS)
    wait_for_rows(tmp_path / "a", 3, processes)
    processes[1].send_signal(signal.SIGTERM)
    ended = finish(processes)
    assert [status for status, _, _ in ended] == [75, 75]
    steps = {error.split("Stopped after step ")[1].split(";")[0] for _, _, error in ended}
    assert len(steps) == 1
    saved = torch.load(RunFolder(tmp_path / "a").checkpoint("last"), weights_only=True)
    assert {str(saved["step"])} == steps


def test_seeds_are_made_once_for_all(tmp_path: Path) -> None:
    """From tags: the first process makes them, the other one finds them made."""
    tagged = write_dataset(tmp_path / "data", num_labeled=0, num_unlabeled=4, tags=True)
    weak = {
        "weak.steps": 2,
        "weak.batch_size": 2,
        "weak.cam_scales": [1.0],
        "weak.refine_iterations": 1,
        "weak.refine_dilations": [1],
        "train.steps": 4,
        "train.supervised_steps": 1,
    }
    settings = ["--recipe", "demo", "--setting", "weak", *assignments(SETTINGS | weak)]
    ended = finish(start(tagged, tmp_path / "a", 2, settings=settings))
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert len(list((tmp_path / "a" / "seeds").iterdir())) == 4
    assert [row["step"] for row in read_metrics(RunFolder(tmp_path / "a").metrics)] == [
        1,
        2,
        3,
        4,
        4,
    ]


# without processes


def test_alone_everything_is_itself() -> None:
    tensor = torch.rand(3, 2)
    for same in (ALONE.sum(tensor), ALONE.gather(tensor), ALONE.gather_halves(tensor, 1)):
        assert same is tensor
    assert ALONE.any(True)
    assert not ALONE.any(False)
    network = torch.nn.BatchNorm2d(2)
    assert share_statistics(network, ALONE, torch.device("cpu")) is network
    assert type(network) is torch.nn.BatchNorm2d


def test_shared_norms_keep_the_parameters_that_the_optimiser_knows() -> None:
    config = tiny_config()
    network = Segmenter(config.model, 3)
    before = dict(network.state_dict())
    shared = share_statistics(network, World(0, 2), torch.device("cpu"))
    assert shared is network
    assert all(shared.state_dict()[key].data_ptr() == t.data_ptr() for key, t in before.items())
    kinds = {type(m).__name__ for m in network.modules() if "Norm" in type(m).__name__}
    assert kinds == {"SharedBatchNorm"}


@pytest.fixture
def group_of_one() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def timm_network() -> Segmenter:
    """Of the layers that MobileNets and EfficientNets are made of: BatchNorm and SiLU in one."""
    changes = {"encoder": "test_efficientnet", "decoder": "fpn", "output_stride": 32}
    settings = tiny_config().model.model_copy(update={**changes, "decoder_channels": 32})
    torch.manual_seed(0)
    return Segmenter(settings, 3)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_shared_norms_keep_the_activation_inside_timms_layers(device: str) -> None:
    network, images = timm_network().eval(), torch.rand(2, 3, 64, 64)
    expected = network(images)
    # converted for either device, a network at rest runs here
    shared = share_statistics(network, World(0, 2), torch.device(device)).eval()
    kinds = {type(m).__name__ for m in shared.modules() if "BatchNorm" in type(m).__name__}
    sync, share = {"SyncBatchNorm", "SyncBatchNormAct"}, {"SharedBatchNorm", "SharedBatchNormAct"}
    assert kinds == (sync if device == "cuda" else share)
    torch.testing.assert_close(shared(images), expected)


@pytest.mark.usefixtures("group_of_one")
def test_shared_norms_train_as_timms_layers_do() -> None:
    images = torch.rand(2, 3, 64, 64)
    logits, statistics, gradients = [], [], []
    for world in (ALONE, World(0, 2)):
        network = share_statistics(timm_network(), world, torch.device("cpu")).train()
        torch.manual_seed(1)  # of the dropout
        logits.append(network(images).logits)
        logits[-1].square().mean().backward()
        statistics.append(dict(network.named_buffers()))
        encoder = network.get_submodule("encoder")
        gradients.append({name: p.grad for name, p in encoder.named_parameters()})
    torch.testing.assert_close(logits[1], logits[0])
    torch.testing.assert_close(statistics[1], statistics[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "size", "text"),
    [
        ({"data__batch_labeled": 3}, 2, "data.batch_labeled is the batch of all 2 processes"),
        ({"data__batch_unlabeled": 6}, 2, "a multiple of 4, as images are mixed in pairs; got 6"),
        ({"data__batch_labeled": 4, "train__accumulation": 4}, 2, "has only 2 labelled images"),
    ],
)
def test_batch_that_cannot_be_shared_out_is_refused(
    changes: dict[str, Any], size: int, text: str
) -> None:
    base: dict[str, Any] = {"data__batch_labeled": 4, "data__batch_unlabeled": 4}
    with pytest.raises(UserError, match=text) as caught:
        check_against_world(tiny_config(**{**base, **changes}), World(0, size))
    assert caught.value.exit_code == 2


def test_any_batch_suits_one_process() -> None:
    odd = {"data__batch_labeled": 3, "data__batch_unlabeled": 5}
    check_against_world(tiny_config(**odd), ALONE)


@pytest.mark.parametrize("shape", [(0, 3), (1,), (2, 3, 5), (8, 4), (3, 2, 7, 9)])
def test_bits_come_out_as_they_went_in(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(shape, generator=generator) < 0.4
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-mask.numel() // 8)
    rows = torch.stack([packed, packed.flip(0)])
    assert torch.equal(unpack_bits(rows, mask.numel())[0].view(shape), mask)
