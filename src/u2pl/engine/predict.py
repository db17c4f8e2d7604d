"""From a run's weights to masks: one image, or a folder of them."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, TypeAdapter
from torch import Tensor, nn

from u2pl.config import ModelSettings, parse_config
from u2pl.data.images import (
    entropy_picture,
    overlay,
    read_image,
    refuse_way_out,
    write_image,
    write_mask,
)
from u2pl.data.sources import IMAGE_SUFFIXES
from u2pl.data.transforms import eval_image
from u2pl.engine.checkpoint import load_checkpoint, load_weights
from u2pl.engine.evaluate import predict_logits, resize_logits
from u2pl.engine.run_folder import RunFolder
from u2pl.errors import UserError, is_clean
from u2pl.models import Segmenter
from u2pl.partition import prediction_entropy
from u2pl.plain_files import read_text

KINDS = ("masks", "overlays", "entropy", "reliable")
"""Pictures that :func:`predict_images` can write."""


Channel = Annotated[int, Field(ge=0, le=255)]
"""Red, green or blue."""


class Prediction(NamedTuple):
    """What a network says of one image of H x W pixels.

    Attributes:
        mask: [H, W] uint8 (int32 above 256 classes), class ids of the dataset.yaml.
        entropy: [H, W] float32 in nats, 0 to log C.
        reliable: [H, W] bool, entropy up to that of the surest pixels of val.
    """

    mask: npt.NDArray[Any]
    entropy: npt.NDArray[np.float32]
    reliable: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ModelCard:
    """``model.json``: what a run's weights mean.

    Attributes:
        classes: names in id order.
        colors: RGB of each class.
        resize: short side images are brought to, or None.
        protocol: ``whole`` or ``slide``.
        crop: window of ``slide``.
        stride_fraction: stride of ``slide`` as a fraction of the window.
        reliable_entropy: γ in nats.
        step: updates made.
    """

    classes: Annotated[tuple[str, ...], Field(min_length=2, max_length=65536)]
    colors: tuple[tuple[Channel, Channel, Channel], ...]
    resize: Annotated[int, Field(ge=1, le=65536)] | None
    protocol: Literal["whole", "slide"]
    crop: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    stride_fraction: Annotated[float, Field(gt=0, le=1)]
    reliable_entropy: float
    step: Annotated[int, Field(ge=0)]


class SegmentationModel(nn.Module):
    """A trained network with everything it takes to use it on images of any size.

    Args:
        network: the trained :class:`~u2pl.models.Segmenter`.
        card: what its outputs mean.
    """

    def __init__(self, network: Segmenter, card: ModelCard) -> None:
        super().__init__()
        self.network = network
        self.card = card

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in id order."""
        return self.card.classes

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C, H, W] of images [B, 3, H, W], RGB in [0, 1], by the run's protocol."""
        return predict_logits(
            self.network,
            images,
            protocol=self.card.protocol,
            crop=self.card.crop,
            stride=self.card.stride_fraction,
        )

    @torch.inference_mode()
    def predict(self, image: str | Path | npt.NDArray[np.uint8]) -> Prediction:
        """Label one image.

        Args:
            image: a file, or [H, W, 3] uint8 RGB.

        Returns:
            A :class:`Prediction` at the image's own size.

        Raises:
            UserError: where the file is no image, or the answer is not finite.
        """
        named = "The image" if isinstance(image, np.ndarray) else image
        pixels = image if isinstance(image, np.ndarray) else read_image(Path(image))
        device = self.network.mean.device
        resized = eval_image(pixels, resize=self.card.resize, file=named).unsqueeze(0).to(device)
        logits = resize_logits(self(resized), (pixels.shape[0], pixels.shape[1]))
        probs = logits.softmax(dim=1)
        entropy = prediction_entropy(probs)[0]
        if not entropy.isfinite().all():
            raise UserError(
                "The network's answer is not finite: its weights are damaged, or its training "
                "went wrong; load another checkpoint, or train again."
            )
        dtype = np.uint8 if len(self.classes) <= 256 else np.int32
        return Prediction(
            mask=probs.max(dim=1).indices[0].cpu().numpy().astype(dtype),
            entropy=entropy.cpu().numpy(),
            reliable=(entropy <= self.card.reliable_entropy).cpu().numpy(),
        )


def load_model(
    run: Path, *, weights: str = "ema", checkpoint: str = "last", device: torch.device | str = "cpu"
) -> SegmentationModel:
    """Rebuild a run's network, in evaluation mode.

    Args:
        run: the run's folder.
        weights: ``ema`` (the teacher) or ``student``.
        checkpoint: ``last`` or ``best``.
        device: where to put it.

    Raises:
        UserError: where the folder holds no finished run, or a file is damaged.
    """
    folder = RunFolder(Path(run))
    if not os.path.isfile(folder.model):
        folder.read_config()
        raise UserError(
            f"{folder.path} has no {folder.model.name} yet; it is written when training ends."
        )
    settings, card = read_card(folder)
    network = Segmenter(settings, len(card.classes), load_pretrained=False)
    if checkpoint == "last":
        state = load_weights(folder.weights(weights))
    else:
        part = "teacher" if weights == "ema" else "student"
        saved = load_checkpoint(folder.checkpoint(checkpoint), network=part)
        state = saved[part]
        step = saved.get("step")
        card = replace(card, step=step if isinstance(step, int) else card.step)
    try:
        kinds = {key: tensor.is_floating_point() for key, tensor in network.state_dict().items()}
        if any(tensor.is_floating_point() != kinds[key] for key, tensor in state.items()):
            raise TypeError("whole numbers for weights")
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, KeyError):
        raise UserError(
            f"The weights in {folder.path} do not fit the network that {folder.model.name} "
            "describes; were files of two runs mixed?"
        ) from None
    return SegmentationModel(network, card).eval().requires_grad_(False).to(device)


