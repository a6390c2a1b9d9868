"""Runs that are killed, starved or fed with nonsense: nothing is lost, and the message says what to do."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import shutil
import signal
from collections import Counter
from pathlib import Path

from d2_ext.synthetic import is_complete, split_folder

import pytest

from helpers.fault_figures import report
from helpers.small_runs import DRAWN, DRAWN_OPTIONS, Fault, Runs, differences

KILLS = 5  # of a part
FILES = ("model_final.pth", "model_final_ema.pth", "model_best.pth")
# Place -> how often it is passed before the kill, at most.
DRAWING = {"drawing": 8, "listing": 3}
TRAINING = {"step": 5, "checkpoint": 1, "rename": 3, "evaluation": 5, "data": 8}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs on one data set; ``whole`` is one that nothing happened to."""
    runs = Runs(tmp_path_factory.mktemp("runs"))
    assert runs.run("whole") == 0, runs.log("whole")[-3000:]
    return runs


def _differences(runs: Runs, name: str, whole: str = "whole") -> list[str]:
    return [d for f in FILES for d in differences(runs.checkpoint(whole, f), runs.checkpoint(name, f), f)]


def test_the_number_of_loader_workers_changes_no_bit(runs: Runs) -> None:
    same = []
    for workers in (0, 3):
        assert runs.run(f"workers{workers}", DATALOADER__NUM_WORKERS=workers) == 0
        same.append(_differences(runs, f"workers{workers}") == [])
    report("one seed, same weights for 0, 1 and 3 loader workers", len(same), sum(same))
    assert all(same)


def _random_faults(part: int) -> list[Fault]:
    """Every place in turn over the parts, at random moments, in random order."""
    choose, most = random.Random(20 + part), {**DRAWING, **TRAINING}
    places = list(itertools.islice(itertools.cycle(most), part * KILLS, (part + 1) * KILLS))
    choose.shuffle(places)
    return [Fault(place, choose.randint(0, most[place]), signal.SIGKILL, share=choose.random()) for place in places]


