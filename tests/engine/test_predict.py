from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from factories import write_dataset
from tiny import tiny_overrides
from u2pl import evaluate, load, predict, train
from u2pl.data.images import entropy_picture
from u2pl.data.sources import load_dataset
from u2pl.engine.checkpoint import load_weights, save_weights
from u2pl.engine.evaluate import NUM_BINS
from u2pl.engine.predict import (
    Labeling,
    SegmentationModel,
    find_images,
    load_model,
    predict_images,
)
from u2pl.engine.run_folder import RunFolder
from u2pl.engine.tiles import Tiling
from u2pl.errors import UserError

ALL = ("masks", "overlays", "entropy", "reliable")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is trained enough to tell classes apart."""
    root = tmp_path_factory.mktemp("predict")
    dataset = write_dataset(root / "data", num_val=3)
    overrides = tiny_overrides(train__steps=40, train__eval_every=20)
    train(dataset, recipe="demo", out=root / "run", overrides=overrides)
    return root / "run"


@pytest.fixture(scope="module")
def model(run: Path) -> SegmentationModel:
    return load_model(run)


def write_images(folder: Path, *names: str, size: tuple[int, int] = (33, 47)) -> Path:
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / name)
    return folder


def pictures(out: Path) -> set[str]:
    return {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}


# one image


@pytest.mark.parametrize("size", [(40, 56), (33, 47), (9, 64)])
def test_prediction_has_the_size_of_the_image(
    model: SegmentationModel, size: tuple[int, int], tmp_path: Path
) -> None:
    file = write_images(tmp_path, "a.png", size=size) / "a.png"
    mask, entropy, reliable = model.predict(file)
    assert mask.shape == entropy.shape == reliable.shape == size
    assert (mask.dtype, entropy.dtype, reliable.dtype) == (np.uint8, np.float32, np.bool_)
    assert mask.max() < 3
    assert entropy.min() >= 0
    assert entropy.max() <= math.log(3) + 1e-5
    assert np.array_equal(reliable, entropy <= model.card.reliable_entropy)
    again = model.predict(np.asarray(Image.open(file)))
    assert np.array_equal(again.mask, mask)


def test_reliable_pixels_of_val_are_the_share_that_the_run_says(
    model: SegmentationModel, run: Path
) -> None:
    """1 - α_0 of them, up to the pixels that share a bin of the histogram with the last one."""
    dataset = load_dataset(RunFolder(run).dataset)
    found = [model.predict(sample.image) for sample in dataset.val]
    reliable = np.concatenate([prediction.reliable.ravel() for prediction in found])
    entropy = np.concatenate([prediction.entropy.ravel() for prediction in found])
    one_bin = np.histogram(entropy, NUM_BINS, (0, math.log(3)))[0].max() / entropy.size
    assert 0.79 < reliable.mean() < 0.81 + one_bin


@pytest.mark.parametrize("protocol", ["whole", "slide"])
def test_predictions_are_those_that_were_scored(run: Path, protocol: str, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    card = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(card | {"protocol": protocol}))
    scored = evaluate(copy, protocol=protocol)
    model, dataset = load(copy), load_dataset(RunFolder(copy).dataset)
    table = np.zeros((3, 3), int)
    for sample in dataset.val:
        np.add.at(table, (dataset.read_mask(sample), model.predict(sample.image).mask), 1)
    assert scored["confusion"] == table.tolist()
    assert scored["protocol"] == protocol


def test_forward_gives_logits_at_the_images_size(model: SegmentationModel) -> None:
    images = torch.rand(2, 3, 30, 41)
    assert model(images).shape == (2, 3, 30, 41)
    assert not model(images).requires_grad
    assert not model.training


def test_file_that_is_no_image_is_named(model: SegmentationModel, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(UserError, match=r"a\.png: the file is not an image"):
        model.predict(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"none\.png: the file does not exist"):
        model.predict(tmp_path / "none.png")


# loading


def test_weights_and_checkpoints_are_told_apart(run: Path) -> None:
    ema, student = load_model(run), load_model(run, weights="student")
    assert ema.classes == ("ground", "wall", "tree")
    name = "segmentation_head.3.weight"
    assert torch.equal(
        ema.network.state_dict()[name], load_weights(RunFolder(run).weights("ema"))[name]
    )
    assert not torch.equal(ema.network.state_dict()[name], student.network.state_dict()[name])
    best = load_model(run, checkpoint="best")
    state = torch.load(RunFolder(run).checkpoint("best"), weights_only=True)
    assert best.card.step == state["step"]
    assert torch.equal(best.network.state_dict()[name], state["teacher"][name])


def test_loading_needs_no_pretrained_weights(run: Path, tmp_path: Path) -> None:
    """A run that started from a file of ImageNet weights is loaded where the file is gone."""
    copy = shutil.copytree(run, tmp_path / "run")
    card = json.loads((copy / "model.json").read_text())
    card["model"] |= {"pretrained": True, "weights": "/gone/encoder.safetensors"}
    (copy / "model.json").write_text(json.dumps(card))
    assert load_model(copy).card.step == 40


def test_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        load_model(tmp_path)


def test_unfinished_run_is_told(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "config.yaml", tmp_path)
    with pytest.raises(UserError, match=r"has no model\.json yet; it is written when training"):
        load_model(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '{"model": 5}'])
def test_damaged_description_is_told(run: Path, tmp_path: Path, text: str) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "model.json").write_text(text)
    with pytest.raises(UserError):
        load_model(copy)


def test_description_of_another_network_is_told(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    card = json.loads((copy / "model.json").read_text())
    card["model"]["feature_size"] = 16
    (copy / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError):
        load_model(copy)


def test_damaged_and_foreign_weights_are_told(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    file = RunFolder(copy).weights("ema")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"The weights .* cannot be read"):
        load_model(copy)
    file.unlink()
    with pytest.raises(UserError, match="There are no weights at"):
        load_model(copy)


def test_weights_of_another_network_are_told(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    save_weights(RunFolder(copy).weights("ema"), {"other": torch.zeros(2)})
    with pytest.raises(UserError):
        load_model(copy)


# many images


def test_names_and_subfolders_are_kept(model: SegmentationModel, tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", "a.png", "sub/b.jpg", "sub/deep/a.png")
    (source / "notes.txt").write_text("no image")
    seen: list[tuple[int, int]] = []
    result = predict_images(
        model, source, tmp_path / "out", kinds=ALL, on_image=lambda *n: seen.append(n)
    )
    names = ("a.png", "sub/b.png", "sub/deep/a.png")
    assert pictures(tmp_path / "out") == {f"{kind}/{name}" for kind in ALL for name in names}
    assert result["images"] == 3
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert 0 <= result["reliable_share"] <= 1


def test_pictures_show_what_was_predicted(model: SegmentationModel, tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", "a.png")
    predict_images(model, source, tmp_path / "out", kinds=ALL)
    prediction = model.predict(source / "a.png")
    with Image.open(tmp_path / "out/masks/a.png") as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), prediction.mask)
        palette = mask.getpalette()
    assert palette is not None
    assert [tuple(palette[3 * i : 3 * i + 3]) for i in range(3)] == list(model.card.colors)
    with Image.open(tmp_path / "out/reliable/a.png") as reliable:
        assert np.array_equal(np.asarray(reliable) == 255, prediction.reliable)
        assert set(np.unique(reliable)) <= {0, 255}
    with Image.open(tmp_path / "out/entropy/a.png") as picture:
        levels, colors = np.asarray(picture), np.asarray(picture.convert("RGB"))
    nats = levels / 255 * math.log(3)
    np.testing.assert_allclose(nats, prediction.entropy, atol=0.51 / 255 * math.log(3))
    assert np.array_equal(colors, entropy_picture(prediction.entropy, 3))
    with Image.open(tmp_path / "out/overlays/a.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (47, 33))


def test_more_images_than_are_read_ahead_come_in_order(
    model: SegmentationModel, tmp_path: Path
) -> None:
    names = [f"{i:02d}.png" for i in range(11)]
    source = tmp_path / "in"
    for i, name in enumerate(names):
        write_images(source, name, size=(16 + i, 20))
    result = predict_images(model, source, tmp_path / "out", kinds=["masks"])
    assert result["images"] == 11
    for i, name in enumerate(names):
        with Image.open(tmp_path / "out/masks" / name) as mask:
            assert mask.size == (20, 16 + i)


def test_one_file_is_enough(model: SegmentationModel, tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", "a.png", "b.png")
    predict_images(model, source / "b.png", tmp_path / "out", kinds=["masks"])
    assert pictures(tmp_path / "out") == {"masks/b.png"}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.png", ["a.png"]),
        ("**/*.png", ["a.png", "sub/b.png"]),
        ("s*/?.png", ["sub/b.png"]),
        ("*.[jp][pn]g", ["a.png", "c.jpg"]),
    ],
)
def test_globs_name_files_below_their_fixed_folder(
    tmp_path: Path, pattern: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_images(tmp_path / "in", "a.png", "sub/b.png", "c.jpg")
    assert find_images(source / pattern) == (source, [source / name for name in names])
    monkeypatch.chdir(source)
    base, files = find_images(Path(pattern))
    assert [file.relative_to(base).as_posix() for file in files] == names


def test_source_that_is_nowhere_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no image and no folder"):
        find_images(tmp_path / "none")
    with pytest.raises(UserError, match="There is no image and no folder"):
        find_images(tmp_path / "none" / "*.png")


def test_source_without_an_image_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    for source in (tmp_path, tmp_path / "*.png"):
        with pytest.raises(UserError, match=r"Found no image in .*; expected \.bmp, \.jpeg"):
            find_images(source)


def test_two_images_of_one_name_are_refused_before_any_work(
    model: SegmentationModel, tmp_path: Path
) -> None:
    source = write_images(tmp_path / "in", "sub/a.jpg", "sub/a.png")
    with pytest.raises(UserError, match=r"a\.jpg and .*a\.png would both be written as sub/a\.png"):
        predict_images(model, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_image_in_a_folder_is_named(model: SegmentationModel, tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", "a.png", "b.png")
    os.truncate(source / "b.png", 200)
    with pytest.raises(UserError, match=r"b\.png: "):
        predict_images(model, source, tmp_path / "out", kinds=["masks"])


def test_output_that_cannot_be_a_folder_is_told(model: SegmentationModel, tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", "a.png")
    (tmp_path / "out").write_text("a file stands here")
    with pytest.raises(UserError, match="out"):
        predict_images(model, source, tmp_path / "out", kinds=["masks"])


def test_unknown_kind_of_picture_is_refused(model: SegmentationModel, tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", "a.png")
    wrong: Any = ["mask"]
    with pytest.raises((UserError, ValueError), match="mask"):
        predict_images(model, source, tmp_path / "out", kinds=wrong)


# what was damaged or made to harm


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", "abc"),
        ("classes", ["a"]),
        ("classes", ["a", "b\nc", "d"]),
        ("colors", [[0, 0, 0]]),
        ("colors", [[0, 0, 300]] * 3),
        ("resize", "big"),
        ("resize", 0),
        ("protocol", "windows"),
        ("crop", [1]),
        ("crop", [0, 0]),
        ("stride_fraction", 0),
        ("scales", []),
        ("flip", "x"),
        ("reliable_entropy", None),
        ("step", "x"),
        ("model", {"encoder": "none"}),
        ("model", {"decoder": "none"}),
        ("model", None),
    ],
)
def test_description_with_an_impossible_value_is_told(
    run: Path, tmp_path: Path, key: str, value: Any
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    tree = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(tree | {key: value}))
    with pytest.raises(UserError):
        load_model(copy)


def test_checkpoint_without_a_teacher_is_told(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    file = RunFolder(copy).checkpoint("best")
    state = torch.load(file, weights_only=True)
    torch.save({key: value for key, value in state.items() if key != "teacher"}, file)
    with pytest.raises(UserError, match="is not a checkpoint of u2pl"):
        load_model(copy, checkpoint="best")
    assert load_model(copy, checkpoint="best", weights="student").card.step > 0


def test_whole_numbers_are_no_weights(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    file = RunFolder(copy).weights("ema")
    save_weights(file, {key: tensor.to(torch.int8) for key, tensor in load_weights(file).items()})
    with pytest.raises(UserError, match="do not fit the network"):
        load_model(copy)


def test_answer_that_is_not_finite_is_no_mask(run: Path, tmp_path: Path) -> None:
    model = load_model(run)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="The network's answer is not finite"):
        predict_images(model, write_images(tmp_path, "a.png"), tmp_path / "out")
    assert pictures(tmp_path / "out") == set()


def test_images_judged_together_are_judged_each_by_itself(model: SegmentationModel) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, len(model.classes), 5, 6, generator=generator)
    logits[1, 0, 2, 2] = torch.nan
    judged = model.judge_all(logits)
    for index in (0, 2):
        alone = model.judge(logits[index : index + 1])
        for ours, theirs in zip(judged.of(index), alone, strict=True):
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs)
    with pytest.raises(UserError, match="The network's answer is not finite"):
        judged.of(1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_writes_the_masks_of_a_cpu(run: Path, model: SegmentationModel, tmp_path: Path) -> None:
    names = [f"{i:02d}.png" for i in range(19)]
    source = write_images(tmp_path / "in", *names)
    predict_images(model, source, tmp_path / "cpu", kinds=["masks"])
    predict_images(load_model(run, device="cuda"), source, tmp_path / "gpu", kinds=["masks"])
    for name in names:
        here, there = (
            np.asarray(Image.open(tmp_path / who / "masks" / name)) for who in ("cpu", "gpu")
        )
        assert (here == there).mean() > 0.99  # ties of rounding


def test_folder_with_the_suffix_of_an_image_is_passed_over(tmp_path: Path) -> None:
    write_images(tmp_path, "x.png/a.png", "b.png")
    assert find_images(tmp_path)[1] == [tmp_path / "b.png", tmp_path / "x.png/a.png"]


def test_pattern_leads_upwards_only_before_its_first_wildcard(tmp_path: Path) -> None:
    write_images(tmp_path, "in/a.png", "b.png")
    assert find_images(tmp_path / "in/../*.png")[1] == [tmp_path / "in/../b.png"]
    with pytest.raises(UserError, match=r"has '\.\.' behind a wildcard") as error:
        find_images(tmp_path / "*/../*.png")
    assert error.value.exit_code == 2


def test_path_too_long_for_a_file_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no image and no folder"):
        find_images(tmp_path / ("n" * 5000))


# for a test server


def cityscapes_run(run: Path, folder: Path) -> Path:
    """The run with names of Cityscapes."""
    copy = shutil.copytree(run, folder)
    card = json.loads((copy / "model.json").read_text())
    names = {"classes": ["road", "traffic light", "bicycle"], "recipe": "demo"}
    (copy / "model.json").write_text(json.dumps(card | names))
    return copy


def test_cityscapes_server_gets_its_own_ids_at_full_size(run: Path, tmp_path: Path) -> None:
    model = load_model(cityscapes_run(run, tmp_path / "run"))
    names = [f"{city}/{city}_000000_00001{i}_leftImg8bit.png" for i, city in enumerate(["a", "b"])]
    source, out = write_images(tmp_path / "in", *names), tmp_path / "out"
    predict_images(model, source, out, kinds=(), server="cityscapes", manifest=True)
    assert pictures(out) == {
        "manifest.jsonl",
        "cityscapes/a_000000_000010_pred_labelIds.png",
        "cityscapes/b_000000_000011_pred_labelIds.png",
    }
    with Image.open(out / "cityscapes/a_000000_000010_pred_labelIds.png") as image:
        assert (image.mode, image.size) == ("L", (47, 33))
        ids = np.asarray(image)
    mask = model.predict(source / names[0]).mask
    assert np.array_equal(ids, np.array([7, 19, 33])[mask])
    again = predict_images(
        model, source, out, kinds=(), server="cityscapes", manifest=True, resume=True
    )
    assert (again["images"], again["skipped"]) == (0, 2)


def test_voc_server_gets_palette_files_beside_what_else_is_asked_for(
    run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    card = json.loads((copy / "model.json").read_text())
    names = {"classes": ["background", "tv/monitor", "cat"]}
    (copy / "model.json").write_text(json.dumps(card | names))
    model, out = load_model(copy), tmp_path / "out"
    source = write_images(tmp_path / "in", "2008_000006.jpg")
    small = Tiling(size=64, overlap=32, whole=1)
    for tiling, folder in ((None, out / "whole"), (small, out / "tiles")):
        predict_images(model, source, folder, kinds=["masks"], server="voc", tiling=tiling)
        place = "results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png"
        assert pictures(folder) == {place, "masks/2008_000006.png"}
        with Image.open(folder / place) as image, Image.open(folder / "masks/2008_000006.png") as m:
            assert image.mode == "P"
            assert image.getpalette()[60:63] == [0, 64, 128]  # type: ignore[index]
            assert np.array_equal(np.asarray(image), np.array([0, 20, 8])[np.asarray(m)])


def test_image_of_another_name_stops_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    model, out = load_model(cityscapes_run(run, tmp_path / "run")), tmp_path / "out"
    source = write_images(tmp_path / "in", "a_000000_000010_leftImg8bit.png", "photo.png")
    with pytest.raises(UserError, match="cityscapes server knows images by names such as"):
        predict_images(model, source, out, server="cityscapes")
    assert not out.exists()


def test_prediction_by_another_protocol_is_that_of_its_scores(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    scored = evaluate(copy, protocol="whole-ms-flip")
    dataset = load_dataset(RunFolder(copy).dataset)
    out, table = tmp_path / "out", np.zeros((3, 3), int)
    predict(copy, dataset.val[0].image.parent, out=out, save=["masks"], protocol="whole-ms-flip")
    for sample in dataset.val:
        mask = np.asarray(Image.open(out / "masks" / f"{sample.name}.png"))
        np.add.at(table, (dataset.read_mask(sample), mask), 1)
    assert scored["confusion"] == table.tolist()
    with pytest.raises(UserError, match="center-crop scores the middle"):
        predict(copy, dataset.val[0].image.parent, out=out, protocol="center-crop")


def test_description_of_an_earlier_version_sees_images_once(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    card = json.loads((copy / "model.json").read_text())
    old = {key: value for key, value in card.items() if key not in ("scales", "flip")}
    (copy / "model.json").write_text(json.dumps(old))
    assert not load_model(copy).card.seen_by.has_views


@pytest.mark.parametrize("groups_asked_ahead", [0, 1])
def test_images_of_one_size_are_seen_together_in_order(
    groups_asked_ahead: int,
    model: SegmentationModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU: what is written is what one image at a time gives."""
    folder = write_images(tmp_path / "in", *(f"{i}.png" for i in range(5)))
    write_images(folder, "2.png", size=(20, 30))
    predict_images(model, folder, tmp_path / "single", kinds=ALL)
    shapes: list[tuple[int, ...]] = []
    forward = SegmentationModel.forward

    def seen(self: SegmentationModel, images: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(images.shape))
        return forward(self, images)

    monkeypatch.setattr(SegmentationModel, "forward", seen)
    monkeypatch.setattr(Labeling, "images_at_once", lambda self, image: 2)
    monkeypatch.setattr(Labeling, "groups_asked_ahead", groups_asked_ahead)
    told: list[int] = []
    predict_images(
        model, folder, tmp_path / "batched", kinds=ALL, on_image=lambda done, _: told.append(done)
    )
    assert [(shape[0], shape[-2:]) for shape in shapes] == [
        (2, (33, 47)),
        (1, (20, 30)),
        (2, (33, 47)),
    ]
    assert told == [1, 2, 3, 4, 5]
    for name in pictures(tmp_path / "single"):
        one, other = (
            np.asarray(Image.open(tmp_path / out / name), dtype=np.int64)
            for out in ("single", "batched")
        )
        assert one.shape == other.shape
        assert (one != other).mean() < 0.01, name  # a batch may round otherwise
