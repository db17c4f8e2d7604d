"""CutMix, CutOut and ClassMix: what is pasted where is decided once, for images and targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """One decision about a batch: which pixels come from which other image.

    Attributes:
        partner: [B] int64, the image that each one takes pixels from, an index into the batch
            itself or into the donors it was decided for; None erases the pixels instead.
        mask: [B, H, W] bool, True where a pixel is taken (or erased).
    """

    partner: Tensor | None
    mask: Tensor

    def apply(
        self, tensor: Tensor, *, donors: Tensor | None = None, fill: float | bool = 0
    ) -> Tensor:
        """Mix anything that lies over the images' pixels.

        Args:
            tensor: [B, H', W'] or [B, K, H', W'], of any dtype. Where it is a coarser grid than
                the mask, each cell follows the mask's pixel at its centre.
            donors: [B', ...] like ``tensor``, the images that pixels are taken from; None takes
                them from ``tensor`` itself.
            fill: what an erased pixel becomes.

        Returns:
            A tensor like ``tensor``.
        """
        mask = on_grid(self.mask, (tensor.shape[-2], tensor.shape[-1]))
        if tensor.ndim == 4:
            mask = mask.unsqueeze(1)
        if self.partner is None:
            return tensor.masked_fill(mask, fill)
        taken = (tensor if donors is None else donors)[self.partner]
        return torch.where(mask, taken, tensor)


def on_grid(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    """Read a map at the centres of a coarser grid's cells, without interpolation.

    Cells are squares of ``ceil(H / h)`` pixels that start at the top left corner, as a network's
    strides have them, so the last row or column of cells may reach past the border; there the
    border pixel counts.

    Args:
        tensor: [..., H, W].
        size: (h, w) of the grid.

    Returns:
        [..., h, w].

    >>> on_grid(torch.arange(36).view(6, 6), (2, 2))
    tensor([[ 7, 10],
            [25, 28]])
    """
    height, width = tensor.shape[-2:]
    if (height, width) == size:
        return tensor
    rows, columns = (
        _cell_centres(full, cells, tensor.device)
        for full, cells in ((height, size[0]), (width, size[1]))
    )
    return tensor[..., rows.unsqueeze(1), columns]


def _cell_centres(length: int, num_cells: int, device: torch.device) -> Tensor:
    stride = -(-length // num_cells)
    centres = torch.arange(num_cells, device=device) * stride + stride // 2
    return centres.clamp_max(length - 1)


@dataclass(frozen=True)
class Share:
    """Which images of a larger batch these are, where several processes share one.

    Every process draws for the whole batch and takes its own images' draws, so that a batch is
    mixed alike whoever holds it.

    Attributes:
        first: place of the first image in the whole batch.
        total: images of the whole batch.
    """

    first: int
    total: int


def neighbors(batch_size: int, *, device: torch.device) -> Tensor:
    """Pair each image with the one beside it: 0 with 1, 2 with 3, and so on.

    A batch comes in random order, so its neighbours are as random as any other pairs; and a part
    of a batch with an even number of images has the same pairs as the whole.

    Args:
        batch_size: B. The last three of an odd batch take turns; an image alone has itself.
        device: of the result.

    Returns:
        [B] int64, a permutation without a fixed point where B > 1.

    >>> neighbors(5, device=torch.device("cpu"))
    tensor([1, 0, 3, 4, 2])
    """
    places = torch.arange(batch_size, device=device)
    partner = places ^ 1
    if batch_size % 2 and batch_size > 1:
        partner[-3:] = places[-3:].roll(-1)
    return partner.clamp_max(batch_size - 1)


def random_boxes(
    batch_size: int,
    size: tuple[int, int],
    *,
    area: float = 0.5,
    device: torch.device,
    generator: torch.Generator | None = None,
    share: Share | None = None,
) -> Tensor:
    """A box for each image, of a fixed share of its area and of random shape and place [C].

    Args:
        batch_size: B.
        size: (H, W) in pixels.
        area: share of the image in (0, 1); the box's width is drawn from [area · W, W].
        device: of the result and the generator.
        generator: source of randomness.
        share: of a larger batch; None is a batch of its own.

    Returns:
        [B, H, W] bool, True inside.
    """
    draw = _draw(batch_size, 3, device, generator, share)[..., None, None]
    width = area + draw[:, 0] * (1 - area)
    height = area / width
    top, left = draw[:, 1] * (1 - height), draw[:, 2] * (1 - width)
    y = ((torch.arange(size[0], device=device) + 0.5) / size[0]).view(1, -1, 1)
    x = ((torch.arange(size[1], device=device) + 0.5) / size[1]).view(1, 1, -1)
    return (y >= top) & (y < top + height) & (x >= left) & (x < left + width)


def half_of_the_classes(
    labels: Tensor,
    num_classes: int,
    *,
    generator: torch.Generator | None = None,
    share: Share | None = None,
) -> Tensor:
    """ClassMix's choice: the pixels of a random half of the classes that an image holds.

    Args:
        labels: [B, H, W] int64; ignored pixels belong to no class and are never chosen.
        num_classes: C.
        generator: source of randomness, on the labels' device.
        share: of a larger batch; None is a batch of its own.

    Returns:
        [B, H, W] bool. Of n classes present, n/2 are chosen, rounded up.
    """
    batch_size = labels.shape[0]
    inside = (labels >= 0) & (labels < num_classes)
    index = torch.where(inside, labels, torch.full_like(labels, num_classes)).flatten(1)
    present = torch.zeros(batch_size, num_classes + 1, dtype=torch.bool, device=labels.device)
    present.scatter_(1, index, True)
    present = present[:, :num_classes]
    score = _draw(batch_size, num_classes, labels.device, generator, share)
    score = score.masked_fill(~present, 2.0)  # absent classes order last
    place = score.argsort(dim=1).argsort(dim=1)
    num_chosen = (present.sum(dim=1, keepdim=True) + 1) // 2
    chosen = torch.zeros(batch_size, num_classes + 1, dtype=torch.bool, device=labels.device)
    chosen[:, :num_classes] = (place < num_chosen) & present
    return chosen.gather(1, index).view_as(labels)


def cutmix(
    batch_size: int,
    size: tuple[int, int],
    *,
    probability: float = 1.0,
    device: torch.device,
    generator: torch.Generator | None = None,
    share: Share | None = None,
) -> Mix:
    """Paste a box of another image of the batch [P]. A batch of one image stays as it is.

    Args:
        batch_size: B.
        size: (H, W) in pixels.
        probability: share of the images that is mixed.
        device: of the result and the generator.
        generator: source of randomness.
        share: of a larger batch; None is a batch of its own.

    >>> images = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 8, 8)  # one black, one white
    >>> mix = cutmix(2, (8, 8), device=images.device)
    >>> mix.partner
    tensor([1, 0])
    >>> torch.equal(mix.apply(images)[0, 0] == 1, mix.mask[0])  # white where the box was pasted
    True
    """
    mask = random_boxes(batch_size, size, device=device, generator=generator, share=share)
    mixed = _mixed(batch_size, probability, device, generator, share)
    return Mix(neighbors(batch_size, device=device), mask & mixed)


def cutout(
    batch_size: int,
    size: tuple[int, int],
    *,
    probability: float = 1.0,
    device: torch.device,
    generator: torch.Generator | None = None,
    share: Share | None = None,
) -> Mix:
    """Erase a box; mark its pixels as not valid with ``apply(valid, fill=False)``.

    Args:
        batch_size, size, probability, device, generator, share: as for :func:`cutmix`.
    """
    mask = random_boxes(batch_size, size, device=device, generator=generator, share=share)
    return Mix(None, mask & _mixed(batch_size, probability, device, generator, share))


def classmix(
    labels: Tensor,
    num_classes: int,
    *,
    probability: float = 1.0,
    generator: torch.Generator | None = None,
    share: Share | None = None,
) -> Mix:
    """Paste half of another image's classes, cut out along their (pseudo-)label borders.

    Args:
        labels: [B, H, W] int64.
        num_classes: C.
        probability: share of the images that is mixed.
        generator: source of randomness, on the labels' device.
        share: of a larger batch; None is a batch of its own.
    """
    batch_size, device = labels.shape[0], labels.device
    partner = neighbors(batch_size, device=device)
    chosen = half_of_the_classes(labels, num_classes, generator=generator, share=share)
    mixed = _mixed(batch_size, probability, device, generator, share)
    return Mix(partner, chosen[partner] & mixed)


def classmix_donors(
    labels: Tensor,
    num_classes: int,
    *,
    num_images: int,
    probability: float = 1.0,
    generator: torch.Generator | None = None,
    share: Share | None = None,
) -> Mix:
    """Paste half of the classes of other, labelled images, as DACS does across domains [R].

    Args:
        labels: [B', H, W] int64 of the donors; ignored pixels are never taken.
        num_classes: C.
        num_images: B, the images to paste onto; image i takes from donor i · B' / B, rounded down,
            so that the donors give equally often.
        probability: share of the B images that is mixed.
        generator: source of randomness, on the labels' device.
        share: of a larger batch of images to paste onto; None is a batch of its own.

    Returns:
        A decision about B images, to be applied with ``donors=``.
    """
    num_donors, device = labels.shape[0], labels.device
    partner = torch.arange(num_images, device=device) * num_donors // num_images
    chosen = half_of_the_classes(labels[partner], num_classes, generator=generator, share=share)
    return Mix(partner, chosen & _mixed(num_images, probability, device, generator, share))


def no_mix(batch_size: int, size: tuple[int, int], *, device: torch.device) -> Mix:
    """The neutral value: every image keeps its own pixels.

    Args:
        batch_size: B.
        size: (H, W) in pixels.
        device: of the result.
    """
    return Mix(None, torch.zeros(batch_size, *size, dtype=torch.bool, device=device))


def _mixed(
    batch_size: int,
    probability: float,
    device: torch.device,
    generator: torch.Generator | None,
    share: Share | None,
) -> Tensor:
    """[B, 1, 1] bool: which images are mixed at all."""
    return _draw(batch_size, 1, device, generator, share).unsqueeze(-1) < probability


def _draw(
    batch_size: int,
    numbers: int,
    device: torch.device,
    generator: torch.Generator | None,
    share: Share | None,
) -> Tensor:
    """Uniform numbers in [0, 1) for each image, [B, numbers]: its part of the whole batch's."""
    total, first = (batch_size, 0) if share is None else (share.total, share.first)
    draw = torch.rand(total, numbers, device=device, generator=generator)
    return draw[first : first + batch_size]
