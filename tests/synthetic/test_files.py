"""Synthetic data on disk: the same bytes always, whole or not at all, valid COCO, known to Detectron2."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

from d2_ext.errors import ConfigError, DatasetError
from d2_ext.synthetic import SyntheticConfig, generate, is_complete, register_synthetic_drone, split_folder, writer
from d2_ext.synthetic import config as config_module
from d2_ext.synthetic.config import CLASSES, default_root, fingerprint

import cv2
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools.coco import COCO

from helpers.forked import FORKSERVER, start_script
from helpers.small_runs import wait_for_session

TINY = SyntheticConfig(num_train=6, num_val=2, sizes=((96, 80), (128, 64)))
SLOW = SyntheticConfig(num_train=16, num_val=0, sizes=((160, 160),))
SCRIPT = """
import logging, sys
from pathlib import Path
import d2_ext
from d2_ext.synthetic import SyntheticConfig, generate
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
generate(SyntheticConfig(num_train=16, num_val=0, sizes=((160, 160),)), sys.argv[1], splits=("train",), progress=False)
"""
KILLED = """
import multiprocessing, os, signal, sys
import d2_ext
from d2_ext.synthetic import SyntheticConfig, generate, writer
render_all = writer._render_all
def render_three(*arguments):
    for number, image in enumerate(render_all(*arguments)):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield image
writer._render_all = render_three
fork = multiprocessing.get_context("fork")
writer.multiprocessing.get_context = lambda _: fork  # interpreters started anew would import everything again
config = SyntheticConfig(num_train=6, num_val=2, sizes=((96, 80), (128, 64)))
generate(config, sys.argv[1], splits=("train",), processes=int(sys.argv[2]), progress=False)
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return generate(TINY, tmp_path_factory.mktemp("tiny"), progress=False)


