"""Event storage and writers: numbers by hand, on either implementation of Detectron2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)


def test_the_innermost_storage_is_the_current_one() -> None:
    assert not has_event_storage()
    with EventStorage(5) as outer, EventStorage(9) as inner:
        assert get_event_storage() is inner
        assert (outer.iter, inner.iter, inner.iteration) == (5, 9, 9)
    assert not has_event_storage()
    with pytest.raises(AssertionError, match="EventStorage"):
        get_event_storage()
    with pytest.raises(ZeroDivisionError), EventStorage():
        1 / 0  # noqa: B018
    assert not has_event_storage()


def test_latest_gives_value_and_iteration_and_the_median_where_the_hint_asks_for_it() -> None:
    with EventStorage(10) as storage:
        for value in (1.0, 5.0, 3.0):
            storage.put_scalars(smooth=value)
            storage.put_scalar("raw", torch.tensor(value), smoothing_hint=False)
            storage.step()
    assert storage.latest() == {"smooth": (3.0, 12), "raw": (3.0, 12)}
    assert storage.latest_with_smoothing_hint(20) == {"smooth": (3.0, 12), "raw": (3.0, 12)}
    assert storage.latest_with_smoothing_hint(2)["smooth"] == (4.0, 12)  # median of 5 and 3
    assert storage.smoothing_hints() == {"smooth": True, "raw": False}


def test_the_window_counts_iterations_not_samples() -> None:
    with EventStorage() as storage:
        for iteration in range(20):
            storage.iter = iteration
            if iteration % 5 == 4:
                storage.put_scalar("rare", iteration)
    assert storage.count_samples("rare", 10) == 2  # iterations 14 and 19
    assert storage.count_samples("rare", 11) == 3  # 9 is the first that is more than 19 - 11
    assert storage.history("rare").median(2) == 16.5


def test_a_smoothing_hint_must_not_change_and_a_history_must_exist() -> None:
    with EventStorage(3) as storage:
        storage.put_scalar("x", 1, cur_iter=7)
        assert storage.latest()["x"] == (1.0, 7)
        with pytest.raises(AssertionError, match="smoothing_hint"):
            storage.put_scalar("x", 1, smoothing_hint=False)
        with pytest.raises(KeyError, match="nothing"):
            storage.history("nothing")


def test_name_scopes_prefix_names_and_do_not_nest() -> None:
    with EventStorage() as storage:
        with storage.name_scope("a/"):
            storage.put_scalar("x", 1)
            with storage.name_scope("b"):
                storage.put_scalar("x", 2)
            storage.put_scalar("y", 3)
        storage.put_scalar("x", 4)
    assert list(storage.histories()) == ["a/x", "b/x", "a/y", "x"]


def test_json_lines_are_one_per_iteration_with_new_values_only(tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    file.write_text('{"old": 1}\n')
    with EventStorage() as storage:
        writer = JSONWriter(str(file), window_size=4)
        for iteration in range(8):
            if iteration == 2:
                storage.put_scalar("z", 0.5, smoothing_hint=False)
            storage.put_scalar("a", iteration)
            if iteration % 4 == 3:
                writer.write()
            storage.step()
        writer.write()  # nothing new
        storage.put_scalar("x", float("nan"), smoothing_hint=False)
        writer.write()
        writer.close()
    lines = file.read_text().splitlines()
    assert lines[0] == '{"old": 1}'
    # keys are sorted; the order of lines follows the scalars' first appearance
    assert lines[1:4] == ['{"a": 1.5, "iteration": 3}', '{"iteration": 2, "z": 0.5}', '{"a": 5.5, "iteration": 7}']
    assert lines[4:] == ['{"iteration": 8, "x": NaN}']


def test_tensorboard_writes_nothing_before_the_first_value_and_then_takes_over_images(tmp_path: Path) -> None:
    writer = TensorboardXWriter(str(tmp_path))
    with EventStorage() as storage:
        writer.write()
        assert list(tmp_path.iterdir()) == []
        storage.put_scalar("x", 1)
        storage.put_image("picture", np.zeros((3, 4, 5), dtype=np.uint8))
        storage.put_histogram("h", torch.tensor([0.0, 1.0, 1.0, 4.0]), bins=4)
        histogram = storage._histograms[0]
        writer.write()
        assert (storage._vis_data, storage._histograms) == ([], [])
    writer.close()
    assert len(list(tmp_path.iterdir())) == 1
    assert histogram["bucket_counts"] == [1.0, 2.0, 0.0, 1.0]
    assert histogram["bucket_limits"] == [1.0, 2.0, 3.0, 4.0]
    values = (histogram["min"], histogram["max"], histogram["num"], histogram["sum"], histogram["sum_squares"])
    assert values == (0.0, 4.0, 4, 6.0, 18.0)


def _printed(printer: CommonMetricPrinter, d2_log: pytest.LogCaptureFixture) -> str:
    d2_log.clear()
    printer.write()
    return d2_log.messages[0] if d2_log.messages else ""


def test_the_printed_line_holds_losses_times_and_rate(d2_log: pytest.LogCaptureFixture) -> None:
    with EventStorage(4) as storage:
        storage.put_scalars(loss_cls=0.5, accuracy=9.0, total_loss=1.25)
        storage.put_scalar("[metric]scale", 2.0)
        storage.put_scalars(time=2.0, data_time=0.25)
        storage.put_scalar("lr", 0.01, smoothing_hint=False)
        text = _printed(CommonMetricPrinter(10), d2_log)
        assert storage.latest()["eta_seconds"] == (10.0, 4)  # 5 iterations remain, of 2 s
    assert text.startswith(
        " eta: 0:00:10  iter: 4  loss_cls: 0.5  total_loss: 1.25  [metric]scale: 2  time: 2.0000  last_time: 2.0000  "
        "data_time: 0.2500  last_data_time: 0.2500   lr: 0.01  "
    )


def test_without_a_length_there_is_no_eta_and_at_the_end_no_line(d2_log: pytest.LogCaptureFixture) -> None:
    with EventStorage(10) as storage:
        storage.put_scalars(time=1.0)
        assert _printed(CommonMetricPrinter(), d2_log).startswith(" iter: 10  ")
        assert "lr: N/A" in _printed(CommonMetricPrinter(), d2_log)
        assert _printed(CommonMetricPrinter(10), d2_log) == ""
