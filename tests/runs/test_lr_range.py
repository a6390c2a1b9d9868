"""``lr-find``: the rates that are tried, the proposal, and that nothing of it stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2_ext.cli import lr_find
from d2_ext.config.load import load_config
from d2_ext.engine.step import StepTrainer
from d2_ext.errors import ConfigError
from d2_ext.runs.lr_range import RangeTest, try_rates

import pytest

from helpers.scripts import QUICKSTART
from helpers.small_runs import OPTIONS, fresh_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return fresh_data(tmp_path / "data")


def _options(**more: Any) -> list[str]:
    given = {**OPTIONS, "DATALOADER.NUM_WORKERS": 0, **{k.replace("__", "."): v for k, v in more.items()}}
    return [str(word) for pair in given.items() for word in pair]


def test_the_proposal_is_a_tenth_of_the_rate_of_the_lowest_mean_loss() -> None:
    rates = tuple(1e-4 * 10 ** (i / 10) for i in range(41))
    falls_then_rises = tuple(5 - i * 0.1 if i <= 20 else 3.0 + (i - 20) for i in range(41))
    found = RangeTest(rates, falls_then_rises, 41)
    # The running mean is late: it still falls for a few steps after the losses rise.
    assert 20 <= found.lowest <= 23
    assert found.proposal == pytest.approx(rates[found.lowest] / 10)
    assert RangeTest(rates, tuple(float(i) for i in range(41)), 41).proposal is None
    assert RangeTest(rates, tuple(float(-i) for i in range(41)), 41).proposal is None


def test_rates_rise_by_a_factor_and_biases_keep_theirs(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[float]] = []
    original = StepTrainer._change_weights

    def recorded(self: StepTrainer) -> None:
        seen.append({group["lr"] for group in self.optimizer.param_groups})
        original(self)

    monkeypatch.setattr(StepTrainer, "_change_weights", recorded)
    cfg = load_config(QUICKSTART, _options(SOLVER__BIAS_LR_FACTOR=2.0, SOLVER__OPTIMIZER="SGD"))
    found = try_rates(cfg, lowest=1e-6, highest=1e-3, steps=4)
    assert found.rates == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3])
    assert [sorted(rates) for rates in seen] == [pytest.approx([rate, 2 * rate]) for rate in found.rates]
    assert try_rates(cfg, lowest=1e-6, highest=1e-3, steps=4).losses == found.losses  # from the same start


def test_losses_that_are_not_finite_end_it(data: Path) -> None:
    options = _options(SOLVER__OPTIMIZER="SGD", SOLVER__CLIP_GRADIENTS__ENABLED=False)
    cfg = load_config(QUICKSTART, options)
    found = try_rates(cfg, lowest=1.0, highest=1e12, steps=12)
    assert len(found.losses) < 12
    assert found.planned == 12
    with pytest.raises(ConfigError, match="expected rising rates above 0"):
        try_rates(cfg, lowest=0.1, highest=0.1, steps=10)


def test_the_command_writes_an_image_and_nothing_else(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, run = data.parent / "lr.png", data.parent / "run"
    argv = ["--config-file", str(QUICKSTART), "--iterations", "10", "--output", str(image)]
    options = ["--opts", *_options(OUTPUT_DIR=run)]
    assert lr_find.main([*argv, *options]) == 0
    text = capsys.readouterr().out
    assert "10 steps of 2 images with AdamW, rates 1e-05 to 1:" in text or "steps of 2 images with AdamW" in text
    assert "roposed" in text or "No proposal" in text
    assert sorted(path.name for path in data.parent.iterdir()) == ["data", "lr.png"]
    assert lr_find.main([*argv, *options]) == 2
    assert "is there already" in capsys.readouterr().err
    assert lr_find.main([*argv[:-1], "lr.txt", *options]) == 2