@pytest.fixture
def registered(tmp_path: Path) -> Iterator[str]:
    register_synthetic_drone(tmp_path, config=TINY, name="test_synthetic")
    yield "test_synthetic_train"
    for name in ("test_synthetic_train", "test_synthetic_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _start(code: str, root: Path, *arguments: str, log: Path) -> BaseProcess:
    script = log.with_suffix(".py")
    script.write_text(code)
    return start_script(script, root, *arguments, cwd=root, log=log)


def test_bytes_are_equal_for_two_runs_and_for_two_processes(
    tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer.multiprocessing, "get_context", lambda _: FORKSERVER)
    again = generate(TINY, tmp_path, splits=("train",), processes=2, progress=False)["train"]
    assert len(_digests(again)) == 6 + 2
    assert _digests(again) == _digests(tiny["train"])


def test_a_second_call_draws_nothing(tiny: dict[str, Path]) -> None:
    before = {p: p.stat().st_mtime_ns for p in tiny["train"].rglob("*")}
    root = tiny["train"].parents[2]
    assert generate(TINY, root, progress=False) == tiny
    assert {p: p.stat().st_mtime_ns for p in tiny["train"].rglob("*")} == before


def test_the_json_is_valid_coco_with_boxes_inside_existing_images(tiny: dict[str, Path]) -> None:
    coco = COCO(str(tiny["train"] / "train.json"))
    assert sorted(coco.imgs) == [1, 2, 3, 4, 5, 6]
    assert [c["name"] for c in coco.loadCats([1, 2, 3, 4])] == list(CLASSES)
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    assert len(coco.anns) > 6
    for image in coco.imgs.values():
        pixels = cv2.imread(str(tiny["train"] / "images" / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
        for ann in coco.imgToAnns[image["id"]]:
            x, y, w, h = ann["bbox"]
            assert min(x, y) >= 0
            assert min(w, h) > 0
            assert x + w <= image["width"]
            assert y + h <= image["height"]
            assert ann["area"] == w * h
            assert ann["iscrowd"] in (0, 1)


def test_the_registered_name_draws_on_first_use_and_loads(registered: str) -> None:
    meta = MetadataCatalog.get(registered)
    assert not Path(meta.json_file).exists()
    records = DatasetCatalog.get(registered)
    assert Path(meta.json_file).is_file()
    assert Path(meta.image_root).is_dir()
    assert (meta.evaluator_type, meta.thing_classes) == ("coco", list(CLASSES))
    assert len(meta.thing_colors) == 4
    assert len(records) == 6
    assert all(Path(r["file_name"]).is_file() for r in records)
    assert {a["category_id"] for r in records for a in r["annotations"]} <= {0, 1, 2, 3}


def test_both_built_in_names_are_registered_below_the_data_root() -> None:
    for split in ("train", "val"):
        meta = MetadataCatalog.get(f"synthetic_drone_{split}")
        assert f"synthetic_drone_{split}" in DatasetCatalog.list()
        expected = split_folder(SyntheticConfig(), default_root(), split) / f"{split}.json"
        assert Path(meta.json_file) == expected


def test_the_data_root_follows_detectron2s_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "/somewhere")
    assert default_root() == Path("/somewhere")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert default_root() == Path("datasets")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_killed_generation_is_never_taken_for_whole_and_the_next_call_gives_the_same_bytes(
    tiny: dict[str, Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, processes: str
) -> None:
    folder = split_folder(TINY, tmp_path, "train")
    log = tmp_path_factory.mktemp("killed") / "log.txt"
    child = _start(KILLED, tmp_path, processes, log=log)
    child.join(900)
    assert child.exitcode == -signal.SIGKILL, log.read_text()
    left = list(folder.parent.glob(".train-*.part/images/*.jpg"))
    assert len(left) == 3  # it did leave something
    assert not folder.exists()
    assert not is_complete(folder, TINY)
    wait_for_session(child.pid)  # those that rendered for it end by themselves
    generate(TINY, tmp_path, splits=("train",), progress=False)
    assert _digests(folder) == _digests(tiny["train"])
    assert not list(folder.parent.glob(".train-*.part"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}'])
def test_a_damaged_fingerprint_is_that_of_no_data(tmp_path: Path, text: str) -> None:
    (tmp_path / "fingerprint.json").write_text(text)
    assert not is_complete(tmp_path, TINY)


def test_of_two_processes_that_ask_at_once_only_one_draws(tmp_path: Path) -> None:
    root, logs = tmp_path / "root", [tmp_path / f"{number}.txt" for number in range(2)]
    root.mkdir()
    children = [_start(SCRIPT, root, log=log) for log in logs]
    for child in children:
        child.join(900)
    outputs = [log.read_text() for log in logs]
    assert [child.exitcode for child in children] == [0, 0], outputs
    assert sum(text.count("Drawing 16 synthetic images") for text in outputs) == 1
    assert is_complete(split_folder(SLOW, root, "train"), SLOW)


def test_an_interruption_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("d2_ext.synthetic.writer._render", fail)
    with pytest.raises(KeyboardInterrupt):
        generate(TINY, tmp_path, splits=("train",), progress=False)
    folder = split_folder(TINY, tmp_path, "train")
    assert [p.name for p in folder.parent.iterdir()] == ["train.lock"]


def test_another_recipe_or_generator_gets_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = split_folder(TINY, tmp_path, "train")
    for change in ({"seed": 1}, {"num_train": 7}, {"sizes": ((96, 80),)}, {"empty_fraction": 0.5}):
        assert split_folder(dataclasses.replace(TINY, **change), tmp_path, "train") != folder
    edited = tmp_path / "source"
    edited.mkdir()
    (edited / "scene.py").write_text("changed = True")
    monkeypatch.setattr(config_module.importlib.resources, "files", lambda _: edited)
    config_module._source_digest.cache_clear()
    try:
        assert split_folder(TINY, tmp_path, "train") != folder
    finally:
        config_module._source_digest.cache_clear()


def test_a_folder_with_a_foreign_fingerprint_is_drawn_again(tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, num_train=1)
    folder = generate(recipe, tmp_path, splits=("train",), progress=False)["train"]
    record = json.loads((folder / "fingerprint.json").read_text())
    assert record["fingerprint"] == fingerprint(recipe)
    (folder / "fingerprint.json").write_text(json.dumps({**record, "fingerprint": "0000000000"}))
    (folder / "train.json").write_text("{}")
    generate(recipe, tmp_path, splits=("train",), progress=False)
    assert len(json.loads((folder / "train.json").read_text())["images"]) == 1


def test_a_root_that_cannot_be_written_is_a_data_set_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(DatasetError, match=r"cannot be written to .*DETECTRON2_DATASETS"):
        generate(TINY, file, progress=False)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_train": -1}, "num_train=-1 is negative"),
        ({"sizes": ()}, "sizes is empty"),
        ({"sizes": ((320, 20),)}, "64 to 4096 px"),
        ({"seed": -3}, "seed=-3"),
        ({"empty_fraction": 1.5}, "empty_fraction=1.5"),
    ],
)
def test_wrong_recipes_are_config_errors(change: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        SyntheticConfig(**change)  # type: ignore[arg-type]


def test_wrong_splits_and_process_counts_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        generate(TINY, tmp_path, splits=("trian",))
    with pytest.raises(ConfigError, match="processes=0"):
        generate(TINY, tmp_path, processes=0)
