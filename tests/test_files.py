"""YAML from strangers: plain values or one error; each line below makes PyYAML raise something of its own."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from d2_ext.config.load import load_config
from d2_ext.errors import ConfigError, DatasetError
from d2_ext.files import naming, read_yaml, replacing

import pytest


@pytest.mark.parametrize(
    "text",
    [
        "a: 2020-99-99",  # ValueError of a date
        "a: 0b_",  # ValueError of a number
        "a: !!bool maybe",  # KeyError
        "a: !!timestamp soon",  # AttributeError
        "a: !!int ''",  # IndexError
        "a: " + "[" * 5000,  # RecursionError
        "a: &a [*a]",
        "{a: 1, b: 2, a: 3}",
        "x: &0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(f"k{n}: &{n} [{', '.join([f'*{n - 1}'] * 10)}]\n" for n in range(1, 9)),
        "x: &a [1]\ny: [" + "*a, " * 1001 + "]",
        "x: &a " + "[" * 29 + "]" * 29 + "\ny: " + "[" * 22 + "*a" + "]" * 22,
        "a: !!python/object/apply:os.system ['true']",
        "a: [",
        "a: \xff",
    ],
    ids=lambda text: text[:30].encode("ascii", "backslashreplace").decode(),
)
def test_what_yaml_cannot_convert_is_one_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(ConfigError, match=r"recipe\.yaml is not a safe, well-formed YAML file: \S"):
        read_yaml(path)


def test_the_error_is_of_the_readers_kind(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path, DatasetError)


@pytest.mark.parametrize("place", ["yaml.load", "detectron2.config.CfgNode.merge_from_file"])
def test_memory_that_runs_out_is_no_fault_of_a_config(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*args: object, **kwargs: object) -> None:
        raise MemoryError

    (tmp_path / "a.yaml").write_text("SEED: 1")
    monkeypatch.setattr(place, short)
    with pytest.raises(ConfigError, match=r"a\.yaml cannot be read: memory ran out"):
        load_config(tmp_path / "a.yaml")


def test_plain_values_come_back(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [1, 2.5, b]")
    assert read_yaml(tmp_path / "a.yaml") == {"a": [1, 2.5, "b"]}


def test_an_error_of_writing_names_the_file_that_was_to_be(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'a.json'}'"),
        replacing(tmp_path / "a.json"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError, match="'other'"), naming(tmp_path):
        os.stat("other")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["n" * 251 + ".jpg", "\U0001f4f7" * 62 + ".jpg"], ids=["ascii", "four bytes a letter"])
def test_the_longest_names_can_be_written(tmp_path: Path, name: str) -> None:
    with replacing(tmp_path / name) as temporary:
        temporary.touch()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_temporary_that_cannot_be_removed_does_not_hide_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(OSError, match="No space left on device"), replacing(tmp_path / "a.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_that_cannot_be_synced_costs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))  # as some network file systems say
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    with replacing(tmp_path / "a.json", durable=True) as path:
        path.write_text("{}")
    assert (tmp_path / "a.json").read_text() == "{}"
