"""The page of `dlgsanet web`, made with Gradio. ``page.js`` and ``page.css`` show the pictures."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dlgsanet.errors import UserError
from dlgsanet.inference.weights import families
from dlgsanet.progress import duration
from dlgsanet.web.device_queue import Choices, DeviceQueue
from dlgsanet.web.visits import Entry, Limits, Visit, Visits

HERE = Path(__file__).parent
SAME = "same as the picture"
FORMATS = {SAME: None, "PNG": ".png", "JPEG": ".jpg", "WebP": ".webp", "TIFF": ".tif"}
EVERY = 0.3  # seconds between updates of the progress
# Uploads that no page has taken within this time are of pages that were closed meanwhile.
UPLOAD_SECONDS = 900


def make_page(visits: Visits, queue: DeviceQueue, weights: str | None = None) -> tuple[Any, dict[str, Any]]:
    """The page.

    Args:
        visits: where the pictures of each open page are; uploads go next to their folder.
        queue: the device's.
        weights: offer only these: a file, or the name of included weights. None: all that are included.

    Returns:
        The `gradio.Blocks`, and the arguments for its `launch`.

    Raises:
        UserError: Gradio is not installed, there are no weights.
    """
    uploads, limits = visits.root.with_name("uploads"), queue.limits
    gradio = import_gradio(uploads)
    offered = {name: sorted(scales) for name, scales in families().items()}
    if weights:
        offered = {name: scales for name, scales in offered.items() if name.lower() == weights.lower()} or {weights: []}
    if not offered:
        raise UserError("no weights are here; give --weights FILE")
    actions = _Actions(gradio, visits, queue, uploads)
    with gradio.Blocks(
        title="Upscale pictures", analytics_enabled=False, delete_cache=(UPLOAD_SECONDS, UPLOAD_SECONDS)
    ) as page:
        gradio.HTML(f"<h1>Upscale pictures</h1><p>{_introduction(limits)}</p>", elem_id="introduction")
        files = gradio.File(file_count="multiple", label="Pictures", height=150, elem_id="files")
        with gradio.Row(elem_id="choices"):
            names = list(offered)
            first = "Tiny" if "Tiny" in offered else names[0]
            chosen = gradio.Dropdown(
                [(_title(name), name) for name in names],
                value=first,
                label="Weights",
                interactive=True,
                min_width=140,
            )
            scale = gradio.Radio(
                [(f"×{s}", s) for s in offered[first]], value=next(iter(offered[first]), None), label="Enlarge",
                interactive=True, visible=bool(offered[first]), min_width=210, elem_id="scale",
            )  # fmt: skip
            kind = gradio.Dropdown(list(FORMATS), value=SAME, label="Save as", min_width=140)
        with gradio.Accordion("More", open=False):
            quality = gradio.Slider(1, 100, 95, step=1, label="Quality of JPEG and WebP")
            ensemble = gradio.Checkbox(label="Average over 8 flips and transposes: 8 times the work, slightly better")
        with gradio.Row(elem_id="buttons"):
            start = gradio.Button("Upscale", variant="primary", elem_id="start", min_width=100)
            stop = gradio.Button("Stop", elem_id="stop", min_width=80)
            clear = gradio.Button("Clear", elem_id="clear", min_width=80)
        gradio.HTML('<div id="pictures" aria-live="polite"></div>', elem_id="list")
        state = gradio.HTML(
            '{"pictures": []}', html_template="", elem_id="state", apply_default_css=False,
            js_on_load="watch('value', () => window.showPictures(props.value)); window.showPictures(props.value);",
        )  # fmt: skip
        hidden = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        files.upload(actions.take, [files], [files, state], preprocess=False, **hidden)
        if len(offered) > 1:
            chosen.change(lambda name, now: actions.scales(offered[name], now), [chosen, scale], [scale], **hidden)
        start.click(actions.run, [chosen, scale, kind, quality, ensemble], [state], **hidden)
        stop.click(actions.stop, None, None, **hidden)
        clear.click(actions.clear, None, [state], **hidden)
        page.unload(actions.close)
    page.queue(max_size=None, default_concurrency_limit=None)
    settings = {
        "allowed_paths": [str(visits.root)],
        "max_file_size": limits.megabytes * 2**20,
        "theme": gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        "css_paths": HERE / "page.css",
        "head": f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
        "footer_links": [],
        "share": False,
        "ssr_mode": False,
        "quiet": True,
    }
    return page, settings


def import_gradio(uploads: Path) -> Any:
    """Gradio, with its uploads in this folder, without telemetry and without a look for newer versions.

    Raises:
        UserError: it is not installed.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"the page needs Gradio ({error}); pip install 'dlgsanet[web]'") from None
    return gradio


