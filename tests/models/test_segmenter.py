from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from u2pl.config import ModelSettings
from u2pl.errors import UserError
from u2pl.models import Segmenter, upsample
from u2pl.models.segmenter import head
from vits import TINY_VIT

KINDS: dict[str, dict[str, Any]] = {
    "deeplabv3plus-8": {"encoder": "small", "output_stride": 8},
    "deeplabv3plus-16": {"encoder": "small", "output_stride": 16},
    "deeplabv3plus-timm-8": {"encoder": "test_efficientnet", "output_stride": 8},
    "deeplabv3plus-timm-16": {"encoder": "test_efficientnet", "output_stride": 16},
    "fpn": {
        "encoder": "test_efficientnet",
        "decoder": "fpn",
        "output_stride": 32,
        "decoder_channels": 32,
    },
    "segformer": {"encoder": "test_efficientnet", "decoder": "segformer", "output_stride": 32},
    "dpt": {"encoder": "test_vit", "decoder": "dpt"},
    "dpt-14": {"encoder": TINY_VIT, "decoder": "dpt"},
}


def settings(**changes: Any) -> ModelSettings:
    values: dict[str, Any] = {
        "encoder": "small",
        "pretrained": False,
        "decoder_channels": 16,
        "head_channels": 16,
        "feature_size": 8,
        "atrous_rates": (1, 2, 3),
    }
    return ModelSettings(**values | changes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 64), (45, 70)], ids=["even", "odd"])
def test_every_decoder_answers_on_the_grid_of_stride_four(kind: str, size: tuple[int, int]) -> None:
    model = Segmenter(settings(**KINDS[kind]), 5)
    logits, features, _ = model(torch.rand(2, 3, *size))
    grid = (math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    assert logits.shape == (2, 5, *grid)
    assert features.shape == (2, 8, *grid)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2, *grid))
    assert upsample(logits, size).shape == (2, 5, *size)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_a_network_is_trained(kind: str) -> None:
    torch.manual_seed(0)
    model = Segmenter(settings(**KINDS[kind]), 5)
    output = model(torch.rand(2, 3, 64, 64))
    (output.logits.square().sum() + output.features[:, 0].sum()).backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    # what timm's transformer would classify with stands behind the blocks that DPT reads
    assert without <= {f"encoder.model.head.{k}" for k in ("weight", "bias")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 64), (45, 70)], ids=["even", "odd"])
