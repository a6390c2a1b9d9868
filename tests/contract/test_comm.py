"""Communication without and with a process group, on either implementation of Detectron2.

Run as a script, the file starts two processes: a function of a test module cannot be imported by a new process where
another package is called ``tests``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from d2_ext.engine.parallel import leave_process_group

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm

from helpers.forked import run_script


def test_one_process_is_rank_zero_of_one() -> None:
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()) == (1, 0, 0, 1)
    assert comm.is_main_process()
    comm.synchronize()
    data = {"x": [1]}
    assert comm.all_gather(data)[0] is data
    assert comm.gather(data) == [data]
    losses = {"a": torch.tensor(2.0)}
    assert comm.reduce_dict(losses) is losses
    assert 0 <= comm.shared_random_seed() < 2**31


def _worker(folder: str) -> None:
    """Run by both processes: writes what it sees to ``<rank>.json``."""
    rank = comm.get_rank()
    own = torch.tensor(float(rank + 1))
    mean = comm.reduce_dict({"b": own * 10, "a": own})
    total = comm.reduce_dict({"a": own.clone()}, average=False)
    seen = {
        "places": [comm.get_world_size(), comm.get_local_rank(), comm.get_local_size(), comm.is_main_process()],
        "backend": dist.get_backend(),
        "all": comm.all_gather({"rank": rank}),
        "gather": comm.gather(rank),
        "gather_on_1": comm.gather(rank, dst=1),
        "seed": comm.shared_random_seed(),
        "group": dist.get_world_size(comm.get_local_process_group()),
        "mean": {name: value.item() for name, value in mean.items()},
        "sum": total["a"].item(),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))
    leave_process_group()  # Detectron2's own launch does not


def test_two_processes_exchange_data(tmp_path: Path) -> None:
    done = run_script(__file__, tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["places"] == [2, 0, 2, True]
    assert second["places"] == [2, 1, 2, False]
    assert first["all"] == second["all"] == [{"rank": 0}, {"rank": 1}]
    assert (first["gather"], second["gather"]) == ([0, 1], [])
    assert (first["gather_on_1"], second["gather_on_1"]) == ([], [0, 1])
    assert first["seed"] == second["seed"]
    assert first["group"] == 2
    assert first["mean"] == {"a": 1.5, "b": 15.0}
    assert first["sum"] == 3.0


def test_launch_of_one_process_is_a_plain_call() -> None:
    calls: list[tuple] = []
    launch(lambda *args: calls.append(args), 1, args=(1, "x"))
    assert calls == [(1, "x")]


if __name__ == "__main__":
    launch(_worker, 2, dist_url="auto", args=(sys.argv[1],))
