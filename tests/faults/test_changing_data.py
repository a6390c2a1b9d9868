"""Data that change under a run: what was checked at the start is no longer so when it is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from d2_ext.cli import predict as prediction

import numpy as np
import pytest
from PIL import Image

from helpers.inference_detectors import CEASC, noise, small_cfg, write_weights
from helpers.small_runs import Fault, Runs, differences

SHORT = {"SOLVER__MAX_ITER": 5, "TEST__EVAL_PERIOD": 4, "DATALOADER__NUM_WORKERS": 0, "TEST__BEST__SAVE": False}


def delete(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_categories(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "categories": []}))


def replace_by_text(path: Path) -> None:
    path.write_text("no image any more")


def replace_by_another_size(path: Path) -> None:
    Image.fromarray(np.zeros((50, 40, 3), np.uint8)).save(path)


def lock(path: Path) -> None:
    """As after a change of owner; the tests may run as root, for whom modes mean nothing."""
    path.unlink()
    path.mkdir()


def move_away(path: Path) -> None:
    path.rename(f"{path}_gone")


# What changes, how, when; what the error says.
CHANGES: dict[str, tuple[str, Callable[[Path], object], str, int, tuple[str, ...]]] = {
    "an image is deleted": ("images/1.png", delete, "start", 0, ("No image", "images/1.png")),
    "an image is cut off": ("images/1.png", cut, "start", 0, ("images/1.png", "cannot be read")),
    "an image becomes a text": ("images/1.png", replace_by_text, "start", 0, ("images/1.png", "cannot be read")),
    "an image has another size": ("images/1.png", replace_by_another_size, "start", 0, ("images/1.png", "40 x 50 px")),
    "an image becomes a folder": ("images/1.png", lock, "start", 0, ("images/1.png", "is a folder")),
    "the images go away in the middle": ("images", move_away, "step", 1, ("No image", "data/images/")),
    "the annotations are deleted": ("all.json", delete, "start", 0, ("all.json",)),
    "the annotations are cut off": ("all.json", halve, "start", 0, ("all.json", "is not valid json")),
    "the annotations lose the classes": ("all.json", drop_categories, "start", 0, ("all.json", "'categories'")),
    "the annotations are cut off before the evaluation": ("all.json", halve, "step", 3, ("all.json", "is not valid")),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("runs"))
    shutil.copytree(runs.data, runs.folder / "kept")
    assert runs.run("whole", **SHORT) == 0, runs.log("whole")[-3000:]
    return runs


@pytest.mark.parametrize("what", CHANGES)
def test_data_that_change_are_named_and_when_they_are_back_the_run_goes_on(runs: Runs, what: str) -> None:
    name, change, place, count, said = CHANGES[what]
    run = what.replace(" ", "_")
    try:
        code = runs.run(run, fault=Fault(place, count, partial(change, runs.data / name)), **SHORT)
    finally:
        for path in (runs.data, Path(f"{runs.data}_gone")):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(runs.folder / "kept", runs.data)
    log = runs.log(run)
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (1, 1), log[-3000:]
    assert "Traceback" not in log, log[-3000:]
    assert all(part in errors[0] for part in said), errors
    if place == "step" or change is cut:
        assert runs.run(run, "--resume", **SHORT) == 0, runs.log(run)[-3000:]
        assert differences(runs.checkpoint("whole"), runs.checkpoint(run)) == []


def test_images_that_go_while_others_are_predicted_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_weights(small_cfg(CEASC, "DATASETS.TRAIN", "('synthetic_drone_train',)"), tmp_path / "run")
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.fromarray(noise(48, 64, number)).save(tmp_path / f"images/{number}.png")
    find_sources = prediction.find_sources

    def then_one_goes(inputs: list[str]) -> object:
        found = find_sources(inputs)
        (tmp_path / "images/1.png").unlink()
        return found

    monkeypatch.setattr(prediction, "find_sources", then_one_goes)
    out = tmp_path / "out"
    weights = ["--weights", str(tmp_path / "run/model_final.pth"), "--device", "cpu"]
    assert prediction.main([str(tmp_path / "images"), *weights, "--output", str(out)]) == 0
    assert sorted(path.name for path in out.glob("[!.]*")) == ["0.png", "2.png", "unreadable.txt"]
    assert "No image" in (out / "unreadable.txt").read_text()
