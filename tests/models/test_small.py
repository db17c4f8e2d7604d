from __future__ import annotations

import pytest
import torch

from u2pl.models.small import ResidualBlock, SmallEncoder, conv_block


@pytest.mark.parametrize(
    ("output_stride", "sizes"), [(8, (32, 16, 8, 8)), (16, (32, 16, 8, 4))], ids=["8", "16"]
)
def test_maps_have_the_promised_strides_and_channels(
    output_stride: int, sizes: tuple[int, ...]
) -> None:
    encoder = SmallEncoder(output_stride=output_stride)
    images = torch.rand(2, 3, 64, 64)
    maps = encoder(images)
    assert maps[0] is images
    assert [tuple(m.shape[-2:]) for m in maps[1:]] == [(size, size) for size in sizes]
    assert [m.shape[1] for m in maps] == encoder.out_channels


def test_odd_sizes_are_rounded_up() -> None:
    maps = SmallEncoder(output_stride=16)(torch.rand(1, 3, 33, 49))
    assert [tuple(m.shape[-2:]) for m in maps[1:]] == [(17, 25), (9, 13), (5, 7), (3, 4)]


@pytest.mark.parametrize("output_stride", [4, 32])
def test_other_strides_are_refused(output_stride: int) -> None:
    with pytest.raises(ValueError, match=f"8 or 16 for the small net, got {output_stride}"):
        SmallEncoder(output_stride=output_stride)


def test_it_has_the_size_that_its_documentation_says() -> None:
    parameters = sum(p.numel() for p in SmallEncoder().parameters())
    assert 600_000 < parameters < 800_000


@pytest.mark.parametrize(("stride", "dilation", "size"), [(1, 1, 9), (1, 2, 9), (2, 1, 5)])
def test_conv_block_keeps_or_halves_the_size(stride: int, dilation: int, size: int) -> None:
    block = conv_block(3, 4, stride=stride, dilation=dilation)
    out = block(torch.rand(2, 3, 9, 9))
    assert out.shape == (2, 4, size, size)
    assert out.min() >= 0


def test_residual_block_without_its_convolutions_is_the_shortcut() -> None:
    block = ResidualBlock(4).eval()
    torch.nn.init.zeros_(block.second[0].weight)
    x = torch.rand(1, 4, 6, 6)
    torch.testing.assert_close(block(x), x)


def test_every_parameter_gets_a_gradient() -> None:
    encoder = SmallEncoder(output_stride=8)
    encoder(torch.rand(2, 3, 32, 32))[-1].square().sum().backward()
    without = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
