from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from u2pl.config import ModelSettings
from u2pl.errors import UserError
from u2pl.models import encoders
from u2pl.models.encoders import build_encoder, cell_size, normalization, patch_size
from vits import TINY_VIT

timm = encoders.timm  # imported there after u2pl has made torchvision importable
NAME = "test_efficientnet"  # the smallest of the models that timm has for tests


def build(name: str = NAME, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "output_stride": 32,
        "pretrained": False,
        "weights": None,
        "vit": False,
    }
    return build_encoder(name, **arguments | changes)


def timm_state(name: str = NAME) -> dict[str, Tensor]:
    """Every tensor of a timm model, set to numbers that no initialisation draws."""
    state = timm.create_model(name, pretrained=False).state_dict()
    return {
        key: torch.full_like(tensor, 2 + i % 7) if tensor.is_floating_point() else tensor
        for i, (key, tensor) in enumerate(state.items())
    }


def error_of(path: Path, name: str = NAME) -> str:
    with pytest.raises(UserError) as caught:
        build(name, weights=path)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_weights_of_a_file_arrive_in_the_encoder(tmp_path: Path, kind: str) -> None:
    state, path = timm_state(), tmp_path / f"encoder.{kind}"
    if kind == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    loaded = build(weights=path).model.state_dict()
    floating = [key for key, tensor in loaded.items() if tensor.is_floating_point()]
    assert len(floating) > 40
    assert [key for key in floating if not torch.equal(loaded[key], state[key])] == []


def test_file_without_the_classifier_is_enough(tmp_path: Path) -> None:
    state = {k: v for k, v in timm_state().items() if not k.startswith("classifier")}
    save_file(state, tmp_path / "encoder.safetensors")
    loaded = build(weights=tmp_path / "encoder.safetensors").model.state_dict()
    assert torch.equal(loaded["conv_stem.weight"], state["conv_stem.weight"])


def test_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    assert error_of(path) == f"model.weights: there is no file {path}."


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_file_that_holds_no_tensors_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"encoder.{suffix}"
    path.write_bytes(b"these are no weights")
    assert error_of(path) == (
        f"model.weights: {path} is neither a safetensors file nor a file of plain tensors."
    )


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    state, path = timm_state(), tmp_path / "encoder.safetensors"
    del state["conv_stem.weight"]
    save_file(state, path)
    message = error_of(path)
    assert message.startswith(f"model.weights: {path} is not for timm's '{NAME}': 1 of ")
    assert message.endswith("tensors are missing, 'conv_stem.weight' for one.")


def test_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    state, path = timm_state(), tmp_path / "encoder.safetensors"
    expected = tuple(state["conv_stem.weight"].shape)
    state["conv_stem.weight"] = torch.zeros(1, 3, 3, 3)
    save_file(state, path)
    assert error_of(path) == (
        f"model.weights: {path} is not for timm's '{NAME}': expected 'conv_stem.weight' of shape "
        f"{expected}, got (1, 3, 3, 3)."
    )


def test_file_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_file(timm_state("test_resnet"), path)
    assert f"is not for timm's '{NAME}'" in error_of(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_that_would_run_code_does_not_run_it(tmp_path: Path, legacy: bool) -> None:
    mark, path = tmp_path / "executed", tmp_path / "encoder.pth"

    class Attack:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(mark),)

    if legacy:
        path.write_bytes(pickle.dumps({"conv_stem.weight": Attack()}))
    else:
        torch.save({"conv_stem.weight": Attack()}, path)
    assert "neither a safetensors file nor a file of plain tensors" in error_of(path)
    assert not mark.exists()


def test_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(
        UserError, match=r"timm has no model 'resnet5O'\. Did you mean 'resnet50"
    ) as e:
        build("resnet5O")
    assert e.value.exit_code == 2


def test_hub_that_cannot_be_reached_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(encoders, "TimmUniversalEncoder", offline)
    with pytest.raises(UserError) as caught:
        build(pretrained=True)
    assert str(caught.value) == (
        f"The pretrained weights of '{NAME}' could not be loaded from timm's hub (OSError). Pass a "
        "local file with model.weights=FILE, or train from scratch with model.pretrained=false."
    )


