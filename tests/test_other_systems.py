"""What Windows, macOS and the oldest Python have not is used nowhere without another way. No test runs on them."""

from __future__ import annotations

import ast
import errno
import os
import sys
from pathlib import Path

from d2_ext.cli import convert_dataset
from d2_ext.files import replacing
from d2_ext.runs import seeds
from d2_ext.runs.lock import locked

import pytest

from helpers.own_folders import coco_content, images, write_json
from helpers.scripts import QUICKSTART, ROOT, child_environment, run_python

# Python's documentation calls these "Unix", or not available on Windows.
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_OS = """
chown chroot fchdir fchmod fchown fork forkpty getegid geteuid getgid getgroups getloadavg getpgid getpgrp getsid
getuid killpg lchown lockf major mkfifo mknod nice openpty pread pwrite register_at_fork sched_getaffinity
sched_setaffinity setgid setpgid setsid setuid statvfs sync sysconf uname wait wait3 waitid O_DIRECTORY O_SYNC
"""
POSIX_SIGNALS = """
SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGUSR1 SIGUSR2 alarm pthread_kill pthread_sigmask
setitimer sigwait
"""
POSIX_NAMES = {
    "os": set(POSIX_OS.split()),
    "signal": set(POSIX_SIGNALS.split()),
    "socket": {"AF_UNIX"},
    "multiprocessing": {"forkserver"},
}
# Where one is used, and what the file does without it.
WITH_ANOTHER_WAY = {
    ("d2_ext/utils/memory.py", "resource"): "ImportError: the peak is 0",
    ("projects/deploy/onnx_predict.py", "resource"): "only on Linux",
    ("d2_ext/runs/seeds.py", "os.setsid"): "hasattr",
    ("d2_ext/_standin/detectron2/engine/defaults.py", "os.getuid"): "hasattr",
}

# What Python's documentation marks as new in 3.11 to 3.14; python_requires of setup.py says 3.10.
NEWER_MODULES = {"annotationlib", "compression", "concurrent.interpreters", "string.templatelib", "tomllib"}
NEWER_TYPING = """
Self Never LiteralString Required NotRequired Unpack TypeVarTuple assert_never assert_type reveal_type clear_overloads
get_overloads dataclass_transform override TypeAliasType NoDefault ReadOnly TypeIs get_protocol_members is_protocol
"""
NEWER_NAMES = {
    "typing": set(NEWER_TYPING.split()),
    "asyncio": {"Barrier", "Runner", "TaskGroup", "timeout"},
    "collections.abc": {"Buffer"},
    "contextlib": {"chdir"},
    "copy": {"replace"},
    "datetime": {"UTC"},
    "enum": {"EnumType", "ReprEnum", "StrEnum", "global_enum", "member", "nonmember", "property", "verify"},
    "functools": {"Placeholder"},
    "hashlib": {"file_digest"},
    "inspect": {"getmembers_static"},
    "itertools": {"batched"},
    "logging": {"getHandlerByName", "getHandlerNames", "getLevelNamesMapping"},
    "math": {"cbrt", "exp2", "fma", "sumprod"},
    "operator": {"call", "is_none", "is_not_none"},
    "os": {"process_cpu_count", "unshare"},
    "sys": {"activate_stack_trampoline", "exception", "monitoring"},
    "warnings": {"deprecated"},
}


def _uses(path: Path, modules: set[str], names: dict[str, set[str]]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & modules
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} & modules
            found |= {f"{node.module}.{a.name}" for a in node.names if a.name in names.get(node.module, ())}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found |= {f"{node.value.id}.{node.attr}"} if node.attr in names.get(node.value.id, ()) else set()
    return found


def test_nothing_of_unix_alone_is_used_without_another_way() -> None:
    files = [*(ROOT / "d2_ext").rglob("*.py"), *(ROOT / "projects").rglob("*.py"), ROOT / "train_net.py"]
    assert len(files) > 200
    used = {
        (path.relative_to(ROOT).as_posix(), name) for path in files for name in _uses(path, POSIX_MODULES, POSIX_NAMES)
    }
    assert used == set(WITH_ANOTHER_WAY)


