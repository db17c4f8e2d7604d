from __future__ import annotations

import pytest
import torch

import u2pl
from u2pl import doctor


def test_versions_name_what_matters() -> None:
    found = doctor.versions()
    assert found["torch"] == torch.__version__
    assert found["u2pl"] == u2pl.__version__
    assert "python" in found


def test_package_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    assert doctor.versions()["no-such-package"] == "not installed"


def test_mismatch_of_torch_and_torchvision_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(u2pl._torchvision, "declared", [])
    usual = doctor.advice()
    monkeypatch.setattr(u2pl._torchvision, "declared", [object()])
    (sentence,) = set(doctor.advice()) - set(usual)
    assert sentence.startswith("torchvision's compiled operators do not load beside this torch")


def test_gpu_that_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert any(s.startswith("torch is built for CUDA 12.4, but no GPU") for s in doctor.advice())


def test_self_test_trains_resumes_exactly_and_predicts() -> None:
    found = doctor.self_test()
    assert found["resumed_exactly"]
    assert found["predicted"] == [48, 48]
    assert not torch.are_deterministic_algorithms_enabled()
