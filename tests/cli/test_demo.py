"""The demo as a user has it: a server of its own process, and a real browser that uploads and clicks."""

from __future__ import annotations

import http.client
import importlib.util
import json
import re
import socket
import tempfile
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from d2_ext.cli import demo as tool
from d2_ext.demo.page import Demo
from d2_ext.errors import CheckpointError

import pytest

from helpers.browser import console_problems, foreign_requests, open_browser
from helpers.forked import start_script
from helpers.scripts import ROOT
from helpers.tiny_run import TinyRun

# Found, not imported: that takes seconds, and every process of a parallel run collects every file.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")
SECONDS = 280  # until a page or a result must be there; a loaded machine is slow
RESULT = "#result img"


@pytest.fixture(scope="module")
def address(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a demo of the tiny run, started as users start it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("demo") / "log.txt"
    root = tiny_run.folder.parent
    log.touch()
    options = ["--root", root, "--port", str(port), "--device", "cpu"]
    server = start_script(ROOT / "tools/demo.py", *options, cwd=log.parent, log=log)
    try:
        _wait(lambda: "Ctrl-C stops" in log.read_text() or server.exitcode is not None)
        assert server.exitcode is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.join(30)


def test_an_image_is_uploaded_and_a_higher_threshold_shows_fewer_objects(
    address: str, tiny_run: TinyRun, tmp_path: Path
) -> None:
    with open_browser(tmp_path / "profile") as browser:
        browser.get(address)
        _wait(lambda: browser.find_elements("css selector", "#upload input[type=file]"))
        assert console_problems(browser) == []
        _upload(browser, tiny_run.images[0])
        _set_threshold(browser, "0.05")
        browser.find_element("css selector", "#masks input").click()
        browser.find_element("css selector", "#detect").click()
        _wait(lambda: browser.find_elements("css selector", RESULT))
        first, many = _result(browser), _objects(browser)
        _wait(lambda: browser.find_elements("css selector", "#mask-result img"))
        assert many > 0

        _set_threshold(browser, "0.95")
        browser.find_element("css selector", "#detect").click()
        _wait(lambda: "0.95" in _summary(browser) and _result(browser) != first)
        assert _objects(browser) < many
        assert browser.execute_script("return document.querySelector(arguments[0]).naturalWidth", RESULT) >= 320
        assert foreign_requests(browser) == []
        assert [text for text in console_problems(browser) if "Method not implemented" not in text] == []


def test_a_file_that_is_no_image_gets_a_message_on_the_page(address: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("no image")
    with open_browser(tmp_path / "profile") as browser:
        browser.get(address)
        _wait(lambda: browser.find_elements("css selector", "#upload input[type=file]"))
        _upload(browser, path)
        browser.find_element("css selector", "#detect").click()
        _wait(lambda: "no image of a known type" in browser.find_element("css selector", "body").text)


def test_the_page_may_ask_no_other_host_and_says_so_to_the_browser(address: str) -> None:
    with urllib.request.urlopen(address, timeout=30) as answer:
        policy = answer.headers["Content-Security-Policy"]
        text = answer.read().decode()
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "fonts.googleapis" not in text


def test_it_serves_this_machine_alone(address: str) -> None:
    port = int(address.rpartition(":")[2])
    listening = Path("/proc/net/tcp")
    if not listening.is_file():
        pytest.skip("no /proc/net/tcp here")
    own = [line.split()[1] for line in listening.read_text().splitlines()[1:] if line.split()[3] == "0A"]
    assert [entry for entry in own if int(entry.partition(":")[2], 16) == port] == [f"0100007F:{port:04X}"]


def test_no_path_of_a_client_reaches_a_file(tiny_run: TinyRun) -> None:
    demo = Demo({"run/model_final.pth": tiny_run.folder / "model_final.pth"})
    content = tiny_run.images[0].read_bytes()
    with pytest.raises(CheckpointError, match="not in the list"):
        demo.run(content, str(tiny_run.folder / "model_final.pth"), 0.3, False)


@pytest.mark.parametrize(
    "route", ["gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", "custom_component/"]
)
@pytest.mark.parametrize("what", ["weights", "config", "log", "password list", "upwards", "encoded", "another host"])
def test_no_path_of_a_client_reaches_a_file_by_an_address(
    route: str, what: str, address: str, tiny_run: TinyRun
) -> None:
    path = {
        "weights": tiny_run.folder / "model_final.pth",
        "config": tiny_run.folder / "config.yaml",
        "log": "log.txt",  # in the folder in which the server works
        "password list": "/etc/passwd",
        "upwards": "../" * 12 + "etc/passwd",
        "encoded": "%2e%2e%2f" * 12 + "etc%2fpasswd",
        "another host": f"{address}/config",  # fetched by the server, it would be a way into its network
    }[what]
    assert 400 <= _status(f"{address}/{route}{path}") < 500


@pytest.mark.parametrize(
    "forged", ["/etc/passwd", "../../../../etc/passwd", "log.txt", "http://127.0.0.1:1/x.png", None]
)
def test_no_path_of_a_client_reaches_a_file_by_a_forged_upload(
    forged: str | None, address: str, tiny_run: TinyRun
) -> None:
    (uploaded,) = json.loads(_upload_bytes(address, "a.png", tiny_run.images[0].read_bytes()))
    file = {"path": forged or uploaded, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    events = _detect_events(address, [file, f"{tiny_run.folder.name}/model_final.pth", 0.3, False])
    assert ('"success":true' in events) == (forged is None), events  # what was uploaded is read


@pytest.mark.parametrize("name", ["../../../evil.png", "/tmp/evil.png", "..%2f..%2fevil.png", "a/../../evil.png"])
def test_no_path_of_a_client_reaches_a_file_by_the_name_of_an_upload(name: str, address: str) -> None:
    (path,) = json.loads(_upload_bytes(address, name, b"no image"))
    stored = Path(path).resolve()
    folder = Path(tempfile.gettempdir()).resolve()
    assert stored.is_relative_to(folder)
    assert stored.relative_to(folder).parts[0].startswith("d2_ext_demo_")


def _status(address: str) -> int:
    """HTTP status; no redirection is followed, and no path is tidied up on the way."""
    url = urllib.parse.urlsplit(address)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
    connection.request("GET", url.path)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def _detect_events(address: str, values: list[Any]) -> str:
    """Press *Detect* as the page's own script does; all events up to the end."""
    session = "s" + uuid.uuid4().hex
    with urllib.request.urlopen(f"{address}/config", timeout=60) as answer:
        number = json.load(answer)["dependencies"][0]["id"]
    body = json.dumps({"data": values, "fn_index": number, "session_hash": session}).encode()
    head = {"Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{address}/gradio_api/queue/join", body, head), timeout=60
    ) as answer:
        assert "event_id" in json.load(answer)
    with urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash={session}", timeout=SECONDS) as answer:
        return answer.read().decode()


def _upload_bytes(address: str, name: str, content: bytes) -> str:
    mark = uuid.uuid4().hex
    head = f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{mark}--\r\n".encode()
    request = urllib.request.Request(
        f"{address}/gradio_api/upload", body, {"Content-Type": f"multipart/form-data; boundary={mark}"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def test_a_sparse_head_shows_its_masks_and_a_table_has_the_boxes(tiny_run: TinyRun) -> None:
    demo = Demo({"x": tiny_run.folder / "model_final.pth"}, device="cpu")
    content = tiny_run.images[0].read_bytes()
    image, masks, rows, text = demo.run(content, "x", 0.05, True)
    assert image.ndim == masks.ndim == 3
    assert text.startswith(f"{len(rows)} objects")
    assert all(0.05 <= score <= 1 and width > 0 and height > 0 for _, score, _, _, width, height in rows)
    assert [row[1] for row in rows] == sorted((row[1] for row in rows), reverse=True)


def test_wrong_usage_ends_with_code_2_and_a_taken_port_with_1(
    tiny_run: TinyRun, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["--root", str(tmp_path / "nowhere")]) == 2
    assert "--root: no folder" in capsys.readouterr().err
    assert tool.main(["--root", str(tiny_run.folder), "--port", address.rpartition(":")[2]]) == 1
    assert "Choose another --port" in capsys.readouterr().err


def _upload(browser: Any, path: Path) -> None:
    browser.find_element("css selector", "#upload input[type=file]").send_keys(str(path))
    _wait(lambda: path.stem in browser.find_element("css selector", "#upload").text)
    time.sleep(0.5)  # the name is shown a moment before the upload is registered


def _set_threshold(browser: Any, value: str) -> None:
    """Move the slider as the keyboard does: the arrow keys until it stands there."""
    slider = browser.find_element("css selector", "#score input[type=range]")
    for _ in range(20):
        standing = float(slider.get_attribute("value"))
        if abs(standing - float(value)) < 1e-6:
            return
        slider.send_keys("\ue014" if standing < float(value) else "\ue012")  # right, left
    raise AssertionError(f"the slider stands at {slider.get_attribute('value')}")


def _summary(browser: Any) -> str:
    return browser.find_element("css selector", "#summary").text


def _objects(browser: Any) -> int:
    _wait(lambda: re.match(r"\d+ objects", _summary(browser)))
    return int(_summary(browser).split()[0])


def _result(browser: Any) -> str:
    return browser.find_element("css selector", RESULT).get_attribute("src")


def _wait(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.2)
