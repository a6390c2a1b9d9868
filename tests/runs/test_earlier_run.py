"""A new training finds its place empty, and the earlier one is kept under another name, or it does not start at all."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

from d2_ext.data import register_coco_folder
from d2_ext.errors import ConfigError
from d2_ext.runs import earlier_run
from d2_ext.runs.earlier_run import keep_earlier_run

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from helpers.small_runs import Runs, free_port, write_images

RUN = {"last_checkpoint": b"model_final.pth", "model_final.pth": b"weights", "inference/results.json": b"[]"}
SHORT = {"SOLVER__MAX_ITER": 2, "SOLVER__CHECKPOINT_PERIOD": 1, "TEST__EVAL_PERIOD": 0, "TEST__BEST__SAVE": False}


def _run_in(folder: Path, files: dict[str, bytes] = RUN) -> dict[str, bytes]:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return dict(files)


def _content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _cfg(output: Path | str, **values: str) -> CfgNode:
    """The part of a config that counts; ``values`` has ``__`` for the dot."""
    cfg = CfgNode(
        {
            "OUTPUT_DIR": str(output),
            "MODEL": {"WEIGHTS": ""},
            "DATASETS": {"FOLDER": "", "TRAIN": (), "TEST": ()},
            "INPUT": {"ALBUMENTATIONS": ""},
        }
    )
    cfg.merge_from_list([word for key, value in values.items() for word in (key.replace("__", "."), value)])
    return cfg


def test_checkpoints_move_as_a_whole_to_the_first_free_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = _run_in(tmp_path / "run")
    (tmp_path / "run_earlier1").mkdir()
    moved = keep_earlier_run(_cfg(tmp_path / "run"), "")
    assert moved == tmp_path / "run_earlier2"
    assert _content(moved) == before
    log = (tmp_path / "run/log.txt").read_text()
    assert f"{tmp_path}/run held checkpoints" in log
    assert f"moved to {moved}" in log
    assert str(moved) in capsys.readouterr().out
    assert set(_content(tmp_path / "run")) == {"log.txt"}
    assert not list((tmp_path / "run_earlier1").iterdir()), "an empty folder of that name is not replaced"


@pytest.mark.parametrize("name", ["last_checkpoint", "model_0000009.pth", "model_final.pth"])
def test_each_kind_of_checkpoint_is_one(name: str, tmp_path: Path) -> None:
    _run_in(tmp_path / "run", {name: b""})
    assert keep_earlier_run(_cfg(tmp_path / "run"), "") == tmp_path / "run_earlier1"


@pytest.mark.parametrize(
    "files", [{}, {"log.txt": b"", "metrics.json": b"", "config.yaml": b"", "inference/a.pth": b""}]
)
def test_a_folder_without_checkpoints_is_gone_on_with(files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    _run_in(tmp_path / "run", files)
    assert keep_earlier_run(_cfg(tmp_path / "run"), "") is None
    assert keep_earlier_run(_cfg(tmp_path / "nowhere"), "") is None
    assert keep_earlier_run(_cfg(""), "") is None
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert _content(tmp_path / "run") == files


def test_a_disk_that_is_full_at_the_first_line_of_the_log_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = logging.StreamHandler(open("/dev/full", "w"))  # noqa: SIM115 (closed when it cannot be written)
    logger = logging.getLogger("d2_ext")
    monkeypatch.setattr(earlier_run, "setup_logger", lambda *args, **more: logger.addHandler(full))
    monkeypatch.setattr(logger, "handlers", [])
    logger.setLevel(logging.INFO)
    _run_in(tmp_path / "run")
    assert keep_earlier_run(_cfg(tmp_path / "run"), "") == tmp_path / "run_earlier1"
    said = capsys.readouterr().err
    assert said == "warning: /dev/full cannot be written (No space left on device) and ends here; the run goes on.\n"


def test_a_link_goes_on_pointing_to_where_it_did(tmp_path: Path) -> None:
    before = _run_in(tmp_path / "disk/run")
    (tmp_path / "link").symlink_to(tmp_path / "disk/run")
    moved = keep_earlier_run(_cfg(tmp_path / "link"), "")
    assert moved == tmp_path / "disk/run_earlier1"
    assert _content(moved) == before
    assert (tmp_path / "link").resolve() == tmp_path / "disk/run"
    assert (tmp_path / "link/log.txt").is_file()


@pytest.mark.parametrize("key", ["MODEL__WEIGHTS", "DATASETS__FOLDER", "INPUT__ALBUMENTATIONS"])
@pytest.mark.parametrize("as_link", [False, True])
def test_what_the_run_needs_is_never_moved_away(key: str, as_link: bool, tmp_path: Path) -> None:
    needed = tmp_path / "run/model_final.pth"
    before = _run_in(tmp_path / "run")
    if as_link:
        (tmp_path / "elsewhere").symlink_to(needed)
        needed = tmp_path / "elsewhere"
    with pytest.raises(ConfigError, match=rf"{key.replace('__', '.')} \(.*lies in it.*another OUTPUT_DIR.*--resume"):
        keep_earlier_run(_cfg(tmp_path / "run", **{key: str(needed)}), "")
    assert _content(tmp_path / "run") == before
    assert keep_earlier_run(_cfg(tmp_path / "run", **{key: str(tmp_path / "running")}), "") is not None


def test_the_config_file_and_other_runs_are_never_moved_away(tmp_path: Path) -> None:
    before = _run_in(tmp_path / "run") | _run_in(tmp_path / "run", {"config.yaml": b"", "deep/er/last_checkpoint": b""})
    with pytest.raises(ConfigError, match=r"--config-file \(.*config.yaml\) lies in it"):
        keep_earlier_run(_cfg(tmp_path / "run"), str(tmp_path / "run/config.yaml"))
    with pytest.raises(ConfigError, match=r"another run \(.*run/deep/er\) lies in it"):
        keep_earlier_run(_cfg(tmp_path / "run"), "https://example.org/config.yaml")
    assert _content(tmp_path / "run") == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("with_places", [True, False], ids=["known to the metadata", "known to the records"])
def test_data_sets_are_never_moved_away(with_places: bool, tmp_path: Path) -> None:
    before = _run_in(tmp_path / "run")
    data = write_images(tmp_path / "run/data", 2)
    before |= _content(tmp_path / "run")
    register_coco_folder("tests_inside", data, json_file="all.json")
    try:
        DatasetCatalog.get("tests_inside")
        if not with_places:
            metadata = vars(MetadataCatalog.get("tests_inside"))
            del metadata["json_file"], metadata["image_root"]
        with pytest.raises(ConfigError, match=r"data set 'tests_inside' \(.*run/data.*\) lies in it"):
            keep_earlier_run(_cfg(tmp_path / "run", DATASETS__TEST="('tests_inside',)"), "")
    finally:
        DatasetCatalog.remove("tests_inside")
        MetadataCatalog.remove("tests_inside")
    assert _content(tmp_path / "run") == before


def test_the_current_folder_and_the_program_are_never_moved_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _run_in(tmp_path / "run")
    (tmp_path / "run/deep").mkdir()
    monkeypatch.chdir(tmp_path / "run/deep")
    for output in ("..", tmp_path / "run"):
        with pytest.raises(ConfigError, match="the current folder .* lies in it"):
            keep_earlier_run(_cfg(output), "")
    monkeypatch.chdir("/")
    monkeypatch.setattr(earlier_run.d2_ext, "__file__", str(tmp_path / "run/d2_ext/__init__.py"))
    with pytest.raises(ConfigError, match="the program .* lies in it"):
        keep_earlier_run(_cfg(tmp_path / "run"), "")
    assert _content(tmp_path / "run") == before


def test_a_folder_that_cannot_be_renamed_is_an_error_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _run_in(tmp_path / "run")

    def busy(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(os, "rename", busy)
    with pytest.raises(ConfigError, match=r"Device or resource busy.*another OUTPUT_DIR"):
        keep_earlier_run(_cfg(tmp_path / "run"), "")
    assert _content(tmp_path / "run") == before


def test_of_several_machines_only_the_first_moves_and_all_refuse(tmp_path: Path) -> None:
    before = _run_in(tmp_path / "run")
    assert keep_earlier_run(_cfg(tmp_path / "run"), "", machine_rank=1) is None
    with pytest.raises(ConfigError, match="MODEL.WEIGHTS"):
        keep_earlier_run(_cfg(tmp_path / "run", MODEL__WEIGHTS=str(tmp_path / "run/a.pth")), "", machine_rank=1)
    assert _content(tmp_path / "run") == before
    assert keep_earlier_run(_cfg(tmp_path / "run"), "") == tmp_path / "run_earlier1"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """``run`` has been trained."""
    runs = Runs(tmp_path_factory.mktemp("earlier"), images=3)
    assert runs.run("run", **SHORT) == 0, runs.log("run")[-3000:]
    return runs


def test_two_machines_with_one_disk_train_anew_beside_the_earlier_run(runs: Runs) -> None:
    before = _content(runs.folder / "run")
    machines = ("--num-machines", "2", "--dist-url", f"tcp://127.0.0.1:{free_port()}")
    second = runs.start("run", *machines, "--machine-rank", "1", **SHORT)
    assert runs.run("run", *machines, "--machine-rank", "0", **SHORT) == 0, runs.log("run")[-3000:]
    assert runs.wait(second) == 0, runs.log("run")[-3000:]
    assert _content(runs.folder / "run_earlier1") == before
    assert not (runs.folder / "run_earlier2").exists()
    assert {"model_final.pth", "log.txt", "log.txt.rank1"} <= _content(runs.folder / "run").keys()
    for line in ("held checkpoints of an earlier run", "Written to"):  # loggers are set up once
        assert (runs.folder / "run/log.txt").read_text().count(line) == 1
    assert runs.log("run").count("held checkpoints of an earlier run") == 1


def test_resuming_evaluating_and_trying_out_move_nothing(runs: Runs) -> None:
    earlier = sorted(path.name for path in runs.folder.glob("run_earlier*"))
    weights = {"MODEL__WEIGHTS": str(runs.folder / "run/model_final.pth")}
    assert runs.run("run", "--resume", **SHORT) == 0
    assert runs.run("run", "--eval-only", **SHORT, **weights) == 0
    assert runs.run("run", "--dry-run", **SHORT) == 0
    assert runs.run("run", **SHORT, **weights) == 2
    assert "MODEL.WEIGHTS" in runs.log("run").splitlines()[-1]
    assert (runs.folder / "run/model_final.pth").is_file()
    assert sorted(path.name for path in runs.folder.glob("run_earlier*")) == earlier


def test_the_earlier_run_comes_back_if_no_new_folder_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _run_in(tmp_path / "run")

    def full(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", full)
        with pytest.raises(ConfigError, match="that failed: .*No space left on device"):
            keep_earlier_run(_cfg(tmp_path / "run"), "")
    assert _content(tmp_path / "run") == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
