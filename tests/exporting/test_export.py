from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import u2pl
from factories import write_dataset
from tiny import tiny_overrides
from u2pl import UserError
from u2pl.exporting import EQUAL_PIXELS
from u2pl.exporting.formats import trace
from u2pl.exporting.graph import ExportGraph
from u2pl.exporting.verify import compare
from u2pl.models.encoders import timm

pytestmark = pytest.mark.filterwarnings(
    "ignore:::torch", "ignore:::copyreg", "ignore:::onnxscript", "ignore:::onnx_ir"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    dataset = write_dataset(root / "data", num_val=2)
    u2pl.train(dataset, recipe="demo", out=root / "run", overrides=tiny_overrides(train__steps=10))
    return root / "run"


@pytest.fixture(scope="module")
def hub(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The Hub's folder, which holds an ONNX file too, and what exporting it said."""
    out = tmp_path_factory.mktemp("hub")
    return out, u2pl.export(run, format="hf", out=out, verify=True)


def photo(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


# the graph


@pytest.mark.parametrize("size", [(40, 56), (33, 47), (16, 16), (3, 50)])
def test_graph_computes_what_the_network_computes_at_any_size(
    run: Path, size: tuple[int, int]
) -> None:
    model = u2pl.load(run, device="cpu")
    image = photo(*size)
    mask, entropy, reliable, logits = ExportGraph(model)(torch.from_numpy(image)[None])
    expected = model.predict(image)
    assert np.array_equal(mask[0].numpy(), expected.mask)
    assert np.allclose(entropy[0].numpy(), expected.entropy, atol=1e-5)
    assert (reliable[0].numpy() == expected.reliable).mean() > 0.999
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    torch.testing.assert_close(logits, model(pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(33, 47), (64, 80)])
def test_onnx_runs_at_sizes_that_are_no_multiples_of_the_stride(
    run: Path, hub: tuple[Path, dict[str, Any]], size: tuple[int, int]
) -> None:
    session = onnxruntime.InferenceSession(str(hub[0] / "onnx/model.onnx"))
    images = np.stack([photo(*size), photo(*size)[::-1]])
    mask, entropy, reliable, logits = session.run(None, {"images": images})
    model = u2pl.load(run, device="cpu")
    for place in range(2):
        expected = model.predict(images[place])
        assert (mask[place] == expected.mask).mean() >= EQUAL_PIXELS
        assert np.abs(entropy[place] - expected.entropy).max() < 1e-3
    assert mask.dtype == np.uint8
    assert reliable.dtype == np.bool_
    assert logits.shape == (2, 3, *size)


def test_onnx_says_what_its_outputs_mean(hub: tuple[Path, dict[str, Any]]) -> None:
    file = onnx.load(str(hub[0] / "onnx/model.onnx"))
    onnx.checker.check_model(file)
    told = {entry.key: entry.value for entry in file.metadata_props}
    assert json.loads(told["classes"]) == ["ground", "wall", "tree"]
    assert len(json.loads(told["colors"])) == 3
    assert told["ignore_index"] == "255"
    assert float(told["reliable_entropy"]) > 0
    assert json.loads(told["smallest_side"]) == 17
    sides = file.graph.input[0].type.tensor_type.shape.dim
    assert [side.dim_param or side.dim_value for side in sides] == ["batch", "height", "width", 3]


def test_saved_graph_runs_without_us_and_is_described(run: Path, tmp_path: Path) -> None:
    result = u2pl.export(run, format="pt2", out=tmp_path, verify=True, num_images=1)
    assert result["equal_pixels"] == 1
    assert result["images"] == 1
    extra = {"u2pl.json": ""}
    module = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    assert json.loads(extra["u2pl.json"])["classes"] == ["ground", "wall", "tree"]
    image = photo(37, 50)
    mask = module(torch.from_numpy(image)[None])[0][0]
    assert np.array_equal(mask.numpy(), u2pl.load(run, device="cpu").predict(image).mask)


def test_network_that_cannot_be_traced_at_any_size_is_traced_at_its_crop(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = u2pl.load(run, device="cpu")
    export = torch.export.export

    def tied(graph: Any, example: Any, *, dynamic_shapes: Any, **options: Any) -> Any:
        if 1 in dynamic_shapes[0]:
            raise RuntimeError("no symbolic sides")
        return export(graph, example, dynamic_shapes=dynamic_shapes, **options)

    monkeypatch.setattr(torch.export, "export", tied)
    traced = trace(model)
    assert traced.size == (32, 32)
    module = traced.program.module()
    run_it = lambda images: (module(images)[0], module(images)[3])  # noqa: E731
    found = compare(model, run_it, [photo(50, 60)], size=traced.size)
    assert found["equal_pixels"] == 1


# weights


def test_exported_weights_are_loaded_like_a_run(
    run: Path, hub: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    u2pl.export(run, format="safetensors", out=tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors", "model.json"}
    image = photo(40, 40)
    expected = u2pl.load(run).predict(image)
    for folder in (tmp_path, hub[0]):
        found = u2pl.load(folder).predict(image)
        assert np.array_equal(found.mask, expected.mask)
        assert np.array_equal(found.reliable, expected.reliable)
    with pytest.raises(UserError, match="one set of weights"):
        u2pl.load(tmp_path, weights="student")


def test_exported_description_names_no_path_of_this_machine(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    card = json.loads((copy / "model.json").read_text())
    card["model"] |= {"pretrained": True, "weights": "/home/me/encoder.safetensors"}
    (copy / "model.json").write_text(json.dumps(card))
    u2pl.export(copy, format="safetensors", out=tmp_path / "out")
    assert "/home/me" not in (tmp_path / "out/model.json").read_text()
    assert b"/home/me" not in (tmp_path / "out/model.safetensors").read_bytes()


def test_network_with_frozen_norms_keeps_its_encoders_averages_and_is_exported(
    tmp_path: Path,
) -> None:
    kind = {"encoder": "test_efficientnet", "decoder": "fpn", "output_stride": 32}
    changes = {**kind, "decoder_channels": 32, "pretrained": True, "frozen_norm": True}
    torch.manual_seed(0)
    encoder = timm.create_model("test_efficientnet", pretrained=False)
    encoder.train()(torch.rand(8, 3, 64, 64))  # averages that are neither 0 nor 1
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    changes["weights"] = tmp_path / "encoder.safetensors"
    overrides = tiny_overrides(train__steps=4, **{f"model__{k}": v for k, v in changes.items()})
    run = tmp_path / "run"
    u2pl.train(write_dataset(tmp_path / "data"), recipe="demo", out=run, overrides=overrides)
    for name in ("ema", "student"):
        ours = load_file(run / f"weights/{name}.safetensors")
        averages = [key for key in ours if key.startswith("encoder.") and "running" in key]
        assert averages
        for key in averages:
            theirs = encoder.state_dict()[key.removeprefix("encoder.model.")]
            torch.testing.assert_close(ours[key], theirs, rtol=1e-6, atol=1e-6)
    u2pl.export(run, format="safetensors", out=tmp_path / "out")
    image = photo(40, 40)
    found, expected = u2pl.load(tmp_path / "out").predict(image), u2pl.load(run).predict(image)
    assert np.array_equal(found.mask, expected.mask)


# the Hub


def test_hub_folder_has_what_the_hub_looks_for(run: Path, hub: tuple[Path, dict[str, Any]]) -> None:
    out, result = hub
    names = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert names == {
        "README.md", "config.json", "model.json", "model.safetensors", "onnx/model.onnx",
    }  # fmt: skip
    assert json.loads((out / "config.json").read_text())["id2label"]["1"] == "wall"
    page = (out / "README.md").read_text()
    front = yaml.safe_load(page.split("---")[1])
    assert front["library_name"] == "u2pl"
    assert front["pipeline_tag"] == "image-segmentation"
    scores = json.loads((run / "eval/val.json").read_text())["ema"]
    metric = front["model-index"][0]["results"][0]["metrics"][0]
    assert metric["value"] == round(scores["miou"], 2)
    for words in ("4 labeled, 6 unlabeled, 2 val", "Recipe demo", "Protocol: whole", "| 2 | tree"):
        assert words in page
    assert "trained from scratch" in page
    assert result["equal_pixels"] >= EQUAL_PIXELS
    assert result["max_abs_difference"] < 1e-3
    assert result["images"] == 2


def test_only_the_named_folder_is_written_to(run: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.json").symlink_to(tmp_path / "secret/model.json")
    u2pl.export(run, format="safetensors", out=tmp_path / "out")
    assert not (tmp_path / "out/model.json").is_symlink()
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").symlink_to(tmp_path / "secret")  # the user's own folder: followed
    u2pl.export(run, format="safetensors", out=tmp_path / "out")
    assert len(list((tmp_path / "secret").iterdir())) == 2


def test_link_in_a_run_leads_no_export_out_of_it(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (tmp_path / "secret").mkdir()
    (copy / "export").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="out of the run folder"):
        u2pl.export(copy, format="safetensors")
    assert list((tmp_path / "secret").iterdir()) == []


# mistakes, and differences


def test_unknown_format_is_refused_with_the_nearest_name(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"got 'onx'\. Did you mean 'onnx'\?") as error:
        u2pl.export(run, format="onx", out=tmp_path / "out")
    assert error.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_missing_package_is_told_before_any_work(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"onnx is not installed; do pip install 'u2pl\[export\]'"):
        u2pl.export(run, format="onnx", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_difference_is_counted_in_pixels_and_in_logits(run: Path) -> None:
    model = u2pl.load(run, device="cpu")

    def other(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model.whole(images.permute(0, 3, 1, 2).float() / 255)
        mask = logits.argmax(dim=1)
        mask[:, 0] = (mask[:, 0] + 1) % 3  # a row of 20 is wrong
        return mask, logits + 0.25

    found = compare(model, other, [photo(20, 30)], size=None)
    assert found["equal_pixels"] == pytest.approx(0.95)
    assert found["max_abs_difference"] == pytest.approx(0.25)


def test_images_to_compare_on_may_be_named(run: Path, tmp_path: Path) -> None:
    Image.fromarray(photo(30, 31)).save(tmp_path / "a.png")
    result = u2pl.export(
        run, format="safetensors", out=tmp_path / "out", verify=True, images=tmp_path / "a.png"
    )
    assert (result["equal_pixels"], result["images"]) == (1, 1)
