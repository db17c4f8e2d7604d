"""The faults of the method's public code, each shown absent from the pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reference.cases import IGNORE
from u2pl import contrast, losses, mixing, partition

PRESENT = (0, 8, 15, 19)
NUM_CLASSES = 21
LOW_RANK, HIGH_RANK = contrast.rank_bounds(NUM_CLASSES)


def labels_of_four_classes(batch_size: int = 4) -> Tensor:
    """[B, 8, 8]: in every image the four present classes and some ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(0, 5, (batch_size, 8, 8), generator=generator)
    return torch.tensor([*PRESENT, IGNORE])[draw]


def probs_that_agree_with(labels: Tensor) -> Tensor:
    """[B, C, h, w]: more than half for the label, the rest at random over all classes."""
    generator = torch.Generator().manual_seed(1)
    shape = (labels.shape[0], NUM_CLASSES, *labels.shape[1:])
    noise = torch.randn(shape, generator=generator).softmax(dim=1)
    return 0.4 * noise + 0.6 * torch.where(
        (labels == IGNORE).unsqueeze(1), noise, contrast.label_mask(labels, NUM_CLASSES).float()
    )


def teacher_output(batch_size: int = 4) -> tuple[Tensor, Tensor]:
    """Random probabilities [B, C, 8, 8] and their entropy [B, 8, 8]."""
    generator = torch.Generator().manual_seed(2)
    scale = 4 * torch.rand(batch_size, 1, 8, 8, generator=generator)
    logits = scale * torch.randn(batch_size, NUM_CLASSES, 8, 8, generator=generator)
    probs = logits.softmax(dim=1)
    return probs, partition.prediction_entropy(probs)


def test_prototypes_of_a_batch_of_four_are_pure() -> None:
    """Fault 1: labels land in their own image, so a prototype averages its class alone."""
    labels = labels_of_four_classes()
    features = contrast.label_mask(labels, NUM_CLASSES).float()  # each pixel shows its true class
    anchors = contrast.anchor_mask(labels, probs_that_agree_with(labels))
    means, counts = contrast.class_means(features, anchors)
    for class_id in PRESENT:
        assert means[class_id, class_id] == 1.0
        assert means[class_id].sum() == 1.0
        assert counts[class_id] == (labels == class_id).sum()
        assert anchors[:, class_id].flatten(1).any(dim=1).all()  # every image adds to it


def test_labeled_pixel_is_a_negative_of_others_and_never_of_its_own_class() -> None:
    """Fault 2: the label excludes its own class, and not every other one."""
    labels = labels_of_four_classes()
    rank = contrast.class_rank(probs_that_agree_with(labels))
    negatives = contrast.labeled_negative_mask(labels, rank, low_rank=LOW_RANK)
    assert not (negatives & contrast.label_mask(labels, NUM_CLASSES)).any()
    per_pixel = negatives.sum(dim=1)
    assert (per_pixel[labels != IGNORE] == LOW_RANK - 1).all()  # its own class ranks first here
    assert (per_pixel[labels == IGNORE] == 0).all()


def test_unreliable_pixel_is_a_negative_of_each_unlikely_class() -> None:
    """Fault 2: an unlabelled pixel needs no label to be a negative."""
    probs, entropy = teacher_output()
    valid = torch.ones_like(entropy, dtype=torch.bool)
    threshold = partition.entropy_threshold(entropy, valid, unreliable_fraction=0.2)
    unreliable = partition.unreliable_mask(entropy, threshold, valid)
    negatives = contrast.unlabeled_negative_mask(
        unreliable, contrast.class_rank(probs), low_rank=LOW_RANK, high_rank=HIGH_RANK
    )
    assert unreliable.any()
    assert (negatives.sum(dim=1)[unreliable] == HIGH_RANK - LOW_RANK).all()
    assert not negatives.transpose(0, 1)[:, ~unreliable].any()


