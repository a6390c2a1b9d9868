"""What happens during training: a storage for numbers, images and histograms, and writers for logs and files."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from fvcore.common.history_buffer import HistoryBuffer

__all__ = [
    "CommonMetricPrinter", "EventStorage", "JSONWriter", "TensorboardXWriter", "get_event_storage",
    "has_event_storage",
]  # fmt: skip

_entered: list[EventStorage] = []  # not per thread: metrics may be written by one of its own


def has_event_storage() -> bool:
    """Whether the calling code runs within ``with EventStorage()``."""
    return len(_entered) > 0


def get_event_storage() -> EventStorage:
    """The innermost storage that the calling code runs in; AssertionError if there is none."""
    assert _entered, "Events are kept within 'with EventStorage(...):' only, as a trainer's loop has it. There is none."
    return _entered[-1]


@dataclass
class _Scalar:
    smooth: bool
    values: HistoryBuffer = field(default_factory=HistoryBuffer)
    latest: tuple[float, int] = (0.0, 0)  # value, iteration

    def put(self, value: float, iteration: int) -> None:
        self.latest = value, iteration
        self.values.update(value, iteration)

    def samples(self, window: int) -> int:
        """How many of the last values belong to the ``window`` iterations that end with the latest one."""
        oldest = self.values.values()[-1][1] - window
        return sum(1 for _ in takewhile(lambda entry: entry[1] > oldest, reversed(self.values.values())))


class EventStorage:
    """Numbers by name and iteration, and images and histograms until a writer takes them.

    Within ``with EventStorage(first_iteration) as storage:`` it is what :func:`get_event_storage` gives.
    """

    def __init__(self, start_iter: int = 0) -> None:
        self.iter = start_iter
        self._scope = ""
        self._scalars: dict[str, _Scalar] = {}
        # Writers of other packages read these two; there is no public way to them.
        self._vis_data: list[tuple[str, Any, int]] = []
        self._histograms: list[dict[str, Any]] = []

    @property
    def iter(self) -> int:
        """The current iteration."""
        return self._iteration

    @iter.setter
    def iter(self, val: int) -> None:
        self._iteration = int(val)

    iteration = iter

    def step(self) -> None:
        """Go on to the next iteration."""
        self._iteration += 1

    def put_scalar(self, name: str, value: float, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Add a number, or a tensor with one element.

        Args:
            name: may contain ``/`` to group names.
            smoothing_hint: noisy, so writers show a median; AssertionError if it was another one for this name before.
            cur_iter: an iteration other than the current one.
        """
        number = float(value)
        name = self._scope + name
        scalar = self._scalars.setdefault(name, _Scalar(smoothing_hint))
        assert scalar.smooth == smoothing_hint, (
            f"{name!r} was put with smoothing_hint={scalar.smooth} before, now with {smoothing_hint}. Keep to one."
        )
        scalar.put(number, self._iteration if cur_iter is None else cur_iter)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: float) -> None:
        """Add several numbers, as ``put_scalars(loss=1.0, accuracy=0.5)``; see :meth:`put_scalar`."""
        for name in kwargs:
            self.put_scalar(name, kwargs[name], smoothing_hint, cur_iter)

    def put_image(self, img_name: str, img_tensor: torch.Tensor | np.ndarray) -> None:
        """Keep a (3, H, W) RGB image, uint8 or float from 0 to 1, for the next write to TensorBoard."""
        self._vis_data.append((img_name, img_tensor, self._iteration))

    def put_histogram(self, hist_name: str, hist_tensor: torch.Tensor, bins: int = 1000) -> None:
        """Keep a histogram of finite values, in bins of equal width, for the next write to TensorBoard."""
        values = hist_tensor.detach().to("cpu", torch.float32).flatten()
        counts, edges = torch.histogram(values, bins)
        record = {"tag": hist_name, "global_step": self._iteration, "num": values.numel()}
        record |= {"min": values.min().item(), "max": values.max().item()}
        record |= {"sum": values.sum().item(), "sum_squares": values.square().sum().item()}
        self._histograms.append(record | {"bucket_limits": edges[1:].tolist(), "bucket_counts": counts.tolist()})

    def clear_images(self) -> None:
        """Forget the images."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Forget the histograms."""
        self._histograms = []

    def history(self, name: str) -> HistoryBuffer:
        """All values of a name, scope included; KeyError if there are none."""
        if name not in self._scalars:
            raise KeyError(f"{name!r} was never put; there are: {', '.join(self._scalars) or 'no scalars'}.")
        return self._scalars[name].values

    def histories(self) -> dict[str, HistoryBuffer]:
        """All values of all names, in the order of their first appearance."""
        return {name: scalar.values for name, scalar in self._scalars.items()}

    def latest(self) -> dict[str, tuple[float, int]]:
        """The last value of each name, with its iteration."""
        return {name: scalar.latest for name, scalar in self._scalars.items()}

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """As :meth:`latest`, with medians over ``window_size`` iterations in place of noisy values."""
        shown = self.latest()
        for name, scalar in self._scalars.items():
            if scalar.smooth:
                shown[name] = scalar.values.median(scalar.samples(window_size)), shown[name][1]
        return shown

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many values of a name belong to the ``window_size`` iterations up to its last; 0 if there are none."""
        return self._scalars[name].samples(window_size) if name in self._scalars else 0

    def smoothing_hints(self) -> dict[str, bool]:
        """For each name, whether it is noisy."""
        return {name: scalar.smooth for name, scalar in self._scalars.items()}

    @contextlib.contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Put ``name/`` before the names of scalars within ``with``. Scopes do not add up: the inner one counts."""
        outer, self._scope = self._scope, f"{name.rstrip('/')}/"
        try:
            yield
        finally:
            self._scope = outer

    def __enter__(self) -> EventStorage:
        _entered.append(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        is_innermost = _entered[-1:] == [self]
        assert is_innermost, "Storages must be left in the opposite order of entering them."
        _entered.pop()


class EventWriter:
    """Shows or saves the events of the current storage, when it is told to."""

    def write(self) -> None:
        """Take what is new."""
        raise NotImplementedError(f"{type(self).__name__} has no write().")

    def close(self) -> None:
        """Finish files; nothing is written any more."""


class _ScalarWriter(EventWriter):
    """A writer that takes each value once, with medians of the noisy ones over ``window_size`` iterations."""

    def __init__(self, window_size: int) -> None:
        self._window, self._taken = window_size, -1  # iterations; the last one whose values were taken

    def _new_scalars(self) -> dict[int, dict[str, float]]:
        """Values by iteration and name, of iterations after those already taken."""
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window).items():
            if iteration > self._taken:
                rows[iteration][name] = value
        self._taken = max(rows, default=self._taken)
        return rows


