from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import reference.masks
import reference.partition
from factories import write_dataset
from tiny import tiny_config, tiny_overrides
from u2pl import train
from u2pl.api import inspect
from u2pl.data.sources import Dataset, load_dataset
from u2pl.engine.checkpoint import load_weights, save_weights
from u2pl.engine.evaluate import NUM_BINS, quantile_bin
from u2pl.engine.inspection import (
    Opinion,
    PixelTally,
    Teacher,
    coverage,
    draw,
    inspect_run,
    measure,
    pick,
    read_memory,
    spread,
    summary,
    windows_of,
)
from u2pl.engine.inspection import _Counter as Counter
from u2pl.engine.inspection_pictures import KEY_COLORS, Canvas, keys_picture
from u2pl.engine.predict import load_model
from u2pl.engine.run_folder import RunFolder
from u2pl.errors import UserError
from u2pl.mixing import on_grid
from u2pl.models import upsample

CPU = torch.device("cpu")
NAMES = ("ground", "wall", "tree")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in ``data`` and a run of three steps, with contrast and denoising, in ``run``."""
    root = tmp_path_factory.mktemp("inspection")
    dataset = write_dataset(root / "data", tags=True)
    train(dataset, recipe="demo", out=root / "run", overrides=tiny_overrides(train__steps=3))
    sharpen(root / "run")
    return root


def sharpen(run: Path) -> None:
    """Scale the logits, so that entropies differ; a net of three steps finds all classes alike."""
    path = RunFolder(run).weights("ema")
    weights = load_weights(path)
    for part in ("weight", "bias"):
        weights[f"segmentation_head.3.{part}"] *= 10
    save_weights(path, weights)


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy; its run still reads the first one's data."""
    return shutil.copytree(finished, tmp_path / "root")


def teacher_of(run: Path, **changes: Any) -> tuple[Teacher, Dataset]:
    folder = RunFolder(run)
    config = folder.read_config().with_overrides(
        {key.replace("__", "."): value for key, value in changes.items()}
    )
    data = load_dataset(folder.dataset)
    memory = read_memory(folder, config, data.num_classes)
    return Teacher(load_model(run), memory.prototypes, config), data


def hidden_masks(root: Path, names: list[str]) -> Path:
    """Masks of unlabelled images: their upper half is ground, the rest wall."""
    folder = root / "hidden"
    folder.mkdir()
    mask = np.zeros((40, 56), np.uint8)
    mask[20:] = 1
    for name in names:
        Image.fromarray(mask).save(folder / f"{name}.png")
    return folder


# figures


def slow_figures(teacher: Teacher, data: Dataset, share: float) -> dict[str, Any]:
    """Reliable, right and negative pixels of val, counted one by one, without denoising."""
    labels: list[tuple[float, int, int]] = []  # entropy, predicted, true
    keys: list[tuple[float, int, int]] = []  # entropy, class, true
    for sample in data.val:
        pixels = np.asarray(Image.open(sample.image)).astype(np.float32) / 255
        with torch.no_grad():
            image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
            logits = teacher.network(image).logits
            full = upsample(logits, (40, 56)).softmax(dim=1)
        truth = data.read_mask(sample)
        grid = (logits.shape[-2], logits.shape[-1])
        entropy = reference.partition.prediction_entropy(full.double().tolist())
        flat = np.array(entropy)[0]
        found = full[0].argmax(0).numpy()
        ranks = reference.masks.class_rank(logits.softmax(dim=1).tolist())[0]
        labels += zip(flat.ravel(), found.ravel(), truth.ravel(), strict=True)
        at_grid = on_grid(torch.from_numpy(flat), grid)
        true_at_grid = on_grid(torch.from_numpy(truth), grid)
        for c in range(3):
            for y in range(grid[0]):
                for x in range(grid[1]):
                    if teacher.low <= ranks[c][y][x] < teacher.high:
                        keys.append((float(at_grid[y, x]), c, int(true_at_grid[y, x])))
    surest = sorted(entropy for entropy, _, _ in labels)
    cut = surest[math.ceil(share * len(surest)) - 1]
    edge = (math.floor(cut / math.log(3) * NUM_BINS) + 1) * math.log(3) / NUM_BINS
    sure = [(f, t) for entropy, f, t in labels if entropy < edge]
    unsure = [(f, t) for entropy, f, t in labels if entropy >= edge]
    negative = [(c, t) for entropy, c, t in keys if entropy >= edge]
    return {
        "reliable": len(sure),
        "reliable_precision": 100 * np.mean([f == t for f, t in sure]),
        "unreliable": len(unsure),
        "unreliable_precision": 100 * np.mean([f == t for f, t in unsure]),
        "negatives": len(negative),
        "negatives_error_rate": 100 * np.mean([c == t for c, t in negative]),
        "walls": sum(c == 1 for c, _ in negative),
        "edge": edge,
    }


