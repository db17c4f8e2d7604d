"""Every number of a run, once, typed and checked before anything starts.

Sources in brackets as in docs/fidelity.md: [P] the papers, [C] the authors' code only,
[R] our reconstruction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from u2pl.errors import UserError, nearest_name, shown
from u2pl.plain_files import parse_yaml, read_yaml

_LARGEST = 2**32  # of whole numbers; what is far beyond a machine should not reach it

Rate = Annotated[int, Field(ge=1)]
"""Cells from one tap of a dilated convolution to the next."""

Side = Annotated[int, Field(ge=1, le=65_536)]
"""Of a window, in pixels."""

Scale = Annotated[float, Field(gt=0, le=8)]
"""A size of an image, as a factor."""


class Settings(BaseModel):
    """A frozen group of settings in which an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _is_in_reach(cls, value: Any) -> Any:
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, int) and number > _LARGEST for number in numbers):
            raise ValueError(f"whole numbers go up to {_LARGEST}")
        return value


class ModelSettings(Settings):
    """The network: timm encoder, decoder, segmentation head f and representation head g."""

    encoder: str = "resnet50"
    """A timm model name, or ``small``: our own net that trains from scratch."""
    decoder: Literal["deeplabv3plus", "fpn", "segformer", "dpt"] = "deeplabv3plus"
    output_stride: Literal[8, 16, 32] = 16
    """Of the encoder, in pixels; 8 [P] costs four times the memory of 16. FPN takes 32."""
    atrous_rates: tuple[Rate, Rate, Rate] = (12, 24, 36)
    """Of DeepLabV3+'s pyramid, in cells of the encoder's last grid [P: 12, 24, 36 at stride 8]."""
    pretrained: bool = True
    """Load timm's ImageNet weights (from its hub, or from ``weights``)."""
    weights: Path | None = None
    """A local .safetensors or .pth file with timm's key names; used instead of the hub."""
    frozen_norm: bool = False
    """The encoder's BatchNorm normalises by the averages it came with, in training too, and keeps
    them: for a batch of a few images, whose own statistics are noise. Its weights are trained."""
    decoder_channels: int = Field(256, ge=8)
    head_channels: int = Field(256, ge=8)
    feature_size: int = Field(256, ge=2)
    """D, the length of a pixel's representation [P: 256]."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Before the last convolution of f; not on g."""
    auxiliary_weight: float = Field(0.0, ge=0)
    """In L_s, of a second segmentation head on the encoder's map before the last [P: 0.4 on
    Cityscapes]; 0 builds none. Predictions do not use it."""

    @model_validator(mode="after")
    def _check(self) -> ModelSettings:
        if self.weights is not None and not self.pretrained:
            raise ValueError("weights is given, but pretrained is false; leave one of them out")
        if self.frozen_norm and (not self.pretrained or self.encoder == "small"):
            raise ValueError(
                "frozen_norm keeps the averages that pretrained weights come with, and here is no "
                "pretrained encoder; set frozen_norm=false"
            )
        return self

    def without_pretrained(self) -> ModelSettings:
        """The same network with nothing to load, and so without averages that could be kept.

        >>> ModelSettings(frozen_norm=True).without_pretrained().frozen_norm
        False
        """
        return self.model_copy(update={"pretrained": False, "weights": None, "frozen_norm": False})


