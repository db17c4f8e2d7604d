"""A trained network and what its answers mean, rebuilt from a run folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, TypeAdapter
from torch import Tensor, nn

from u2pl.config import ModelSettings, Scale, parse_config
from u2pl.data.images import read_image
from u2pl.data.transforms import eval_image
from u2pl.engine.checkpoint import load_checkpoint, load_weights
from u2pl.engine.evaluate import predict_logits, resize_logits
from u2pl.engine.protocol import Protocol
from u2pl.engine.run_folder import RunFolder
from u2pl.errors import UserError, is_clean
from u2pl.models import Segmenter
from u2pl.partition import prediction_entropy
from u2pl.plain_files import read_text

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


class Fetched:
    """Values of B images, perhaps still on their way from a GPU, which is not waited for.

    Args:
        values: tensors [B, ...], all on one device.
    """

    def __init__(self, *values: Tensor) -> None:
        self._values = list(values)
        self._ready: torch.cuda.Event | None = None
        if values[0].is_cuda:  # into pinned memory, which copies need that nothing waits for
            self._values = [value.to("cpu", non_blocking=True) for value in values]
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record()

    def of(self, index: int) -> list[npt.NDArray[Any]]:
        """One image's; waits for a GPU to come so far, and for none of its later work."""
        values = [value[index] for value in self._values]
        if self._ready is not None:
            self._ready.synchronize()
            values = [value.clone() for value in values]  # pinned memory is not for keeping
        return [value.numpy() for value in values]


class Judged:
    """What a network says of B images.

    Args:
        mask: [B, H, W], class ids.
        entropy: [B, H, W] in nats.
        reliable: [B, H, W] bool.
    """

    def __init__(self, *, mask: Tensor, entropy: Tensor, reliable: Tensor) -> None:
        is_finite = entropy.isfinite().flatten(1).all(dim=1)
        self._fetched = Fetched(mask, entropy, reliable, is_finite)

    def of(self, index: int) -> Prediction:
        """One image's.

        Raises:
            UserError: where the answer is not finite.
        """
        mask, entropy, reliable, is_finite = self._fetched.of(index)
        if not is_finite:
            raise UserError(
                "The network's answer is not finite: its weights are damaged, or its training "
                "went wrong; load another checkpoint, or train again."
            )
        return Prediction(mask, entropy, reliable)


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
        ignore_index: what unknown pixels of masks held.
        recipe: the run's.
        scales: sizes at which an image is seen, as factors.
        flip: mirrored too.
    """

    classes: Annotated[tuple[str, ...], Field(min_length=2, max_length=65536)]
    colors: tuple[tuple[Channel, Channel, Channel], ...]
    resize: Annotated[int, Field(ge=1, le=65536)] | None
    protocol: Literal["whole", "slide"]
    crop: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    stride_fraction: Annotated[float, Field(gt=0, le=1)]
    reliable_entropy: float
    step: Annotated[int, Field(ge=0)]
    ignore_index: int
    recipe: str
    scales: Annotated[tuple[Scale, ...], Field(min_length=1, max_length=32)] = (1.0,)
    flip: bool = False

    @property
    def seen_by(self) -> Protocol:
        """How images are predicted."""
        return Protocol(self.protocol, self.crop, self.stride_fraction, self.scales, self.flip)


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
        return predict_logits(self.network, images, self.card.seen_by)

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
        prepared = eval_image(pixels, resize=self.card.resize, file=named)
        return self.judge(self.logits_of([prepared], size=(pixels.shape[0], pixels.shape[1])))

    @torch.no_grad()
    def whole(self, images: Tensor) -> Tensor:
        """Logits [B, C, H, W] of images seen at once, whatever the run's protocol."""
        return predict_logits(self.network, images, Protocol("whole"))

    def logits_of(self, prepared: Sequence[Tensor], *, size: tuple[int, int]) -> Tensor:
        """Logits [B, C, H, W] at ``size`` of images [3, h, w] that the network sees as they are."""
        return resize_logits(self(self.on_device(prepared)), size)

    def on_device(self, prepared: Sequence[Tensor]) -> Tensor:
        """Images [3, h, w] as a batch; out of pinned memory while a GPU works on others."""
        device = self.network.mean.device
        return torch.stack([image.to(device, non_blocking=True) for image in prepared])

    def judge(self, logits: Tensor) -> Prediction:
        """What logits [1, C, H, W] say of an image.

        Raises:
            UserError: where they are not finite.
        """
        return self.judge_all(logits).of(0)

    def judge_all(self, logits: Tensor) -> Judged:
        """What logits [B, C, H, W] say of images; a GPU is not waited for."""
        probs = logits.softmax(dim=1)
        entropy = prediction_entropy(probs)
        dtype = torch.uint8 if len(self.classes) <= 256 else torch.int32
        return Judged(
            mask=probs.max(dim=1).indices.to(dtype),
            entropy=entropy,
            reliable=entropy <= self.card.reliable_entropy,
        )

    def fingerprint(self) -> str:
        """SHA-256 of weights and description: two models that have it in common answer alike."""
        digest = hashlib.sha256(json.dumps(asdict(self.card)).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_model(
    run: Path, *, weights: str = "ema", checkpoint: str = "last", device: torch.device | str = "cpu"
) -> SegmentationModel:
    """Rebuild a run's network, in evaluation mode.

    Args:
        run: the run's folder, or one that ``u2pl export --format safetensors`` or ``hf`` wrote.
        weights: ``ema`` (the teacher) or ``student``.
        checkpoint: ``last`` or ``best``.
        device: where to put it.

    Raises:
        UserError: where the folder holds no finished run, or a file is damaged.
    """
    folder = RunFolder(Path(run))
    is_exported = os.path.isfile(folder.exported) and not os.path.isfile(folder.config)
    if not os.path.isfile(folder.model):
        folder.read_config()
        raise UserError(
            f"{folder.path} has no {folder.model.name} yet; it is written when training ends."
        )
    settings, card = read_card(folder)
    network = Segmenter(settings, len(card.classes), load_pretrained=False)
    if is_exported or checkpoint == "last":
        if is_exported and (weights, checkpoint) != ("ema", "last"):
            raise UserError(
                f"{folder.path} is an exported model and holds one set of weights; ask for no "
                "other weights or checkpoint.",
                exit_code=2,
            )
        state = load_weights(folder.exported if is_exported else folder.weights(weights))
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
        # what a version before did not write has a default
        names = [
            field.name
            for field in fields(ModelCard)
            if field.default is MISSING or field.name in tree
        ]
        card = TypeAdapter(ModelCard).validate_python({name: tree[name] for name in names})
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError):
        raise UserError(f"{folder.model} is damaged: it does not describe a network.") from None
    if len(card.colors) != len(card.classes) or not all(map(is_clean, card.classes)):
        raise UserError(f"{folder.model} is damaged: expected a name and a color of each class.")
    return settings, card