def test_auxiliary_head_answers_for_the_images_that_it_is_asked_about(
    kind: str, size: tuple[int, int]
) -> None:
    model = Segmenter(settings(**KINDS[kind], auxiliary_weight=0.4), 5).eval()
    images = torch.rand(3, 3, *size)
    output = model(images, num_auxiliary=2)
    grid = (math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    assert output.auxiliary.shape == (2, 5, *grid)
    alone = model(images[1:2], num_auxiliary=1).auxiliary
    torch.testing.assert_close(output.auxiliary[1:2], alone, rtol=1e-4, atol=1e-5)
    assert model(images).auxiliary is None


def test_auxiliary_head_reads_the_map_before_the_last_and_is_not_there_unasked() -> None:
    plain = Segmenter(settings(), 5)
    assert not [name for name in plain.state_dict() if name.startswith("auxiliary")]
    model = Segmenter(settings(auxiliary_weight=0.4), 5)
    model(torch.rand(2, 3, 64, 64), num_auxiliary=2).auxiliary.sum().backward()
    stages = [any(p.grad is not None for p in stage.parameters()) for stage in model.encoder.stages]
    assert stages == [True] * (len(stages) - 1) + [False]


def test_answer_moves_with_the_image() -> None:
    """A shift by a whole padded multiple shifts the logits by its cells, away from the borders."""
    torch.manual_seed(0)
    model = Segmenter(settings(encoder="small", output_stride=16), 3).eval()
    image = torch.zeros(1, 3, 96, 160)
    image[..., 32:48, 48:64] = 1
    before = model(image).logits
    after = model(image.roll(32, dims=-1)).logits
    change = (before - model(torch.zeros_like(image)).logits).abs().sum(1)[0]
    moved = (after - model(torch.zeros_like(image)).logits).abs().sum(1)[0]
    assert change.sum(0).argmax() + 8 == moved.sum(0).argmax()
    assert change.sum(1).argmax() == moved.sum(1).argmax()


def test_features_are_left_out_where_nobody_asks() -> None:
    model = Segmenter(settings(), 3).eval()
    images = torch.rand(1, 3, 32, 32)
    short = model(images, with_features=False)
    assert short.features is None
    torch.testing.assert_close(short.logits, model(images).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_channel_factors_scale_what_the_decoder_reads(kind: str) -> None:
    model = Segmenter(settings(**KINDS[kind]), 3).eval()
    images = torch.rand(2, 3, 64, 64)
    plain = model(images).logits
    ones = [torch.ones(2, size) for size in model.map_sizes]
    torch.testing.assert_close(model(images, channel_factors=ones).logits, plain)
    # of the second image alone
    dropped = [factor * torch.tensor([[1.0], [0.0]]) for factor in ones]
    seen = model(images, channel_factors=dropped).logits
    torch.testing.assert_close(seen[:1], plain[:1])
    assert not torch.allclose(seen[1:], plain[1:])
    if kind != "dpt":  # whose class token is no map
        other = model(images.flip(0), channel_factors=dropped).logits
        torch.testing.assert_close(seen[1:], other[1:], msg="nothing is left of the image")


def test_images_are_normalised_inside() -> None:
    model = Segmenter(settings(), 3).eval()
    seen: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(model.mean.expand(1, 3, 30, 32).clone())
    assert seen[0].shape == (1, 3, 32, 32)
    assert seen[0].abs().max() < 1e-6  # the mean becomes 0, and padding is the mean as well


def test_dropout_stands_before_f_alone() -> None:
    model = Segmenter(settings(dropout=0.4), 3)
    rates = [m.p for m in model.segmentation_head if isinstance(m, nn.Dropout2d)]
    assert rates == [0.4]
    assert [m.p for m in model.representation_head if isinstance(m, nn.Dropout2d)] == [0.0]


def test_frozen_norm_keeps_the_encoders_statistics_and_trains_its_weights() -> None:
    frozen = settings(**KINDS["fpn"], pretrained=True, frozen_norm=True)
    model = Segmenter(frozen, 3, load_pretrained=False)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for _ in range(2):  # as it is made, and back from an evaluation
        model(torch.rand(2, 3, 64, 64)).logits.square().mean().backward()
        model.eval().train()
    moved = {name for name, buffer in model.named_buffers() if not buffer.equal(before[name])}
    assert not [name for name in moved if name.startswith("encoder.")]
    assert [name for name in moved if name.startswith("segmentation_head.")]
    norms = [m for m in model.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(norm.weight.grad is not None and norm.weight.grad.any() for norm in norms)


def test_encoders_statistics_move_unless_they_are_frozen() -> None:
    model = Segmenter(settings(**KINDS["fpn"]), 3)
    before = {name: buffer.clone() for name, buffer in model.encoder.named_buffers()}
    model(torch.rand(2, 3, 64, 64))
    assert all(not model.encoder.get_buffer(name).equal(old) for name, old in before.items())


@pytest.mark.parametrize("changes", [{"pretrained": False}, {"encoder": "small"}])
def test_no_averages_are_frozen_that_nobody_learnt(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no pretrained encoder"):
        ModelSettings(frozen_norm=True, **changes)


def test_heads_have_two_blocks_and_a_1x1_convolution() -> None:
    module = head(6, 4, 9)
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert [c.kernel_size for c in convolutions] == [(3, 3), (3, 3), (1, 1)]
    assert [c.out_channels for c in convolutions] == [4, 4, 9]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in module.modules()) == 2


@pytest.mark.parametrize("cell", [(0, 0), (2, 3), (4, 1)])
def test_upsampled_impulse_is_centred_on_its_cell(cell: tuple[int, int]) -> None:
    grid = torch.zeros(1, 1, 6, 5)
    grid[0, 0, cell[0], cell[1]] = 1
    full = upsample(grid, (24, 20))[0, 0]
    rows, columns = (full > 0.7).nonzero().T
    assert {rows.min().item(), rows.max().item()} <= set(range(4 * cell[0], 4 * cell[0] + 4))
    assert {columns.min().item(), columns.max().item()} <= set(range(4 * cell[1], 4 * cell[1] + 4))


def test_impulse_inside_spreads_symmetrically_and_keeps_its_mass() -> None:
    grid = torch.zeros(1, 1, 5, 5)
    grid[0, 0, 2, 2] = 1
    full = upsample(grid, (20, 20))[0, 0]
    torch.testing.assert_close(full, full.flip(0))
    torch.testing.assert_close(full, full.flip(1))
    assert full.sum().item() == pytest.approx(16)


def test_upsampling_crops_what_reaches_past_the_image() -> None:
    grid = torch.arange(6.0).view(1, 1, 2, 3)
    full = upsample(grid, (8, 12))
    assert torch.equal(upsample(grid, (5, 9)), full[..., :5, :9])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"encoder": "test_resnet", "output_stride": 32}, "DeepLabV3\\+ needs .* 8 or 16, got 32"),
        ({"encoder": "small", "decoder": "fpn"}, "fpn decoder needs five encoder stages"),
        ({"encoder": "test_resnet", "decoder": "fpn"}, "model.output_stride=32"),
        ({"encoder": "test_resnet", "decoder": "segformer"}, "segformer decoder needs"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        Segmenter(settings(**changes), 3)


def test_crop_of_whole_patches_is_seen_without_padding() -> None:
    """37 of 14 pixels are 518, as DINOv2 was trained; here 5 of them, an odd number too."""
    model = Segmenter(settings(**KINDS["dpt-14"]), 3).eval()
    seen: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for size in ((70, 70), (71, 56), (13, 14)):
        assert model(torch.rand(1, 3, *size)).logits.shape[-2:] == tuple(-(-n // 4) for n in size)
    assert [image.shape[-2:] for image in seen] == [(70, 70), (84, 56), (14, 14)]


@pytest.mark.parametrize(
    "name", ["vit_small_patch14_dinov2.lvd142m", "vit_base_patch14_dinov2.lvd142m"]
)
def test_dinov2_with_dpt_is_built_under_timms_names(name: str) -> None:
    with torch.device("meta"):
        model = Segmenter(settings(encoder=name, decoder="dpt"), 21)
    encoder: Any = model.encoder
    assert model.multiple == 14
    assert encoder._output_indices == [2, 5, 8, 11]
    assert encoder.model.pos_embed.shape[1] == 37 * 37 + 1
    assert encoder.model.dynamic_img_size
    images = torch.rand(1, 3, 60, 45, device="meta")
    assert model.eval()(images).logits.shape == (1, 21, 15, 12)


def test_fpn_says_which_widths_it_takes() -> None:
    """Its group normalisation splits the channels into 32 groups."""
    with pytest.raises(UserError, match="decoder_channels"):
        Segmenter(settings(**KINDS["fpn"] | {"decoder_channels": 48}), 3)


def test_features_of_some_cells_are_those_of_the_map_and_teach_the_same() -> None:
    model = Segmenter(ModelSettings(encoder="small", pretrained=False, feature_size=5), 3).eval()
    images = torch.rand(2, 3, 33, 46, generator=torch.Generator().manual_seed(0))
    cells = torch.tensor([0, 5, 107, 108, 215, 5])  # 9 x 12 cells an image; one of them twice
    whole = model(images)
    assert whole.features.shape == (2, 5, 9, 12)
    expected = whole.features.movedim(1, -1).flatten(0, 2)[cells]
    grid, _ = model.decode(images)
    assert torch.equal(model.segmentation_logits(grid), whole.logits)
    some = model.features_at(grid, cells)
    torch.testing.assert_close(some, expected)
    pull = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    weights = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad((some * pull).sum(), weights, allow_unused=True),
        torch.autograd.grad((expected * pull).sum(), weights, allow_unused=True),
        strict=True,
    ):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)
