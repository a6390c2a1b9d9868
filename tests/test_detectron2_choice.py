"""Which ``detectron2`` a process gets: all in new processes, since a process can choose only once.

Most of them load ``d2_ext/_detectron2.py`` alone, which is quick, and find small fakes of the real Detectron2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers.scripts import ROOT

STANDIN = ROOT / "d2_ext" / "_standin"

CHOOSE = f"""
import importlib.util, logging, sys
logging.basicConfig(level=logging.INFO, format="LOG %(name)s %(message)s", stream=sys.stdout)
spec = importlib.util.spec_from_file_location("choice", {str(ROOT / "d2_ext" / "_detectron2.py")!r})
choice = importlib.util.module_from_spec(spec)
spec.loader.exec_module(choice)
"""
SAY = """
print("KIND", choice.ensure_detectron2(), choice.ensure_detectron2())
print("FOUND", importlib.util.find_spec("detectron2").origin)
"""


def _python(
    code: str, *, cwd: Path, path: tuple[Path, ...] = (), choice: str | None = None
) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "D2_EXT_DETECTRON2")}
    if path:
        env["PYTHONPATH"] = os.pathsep.join(map(str, path))
    if choice is not None:
        env["D2_EXT_DETECTRON2"] = choice
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def _output(code: str, **options: object) -> dict[str, str]:
    """The lines that the code printed, by their first word."""
    done = _python(code, **options)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


def _error(code: str, **options: object) -> str:
    done = _python(code, **options)  # type: ignore[arg-type]
    assert done.returncode != 0, done.stdout
    return done.stderr.splitlines()[-1]


@pytest.fixture(scope="module", autouse=True)
def _nothing_installed(tmp_path_factory: pytest.TempPathFactory) -> None:
    code = "import importlib.util; print('SPEC', importlib.util.find_spec('detectron2'))"
    if _output(code, cwd=tmp_path_factory.mktemp("empty"))["SPEC"] != "None":
        pytest.skip("a Detectron2 is installed for this interpreter, and these tests need to hide it")


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    """A folder with a package that looks like the real Detectron2."""
    package = tmp_path / "site" / "detectron2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "0.6"\n')
    return package.parent


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder in which Detectron2 was cloned, so that ``./detectron2`` is no package."""
    inner = tmp_path / "work" / "detectron2" / "detectron2"
    inner.mkdir(parents=True)
    (inner / "__init__.py").write_text("raise AssertionError('the clone was imported')\n")
    return tmp_path / "work"


def test_without_detectron2_the_stand_in_is_found_last_and_one_line_says_so(tmp_path: Path) -> None:
    out = _output(CHOOSE + SAY + "print('LAST', sys.path[-1], sys.path.count(sys.path[-1]))", cwd=tmp_path)
    assert out["KIND"] == "standin standin"
    assert out["FOUND"] == str(STANDIN / "detectron2" / "__init__.py")
    assert out["LAST"] == f"{STANDIN} 1"
    assert out["LOG"] == "d2_ext Detectron2: the stand-in of d2_ext (no Detectron2 is installed)"
    done = _python(CHOOSE + SAY, cwd=tmp_path)
    assert done.stdout.count("LOG") == 1


@pytest.mark.parametrize("choice", [None, "auto", "stock"])
def test_the_installed_package_comes_first(tmp_path: Path, stock: Path, choice: str | None) -> None:
    code = CHOOSE + SAY + "print('PATH', choice.STANDIN_DIR.as_posix() in sys.path)"
    out = _output(code, cwd=tmp_path, path=(stock,), choice=choice)
    assert out["KIND"] == "stock stock"
    assert out["FOUND"] == str(stock / "detectron2" / "__init__.py")
    assert out["LOG"] == f"d2_ext Detectron2: {stock / 'detectron2' / '__init__.py'}"
    assert out["PATH"] == "False"


def test_a_package_found_by_an_import_hook_comes_first(tmp_path: Path, stock: Path) -> None:
    """As of an editable installation."""
    hook = f"""
import importlib.machinery
class Editable:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return importlib.machinery.PathFinder.find_spec(name, [{str(stock)!r}]) if name == "detectron2" else None
sys.meta_path.append(Editable)
"""
    assert _output(CHOOSE + hook + SAY, cwd=tmp_path)["KIND"] == "stock stock"


def test_the_stand_in_can_be_insisted_on(tmp_path: Path, stock: Path) -> None:
    out = _output(CHOOSE + SAY, cwd=tmp_path, path=(stock,), choice="standin")
    assert out["KIND"] == "standin standin"
    assert out["FOUND"] == str(STANDIN / "detectron2" / "__init__.py")
    assert out["LOG"] == "d2_ext Detectron2: the stand-in of d2_ext (D2_EXT_DETECTRON2=standin)"


def test_insisting_on_the_real_one_passes_over_a_stand_in_on_the_path(tmp_path: Path, stock: Path) -> None:
    assert _output(CHOOSE + SAY, cwd=tmp_path, path=(STANDIN, stock), choice="stock")["KIND"] == "stock stock"
    assert _output(CHOOSE + SAY, cwd=tmp_path, path=(STANDIN,))["KIND"] == "standin standin"


