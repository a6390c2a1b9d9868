"""The examples in C++ and for browsers detect what the script in Python does, in the same file and image.

They run where onnxruntime is: ``ONNXRUNTIME_ROOT`` names its folder with ``include`` and ``lib``, and
``ONNXRUNTIME_WEB`` the folder ``dist`` of the npm package onnxruntime-web.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from helpers.browser import console_problems, open_browser
from helpers.scripts import ROOT, load_script

if TYPE_CHECKING:
    from helpers.exported_files import ExportedFiles

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
NAMES = ["car", "van", 'a "big" thing']


@pytest.fixture(scope="module")
def detector(exported: ExportedFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny FCOS with names of its three classes."""
    model = onnx.load(exported.path("fcos"))
    next(entry for entry in model.metadata_props if entry.key == "class_names").value = json.dumps(NAMES)
    path = tmp_path_factory.mktemp("elsewhere") / "detector.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def image(detector: Path) -> np.ndarray:
    """Noise, BGR."""
    return np.random.default_rng(0).integers(0, 256, (90, 124, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(detector: Path, image: np.ndarray) -> list[tuple[str, list[float]]]:
    """Names, and score and box, as the script in Python finds them."""
    found = load_script("projects/deploy/onnx_predict.py").Detector(str(detector))(image)
    rows = [(NAMES[number], [float(score), *map(float, box)]) for box, score, number in zip(*found)]
    assert len({name for name, _ in rows}) == 3, "every class is there"
    return rows


def _assert_equal(found: list[tuple[str, list[float]]], expected: list[tuple[str, list[float]]], digits: float) -> None:
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert np.allclose([row for _, row in found], [row for _, row in expected], atol=digits)


def test_the_example_in_cpp_detects_the_same(
    detector: Path, image: np.ndarray, expected: list[tuple[str, list[float]]], tmp_path: Path
) -> None:
    compiler, folder = shutil.which("g++"), os.environ.get("ONNXRUNTIME_ROOT")
    if compiler is None or folder is None:
        pytest.skip("needs g++, and ONNXRUNTIME_ROOT: the folder of onnxruntime's headers and library")
    program = tmp_path / "onnx_detect"
    source = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", str(ROOT / "projects/deploy/onnx_detect.cpp")]
    places = [f"-isystem{folder}/include", f"-L{folder}/lib", "-lonnxruntime", f"-Wl,-rpath,{folder}/lib"]
    subprocess.run([*source, *places, "-o", str(program)], check=True)

    cv2.imwrite(str(tmp_path / "image.ppm"), image)
    run = functools.partial(subprocess.run, capture_output=True, text=True, cwd=tmp_path, check=False)
    done = run([program, detector, "image.ppm", "0"])
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    _assert_equal([(name, list(map(float, row))) for name, *row in rows], expected, 0.06)

    (tmp_path / "cut.ppm").write_bytes((tmp_path / "image.ppm").read_bytes()[:-1])
    (tmp_path / "text.onnx").write_text("no model")
    for arguments, code, said in (
        ([], 2, "usage: onnx_detect"),
        ([detector, "cut.ppm"], 1, "cut.ppm is cut off"),
        ([detector, detector], 1, "is no binary PPM"),
        (["text.onnx", "image.ppm"], 1, "onnx_detect: "),
    ):
        done = run([program, *arguments])
        assert done.returncode == code
        assert said in done.stderr


def test_the_page_detects_the_same_in_a_browser(
    detector: Path, image: np.ndarray, expected: list[tuple[str, list[float]]], tmp_path: Path
) -> None:
    runtime = os.environ.get("ONNXRUNTIME_WEB")
    if runtime is None:
        pytest.skip("needs ONNXRUNTIME_WEB: the folder dist of the npm package onnxruntime-web")
    by = pytest.importorskip("selenium.webdriver.common.by").By
    wait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
    site = tmp_path / "site"
    shutil.copytree(ROOT / "projects/deploy/web", site)
    (site / "ort").symlink_to(runtime)
    cv2.imwrite(str(tmp_path / "image.png"), image)
    (tmp_path / "text.onnx").write_text("no model")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with open_browser(tmp_path / "profile") as browser:
            browser.get(f"http://127.0.0.1:{server.server_port}/index.html")

            def choose(field: str, value: Path, said: str) -> None:
                browser.find_element(by.ID, field).send_keys(str(value))
                wait(browser, 280).until(lambda b: said in b.find_element(by.ID, "status").text)

            choose("model", tmp_path / "text.onnx", "Error: this is no ONNX file")
            choose("model", detector, 'Detects car, van, a "big" thing.')
            browser.execute_script("document.getElementById('score').value = 0")
            choose("image", tmp_path / "image.png", f"{len(expected)} objects in")
            rows = json.loads(browser.execute_script("return document.documentElement.dataset.detections"))
            assert console_problems(browser) == []
    finally:
        server.shutdown()
        server.server_close()
    _assert_equal([(row["name"], [row["score"], *row["box"]]) for row in rows], expected, 0.05)
