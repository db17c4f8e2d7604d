"""The page: what is on it, and what happens when somebody does something.

Gradio is imported where it is used. Annotations are not postponed here: Gradio reads those of the
functions that it calls.
"""

import shutil
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from u2pl.app import views
from u2pl.app.desk import Choice, Desk, Look
from u2pl.data.images import overlay, write_image, write_mask
from u2pl.errors import UserError, out_of_memory

STYLE = (Path(__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
TITLES = {
    "overlay": "Overlay",
    "mask": "Mask",
    "entropy": "Entropy",
    "reliable": "Reliable",
    "image": "Image",
}
"""Of the kinds of pictures."""
_ALTERNATIVES = {
    "overlay": "The image under its mask in the colours of the classes",
    "mask": "The mask in the colours of the classes",
    "entropy": "The entropy of each pixel, dark where the network is sure",
    "reliable": "The image in blue where the network is reliable, in orange where it is not",
    "image": "The image",
}
_FORMATS = {"mask": "png", "entropy": "png"}  # others show a photograph
_WEIGHTS = {"ema": "Teacher", "student": "Student"}
_CHECKPOINTS = {"last": "Last", "best": "Best"}
_KEPT = (600, 3600)  # seconds: every ten minutes files that are an hour old are removed
_DOWNLOADS = 4  # pairs of files that wait until Gradio has its copy

T = TypeVar("T")

Updates = dict[Any, Any]
"""New values by component."""


class Page:
    """What is on the page.

    Args:
        desk: what answers.
        folder: for files to download.
    """

    def __init__(self, desk: Desk, folder: Path) -> None:
        self.desk = desk
        self.folder = folder
        self.written: deque[Path] = deque()

    def build(self) -> Any:
        """Lay the page out and connect it.

        Returns:
            Gradio's ``Blocks``.
        """
        import gradio as gr

        with gr.Blocks(title="u2pl", analytics_enabled=False, delete_cache=_KEPT) as blocks:
            self.file, self.pixel = gr.State(None), gr.State(None)
            with gr.Row(equal_height=False):
                with gr.Column(scale=3, min_width=260):
                    self._choosing(gr)
                with gr.Column(scale=11, min_width=340) as self.welcome:
                    self._text(gr, views.welcome())
                with gr.Column(scale=7, min_width=340, visible=False) as self.shown:
                    self._pictures(gr)
                with gr.Column(scale=4, min_width=300, visible=False) as self.said:
                    self._answer(gr)
            self._connect(gr)
        return blocks

    def theme(self) -> Any:
        """Fonts of the system alone: others would be fetched."""
        import gradio as gr

        return gr.themes.Default(
            primary_hue="blue",
            neutral_hue="slate",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        )

    def _text(self, gr: Any, value: str = "", **options: Any) -> Any:
        """A place for what :mod:`u2pl.app.views` writes, in its style alone."""
        return gr.HTML(value, apply_default_css=False, **options)

    def _choosing(self, gr: Any) -> None:
        names = list(self.desk.runs)
        weights, checkpoints = self.desk.offers(names[0])
        self.upload = gr.File(label="Image", height=132, elem_id="upload")
        self.run = gr.Dropdown(
            names, value=names[0], label="Run", visible=len(names) > 1, elem_id="run"
        )
        self.weights = gr.Radio(
            _choices(weights, _WEIGHTS), value=weights[0], label="Weights", elem_id="weights"
        )
        self.checkpoint = gr.Radio(
            _choices(checkpoints, _CHECKPOINTS),
            value=checkpoints[0],
            label="Checkpoint",
            elem_id="checkpoint",
        )
        self.message = self._text(gr, elem_id="message")

    def _pictures(self, gr: Any) -> None:
        self.headline = self._text(gr, elem_id="headline")
        self.pictures, self.scales = {}, {}
        with gr.Tabs(overflow_behavior="wrap"):
            for kind in views.KINDS:
                with gr.Tab(TITLES[kind]):
                    self.pictures[kind] = gr.Image(
                        show_label=False,
                        interactive=False,
                        buttons=["fullscreen"],
                        format=_FORMATS.get(kind, "jpeg"),
                        alt_text=_ALTERNATIVES[kind],
                        elem_id=f"picture-{kind}",
                        elem_classes="u2-picture",
                    )
                    if kind in ("entropy", "reliable"):
                        self.scales[kind] = self._text(gr, elem_id=f"scale-{kind}")

    def _answer(self, gr: Any) -> None:
        self.answer = self._text(gr, views.hint(), elem_id="answer")
        with gr.Row(elem_classes="u2-place"):
            self.column = gr.Number(label="Column", precision=0, minimum=0, min_width=80)
            self.row = gr.Number(label="Row", precision=0, minimum=0, min_width=80)
        self.legend = self._text(gr, elem_id="legend")
        with gr.Row():
            self.downloads = {
                kind: gr.DownloadButton(label, size="sm", interactive=False, elem_id=f"get-{kind}")
                for kind, label in (("mask", "Download mask"), ("overlay", "Download overlay"))
            }

    def _connect(self, gr: Any) -> None:
        """What happens, when; one thing at a time, since one network answers."""
        options = {
            "concurrency_limit": 1,
            "concurrency_id": "network",
            "api_visibility": "private",
            "show_progress": "minimal",
        }
        choice = [self.run, self.weights, self.checkpoint]
        progress = gr.Progress()  # as a default Gradio finds it and hands over one that works

        def look(
            file: Any, pixel: Any, run: str, weights: str, checkpoint: str, bar: Any = progress
        ) -> Updates:
            return self.look(gr, file, pixel, Choice(run, weights, checkpoint), bar)

        def place(
            file: Any, run: str, weights: str, checkpoint: str, event: gr.SelectData
        ) -> Updates:
            return self.click(file, Choice(run, weights, checkpoint), event.index)

        def ask(
            file: Any, column: Any, row: Any, run: str, weights: str, checkpoint: str
        ) -> Updates:
            pixel = (int(row or 0), int(column or 0))
            return self.ask(file, Choice(run, weights, checkpoint), pixel)

        def write(file: Any, run: str, weights: str, checkpoint: str) -> Updates:
            return self.write(gr, file, Choice(run, weights, checkpoint))

        # the place for a file stays open for the next one
        taken = self.upload.upload(
            lambda file: (None if file is None else Path(file), None, None),
            [self.upload],
            [self.file, self.pixel, self.upload],
            **options,
        )
        chosen = [part.input for part in choice]
        for begin in (taken.then, *chosen):
            last = {} if begin == taken.then else {"trigger_mode": "always_last"}
            inputs = [self.file, self.pixel, *choice]
            seen = begin(look, inputs, self._everything(), **options, **last)
            written = [*self.downloads.values()]
            seen.then(write, [self.file, *choice], written, **options)
        said = [self.pixel, self.answer, self.column, self.row]
        options["trigger_mode"] = "always_last"
        for picture in self.pictures.values():
            picture.select(place, [self.file, *choice], said, **options)
        for number in (self.column, self.row):
            number.submit(ask, [self.file, self.column, self.row, *choice], said, **options)

    def _everything(self) -> list[Any]:
        """What another image or another network changes."""
        alone = [self.weights, self.checkpoint, self.message]
        columns = [self.welcome, self.shown, self.said]
        more = [self.headline, self.legend, self.pixel, self.answer, self.column, self.row]
        maps = [self.pictures, self.scales, self.downloads]
        return [*alone, *columns, *more, *(part for parts in maps for part in parts.values())]

    def look(self, gr: Any, file: Path | None, pixel: Any, choice: Choice, bar: Any) -> Updates:
        """Label the upload anew, and answer for the pixel that was chosen before."""
        weights, checkpoints = self.desk.offers(choice.run)
        choice = Choice(
            choice.run,
            choice.weights if choice.weights in weights else weights[0],
            choice.checkpoint if choice.checkpoint in checkpoints else checkpoints[0],
        )
        updates: Updates = {
            self.weights: gr.update(choices=_choices(weights, _WEIGHTS), value=choice.weights),
            self.checkpoint: gr.update(
                choices=_choices(checkpoints, _CHECKPOINTS), value=choice.checkpoint
            ),
            self.message: "",
        }
        if file is None:
            return updates

        def on_rows(done: int, total: int) -> None:
            bar(done / total, desc="labelling")

        look, sentence = _attempt(lambda: self.desk.look(file, choice, on_rows=on_rows))
        updates |= {part: gr.update(visible=look is not None) for part in (self.shown, self.said)}
        updates[self.welcome] = gr.update(visible=look is None)
        if look is None:
            return updates | {self.message: views.problem(sentence), self.pixel: None}
        updates |= {self.headline: views.headline(look), self.legend: views.legend(look)}
        shown = views.pictures(look)
        updates |= {part: shown[kind] for kind, part in self.pictures.items()}
        scales = views.scales(look)
        updates |= {part: scales[kind] for kind, part in self.scales.items()}
        updates |= {part: gr.update(interactive=False) for part in self.downloads.values()}
        if pixel is None:
            return updates | {self.answer: views.hint(), self.column: None, self.row: None}
        return updates | self.ask(file, choice, pixel)

    def click(self, file: Path, choice: Choice, place: tuple[int, int]) -> Updates:
        """Answer for the pixel under a place (x, y) of a picture."""
        look, sentence = _attempt(lambda: self.desk.look(file, choice))
        if look is None:
            return {self.answer: views.problem(sentence)}
        height, width = look.labeled.prediction.mask.shape
        return self.ask(file, choice, views.clicked_pixel(place, (height, width)))

    def ask(self, file: Path, choice: Choice, pixel: tuple[int, int]) -> Updates:
        """Answer for a pixel (row, column)."""
        found, sentence = _attempt(lambda: self.desk.ask(file, choice, *pixel))
        if found is None:
            return {self.answer: views.problem(sentence)}
        look, answer = found
        return {
            self.pixel: (answer.row, answer.column),
            self.answer: views.answer(look, answer),
            self.column: answer.column,
            self.row: answer.row,
        }

    def write(self, gr: Any, file: Path | None, choice: Choice) -> Updates:
        """Write what can be downloaded, in the image's own size."""
        look = None
        if file is not None:
            look, _ = _attempt(lambda: self.desk.look(file, choice))
        if look is None:
            return {part: gr.update(interactive=False) for part in self.downloads.values()}
        place = self.folder / "downloads" / uuid.uuid4().hex
        self.written.append(place)
        while len(self.written) > _DOWNLOADS:
            shutil.rmtree(self.written.popleft(), ignore_errors=True)
        files = write_results(look, place)
        return {
            part: gr.update(value=str(files[kind]), interactive=True)
            for kind, part in self.downloads.items()
        }


def write_results(look: Look, folder: Path) -> dict[str, Path]:
    """Write an answer's mask and overlay as ``u2pl predict`` does.

    Args:
        look: the answer.
        folder: for the files, which are called after the image.

    Returns:
        Of ``mask`` and ``overlay`` the file.
    """
    labeled, colors = look.labeled, look.chosen.model.card.colors
    stem = Path(look.upload.name).stem
    files = {kind: folder / f"{stem}-{kind}.png" for kind in ("mask", "overlay")}
    write_mask(files["mask"], labeled.prediction.mask, colors=colors)
    write_image(files["overlay"], overlay(labeled.image, labeled.prediction.mask, colors))
    return files


def _choices(names: list[str], titles: dict[str, str]) -> list[tuple[str, str]]:
    """As Gradio takes them: what is shown, and what it means."""
    return [(titles[name], name) for name in names]


def _attempt(work: Callable[[], T]) -> tuple[T | None, str]:
    """What was worked out, or why it could not be."""
    try:
        return work(), ""
    except UserError as error:
        return None, str(error)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return None, "There is not enough memory for this image; choose a smaller one."
