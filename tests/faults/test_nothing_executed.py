"""Nothing of a config, option, data set, checkpoint or file name is ever executed: live payloads leave no trace.

Every payload makes a folder ``code_ran`` below the working directory if it runs; a last test proves that it can.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path

from d2_ext.checkpoint.safe import SafeCheckpointer, read_checkpoint
from d2_ext.data import register_coco_folder
from d2_ext.errors import CheckpointError, DatasetError

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from faults.checkpoint_cases import PROOF, Payload
from faults.config_cases import FCOS
from faults.data_cases import write_honest, write_json
from faults.runs import SMALL, run_train_net
from torch import nn

from helpers.scripts import ROOT

CALL = f"__import__('os').mkdir('{PROOF}')"
YAML = {
    "os.mkdir": f"!!python/object/apply:os.mkdir ['{PROOF}']",
    "eval": f'!!python/object/apply:eval ["{CALL}"]',
    "exec": f'!!python/object/apply:builtins.exec ["{CALL}"]',
    "object/new": f"!!python/object/new:os.mkdir ['{PROOF}']",
    "getattr": "!!python/name:os.system",
    "module": "!!python/module:antigravity",
    "subprocess": f"!!python/object/apply:subprocess.check_call [['mkdir', '{PROOF}']]",
}
PLACES = {
    "value": "OUTPUT_DIR: {}\n",
    "key": "? {}\n: 1\n",
    "list in a section": "MODEL:\n  RESNETS:\n    OUT_FEATURES: [res3, {}]\n",
    "section": "SOLVER: {}\n",
    "anchor": "OUTPUT_DIR: &x {}\nSEED: *x\n",
}
OPTIONS = (
    CALL,
    f"[{CALL}]",
    f"({CALL},)",
    f"{{'a': {CALL}}}",
    f"f'{{{CALL}}}'",
    f'eval("{CALL}")',
    f"[x for x in [{CALL}]]",
    f"(lambda: {CALL})()",
    f"!!python/object/apply:os.mkdir ['{PROOF}']",
    f"$(mkdir {PROOF})",
    f"`mkdir {PROOF}`",
    f"; mkdir {PROOF}",
)


@pytest.fixture(autouse=True)
def _traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, which must have no proof afterwards."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / PROOF).exists(), "a payload was executed"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("payload", YAML)
def test_yaml_tags(payload: str, place: str) -> None:
    Path("recipe.yaml").write_text(f"VERSION: 2\n{PLACES[place].format(YAML[payload])}")
    code, _, err = run_train_net(["--config-file", "recipe.yaml"])
    assert code == 2
    assert "not a safe, well-formed YAML" in err


def test_a_base_file_is_as_safe_as_the_file() -> None:
    Path("base.yaml").write_text(f"OUTPUT_DIR: {YAML['os.mkdir']}\n")
    Path("recipe.yaml").write_text("_BASE_: base.yaml\n")
    assert run_train_net(["--config-file", "recipe.yaml"])[0] == 2


@pytest.mark.parametrize("value", OPTIONS)
@pytest.mark.parametrize("key", ["SOLVER.MAX_ITER", "MODEL.FCOS.SIZES_OF_INTEREST", "DATASETS.TRAIN"])
def test_options_are_literals_or_text(key: str, value: str) -> None:
    code, _, err = run_train_net(["--config-file", str(ROOT / "configs" / FCOS), *SMALL, key, value])
    assert code == 2, err


@pytest.mark.parametrize("value", OPTIONS)
def test_options_that_are_text_stay_text(value: str) -> None:
    """A path may be any text; here it names weights that are not there."""
    code, _, err = run_train_net(["--config-file", str(ROOT / "configs" / FCOS), *SMALL, "MODEL.WEIGHTS", value])
    assert code in (1, 2)
    assert "error:" in err


def _pickle_in(wrap: Callable[[object], object]) -> bytes:
    return pickle.dumps(wrap(Payload()))


NESTED = {
    "weight": lambda p: {"model": {"weight": p}},
    "list": lambda p: {"model": {}, "optimizer": [[[p]]]},
    "tuple": lambda p: {"model": {"weight": (p,)}},
    "key of a dict": lambda p: {"model": {"a": 1}, "x": [(p, p)]},
    "before the weights": lambda p: [p, {"model": {}}],
}


@pytest.mark.parametrize("nesting", NESTED)
@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pyth", ".bin", ""])
def test_checkpoints(nesting: str, suffix: str) -> None:
    path = f"model{suffix}"
    if suffix == ".pkl":
        Path(path).write_bytes(_pickle_in(NESTED[nesting]))
    else:
        torch.save(NESTED[nesting](Payload()), path)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    with pytest.raises(CheckpointError):
        SafeCheckpointer(nn.Linear(1, 1), save_to_disk=False).load(path)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickles_of_every_protocol(protocol: int) -> None:
    Path("model.pkl").write_bytes(pickle.dumps({"model": {"weight": Payload()}}, protocol=protocol))
    with pytest.raises(CheckpointError, match="could run code"):
        read_checkpoint("model.pkl")


@pytest.mark.parametrize(
    "name",
    ["numpy.os.mkdir", "numpy.testing.runstring", "numpy.core.multiarray.os", "collections.abc.sys", "_codecs.lookup"],
)
def test_pickles_reach_no_function_through_a_module_that_they_may_name(name: str) -> None:
    module, _, function = name.rpartition(".")
    Path("model.pkl").write_bytes(f"c{module}\n{function}\n(S'{PROOF}'\ntR.".encode())
    with pytest.raises(CheckpointError):
        read_checkpoint("model.pkl")


@pytest.mark.parametrize(
    "name", [f"$(mkdir {PROOF}).jpg", f"`mkdir {PROOF}`.jpg", f"; mkdir {PROOF};.jpg", f"|mkdir {PROOF}"]
)
def test_file_names_are_names(name: str) -> None:
    content = write_honest(Path("data"))
    content["images"][0]["file_name"] = name
    write_json(Path("data"), content)
    with pytest.raises(DatasetError):
        register_coco_folder("payload_names", "data")
    Path("data/images/a.jpg").rename(Path("data/images") / name)
    register_coco_folder("payload_names", "data")
    try:
        assert DatasetCatalog.get("payload_names")[0]["file_name"].endswith(name)
    finally:
        DatasetCatalog.remove("payload_names")
        MetadataCatalog.pop("payload_names")


@pytest.mark.parametrize("field", ["file_name", "id", "bbox", "name"])
def test_json_is_data(field: str) -> None:
    content = write_honest(Path("data"))
    rows = {"bbox": "annotations", "name": "categories"}.get(field, "images")
    content[rows][0][field] = CALL
    write_json(Path("data"), content)
    try:
        register_coco_folder("payload_json", "data")
        json.dumps(DatasetCatalog.get("payload_json"))
    except DatasetError:
        pass
    finally:
        DatasetCatalog.pop("payload_json", None)
        MetadataCatalog.pop("payload_json", None)


def test_the_payloads_are_live(tmp_path: Path) -> None:
    for run in (lambda: pickle.loads(_pickle_in(NESTED["weight"])), lambda: eval(CALL)):
        run()
        assert (tmp_path / PROOF).is_dir()
        os.rmdir(PROOF)
    buffer = io.StringIO()
    pickletools.dis(_pickle_in(NESTED["list"]), out=buffer)
    assert "REDUCE" in buffer.getvalue()