class DataSettings(Settings):
    """From files to batches. All geometry is shared by image, mask and both views."""

    resize: int | None = Field(None, ge=8)
    """Short side in pixels that every image is brought to first, in training, evaluation and
    prediction alike; masks are scored at their own size all the same. None keeps the file's."""
    resize_labeled: int | None = Field(None, ge=8)
    """The same for the labelled images alone, where they come in another resolution than the
    unlabelled, val and test images; None is as ``resize``."""
    crop: tuple[int, int] = (512, 512)
    """Height and width of a training crop in pixels; smaller images are padded with ignore."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random rescaling [P]."""
    flip: bool = True
    """Mirror left and right in half of the draws."""
    context: int = Field(0, ge=0, le=65_536, multiple_of=4)
    """The teacher sees so many pixels more on each side of an unlabelled crop [R], moved inwards
    where the image ends; what it says of the crop itself is what counts."""
    rare_class_temperature: float | None = Field(None, gt=0)
    """T of DAFormer's rare-class sampling of the labelled images [0.01 there]; a small one prefers
    images of rare classes. None draws each image once an epoch."""
    rare_class_min_pixels: int = Field(3000, ge=1)
    """An image is drawn for a class if its file holds so many pixels of it, and a crop is
    accepted with half as many [DAFormer's code]."""
    batch_labeled: int = Field(8, ge=1, le=65_536)
    batch_unlabeled: int = Field(8, ge=1, le=65_536)
    jitter: float = Field(0.5, ge=0)
    """Strength of brightness, contrast and saturation changes of the strong view; hue gets half."""
    jitter_probability: float = Field(0.8, ge=0, le=1)
    grayscale_probability: float = Field(0.2, ge=0, le=1)
    blur_probability: float = Field(0.5, ge=0, le=1)
    intensities: int = Field(0, ge=0, le=3)
    """In place of jitter, grey and blur a strong view undergoes at most so many of eleven changes,
    their number, each one and its strength drawn evenly [R: AugSeg 3]; 0 is off."""
    num_workers: int | None = Field(None, ge=0, le=256)
    """Loader processes; None chooses from the machine."""
    cache: Literal["none", "memory", "disk"] = "none"
    """Where decoded images and masks are kept; what is trained on is the same, bit for bit."""
    cache_gigabytes: float = Field(8.0, gt=0)
    """10⁹ bytes that the cache may take, and half of what is free at most."""
    cache_folder: Path | None = None
    """Of ``disk``; None is ``.u2pl-decoded`` beside the dataset.yaml."""

    @model_validator(mode="after")
    def _check(self) -> DataSettings:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be 0 < low <= high, got {self.scale}")
        if min(self.crop) < 8:
            raise ValueError(f"crop must be at least 8 x 8 pixels, got {self.crop}")
        if max(self.crop) > 65_536:
            raise ValueError(f"crop must be at most 65536 x 65536 pixels, got {self.crop}")
        return self


