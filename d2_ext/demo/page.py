"""The web page, in Gradio. It talks to its own server alone: a policy in its header makes the browser enforce that."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from d2_ext.demo.checkpoints import choose
from d2_ext.demo.detector import Detector
from d2_ext.demo.upload import FORMATS, MAX_MEGABYTES, decode_upload
from d2_ext.errors import CheckpointError, ConfigError, DatasetError, install_hint

import numpy as np

TITLE = "d2_ext demo"
DETECTORS_KEPT = 2
MIN_SCORE, DEFAULT_SCORE = 0.05, 0.3
# Gradio's own page needs inline scripts and styles; nothing may come from, or go to, another host.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; form-action 'self'; frame-ancestors 'self'; base-uri 'self'"
)
SYSTEM_FONTS = ("system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONOSPACE_FONTS = ("ui-monospace", "Consolas", "monospace")


def import_gradio() -> Any:
    """Gradio with its analytics off and uploads in a folder of this process.

    Raises:
        ConfigError: if it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if "GRADIO_TEMP_DIR" not in os.environ:
        folder = os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="d2_ext_demo_")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        import gradio
    except ImportError as error:
        raise ConfigError(f"The demo needs Gradio ({error}). {install_hint('demo')}") from error
    return gradio


class Demo:
    """What the page does, without Gradio.

    Args:
        checkpoints: name -> file, of :func:`d2_ext.demo.checkpoints.find_checkpoints`.
        device: for all of them; the config's own if not given.
    """

    def __init__(self, checkpoints: dict[str, Path], device: str | None = None) -> None:
        self.checkpoints = checkpoints
        self.detector = functools.lru_cache(maxsize=DETECTORS_KEPT)(lambda path: Detector(path, device))

    def run(
        self, content: bytes | None, name: object, score_threshold: float, with_masks: bool
    ) -> tuple[np.ndarray, np.ndarray | None, list[list[Any]], str]:
        """Detect on an uploaded image.

        Args:
            content: of the file.
            name: of a checkpoint.
            score_threshold: in [0, 1].
            with_masks: also draw where a sparse head computes.

        Returns:
            RGB image with detections, RGB image of the masks or None, rows (class, score, x, y, width, height) of
            the table, and a sentence about it.

        Raises:
            DatasetError: for a file that is no usable image.
            CheckpointError, ConfigError: if the checkpoint cannot be used.
        """
        image = decode_upload(content)
        detector = self.detector(choose(self.checkpoints, name))
        start = time.perf_counter()
        found = detector.detect(image, score_threshold)
        seconds = time.perf_counter() - start
        text = f"{len(found)} objects with a score of at least {score_threshold:.2f}, in {1e3 * seconds:.0f} ms."
        masks = None
        if with_masks and detector.has_masks:
            masks = detector.draw_masks(image)[:, :, ::-1]
        elif with_masks:
            text += " This checkpoint has a dense head: it computes everywhere, there are no masks."
        return detector.draw(image, found)[:, :, ::-1], masks, _rows(detector, found), text


def build_page(demo: Demo) -> Any:
    """The page as ``gradio.Blocks``."""
    gradio = import_gradio()

    def detect(content: bytes | None, name: str, score_threshold: float, with_masks: bool) -> tuple[Any, ...]:
        try:
            image, masks, rows, text = demo.run(content, name, score_threshold, with_masks)
        except (CheckpointError, ConfigError, DatasetError) as error:
            raise gradio.Error(str(error), duration=None) from error
        return image, gradio.update(value=masks, visible=masks is not None), rows, text

    names = list(demo.checkpoints)
    types = [f".{suffix}" for suffix in ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")]
    with gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.Markdown(
            f"# {TITLE}\nDrop an image ({', '.join(FORMATS)}), choose a checkpoint, press *Detect*. "
            "Nothing leaves this machine."
        )
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                upload = gradio.File(
                    label=f"Image, at most {MAX_MEGABYTES} MB",
                    file_types=types,
                    type="binary",
                    height=160,
                    elem_id="upload",
                )
                checkpoint = gradio.Dropdown(names, value=names[0], label="Checkpoint", elem_id="checkpoint")
                score = gradio.Slider(
                    MIN_SCORE, 0.95, DEFAULT_SCORE, step=0.05, label="Score threshold", elem_id="score"
                )
                masks = gradio.Checkbox(label="Show where the sparse head computes", elem_id="masks")
                button = gradio.Button("Detect", variant="primary", elem_id="detect")
            with gradio.Column(scale=2, min_width=360):
                shown = {"interactive": False, "buttons": ["download", "fullscreen"], "format": "png"}
                image = gradio.Image(label="Detections", elem_id="result", **shown)
                summary = gradio.Markdown(elem_id="summary")
                mask_image = gradio.Image(label="Activation masks", visible=False, elem_id="mask-result", **shown)
                header = ["class", "score", "x", "y", "width", "height"]
                table = gradio.Dataframe(headers=header, label="Boxes, px", interactive=False, elem_id="boxes")
        # One at a time: the detector is shared. Private: the page may call it, Gradio's API client may not.
        button.click(
            detect,
            [upload, checkpoint, score, masks],
            [image, mask_image, table, summary],
            concurrency_limit=1,
            api_visibility="private",
        )
    return page


def launch_options(host: str, port: int) -> dict[str, Any]:
    """Arguments of ``Blocks.launch``: local, unshared, with size limit, system fonts and the policy."""
    gradio = import_gradio()
    from starlette.middleware import Middleware

    theme = gradio.themes.Default(font=list(SYSTEM_FONTS), font_mono=list(MONOSPACE_FONTS))
    return {
        "server_name": host,
        "server_port": port,
        "share": False,
        "inbrowser": False,
        "quiet": True,
        "ssr_mode": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "footer_links": [],
        "max_file_size": f"{MAX_MEGABYTES}mb",
        "theme": theme,
        "app_kwargs": {"middleware": [Middleware(_SamePolicy)]},
    }


class _SamePolicy:
    """ASGI middleware that adds :data:`POLICY` to every answer."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        async def send_with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def _rows(detector: Detector, found: Any) -> list[list[Any]]:
    rows = []
    for box, score, index in zip(found.pred_boxes.tensor.tolist(), found.scores.tolist(), found.pred_classes.tolist()):
        x, y, right, bottom = (round(value, 1) for value in box)
        size = [round(right - x, 1), round(bottom - y, 1)]
        rows.append([detector.class_name(index), round(score, 3), x, y, *size])
    return rows
