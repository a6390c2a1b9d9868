"""Names of devices on the command line."""

from __future__ import annotations

from d2_ext.errors import ConfigError
from d2_ext.utils.devices import choose_device

import pytest


@pytest.mark.parametrize(("usable", "chosen"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_a_gpu_if_there_is_one(usable: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: usable)
    assert choose_device("auto") == chosen
    assert choose_device("cpu") == "cpu"


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert choose_device("cuda:0") == "cuda:0"
    with pytest.raises(ConfigError, match="torch sees 1 GPUs"):
        choose_device("cuda:1")
    with pytest.raises(ConfigError, match="'mps': torch cannot use Apple's GPU here"):
        choose_device("mps")
    with pytest.raises(ConfigError, match="'gpu' is not known"):
        choose_device("gpu")