def read_card(folder: RunFolder) -> tuple[ModelSettings, ModelCard]:
    """Read what a run's weights mean: the settings of the network, and the rest.

    Raises:
        UserError: where ``model.json`` is damaged.
    """
    try:
        tree = json.loads(read_text(folder.model))
        settings = parse_config({"model": tree["model"]}).model
        names = [field.name for field in fields(ModelCard)]
        card = TypeAdapter(ModelCard).validate_python({name: tree[name] for name in names})
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError):
        raise UserError(f"{folder.model} is damaged: it does not describe a network.") from None
    if len(card.colors) != len(card.classes) or not all(map(is_clean, card.classes)):
        raise UserError(f"{folder.model} is damaged: expected a name and a color of each class.")
    return settings, card


def find_images(source: Path) -> tuple[Path, list[Path]]:
    """The images that a path means: a file, a folder (with its subfolders), or a glob pattern.

    Returns:
        The folder that output names are relative to, and the files in order of their names.

    Raises:
        UserError: where there is none.
    """
    if os.path.isfile(source):
        return source.parent, [source]
    if os.path.isdir(source):
        base, found = source, source.rglob("*")
    else:
        literal = itertools.takewhile(lambda part: not set(part) & set("*?["), source.parts)
        base = Path(*literal)
        if base == source or not os.path.isdir(base):
            raise UserError(f"There is no image and no folder {source}.")
        pattern = source.relative_to(base)
        if ".." in pattern.parts:
            raise UserError(
                f"The pattern {source} has '..' behind a wildcard, which would lead results out "
                "of their folder; only what stands before the first wildcard may lead upwards.",
                exit_code=2,
            )
        found = base.glob(str(pattern))
    files = sorted(
        path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and not os.path.isdir(path)
    )
    if not files:
        raise UserError(
            f"Found no image in {source}; expected {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return base, files


def make_folder(path: Path) -> None:
    """Make a folder for results.

    Raises:
        UserError: where it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write into {path}: {error.strerror}.") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"Cannot write into {path}: permission denied.")


def refuse_clashes(base: Path, files: list[Path]) -> None:
    """Raise UserError where two images would be written to the same name."""
    seen: dict[Path, Path] = {}
    for file in files:
        name = file.relative_to(base).with_suffix("")
        if name in seen:
            raise UserError(
                f"{seen[name]} and {file} would both be written as {name}.png; rename one."
            )
        seen[name] = file


def predict_images(
    model: SegmentationModel,
    source: Path,
    out: Path,
    *,
    kinds: Iterable[str] = ("masks", "overlays", "entropy"),
    on_image: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Label every image of a source and write the results as PNG.

    Args:
        model: from :func:`load_model`.
        source: a file, folder or glob pattern.
        out: gets a folder a kind; a file's name and subfolder are those of its image. Images
            that lie in it, from an earlier call, are passed over.
        kinds: of ``masks`` (class ids, shown in the classes' colours), ``overlays``, ``entropy``
            (0 to log C) and ``reliable`` (255 where sure).
        on_image: called with images written and images in all.

    Returns:
        ``images``, ``out``, and ``reliable_share``, a fraction of all pixels.

    Raises:
        UserError: where there is no image, one cannot be read, or names clash.
    """
    wanted, pixels, sure = tuple(kinds), 0, 0
    for kind in wanted:
        if kind not in KINDS:
            raise UserError(f"Expected kinds of {', '.join(KINDS)}, got '{kind}'.", exit_code=2)
    base, files = find_images(source)
    files = [file for file in files if not file.resolve().is_relative_to(out.resolve())]
    if not files:
        raise UserError(f"All images of {source} lie in {out}, where the results go.")
    refuse_clashes(base, files)
    make_folder(out)
    # decoding and PNG writing leave the interpreter's lock: they run beside the forward pass
    with ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(2) as writers:
        writing: list[Future[None]] = []
        for index, (file, image) in enumerate(_read_ahead(readers, files)):
            prediction = model.predict(image)
            pixels += prediction.reliable.size
            sure += int(prediction.reliable.sum())
            name = file.relative_to(base).with_suffix(".png")
            writing.append(writers.submit(_write, out, name, image, prediction, model.card, wanted))
            if len(writing) > 4:
                writing.pop(0).result()
            on_image(index + 1, len(files))
        for future in writing:
            future.result()
    return {"images": len(files), "out": str(out), "reliable_share": sure / max(pixels, 1)}


def _read_ahead(
    pool: ThreadPoolExecutor, files: list[Path], depth: int = 4
) -> Iterator[tuple[Path, npt.NDArray[np.uint8]]]:
    """Decode a few images ahead of the one in use."""
    waiting = [(file, pool.submit(read_image, file)) for file in files[:depth]]
    for upcoming in itertools.chain(files[depth:], [None] * len(waiting)):
        file, future = waiting.pop(0)
        if upcoming is not None:
            waiting.append((upcoming, pool.submit(read_image, upcoming)))
        yield file, future.result()


def _write(
    out: Path,
    name: Path,
    image: npt.NDArray[np.uint8],
    prediction: Prediction,
    card: ModelCard,
    kinds: tuple[str, ...],
) -> None:
    for kind in kinds:
        path = out / kind / name
        refuse_way_out(out, path)
        if kind == "masks":
            write_mask(path, prediction.mask, colors=card.colors)
        elif kind == "overlays":
            write_image(path, overlay(image, prediction.mask, card.colors))
        elif kind == "entropy":
            write_image(path, entropy_picture(prediction.entropy, len(card.classes)))
        else:
            write_image(path, np.where(prediction.reliable, 255, 0).astype(np.uint8))
