"""A network that learns from image tags which classes an image holds, and shows where."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from u2pl.config import Config, ModelSettings, OptimizerSettings
from u2pl.data.batch import UnlabeledBatch
from u2pl.data.loaders import derive_seed, unlabeled_batches
from u2pl.data.sources import Dataset, Sample
from u2pl.engine.checkpoint import (
    kept_checkpoints,
    load_newest_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
    write_json,
)
from u2pl.engine.loop import Interrupted, choose_precision
from u2pl.engine.optimizer import build_optimizer, learning_rate_factor, set_learning_rate
from u2pl.engine.run_folder import RunFolder
from u2pl.errors import UserError
from u2pl.models.encoders import build_encoder, keep_statistics, normalization, patch_size

NAME = "classifier"
"""Of the checkpoint and of the weights in the run folder."""


class TagOutput(NamedTuple):
    """What a :class:`TagClassifier` says of B images.

    Attributes:
        logits: [B, C], before the sigmoid.
        maps: [B, C, h, w] on the encoder's coarsest grid; a class's logit is its map, pooled, and
            the prior.
    """

    logits: Tensor
    maps: Tensor


class TagClassifier(nn.Module):
    """Encoder, 1x1 convolution to C maps, pooled over the image to C logits.

    Pooling by the mean is what makes the maps class activation maps (Zhou et al., CVPR 2016):
    every pixel takes part in the logit with the same weight, so a class gains wherever it is seen
    and its map covers the object. The maximum would train one pixel of an object and leave the
    rest; :func:`pool_maps` has all that lies between, for things that are small in their images.
    The convolution has no bias, so that 0 in a map means neither for nor against.

    Takes RGB in [0, 1] of any size and normalises it itself.

    Args:
        settings: of the encoder; what they say of decoder and heads is not used.
        num_classes: C.
        output_stride: of the grid in pixels; plain vision transformers have their patch instead.
        sharpness: r of :func:`pool_maps`.
        load_pretrained: False leaves the encoder's weights random whatever ``settings`` say.

    Attributes:
        stride: edge of a grid cell in pixels.
        prior: [C], what is added to the pooled maps; 0 until :func:`train_classifier` sets it.

    Raises:
        UserError: see :func:`~u2pl.models.encoders.build_encoder`.
    """

    prior: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        settings: ModelSettings,
        num_classes: int,
        *,
        output_stride: int,
        sharpness: float = 0.0,
        load_pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.frozen_norm = settings.frozen_norm
        is_vit = settings.decoder == "dpt"
        load_pretrained = load_pretrained and settings.pretrained
        self.encoder = build_encoder(
            settings.encoder,
            output_stride=output_stride,
            pretrained=load_pretrained,
            weights=settings.weights if load_pretrained else None,
            vit=is_vit,
        )
        self.stride = patch_size(self.encoder) if is_vit else output_stride
        channels = list(self.encoder.out_channels)  # type: ignore[arg-type]
        self.classifier = nn.Conv2d(channels[-1], num_classes, 1, bias=False)
        mean, std = normalization(settings.encoder)
        # not kept with the weights: it is counted from the tags, which are
        self.register_buffer("prior", torch.zeros(num_classes), persistent=False)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.train()

    def train(self, mode: bool = True) -> TagClassifier:
        """As of any module, but with ``frozen_norm`` the encoder's BatchNorm stays at rest."""
        super().train(mode)
        if self.frozen_norm:
            keep_statistics(self.encoder)
        return self

    def forward(self, images: Tensor, valid: Tensor | None = None) -> TagOutput:
        """Logits and maps of images [B, 3, H, W], RGB in [0, 1].

        ``valid`` [B, H, W] bool is False on padding, which has no part in the logits; None is
        True everywhere. The maps have ceil(H / stride) x ceil(W / stride) cells.
        """
        height, width = images.shape[-2:]
        padding = (0, -width % self.stride, 0, -height % self.stride)
        encoded = self.encoder(F.pad((images - self.mean) / self.std, padding))
        coarsest = (encoded[0] if isinstance(encoded, tuple) else encoded)[-1]
        maps = self.classifier(coarsest)
        if valid is None:
            valid = images.new_ones(images.shape[0], height, width, dtype=torch.bool)
        share = F.avg_pool2d(F.pad(valid.unsqueeze(1).float(), padding), self.stride)
        pooled = pool_maps(maps.float(), share, sharpness=self.sharpness)
        return TagOutput(pooled + self.prior, maps)


