from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from factories import write_dataset
from tiny import tiny_config
from u2pl.config import Config, ModelSettings
from u2pl.data.sources import Dataset, Sample, load_dataset
from u2pl.engine.loop import Interrupted
from u2pl.engine.run_folder import RunFolder
from u2pl.errors import UserError
from u2pl.models import encoders
from u2pl.weak import classifier
from u2pl.weak.classifier import (
    TagClassifier,
    pool_maps,
    tag_loss,
    tag_prior,
    tag_warnings,
    train_classifier,
)

CPU = torch.device("cpu")
COLORS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(write_dataset(tmp_path_factory.mktemp("data"), tags=True))


def quick(**changes: Any) -> Config:
    return tiny_config(**{"weak__steps": 4, "weak__batch_size": 2} | changes)


def train(config: Config, dataset: Dataset, path: Path, **arguments: Any) -> TagClassifier:
    return train_classifier(config, dataset, RunFolder(path), device=CPU, **arguments)


def same(a: TagClassifier, b: TagClassifier) -> bool:
    states = a.state_dict(), b.state_dict()
    return all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# network


def test_logit_is_the_mean_of_its_map() -> None:
    model = TagClassifier(tiny_config().model, 3, output_stride=8).eval()
    logits, maps = model(torch.rand(2, 3, 32, 48))
    assert (logits.shape, maps.shape) == ((2, 3), (2, 3, 4, 6))
    torch.testing.assert_close(logits, maps.mean(dim=(-2, -1)))


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 5.0])
def test_pooling_is_the_loop_over_the_cells_of_the_image(sharpness: float) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    share = torch.rand(2, 1, 4, 5, generator=generator, dtype=torch.float64)
    share[1, :, 2:] = 0  # padding
    pooled = pool_maps(maps, share, sharpness=sharpness)
    for b in range(2):
        total = sum(float(share[b, 0, i, j]) for i in range(4) for j in range(5))
        for c in range(3):
            mean = sum(
                float(share[b, 0, i, j]) / total * math.exp(sharpness * float(maps[b, c, i, j]))
                for i in range(4)
                for j in range(5)
            )
            assert float(pooled[b, c]) == pytest.approx(math.log(mean) / sharpness)


def test_sharp_pooling_is_the_maximum_and_blunt_pooling_the_mean() -> None:
    maps, share = torch.tensor([[[[1.0, 2.0], [3.0, 9.0]]]]), torch.ones(1, 1, 2, 2)
    share[..., 1, 1] = 0  # 9 stands in padding
    assert pool_maps(maps, share, sharpness=100.0).item() == pytest.approx(3, abs=0.02)
    assert pool_maps(maps, share, sharpness=0.0).item() == pytest.approx(2)
    assert pool_maps(maps, share, sharpness=1e-3).item() == pytest.approx(2, abs=1e-3)


def test_pooling_across_padding_has_finite_gradients() -> None:
    maps = torch.zeros(1, 1, 2, 2, requires_grad=True)
    share = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    pool_maps(maps, share, sharpness=2.0).sum().backward()
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad, share / 2)


def test_pooling_is_a_setting() -> None:
    blunt, sharp = (
        classifier.build_classifier(quick(weak__pooling_sharpness=r), 3, load_pretrained=False)
        for r in (0.0, 3.0)
    )
    images = torch.rand(2, 3, 32, 32)
    maps = sharp.eval()(images).maps
    torch.testing.assert_close(maps, blunt.eval()(images).maps)
    assert (sharp(images).logits > maps.mean(dim=(-2, -1))).all()


