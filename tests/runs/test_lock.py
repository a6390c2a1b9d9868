"""Two runs never write into one folder: the second is refused by the name of the first."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

from d2_ext.errors import ConfigError
from d2_ext.runs.lock import LOCK, locked

import pytest


def _write(folder: Path, **owner: Any) -> None:
    (folder / LOCK).write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), **owner}))


def test_a_second_run_is_refused_by_the_name_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with locked(str(folder)):
        said = rf"{folder} is in use by another run \(process {os.getpid()} on {socket.gethostname()}\)\. Wait"
        with pytest.raises(ConfigError, match=said), locked(str(folder)):
            pass
        assert [path.name for path in folder.iterdir()] == [LOCK]
    assert not list(folder.iterdir())
    with locked(str(folder)):
        pass


def test_an_error_gives_the_folder_back(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(str(tmp_path)):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_lock_of_another_host_counts_until_it_is_removed(tmp_path: Path) -> None:
    _write(tmp_path, host="elsewhere", pid=1)
    said = r"process 1 on elsewhere.*If that run is over, remove .*\.lock"
    with pytest.raises(ConfigError, match=said), locked(str(tmp_path)):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


@pytest.mark.parametrize("kind", ["ended", "number used again"])
def test_a_stale_lock_is_replaced(tmp_path: Path, kind: str) -> None:
    if kind == "ended":
        process = subprocess.Popen(["true"])
        process.wait()
        _write(tmp_path, pid=process.pid, started="some boot 123")
    else:
        _write(tmp_path, started="an earlier boot 123")
    with locked(str(tmp_path)):
        assert json.loads((tmp_path / LOCK).read_text())["started"] != "an earlier boot 123"
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert not list(tmp_path.iterdir())


def test_a_process_that_has_ended_but_was_not_asked_for_counts_as_gone(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read()  # its end
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    _write(tmp_path, pid=process.pid, started="whenever")
    with locked(str(tmp_path)):
        pass
    process.wait()


@pytest.mark.parametrize("content", ["", "[", "5", "{}", '{"host": [1], "pid": "x"}'])
def test_what_is_no_lock_of_ours_is_left_to_the_user(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    with pytest.raises(ConfigError, match=r"remove .*\.lock"), locked(str(tmp_path)):
        pass
    assert (tmp_path / LOCK).read_text() == content


@pytest.mark.parametrize("output_dir", ["", "s3://bucket/run"])
def test_nothing_is_locked_without_a_folder_of_this_machine(
    output_dir: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with locked(output_dir):
        assert not list(tmp_path.iterdir())


def test_a_lock_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, text: str, **kwargs: Any) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match=rf"No space left.*{tmp_path}/\.lock"), locked(str(tmp_path)):
            pass
    assert not list(tmp_path.iterdir()), "an empty lock would belong to nobody, and refuse the next run"
    with locked(str(tmp_path)):
        pass


def test_without_links_a_lock_is_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", none)
    with locked(str(tmp_path)), pytest.raises(ConfigError, match="in use by another run"), locked(str(tmp_path)):
        pass
    assert not list(tmp_path.iterdir())


def test_what_killed_runs_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "inference/set/.coco.77.tmp").mkdir(parents=True)
    for name in ("..lock.77.tmp", ".model_final.77.tmp.pth", "inference/set/.coco.77.tmp/half.json", ".mine.tmp"):
        (tmp_path / name).touch()
    with locked(str(tmp_path)):
        left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {LOCK, ".mine.tmp", "inference", "inference/set"}