class JSONWriter(_ScalarWriter):
    """Appends to a file one line of JSON for each iteration with new values; ``NaN`` is written as that word."""

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        super().__init__(window_size)
        self._file = PathManager.open(json_file, "a")

    def write(self) -> None:
        """Append what is new."""
        for iteration, row in self._new_scalars().items():
            print(json.dumps({**row, "iteration": iteration}, sort_keys=True), file=self._file)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorboardXWriter(_ScalarWriter):
    """Writes to a folder, made with the first event; ``kwargs`` are those of PyTorch's ``SummaryWriter``."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        super().__init__(window_size)
        self._settings = {"log_dir": log_dir, **kwargs}
        self._at_close = contextlib.ExitStack()

    @cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        return self._at_close.enter_context(SummaryWriter(**self._settings))

    def write(self) -> None:
        """Hand over what is new; images and histograms then leave the storage."""
        storage = get_event_storage()
        for iteration, row in self._new_scalars().items():
            for name, value in row.items():
                self._writer.add_scalar(name, value, iteration)
        for name, image, iteration in storage._vis_data:
            self._writer.add_image(name, image, iteration)
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_images()
        storage.clear_histograms()

    def close(self) -> None:
        """Finish the files, if there are any."""
        self._at_close.close()


class CommonMetricPrinter(EventWriter):
    """Logs a line with the losses, times and learning rate, and how long the rest of ``max_iter`` will take.

    What has ``loss`` or ``[metric]`` in its name is shown by its median over ``window_size`` iterations.
    """

    logger = logging.getLogger(__name__)

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        self._length, self._window = max_iter, window_size
        self._last_call: tuple[int, float] | None = None  # iteration, s

    def write(self) -> None:
        """Log the line, but not after the end of the training, when nothing of it is new."""
        storage = get_event_storage()
        if storage.iter == self._length:
            return
        known, latest, fields = storage.histories(), storage.latest(), []
        for mark in ("loss", "[metric]"):
            names = [name for name in known if mark in name]
            medians = (known[name].median(storage.count_samples(name, self._window)) for name in names)
            fields.append("  ".join(f"{name}: {median:.4g}" for name, median in zip(names, medians)))
        times = ""
        if "time" in known:
            times += f"time: {known['time'].global_avg():.4f}  last_time: {known['time'].latest():.4f}  "
        if "data_time" in known:
            mean = known["data_time"].avg(storage.count_samples("data_time", self._window))
            times += f"data_time: {mean:.4f}  last_data_time: {known['data_time'].latest():.4f}  "
        rate = f"{latest['lr'][0]:.5g}" if "lr" in latest else "N/A"
        memory = f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M" if torch.cuda.is_available() else ""
        eta = self._eta(storage)
        self.logger.info(f" {eta}iter: {storage.iter}  {fields[0]}  {fields[1]}  {times} lr: {rate}  {memory}")

    def _eta(self, storage: EventStorage) -> str:
        """Time until the end, by the usual duration of an iteration, or by the time since the last call."""
        if self._length is None:
            return ""
        iterations, now = self._length - storage.iter - 1, (storage.iter, time.perf_counter())
        before, self._last_call = self._last_call, now
        if "time" in storage.latest():
            seconds = storage.history("time").median(1000) * iterations
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        elif before is not None and before[0] != now[0]:
            seconds = (now[1] - before[1]) / (now[0] - before[0]) * iterations
        else:
            return ""
        return f"eta: {datetime.timedelta(seconds=int(seconds))}  "
