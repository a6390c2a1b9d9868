"""Only checkpoints below the root, and only by the names of the list."""

from __future__ import annotations

from pathlib import Path

from d2_ext.demo.checkpoints import choose, find_checkpoints
from d2_ext.errors import CheckpointError, ConfigError

import pytest


def _run(folder: Path, *weights: str) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    for name in weights:
        (folder / name).write_bytes(b"")


def test_run_folders_are_listed_final_models_first(tmp_path: Path) -> None:
    _run(tmp_path / "b", "model_final.pth", "model_0000099.pth")
    _run(tmp_path / "a/deep", "model_final.pth", "notes.txt")
    (tmp_path / "stray").mkdir()
    (tmp_path / "stray/model_final.pth").write_bytes(b"")  # no config beside it
    names = list(find_checkpoints(tmp_path))
    assert names == ["a/deep/model_final.pth", "b/model_final.pth", "b/model_0000099.pth"]


def test_links_out_of_the_root_are_left_out(tmp_path: Path) -> None:
    _run(tmp_path / "outside", "model_final.pth")
    _run(tmp_path / "root/inside", "model_final.pth")
    (tmp_path / "root/inside/linked.pth").symlink_to(tmp_path / "outside/model_final.pth")
    assert list(find_checkpoints(tmp_path / "root")) == ["inside/model_final.pth"]


@pytest.mark.parametrize("name", ["../outside/model_final.pth", "/etc/passwd", "a\0b", "", None, 3, ["x"]])
def test_a_name_that_is_not_in_the_list_reaches_no_file(tmp_path: Path, name: object) -> None:
    _run(tmp_path / "outside", "model_final.pth")
    _run(tmp_path / "root/x", "model_final.pth")
    with pytest.raises(CheckpointError, match="not in the list"):
        choose(find_checkpoints(tmp_path / "root"), name)


def test_a_root_without_checkpoints_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        find_checkpoints(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="Train first"):
        find_checkpoints(tmp_path)