@pytest.mark.parametrize("size", ["small", "base"])
def test_dinov2_without_a_hub_names_the_way_to_a_file(
    size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(encoders, "ViTEncoder", offline)
    name = f"vit_{size}_patch14_dinov2.lvd142m"
    with pytest.raises(UserError, match=rf"'{name}' could not .* file with model\.weights=FILE"):
        build(name, pretrained=True, vit=True)


def test_file_of_dinov2_for_another_grid_is_resampled_by_timm(tmp_path: Path) -> None:
    name, path = "vit_small_patch14_dinov2.lvd142m", tmp_path / "dinov2.safetensors"
    saved = timm.create_model(name, pretrained=False, img_size=112).state_dict()
    save_file(saved, path)
    loaded = build(name, weights=path, vit=True).model.state_dict()
    assert loaded.keys() == saved.keys()
    assert [key for key in saved if not torch.equal(loaded[key], saved[key])] == ["pos_embed"]
    expected = timm.layers.resample_abs_pos_embed(saved["pos_embed"], [37, 37])
    torch.testing.assert_close(loaded["pos_embed"], expected)


def test_file_of_the_model_itself_keeps_its_positions(tmp_path: Path) -> None:
    """Also as their authors publish it: with a token that only their training uses."""
    state, path = timm_state(TINY_VIT), tmp_path / "dinov2.pth"
    torch.save(state | {"mask_token": torch.zeros(1, 64)}, path)
    loaded = build(TINY_VIT, weights=path, vit=True).model.state_dict()
    assert [key for key in state if not torch.equal(loaded[key], state[key])] == []


@pytest.mark.parametrize("shape", [(1, 12, 64), (1, 17, 32), (2, 17, 64), (17, 64), (1, 1, 64)])
def test_positions_that_are_of_no_square_are_told(tmp_path: Path, shape: tuple[int, ...]) -> None:
    state, path = timm_state(TINY_VIT), tmp_path / "dinov2.safetensors"
    save_file(state | {"pos_embed": torch.zeros(shape)}, path)
    with pytest.raises(UserError, match=r"expected 'pos_embed' of shape \(1, 26, 64\), got"):
        build(TINY_VIT, weights=path, vit=True)


def test_blocks_are_read_through_the_last_norm() -> None:
    encoder = build(TINY_VIT, vit=True).eval()
    images = torch.rand(1, 3, 70, 84)
    features, tokens = encoder(images)
    whole = encoder.model.forward_features(images)
    assert [one.shape for one in features] == 4 * [(1, 64, 5, 6)]
    torch.testing.assert_close(features[-1].flatten(2).mT, whole[:, 1:])
    torch.testing.assert_close(tokens[-1], whole[:, :1])


@pytest.mark.parametrize(
    ("encoder", "decoder", "size"),
    [("resnet50", "deeplabv3plus", 16), (TINY_VIT, "dpt", 14), ("test_vit", "dpt", 16)],
)
def test_cell_of_the_grid_is_known_from_the_settings(encoder: str, decoder: Any, size: int) -> None:
    assert cell_size(ModelSettings(encoder=encoder, decoder=decoder)) == size


def test_encoder_that_cannot_have_the_stride_is_told() -> None:
    with pytest.raises(UserError, match=r"'test_vit' does not work as an encoder here \(output st"):
        build("test_vit", output_stride=8)


def test_cnn_is_no_vision_transformer() -> None:
    with pytest.raises(UserError, match=r"'test_resnet' does not work .* \(decoder dpt\)"):
        build("test_resnet", vit=True)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"vit": True}, "no vision transformer"),
        ({"weights": Path("a.safetensors")}, "no ImageNet weights"),
        ({"output_stride": 32}, "output stride 8 or 16"),
    ],
)
def test_small_encoder_says_what_it_cannot_do(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        build("small", **{"output_stride": 16} | changes)


def test_normalisation_is_that_of_the_encoders_training() -> None:
    own = timm.get_pretrained_cfg("vit_tiny_patch16_224.augreg_in21k")
    assert normalization("vit_tiny_patch16_224.augreg_in21k") == (own.mean, own.std)
    assert normalization("small") == (encoders.IMAGENET_MEAN, encoders.IMAGENET_STD)
    assert own.mean != encoders.IMAGENET_MEAN


def test_patch_size_is_read_from_the_encoder() -> None:
    assert patch_size(build("test_vit", vit=True)) == 16


def test_unknown_weights_of_a_known_model_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"timm's 'resnet50' has no weights 'a1_in2k'\. Did you"):
        build("resnet50.a1_in2k", weights=tmp_path / "none.pth")


@pytest.mark.parametrize("value", ["x", None, 3])
def test_entry_that_is_no_tensor_is_a_missing_one(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "encoder.pth"
    torch.save(timm_state() | {"conv_stem.weight": value}, path)
    assert "tensors are missing, 'conv_stem.weight' for one" in error_of(path)


def test_numbers_that_are_not_finite_are_no_weights(tmp_path: Path) -> None:
    state, path = timm_state(), tmp_path / "encoder.safetensors"
    state["conv_stem.weight"] = torch.full_like(state["conv_stem.weight"], torch.nan)
    save_file(state, path)
    assert error_of(path) == (
        f"model.weights: {path} is damaged: 'conv_stem.weight' holds numbers that are not finite."
    )
