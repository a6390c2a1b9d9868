"""A picture in two layers: pixels, which masks are blended into, and above them shapes and text of matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Polygon, Rectangle
from matplotlib.text import Text
from PIL import Image
from pycocotools import mask as rle_tools

_DPI = 72  # so that a point, the unit of lines and fonts, is a pixel
_MIN_FONT = 12.0  # px of the drawn image
_MIN_LINE = 2.0

Color = Any  # of matplotlib: a name, or RGB from 0 to 1


class VisImage:
    """An image that is drawn on, (H, W, 3) RGB with values from 0 to 255, enlarged by ``scale``.

    ``width`` and ``height`` are px of the drawn image; matplotlib's ``ax`` spans it, in px of the original one.
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0) -> None:
        height, width = img.shape[:2]
        self.scale = scale
        self.height, self.width = int(height * scale), int(width * scale)
        self.fig = Figure((self.width / _DPI, self.height / _DPI), _DPI, frameon=False)
        self.ax = self.fig.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self.ax.set_axis_off()
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Replace the pixels by those of an image of the original's size; shapes and text stay."""
        image = Image.fromarray(np.clip(img, 0, 255).astype(np.uint8))
        self._pixels = np.array(image.resize((self.width, self.height), Image.Resampling.BILINEAR))

    def blend(self, weights: np.ndarray, color: Color) -> None:
        """Mix a color into the pixels, by (H, W) weights from 0 to 1 for those of the original image."""
        if not weights.any():
            return
        weights_image, size = Image.fromarray(weights.astype(np.float32)), (self.width, self.height)
        share = np.asarray(weights_image.resize(size, Image.Resampling.NEAREST))
        touched = share > 0
        self._pixels[touched] = _mix(self._pixels[touched], 255 * np.array(to_rgb(color)), share[touched, None])

    def get_image(self) -> np.ndarray:
        """What is drawn so far: (height, width, 3) RGB uint8."""
        renderer = RendererAgg(self.width, self.height, _DPI)
        self.fig.draw(renderer)
        layer = np.asarray(renderer.buffer_rgba())
        return _mix(self._pixels, layer[:, :, :3], layer[:, :, 3:] / np.float32(255))

    def save(self, filepath: str) -> None:
        """Write what is drawn so far, in the format of the file's extension."""
        Image.fromarray(self.get_image()).save(filepath)


def _mix(below: np.ndarray, above: np.ndarray, share: np.ndarray) -> np.ndarray:
    return np.rint(below * (1 - share) + above * share).astype(np.uint8)