def pool_maps(maps: Tensor, share: Tensor, *, sharpness: float) -> Tensor:
    """``log(Σ_i w_i e^{r m_i}) / r`` of each map, w the share of each cell (Pinheiro and Collobert,
    CVPR 2015): between the mean, r = 0, and the maximum, r = ∞.

    Args:
        maps: [B, C, h, w].
        share: [B, 1, h, w] in [0, 1], how much of a cell is image; a crop holds some of it.
        sharpness: r >= 0.

    Returns:
        [B, C].

    >>> maps, share = torch.tensor([[[[0.0, 4.0]]]]), torch.ones(1, 1, 1, 2)
    >>> [round(pool_maps(maps, share, sharpness=r).item(), 2) for r in (0, 1, 10)]
    [2.0, 3.33, 3.93]
    """
    weights = share / share.sum(dim=(-2, -1), keepdim=True)
    if sharpness == 0:
        return (maps * weights).sum(dim=(-2, -1))
    return (sharpness * maps + weights.log()).flatten(2).logsumexp(dim=-1) / sharpness


def tag_loss(logits: Tensor, tags: Tensor, *, background_class: int | None) -> Tensor:
    """Binary cross-entropy of each class, summed over the classes, averaged over the images.

    Args:
        logits: [B, C].
        tags: [B, C] bool, True where the image holds the class.
        background_class: has no tag and is left out; None where there is no such class.

    Returns:
        A scalar.

    >>> logits, tags = torch.zeros(4, 3), torch.ones(4, 3, dtype=torch.bool)
    >>> round(tag_loss(logits, tags, background_class=0).item(), 4)  # 2 log 2
    1.3863
    """
    losses = F.binary_cross_entropy_with_logits(logits, tags.to(logits.dtype), reduction="none")
    if background_class is not None:
        losses[:, background_class] = 0.0
    return losses.sum(dim=1).mean()


def tag_prior(samples: Sequence[Sample], num_classes: int) -> Tensor:
    """Log-odds of each class in an image, from how many of the samples have its tag, [C].

    One image with all classes and one with none are added, so that no class is certain.

    >>> from pathlib import Path
    >>> samples = tuple(Sample(name="", image=Path(), tags=(0,)) for _ in range(4))
    >>> tag_prior(samples, 2).exp()
    tensor([5.0000, 0.2000])
    """
    counts = torch.ones(num_classes)
    for sample in samples:
        for class_id in sample.tags or ():
            counts[class_id] += 1
    return (counts / (len(samples) + 2)).logit()


def tag_warnings(
    samples: tuple[Sample, ...], classes: tuple[str, ...], *, background_class: int | None
) -> list[str]:
    """Sentences on classes that tags cannot teach: those of every image, and those of none.

    Training works with them all the same. The map of a class of every image shows little, because
    nothing is to be told apart; a class of none gets no seed.
    """
    counts = [0] * len(classes)
    for sample in samples:
        for class_id in sample.tags or ():
            counts[class_id] += 1
    others = [c for c in range(len(classes)) if c != background_class]
    always = [classes[c] for c in others if counts[c] == len(samples)]
    never = [classes[c] for c in others if counts[c] == 0]
    warnings = []
    if always:
        warnings.append(
            f"Every tagged image holds {', '.join(always)}: a classifier cannot learn from tags "
            "where in an image that is; look at the seeds, and add images without it."
        )
    if never:
        warnings.append(
            f"No tag names {', '.join(never)}: there will be no seed of it; take the class out of "
            "dataset.yaml, or give images of it."
        )
    return warnings


