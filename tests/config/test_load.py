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


@pytest.mark.parametrize("text", ["_BASE_: http://127.0.0.1:9/a.yaml\n", "_BASE_: detectron2://a.yaml\n"])
def test_a_base_on_another_machine_is_not_fetched(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"_BASE_ is '.*://.*a\.yaml', which lies elsewhere"):
        _load(_yaml(tmp_path, text))
    with pytest.raises(ConfigError, match="lies elsewhere"):
        _load("http://127.0.0.1:9/a.yaml")


def test_chains_of_bases_have_an_end(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"{number}.yaml").write_text(f"_BASE_: {number + 1}.yaml\n")
    (tmp_path / "60.yaml").write_text("VERSION: 2\n")
    assert _load(str(tmp_path / "11.yaml")).VERSION == 2
    with pytest.raises(ConfigError, match=r"50\.yaml: _BASE_ is '51\.yaml', below 50 files"):
        _load(str(tmp_path / "0.yaml"))


@pytest.mark.parametrize("text", ["SOLVER: {MAX_ITER: 1, MAX_ITER: 2}\n", "DATASETS: {CLASSES: &c [*c]}\n"])
def test_double_keys_and_cycles_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="not a safe, well-formed YAML file: "):
        _load(_yaml(tmp_path, text))


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
        (["OUTPUT_DIR", "x", "--num-gpus", "2"], "--num-gpus comes behind the first KEY VALUE"),
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
    assert len(paths) == 6
    assert all((root / path).is_file() for path in paths)
