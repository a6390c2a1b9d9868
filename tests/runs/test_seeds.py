"""``--seeds``: a run a seed, in a folder and a process of its own."""

from __future__ import annotations

import argparse
import json

import train_net
from d2_ext.errors import ConfigError
from d2_ext.runs.seeds import read_seeds, runs_of_seeds

import pytest
import torch

from helpers.scripts import QUICKSTART
from helpers.small_runs import Runs


def _parsed(*words: str) -> argparse.Namespace:
    args = train_net.argument_parser().parse_args(["--config-file", str(QUICKSTART), *words])
    read_seeds(args)
    return args


def test_the_pairs_behind_the_seeds_are_no_seeds() -> None:
    args = _parsed("--seeds", "3", "1", "SOLVER.MAX_ITER", "5", "OUTPUT_DIR", "out")
    assert (args.seeds, args.opts) == ([3, 1], ["SOLVER.MAX_ITER", "5", "OUTPUT_DIR", "out"])
    args = _parsed("--seeds", "3", "--resume", "SOLVER.MAX_ITER", "5")
    assert (args.seeds, args.opts, args.resume) == ([3], ["SOLVER.MAX_ITER", "5"], True)
    assert _parsed("SOLVER.MAX_ITER", "5").seeds == []


def test_each_run_has_its_seed_and_folder() -> None:
    runs = runs_of_seeds(_parsed("--seeds", "3", "1", "OUTPUT_DIR", "out", "SOLVER.MAX_ITER", "5"))
    assert list(runs) == ["out/seed3", "out/seed1"]
    expected = ["SOLVER.MAX_ITER", "5", "SEED", "1", "OUTPUT_DIR", "out/seed1"]
    assert (runs["out/seed1"].opts, runs["out/seed1"].seeds) == (expected, [])
    online = runs_of_seeds(_parsed("--seeds", "3", "OUTPUT_DIR", "drones/fcos", "WANDB.ENABLED", "True"))
    assert online["drones/fcos/seed3"].opts[-2:] == ["WANDB.NAME", "fcos_seed3"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "x"], "--seeds x: expected different whole numbers"),
        (["--seeds", "1", "1"], "--seeds 1 1: expected different"),
        (["--seeds", "-1"], "--seeds -1: expected different"),
        (["--seeds", "1", "--eval-only"], "--eval-only is about one run"),
        (["--seeds", "1", "--dry-run"], "--dry-run is about one run"),
        (["--seeds", "1", "SEED", "2"], "--seeds and the key SEED"),
        (["--seeds", "1", "OUTPUT_DIR", ""], "OUTPUT_DIR is empty"),
    ],
)
def test_what_contradicts_itself_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        runs_of_seeds(_parsed(*words))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("seeds"))


def test_two_seeds_give_two_runs_and_a_table_and_resume_passes_over_finished_ones(runs: Runs) -> None:
    short = {"SOLVER__MAX_ITER": 1, "TEST__EVAL_PERIOD": 0, "TEST__BEST__SAVE": False, "DATALOADER__NUM_WORKERS": 0}
    assert runs.run("both", "--seeds", "1", "2", SEED=None, **short) == 0, runs.log("both")[-3000:]
    log = runs.log("both")
    assert "Run 1 of 2: " in log
    assert "| bbox/AP50 " in log
    assert "d2_ext report " in log
    weights = []
    for seed in (1, 2):
        record = json.loads((runs.folder / f"both/seed{seed}/run.json").read_text())
        assert [start["seed"] for start in record["starts"]] == [seed]
        weights.append(torch.load(runs.folder / f"both/seed{seed}/model_final.pth", weights_only=True)["model"])
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert runs.run("both", "--seeds", "1", "2", "--resume", SEED=None, **short) == 0, runs.log("both")[-3000:]
    assert f"{runs.folder / 'both/seed1'} is finished." in runs.log("both")


def test_a_run_that_fails_ends_the_others(runs: Runs) -> None:
    assert runs.run("wrong", "--seeds", "1", "2", SEED=None, MODEL__RETINANET__NUM_CLASSES=3) == 2
    assert "seed1 ended with exit code 2; 1 runs behind it were not started." in runs.log("wrong")
    assert not (runs.folder / "wrong/seed2").exists()