class MethodSettings(Settings):
    """The numbers of U2PL and U2PL+; equations as in docs/explanation/equations.md."""

    unsupervised_weight: float = Field(1.0, ge=0)
    """η of Eq. 8 [P]. 0 leaves the unlabelled images out of L_u."""
    unsupervised_ramp_steps: int = Field(0, ge=0)
    """Semi-supervised steps in which η rises to its value [R]; 0 begins with it, as the papers."""
    contrastive_weight: float = Field(0.1, ge=0)
    """λ_c of Eq. 1 [P: 0.1]. 0 switches contrast, queues and prototypes off."""
    initial_unreliable_fraction: float = Field(0.2, ge=0, lt=1)
    """α_0 of Eq. 7 [P]: the share of pixels held unreliable at first."""
    adaptive_partition: bool = True
    """α_t falls to 0 over the run, Eq. 7 [P]; False keeps it at α_0, an ablation."""
    partition_by: Literal["batch", "class"] = "batch"
    """What has a threshold γ_t of its own: the batch (Eq. 6), or each predicted class."""
    pseudo_threshold: float | None = Field(None, gt=0, le=1)
    """A pixel has a pseudo-label where its class has at least this probability, instead of Eq. 6
    [R: FixMatch 0.95]; the pixels above γ_t give negatives all the same. None is Eq. 6."""
    unsupervised_scaling: Literal["inverse_share", "even", "share"] = "inverse_share"
    """λ_u from the share of pixels with a pseudo-label: its inverse, Eq. 8 [P]; 1; or the share
    itself [R: FixMatch], which makes L_u a mean over all valid pixels."""
    soft_pseudo_labels: bool = False
    """Where a pixel has a pseudo-label, the student is taught the teacher's probabilities instead
    of their largest, an ablation."""
    strong_views: int = Field(1, ge=1, le=4)
    """Strong views of each unlabelled image, each mixed by its own draw, that L_u is the mean of
    [R: UniMatch 2]; contrast is on the first."""
    feature_dropout: Literal["none", "stream", "complementary"] = "none"
    """Channel dropout behind the encoder: ``stream`` on the weak view, as half of L_u
    [R: UniMatch]; ``complementary`` on two strong views, each with the channels that the other
    lacks [R: UniMatch V2]."""
    feature_dropout_rate: float = Field(0.5, gt=0, lt=1)
    """Share of the channels that ``feature_dropout`` leaves out [R: UniMatch]."""
    anchor_threshold: float = Field(0.3, ge=0, lt=1)
    """δ_p of Eq. 9-11 [P]."""
    low_rank: int | None = Field(None, ge=1)
    """r_l of Eq. 14-15 [P: 3]; None derives it from the number of classes."""
    high_rank: int | None = Field(None, ge=1)
    """r_h of Eq. 15 [P: 20], exclusive; None derives it from the number of classes."""
    temperature: float = Field(0.5, gt=0)
    """τ of Eq. 4 [P]."""
    num_anchors: int = Field(256, ge=1)
    """M, anchors a class and step [C: 256]."""
    num_negatives: int = Field(50, ge=1)
    """N, negatives an anchor [C: 50]."""
    queue_size: int = Field(30_000, ge=1)
    """Keys a class [P]."""
    background_class: int | None = Field(None, ge=0)
    """The class that is whatever no other is (VOC: 0): it has the longer queue, and no tag."""
    background_queue_size: int = Field(50_000, ge=1)
    """Keys of the background class [P]."""
    queue_dtype: Literal["float32", "bfloat16"] = "float32"
    queue_megabytes: int = Field(2200, ge=1)
    """At most so many million bytes for all queues together; longer ones are all shortened alike,
    from 72 classes on with the other defaults [R]."""
    keys_per_step: int = Field(1024, ge=1)
    """At most so many keys are pushed a class and step [R]."""
    keep_keys: bool = True
    """Queues hold the keys of earlier steps [P]; False empties them in each step, an ablation."""
    negatives_from: Literal["unreliable", "reliable", "all"] = "unreliable"
    """Pixels of unlabelled images that give negatives: Eq. 15 [P], or its ablations."""
    labeled_negatives: bool = True
    """Labelled images give negatives too, Eq. 14 [P]."""
    prototype_momentum: float = Field(0.999, ge=0, lt=1)
    """Upper bound of m in the momentum prototypes [R]; 0 is Eq. 12 as U2PL has it."""
    denoise_temperature: float | None = Field(0.5, gt=0)
    """τ_d of the prototype denoising [R]; None switches it off."""
    refine_iterations: int = Field(0, ge=0, le=100)
    """Rounds in which the teacher's probabilities flow between pixels that look alike, before
    argmax and entropy [R: AFA's refinement of pseudo-labels, 10]; 0 leaves it out."""
    refine_dilations: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 2, 4, 8), min_length=1)
    """Distances of the pixels that are compared, eight at each [R: AFA 1, 2, 4, 8, 12, 24]."""
    symmetric_weight: float = Field(0.1, ge=0)
    """ξ, the share of reverse cross-entropy in L_u [R]; 0 switches it off."""
    labeled_symmetric_weight: float = Field(0.0, ge=0)
    """The same in L_s [R]: for labels that are wrong here and there, such as seeds."""
    ema_decay: float = Field(0.99, ge=0, lt=1)
    """Upper bound of the teacher's decay [C]."""
    mixing: Literal["cutmix", "cutout", "classmix", "classmix_labeled", "none"] = "cutmix"
    """Within the unlabelled batch; ``classmix_labeled`` pastes half of the classes of labelled
    images [R, after DACS]."""
    mix_probability: float = Field(0.5, ge=0, le=1)
    """The share of unlabelled images that is mixed [C]."""
    pixel_weighting: Literal["even", "confident_share"] = "even"
    """``confident_share`` weighs the teacher's pixels by how often it is confident, and pasted
    labels by 1 [R: DACS]."""

    @model_validator(mode="after")
    def _check(self) -> MethodSettings:
        if self.feature_dropout == "complementary" and self.strong_views != 2:
            raise ValueError(
                "feature_dropout=complementary needs two views that complete each other, but "
                f"strong_views is {self.strong_views}; set method.strong_views=2"
            )
        return self


