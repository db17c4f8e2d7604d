"""From a data set with image tags to one with seed masks, in stages that a killed run keeps."""

from __future__ import annotations

import csv
import io
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from u2pl.config import Config
from u2pl.data.images import read_image, refuse_way_out, write_image, write_mask
from u2pl.data.sources import Dataset, Sample, load_dataset, with_masks_of
from u2pl.data.storage import ImageFile
from u2pl.data.transforms import eval_image
from u2pl.engine.checkpoint import write_atomically, write_json
from u2pl.engine.evaluate import resize_logits
from u2pl.engine.loop import Interrupted, telling_of_the_disk
from u2pl.engine.run_folder import RunFolder
from u2pl.errors import UserError
from u2pl.models import Segmenter
from u2pl.refinement import refine_maps
from u2pl.signals import noticing_signals
from u2pl.weak.cam import class_activation_maps
from u2pl.weak.classifier import NAME as CLASSIFIER
from u2pl.weak.classifier import TagClassifier, build_classifier, tag_warnings, train_classifier
from u2pl.weak.pictures import SeedExample, contact_sheet
from u2pl.weak.quality import seed_quality
from u2pl.weak.seeds import seed_labels

logger = logging.getLogger(__name__)

NUM_PICTURES = 8
"""Images on the contact sheet."""


