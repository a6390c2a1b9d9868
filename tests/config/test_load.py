"""Configs from files and command lines: what is wrong is said before anything is built."""

from __future__ import annotations

from pathlib import Path

from d2_ext.cli.train import argument_parser
from d2_ext.config.load import load_config
from d2_ext.errors import ConfigError

import pytest
from detectron2.config import CfgNode


def _load(config_file: str = "", *options: str) -> CfgNode:
    return load_config(config_file, ["MODEL.META_ARCHITECTURE", "RetinaNet", *options])


def _yaml(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_a_config_is_frozen_and_has_the_keys_of_d2_ext() -> None:
    cfg = _load("", "TEST.NUM_PICTURES", "3")
    assert cfg.is_frozen()
    assert cfg.TEST.NUM_PICTURES == 3


def test_a_missing_file_is_named_with_its_nearest_neighbour(tmp_path: Path) -> None:
    _yaml(tmp_path, "VERSION: 2\n")
    with pytest.raises(ConfigError, match=r"no file .*recip\.yaml.*Did you mean 'recipe\.yaml'"):
        _load(str(tmp_path / "recip.yaml"))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder .*nowhere"):
        _load(str(tmp_path / "nowhere" / "recipe.yaml"))


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['true']", "!!python/object/apply:eval ['1']"])
def test_yaml_that_would_run_code_is_refused(tmp_path: Path, tag: str) -> None:
    with pytest.raises(ConfigError, match="not a safe"):
        _load(_yaml(tmp_path, f"VERSION: 2\nOUTPUT_DIR: {tag}\n"))


def test_yaml_that_would_run_code_does_not_run_it(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    tag = f"!!python/object/apply:os.mkdir ['{proof}']"
    with pytest.raises(ConfigError):
        _load(_yaml(tmp_path, f"VERSION: 2\nOUTPUT_DIR: {tag}\n"))
    assert not proof.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "VERSION: 2\nSOLVER:\n  BASE_LRR: 0.1\n",
            "recipe.yaml: unknown config key 'SOLVER.BASE_LRR'.*'SOLVER.BASE_LR'",
        ),
        ("VERSION: 2\nSOLVER:\n  MAX_ITER: many\n", "recipe.yaml: Type mismatch.*MAX_ITER"),
        ("VERSION: 2\nSOLVER: [\n", "not a safe, well-formed YAML"),
    ],
)
def test_mistakes_in_a_file_name_the_file_and_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        _load(_yaml(tmp_path, text))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["SOLVER.MAX_ITR", "5"], "unknown config key 'SOLVER.MAX_ITR'. Did you mean 'SOLVER.MAX_ITER'"),
        (["SOLVER.MAX_ITER"], "pairs of KEY VALUE, but 3 words"),
        (["SOLVER.MAX_ITER", "1.5"], "Command line: Type mismatch"),
        (["MODEL.META_ARCHITECTURE", "RetinaNetCEASK"], "MODEL.META_ARCHITECTURE: .*Did you mean 'RetinaNetCEASC'"),
        (["MODEL.BACKBONE.NAME", "resnet"], "MODEL.BACKBONE.NAME: nothing is registered as 'resnet'"),
    ],
)
def test_mistakes_on_the_command_line_come_with_advice(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _load("", *options)


def test_a_cuda_config_runs_on_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert _load().MODEL.DEVICE == "cpu"


def test_help_ends_with_examples_that_name_existing_files() -> None:
    epilog = argument_parser().epilog
    paths = [word for word in epilog.split() if word.startswith("configs/")]
    root = Path(__file__).resolve().parents[2]
    assert len(paths) == 5
    assert all((root / path).is_file() for path in paths)