class OptimizerSettings(Settings):
    """One optimiser: the encoder at ``lr``, everything else at ``lr * head_lr_factor``."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(1e-3, gt=0)
    """Of the encoder [P: 1e-3 on VOC, 1e-2 on Cityscapes]."""
    head_lr_factor: float = Field(10.0, gt=0)
    """[P: 10]."""
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    poly_power: float = Field(0.9, ge=0)
    """Exponent of the poly schedule [P]; 0 keeps the rate constant."""
    lr_warmup_steps: int = Field(0, ge=0)
    """Steps in which the rate rises linearly from 0."""
    max_grad_norm: float | None = Field(None, gt=0)


class TrainSettings(Settings):
    """Length, precision and bookkeeping of a run."""

    steps: int = Field(10_000, ge=1)
    """Optimiser updates in all."""
    supervised_steps: int = Field(0, ge=0)
    """Of these, so many at the start see labelled images alone [P: the warm-up epoch]."""
    stop_after: int | None = Field(None, ge=1)
    """End cleanly, with a checkpoint, after this many steps; ``--resume`` goes on."""
    accumulation: int = Field(1, ge=1)
    """Parts a batch is split into to save memory; thresholds, counts and anchors are still those
    of the whole batch, so only BatchNorm sees the difference."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """auto is bf16-mixed on a GPU that has it, 32-true elsewhere."""
    channels_last: bool = True
    compile: tuple[Literal["student", "teacher", "method"], ...] = ()
    """Parts of the step that torch.compile makes faster, after a minute or more of compiling."""
    cuda_graph: bool = True
    """Record a step's forward and backward passes once and ask a GPU for all of it at once; not
    with several processes or float16. The numbers stay the same."""
    separate_statistics: bool = False
    """BatchNorm normalises labelled and unlabelled images apart, and keeps the averages of the
    latter [R]: for two domains."""
    ohem: bool = False
    """OHEM instead of plain cross-entropy for L_s [P: on Cityscapes]."""
    ohem_threshold: float = Field(0.7, gt=0, le=1)
    ohem_min_kept: int = Field(100_000, ge=1)
    eval_every: int = Field(1000, ge=1)
    """Steps between evaluations on val; the last step is always evaluated."""
    eval_student: bool = False
    """Score the student too in evaluations before the last, which always scores both."""
    checkpoint_every: int = Field(500, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    """Files ``last.pt``, ``last-1.pt``, …: where the newest is damaged, the one before is taken."""
    log_every: int = Field(20, ge=1)
    watchdog_minutes: float | None = Field(30.0, gt=0)
    """A run in which nothing moves for so long ends and names the phase; None waits for ever."""
    seed: int = Field(0, ge=0)
    deterministic: bool = False

    @model_validator(mode="after")
    def _check(self) -> TrainSettings:
        if self.supervised_steps > self.steps:
            raise ValueError(
                f"supervised_steps is {self.supervised_steps}, more than the {self.steps} steps "
                "of the run"
            )
        return self


class EvaluationSettings(Settings):
    """How images are scored."""

    protocol: Literal["whole", "slide", "center-crop"] = "whole"
    """``whole`` sees each image at once, ``slide`` averages the logits of windows [P: on
    Cityscapes], ``center-crop`` sees and scores the middle alone [C: on VOC]."""
    crop: tuple[Side, Side] | None = None
    """Window of ``slide``, or the middle of ``center-crop``, in pixels; None takes the training
    crop."""
    stride_fraction: float = Field(2 / 3, gt=0, le=1)
    """Stride of the sliding window, as a fraction of the window."""
    scales: tuple[Scale, ...] = Field((1.0,), min_length=1, max_length=32)
    """Sizes at which each image is seen, as factors; the probabilities are averaged."""
    flip: bool = False
    """See each image mirrored left and right too, at every size; probabilities are averaged."""
    classes: tuple[str, ...] | None = Field(None, min_length=1)
    """Names of the classes whose mean is the mIoU, or ``synthia-16`` or ``synthia-13``; the network
    keeps all of them. None takes all."""
    batch_size: int = Field(8, ge=1, le=65_536)


class WeakSettings(Settings):
    """From image tags to seed masks; read where ``setting`` is ``weak``.

    Nothing of this stands in U2PL: each number is [R], after the work that its line names.
    The classifier's network, loader, optimiser and seed are those of the other groups.
    """

    steps: int = Field(3_300, ge=1)
    """Updates of the tag classifier [R: five passes over VOC, as IRN's classifier]."""
    batch_size: int = Field(16, ge=1, le=65_536)
    """Images in a step of the classifier [R: IRN]."""
    lr: float | None = Field(None, gt=0)
    """Of the classifier's encoder, its last layer at ``optimizer.head_lr_factor`` times that;
    None takes ``optimizer.lr``."""
    scale: tuple[float, float] = (0.65, 1.3)
    """Range of the classifier's random rescaling [R: IRN]; a crop of a much enlarged image would
    miss what its tags name."""
    output_stride: Literal[8, 16, 32] = 16
    """Of the classifier's grid, in pixels [R: IRN]; plain vision transformers have their patch."""
    pooling_sharpness: float = Field(0.0, ge=0)
    """r of the classifier's pooling [R]: 0 is the mean [R: IRN]; a larger one is nearer to the
    maximum, for things that are small in their images."""
    tag_prior: float = Field(0.0, ge=0)
    """So many times the log-odds of each tag are added to the classifier's logits [R], so that a
    map need not be negative wherever a class is rare: 0 in it is neither for nor against."""
    cam_scales: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5, 1.0, 1.5, 2.0), min_length=1
    )
    """Sizes at which an image is looked at, as factors [R: IRN]."""
    cam_flip: bool = True
    """Look at the mirrored image too [R: IRN]."""
    cam_scores: Literal["relative", "probability"] = "relative"
    """``relative`` cuts a map off below 0 and divides it by its maximum in the image [R: IRN];
    ``probability`` is its sigmoid, so that a class that is nowhere likely loses to one that is
    [R]."""
    refine_iterations: int = Field(10, ge=0)
    """Rounds of the pixel-adaptive refinement [R: AFA]; 0 leaves the maps as they are."""
    refine_dilations: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 2, 4, 8, 12, 24), min_length=1
    )
    """Distances in pixels at which a pixel has eight neighbours each [R: AFA]."""
    low: float = Field(0.35, ge=0, le=1)
    """A pixel whose best score is below shows no tagged class: it is ``method.background_class``
    [R: AFA], or ignored where that is None."""
    high: float = Field(0.55, ge=0, le=1)
    """With a background class: a pixel whose best score is above is that class [R: AFA]."""
    margin: float = Field(0.2, ge=0, lt=1)
    """Without a background class: the best score must lead the next by more than this fraction of
    itself [R]."""
    kept_share: float = Field(1.0, gt=0, le=1)
    """Without a background class: of each class's pixels in an image, the share that leads most
    and is labelled [R]; large things and small ones then give up alike."""
    true_masks: Path | None = None
    """A folder of masks of tagged images, to measure seeds by; no training sees them."""
    seeds_from: Path | None = None
    """A run folder whose seeds are copied and not made again, so that trainings can be compared on
    the same seeds; its classes, tagged images and tags must be the same."""

    @model_validator(mode="after")
    def _check(self) -> WeakSettings:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be 0 < low <= high, got {self.scale}")
        if self.low > self.high:
            raise ValueError(f"low must not exceed high, got {self.low} and {self.high}")
        return self


