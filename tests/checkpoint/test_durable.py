"""Files are there wholly or not at all, and a changed byte is found."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path

from d2_ext.checkpoint.durable import save_durably, verify_archive, write_durably
from d2_ext.checkpoint.safe import SafeCheckpointer
from d2_ext.errors import CheckpointError, TrainingError
from d2_ext.files import remove_temporaries

import pytest
import torch
from torch import nn


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(TrainingError, match=r"file could not be written: No space left on device"):
        write_durably(path, fail)
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["file"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / f".model.{os.getpid()}.tmp.pth").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match="No space left on device"):
        save_durably({"model": torch.zeros(100_000)}, tmp_path / "model.pth")
    assert _names(tmp_path) == []


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    for name in (".model_0000002.77.tmp.pth", "model_0000001.pth", "notes.tmp"):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path)
    assert _names(tmp_path) == ["model_0000001.pth", "notes.tmp"]


@pytest.mark.parametrize("where", [0.1, 0.5, 0.7])
def test_one_changed_bit_is_found(tmp_path: Path, where: float) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": torch.arange(5000), "b": torch.arange(5000)}, path)
    verify_archive(str(path))
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.pth was not loaded"):
        verify_archive(str(path))


@pytest.mark.parametrize("length", [2, 100, 20_000])
def test_a_truncated_file_is_found(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": torch.arange(5000)}, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"model\.pth was not loaded"):
        verify_archive(str(path))


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 10_000_000)
    expected = r"archive/data\.pkl is compressed \(\d+ bytes unpack to 10000000\), which torch\.save never does"
    with pytest.raises(CheckpointError, match=expected):
        verify_archive(str(path))


def test_an_archive_that_unpacks_the_same_bytes_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"0" * 10_000)
        archive.filelist *= 3
    with pytest.raises(CheckpointError, match=r"its parts overlap \(\d+ bytes unpack to 30000\)"):
        verify_archive(str(path))


def test_an_archive_with_a_password_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"0")
        archive.filelist[0].flag_bits |= 1
    with pytest.raises(CheckpointError, match=r"cut off or damaged \(.*encrypted"):
        verify_archive(str(path))


def test_the_newest_whole_checkpoint_is_resumed_and_tagged(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    checkpointer = SafeCheckpointer(model, str(tmp_path))
    for iteration in (1, 3, 5):
        nn.init.constant_(model.weight, iteration)
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    (tmp_path / "model_0000005.pth").write_bytes(b"PK")
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 3
    assert model.weight.item() == 3
    assert checkpointer.get_checkpoint_file().endswith("model_0000003.pth")


def test_without_a_whole_checkpoint_nothing_starts_from_scratch_in_silence(tmp_path: Path) -> None:
    checkpointer = SafeCheckpointer(nn.Linear(1, 1), str(tmp_path))
    checkpointer.save("model_0000001")
    (tmp_path / "model_0000001.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the checkpoints in .* can be read .*model_0000001\.pth"):
        checkpointer.resume_or_load("", resume=True)


def test_weights_that_went_wrong_replace_no_good_ones(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    checkpointer = SafeCheckpointer(model, str(tmp_path))
    nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(TrainingError, match="weight holds values that are infinite or not a number"):
        checkpointer.save("model_0000001")
    assert _names(tmp_path) == []


def test_a_checkpoint_that_cannot_be_written_says_which_one_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = SafeCheckpointer(nn.Linear(1, 1), str(tmp_path))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TrainingError, match=r"model_1\.pth could not be written: No space.*no checkpoint yet"):
            checkpointer.save("model_1")
    assert _names(tmp_path) == []
    checkpointer.save("model_1")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match=r"model_2\.pth could not.*last good .*model_1\.pth.*--resume"):
        checkpointer.save("model_2")
    assert _names(tmp_path) == ["last_checkpoint", "model_1.pth"]


def test_processes_that_do_not_write_leave_no_file(tmp_path: Path) -> None:
    SafeCheckpointer(nn.Linear(1, 1), str(tmp_path), save_to_disk=False).save("model_1")
    SafeCheckpointer(nn.Linear(1, 1), "").save("model_1")
    assert _names(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed."), RuntimeError, "DataLoader worker"),
        (RuntimeError("unexpected pos 64\nmore"), TrainingError, r"unexpected pos 64 \(\d+ MiB are free\)"),
    ],
)
def test_the_death_of_a_worker_is_no_failure_to_write(
    tmp_path: Path, error: Exception, kind: type[Exception], says: str
) -> None:
    def fail(file: object) -> None:
        raise error

    with pytest.raises(kind, match=says):
        write_durably(tmp_path / "file", fail)
    assert _names(tmp_path) == []