def _digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _drawn(runs: Runs, name: str) -> bool:
    """Whether both splits are there; what has a split's name must be the whole of it."""
    folders = [split_folder(DRAWN, runs.drawn(name), split) for split in ("train", "val")]
    assert all(is_complete(f, DRAWN) and len(list(f.glob("images/*"))) in (3, 6) for f in folders if f.exists()), name
    return all(folder.exists() for folder in folders)


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs that draw their images first; ``unbroken`` is one that nothing happened to."""
    runs = Runs(tmp_path_factory.mktemp("drawing"))
    assert runs.run("unbroken", **DRAWN_OPTIONS) == 0, runs.log("unbroken")[-3000:]
    return runs


@pytest.mark.long
@pytest.mark.parametrize("part", range(4))
def test_twenty_kills_at_random_moments_change_no_bit(drawing: Runs, part: int) -> None:
    """Killed while images are drawn, in training, in evaluation, and while checkpoints are written; five in a part."""
    runs, images = drawing, _digests(drawing.drawn("unbroken"))
    waiting, kills, chain, same = _random_faults(part), [], 0, []
    while waiting:
        chain += 1
        name, code = f"killed{part}_{chain}", -signal.SIGKILL
        while code != 0:
            drawn = _drawn(runs, name)
            fault = next((fault for fault in waiting if fault.place in TRAINING or not drawn), None)
            code = runs.run(name, "--resume", fault=fault, **DRAWN_OPTIONS)
            assert code in (0, -signal.SIGKILL), runs.log(name)[-3000:]
            if code:  # else the run ended before the moment came; the fault happens to the next one
                waiting.remove(fault)
                kills.append(fault)
        same.append(_differences(runs, name, "unbroken") == [] and _digests(runs.drawn(name)) == images)
    places = Counter(fault.place for fault in kills)
    report(
        "kill -9 at random moments, then --resume: same images, same weights, bit for bit",
        len(kills),
        len(kills) * all(same),
        runs=chain,
        killed=dict(sorted(places.items())),
    )
    assert len(kills) == KILLS
    assert all(same), (same, kills)


@pytest.mark.parametrize(
    ("number", "place", "count"), [(signal.SIGTERM, "step", 4), (signal.SIGINT, "evaluation", 5)], ids=["TERM", "INT"]
)
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(
    runs: Runs, number: signal.Signals, place: str, count: int
) -> None:
    name = f"signal{int(number)}"
    assert runs.run(name, fault=Fault(place, count, number)) == 128 + number, runs.log(name)[-3000:]
    checkpoint = runs.folder / name / "model_0000004.pth"
    last = runs.log(name).splitlines()[-1]
    assert last.startswith(f"Stopped in iteration 4. The last good checkpoint is {checkpoint}. Go on with: ")
    assert "train_net.py --resume --config-file" in last
    assert runs.run(name, "--resume") == 0
    same = _differences(runs, name) == []
    report(f"{number.name}: checkpoint, message, exit code {128 + number}, no process left, same weights", 1, same)
    assert same


def test_damaged_checkpoints_are_named_and_the_one_before_is_used(runs: Runs) -> None:
    assert runs.run("damaged", SOLVER__MAX_ITER=12, fault=Fault("step", 10)) == -signal.SIGKILL
    folder = runs.folder / "damaged"
    newest, before = folder / "model_0000008.pth", folder / "model_0000005.pth"
    newest.write_bytes(newest.read_bytes()[:-1000])
    content = bytearray(before.read_bytes())
    content[len(content) // 2] ^= 1
    before.write_bytes(content)
    assert runs.run("damaged", "--resume") == 0
    log = runs.log("damaged")
    assert re.search(rf"Checkpoint {newest} was not loaded: .* It is skipped", log)
    assert re.search(rf"Checkpoint {before} was not loaded: .* does not match its checksum.* It is skipped", log)
    assert "Starting training from iteration 3" in log
    same = _differences(runs, "damaged") == []
    report("truncated and altered checkpoints: named, skipped, the one before used", 2, 2 * same)
    assert same


def test_a_run_that_died_between_its_last_checkpoint_and_model_final_writes_it_when_resumed(runs: Runs) -> None:
    folder = runs.folder / "unfinished"
    shutil.copytree(runs.folder / "whole", folder)
    for name in (*FILES[:2], "MODEL_CARD.md"):
        (folder / name).unlink()
    (folder / "last_checkpoint").write_text("model_0000011.pth")
    assert runs.run("unfinished", "--resume") == 0, runs.log("unfinished")[-3000:]
    assert _differences(runs, "unfinished") == []
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    cards = [(runs.folder / name / "MODEL_CARD.md").read_text() for name in ("whole", "unfinished")]
    assert cards[0] == cards[1]


def test_a_full_disk_is_a_clear_error_and_costs_no_checkpoint(runs: Runs) -> None:
    folder = runs.folder / "full"
    assert runs.run("full", fault=Fault("checkpoint", 3, "full")) == 1
    log = runs.log("full")
    good, failed = folder / "model_0000002.pth", folder / "model_0000005.pth"
    error = f"error: {failed} could not be written: No space left on device. The last good checkpoint is {good}."
    assert error in log
    assert not failed.exists()
    assert runs.run("full", "--resume") == 0
    same = _differences(runs, "full") == []
    report("disk full while a checkpoint is written: clear error, last checkpoint intact", 1, same)
    assert same


def test_a_dead_loader_worker_is_named(runs: Runs) -> None:
    assert runs.run("worker", fault=Fault("worker", 6)) == 1
    error = next(line for line in runs.log("worker").splitlines() if line.startswith("error: "))
    named = (
        re.search(r"A process that loads data died: (DataLoader worker \(pid.* \d+\)|the connection).*Killed", error)
        is not None
    )
    report("a loader worker that dies is named, no hang", 1, named)
    assert named, error


def test_a_loss_that_is_not_a_number_stops_the_run_with_its_images(runs: Runs) -> None:
    assert runs.run("nan", fault=Fault("loss", 7, "nan")) == 1
    error = runs.log("nan")[runs.log("nan").rindex("error: ") :]
    assert "The loss of iteration 7 is not finite" in error
    assert "loss_cls nan" in error
    assert len(re.findall(r"images/\d+\.png", error)) == 2
    assert f"The last good checkpoint is {runs.folder / 'nan/model_0000005.pth'}." in error
    assert runs.run("nan", "--resume") == 0
    same = _differences(runs, "nan") == []
    report("NaN loss: stops with iteration, terms, images, last good checkpoint", 1, same)
    assert same


def test_steps_with_such_a_loss_can_be_skipped(runs: Runs) -> None:
    assert runs.run("skip", SOLVER__NONFINITE_LOSS="skip", fault=Fault("loss", 11, "nan")) == 0
    assert "The step is skipped" in runs.log("skip")
    skipped, whole = runs.checkpoint("skip"), runs.checkpoint("whole")
    before = runs.checkpoint("whole", "model_0000008.pth")
    assert differences(skipped["model"], before["model"]) != []  # iterations 9 and 10 counted
    assert differences(skipped["model"], whole["model"]) != []  # iteration 11 did not
    report("NaN loss: the step is skipped by option", 1, 1)


def test_the_run_folder_says_how_to_repeat_the_run(runs: Runs) -> None:
    starts = json.loads((runs.folder / "whole/run.json").read_text())["starts"]
    assert len(starts) == 1
    assert starts[0]["seed"] == 7
    assert starts[0]["command"][1:3] == ["train_net.py", "--config-file"]
    assert starts[0]["environment"]["torch"]
    assert "commit" in starts[0]
    assert "SEED: 7" in (Path(runs.folder) / "whole/config.yaml").read_text()
    report("a run folder holds the full config, environment, commit, seed and command", 1, 1)