def train_classifier(
    config: Config,
    dataset: Dataset,
    folder: RunFolder,
    *,
    device: torch.device,
    asked_to_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> TagClassifier:
    """Train a :class:`TagClassifier`, or go on with, or read, the one in the run folder.

    Every draw is a function of the seed and the draw's number and the learning rate one of the
    step, so a run that went on from a checkpoint ends with the same weights.

    Args:
        config: ``weak``, and with it model, data, optimizer and train.
        dataset: whose unlabelled images all have tags.
        folder: where the checkpoint lies after every ``train.checkpoint_every`` steps, and at the
            end the weights and ``eval/classifier.json``, the losses of every ``train.log_every``
            steps; if the weights are there already, nothing is trained.
        device: to train on.
        asked_to_stop: looked at after each step.
        on_progress: called with ``classifier``, the steps made and their number.

    Returns:
        The network in evaluation mode.

    Raises:
        UserError: where an image cannot be read, the loss or a weight is no longer finite, or what
            the folder holds does not fit.
        Interrupted: where it was asked to stop, after saving.
    """
    total, weights = config.weak.steps, folder.weights(NAME)
    checkpoint = folder.checkpoint(NAME)
    begun = weights.is_file() or bool(kept_checkpoints(checkpoint))
    model = build_classifier(config, dataset.num_classes, load_pretrained=not begun).to(device)
    prior = tag_prior(dataset.unlabeled, dataset.num_classes)
    model.prior.copy_(config.weak.tag_prior * prior)
    optimizer = build_optimizer(model, _optimizer_settings(config))
    step, losses = _restore(model, optimizer, folder, device)
    if weights.is_file():
        return model.eval()
    model.train()
    with closing(_batches(config, dataset, start_step=step, device=device)) as batches:
        for batch in batches:
            loss = _update(model, optimizer, batch, config, step)
            step += 1
            if step % config.train.log_every == 0 or step == total:
                losses.append({"step": step, "loss": loss})
            on_progress(NAME, step, total)
            asked = asked_to_stop()
            if step == total:
                break
            if asked or step % config.train.checkpoint_every == 0:
                _save(model, optimizer, step, losses, checkpoint, config.train.keep_checkpoints)
            if asked:
                raise Interrupted(
                    0, dataset, folder, done=f"{step} of {total} steps of the tag classifier"
                )
    _require_finite(model, step)
    _write_result(model, losses, folder)
    return model.eval()


def build_classifier(config: Config, num_classes: int, *, load_pretrained: bool) -> TagClassifier:
    """The classifier of a run with its first weights, drawn from the run's seed.

    Raises:
        UserError: where the network cannot be built.
    """
    torch.manual_seed(derive_seed(config.train.seed, NAME, "weights"))
    model = TagClassifier(
        config.model,
        num_classes,
        output_stride=config.weak.output_stride,
        sharpness=config.weak.pooling_sharpness,
        load_pretrained=load_pretrained,
    )
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _restore(
    model: TagClassifier,
    optimizer: torch.optim.Optimizer,
    folder: RunFolder,
    device: torch.device,
) -> tuple[int, list[dict[str, float]]]:
    """Load finished weights or a checkpoint, if there are any; return the step and the losses."""
    try:
        if folder.weights(NAME).is_file():
            model.load_state_dict(load_weights(folder.weights(NAME)))
        elif kept_checkpoints(folder.checkpoint(NAME)):
            state = load_newest_checkpoint(folder.checkpoint(NAME), device, network=NAME)
            model.load_state_dict(state[NAME])
            optimizer.load_state_dict(state["optimizer"])
            return int(state["step"]), list(state["losses"])
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError):
        raise UserError(
            f"The tag classifier of {folder.path} does not fit its config.yaml; has the file been "
            "edited since the run was started?"
        ) from None
    return 0, []


def _save(
    model: TagClassifier,
    optimizer: torch.optim.Optimizer,
    step: int,
    losses: list[dict[str, float]],
    path: Path,
    keep: int,
) -> None:
    """Write what :func:`_restore` reads."""
    _require_finite(model, step)
    state = {"optimizer": optimizer.state_dict(), "step": step, "losses": losses}
    save_checkpoint(path, {NAME: model.state_dict(), **state}, keep=keep)


def _write_result(model: TagClassifier, losses: list[dict[str, float]], folder: RunFolder) -> None:
    """Write the losses and the weights; the checkpoint is needed no more."""
    log = folder.path / "eval" / f"{NAME}.json"
    log.parent.mkdir(parents=True, exist_ok=True)
    write_json(log, {"steps": losses[-1]["step"], "losses": losses})
    save_weights(folder.weights(NAME), model.state_dict())  # last: it says that all is there
    for file in kept_checkpoints(folder.checkpoint(NAME)):
        file.unlink()


def _optimizer_settings(config: Config) -> OptimizerSettings:
    if config.weak.lr is None:
        return config.optimizer
    return config.optimizer.model_copy(update={"lr": config.weak.lr})


def _batches(
    config: Config, dataset: Dataset, *, start_step: int, device: torch.device
) -> Generator[UnlabeledBatch, None, None]:
    settings = config.data.model_copy(
        update={"scale": config.weak.scale, "batch_unlabeled": config.weak.batch_size}
    )
    return unlabeled_batches(
        dataset,
        settings,
        seed=derive_seed(config.train.seed, NAME),
        start_step=start_step,
        stop_step=config.weak.steps,
        device=device,
    )


def _update(
    model: TagClassifier,
    optimizer: torch.optim.Optimizer,
    batch: UnlabeledBatch,
    config: Config,
    step: int,
) -> float:
    """Make one step on the strong view of a batch, and return its loss."""
    settings = config.optimizer
    factor = learning_rate_factor(
        step,
        config.weak.steps,
        power=settings.poly_power,
        warmup_steps=settings.lr_warmup_steps,
    )
    set_learning_rate(optimizer, factor)
    images, tags = batch.strong[0], batch.possible_classes
    # bfloat16 needs no loss scale; where the run asks for float16, float32 has to do
    in_bfloat16 = choose_precision(config) == "bf16-mixed"
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=in_bfloat16):
        logits = model(images, batch.valid).logits
    loss = tag_loss(logits, tags, background_class=config.method.background_class)
    value = loss.item()
    if not math.isfinite(value):
        raise _not_finite(f"the loss became {value}", step)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if settings.max_grad_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    optimizer.step()
    return value


def _require_finite(model: TagClassifier, step: int) -> None:
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
        raise _not_finite("the update made weights that are not finite", step)


def _not_finite(what: str, step: int) -> UserError:
    return UserError(
        f"Tag classifier: at step {step} {what}; training stopped before saving it. Lower weak.lr, "
        "set optimizer.max_grad_norm, or look at the images with `u2pl data check`."
    )