def make_seeds(
    config: Config,
    dataset: Dataset,
    folder: RunFolder,
    *,
    resume: bool = False,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Dataset:
    """Turn the tags of a data set's unlabelled images into seed masks to train on.

    A classifier learns the tags; its class activation maps are refined and labelled where sure.
    With ``weak.seeds_from`` the seeds are another run's. In the run folder this leaves, and what is
    there already is not made again:

    - ``splits/tags.csv``, the tags that were used;
    - ``weights/classifier.safetensors``, with its losses in ``eval/classifier.json``;
    - ``seeds/<name>.png``, index masks;
    - ``pictures/seeds.png``;
    - ``eval/seeds.json``, see :func:`~u2pl.weak.quality.seed_quality`; true masks are those of
      labelled images that have tags too, and of ``weak.true_masks``.

    Args:
        config: the run.
        dataset: checked already; its labelled section may be empty.
        folder: created here, unless ``resume``; the training that follows must resume in it.
        resume: go on with what the folder holds.
        on_progress: called with ``classifier`` or ``seeds``, what is done, and of how many.

    Returns:
        The data set to train on. Its labelled images are its own, and all other tagged images
        with their seeds. The unlabelled ones stay; to their tags the background class is added,
        which no tag names and any image may hold. An image without tags keeps all classes.

    Raises:
        UserError: where tags are missing or have changed, a network cannot be built, a file
            cannot be read, the classifier's training fails, or ``weak.seeds_from`` does not fit.
        Interrupted: on SIGINT or SIGTERM, after saving.
    """
    if config.train.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    tagged = tagged_samples(dataset)
    true_masks = find_true_masks(config, dataset, tagged)
    if not resume:
        # hours before its turn: a network that cannot be built leaves no run
        Segmenter(config.model, dataset.num_classes)
        build_classifier(config, dataset.num_classes, load_pretrained=False)
        if config.weak.seeds_from is not None:
            require_same_seeds(RunFolder(config.weak.seeds_from), tagged, dataset)
        folder.create(config, dataset)
    keep_tags(folder, tagged, dataset)
    if config.weak.seeds_from is not None:
        copy_seeds(RunFolder(config.weak.seeds_from), folder, tagged)
    for warning in tag_warnings(
        tagged, dataset.classes, background_class=config.method.background_class
    ):
        logger.warning("%s", warning)
    maker = SeedMaker(config, replace(dataset, unlabeled=tagged), folder, on_progress)
    with telling_of_the_disk(folder):
        seeds = maker.run()
        quality = folder.path / "eval" / "seeds.json"
        if not quality.is_file():
            quality.parent.mkdir(exist_ok=True)
            write_json(quality, seed_quality(seeds, true_masks, dataset))
    return with_seeds(dataset, seeds, background_class=config.method.background_class)


def with_seeds(
    dataset: Dataset, seeds: tuple[Sample, ...], *, background_class: int | None
) -> Dataset:
    """Label a data set's tagged images with their seeds; see :func:`make_seeds`."""
    have_masks = {sample.image for sample in dataset.labeled}
    return replace(
        dataset,
        labeled=(*dataset.labeled, *(s for s in seeds if s.image not in have_masks)),
        unlabeled=tuple(with_background(s, background_class) for s in dataset.unlabeled),
    )


def tagged_samples(dataset: Dataset) -> tuple[Sample, ...]:
    """The unlabelled images that have tags.

    Raises:
        UserError: where there are none.
    """
    tagged = tuple(sample for sample in dataset.unlabeled if sample.tags)
    if not tagged:
        raise UserError(
            f"{dataset.path}: the setting weak needs tags of the images in 'unlabeled'; give "
            "'tags', a CSV file with the header 'image,classes'."
        )
    return tagged


def find_true_masks(
    config: Config, dataset: Dataset, tagged: tuple[Sample, ...]
) -> dict[ImageFile, Sample]:
    """Tagged images with their known masks, by image file; a folder's are read as those of val.

    Raises:
        UserError: where ``weak.true_masks`` is given and holds none.
    """
    found: dict[ImageFile, Sample] = {}
    if config.weak.true_masks is not None:
        known = with_masks_of(tagged, config.weak.true_masks, dataset.val[0].mask_encoding)
        found = {sample.image: sample for sample in known}
        if not found:
            raise UserError(
                f"weak.true_masks: {config.weak.true_masks} holds no mask of a tagged image, such "
                f"as {tagged[0].name}.png."
            )
    wanted = {sample.image for sample in tagged}
    labeled = {s.image: s for s in dataset.labeled if s.image in wanted}
    return found | labeled


def keep_tags(folder: RunFolder, tagged: tuple[Sample, ...], dataset: Dataset) -> None:
    """Write the tags beside the run's lists of images; refuse others than those it began with.

    Raises:
        UserError: where tags or tagged images have changed.
    """
    path, text = tags_file(folder), tags_text(tagged, dataset)
    if not path.is_file():
        write_atomically(path, lambda temporary: temporary.write_bytes(text.encode()))
    elif path.read_bytes() != text.encode():
        raise UserError(
            f"The tags of {folder.path} have changed since it was started; resuming would mix "
            "two data sets. Restore the tags and lists, or start a new run."
        )


def tags_file(folder: RunFolder) -> Path:
    """Where a run keeps the tags that its seeds were made from."""
    return folder.path / "splits" / "tags.csv"


def tags_text(tagged: tuple[Sample, ...], dataset: Dataset) -> str:
    """The tags as a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "classes"])
    for sample in tagged:
        names = [dataset.classes[class_id] for class_id in sample.tags or ()]
        writer.writerow([sample.name, ";".join(names)])
    return text.getvalue()


def require_same_seeds(source: RunFolder, tagged: tuple[Sample, ...], dataset: Dataset) -> None:
    """Refuse a run whose seeds are not finished, or are of other classes, images or tags.

    Raises:
        UserError: that says which.
    """
    if not sheet_file(source).is_file() or not tags_file(source).is_file():
        raise UserError(
            f"weak.seeds_from: {source.path} holds no finished seeds; name the folder of a run in "
            "the setting weak that has made them.",
            exit_code=2,
        )
    classes = load_dataset(source.dataset, require=()).classes
    same_tags = tags_file(source).read_bytes() == tags_text(tagged, dataset).encode()
    if classes != dataset.classes or not same_tags:
        raise UserError(
            f"weak.seeds_from: the seeds of {source.path} are of other classes, images or tags "
            f"than those of {dataset.path}.",
            exit_code=2,
        )


def copy_seeds(source: RunFolder, folder: RunFolder, tagged: tuple[Sample, ...]) -> None:
    """Copy what the stages of :class:`SeedMaker` leave, unless all is there already.

    Only the seeds of ``tagged`` are copied, whatever else lies there.

    Raises:
        UserError: where a file cannot be copied.
    """
    if sheet_file(folder).is_file():
        return
    try:
        seeds = [source.path / "seeds" / f"{sample.name}.png" for sample in tagged]
        others = (source.weights(CLASSIFIER), source.path / "eval" / f"{CLASSIFIER}.json")
        # the sheet last: it says that all is there
        for file in (*seeds, *others, sheet_file(source)):
            target = folder.path / file.relative_to(source.path)
            refuse_way_out(folder.path, target)
            if not file.is_file():
                raise UserError(f"weak.seeds_from: there is no file {file}; make the seeds anew.")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    except (OSError, shutil.Error) as error:
        raise UserError(f"Cannot copy the seeds of {source.path}: {error}.") from None


def sheet_file(folder: RunFolder) -> Path:
    """The picture of some seeds, written when all are made."""
    return folder.path / "pictures" / "seeds.png"


class SeedMaker:
    """The stages of :func:`make_seeds` over one run folder.

    Args:
        config: the run.
        dataset: whose unlabelled images all have tags.
        folder: the run's, created already.
        on_progress: see :func:`make_seeds`.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        folder: RunFolder,
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        self.config, self.dataset, self.folder = config, dataset, folder
        self.on_progress = on_progress
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def run(self) -> tuple[Sample, ...]:
        """Make what is not there yet, and return the tagged images with their seed masks."""
        samples = self.dataset.unlabeled
        missing = [sample for sample in samples if not self.seed_file(sample).is_file()]
        sheet = sheet_file(self.folder)
        if missing or not sheet.is_file():
            with noticing_signals() as asked_to_stop:
                model = train_classifier(
                    self.config,
                    self.dataset,
                    self.folder,
                    device=self.device,
                    asked_to_stop=asked_to_stop,
                    on_progress=self.on_progress,
                )
                self.write_seeds(model, missing, asked_to_stop)
            self.write_sheet(model, sheet)
        return tuple(replace(sample, mask=self.seed_file(sample)) for sample in samples)

    def seed_file(self, sample: Sample) -> Path:
        """Where an image's seed mask lies."""
        return self.folder.path / "seeds" / f"{sample.name}.png"

    def write_seeds(
        self, model: TagClassifier, missing: list[Sample], asked_to_stop: Callable[[], bool]
    ) -> None:
        """Make the missing seed masks, one image at a time."""
        total = len(self.dataset.unlabeled)
        for done, sample in enumerate(missing, start=total - len(missing) + 1):
            example = self.example(model, sample)
            path = self.seed_file(sample)
            refuse_way_out(self.folder.path, path)
            write_mask(path, example.labels, colors=self.dataset.colors)
            self.on_progress("seeds", done, total)
            if asked_to_stop() and done < total:
                text = f"{done} of {total} seed masks"
                raise Interrupted(0, self.dataset, self.folder, done=text)

    def write_sheet(self, model: TagClassifier, path: Path) -> None:
        """Draw images spread over the whole list."""
        samples = self.dataset.unlabeled
        count = min(NUM_PICTURES, len(samples))
        chosen = [samples[i * len(samples) // count] for i in range(count)]
        examples = [self.example(model, sample) for sample in chosen]
        write_image(path, contact_sheet(examples, self.dataset))

    @torch.no_grad()
    def example(self, model: TagClassifier, sample: Sample) -> SeedExample:
        """Map, refine and label one image at its file's own size."""
        settings, dataset = self.config.weak, self.dataset
        pixels = read_image(sample.image)
        image = eval_image(pixels, resize=self.config.data.resize, file=str(sample.image))
        image = image[None].to(self.device)
        background = self.config.method.background_class
        ids = [class_id for class_id in sample.tags or () if class_id != background]
        possible = torch.zeros(1, dataset.num_classes, dtype=torch.bool, device=self.device)
        possible[:, ids] = True
        maps = class_activation_maps(
            model,
            image,
            possible,
            scales=settings.cam_scales,
            flip=settings.cam_flip,
            scores=settings.cam_scores,
        )
        maps[:, ids] = refine_maps(
            maps[:, ids],
            image,
            dilations=settings.refine_dilations,
            iterations=settings.refine_iterations,
        )
        maps = resize_logits(maps, (pixels.shape[0], pixels.shape[1]))
        labels = seed_labels(
            maps,
            possible,
            low=settings.low,
            high=settings.high,
            margin=settings.margin,
            share=settings.kept_share,
            background_class=background,
            ignore_index=dataset.ignore_index,
        )
        return SeedExample(
            image=pixels,
            maps={dataset.classes[c]: maps[0, c].cpu().numpy() for c in ids},
            labels=labels[0].cpu().numpy(),
        )


def with_background(sample: Sample, background_class: int | None) -> Sample:
    """Return a tagged sample whose image may hold the background too."""
    if sample.tags is None or background_class is None:
        return sample
    return replace(sample, tags=tuple(sorted({*sample.tags, background_class})))
