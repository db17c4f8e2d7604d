"""A small encoder that learns from scratch within minutes on two CPU cores."""

from __future__ import annotations

from torch import Tensor, nn


def conv_block(
    in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """3x3 convolution, BatchNorm and ReLU, padded to keep the size (or halve it, rounded up)."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels,
            out_channels,
            3,
            stride=stride,
            padding=dilation,
            dilation=dilation,
            bias=False,
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, channels: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.first = conv_block(channels, channels, dilation=dilation)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, K, H, W] to the same shape."""
        out: Tensor = self.relu(x + self.second(self.first(x)))
        return out


class SmallEncoder(nn.Module):
    """Four stages at strides 2, 4, 8 and 16 (8 with ``output_stride=8``), about 0.7 M parameters.

    Args:
        output_stride: 8 or 16.

    Attributes:
        out_channels: channels of each map that :meth:`forward` returns, the image's 3 first.
    """

    def __init__(self, *, output_stride: int = 8) -> None:
        super().__init__()
        if output_stride not in (8, 16):
            raise ValueError(
                f"Expected output_stride 8 or 16 for the small net, got {output_stride}."
            )
        last_stride, dilation = (1, 2) if output_stride == 8 else (2, 1)
        self.out_channels = [3, 24, 48, 96, 128]
        self.stages = nn.ModuleList(
            [
                nn.Sequential(conv_block(3, 24, stride=2)),
                nn.Sequential(conv_block(24, 48, stride=2), ResidualBlock(48)),
                nn.Sequential(conv_block(48, 96, stride=2), ResidualBlock(96)),
                nn.Sequential(
                    conv_block(96, 128, stride=last_stride),
                    ResidualBlock(128, dilation=dilation),
                ),
            ]
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps from fine to coarse, the images themselves first."""
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps
