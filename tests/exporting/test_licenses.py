from __future__ import annotations

from pathlib import Path

import pytest
import timm

from u2pl.config import ModelSettings
from u2pl.exporting.licenses import NON_COMMERCIAL, encoder_license, license_sentence
from u2pl.exporting.model_card import History, model_card


@pytest.mark.parametrize(
    ("encoder", "name", "verdict"),
    [
        ("resnet101", "apache-2.0", "free"),
        ("regnetx_008.tv2_in1k", "bsd-3-clause", "free"),
        ("convnextv2_tiny.fcmae", "cc-by-nc-4.0", "non-commercial"),
        ("fastvit_s12", "fastvit-license", "own terms"),
        ("res2net50d.in1k", "unknown", "unknown"),
    ],
)
def test_licence_is_that_which_timm_states(encoder: str, name: str, verdict: str) -> None:
    found = encoder_license(ModelSettings(encoder=encoder, pretrained=True))
    assert (found.name, found.verdict) == (name, verdict)
    assert found.source.startswith(f"timm {timm.__version__}")
    sentence = license_sentence(found)
    assert ("NON-COMMERCIAL" in sentence) == (verdict == "non-commercial")
    assert ("find it out" in sentence) == (verdict == "unknown")


def test_weights_of_unknown_origin_are_called_that() -> None:
    settings = ModelSettings(encoder="resnet18", pretrained=True, weights=Path("mine.pth"))
    assert encoder_license(settings).verdict == "unknown"
    assert encoder_license(settings.model_copy(update={"pretrained": False})).verdict == "none"


def test_every_licence_called_non_commercial_is_one_of_timms() -> None:
    stated = {timm.get_pretrained_cfg(n).license for n in timm.list_models(pretrained=True)}
    assert set(NON_COMMERCIAL) <= stated


def test_page_of_non_commercial_weights_says_so_first() -> None:
    about = {
        "classes": ["a|b", "<script>"], "colors": [[0, 0, 0], [1, 1, 1]], "ignore_index": 255,
        "encoder": "convnextv2_tiny.fcmae", "decoder": "fpn", "u2pl": "0", "recipe": "x",
        "step": 3, "weights": "ema", "resize": 180, "reliable_entropy": 0.5,
    }  # fmt: skip
    settings = ModelSettings(encoder="convnextv2_tiny.fcmae", pretrained=True)
    page = model_card(about, encoder_license(settings), History("my run", {}, {}, {}))
    assert "license: cc-by-nc-4.0" in page.split("---")[1]
    assert "**Not for commercial use.** NON-COMMERCIAL" in page
    assert r"| a\|b |" in page  # a name neither breaks the table nor is read as HTML
    assert r"\<script\>" in page
    assert "Not known." in page  # no scores
    assert "Bring the short side to 180 pixels first." in page