def test_exactly_the_classes_that_are_present_learn() -> None:
    """Fault 3: the class axis is fixed, so class 8 meets prototype 8 and queue 8."""
    labels = labels_of_four_classes()
    probs = probs_that_agree_with(labels)
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(4, 6, 8, 8, generator=generator, requires_grad=True)
    teacher = torch.randn(4, 6, 8, 8, generator=generator)
    anchors = contrast.anchor_mask(labels, probs)
    negatives = contrast.labeled_negative_mask(
        labels, contrast.class_rank(probs), low_rank=LOW_RANK
    )
    prototypes = contrast.MomentumPrototypes(NUM_CLASSES, 6)
    prototypes.update(*contrast.class_means(teacher, anchors))
    queues = contrast.NegativeQueues([30 + c for c in range(NUM_CLASSES)], 6)
    queues.push(contrast.by_pixel(teacher), contrast.by_class(negatives), generator=generator)

    index, has_anchor = contrast.sample_with_replacement(
        contrast.by_class(anchors), 200, generator=generator
    )
    active = has_anchor & prototypes.seen & (queues.num_keys > 0)
    present = torch.zeros(NUM_CLASSES, dtype=torch.bool)
    present[list(PRESENT)] = True
    for mask in (contrast.by_class(anchors).any(dim=1), has_anchor, prototypes.seen, active):
        assert torch.equal(mask, present)

    keys = queues.sample(200, 10, generator=generator)
    losses.contrastive_loss(
        contrast.by_pixel(student)[index], prototypes.vectors, keys, active
    ).backward()
    assert student.grad is not None
    learns = (student.grad != 0).any(dim=1)
    for class_id in PRESENT:
        assert learns[labels == class_id].any()
    assert not learns[~torch.isin(labels, torch.tensor(PRESENT))].any()


def test_each_class_is_pulled_to_its_own_prototype() -> None:
    """Fault 3: the loss pairs anchors, positives and queues by class id."""
    units = torch.eye(NUM_CLASSES)
    active = torch.zeros(NUM_CLASSES, dtype=torch.bool)
    active[list(PRESENT)] = True
    negatives = -units.view(NUM_CLASSES, 1, 1, NUM_CLASSES).expand(-1, 1, 5, -1)
    loss = losses.contrastive_loss(units.unsqueeze(1), units, negatives, active)
    assert loss.item() == pytest.approx(losses.contrastive_floor(5), rel=1e-5)
    shifted = losses.contrastive_loss(units.unsqueeze(1), units.roll(1, dims=0), negatives, active)
    assert shifted.item() == pytest.approx(math.log1p(5 * math.exp(-2)), rel=1e-5)  # cosine 0


def test_anchors_of_unlabeled_pixels_are_the_reliable_ones() -> None:
    """Fault 4: the reliable 80 % are candidates, not the lowest 20 %."""
    probs, entropy = teacher_output()
    valid = torch.ones_like(entropy, dtype=torch.bool)
    threshold = partition.entropy_threshold(entropy, valid, unreliable_fraction=0.2)
    labels = partition.pseudo_labels(
        probs.argmax(dim=1), entropy, threshold, valid, ignore_index=IGNORE
    )
    candidates = contrast.anchor_mask(labels, probs, threshold=0).any(dim=1)
    assert torch.equal(candidates, entropy <= threshold)
    assert candidates.float().mean().item() == pytest.approx(0.8, abs=0.01)
    anchors = contrast.anchor_mask(labels, probs, threshold=0.3).any(dim=1)
    assert torch.equal(anchors, candidates & (probs.amax(dim=1) > 0.3))


def test_padding_of_labeled_images_trains_nothing() -> None:
    """Fault 6: padding carries the ignore index, and every function leaves that out."""
    labels = labels_of_four_classes()
    labels[:, 5:] = IGNORE
    probs = probs_that_agree_with(labels)
    rank = contrast.class_rank(probs)
    assert not contrast.anchor_mask(labels, probs, threshold=0)[:, :, 5:].any()
    assert not contrast.labeled_negative_mask(labels, rank, low_rank=LOW_RANK)[:, :, 5:].any()
    for loss_of in (losses.cross_entropy, losses.ohem_cross_entropy):
        logits = probs.log().requires_grad_()
        loss = loss_of(logits, labels, ignore_index=IGNORE)
        loss.backward()
        assert (logits.grad[:, :, 5:] == 0).all()
        cropped = loss_of(logits[:, :, :5], labels[:, :5], ignore_index=IGNORE)
        torch.testing.assert_close(loss, cropped)


def test_padding_of_unlabeled_images_counts_nowhere() -> None:
    """Fault 6: padding moves no threshold, gets no pseudo-label and gives no negative."""
    probs, entropy = teacher_output()
    valid = torch.ones_like(entropy, dtype=torch.bool)
    valid[:, 5:] = False
    threshold = partition.entropy_threshold(entropy, valid, unreliable_fraction=0.2)
    cropped = partition.entropy_threshold(entropy[:, :5], valid[:, :5], unreliable_fraction=0.2)
    assert threshold == cropped
    labels = partition.pseudo_labels(
        probs.argmax(dim=1), entropy, threshold, valid, ignore_index=IGNORE
    )
    assert (labels[:, 5:] == IGNORE).all()
    assert not partition.unreliable_mask(entropy, threshold, valid)[:, 5:].any()
    one_class = torch.arange(NUM_CLASSES).expand(4, -1) == 0
    rank = contrast.class_rank(probs)
    tags = contrast.tag_negative_mask(one_class, valid, rank, low_rank=LOW_RANK)
    assert not tags[:, :, 5:].any()
    assert tags[:, :, :5].any()


