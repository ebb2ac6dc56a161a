"""The page itself, built with Gradio: its controls, and what each of them starts."""

from __future__ import annotations

import dataclasses
import functools
import traceback
from collections.abc import Awaitable, Callable
from importlib import resources
from types import ModuleType
from typing import Any

from PIL import Image
from torch import Tensor

from ...base.extras import require
from ...base.streams import note
from ...evaluation.figures.attack_pictures import class_name
from ..demonstration import load_demo_images
from . import cards
from .examination import ATTACK_EPS, ATTACKS, DATASETS, PURIFY_EPS, Examination, Judged, Laboratory
from .maps import CHANNELS, picture_of
from .uploads import read_upload

EXAMPLES = 10  # of each data set: one of each class
LARGEST_EPS = 64
UPLOAD_BYTES = 64 << 20
FIRST = "fashion-mnist"
INTRODUCTION = """# PixelDefend, to play with

Pick an image or drop your own. An attack changes it by at most ±eps, so that the classifier errs. PixelDefend moves
every value to the likeliest one within ±eps, and the label often comes back. Everything is computed on this machine.
"""
EXPLANATION = """- **bits/dim** is how many bits the model needs for a value on average. The lower, the likelier.
- The **p-value** is the part of the training images that are no likelier than this one. At most 0.05 is suspicious.
- The **map of surprise** shows where the bits are: how unexpected each pixel is after the rows above it and the pixels
  to its left. In the bright places the model does not believe the image.
- **eps** counts steps of 0..255. The attacks know the classifier. Only BPDA knows the purifier too, and it shows that
  purification does not withstand such an attack.
"""

Ask = Callable[[Callable[[], Any]], Awaitable[Any]]


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a page shows now: an examination, and the image once ``rows`` rows of it are purified."""

    examination: Examination
    decoded: Judged
    rows: int


@functools.cache
def examples(dataset: str) -> tuple[tuple[Tensor, str], ...]:
    """Test images, uint8 (C, H, W), with the names of their classes."""
    demo = load_demo_images(dataset)
    names = [class_name(dataset, label) for label in demo.labels[:EXAMPLES].tolist()]
    return tuple(zip(demo.clean[:EXAMPLES], names, strict=True))


def thumbnails(dataset: str) -> list[tuple[Image.Image, str]]:
    """The examples as Gradio's gallery takes them."""
    return [(Image.fromarray(picture_of(image)), name) for image, name in examples(dataset)]


def chosen_image(laboratory: Laboratory, chosen: int, upload: str | None) -> tuple[Tensor, str]:
    """The user's picture, or else an example: uint8 (C, H, W), and what to say of it."""
    if upload is not None:
        return read_upload(upload, laboratory.image_shape)
    image, name = examples(laboratory.dataset)[chosen]
    return image, f"A test image of {DATASETS[laboratory.dataset]}: {name}."


def in_words(error: Exception) -> str:
    """An error for the user. What is no fault of the input is told to the terminal as well."""
    if isinstance(error, (ValueError, TypeError, OSError)):
        return f"This did not work: {error}"
    note("".join(traceback.format_exception(error)))
    return f"pxfast failed ({type(error).__name__}: {error}). The terminal that runs it has the details."


class Answers:
    """What the page's controls start. laboratory: gives the networks of a data set. ask: has work done elsewhere."""

    def __init__(self, gr: ModuleType, laboratory: Callable[[str], Laboratory], ask: Ask) -> None:
        self.gr: Any = gr
        self.laboratory = laboratory
        self.ask = ask

    async def examine(
        self,
        dataset: str,
        chosen: int,
        upload: str | None,
        attack: str,
        attack_eps: int,
        purify_eps: int,
        channel: str,
    ) -> list[Any]:
        """Attack and purify: the message, the remark, the results, the row slider, the decoding, and ``Shown``."""

        def work() -> tuple[str, Shown]:
            laboratory = self.laboratory(dataset)
            image, remark = chosen_image(laboratory, chosen, upload)
            found = laboratory.examine(image, attack, attack_eps, purify_eps)
            rows = found.rows // 2
            return remark, Shown(found, laboratory.decoded(found, rows), rows)

        try:
            remark, shown = await self.ask(work)
        except Exception as error:
            return [cards.message(in_words(error)), *[self.gr.skip()] * 5]
        height = shown.examination.rows
        slider = self.gr.update(maximum=height, value=shown.rows)
        return ["", cards.remark(remark), *self._drawn(shown, channel), slider, shown]

    async def step(self, shown: Shown | None, rows: int, channel: str) -> list[Any]:
        """Go to another row: the message, the decoding, and ``Shown``."""
        if shown is None:
            return [self.gr.skip()] * 3
        found = shown.examination
        try:
            decoded = await self.ask(lambda: self.laboratory(found.dataset).decoded(found, rows))
        except Exception as error:
            return [cards.message(in_words(error)), *[self.gr.skip()] * 2]
        shown = Shown(found, decoded, rows)
        return ["", self._drawn(shown, channel)[1], shown]

    def redraw(self, shown: Shown | None, channel: str) -> list[Any]:
        """Show another channel's maps: the results and the decoding."""
        return [self.gr.skip()] * 2 if shown is None else self._drawn(shown, channel)

    def switch(self, dataset: str) -> list[Any]:
        """Another data set: its examples, the first of them, its eps, and its channels."""
        update = self.gr.update
        coloured = len(examples(dataset)[0][0]) == 3
        return [
            update(value=thumbnails(dataset), selected_index=None),
            0,
            ATTACK_EPS[dataset],
            PURIFY_EPS[dataset],
            update(visible=coloured, value=CHANNELS[0]),
        ]

    def _drawn(self, shown: Shown, channel: str) -> list[str]:
        found = shown.examination
        return [cards.results(found, channel), cards.decoding(shown.decoded, shown.rows, found.rows, channel)]