def test_insisting_on_the_real_one_without_it_names_the_installation_page(tmp_path: Path) -> None:
    for path in ((), (STANDIN,)):
        text = _error(CHOOSE + SAY, cwd=tmp_path, choice="stock", path=path)
        assert "D2_EXT_DETECTRON2=stock, but no Detectron2 is installed" in text
        assert "https://detectron2.readthedocs.io" in text


def test_a_wrong_value_is_refused(tmp_path: Path) -> None:
    text = _error(CHOOSE + SAY, cwd=tmp_path, choice="real")
    assert "D2_EXT_DETECTRON2='real' is not known. Set it to one of auto, stock, standin" in text


def test_a_cloned_folder_beside_the_script_is_no_package(clone: Path, stock: Path) -> None:
    assert _output(CHOOSE + SAY, cwd=clone)["FOUND"] == str(STANDIN / "detectron2" / "__init__.py")
    assert _output(CHOOSE + SAY, cwd=clone, path=(stock,))["KIND"] == "stock stock"
    assert "no Detectron2 is installed" in _error(CHOOSE + SAY, cwd=clone, choice="stock")


def test_a_cloned_folder_that_was_imported_first_is_named(clone: Path) -> None:
    text = _error("import detectron2" + CHOOSE + SAY, cwd=clone)
    assert str(clone / "detectron2") in text
    assert "Import d2_ext before detectron2" in text


def test_a_detectron2_that_is_already_imported_is_kept(tmp_path: Path, stock: Path) -> None:
    code = "import detectron2" + CHOOSE + SAY
    assert _output(code, cwd=tmp_path, path=(stock,))["KIND"] == "stock stock"
    text = _error(code, cwd=tmp_path, path=(stock,), choice="standin")
    assert "D2_EXT_DETECTRON2=standin, but the stock detectron2" in text
    assert "Import d2_ext before detectron2" in text


def test_without_d2_ext_there_is_no_detectron2(tmp_path: Path) -> None:
    assert _error("import detectron2", cwd=tmp_path) == "ModuleNotFoundError: No module named 'detectron2'"


def test_a_broken_installation_raises_its_own_error(tmp_path: Path, stock: Path) -> None:
    (stock / "detectron2" / "__init__.py").write_text("import a_module_that_is_not_there\n")
    text = _error("import d2_ext", cwd=tmp_path, path=(ROOT, stock))
    assert text == "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"


WORKERS = """
import d2_ext, pickle, sys
import torch
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.build import trivial_batch_collator
from detectron2.structures import Boxes, Instances
import detectron2
item = Instances((4, 5), gt_boxes=Boxes(torch.ones(2, 4)))
data = MapDataset(DatasetFromList([{"x": item}]), lambda record: record)
for method in ("spawn", "forkserver"):
    loader = torch.utils.data.DataLoader(
        data, num_workers=1, collate_fn=trivial_batch_collator, multiprocessing_context=method)
    batch = next(iter(loader))
    print(method, type(batch[0]["x"]) is Instances, type(batch[0]["x"].gt_boxes) is Boxes, len(batch[0]["x"]))
with open("pickled", "wb") as file:
    pickle.dump([item, item.gt_boxes], file)
print("NAME", Boxes.__module__, detectron2.__standin__)
"""
READ = """
import d2_ext, pickle
with open("pickled", "rb") as file:
    item, boxes = pickle.load(file)
from detectron2.structures import Boxes, Instances
print("SAME", isinstance(item, Instances), isinstance(boxes, Boxes), boxes.tensor.sum().item())
"""
READ_WITHOUT = "import pickle; pickle.load(open('pickled', 'rb'))"


def test_workers_and_pickles_know_the_stand_in(clone: Path) -> None:
    """Workers of code that is no file, started anew, in a folder with a clone in it."""
    out = _output(WORKERS, cwd=clone, path=(ROOT,))
    assert out["spawn"] == out["forkserver"] == "True True 2"
    assert out["NAME"] == "detectron2.structures.boxes True"
    assert _output(READ, cwd=clone, path=(ROOT,))["SAME"] == "True True 8.0"
    assert "No module named 'detectron2" in _error(READ_WITHOUT, cwd=clone, path=(ROOT,))


def test_the_wheel_contains_the_stand_in_the_recipes_and_the_models(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    source, site = tmp_path / "source", tmp_path / "site"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("d2_ext", "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(site)
    expected = {path.relative_to(source).as_posix() for path in (source / "d2_ext").rglob("*.py")}
    assert expected - names == set()
    assert {"d2_ext/py.typed", "d2_ext/_standin/detectron2/README.md"} <= names
    assert {f"d2_ext/{path.relative_to(source)}" for path in (source / "configs").rglob("*.yaml")} <= names
    models = [path.parent.relative_to(source) for path in (source / "d2_ext/model_zoo").glob("*/model.safetensors")]
    for model in models:
        assert {f"{model}/{name}" for name in ("model.safetensors", "config.yaml", "README.md")} <= names
    assert wheel.stat().st_size < 12_000_000
    assert "d2_ext/_standin/__init__.py" not in names
    code = "import d2_ext, detectron2.config; print('FROM', detectron2.__file__)"
    found = _output(code, cwd=tmp_path, path=(site,))["FROM"]
    assert found == str(site / "d2_ext" / "_standin" / "detectron2" / "__init__.py")