def test_prior_stands_beside_the_pooled_maps(dataset: Dataset, tmp_path: Path) -> None:
    """A net that sees nothing says how common each class is, and its maps stay neutral."""
    model = train(quick(weak__tag_prior=2.0), dataset, tmp_path)
    prior = 2 * tag_prior(dataset.unlabeled, dataset.num_classes)
    assert prior.abs().max() > 0
    model.classifier.weight.data.zero_()
    output = model(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(output.logits, prior.expand(2, -1))
    assert output.maps.abs().max() == 0
    assert train(quick(), dataset, tmp_path / "without").prior.abs().max() == 0


def test_prior_is_finite_for_a_class_of_every_image_and_for_one_of_none(dataset: Dataset) -> None:
    samples = tuple(replace(sample, tags=(0,)) for sample in dataset.unlabeled)
    always, never = tag_prior(samples, 2).sigmoid().tolist()
    num = len(samples)
    assert always == pytest.approx((num + 1) / (num + 2))
    assert never == pytest.approx(1 / (num + 2))


def test_maps_cover_images_of_any_size() -> None:
    model = TagClassifier(tiny_config().model, 2, output_stride=16).eval()
    assert model(torch.rand(1, 3, 33, 20)).maps.shape == (1, 2, 3, 2)


def test_padding_has_no_part_in_the_logits() -> None:
    """Cells are weighted by their share of valid pixels."""
    model = TagClassifier(tiny_config().model, 3, output_stride=16).eval()
    images = torch.rand(1, 3, 32, 32)
    valid = torch.zeros(1, 32, 32, dtype=torch.bool)
    valid[:, :16, :24] = True
    logits, maps = model(images, valid)
    expected = (maps[..., 0, 0] + 0.5 * maps[..., 0, 1]) / 1.5
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_timm_encoders_serve_too(name: str) -> None:
    decoder = "dpt" if "vit" in name else "deeplabv3plus"
    settings = tiny_config(model__encoder=name, model__decoder=decoder).model
    model = TagClassifier(settings, 4, output_stride=16).eval()
    assert model.stride == 16
    images = torch.rand(1, 3, 64, 70)
    logits, maps = model(images)
    assert (logits.shape, maps.shape) == ((1, 4), (1, 4, 4, 5))


def test_frozen_norm_keeps_the_encoders_statistics() -> None:
    settings = ModelSettings(encoder="test_efficientnet", frozen_norm=True)
    model = TagClassifier(settings, 4, output_stride=16, load_pretrained=False)
    before = {name: buffer.clone() for name, buffer in model.encoder.named_buffers()}
    model.eval().train()(torch.rand(2, 3, 64, 64))
    assert all(model.encoder.get_buffer(name).equal(old) for name, old in before.items())


def test_normalisation_is_that_of_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "normalization", lambda name: ((0.5,) * 3, (0.25,) * 3))
    model = TagClassifier(tiny_config().model, 2, output_stride=16).eval()
    seen = []
    model.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(torch.ones(1, 3, 16, 16))
    torch.testing.assert_close(seen[0], torch.full((1, 3, 16, 16), 2.0))


# loss


def test_loss_is_summed_over_classes_and_averaged_over_images() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    tags = torch.tensor([[True, False], [False, True]])
    expected = torch.stack(
        [
            -F.logsigmoid(logits[0, 0]) - F.logsigmoid(-logits[0, 1]),
            -F.logsigmoid(-logits[1, 0]) - F.logsigmoid(logits[1, 1]),
        ]
    ).mean()
    torch.testing.assert_close(tag_loss(logits, tags, background_class=None), expected)


def test_background_has_no_loss_and_no_gradient() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    tags = torch.rand(3, 4) < 0.5
    tag_loss(logits, tags, background_class=2).backward()
    assert logits.grad is not None
    assert logits.grad[:, 2].abs().max() == 0
    assert logits.grad[:, [0, 1, 3]].abs().min() > 0


def test_loss_has_the_analytic_gradient() -> None:
    logits = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    tags = torch.tensor([[True, False, True], [False, False, False]])
    assert torch.autograd.gradcheck(lambda x: tag_loss(x, tags, background_class=0), logits)


# training


