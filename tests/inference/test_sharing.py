"""One predictor for several threads, for a web server, and for a process that is forked."""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import sys
import threading
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from d2_ext.errors import ConfigError
from d2_ext.inference import BatchPredictor

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances

from helpers.forked import FORKSERVER
from helpers.inference_detectors import CEASC, noise, small_cfg, write_weights

THREADS = 3
IMAGES = [noise(64 + 8 * (n % 3), 96, n) for n in range(4)]
SPARSE = "defcn_sparse_R18_synthetic"


def _numbers(found: Instances) -> dict[str, list]:
    """Of one image, from the highest score down."""
    return {"scores": found.scores.tolist(), "boxes": found.pred_boxes.tensor.tolist()}


def _assert_same(found: dict[str, list], expected: dict[str, list]) -> None:
    assert len(expected["scores"]) > 3
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=0, atol=1e-3, err_msg=key)


def _in_threads(call: Callable[[list[np.ndarray]], Any]) -> list[Any]:
    """What each of several threads gets that call at the same moment."""
    together = threading.Barrier(THREADS)

    def one(_: int) -> Any:
        together.wait()
        return call(IMAGES)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, range(THREADS)))


@pytest.mark.parametrize("tiled", [(), ("TEST.TILE.SIZE", 64)], ids=["whole", "tiled"])
@pytest.mark.parametrize("recipe", ["fcos_R18_synthetic", SPARSE, CEASC])
def test_threads_that_share_a_predictor_get_the_results_of_one(recipe: str, tiled: tuple, tmp_path: Path) -> None:
    predictor = BatchPredictor(write_weights(small_cfg(recipe, *tiled), tmp_path), batch_size=2)
    alone = [_numbers(found) for found in predictor(IMAGES)]
    for results in _in_threads(predictor):
        for found, expected in zip(results, alone, strict=True):
            _assert_same(_numbers(found), expected)


def test_threads_get_the_masks_of_their_own_images(tmp_path: Path) -> None:
    predictor = BatchPredictor(write_weights(small_cfg(SPARSE), tmp_path))
    alone = predictor.activation_masks(IMAGES)
    for masks in _in_threads(predictor.activation_masks):
        torch.testing.assert_close(masks, alone, rtol=0, atol=0)


def test_the_clients_of_a_web_server_get_the_results_of_their_own_images(tmp_path: Path) -> None:
    predictor = BatchPredictor(write_weights(small_cfg(SPARSE), tmp_path))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            image = np.load(io.BytesIO(body), allow_pickle=False)
            answer = json.dumps(_numbers(predictor([image])[0])).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            """Keep requests out of the output of the tests."""

    def ask(image: np.ndarray) -> dict[str, list]:
        body = io.BytesIO()
        np.save(body, image)
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with urllib.request.urlopen(urllib.request.Request(url, body.getvalue()), timeout=60) as answer:
            return json.load(answer)

    alone = [_numbers(predictor([image])[0]) for image in IMAGES]
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            with ThreadPoolExecutor(THREADS) as clients:
                answers = list(clients.map(ask, IMAGES * 3))
        finally:
            server.shutdown()
            serving.join()
    for number, answer in enumerate(answers):
        _assert_same(answer, alone[number % len(IMAGES)])


def _predict_in_a_fork(cfg: CfgNode) -> None:
    """In a process of its own, whose exit code is that of the one that it forks."""
    torch.set_num_threads(2)
    predictor = BatchPredictor(cfg)
    alone = [_numbers(found) for found in predictor(IMAGES)]
    fork = os.fork()
    if fork == 0:
        signal.alarm(60)  # without the check, it would wait for threads that are not there
        code = 1
        try:
            with pytest.raises(ConfigError, match=r"was forked .*2 threads.*torch\.set_num_threads\(1\)"):
                predictor(IMAGES)
            torch.set_num_threads(1)
            for found, expected in zip(predictor(IMAGES), alone, strict=True):
                _assert_same(_numbers(found), expected)
            code = 0
        finally:
            os._exit(code)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_fork_is_told_to_compute_in_one_thread_and_then_gets_the_same_results(tmp_path: Path) -> None:
    process = FORKSERVER.Process(target=_predict_in_a_fork, args=(write_weights(small_cfg(SPARSE), tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_predictor_that_was_sent_belongs_to_the_process_that_got_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = BatchPredictor(write_weights(small_cfg("fcos_R18_synthetic"), tmp_path))
    sent = pickle.dumps(predictor)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(ConfigError, match="was forked"):
        predictor(IMAGES[:1])
    assert len(pickle.loads(sent)(IMAGES[:1])[0]) > 3