def build(gr: Any, laboratory: Callable[[str], Laboratory], ask: Ask) -> Any:
    """The page as Gradio's Blocks. The arguments are those of :class:`Answers`."""
    answers = Answers(gr, laboratory, ask)
    with gr.Blocks(title="pxfast", analytics_enabled=False) as page:
        chosen, shown = gr.State(0), gr.State(None)
        gr.Markdown(INTRODUCTION, elem_classes="pf-intro")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                dataset = gr.Radio([(name, key) for key, name in DATASETS.items()], value=FIRST, label="Networks")
                gallery = gr.Gallery(
                    thumbnails(FIRST),
                    label="Examples",
                    elem_id="pf-examples",
                    format="png",
                    columns=5,
                    height="auto",
                    allow_preview=False,
                    interactive=False,
                    object_fit="contain",
                    buttons=[],
                )
                upload = gr.File(label="Your own image", type="filepath", height=140, elem_id="pf-upload")
                attack = gr.Dropdown(
                    [(text, name) for name, text in ATTACKS.items()], value="fgsm", label="Attack", filterable=False
                )
                attack_eps = gr.Slider(0, LARGEST_EPS, ATTACK_EPS[FIRST], step=1, label="The attack's eps", buttons=[])
                purify_eps = gr.Slider(
                    0, LARGEST_EPS, PURIFY_EPS[FIRST], step=1, label="The purifier's eps", buttons=[]
                )
                channel = gr.Radio(list(CHANNELS), value=CHANNELS[0], label="Channel of the maps", visible=False)
            with gr.Column(scale=3, min_width=320):
                message = gr.HTML("", elem_id="pf-message", padding=False)
                remark = gr.HTML("", elem_id="pf-remark", padding=False)
                results = gr.HTML("", elem_id="pf-results", padding=False, min_height=300)
                rows = gr.Slider(
                    0,
                    28,
                    14,
                    step=1,
                    label="Decode row by row",
                    info="Purification goes from top to bottom.",
                    buttons=[],
                )
                decoding = gr.HTML("", elem_id="pf-decoding", padding=False)
                with gr.Accordion("What the numbers mean", open=False):
                    gr.Markdown(EXPLANATION)

        # not by Gradio's queue: the desk is one, and an answer is lost there that is asked for while its stream closes
        hidden = {"api_visibility": "private", "show_progress": "minimal", "queue": False}
        latest = {**hidden, "trigger_mode": "always_last"}
        given = [dataset, chosen, upload, attack, attack_eps, purify_eps, channel]
        examined = {"inputs": given, "outputs": [message, remark, results, decoding, rows, shown]}

        def pick(event: Any) -> list[Any]:
            return [event.index, None]

        pick.__annotations__["event"] = gr.SelectData  # by which Gradio knows what to pass
        page.load(answers.examine, **examined, **hidden)
        dataset.input(answers.switch, dataset, [gallery, chosen, attack_eps, purify_eps, channel], **hidden).then(
            answers.examine, **examined, **hidden
        )
        gallery.select(pick, None, [chosen, upload], **hidden).then(answers.examine, **examined, **hidden)
        for event in (upload.upload, upload.clear, attack.input, attack_eps.input, purify_eps.input):
            event(answers.examine, **examined, **latest)
        rows.input(answers.step, [shown, rows, channel], [message, decoding, shown], **latest)
        channel.input(answers.redraw, [shown, channel], [results, decoding], **latest)
    return page


def application(gr: Any, page: Any) -> Any:
    """The page as an ASGI application, without anything of Gradio's that leaves this machine."""
    fastapi: Any = require("fastapi", "app")
    # Gradio's own fonts and greys: the former are files to fetch, the latter too light to read
    theme = gr.themes.Default(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    muted, muted_dark = "*neutral_600", "*neutral_400"
    theme.set(
        body_text_color_subdued=muted,
        body_text_color_subdued_dark=muted_dark,
        block_info_text_color=muted,
        block_info_text_color_dark=muted_dark,
        block_label_text_color="*neutral_700",
    )
    page.has_launched = True  # a page that is only mounted takes any path of this machine for an uploaded file
    return gr.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None),
        page,
        path="/",
        theme=theme,
        css=(resources.files(__package__) / "page.css").read_text(encoding="utf-8"),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        max_file_size=UPLOAD_BYTES,
    )