def test_queues_and_prototypes_are_in_the_state_dict() -> None:
    """Fault 9: whatever holds them saves them with it."""
    holder = nn.ModuleDict(
        {
            "queues": contrast.NegativeQueues([2, 3], 4),
            "prototypes": contrast.MomentumPrototypes(2, 4),
        }
    )
    assert set(holder.state_dict()) == {
        "queues.keys",
        "queues.num_keys",
        "queues.heads",
        "prototypes.vectors",
        "prototypes.num_updates",
    }


@pytest.mark.parametrize("num_classes", [2, NUM_CLASSES])
def test_step_in_which_no_pixel_is_kept_is_finite(num_classes: int) -> None:
    """Fault 10: no valid unlabelled pixel gives a weight and a loss of 0, not 0 / 0."""
    logits = torch.randn(2, num_classes, 4, 4, requires_grad=True)
    entropy = partition.prediction_entropy(logits.detach().softmax(dim=1))
    valid = torch.zeros(2, 4, 4, dtype=torch.bool)
    threshold = partition.entropy_threshold(entropy, valid, unreliable_fraction=0.2)
    labels = partition.pseudo_labels(
        logits.argmax(dim=1), entropy, threshold, valid, ignore_index=IGNORE
    )
    weight = losses.unsupervised_weight(valid.sum(), (labels != IGNORE).sum())
    loss = weight * losses.symmetric_cross_entropy(
        logits, labels, ignore_index=IGNORE, reverse_weight=0.1
    )
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("loss_of", [losses.cross_entropy, losses.ohem_cross_entropy])
def test_labeled_batch_that_is_all_ignored_is_finite(loss_of: Callable[..., torch.Tensor]) -> None:
    """Fault 10: the mean over no pixel is 0."""
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = loss_of(logits, torch.full((2, 4, 4), IGNORE), ignore_index=IGNORE)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_contrast_of_a_batch_that_is_all_ignored_changes_nothing() -> None:
    """Fault 10: no anchor and no key: queues and prototypes stay, the loss is 0."""
    labels = torch.full((2, 4, 4), IGNORE)
    probs = torch.full((2, 3, 4, 4), 1 / 3)
    features = torch.randn(2, 5, 4, 4, requires_grad=True)
    anchors = contrast.anchor_mask(labels, probs)
    negatives = contrast.labeled_negative_mask(labels, contrast.class_rank(probs), low_rank=1)
    prototypes, queues = contrast.MomentumPrototypes(3, 5), contrast.NegativeQueues([4] * 3, 5)
    prototypes.update(*contrast.class_means(features, anchors))
    queues.push(contrast.by_pixel(features), contrast.by_class(negatives))
    index, has_anchor = contrast.sample_with_replacement(contrast.by_class(anchors), 8)
    active = has_anchor & prototypes.seen & (queues.num_keys > 0)
    loss = losses.contrastive_loss(
        contrast.by_pixel(features)[index], prototypes.vectors, queues.sample(8, 6), active
    )
    loss.backward()
    assert not active.any()
    assert not prototypes.seen.any()
    assert queues.num_keys.sum() == 0
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_constant_entropy_drops_no_pixel() -> None:
    """Fault 10: a pixel at the quantile is reliable, so equal entropies keep their labels."""
    probs = torch.full((2, 3, 4, 4), 1 / 3)
    entropy = partition.prediction_entropy(probs)
    valid = torch.ones_like(entropy, dtype=torch.bool)
    threshold = partition.entropy_threshold(entropy, valid, unreliable_fraction=0.2)
    labels = partition.pseudo_labels(
        probs.argmax(dim=1), entropy, threshold, valid, ignore_index=IGNORE
    )
    assert (labels == 0).all()
    weight = losses.unsupervised_weight(valid.sum(), (labels != IGNORE).sum())
    assert weight.item() == 1


def test_cutmix_never_mixes_an_image_with_itself_but_for_a_batch_of_one() -> None:
    """Fault 10: at batch 1 the image stays as it is, and nothing crashes."""
    cpu = torch.device("cpu")
    for batch_size in (1, 2, 4):
        images = torch.rand(batch_size, 3, 8, 8)
        mix = mixing.cutmix(batch_size, (8, 8), device=cpu)
        mixed = mix.apply(images)
        assert torch.isfinite(mixed).all()
        changed = (mixed != images).flatten(1).any(dim=1)
        assert changed.tolist() == [batch_size > 1] * batch_size