def test_figures_are_those_of_a_loop_over_pixels(root: Path) -> None:
    config = (root / "run/config.yaml").read_text()
    assert "denoise_temperature: 0.25" in config
    plain = config.replace("denoise_temperature: 0.25", "denoise_temperature: null")
    (root / "run/config.yaml").write_text(plain)
    result = inspect(root / "run")
    teacher, data = teacher_of(root / "run")
    slow = slow_figures(teacher, data, 1 - 0.2)
    section = result["sections"]["val"]
    # an entropy within a rounding error of the edge may fall on either side
    for key in ("reliable", "unreliable", "negatives"):
        assert section[key] == pytest.approx(slow[key], abs=3), key
    for key in ("reliable_precision", "unreliable_precision", "negatives_error_rate"):
        assert section[key] == pytest.approx(slow[key], abs=0.2), key
    assert section["entropy_threshold"] == pytest.approx(slow["edge"], rel=1e-3)
    assert section["classes"]["wall"]["negatives"] == pytest.approx(slow["walls"], abs=3)
    assert section["reliable"] + section["unreliable"] == 3 * 40 * 56
    assert section["negatives"] > 0


def test_scores_are_those_of_the_evaluation(root: Path) -> None:
    result = inspect(root / "run")
    scores = json.loads((root / "run/eval/val.json").read_text())
    assert result["sections"]["val"]["miou"] == pytest.approx(scores["ema"]["miou"])
    support = np.array(scores["ema"]["confusion"]).sum(1)
    classes = result["sections"]["val"]["classes"]
    assert [classes[name]["support"] for name in NAMES] == support.tolist()
    assert json.loads((root / "run/eval/inspection.json").read_text()) == result


def opinion_of(predictions: list[int], entropy: list[float], **masks: Any) -> Opinion:
    """One image of one row; the feature grid is that of the pixels."""
    width = len(predictions)
    blank = torch.zeros(1, 3, 1, width, dtype=torch.bool)
    return Opinion(
        logits=torch.zeros(1, 3, 1, width),
        predictions=torch.tensor([[predictions]]),
        entropy=torch.tensor([[entropy]]),
        valid=masks.get("valid", torch.ones(1, 1, width, dtype=torch.bool)),
        candidates=masks.get("candidates", blank),
        certain=masks.get("certain", blank),
    )


def test_a_worked_example() -> None:
    """Four pixels, the last of unknown truth; the two surest are reliable."""
    candidates = torch.zeros(1, 3, 1, 4, dtype=torch.bool)
    candidates[0, 2] = True  # the least likely class everywhere
    tally = PixelTally(3, 255, CPU)
    tally.add(
        opinion_of([0, 1, 1, 0], [0.1, 0.2, 0.9, 1.0], candidates=candidates),
        torch.tensor([[[0, 0, 2, 255]]]),
    )
    last_bin = int(0.5 / math.log(3) * NUM_BINS)
    result = summary(tally, NAMES, last_bin)
    assert result["reliable_share"] == 0.5
    assert (result["reliable"], result["reliable_precision"]) == (2, 50.0)
    assert (result["unreliable"], result["unreliable_precision"]) == (1, 0.0)
    # the third pixel is a key of the class that it is in truth; the sure ones are no keys
    assert (result["negatives"], result["negatives_error_rate"]) == (1, 100.0)
    assert result["classes"]["ground"]["reliable_precision"] == 100.0
    assert result["classes"]["tree"]["reliable_precision"] is None
    assert result["classes"]["wall"]["negatives"] == 0


def test_certain_keys_count_whatever_the_entropy() -> None:
    certain = torch.zeros(1, 3, 1, 2, dtype=torch.bool)
    certain[0, 1, 0, 0] = True
    tally = PixelTally(3, 255, CPU)
    tally.add(opinion_of([0, 0], [0.0, 0.0], certain=certain), torch.tensor([[[0, 0]]]))
    result = summary(tally, NAMES, NUM_BINS - 1)
    assert result["unreliable"] == 0
    assert (result["negatives"], result["negatives_error_rate"]) == (1, 0.0)


def test_pixels_that_are_not_valid_are_not_counted() -> None:
    valid = torch.tensor([[[True, False]]])
    tally = PixelTally(3, 255, CPU)
    tally.add(opinion_of([0, 0], [0.0, 0.0], valid=valid), torch.tensor([[[0, 0]]]))
    assert int(tally.entropies.sum()) == int(tally.labels.sum()) == 1


