"""Several processes over gloo: the numbers of one process, and an end in good order when one of them fails."""

from __future__ import annotations

import json
import os
import signal
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from d2_ext.errors import ConfigError
from d2_ext.runs.launching import read_torchrun

import pytest
import torch

from helpers.fault_figures import report
from helpers.small_runs import Fault, Runs, differences, free_port

TOLERANCE = 1e-5  # of weights, losses and metrics: sums are taken in another order
# Without batch norm, whose statistics each process takes from its own images; FCOS divides its losses by an average
# over all processes. Images without boxes fall to either process.
FCOS: dict[str, Any] = {
    "MODEL__META_ARCHITECTURE": "FCOS",
    "MODEL__RESNETS__NORM": "GN",
    "MODEL__FCOS__NUM_CLASSES": 2,
    "MODEL__FCOS__IN_FEATURES": "['p2','p3','p4','p5','p6']",
    "SOLVER__IMS_PER_BATCH": 4,
    "MODEL__FCOS__SCORE_THRESH_TEST": 0.0,
    "SOLVER__OPTIMIZER": "SGD",
    "SOLVER__BASE_LR": 0.02,
    "SOLVER__WARMUP_ITERS": 0,
    "SOLVER__MAX_ITER": 6,
    "SOLVER__EMA__ENABLED": False,
    "TEST__BEST__SAVE": False,
    "TEST__EVAL_PERIOD": 0,
    "TEST__VAL_LOSS": True,
    "DATALOADER__ASPECT_RATIO_GROUPING": False,
}
TWO = ("--num-gpus", "2", "--dist-url", "auto")

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs, launch starts one process for each")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """``one`` and ``two`` are the same run in one process and in two."""
    runs = Runs(tmp_path_factory.mktemp("processes"))
    assert runs.run("one", **FCOS) == 0, runs.log("one")[-3000:]
    assert runs.run("two", *TWO, **FCOS) == 0, runs.log("two")[-3000:]
    return runs


def _metrics(folder: Path) -> dict[str, float]:
    merged: dict[str, float] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        merged |= json.loads(line)
    return {key: value for key, value in merged.items() if "loss" in key or "bbox/" in key}


def test_two_processes_train_like_one_with_the_joined_batch(runs: Runs) -> None:
    one, two = runs.checkpoint("one")["model"], runs.checkpoint("two")["model"]
    largest = max((one[name] - two[name]).abs().max().item() for name in one if one[name].is_floating_point())
    report("two gloo processes: weights of one with the joined batch", 1, largest < TOLERANCE, difference=largest)
    assert largest < TOLERANCE


def test_losses_and_metrics_of_uneven_shards_are_those_of_one_process(runs: Runs) -> None:
    one, two = _metrics(runs.folder / "one"), _metrics(runs.folder / "two")
    # 7 images: shards of 4 and 3
    assert {"loss_cls", "bbox/AP50", "val_loss/total", "val_loss/loss_cls"} <= one.keys() == two.keys()
    same = [two[key] == pytest.approx(one[key], rel=1e-4, abs=TOLERANCE, nan_ok=True) for key in one]
    report("two gloo processes, uneven shards: losses and metrics of one process", len(same), sum(same))
    assert all(same), (one, two)


def test_a_process_without_an_image_waits_for_the_others(tmp_path: Path) -> None:
    runs = Runs(tmp_path, images=2)
    options = {**FCOS, "DATASETS__TEST": "('first_image',)", "SOLVER__MAX_ITER": 1}
    assert runs.run("two", *TWO, **options) == 0, runs.log("two")[-3000:]
    report("evaluation of one image in two processes: the idle one ends too", 1, 1)


def test_a_killed_process_ends_the_others_within_a_minute(runs: Runs) -> None:
    start = time.monotonic()
    assert runs.run("killed", *TWO, fault=Fault("step", 3, signal.SIGKILL, rank=1), **FCOS) == 1
    seconds = time.monotonic() - start
    error = runs.log("killed")
    assert "was killed by SIGKILL; the others were ended. Continue with --resume." in error
    report("two gloo processes, one killed: the other ends with an error", 1, 1, seconds=round(seconds, 1))


def test_sigterm_to_the_launcher_stops_all_processes_with_one_checkpoint(runs: Runs) -> None:
    process = runs.start("stopped", *TWO, fault=Fault("step", 3, signal.SIGTERM, rank=1), **FCOS)
    assert runs.wait(process) == 128 + signal.SIGTERM, runs.log("stopped")[-3000:]
    assert "Stopped in iteration 3." in runs.log("stopped")
    assert runs.run("stopped", "--resume", *TWO, **FCOS) == 0
    same = differences(runs.checkpoint("two"), runs.checkpoint("stopped")) == []
    report("SIGTERM to two processes, then --resume: same weights, no process left", 1, same)
    assert same


def test_torchrun_starts_the_processes_of_one_run(runs: Runs) -> None:
    # What torchrun does: the same command line twice, with the place of each process in its environment.
    shared = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in ("0", "1"):
        environment = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        processes.append(runs.start("torchrun", environment=environment, **FCOS))
    codes = [runs.wait(process) for process in processes]
    assert codes == [0, 0], runs.log("torchrun")[-3000:]
    assert "Process 0 of 2" in runs.log("torchrun")
    same = differences(runs.checkpoint("two")["model"], runs.checkpoint("torchrun")["model"]) == []
    report("torchrun with two processes: weights of one launcher with two processes", 1, same)
    assert same


def test_torchrun_and_flags_for_processes_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ConfigError, match="torchrun has started 2 processes, and --num-gpus 2"):
        read_torchrun(Namespace(num_gpus=2, num_machines=1, machine_rank=0))
    args = Namespace(num_gpus=1, num_machines=1, machine_rank=0)
    read_torchrun(args)
    assert (args.num_machines, args.machine_rank) == (2, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    single = Namespace(num_gpus=2, num_machines=1, machine_rank=0)
    read_torchrun(single)
    assert vars(single) == {"num_gpus": 2, "num_machines": 1, "machine_rank": 0}


def test_two_launchers_of_one_process_each_make_one_run(runs: Runs) -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    machines = [
        runs.start("nodes", "--num-machines", "2", "--machine-rank", str(rank), "--dist-url", url, **FCOS)
        for rank in (0, 1)
    ]
    codes = [runs.wait(machine) for machine in machines]
    assert codes == [0, 0], runs.log("nodes")[-3000:]
    same = differences(runs.checkpoint("two")["model"], runs.checkpoint("nodes")["model"]) == []
    report("two launchers with the multi-node flags: weights of one launcher with two processes", 1, same)
    assert same
    assert os.path.isfile(runs.folder / "nodes/log.txt.rank1")