def test_classes_of_one_colour_each_are_learnt(tmp_path: Path) -> None:
    samples = []
    for index in range(6):
        class_id = index % 3
        file = tmp_path / f"{index}.png"
        Image.new("RGB", (32, 32), COLORS[class_id]).save(file)
        samples.append(Sample(str(index), file, tags=(class_id,)))
    dataset = Dataset(tmp_path, ("a", "b", "c"), COLORS, unlabeled=tuple(samples))
    config = quick(weak__steps=25, weak__batch_size=6, data__jitter=0.0, optimizer__lr=5e-3)
    model = train(config, dataset, tmp_path / "run")
    images = torch.stack([torch.tensor(color) / 255 for color in COLORS])
    with torch.no_grad():
        logits, _ = model(images[..., None, None].expand(3, 3, 32, 32))
    assert torch.equal(logits > 0, torch.eye(3, dtype=torch.bool))


def test_run_that_was_killed_ends_with_the_same_weights(dataset: Dataset, tmp_path: Path) -> None:
    config = quick(train__checkpoint_every=2)
    whole = train(config, dataset, tmp_path / "whole")

    def die(stage: str, step: int, total: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, dataset, tmp_path / "killed", on_progress=die)
    steps: list[int] = []
    again = train(
        config, dataset, tmp_path / "killed", on_progress=lambda _, step, __: steps.append(step)
    )
    assert steps == [3, 4]
    assert same(again, whole)
    logs = [(tmp_path / run / "eval/classifier.json").read_text() for run in ("whole", "killed")]
    assert logs[0] == logs[1]
    log = json.loads(logs[0])
    assert [row["step"] for row in log["losses"]] == [1, 2, 3, 4]
    assert log["losses"][0]["loss"] == pytest.approx(3 * math.log(2), abs=0.5)  # undecided at first