class Config(Settings):
    """A complete run, as written to ``config.yaml``."""

    recipe: str = "default"
    setting: Literal["semi", "adapt", "weak", "supervised"] = "semi"
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    method: MethodSettings = MethodSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    train: TrainSettings = TrainSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    weak: WeakSettings = WeakSettings()

    @model_validator(mode="after")
    def _check(self) -> Config:
        parts = self.data.batch_labeled // self.train.accumulation
        if parts < 2 and max(self.data.crop) <= self.model.output_stride:
            raise ValueError(
                f"data.crop is {self.data.crop}, one cell of the encoder's grid, and a part of the "
                "batch is a single image: BatchNorm needs more than one value; raise data.crop, or "
                "data.batch_labeled beside train.accumulation"
            )
        if self.train.ohem and self.method.labeled_symmetric_weight > 0:
            raise ValueError(
                "train.ohem seeks the pixels with the largest loss, which "
                "method.labeled_symmetric_weight takes for wrong labels; leave one of them out"
            )
        return self

    def with_overrides(self, overrides: dict[str, Any]) -> Config:
        """Return a copy with ``{"train.steps": 500, ...}`` applied and checked.

        Raises:
            UserError: (exit status 2) for an unknown key, with the nearest name, or a bad value.
        """
        tree = self.model_dump()
        for dotted, value in overrides.items():
            node, parts = tree, dotted.split(".")
            for depth, part in enumerate(parts):
                if not isinstance(node, dict) or part not in node:
                    raise unknown_key(dotted)
                if depth == len(parts) - 1:
                    node[part] = value
                else:
                    node = node[part]
        return parse_config(tree)


