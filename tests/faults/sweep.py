"""Every failure of a flow: it is run once for each of its calls of the file system, which fails, and once more.

After each failure: one clear error that names what failed, no half file under a final name, no temporary file, what was
there before is as it was; and the next run ends with what an undisturbed run leaves, checkpoints bit for bit.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from d2_ext.cli import train
from d2_ext.images import decode_fully
from d2_ext.runs import record
from d2_ext.runs.lock import LOCK

import torch
from faults.flows import MADE_OUTPUT, Flow, interrupt, make_flows
from torch import Tensor

from helpers.failing_calls import ERRORS, FULL, KILL, TAKES_SPACE, Call, FailingCalls

KINDS = ("calls", "memory", "kill -9")
# Where a run is killed: its folder is set up, a checkpoint is written.
KILLED_AT = re.compile(r"/out(_earlier\d+)?$|/\.?\.?(lock|config|run|model_|last_checkpoint)[^/]*$")
SECONDS = 120  # of one run, after which it is killed: a hang is a problem like any other
TIMES = ("time", "data_time", "eta_seconds", "rank_data_time")  # of metrics.json
# Files that a run writes several times, or whose bytes tell the time: they have to be whole, not those of another run.
CHANGING = re.compile(
    r"(.*/)?(model_best\.pth|last_checkpoint|run\.json|report\.html|masks\.png|inference/.*|annotations/.*\.json)"
)
GROWING = re.compile(r"(.*/)?(log\.txt|metrics\.json|events\.out\.tfevents.*|\.predicted\.jsonl)")
RANDOM_NAMES = re.compile(r"(\.\w+)\.\d+(?=\.tmp)")  # numbers of processes in names of temporaries
TEMPORARY = re.compile(r"\.(?P<stem>.+)\.\d+\.tmp(?P<suffix>.*)")
LISTED = "unreadable.txt"  # where a prediction names what failed


@dataclass(frozen=True)
class Point:
    """A failure: of which call of a flow, and how it fails."""

    flow: str
    number: int
    call: Call
    error: str


@dataclass
class Outcome:
    """What a failure led to; ``problems`` is empty if all was as promised."""

    point: Point
    code: int
    message: str
    problems: list[str] = field(default_factory=list)


class Sweep:
    """Runs flows with failures, each run a forked process.

    Args:
        base: an empty folder.
    """

    def __init__(self, base: Path) -> None:
        self.base, self.out, self.log, self.tmp = base, base / MADE_OUTPUT, base / "printed.txt", base / "tmp"
        torch.set_num_threads(1)
        self.flows = make_flows(base)
        self.tmp.mkdir()
        self._prepared: set[str] = set()
        # What several flows begin with.
        code, _ = self._run(self.flows["training"], self.flows["training"].first)
        assert code == 0, self.log.read_text()[-3000:]
        shutil.copytree(self.out, base / "finished")
        interrupt(base / "finished", base / "interrupted")
        self._put_before(self.flows["conversion of data, copied"])
        code, _ = self._run(self.flows["conversion of data, copied"], self.flows["conversion of data, copied"].first)
        assert code == 0, self.log.read_text()[-3000:]
        shutil.copytree(self.out, base / "converted", symlinks=True)

    def points(self, name: str, kind: str = "calls", *, all_errors: bool = False) -> list[Point]:
        """All failures of a flow, from an undisturbed run, which also says what a run leaves.

        Args:
            name: of the flow.
            kind: one of ``KINDS``.
            all_errors: each call with every error that it can meet, instead of one of them in turn.
        """
        flow = self.flows[name]
        if name not in self._prepared:
            flow.prepare()
            self._prepared.add(name)
        self._put_before(flow)
        self._before = snapshot(self.out)
        code, calls = self._run(flow, flow.first, memory=kind == "memory")
        assert code == 0, self.log.read_text()[-3000:]
        self._whole, self._next = snapshot(self.out), {}
        self._listed, self._without = lines_of(self.out / LISTED), {}
        found = []
        for number, call in enumerate(calls[: flow.limit or None], start=1):
            errors = [*ERRORS[call.kind], *([FULL] if call.kind in TAKES_SPACE else [])]
            if kind == "kill -9":
                errors = [KILL] if KILLED_AT.search(call.path) and call.kind != "read" else []
            elif not all_errors:
                errors = [errors[number % len(errors)]]
            found += [Point(name, number, call, error) for error in errors]
        return found

    def outcome(self, point: Point) -> Outcome:
        """Run with a failure, look at what it left, and run again."""
        flow = self.flows[point.flow]
        self._put_before(flow)
        code, calls = self._run(
            flow, flow.first, fail_at=point.number, error=point.error, memory=point.call.kind == "memory"
        )
        text = self.log.read_text(errors="replace")
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        found = Outcome(point, code, errors[-1] if errors else "")
        problems = found.problems
        if not calls:
            problems.append("the run ended without reaching the call")
            return found
        failed = calls[0]
        if point.error != KILL:
            self._check_words(failed, code, errors, text, problems)
        elif code != -signal.SIGKILL:
            problems.append(f"exit code {code} of a process that was to be killed")
        expected = self._whole
        if code == 0 and flow.images is not None and failed.kind == "memory":
            expected = self._check_listed(flow, flow.images, text, problems)
        left = self._check_files(point, failed, code, expected, problems)
        if left not in self._next:  # many failures leave the same
            self._next[left] = self._next_problems(flow, failed)
        problems += self._next[left]
        return found

    def _check_listed(self, flow: Flow, images: Path, text: str, problems: list[str]) -> dict[str, Any]:
        """Look at the list of what failed; returns what the run has to leave: all but what is of the image it names."""
        lines, now = lines_of(self.out / LISTED), snapshot(self.out)
        new = [line for line in lines if line not in self._listed]
        if not new:  # it went on by itself
            return self._whole
        named = [path.name for path in sorted(images.iterdir()) if f"'{path}'" in new[0]]
        if len(new) != 1 or len(named) != 1 or "memory ran out" not in new[0]:
            problems.append(f"{LISTED} should name one image that memory ran out for: {new}")
            return self._whole
        if sorted(lines) != sorted([*new, *(line for line in self._listed if f"'{images / named[0]}'" not in line)]):
            problems.append(f"{LISTED} lacks what else failed, or names it twice: {lines}")
        if f"{len(lines)} failed ({LISTED})" not in text or any(line not in text for line in lines):
            problems.append(f"it was not printed that {len(lines)} failed, and why")
        if named[0] not in self._without:
            self._without[named[0]] = self._run_without(flow, images / named[0])
        expected = dict(self._without[named[0]])
        stem = Path(named[0]).stem
        for name in (named[0], f"{stem}_masks.jpg"):  # it may be drawn before memory runs out, and is whole then
            if name in now and name in self._whole:
                expected[name] = self._whole[name]
        if LISTED in now:
            expected[LISTED] = now[LISTED]  # looked at above
        return expected

    def _run_without(self, flow: Flow, image: Path) -> dict[str, Any]:
        """What an undisturbed run leaves in a folder that lacks an image; ``out`` is as before."""
        kept, printed, aside = self.base / "kept", self.log.read_bytes(), self.base / "aside"
        self.out.rename(kept)
        image.rename(aside)
        code, _ = self._run(flow, flow.first)
        assert code == 0, self.log.read_text()[-3000:]
        found = snapshot(self.out)
        shutil.rmtree(self.out)
        aside.rename(image)
        kept.rename(self.out)
        self.log.write_bytes(printed)
        return found

    def _next_problems(self, flow: Flow, failed: Call) -> list[str]:
        code, _ = self._run(flow, flow.again)
        if code != 0:
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            return [f"the next run ended with {code}: {last}"]
        problems = [*self._differences(self._whole, snapshot(self.out))]
        problems += [] if of_a_removal(failed) else self._leftovers()
        return [f"after the next run: {problem}" for problem in problems]

    def _check_words(self, failed: Call, code: int, errors: list[str], text: str, problems: list[str]) -> None:
        for bad in ("Traceback", "Exception ignored", "--- Logging error"):
            if bad in text:
                problems.append(f"{bad!r} was printed")
        if code == 0:
            return
        if code not in (1, 2):
            problems.append(f"exit code {code}")
        if len(errors) != 1:
            problems.append(f"{len(errors)} errors were printed")
        elif failed.kind == "memory":
            if "memory" not in errors[0]:
                problems.append(f"the error does not speak of memory: {errors[0]}")
        else:
            path = Path(failed.path)
            name = TEMPORARY.fullmatch(path.name)
            final = path.with_name(name["stem"] + name["suffix"]) if name else path
            names = {str(final), *(str(parent) for parent in final.parents if parent.is_relative_to(self.out))}
            if any(part.startswith(".") for part in path.relative_to(self.base).parts) or self.tmp in path.parents:
                names |= {str(self.out / top) for known in self._whole for top in (known, Path(known).parts[0])}
            if not any(name in errors[0] for name in names):
                problems.append(f"the error does not name {path}: {errors[0]}")

    def _check_files(self, point: Point, failed: Call, code: int, expected: dict[str, Any], problems: list[str]) -> str:
        """Look at what the run has left, ``expected`` if it ended with 0; returns it as text."""
        if point.error not in (KILL, "EROFS") and not of_a_removal(failed):
            problems += self._leftovers()
        now = snapshot(self.out)
        for name, content in now.items():
            if content in (self._before.get(name), expected.get(name)) or is_temporary(name):
                continue
            if GROWING.fullmatch(name):
                continue
            problem = not_whole(self.out / name) if CHANGING.fullmatch(name) else "neither the old nor the new content"
            if problem:
                problems.append(f"{name}: {problem}")
        moved = snapshot(self.out.with_name("out_earlier1"))
        for name, content in self._before.items():
            if GROWING.fullmatch(name) or CHANGING.fullmatch(name):
                continue
            if name not in now and moved.get(name) != content:
                problems.append(f"{name} was there before, and is gone")
        if code == 0:
            problems += [f"exit code 0, but {p}" for p in self._differences(expected, now)]
        return RANDOM_NAMES.sub(r"\1", json.dumps([now, moved], sort_keys=True))

    def _leftovers(self) -> list[str]:
        found = [path for place in (self.out, self.tmp) for path in place.rglob("*") if is_temporary(path.name)]
        # The lock of a run that is killed while it moves an earlier run away goes along with that: it is stale, and
        # replaced by whoever resumes there.
        for place in self.base.glob("out_earlier*"):
            found += [p for p in place.rglob("*") if is_temporary(p.name) and p != place / LOCK]
        found += self.tmp.iterdir()
        found += [path for path in self.base.iterdir() if path.name.startswith(".")]
        return [f"left behind: {path.relative_to(self.base)}" for path in dict.fromkeys(found)]

    def _differences(self, whole: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
        for name in sorted({**whole, **now}):
            if is_temporary(name):
                continue
            if name not in now:
                yield f"{name} is missing"
            elif name not in whole:
                yield f"{name} should not be there"
            elif whole[name] != now[name] and not may_differ(name):
                yield f"{name} is not that of an undisturbed run"
            elif not GROWING.fullmatch(name) and (problem := not_whole(self.out / name)):
                yield f"{name}: {problem}"

    def _put_before(self, flow: Flow) -> None:
        for path in [self.out, *self.base.glob("out_earlier*"), self.tmp, *self.base.glob(".*")]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self.tmp.mkdir()
        if flow.before is not None:
            shutil.copytree(flow.before, self.out, symlinks=True)

    def _run(
        self, flow: Flow, line: Sequence[str], *, fail_at: int = 0, error: str = "", memory: bool = False
    ) -> tuple[int, list[Call]]:
        """Exit code (negative for a signal) of a forked run, and its calls: with a failure, the one that failed."""
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reading)
            self._child(flow, line, writing, fail_at, error, memory)
        os.close(writing)
        with open(reading, encoding="utf-8") as pipe:
            calls = [Call(*json.loads(row)) for row in pipe]
        status = os.waitpid(process, 0)[1]
        return os.waitstatus_to_exitcode(status), calls

    def _child(self, flow: Flow, line: Sequence[str], pipe: int, fail_at: int, error: str, memory: bool) -> None:
        code = 70
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            printed = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            os.dup2(printed, 1)
            os.dup2(printed, 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            sys.argv = ["d2_ext", *line]
            os.environ["TMPDIR"], tempfile.tempdir = str(self.tmp), None
            record.commit_of = lambda folder: "none"  # a process of its own, without a file
            train.collect_env_info = lambda: "none"
            raw_write = os.write

            def tell(call: Call) -> None:
                raw_write(pipe, (json.dumps([call.kind, call.path]) + "\n").encode())

            shim = FailingCalls(
                [str(self.out), str(self.tmp), f"{self.base}/."], fail_at=fail_at, error=error, memory=memory
            )
            if memory:
                shim.folders.append(str(self.base))
            if fail_at:
                shim.reached = tell
            shim.install()
            try:
                code = flow.main(line)
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                traceback.print_exc()
                code = 1
            atexit._run_exitfuncs()
            if not fail_at:
                for call in shim.calls:
                    tell(call)
            sys.stdout.flush()
        finally:
            os._exit(code)


def may_differ(name: str) -> bool:
    """Whether a file of two whole runs may have different contents."""
    if name in ("model_best.pth", "last_checkpoint"):  # they change during a run, and end alike
        return False
    return bool(CHANGING.fullmatch(name) or GROWING.fullmatch(name))


def of_a_removal(call: Call) -> bool:
    """Whether a failed call was to remove something, which then may stay."""
    return call.kind == "unlink" or (call.kind == "read" and is_temporary(Path(call.path).name))


def lines_of(path: Path) -> list[str]:
    """Of a text file; none if it is not there."""
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def is_temporary(name: str) -> bool:
    """Whether it is the name of a file that no finished run leaves."""
    if GROWING.fullmatch(name):
        return False
    return any(part.startswith(".") or part.endswith((".tmp", ".part")) for part in Path(name).parts)


def snapshot(folder: Path) -> dict[str, Any]:
    """Content of every file by its name, as far as it does not tell the time."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.name.startswith("events.out"):
            found["events.out.tfevents"] = ""
        elif path.is_file():
            found[name] = content_of(path)
    return found


