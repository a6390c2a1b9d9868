from __future__ import annotations

from d2_ext.utils.memory import PeakMemory

import torch


def test_peak_counts_what_is_alive_at_one_time() -> None:
    with PeakMemory() as memory:
        x = torch.zeros(250)  # 1000 bytes
        y = x + 1
        del x
        y = y * 2  # 2000 bytes alive
    assert memory.peak == 2000
    del y


def test_views_and_in_place_results_are_not_counted_again() -> None:
    given = torch.zeros(250)
    with PeakMemory() as memory:
        given.add_(1)
        given.view(5, 50).t()
    assert memory.peak == 0
    with PeakMemory() as memory:
        made = torch.zeros(250)
        made.view(5, 50).add_(1)
    assert memory.peak == 1000


def test_tensors_kept_for_the_backward_pass_are_alive() -> None:
    x = torch.rand(250, requires_grad=True)
    with PeakMemory() as memory:
        x.exp().exp().exp().sum().backward()
    assert memory.peak >= 3 * 1000