def all_keys() -> list[str]:
    """Return every dotted key of a configuration, such as ``train.steps``."""
    keys = []
    for name, field in Config.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Settings):
            keys += [f"{name}.{inner}" for inner in annotation.model_fields]
        else:
            keys.append(name)
    return keys


def unknown_key(dotted: str) -> UserError:
    """Return the error for a key that no setting has."""
    keys = all_keys()
    last = dotted.rsplit(".", 1)[-1]
    same_last = [key for key in keys if key.rsplit(".", 1)[-1] == last]
    hint = f" Did you mean '{same_last[0]}'?" if same_last else nearest_name(dotted, keys)
    return UserError(f"Unknown setting '{dotted}'.{hint}", exit_code=2)


def parse_config(tree: dict[str, Any]) -> Config:
    """Check a tree of plain values and return it as a :class:`Config`.

    Raises:
        UserError: (exit status 2) that names the first faulty setting.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        dotted = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise unknown_key(dotted) from None
        message = first["msg"].removeprefix("Value error, ")
        got = "" if isinstance(first["input"], dict) else f" Got {shown(first['input'])}."
        where = f"Setting '{dotted}'" if dotted else "Settings"
        raise UserError(f"{where}: {message}.{got}", exit_code=2) from None


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Turn ``["train.steps=500", "data.crop=[64,64]"]`` into a dictionary; values are YAML.

    >>> parse_assignments(["optimizer.lr=1e-3", "data.flip=false"])
    {'optimizer.lr': '1e-3', 'data.flip': False}

    (YAML reads ``1e-3`` as text; the settings' types make it the number.)

    Raises:
        UserError: (exit status 2) where an item is not ``key=value``.
    """
    overrides: dict[str, Any] = {}
    for item in assignments:
        key, separator, text = item.partition("=")
        if not separator or not key:
            raise UserError(
                f"Expected settings as key=value, got '{item}'. Example: train.steps=2000",
                exit_code=2,
            )
        try:
            overrides[key] = parse_yaml(text)
        except ValueError:
            raise UserError(f"Setting '{key}': '{text}' is not valid YAML.", exit_code=2) from None
    return overrides


def save_config(config: Config, path: Path) -> None:
    """Write every setting, resolved, as YAML."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    path.write_text(text, encoding="utf-8")


def load_config(path: Path) -> Config:
    """Read a file written by :func:`save_config`, or a part of one; the rest takes its defaults.

    Raises:
        UserError: where the file is missing, is no YAML mapping, or has a faulty setting.
    """
    try:
        tree = read_yaml(path)
    except OSError as error:
        raise UserError(f"Cannot read the configuration {path}: {error.strerror}.") from None
    except ValueError:
        raise UserError(f"{path} is not a YAML file.") from None
    if not isinstance(tree, dict):
        raise UserError(f"Expected settings in {path}, got {type(tree).__name__}.")
    return parse_config(tree)
