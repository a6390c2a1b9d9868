"""The choice of the kernel: the fastest that gives the right numbers, measured once."""

from __future__ import annotations

from collections.abc import Callable

from d2_ext.errors import ConfigError
from d2_ext.layers.sparse import kernels as sparse_kernels

import pytest
import torch
from torch import Tensor

KEY = ("device", "shape")


def kernels(log: list[str]) -> dict[str, Callable[[], Tensor]]:
    """Kernels by what is wrong with them; each call is noted."""

    def make(name: str, values: list[float]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            log.append(name)
            if name == "broken":
                raise RuntimeError("no compiler")
            return torch.tensor(values)

        return run

    return {
        name: make(name, [1.0, 1000.0 if name != "wrong" else 990.0])
        for name in ("torch", "fast", "slow", "wrong", "broken")
    }


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds by kernel; no device is measured."""
    table = {"torch": 2.0, "fast": 1.0, "slow": 3.0, "wrong": 0.1, "broken": 0.1}
    monkeypatch.setattr(sparse_kernels, "_chosen", {})
    monkeypatch.setattr(sparse_kernels, "_seconds", lambda kernel: table[kernel.__closure__[1].cell_contents])
    return table


def run(log: list[str]) -> Tensor:
    others = kernels(log)
    return sparse_kernels.run_fastest(KEY, others.pop("torch"), others, torch.float32)


def test_the_fastest_right_kernel_is_taken_and_measured_once(
    seconds: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    log: list[str] = []
    assert run(log).tolist() == [1, 1000]
    assert log[-1] == "fast"
    assert "wrong is off by 1.0e-02" in caplog.text
    assert "broken does not work on this device (no compiler)" in caplog.text
    log.clear()
    run(log)
    assert log == ["fast"]


def test_pytorch_stays_where_nothing_is_faster(seconds: dict[str, float]) -> None:
    seconds["torch"] = 0.5
    log: list[str] = []
    run(log)
    assert log[-1] == "torch"


def test_the_variable_changes_the_rule(seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    seconds["torch"] = 0.5
    log: list[str] = []
    monkeypatch.setenv(sparse_kernels.VARIABLE, "triton")
    run(log)
    assert log[-1] == "fast"
    monkeypatch.setenv(sparse_kernels.VARIABLE, "torch")
    log.clear()
    run(log)
    assert log == ["torch"]
    monkeypatch.setenv(sparse_kernels.VARIABLE, "cuda")
    with pytest.raises(ConfigError, match="D2_EXT_SPARSE_KERNEL is 'cuda'. Expected one of auto, torch, triton"):
        run(log)


def test_without_triton_there_is_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_kernels, "has_triton", lambda: False)
    assert sparse_kernels.triton_kernels(torch.ones(3, 1), torch.zeros(1, 9).long(), torch.ones(1, 9), None, None) == {}
    assert sparse_kernels.run_fastest(KEY, lambda: torch.ones(1), {}, torch.float32).item() == 1