class Shapes:
    """Single shapes, texts and masks on a :class:`VisImage`. Coordinates are px of the original image."""

    def __init__(self, output: VisImage, font_scale: float = 1.0) -> None:
        self.output = output
        usual = max(_MIN_FONT, (output.width * output.height) ** 0.5 / 80)
        self._font = usual * font_scale
        self._line = max(_MIN_LINE, usual / 8)

    def draw_text(
        self,
        text: str,
        position: tuple[float, float],
        *,
        font_size: float | None = None,
        color: Color = "g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        """Write on a dark or light ground, whichever the color stands out from.

        Args:
            text: is taken literally, formulas too; ``\\$`` is a dollar, as matplotlib has it.
            position: (x, y) of the upper edge; ``horizontal_alignment`` says what of the text is at x.
            font_size: px of the original image.
            rotation: degrees, counter-clockwise.
        """
        ground = "black" if np.dot(to_rgb(color), (0.3, 0.6, 0.1)) > 0.4 else "white"
        written = Text(*position, text.replace(r"\$", "$"), color=color, parse_math=False, rotation=rotation)
        written.set_fontsize(self._font if font_size is None else font_size * self.output.scale)
        written.set_horizontalalignment(horizontal_alignment)
        written.set_verticalalignment("top")
        written.set_bbox({"boxstyle": "square,pad=0.1", "facecolor": ground, "alpha": 0.7, "linewidth": 0})
        return self._add(written)

    def draw_box(
        self, box_coord: Sequence[float], alpha: float = 0.5, edge_color: Color = "g", line_style: str = "-"
    ) -> VisImage:
        """Draw the outline of a box, XYXY px."""
        left, top, right, bottom = (float(value) for value in box_coord)
        style = {"edgecolor": edge_color, "linestyle": line_style, "linewidth": self._line, "alpha": alpha}
        return self._add(Rectangle((left, top), right - left, bottom - top, fill=False, **style))

    def draw_circle(self, circle_coord: tuple[float, float], color: Color, radius: float = 3) -> VisImage:
        """Draw a filled circle around (x, y)."""
        return self._add(Circle(circle_coord, radius, color=color))

    def draw_line(
        self,
        x_data: Sequence[float],
        y_data: Sequence[float],
        color: Color,
        linestyle: str = "-",
        linewidth: float | None = None,
    ) -> VisImage:
        """Connect points by straight lines; their width is in px of the original image."""
        width = self._line if linewidth is None else linewidth * self.output.scale
        return self._add(Line2D(x_data, y_data, linewidth=width, linestyle=linestyle, color=color))

    def draw_polygon(self, segment: np.ndarray, color: Color, edge_color: Color = None, alpha: float = 0.5) -> VisImage:
        """Draw a polygon, (N, 2) corners, with an opaque outline, which is darker by default."""
        outline = darker(color) if edge_color is None else to_rgb(edge_color)
        area = (*to_rgb(color), alpha)
        return self._add(Polygon(segment, facecolor=area, edgecolor=outline, linewidth=self._line / 2))

    def draw_binary_mask(
        self,
        binary_mask: np.ndarray,
        color: Color = None,
        *,
        edge_color: Color = None,
        text: str | None = None,
        alpha: float = 0.5,
        area_threshold: int | None = 10,
    ) -> VisImage:
        """Color the pixels of a mask.

        Args:
            binary_mask: (H, W) of the original image, bool or 0 and 1.
            color: by default that of matplotlib's first line.
            edge_color: of its outermost pixels, which are less transparent; by default as the rest.
            text: written in the middle of the mask.
            area_threshold: smaller connected parts, in px, are left out.
        """
        mask = _without_specks(binary_mask.astype(bool), area_threshold or 0)
        color = "C0" if color is None else color
        edge = np.zeros_like(mask)
        if edge_color is not None:  # pixels with one of the four neighbors outside; beyond the image counts as inside
            near = np.pad(mask, 1, mode="edge")
            edge = mask & ~(near[:-2, 1:-1] & near[2:, 1:-1] & near[1:-1, :-2] & near[1:-1, 2:])
        self.output.blend(alpha * (mask & ~edge), color)
        self.output.blend((alpha + 1) / 2 * edge, edge_color)
        return self.draw_text(text, middle_of(mask), color=color) if text and mask.any() else self.output

    def _add(self, artist: Artist) -> VisImage:
        self.output.ax.add_artist(artist)
        return self.output


def middle_of(mask: np.ndarray) -> tuple[float, float]:
    """(x, y) of a pixel in the middle of a (H, W) mask that is not empty, by medians."""
    rows, columns = mask.nonzero()
    return float(np.median(columns)), float(np.median(rows))


def as_bitmask(mask: Any, height: int, width: int) -> np.ndarray:
    """An array or tensor, COCO's run lengths (dict), or polygons (flat lists of x and y) as (height, width) bool."""
    if isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu().numpy()
    if isinstance(mask, np.ndarray):
        assert mask.shape == (height, width), f"The mask has shape {mask.shape}, the image {(height, width)}."
        return mask.astype(bool)
    if isinstance(mask, dict) and isinstance(mask["counts"], bytes | str):
        return rle_tools.decode(mask).astype(bool)
    if not mask:
        return np.zeros((height, width), dtype=bool)
    flat = mask if isinstance(mask, dict) else [np.asarray(polygon, dtype=float).ravel().tolist() for polygon in mask]
    encoded = rle_tools.frPyObjects(flat, height, width)
    return rle_tools.decode(rle_tools.merge(encoded) if isinstance(encoded, list) else encoded).astype(bool)


def _without_specks(mask: np.ndarray, least: int) -> np.ndarray:
    """A (H, W) bool mask without connected parts of less than ``least`` px."""
    if least <= 1:
        return mask
    import cv2

    _, parts, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return mask & (statistics[:, cv2.CC_STAT_AREA] >= least)[parts]


def darker(color: Color) -> tuple[float, ...]:
    """A color for outlines, RGB from 0 to 1."""
    return tuple(0.6 * channel for channel in to_rgb(color))