def test_masks_that_are_all_ignore_give_no_figure() -> None:
    tally = PixelTally(3, 255, CPU)
    truth = torch.full((1, 1, 2), 255)
    tally.add(opinion_of([0, 1], [0.0, 0.5]), truth)
    assert tally.score(torch.tensor([[0, 1]]), truth[0]) is None
    result = summary(tally, NAMES, 0)
    assert result["miou"] is None
    assert result["coverage"] == []
    assert result["reliable_precision"] is result["negatives_error_rate"] is None


def test_coverage_of_a_teacher_that_is_right_where_it_is_sure() -> None:
    counts = torch.zeros(2, NUM_BINS, dtype=torch.long)
    counts[1, 0], counts[0, 100] = 30, 10
    assert coverage(counts, points=4) == [[0.75, 100.0], [1.0, 75.0]]


# windows


@pytest.mark.parametrize("size", [(40, 56), (32, 32), (33, 100), (20, 20)])
def test_windows_show_every_pixel_once(size: tuple[int, int]) -> None:
    config = tiny_config(evaluation__protocol="slide", evaluation__crop=[32, 32])
    seen = torch.zeros(size, dtype=torch.long)
    for window in windows_of(torch.zeros(1, 3, *size), config):
        seen[window.rows, window.columns] += window.fresh
    assert bool((seen == 1).all())


def test_whole_images_are_one_window() -> None:
    (window,) = windows_of(torch.zeros(1, 3, 40, 56), tiny_config())
    assert (window.rows, window.columns) == (slice(0, 40), slice(0, 56))
    assert bool(window.fresh.all())


def test_sliding_run_is_inspected_as_it_is_scored(root: Path) -> None:
    teacher, data = teacher_of(
        root / "run", evaluation__protocol="slide", evaluation__crop=[32, 32]
    )
    tally, scores = measure(teacher, data.val, data, Counter(3, lambda *_: None))
    assert int(tally.entropies.sum()) == 3 * 40 * 56
    assert all(score is not None for score in scores)


# tags, contrast, checkpoints


def test_tags_veto_as_in_training(root: Path) -> None:
    names = [f"unlabeled_{i}" for i in range(3)]
    result = inspect(root / "run", true_masks=hidden_masks(root, names))
    section = result["sections"]["unlabeled"]
    assert (section["images"], section["of"]) == (3, 3)
    data = load_dataset(root / "run/dataset.yaml")
    lacking = [s for s in data.unlabeled[:3] if s.tags is not None and len(s.tags) < 3]
    assert lacking
    teacher, _ = teacher_of(root / "run")
    images = torch.rand(1, 3, 32, 32)
    possible = torch.tensor([[True, False, True]])
    opinion = teacher.judge(images, torch.ones(1, 32, 32, dtype=torch.bool), possible)
    assert not bool((opinion.predictions == 1).any())
    assert not bool(opinion.certain[:, [0, 2]].any())


