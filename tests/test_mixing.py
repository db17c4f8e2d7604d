from __future__ import annotations

import pytest
import torch
from torch import Tensor

import reference.mixing as reference
from reference.cases import IGNORE, Case, on_random_cases
from u2pl import mixing

CPU = torch.device("cpu")
SIZES = pytest.mark.parametrize("size", [(8, 12), (7, 5), (33, 17)])


def random_mix(batch_size: int, size: tuple[int, int], *, erase: bool, seed: int = 0) -> mixing.Mix:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch_size, *size, generator=generator) < 0.5
    partner = mixing.neighbors(batch_size, device=CPU)
    return mixing.Mix(None if erase else partner, mask)


def expected_mix(mix: mixing.Mix, maps: Tensor, fill: object) -> list[list[list[float]]]:
    partner = None if mix.partner is None else mix.partner.tolist()
    return reference.mix(maps.tolist(), mix.mask.tolist(), partner, fill)


# apply


@pytest.mark.parametrize("erase", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
@SIZES
def test_applied_maps_equal_the_reference(
    size: tuple[int, int], batch_size: int, erase: bool
) -> None:
    mix = random_mix(batch_size, size, erase=erase)
    values = torch.arange(batch_size * size[0] * size[1]).view(batch_size, *size)
    assert mix.apply(values, fill=IGNORE).tolist() == expected_mix(mix, values, IGNORE)


@pytest.mark.parametrize("erase", [False, True])
@pytest.mark.parametrize(
    ("size", "grid"), [((8, 12), (4, 3)), ((33, 17), (9, 5)), ((13, 13), (4, 4))]
)
def test_coarser_maps_equal_the_reference(
    size: tuple[int, int], grid: tuple[int, int], erase: bool
) -> None:
    mix = random_mix(3, size, erase=erase)
    values = torch.rand(3, *grid, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert mix.apply(values, fill=0.5).tolist() == expected_mix(mix, values, 0.5)


@pytest.mark.parametrize("num_donors", [1, 2, 5])
@pytest.mark.parametrize("grid", [(8, 12), (4, 3)])
def test_pixels_of_donors_equal_the_reference(grid: tuple[int, int], num_donors: int) -> None:
    mix = random_mix(3, (8, 12), erase=False)
    mix = mixing.Mix(torch.tensor([0, num_donors - 1, num_donors // 2]), mix.mask)
    values = torch.arange(3 * grid[0] * grid[1]).view(3, *grid)
    donors = 1000 + torch.arange(num_donors * grid[0] * grid[1]).view(num_donors, *grid)
    expected = reference.mix(
        values.tolist(), mix.mask.tolist(), mix.partner.tolist(), None, donors.tolist()
    )
    assert mix.apply(values, donors=donors).tolist() == expected


def test_images_and_their_targets_do_not_part() -> None:
    """Whatever is mixed, an image's channels, label and validity still speak of one pixel."""
    for erase in (False, True):
        mix = random_mix(4, (6, 7), erase=erase)
        labels = torch.arange(4 * 6 * 7).view(4, 6, 7)
        images = labels.unsqueeze(1).float().repeat(1, 3, 1, 1)
        mixed_images, mixed_labels = mix.apply(images, fill=-1), mix.apply(labels, fill=-1)
        for channel in range(3):
            assert torch.equal(mixed_images[:, channel].long(), mixed_labels)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16])
@pytest.mark.parametrize("erase", [False, True])
def test_apply_keeps_shape_and_dtype(dtype: torch.dtype, erase: bool) -> None:
    mix = random_mix(2, (4, 4), erase=erase)
    for shape in ((2, 4, 4), (2, 3, 4, 4), (2, 5, 2, 2)):
        mixed = mix.apply(torch.ones(shape).to(dtype))
        assert mixed.shape == shape
        assert mixed.dtype == dtype


def test_apply_leaves_its_input_alone() -> None:
    images = torch.rand(2, 3, 4, 4)
    before = images.clone()
    for erase in (False, True):
        random_mix(2, (4, 4), erase=erase).apply(images)
    assert torch.equal(images, before)


# grids


@pytest.mark.parametrize(
    ("size", "grid"),
    [((6, 6), (2, 2)), ((33, 17), (5, 3)), ((513, 513), (65, 65)), ((5, 9), (5, 3))],
)
def test_grid_reads_the_centre_of_each_cell(size: tuple[int, int], grid: tuple[int, int]) -> None:
    values = torch.arange(size[0] * size[1]).view(1, *size)
    actual = mixing.on_grid(values, grid)
    rows = [reference.centre(i, size[0], grid[0]) for i in range(grid[0])]
    columns = [reference.centre(i, size[1], grid[1]) for i in range(grid[1])]
    assert actual.tolist() == [[[y * size[1] + x for x in columns] for y in rows]]


def test_grid_of_the_same_size_is_the_map_itself() -> None:
    values = torch.rand(2, 3, 5, 7)
    assert mixing.on_grid(values, (5, 7)) is values


def test_cell_past_the_border_takes_the_border_pixel() -> None:
    assert mixing.on_grid(torch.arange(9).view(1, 9), (1, 3)).tolist() == [[1, 4, 7]]
    assert mixing.on_grid(torch.arange(513).view(1, 513), (1, 65))[0, -2:].tolist() == [508, 512]


# partners and boxes


@pytest.mark.parametrize("batch_size", [2, 3, 4, 5, 9])
def test_no_image_is_its_own_partner(batch_size: int) -> None:
    partner = mixing.neighbors(batch_size, device=CPU)
    assert sorted(partner.tolist()) == list(range(batch_size))
    assert (partner != torch.arange(batch_size)).all()


def test_image_alone_is_its_own_partner() -> None:
    assert mixing.neighbors(1, device=CPU).tolist() == [0]


def test_even_parts_of_a_batch_have_the_pairs_of_the_whole() -> None:
    whole, part = (mixing.neighbors(size, device=CPU) for size in (8, 4))
    assert torch.equal(whole, torch.cat([part, part + 4]))


@pytest.mark.parametrize("kind", ["cutmix", "cutout", "classmix", "donors"])
def test_processes_that_share_a_batch_mix_as_one_would(kind: str) -> None:
    """Each draws for all images and takes its own."""
    labels = torch.randint(0, 5, (8, 6, 7), generator=torch.Generator().manual_seed(1))

    def mix(rows: slice, share: mixing.Share | None) -> mixing.Mix:
        generator = torch.Generator().manual_seed(3)
        mine, count = labels[rows], len(labels[rows])
        common = {"probability": 0.7, "generator": generator, "share": share}
        if kind == "classmix":
            return mixing.classmix(mine, 5, **common)
        if kind == "donors":
            return mixing.classmix_donors(mine[: count // 2], 5, num_images=count, **common)
        box = mixing.cutmix if kind == "cutmix" else mixing.cutout
        return box(count, (6, 7), device=CPU, **common)

    if kind == "donors":  # the donors of both halves, as one process would hold them
        labels = torch.cat([labels[:2], labels[4:6], labels])
        generator = torch.Generator().manual_seed(3)
        whole = mixing.classmix_donors(
            labels[:4], 5, num_images=8, probability=0.7, generator=generator
        )
        labels = labels[4:]
    else:
        whole = mix(slice(0, 8), None)
    for first in (0, 4):
        part = mix(slice(first, first + 4), mixing.Share(first, 8))
        assert torch.equal(part.mask, whole.mask[first : first + 4])
        if part.partner is not None and whole.partner is not None:
            offset = first if kind != "donors" else first // 2
            assert torch.equal(part.partner + offset, whole.partner[first : first + 4])


@pytest.mark.parametrize("area", [0.25, 0.5])
@SIZES
def test_boxes_are_boxes_of_the_asked_area(size: tuple[int, int], area: float) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = mixing.random_boxes(40, size, area=area, device=CPU, generator=generator)
    for box in boxes:
        rows, columns = box.any(dim=1), box.any(dim=0)
        assert torch.equal(box, rows.unsqueeze(1) & columns)
        for line in (rows, columns):
            inside = line.nonzero().flatten()
            assert len(inside) == inside[-1] - inside[0] + 1
            assert area * len(line) - 1 <= len(inside) <= len(line)
        # each side is off by less than a pixel
        exact = area * box.numel()
        assert abs(int(box.sum()) - exact) <= sum(size) + 1
    share = boxes.float().mean().item()
    assert share == pytest.approx(area, abs=0.05)


def test_boxes_differ_between_images_and_reach_every_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = mixing.random_boxes(300, (6, 6), device=CPU, generator=generator)
    assert len({tuple(box.flatten().tolist()) for box in boxes}) > 30
    assert boxes.any(dim=0).all()


# ClassMix


@on_random_cases
def test_half_of_the_classes_present_are_chosen_rounded_up(case: Case) -> None:
    labels = case.labels()
    chosen = mixing.half_of_the_classes(labels, case.num_classes, generator=case.generator())
    for image, mask in zip(labels, chosen, strict=True):
        present = {label for label in image.flatten().tolist() if label != IGNORE}
        taken = set(image[mask].tolist())
        assert taken <= present
        assert len(taken) == (len(present) + 1) // 2
        assert all(mask[image == label].all() for label in taken)


def test_ignored_image_gives_nothing() -> None:
    labels = torch.full((3, 4, 4), IGNORE)
    assert not mixing.half_of_the_classes(labels, 5).any()
    assert not mixing.classmix(labels, 5).mask.any()


def test_only_class_of_an_image_is_chosen_and_its_ignored_pixels_are_not() -> None:
    labels = torch.tensor([[[2, 2], [IGNORE, -1]]])
    assert mixing.half_of_the_classes(labels, 3).tolist() == [[[True, True], [False, False]]]


def test_each_class_is_chosen_in_half_of_the_draws() -> None:
    labels = torch.arange(4).view(1, 2, 2).repeat(2000, 1, 1)
    generator = torch.Generator().manual_seed(0)
    chosen = mixing.half_of_the_classes(labels, 4, generator=generator)
    assert (chosen.float().mean(dim=0) - 0.5).abs().max() < 0.06  # five standard deviations


def test_classmix_pastes_the_partners_classes_whole() -> None:
    case = Case(7, 4, 0, size=(9, 9))
    labels = case.labels()
    mix = mixing.classmix(labels, 7, generator=case.generator())
    assert mix.partner is not None
    mixed = mix.apply(labels)
    for b in range(4):
        source = labels[mix.partner[b]]
        assert torch.equal(mixed[b][mix.mask[b]], source[mix.mask[b]])
        assert torch.equal(mixed[b][~mix.mask[b]], labels[b][~mix.mask[b]])
        for label in source[mix.mask[b]].unique():
            assert mix.mask[b][source == label].all()


@on_random_cases
def test_donors_give_whole_classes_and_no_ignored_pixel(case: Case) -> None:
    labels, num_classes = case.labels(), case.num_classes
    mix = mixing.classmix_donors(labels, num_classes, num_images=3, generator=case.generator())
    assert mix.partner is not None
    for image in range(3):
        donor = labels[mix.partner[image]]
        present = donor[donor != IGNORE].unique()
        chosen = donor[mix.mask[image]].unique()
        assert IGNORE not in chosen
        assert len(chosen) == (len(present) + 1) // 2
        for label in chosen:
            assert mix.mask[image][donor == label].all()


@pytest.mark.parametrize(("num_donors", "num_images"), [(1, 4), (2, 4), (3, 2), (4, 4)])
def test_donors_take_turns(num_donors: int, num_images: int) -> None:
    labels = torch.zeros(num_donors, 4, 4, dtype=torch.long)
    mix = mixing.classmix_donors(labels, 2, num_images=num_images)
    assert mix.partner is not None
    counts = torch.bincount(mix.partner, minlength=num_donors)
    assert counts.max() - counts.min() <= 1


# the four mixes


def make_mix(
    kind: str, batch_size: int, probability: float, generator: torch.Generator
) -> mixing.Mix:
    size = (6, 8)
    if kind == "classmix":
        labels = torch.randint(0, 3, (batch_size, *size), generator=generator)
        return mixing.classmix(labels, 3, probability=probability, generator=generator)
    mix = {"cutmix": mixing.cutmix, "cutout": mixing.cutout}[kind]
    return mix(batch_size, size, probability=probability, device=CPU, generator=generator)


KINDS = pytest.mark.parametrize("kind", ["cutmix", "cutout", "classmix"])


@KINDS
@pytest.mark.parametrize(
    ("probability", "least", "most"), [(0, 0, 0), (0.5, 350, 650), (1, 1000, 1000)]
)
def test_the_asked_share_of_images_is_mixed(
    kind: str, probability: float, least: int, most: int
) -> None:
    mix = make_mix(kind, 1000, probability, torch.Generator().manual_seed(0))
    assert least <= mix.mask.flatten(1).any(dim=1).sum() <= most


@KINDS
def test_same_generator_gives_the_same_mix(kind: str) -> None:
    first, again = (make_mix(kind, 4, 0.5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.mask, again.mask)
    values = torch.rand(4, 6, 8)
    assert torch.equal(first.apply(values), again.apply(values))


@pytest.mark.parametrize("kind", ["cutmix", "classmix"])
def test_image_alone_in_its_batch_stays_as_it_is(kind: str) -> None:
    images = torch.rand(1, 3, 6, 8)
    mix = make_mix(kind, 1, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(mix.apply(images), images)


def test_cutout_erases_and_marks_what_it_erased() -> None:
    mix = make_mix("cutout", 3, 1.0, torch.Generator().manual_seed(0))
    images = mix.apply(torch.ones(3, 3, 6, 8))
    valid = mix.apply(torch.ones(3, 6, 8, dtype=torch.bool), fill=False)
    assert torch.equal(valid, ~mix.mask)
    assert torch.equal(images[:, 0] == 1, valid)


def test_no_mix_keeps_every_pixel() -> None:
    images = torch.rand(4, 3, 6, 8)
    assert torch.equal(mixing.no_mix(4, (6, 8), device=CPU).apply(images, fill=9), images)
