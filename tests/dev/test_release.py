"""Releases: the same bytes whenever they are packed, a bill of materials of all that is needed, and locked tools."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import d2_ext

import pytest
import yaml
from packaging.requirements import Requirement

from helpers.scripts import ROOT, load_script

release, lock = load_script("dev/release.py"), load_script("dev/lock_tools.py")
dependencies = load_script("dev/check_dependencies.py")


def _archive(mtime: int, names: list[str], owner: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.uname, member.uid, member.mode = 3, mtime, owner, mtime, 0o664
            archive.addfile(member, io.BytesIO(name[:3].encode()))
    return packed.getvalue()


def test_archives_of_other_times_owners_and_orders_become_the_same_bytes() -> None:
    one, other = _archive(5, ["a/b.py", "a/c" * 60], "me"), _archive(99, ["a/c" * 60, "a/b.py"], "you")
    packed = release.same_times(one, 1_700_000_000)
    assert packed == release.same_times(other, 1_700_000_000)
    assert packed != release.same_times(one, 1_700_000_001)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        member = archive.getmember("a/b.py")
        assert (member.mtime, member.uid, member.uname, member.mode) == (1_700_000_000, 0, "", 0o644)
        assert archive.extractfile(member).read() == b"a/b"


def test_the_bill_of_materials_names_all_that_is_needed_and_is_the_same_each_time() -> None:
    files = {"d2_ext-1.0-py3-none-any.whl": b"x"}
    bill = release.sbom("1.0", 1_700_000_000, files)
    assert bill == release.sbom("1.0", 1_700_000_000, files)
    assert bill["serialNumber"] != release.sbom("1.0", 1_700_000_001, files)["serialNumber"]
    assert (bill["bomFormat"], bill["metadata"]["timestamp"]) == ("CycloneDX", "2023-11-14T22:13:20Z")
    names = {row["name"] for row in bill["components"]}
    assert {"torch", "numpy", "pillow", "sympy"} <= names, "sympy is needed by torch"
    assert "pytest" not in names
    known = {row["bom-ref"] for row in [*bill["components"], bill["metadata"]["component"]]}
    for row in bill["dependencies"]:
        assert {row["ref"], *row["dependsOn"]} <= known
    assert bill["metadata"]["component"]["hashes"][0]["content"] == release.digest(b"x")


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.whl").write_text("")
    assert release.main(["--output", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_every_tool_is_locked_as_setup_py_asks_and_no_address_is_written() -> None:
    assert lock.main(["--check"]) == 0
    text = lock.TARGET.read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all([s.operator for s in Requirement(line).specifier] == ["=="] for line in lines)
    assert "://" not in text
    assert lock.problems(text.replace("ruff==", "ruff==0."))[0].startswith("ruff 0.")
    assert "pytest has no line" in lock.problems("ruff==0.17.5\n")


def test_a_version_for_newer_pythons_gets_a_marker() -> None:
    def item(name: str, python: str | None) -> dict[str, dict[str, str | None]]:
        return {"metadata": {"name": name, "version": "1", "requires_python": python}}

    report = {"install": [item("B_c", ">=3.11"), item("a", ">=3.8"), item("numpy", None)]}
    assert lock.lines(report, ["NumPy"]) == ["a==1", 'b-c==1 ; python_full_version >= "3.11"']


def test_the_citation_and_the_container_speak_of_this_version_and_these_files() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == d2_ext.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"AS {container['build']['target']}" in dockerfile
    assert dockerfile.rstrip().splitlines()[-3:] == ["USER d2", 'ENTRYPOINT ["d2_ext"]', 'CMD ["--help"]']
    python = container["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert f"ENV PATH={Path(python).parent}:$PATH" in dockerfile


def test_the_image_installs_the_torch_that_the_wheel_asks_for() -> None:
    in_image = {str(Requirement(text)) for text in re.findall(r'"(torch[^"]*)"', (ROOT / "Dockerfile").read_text())}
    of_wheel = {str(entry) for entry in dependencies.requirements()[""] if entry.name in ("torch", "torchvision")}
    assert in_image == of_wheel


def test_what_dockerignore_keeps_is_enough_for_the_wheel(tmp_path: Path) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*", "all but what follows is left out"
    for name in [line[1:] for line in lines if line.startswith("!")]:
        source, target = ROOT / name, tmp_path / "src" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(command, check=True, cwd=tmp_path / "src", env={**os.environ, "PYTHONPATH": ""})
    built = {path.relative_to(tmp_path / "lib").as_posix() for path in (tmp_path / "lib").rglob("*") if path.is_file()}
    tracked = [Path(name) for name in release.git("ls-files", "d2_ext", "configs").decode().splitlines()]
    wanted = {str(p) for p in tracked if p.suffix in (".py", ".safetensors", ".html", ".css", ".typed")}
    wanted |= {f"d2_ext/{p}" for p in tracked if p.parts[0] == "configs" and p.suffix == ".yaml"}
    assert wanted <= built