def test_run_without_contrast_shows_the_keys_that_it_would_have_given(
    finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    data = finished / "data/dataset.yaml"
    overrides = tiny_overrides(train__steps=1)
    train(data, recipe="demo", setting="supervised", out=out, overrides=overrides)
    sharpen(out)
    result = inspect(out)
    assert (result["contrast"], result["denoised"], result["queues"]) == (False, False, None)
    assert result["sections"]["val"]["negatives"] > 0


def test_queues_and_rules_are_told(root: Path) -> None:
    result = inspect(root / "run")
    assert (result["low_rank"], result["high_rank"]) == (1, 3)
    assert (result["contrast"], result["denoised"], result["step"]) == (True, True, 3)
    assert set(result["queues"]) == set(NAMES)
    for queue in result["queues"].values():
        assert 0 <= queue["keys"] <= queue["capacity"] == 64


def test_run_whose_checkpoint_is_gone_is_not_denoised(root: Path) -> None:
    shutil.rmtree(root / "run/checkpoints")
    result = inspect(root / "run")
    assert (result["denoised"], result["queues"]) == (False, None)


def test_checkpoint_of_other_settings_is_refused(root: Path) -> None:
    config = (root / "run/config.yaml").read_text().replace("feature_size: 8", "feature_size: 16")
    (root / "run/config.yaml").write_text(config)
    folder = RunFolder(root / "run")
    with pytest.raises(UserError) as caught:
        read_memory(folder, folder.read_config(), 3)
    assert str(caught.value) == (
        f"The checkpoint of {folder.path} does not fit its config.yaml; were files of two runs "
        "mixed?"
    )


def test_folder_without_the_masks_is_refused(root: Path) -> None:
    with pytest.raises(UserError) as caught:
        inspect(root / "run", true_masks=root)
    assert str(caught.value) == (
        f"{root} holds no mask of an unlabelled image of the run, such as unlabeled_0.png; name "
        "another folder."
    )


def test_at_least_one_image_is_looked_at(root: Path) -> None:
    with pytest.raises(UserError, match="Expected at least one image, got 0") as caught:
        inspect(root / "run", max_images=0)
    assert caught.value.exit_code == 2


def test_run_that_has_not_ended_cannot_be_inspected(root: Path) -> None:
    (root / "run/model.json").unlink()
    data = load_dataset(root / "data/dataset.yaml")
    with pytest.raises(UserError, match="written when training ends"):
        inspect_run(RunFolder(root / "run"), data, {"val": data.val})


def test_few_images_are_spread_over_the_section(root: Path) -> None:
    data = load_dataset(root / "data/dataset.yaml")
    assert spread(data.unlabeled, 3) == data.unlabeled[::2]
    assert spread(data.unlabeled, 9) == data.unlabeled
    told: list[tuple[int, int]] = []
    result = inspect(root / "run", max_images=2, on_image=lambda *x: told.append(x))
    assert (result["sections"]["val"]["images"], result["sections"]["val"]["of"]) == (2, 3)
    assert told[-1] == (2, 2)


# pictures


def test_no_image_is_picked_twice() -> None:
    for count in range(12):
        chosen = pick([float(i) for i in range(count)], 3)
        indices = [index for index, _ in chosen]
        assert len(indices) == len(set(indices)) == min(count, 9)
    assert pick([None, None], 3) == []
    assert [index for index, why in pick([5.0, 1.0, 9.0], 1) if why == "worst"] == [1]


def test_pictures_of_the_worst_image_come_first_and_old_ones_go(root: Path) -> None:
    place = root / "run/pictures/inspection"
    (place / "777").mkdir(parents=True)
    (place / "777/image.jpg").write_text("old")
    result = inspect(root / "run")
    assert [entry["why"] for entry in result["pictures"]] == ["worst"] * 3
    scores = [entry["miou"] for entry in result["pictures"]]
    assert scores == sorted(scores)
    assert sorted(folder.name for folder in place.iterdir()) == ["000", "001", "002"]
    for folder in place.iterdir():
        sizes = {}
        for file in folder.iterdir():
            with Image.open(file) as picture:
                sizes[file.name] = picture.size
        assert sizes.pop("negatives.png") == (56, 3 * 40)
        assert set(sizes) == {
            "image.jpg", "truth.png", "prediction.png", "entropy.png", "reliable.png",
        }  # fmt: skip
        assert set(sizes.values()) == {(56, 40)}


def test_picture_shows_what_the_figures_count(root: Path) -> None:
    """The share of reliable pixels and of wrong keys, read back from what was drawn."""
    teacher, data = teacher_of(root / "run")
    tally, _ = measure(teacher, data.val[:1], data, Counter(1, lambda *_: None))
    last_bin = quantile_bin(tally.entropies, 0.6)
    canvas = draw(teacher, data.val[0], data, last_bin)
    result = summary(tally, data.classes, last_bin)
    reliable = canvas.labels != data.ignore_index
    assert reliable.mean() == pytest.approx(result["reliable_share"], abs=1e-3)
    right = (canvas.labels == canvas.truth)[reliable].mean()
    assert 100 * right == pytest.approx(result["reliable_precision"], abs=0.1)
    # of the cells' pixels those of unsure centres are keys: sixteen each, none cut at 40 x 56
    assert canvas.keys.sum() == 16 * result["negatives"]


def test_keys_have_the_colours_of_the_legend() -> None:
    canvas = Canvas.blank((4, 6), 2)
    canvas.truth[:, 3:] = 1
    canvas.keys[1, :2] = True
    picture = keys_picture(canvas)
    assert picture.size == (6, 8)
    colors = np.array(picture.convert("RGB"))
    ids = np.array(picture)
    assert not ids[:4].any()
    assert (colors[4:6, :3] == KEY_COLORS[0]).all()
    assert (colors[4:6, 3:] == KEY_COLORS[1]).all()
    assert not ids[6:].any()


def test_keys_of_many_classes_stay_within_what_browsers_show() -> None:
    canvas = Canvas.blank((300, 300), 200)
    assert keys_picture(canvas).size[1] <= 16_000
