"""Events of a training run: the storage that models and hooks write to, and the writers that show it."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from fvcore.common.history_buffer import HistoryBuffer

__all__ = [
    "get_event_storage",
    "has_event_storage",
    "JSONWriter",
    "TensorboardXWriter",
    "CommonMetricPrinter",
    "EventStorage",
]

_CURRENT_STORAGE_STACK: list[EventStorage] = []


def get_event_storage() -> EventStorage:
    """The storage of the innermost ``with EventStorage(...)`` block; asserts that there is one."""
    assert has_event_storage(), "get_event_storage() has to be called inside a 'with EventStorage(...)' block"
    return _CURRENT_STORAGE_STACK[-1]


def has_event_storage() -> bool:
    """Whether some ``with EventStorage(...)`` block is active."""
    return len(_CURRENT_STORAGE_STACK) > 0


class EventStorage:
    """Scalars with their history, images and histograms, each noted with the iteration it belongs to."""

    def __init__(self, start_iter: int = 0) -> None:
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest_scalars: dict[str, tuple[float, int]] = {}
        self._iter = start_iter
        self._current_prefix = ""
        self._vis_data: list[tuple[str, Any, int]] = []
        self._histograms: list[dict[str, Any]] = []

    def put_image(self, img_name: str, img_tensor: torch.Tensor | np.ndarray) -> None:
        """Keep an RGB image of shape (3, H, W), uint8 0..255 or float 0..1, for TensorBoard."""
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_scalar(self, name: str, value: float, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Add a value.

        Args:
            name: the scalar; the current name scope is put in front.
            value: anything that ``float()`` takes.
            smoothing_hint: whether writers should show a median of the last iterations; must not change for a name.
            cur_iter: iteration of the value; the current one by default.
        """
        name = self._current_prefix + name
        iteration = self._iter if cur_iter is None else cur_iter
        value = float(value)
        self._history[name].update(value, iteration)
        self._latest_scalars[name] = (value, iteration)
        known = self._smoothing_hints.setdefault(name, smoothing_hint)
        assert known == smoothing_hint, f"Scalar {name} was put with a different smoothing_hint!"

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: float) -> None:
        """Add several values given as keyword arguments."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_histogram(self, hist_name: str, hist_tensor: torch.Tensor, bins: int = 1000) -> None:
        """Keep the histogram of all values of a tensor, with ``bins`` equal bins from its minimum to its maximum."""
        lowest, highest = hist_tensor.min().item(), hist_tensor.max().item()
        edges = torch.linspace(lowest, highest, bins + 1, dtype=torch.float32)
        self._histograms.append(
            {
                "tag": hist_name,
                "min": lowest,
                "max": highest,
                "num": len(hist_tensor),
                "sum": float(hist_tensor.sum()),
                "sum_squares": float((hist_tensor**2).sum()),
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": torch.histc(hist_tensor, bins=bins).tolist(),
                "global_step": self._iter,
            }
        )

    def history(self, name: str) -> HistoryBuffer:
        """History of one scalar; ``KeyError`` if it was never put."""
        if name not in self._history:
            raise KeyError(f"No history metric available for {name}!")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """Histories of all scalars."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """Last value of each scalar and its iteration."""
        return self._latest_scalars

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Like :meth:`latest`, but the median of the last ``window_size`` iterations where the hint asks for it."""
        return {
            name: (self._smoothed(name, window_size) if self._smoothing_hints[name] else value, iteration)
            for name, (value, iteration) in self._latest_scalars.items()
        }

    def _smoothed(self, name: str, window_size: int) -> float:
        return self._history[name].median(self.count_samples(name, window_size))

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """Number of values of a scalar in the ``window_size`` iterations that end with its last one."""
        values = self._history[name].values()
        oldest = values[-1][1] - window_size
        count = 0
        for _, iteration in reversed(values):
            if iteration <= oldest:
                break
            count += 1
        return count

    def smoothing_hints(self) -> dict[str, bool]:
        """The hint of each scalar."""
        return self._smoothing_hints

    def step(self) -> None:
        """Go to the next iteration."""
        self._iter += 1

    @property
    def iter(self) -> int:
        """Current iteration; under a trainer, the trainer's."""
        return self._iter

    @iter.setter
    def iter(self, val: int) -> None:
        self._iter = int(val)

    @property
    def iteration(self) -> int:
        """Older name of :attr:`iter`."""
        return self._iter

    def __enter__(self) -> EventStorage:
        _CURRENT_STORAGE_STACK.append(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert _CURRENT_STORAGE_STACK[-1] is self
        _CURRENT_STORAGE_STACK.pop()

    @contextlib.contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Put ``name/`` in front of all scalars that are added inside the block; scopes replace each other."""
        outer = self._current_prefix
        self._current_prefix = name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._current_prefix = outer

    def clear_images(self) -> None:
        """Drop the images, once they have been written."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Drop the histograms, once they have been written."""
        self._histograms = []


class EventWriter:
    """Base class: reads the current storage in ``write``."""

    def write(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class JSONWriter(EventWriter):
    """Appends to a file one JSON object per iteration, with the scalars that are new since the last write.

    Args:
        json_file: appended to if it exists.
        window_size: iterations of the median for scalars with a smoothing hint.
    """

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        self._file_handle = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        lines: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                lines[iteration][name] = value
        self._last_write = max(lines, default=self._last_write)
        for iteration, scalars in lines.items():
            self._file_handle.write(json.dumps({**scalars, "iteration": iteration}, sort_keys=True) + "\n")
        self._file_handle.flush()
        if hasattr(self._file_handle, "fileno"):  # not every remote storage has one
            os.fsync(self._file_handle.fileno())

    def close(self) -> None:
        self._file_handle.close()


class TensorboardXWriter(EventWriter):
    """Writes scalars, images and histograms to a TensorBoard file, which is created by the first of them.

    Args:
        log_dir: folder of the file.
        window_size: iterations of the median for scalars with a smoothing hint.
        kwargs: further arguments of ``torch.utils.tensorboard.SummaryWriter``.
    """

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        self._window_size = window_size
        self._writer_args = {"log_dir": log_dir, **kwargs}
        self._last_write = -1

    @cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # lazy: slow to import

        return SummaryWriter(**self._writer_args)

    def write(self) -> None:
        storage = get_event_storage()
        scalars = storage.latest_with_smoothing_hint(self._window_size)
        new = [(name, *pair) for name, pair in scalars.items() if pair[1] > self._last_write]
        for scalar in new:
            self._writer.add_scalar(*scalar)
        self._last_write = max([self._last_write, *(iteration for _, _, iteration in new)])
        # Only this writer shows images and histograms, so it empties the storage of them.
        for name, image, iteration in storage._vis_data:
            self._writer.add_image(name, image, iteration)
        storage.clear_images()
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_histograms()

    def close(self) -> None:
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs one line: time to the end, iteration, losses, ``[metric]`` scalars, times, learning rate, GPU memory.

    Args:
        max_iter: length of the run; without it no time to the end is shown.
        window_size: iterations of the median of losses.
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None  # iteration and time of the last call

    def _get_eta(self, storage: EventStorage) -> str | None:
        if self._max_iter is None:
            return ""
        remaining = self._max_iter - storage.iter - 1
        if "time" in storage.histories():
            seconds = storage.history("time").median(1000) * remaining
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
            return _as_clock(seconds)
        previous, self._last_write = self._last_write, (storage.iter, time.perf_counter())
        if previous is None:
            return None
        seconds_per_iter = (self._last_write[1] - previous[1]) / (self._last_write[0] - previous[0])
        return _as_clock(seconds_per_iter * remaining)

    def _medians(self, storage: EventStorage, word: str) -> str:
        window = self._window_size
        names = [name for name in storage.histories() if word in name]
        return "  ".join(f"{name}: {storage._smoothed(name, window):.4g}" for name in names)

    def _times(self, storage: EventStorage) -> str:
        histories, text = storage.histories(), ""
        if "time" in histories:
            mean = histories["time"].global_avg()
            text += f"time: {mean:.4f}  last_time: {histories['time'].latest():.4f}  "
        if "data_time" in histories:
            mean = histories["data_time"].avg(storage.count_samples("data_time", self._window_size))
            text += f"data_time: {mean:.4f}  last_data_time: {histories['data_time'].latest():.4f}  "
        return text

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self._max_iter:  # called once more after the end of training
            return
        eta = self._get_eta(storage)
        lr = f"{storage.history('lr').latest():.5g}" if "lr" in storage.histories() else "N/A"
        memory = f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M" if torch.cuda.is_available() else ""
        self.logger.info(
            f" {f'eta: {eta}  ' if eta else ''}iter: {storage.iter}  {self._medians(storage, 'loss')}  "
            f"{self._medians(storage, '[metric]')}  {self._times(storage)} lr: {lr}  {memory}"
        )


def _as_clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))