def _title(weights: str) -> str:
    name = Path(weights).name
    return f"{name} (compressed photographs)" if name.endswith("_jpeg") else name


def _introduction(limits: Limits) -> str:
    return (
        f"Up to {limits.pictures} pictures, each up to {limits.megapixels} megapixels and {limits.megabytes} MiB. "
        "They are worked on by the computer that serves this page, one at a time, and deleted when you close it."
    )


class _Actions:
    """What the page's controls do. Gradio finds out that a function wants the request by its annotation."""

    def __init__(self, gradio: Any, visits: Visits, queue: DeviceQueue, uploads: Path):
        self.gradio, self.visits, self.queue, self.uploads = gradio, visits, queue, uploads.resolve()
        for action in (_Actions.take, _Actions.run, _Actions.stop, _Actions.clear, _Actions.close):
            action.__annotations__["request"] = gradio.Request

    def take(self, uploads: list[dict[str, Any]] | None, request: Any) -> tuple[None, str]:
        """Move uploaded files into the folder of the visit."""
        visit = self.visits.of(request.session_hash)
        problems = []
        for upload in uploads or []:
            path = Path(upload["path"]).resolve()
            if not path.is_relative_to(self.uploads):
                continue  # not an upload: somebody talks to the server without the page
            try:
                visit.add(path, upload.get("orig_name") or path.name, self.queue.limits)
            except (UserError, OSError) as error:  # a full disk
                problems.append(str(error))
        return None, self._state(visit, problems)

    async def run(
        self, weights: str, scale: int | None, kind: str, quality: float, ensemble: bool, request: Any
    ) -> AsyncIterator[str]:
        """Upscale what is not upscaled yet, and show how far it is."""
        visit = self.visits.of(request.session_hash)
        if not visit.entries:
            yield self._state(visit, ["no pictures yet; add some first"])
            return
        self.queue.add(visit, Choices(weights, scale or 2, FORMATS[kind], int(quality), ensemble))
        while not visit.closed and any(entry.unfinished for entry in visit.entries):
            yield self._state(visit)
            await asyncio.sleep(EVERY)
        problems = []
        try:
            await asyncio.to_thread(visit.pack)
        except OSError as error:  # a full disk; each result is there by itself
            problems.append(f"no ZIP of all pictures: {error.strerror}")
        yield self._state(visit, problems)

    def stop(self, request: Any) -> None:
        """Stop the work of this page."""
        self.queue.stop(self.visits.of(request.session_hash))

    def clear(self, request: Any) -> str:
        """Remove every picture that is not worked on."""
        visit = self.visits.of(request.session_hash)
        self.queue.stop(visit)
        visit.clear()
        return self._state(visit)

    def close(self, request: Any) -> None:
        """The page was closed."""
        self.visits.close(request.session_hash)

    def scales(self, offered: list[int], now: int | None) -> Any:
        """The scales of the weights that were chosen."""
        value = now if now in offered else offered[0]
        return self.gradio.Radio(choices=[(f"×{s}", s) for s in offered], value=value)

    def _state(self, visit: Visit, problems: list[str] | None = None) -> str:
        pictures = [self._shown(entry) for entry in visit.entries]
        archive = _address(visit.archive) if visit.archive else None
        return json.dumps({"pictures": pictures, "archive": archive, "problems": problems or []})

    def _shown(self, entry: Entry) -> dict[str, Any]:
        """What the page shows of a picture."""
        shown = {"id": entry.number, "name": entry.name, "state": entry.state, "hint": entry.hint}
        if entry.state == "waiting":
            ahead = self.queue.ahead(entry)
            return shown | {"text": f"waiting; {ahead} before it" if ahead else "waiting"}
        if entry.state == "working":
            return shown | {"text": _time_left(entry), "share": entry.share}
        if entry.state == "done" and entry.result:
            (height, width), (large_height, large_width) = entry.sizes
            before, after = entry.shown
            text = f"{width}×{height} → {large_width}×{large_height}, {duration(entry.ended - entry.begun)}"
            return shown | {
                "text": text, "before": _address(before), "after": _address(after), "width": large_width,
                "height": large_height, "result": _address(entry.result), "file": entry.result.name,
            }  # fmt: skip
        texts = {"failed": entry.message.removeprefix(f"{entry.name}: "), "added": "ready"}
        return shown | {"text": texts.get(entry.state, entry.state)}


def _time_left(entry: Entry) -> str:
    seconds = time.monotonic() - entry.begun
    if seconds < 1 or entry.share < 0.02:
        return "working"
    return f"{entry.share:.0%}, about {duration(seconds * (1 - entry.share) / entry.share)} left"


def _address(file: Path) -> str:
    """Where a browser gets a file, relative to the page."""
    return f"gradio_api/file={quote(str(file))}"
