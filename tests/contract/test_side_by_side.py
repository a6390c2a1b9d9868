"""The stand-in against the real Detectron2: same seed, same config, same numbers.

Needs a real Detectron2: installed, or its folder in the variable ``D2_EXT_STOCK_PATH``.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from d2_ext._detectron2 import ENV_VAR, STANDIN_DIR

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("side_by_side.py")

pytestmark = pytest.mark.stock


def _stock_path() -> str:
    """Folder that holds the real package ``detectron2``."""
    folder = os.environ.get("D2_EXT_STOCK_PATH")
    if folder:
        return folder
    elsewhere = [entry for entry in sys.path if entry != str(STANDIN_DIR)]
    spec = importlib.machinery.PathFinder.find_spec("detectron2", elsewhere)
    if spec is None or spec.origin is None:
        pytest.skip("no Detectron2 is installed, and D2_EXT_STOCK_PATH does not name one")
    return str(Path(spec.origin).parents[1])


def _make_data(folder: Path) -> None:
    """Eight images of 64 to 90 px with one or two bright rectangles of two classes; one has none."""
    rng = np.random.default_rng(0)
    images: list[dict] = []
    annotations: list[dict] = []
    for number in range(8):
        height, width = (64, 90) if number % 3 else (80, 64)
        pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        for _ in range(min(number, 2)):
            w, h = (int(value) for value in rng.integers(20, 40, 2))
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            label = int(rng.integers(0, 2))
            pixels[y : y + h, x : x + w] = (200, 80, 40) if label else (40, 220, 160)
            box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "category_id": [3, 8][label]}
            annotations.append({"id": len(annotations) + 1, "image_id": number, **box})
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
    categories = [{"id": 3, "name": "green"}, {"id": 8, "name": "orange"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))


def _run(kind: str, path: list[str], *args: str) -> dict[str, Any]:
    env = {**os.environ, ENV_VAR: kind, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    env["PYTORCH_JIT"] = "0"  # compiled, Detectron2's focal loss rounds its gradients otherwise from the second step on
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *args]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(Path(args[1], "seen.json").read_text())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the script saw with the real Detectron2 and with the stand-in, which loads the real one's checkpoint."""
    stock_path = _stock_path()
    folder = tmp_path_factory.mktemp("side_by_side")
    _make_data(folder)
    stock = _run("stock", [stock_path, str(ROOT)], str(folder), str(folder / "stock"))
    checkpoint = str(folder / "stock" / "model_final.pth")
    standin = _run("standin", [str(ROOT)], str(folder), str(folder / "standin"), checkpoint)
    return stock, standin


Both = tuple[dict[str, Any], dict[str, Any]]


@pytest.mark.parametrize("what", ["config", "initial_weights", "batches", "checkpoint", "files"])
def test_the_same_config_and_seed_give_the_same(both: Both, what: str) -> None:
    assert [seen["implementation"] for seen in both] == ["stock", "standin"]
    stock, standin = (json.dumps(seen[what]) for seen in both)  # keys in the same order, too
    assert stock == standin
    assert len(both[0]["batches"]) == 8


def test_twenty_steps_have_the_same_losses(both: Both) -> None:
    """All bits agree; a single rounding that differs would grow about fivefold a step, to 1e-3 in fifteen steps."""
    stock, standin = both
    for name, history in stock["scalars"].items():
        values, iterations = zip(*history)
        assert iterations == tuple(range(20)), name
        assert [value for value, _ in standin["scalars"][name]] == pytest.approx(values, rel=1e-6), name
    assert len({value for value, _ in stock["scalars"]["total_loss"]}) == 20


@pytest.mark.parametrize("weights", ["trained", "filled"])
def test_the_same_weights_give_the_same_detections_and_ap(both: Both, weights: str) -> None:
    stock, standin = (seen[weights] for seen in both)
    assert stock["AP"] == pytest.approx(standin["AP"], abs=1e-3, nan_ok=True)
    assert len(stock["detections"]) == len(standin["detections"])
    for ours, theirs in zip(standin["detections"], stock["detections"]):
        assert (ours["image_id"], ours["category_id"]) == (theirs["image_id"], theirs["category_id"])
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1e-2)
    assert len(stock["detections"]) > 50
    assert weights == "trained" or stock["AP"]["AP"] > 0