def test_finished_classifier_is_read_and_not_trained_again(
    dataset: Dataset, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    first = train(quick(), dataset, tmp_path)
    assert not first.training
    assert not folder.checkpoint("classifier").exists()
    steps: list[int] = []
    again = train(quick(), dataset, tmp_path, on_progress=lambda _, step, __: steps.append(step))
    assert not steps
    assert not again.training
    assert same(again, first)


def test_signal_saves_and_says_how_to_go_on(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as caught:
        train(quick(), dataset, tmp_path / "a", asked_to_stop=lambda: True)
    assert str(caught.value) == (
        "Stopped after 1 of 4 steps of the tag classifier; the state is saved. Go on with: "
        f"u2pl train {dataset.path} --out {tmp_path / 'a'} --resume"
    )
    again = train(
        quick(), dataset, tmp_path / "a", asked_to_stop=iter([False] * 2 + [True]).__next__
    )
    assert same(again, train(quick(), dataset, tmp_path / "b"))


def test_seed_changes_the_weights(dataset: Dataset, tmp_path: Path) -> None:
    first, other = (
        train(quick(train__seed=seed), dataset, tmp_path / str(seed)) for seed in (0, 1)
    )
    assert not same(first, other)


def test_last_layer_learns_at_its_own_rate_and_weak_lr_wins(dataset: Dataset) -> None:
    config = quick(weak__lr=0.25, optimizer__head_lr_factor=4.0)
    model = classifier.build_classifier(config, 3, load_pretrained=False)
    groups = classifier.build_optimizer(model, classifier._optimizer_settings(config)).param_groups
    assert {group["base_lr"] for group in groups} == {0.25, 1.0}
    assert classifier._optimizer_settings(quick()) == quick().optimizer


def test_gradients_are_clipped_where_asked(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    monkeypatch.setattr(
        classifier.nn.utils, "clip_grad_norm_", lambda parameters, norm: norms.append(norm)
    )
    train(quick(optimizer__max_grad_norm=0.5, weak__steps=2), dataset, tmp_path)
    assert norms == [0.5, 0.5]


@pytest.mark.parametrize("tags", [(0, 1), (1,)], ids=["in every image", "in none"])
def test_class_of_every_image_or_of_none_can_be_trained_with(
    dataset: Dataset, tmp_path: Path, tags: tuple[int, ...]
) -> None:
    samples = tuple(replace(sample, tags=tags) for sample in dataset.unlabeled)
    model = train(quick(weak__steps=2), replace(dataset, unlabeled=samples), tmp_path)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_loss_that_is_not_finite_stops_before_the_update(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        classifier, "tag_loss", lambda logits, *_, **__: logits.sum() * float("nan")
    )
    with pytest.raises(UserError) as caught:
        train(quick(), dataset, tmp_path)
    assert str(caught.value) == (
        "Tag classifier: at step 0 the loss became nan; training stopped before saving it. Lower "
        "weak.lr, set optimizer.max_grad_norm, or look at the images with `u2pl data check`."
    )
    assert not list(tmp_path.rglob("*.pt"))


def test_weights_that_are_not_finite_are_never_saved(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model: TagClassifier, *_: Any) -> float:
        model.classifier.weight.data[0, 0] = float("inf")
        return 1.0

    monkeypatch.setattr(classifier, "_update", spoil)
    with pytest.raises(UserError, match="at step 4 the update made weights that are not finite"):
        train(quick(), dataset, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_resumed_classifier_needs_its_encoders_weights_no_more(
    dataset: Dataset, tmp_path: Path
) -> None:
    name, file = "test_efficientnet", tmp_path / "encoder.safetensors"
    state = encoders.timm.create_model(name, pretrained=False).state_dict()
    classifier.save_weights(file, state)
    model = {"model__encoder": name, "model__pretrained": True, "model__weights": str(file)}
    config = quick(weak__steps=2, **model)
    with pytest.raises(Interrupted):
        train(config, dataset, tmp_path / "a", asked_to_stop=lambda: True)
    file.unlink()
    train(config, dataset, tmp_path / "a")


@pytest.mark.parametrize("finished", [True, False])
def test_classifier_of_another_network_is_refused(
    dataset: Dataset, tmp_path: Path, finished: bool
) -> None:
    if finished:
        train(quick(weak__steps=1), dataset, tmp_path)
    else:
        with pytest.raises(Interrupted):
            train(quick(), dataset, tmp_path, asked_to_stop=lambda: True)
    with pytest.raises(UserError) as caught:
        train(quick(model__encoder="test_efficientnet"), dataset, tmp_path)
    assert str(caught.value) == (
        f"The tag classifier of {tmp_path} does not fit its config.yaml; has the file been edited "
        "since the run was started?"
    )


# warnings


def test_classes_that_tags_cannot_teach_are_named() -> None:
    samples = tuple(Sample(str(tags), Path(), tags=tags) for tags in ((1, 2), (1,), (1, 2, 3)))
    classes = ("void", "sky", "car", "dog", "cow")
    assert tag_warnings(samples, classes, background_class=0) == [
        "Every tagged image holds sky: a classifier cannot learn from tags where in an image that "
        "is; look at the seeds, and add images without it.",
        "No tag names cow: there will be no seed of it; take the class out of dataset.yaml, or "
        "give images of it.",
    ]
    assert not tag_warnings(samples, classes[:4], background_class=0)[1:]


@pytest.mark.parametrize("key", ["optimizer", "step", "losses"])
@pytest.mark.parametrize("value", [None, 3.5, "x"])
def test_classifier_checkpoint_with_a_part_of_another_kind_is_told(
    dataset: Dataset, tmp_path: Path, key: str, value: Any
) -> None:
    with pytest.raises(Interrupted):
        train(quick(), dataset, tmp_path, asked_to_stop=lambda: True)
    file = RunFolder(tmp_path).checkpoint(classifier.NAME)
    state = torch.load(file, weights_only=True)
    torch.save({name: part for name, part in state.items() if name != key}, file)
    with pytest.raises(UserError, match=r"does not fit its config\.yaml"):
        train(quick(), dataset, tmp_path)
    if (key, value) not in (("step", 3.5), ("losses", "x")):
        torch.save(state | {key: value}, file)
        with pytest.raises(UserError, match=r"does not fit its config\.yaml"):
            train(quick(), dataset, tmp_path)
