"""The kinds of whole steps that are compared."""

from __future__ import annotations

import json
from typing import Any

import torch

from tiny import tiny_overrides
from u2pl import bench
from u2pl.bench import steps
from u2pl.bench.page import page

CPU = torch.device("cpu")
SMALL: dict[str, Any] = tiny_overrides(model__encoder="small", method__anchor_threshold=0.0)


def test_networks_alone_learn_but_nothing_is_made_of_their_features() -> None:
    kinds = steps.step_kinds(CPU, SMALL)
    before = {
        name: {key: value.clone() for key, value in kind.state.student.state_dict().items()}
        for name, kind in kinds.items()
    }
    keys = kinds["networks"].state.queues.keys.clone()
    for kind in kinds.values():
        assert kind.run() > 0
        assert kind.state.step == 1
    networks = kinds["networks"].state
    assert torch.equal(networks.queues.keys, keys)
    assert not networks.prototypes.seen.any()
    assert kinds["method"].state.prototypes.seen.any()
    for name, kind in kinds.items():
        after = kind.state.student.state_dict()
        assert any(not torch.equal(after[key], value) for key, value in before[name].items())


def test_networks_alone_compute_what_the_contrast_needs() -> None:
    """As many passes over as many images, with features, as in a step of the method."""
    parts = ("encoder", "segmentation_head", "representation_head.0")
    seen: dict[str, list[tuple[str, str, int]]] = {}
    for name, kind in steps.step_kinds(CPU, SMALL).items():
        student = kind.state.student.module
        for who, network in (("student", student), ("teacher", kind.state.teacher)):
            for part in parts:
                network.get_submodule(part).register_forward_pre_hook(
                    lambda _, args, name=name, who=who, part=part: seen.setdefault(name, []).append(
                        (who, part, len(args[0]))
                    )
                )
        kind.run()
    assert seen["networks"] == seen["method"]
    assert seen["bare"] != seen["method"]
    assert not any(part == "representation_head.0" for _, part, _ in seen["bare"])


def test_steps_with_a_context_are_timed_with_it() -> None:
    kind = steps.step_kinds(CPU, {**SMALL, "data.context": 8})["method"]
    unlabeled = kind.batch.unlabeled
    assert unlabeled is not None
    assert unlabeled.context is not None
    assert unlabeled.context.shape[-1] == unlabeled.weak.shape[-1] + 16
    assert kind.run() > 0


def test_result_of_whole_steps_has_ratios_times_and_no_kernels_of_a_gpu() -> None:
    result = bench.bench(parts=["step"], repetitions=1, overrides=SMALL, device="cpu")
    assert result["ratios"]["step_vs_networks"] > 0
    assert result["ratios"]["step_vs_bare"] > 0
    assert 0 < result["ratios"]["evaluation_share"] < 1
    assert set(result["seconds"]["step"]) >= {"method", "networks", "bare", "last evaluation"}
    assert len(result["memory"]) == 2
    for peaks in result["memory"].values():
        assert set(peaks) == {
            "queue_bytes",
            "method_peak_bytes",
            "networks_peak_bytes",
            "bare_peak_bytes",
        }
        assert min(peaks.values()) > 0
    assert result["gpu"]["step"] == {"method": None, "networks": None, "bare": None}
    text = page(json.loads(json.dumps(result)))
    assert "| networks |" in text
    assert "The GPU computes" not in text
    counted = {"kernels": 1200, "busy_milliseconds": 12.3}
    assert "| step: bare | 1200 | 12.3 |" in page(result | {"gpu": {"step": {"bare": counted}}})