def test_nothing_is_used_that_the_oldest_python_lacks() -> None:
    folders = ("d2_ext", "projects", "tools", "benchmarks", "dev", "tests")
    files = [*(path for folder in folders for path in (ROOT / folder).rglob("*.py")), ROOT / "train_net.py"]
    assert len(files) > 500
    assert 'python_requires=">=3.10"' in (ROOT / "setup.py").read_text()
    used = {(path, name) for path in files for name in _uses(path, NEWER_MODULES, NEWER_NAMES)}
    assert not used


def test_on_windows_no_signal_asks_whether_a_run_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_signal(pid: int, number: int) -> None:
        raise AssertionError("signal 0 is Ctrl-C there")

    monkeypatch.setattr(os, "kill", no_signal)
    monkeypatch.setattr(sys, "platform", "win32")
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: _no_proc(self) or real(self, *a, **k))
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda self: self.parts[1:2] != ("proc",) and exists(self))
    with locked(str(tmp_path)), pytest.raises(ValueError, match=r"in use by another run .* remove .*\.lock"):
        locked(str(tmp_path)).__enter__()
    assert not list(tmp_path.iterdir())


def _no_proc(path: Path) -> None:
    if path.parts[1:2] == ("proc",):
        raise FileNotFoundError(errno.ENOENT, "no /proc", str(path))


def test_on_windows_a_file_is_synced_through_a_handle_that_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, descriptors = os.fsync, []

    def windows_fsync(descriptor: int) -> None:
        os.write(descriptor, b"")  # EBADF with a handle that may only read, as there
        descriptors.append(descriptor)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", windows_fsync)
    monkeypatch.setattr(sys, "platform", "win32")
    with replacing(tmp_path / "a.json", durable=True) as path:
        path.write_text("{}")
    assert (tmp_path / "a.json").read_text() == "{}"
    assert len(descriptors) == 1, "of the file; a folder cannot be opened for writing"


def test_a_run_of_several_needs_no_session_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "setsid")
    with pytest.raises(SystemExit) as left:
        seeds._one(lambda args: args.code, type("Args", (), {"code": 3}))
    assert left.value.code == 3


def test_where_links_cannot_be_made_copies_are_advised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refused(self: Path, target: Path) -> None:
        raise OSError(errno.EINVAL, "A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refused)
    images(tmp_path / "in/images", "ab")
    write_json(tmp_path / "in/labels.json", coco_content("ab"))
    words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert convert_dataset.main(words) == 1
    assert "'a.jpg' cannot be linked: A required privilege is not held by the client" in (
        said := capsys.readouterr().err
    )
    assert "--images copy" in said
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert convert_dataset.main([*words, "--images", "copy"]) == 0


CHILD = f"""
import multiprocessing
import os
import sys

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")  # loader processes begin anew, as on Windows and macOS
import torch  # what others do is theirs
import cv2
import d2_ext
from d2_ext.cli import predict, train

sys.modules.update(dict.fromkeys({sorted(POSIX_MODULES)}))
for name in {POSIX_OS.split()}:
    if hasattr(os, name):
        delattr(os, name)
if __name__ == "__main__":
    command = {{"train": train, "predict": predict}}[sys.argv[1]]
    sys.exit(command.main(sys.argv[2:]))
"""


@pytest.mark.long
def test_training_and_prediction_run_with_all_of_it_hidden(tmp_path: Path) -> None:
    for split in ("train", "val"):
        images(tmp_path / f"data/{split}", "abcd")
        write_json(tmp_path / f"data/{split}.json", coco_content("abcd"))
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    keys = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "1", "OUTPUT_DIR", "out"]
    keys += ["INPUT.CROP.SIZE", "[64,64]", "INPUT.MIN_SIZE_TEST", "64"]
    for words, left in (
        (["train", "--config-file", str(QUICKSTART), "--data", "data", *keys], "out/model_final.pth"),
        (["predict", "--weights", "out/model_final.pth", "data/val", "--output", "found"], "found/a.jpg"),
    ):
        done = run_python(script, *words, cwd=tmp_path, env=child_environment())
        assert done.returncode == 0, done.stderr
        assert (tmp_path / left).is_file()