def content_of(path: Path) -> Any:
    """What two files have to have in common."""
    if path.suffix == ".pth":
        try:
            return digest(torch.load(path, weights_only=True))
        except Exception as error:
            return f"unreadable: {error}"
    if path.name == "log.txt":
        return ""
    if path.name == "run.json":
        try:
            return str(len(json.loads(path.read_text())["starts"]))
        except (ValueError, KeyError, TypeError) as error:
            return f"unreadable: {error}"
    if path.name == "metrics.json":
        rows: dict[int, dict[str, Any]] = {}
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
                iteration = row["iteration"]
            except (ValueError, KeyError, TypeError):
                continue
            rows.setdefault(iteration, {}).update({k: v for k, v in row.items() if k not in TIMES})
        return json.dumps(rows, sort_keys=True)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest(value: Any) -> str:
    """Of tensors and plain values, bit for bit."""
    found = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, dict):
            for key, entry in part.items():
                found.update(repr(key).encode())
                add(entry)
        elif isinstance(part, (list, tuple)):
            for entry in part:
                add(entry)
        elif isinstance(part, Tensor):
            found.update(
                f"{part.dtype} {tuple(part.shape)}".encode()
                + part.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        else:
            found.update(repr(part).encode())

    add(value)
    return found.hexdigest()


def not_whole(path: Path) -> str:
    """Why a file is not whole; empty if it is."""
    try:
        if path.suffix == ".pth":
            torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix in (".jpg", ".png"):
            decode_fully(path)
        elif path.suffix == ".html" and not path.read_text().rstrip().endswith("</html>"):
            return "does not end"
        elif path.name == "last_checkpoint" and not path.with_name(path.read_text()).is_file():
            return f"names {path.read_text()!r}, which is not there"
    except Exception as error:
        return f"not whole: {type(error).__name__}: {error}"
    return ""


@dataclass(frozen=True)
class Job:
    """Failures of one flow.

    Attributes:
        flow: its name.
        kind: one of ``KINDS``.
        every: take the first of so many points, and so on.
        offset: of the first.
        all_errors: see :meth:`Sweep.points`.
    """

    flow: str
    kind: str = "calls"
    every: int = 1
    offset: int = 0
    all_errors: bool = False


def sweep(base: Path, jobs: Sequence[Job], tell: Callable[[Job, int, list[Outcome]], object]) -> None:
    """Run jobs in a process of its own, which forks a process a run.

    Args:
        base: an empty folder.
        jobs: to be done, in this order.
        tell: called after each with the number of points there are, and the outcomes of those taken.
    """
    context = multiprocessing.get_context("forkserver")  # no thread of this process gets into those that are forked
    context.set_forkserver_preload(["faults.sweep"])
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=_sweep_here, args=(str(base), list(jobs), writing))
    process.start()
    writing.close()
    try:
        for job in jobs:
            tell(job, *reading.recv())
    except EOFError:
        pass
    process.join()
    assert process.exitcode == 0, f"the sweep ended with {process.exitcode}"


def _sweep_here(base: str, jobs: list[Job], pipe: Connection) -> None:
    multiprocessing.set_start_method("fork", force=True)  # as in a run of a user
    sweep = Sweep(Path(base))
    for job in jobs:
        points = sweep.points(job.flow, job.kind, all_errors=job.all_errors)
        pipe.send((len(points), [sweep.outcome(point) for point in points[job.offset % job.every :: job.every]]))
