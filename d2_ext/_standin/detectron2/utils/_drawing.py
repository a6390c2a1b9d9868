"""A picture that can be drawn on with matplotlib: the primitives of the visualizer, which is where they are public."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.colors as mplc
import matplotlib.figure as mplfigure
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from .colormap import random_color

Color = Any  # whatever matplotlib takes for a colour


class VisImage:
    """A picture with a drawing on it.

    Args:
        img: (H, W, 3) RGB in 0..255.
        scale: size of the result relative to the picture.

    Attributes:
        ax: matplotlib axes in px of the picture, origin top left.
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0) -> None:
        self.img = img
        self.scale = scale
        self.height, self.width = img.shape[:2]
        self.fig = mplfigure.Figure(frameon=False)
        self.dpi = self.fig.get_dpi()
        # matplotlib truncates to whole pixels; the hundredth keeps e.g. 927.9999 from losing one. The picture is a
        # little too small: before 3.11 what is too large is rounded up, and the picture stretched by a pixel.
        sides = [side * scale for side in (self.width, self.height)]
        self.fig.set_size_inches(*((side + 1e-2) / self.dpi for side in sides))
        self.canvas = FigureCanvasAgg(self.fig)
        self.ax = self.fig.add_axes((0.0, 0.0, *((side - 1e-6) / (side + 1e-2) for side in sides)))
        self.ax.axis("off")
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Put another picture of the same size below the drawing."""
        self.ax.imshow(img.astype("uint8"), extent=(0, self.width, self.height, 0), interpolation="nearest")

    def save(self, filepath: str) -> None:
        """Write the result to a file, whose ending tells the format."""
        self.fig.savefig(filepath)

    def get_image(self) -> np.ndarray:
        """(H * scale, W * scale, 3) uint8 RGB."""
        buffer, (width, height) = self.canvas.print_to_buffer()
        return np.frombuffer(buffer, dtype="uint8").reshape(height, width, 4)[:, :, :3].copy()


class _Primitives:
    """Shapes, text and masks. The class that has them sets the two attributes.

    Attributes:
        output: the picture to draw on.
        _default_font_size: points.
    """

    output: VisImage
    _default_font_size: float

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
        """Write in a light colour on a dark ground; ``position`` (x, y) px is the upper edge of the text."""
        light = np.maximum(mplc.to_rgb(color), 0.2)
        light[np.argmax(light)] = max(0.8, light.max())
        self.output.ax.text(
            *position,
            text,
            size=(font_size or self._default_font_size) * self.output.scale,
            family="sans-serif",
            bbox={"facecolor": "black", "alpha": 0.8, "pad": 0.7, "edgecolor": "none"},
            verticalalignment="top",
            horizontalalignment=horizontal_alignment,
            color=light,
            zorder=10,
            rotation=rotation,
        )
        return self.output

    def draw_box(
        self, box_coord: Sequence[float], alpha: float = 0.5, edge_color: Color = "g", line_style: str = "-"
    ) -> VisImage:
        """Outline a box, XYXY px."""
        x0, y0, x1, y1 = box_coord
        line_width = max(self._default_font_size / 4, 1) * self.output.scale
        self.output.ax.add_patch(
            mpl.patches.Rectangle(
                (x0, y0),
                x1 - x0,
                y1 - y0,
                fill=False,
                edgecolor=edge_color,
                linewidth=line_width,
                alpha=alpha,
                linestyle=line_style,
            )
        )
        return self.output

    def draw_circle(self, circle_coord: tuple[float, float], color: Color, radius: float = 3) -> VisImage:
        """Fill a circle about (x, y) px."""
        self.output.ax.add_patch(mpl.patches.Circle(tuple(circle_coord), radius=radius, fill=True, color=color))
        return self.output

    def draw_line(
        self,
        x_data: Sequence[float],
        y_data: Sequence[float],
        color: Color,
        linestyle: str = "-",
        linewidth: float | None = None,
    ) -> VisImage:
        """Draw a line through points, px."""
        width = max(self._default_font_size / 3 if linewidth is None else linewidth, 1) * self.output.scale
        self.output.ax.add_line(mpl.lines.Line2D(x_data, y_data, linewidth=width, color=color, linestyle=linestyle))
        return self.output

    def draw_polygon(self, segment: np.ndarray, color: Color, edge_color: Color = None, alpha: float = 0.5) -> VisImage:
        """Fill a polygon (N, 2) px; its edge is of the same colour, darker if the filling is nearly opaque."""
        if edge_color is None:
            edge_color = self._change_color_brightness(color, -0.7) if alpha > 0.8 else color
        self.output.ax.add_patch(
            mpl.patches.Polygon(
                segment,
                fill=True,
                facecolor=(*mplc.to_rgb(color), alpha),
                edgecolor=(*mplc.to_rgb(edge_color), 1),
                linewidth=max(self._default_font_size // 15 * self.output.scale, 1),
            )
        )
        return self.output

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
        """Colour the pixels of a (H, W) mask.

        Args:
            binary_mask: not 0 where to draw.
            color: drawn at random by default.
            edge_color: of the pixels at the mask's border; none by default.
            text: written in the middle.
            alpha: opacity.
            area_threshold: a mask of fewer pixels is not drawn.
        """
        mask = binary_mask.astype(bool)
        if mask.sum() < max(area_threshold or 0, 1):
            return self.output
        color = mplc.to_rgb(random_color(rgb=True, maximum=1) if color is None else color)
        opacity = np.where(mask, alpha, 0.0)
        self._overlay(color, opacity)
        if edge_color is not None:
            self._overlay(mplc.to_rgb(edge_color), (mask & ~_eroded(mask)).astype(float))
        self._write_in_mask(mask, text, color)
        return self.output

    def draw_soft_mask(
        self, soft_mask: np.ndarray, color: Color = None, *, text: str | None = None, alpha: float = 0.5
    ) -> VisImage:
        """Colour a picture by a (H, W) mask in 0..1; ``text`` is written in the middle of what is above 0.5."""
        color = mplc.to_rgb(random_color(rgb=True, maximum=1) if color is None else color)
        self._overlay(color, soft_mask * alpha)
        self._write_in_mask(soft_mask > 0.5, text, color)
        return self.output

    def _overlay(self, color: Sequence[float], opacity: np.ndarray) -> None:
        """Blend a colour over the picture with (H, W) opacity, handing only the part that it touches to matplotlib."""
        rows, columns = np.flatnonzero(opacity.any(axis=1)), np.flatnonzero(opacity.any(axis=0))
        if len(rows) == 0:
            return
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        rgba = np.zeros((bottom - top, right - left, 4), dtype="float32")
        rgba[:, :, :3] = color
        rgba[:, :, 3] = opacity[top:bottom, left:right]
        self.output.ax.imshow(rgba, extent=(left, right, bottom, top), interpolation="nearest")
        # imshow shrinks the view to its own picture.
        self.output.ax.set(xlim=(0, self.output.width), ylim=(self.output.height, 0))

    def _write_in_mask(self, mask: np.ndarray, text: str | None, color: Color) -> None:
        if text is not None and mask.any():
            middle = np.median(mask.nonzero(), axis=1)[::-1]
            self.draw_text(text, tuple(middle), color=self._change_color_brightness(color, 0.7))

    def _change_color_brightness(self, color: Color, brightness_factor: float) -> tuple[float, ...]:
        """Lightness times 1 + factor, the factor in [-1, 1]."""
        assert -1.0 <= brightness_factor <= 1.0, brightness_factor
        hue, lightness, saturation = colorsys.rgb_to_hls(*mplc.to_rgb(color))
        changed = colorsys.hls_to_rgb(hue, min(max(lightness * (1 + brightness_factor), 0.0), 1.0), saturation)
        return tuple(np.clip(changed, 0.0, 1.0))


def _eroded(mask: np.ndarray) -> np.ndarray:
    """Pixels whose four neighbours are all set; those outside the picture count as set."""
    padded = np.pad(mask, 1, constant_values=True)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
