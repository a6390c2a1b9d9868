"""Build source archive and wheel of the last commit so that anybody gets the same bytes; check and describe them.

Each is built twice, in two folders, from what git has; twine checks how the package index will show them. Beside them
go ``SHA256SUMS`` and a software bill of materials (CycloneDX) of the library and of what it needs, in the versions that
are installed here. Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from d2_ext.cli.command import command_parser

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

sys.path.append(str(Path(__file__).parent))
from check_dependencies import licence, requirements

EXAMPLES = """examples:
  into dist/ (needs: pip install -e ".[release]"):
    python dev/release.py
  elsewhere, of another commit:
    python dev/release.py --output /tmp/d2_ext_release --commit v0.1.0

exit codes: 0 done, 1 the two builds differ or twine objects, 2 wrong usage
"""
ROOT = Path(__file__).resolve().parents[1]
# setuptools changes sys.argv while it builds.
BUILD = """import os, sys
from setuptools import build_meta
os.umask(0o022)
folder = sys.argv[1]
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""
KINDS = [".gz", ".whl"]
SBOM = "sbom.cdx.json"


def git(*words: str) -> bytes:
    """What a git command prints."""
    return subprocess.run(["git", "-C", str(ROOT), *words], check=True, stdout=subprocess.PIPE).stdout


def build(commit: str, epoch: int, target: Path) -> dict[str, bytes]:
    """Build a commit in a folder of its own.

    Args:
        commit: as git names it.
        epoch: seconds, of all times in the files.
        target: an empty folder to work in.

    Returns:
        Name -> content of the archive and the wheel.
    """
    source, made = target / "source", target / "made"
    made.mkdir()
    with tarfile.open(fileobj=io.BytesIO(git("archive", "--prefix=source/", commit))) as archive:
        archive.extractall(target, filter="data")
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "PYTHONHASHSEED": "0", "PYTHONPATH": ""}
    command = [sys.executable, "-c", BUILD, str(made)]
    subprocess.run(command, check=True, cwd=source, env=environment, stdout=subprocess.DEVNULL)
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    assert sorted(Path(name).suffix for name in files) == KINDS, f"setuptools has made {', '.join(files)}"
    return {name: same_times(data, epoch) if name.endswith(".tar.gz") else data for name, data in files.items()}


def same_times(archive: bytes, epoch: int) -> bytes:
    """A ``.tar.gz`` with sorted names, no owners, and one time; setuptools writes those of the machine."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as old, tarfile.open(fileobj=packed, mode="w") as new:
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime = epoch
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    return gzip.compress(packed.getvalue(), mtime=epoch)


def needed() -> dict[str, tuple[Distribution, list[str]]]:
    """Name -> distribution and names that it needs, of all that the library needs, directly or not.

    Raises:
        PackageNotFoundError: something is not installed.
    """
    found: dict[str, tuple[Distribution, list[str]]] = {}
    waiting = [canonicalize_name(entry.name) for entry in requirements()[""]]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        package = distribution(name)
        entries = [Requirement(text) for text in package.requires or ()]
        entries = [e for e in entries if e.marker is None or e.marker.evaluate({"extra": ""})]
        found[name] = package, sorted({str(canonicalize_name(entry.name)) for entry in entries})
        waiting += found[name][1]
    return dict(sorted(found.items()))


def sbom(version: str, epoch: int, files: dict[str, bytes]) -> dict[str, Any]:
    """A bill of materials in CycloneDX 1.6; equal for equal files and equal installed versions.

    Args:
        version: of the library.
        epoch: seconds, its time.
        files: name -> content of what is released.
    """

    def reference(name: str, version: str) -> str:
        return f"pkg:pypi/{name}@{version}"

    def component(name: str, version: str, licences: list[dict[str, Any]]) -> dict[str, Any]:
        purl = reference(name, version)
        row = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
        return {**row, "licenses": licences} if licences else row

    packages = needed()
    components, dependencies = [], []
    for name, (package, needs) in packages.items():
        expression = package.metadata.get("License-Expression")
        licences = [{"expression": expression}] if expression else [{"license": {"name": licence(package)}}]
        components.append(component(name, package.version, licences))
        below = [reference(other, packages[other][0].version) for other in needs]
        dependencies.append({"ref": reference(name, package.version), "dependsOn": below})
    own = component("d2-ext", version, [{"expression": "Apache-2.0"}])
    own["hashes"] = [
        {"alg": "SHA-256", "content": digest(data)} for name, data in files.items() if name.endswith(".whl")
    ]
    direct = sorted({str(canonicalize_name(entry.name)) for entry in requirements()[""]})
    below = [reference(name, packages[name][0].version) for name in direct]
    content = {
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, timezone.utc).isoformat().replace("+00:00", "Z"),
            "tools": {"components": [{"type": "application", "name": "dev/release.py", "version": version}]},
            "component": own,
        },
        "components": components,
        "dependencies": [{"ref": own["bom-ref"], "dependsOn": below}, *dependencies],
    }
    number = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content, sort_keys=True))
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{number}", "version": 1}
    return {**head, **content}


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder, empty or not there (dist)")
    parser.add_argument("--commit", default="HEAD", help="what is released (%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Build, compare, check and describe; returns the exit code."""
    args = argument_parser().parse_args(argv)
    if args.output.exists() and any(args.output.iterdir()):
        print(f"error: {args.output} is not empty. Name another folder with --output.", file=sys.stderr)
        return 2
    # 1. Twice the same bytes.
    epoch = int(git("log", "-1", "--format=%ct", args.commit))
    text = git("show", f"{args.commit}:d2_ext/__init__.py").decode()
    version = str(re.findall(r'__version__ = "(.+)"', text)[0])
    builds = []
    for _ in range(2):
        with tempfile.TemporaryDirectory(prefix="d2_ext_release_") as folder:
            builds.append(build(args.commit, epoch, Path(folder)))
    files, again = builds
    different = sorted(name for name in files.keys() | again.keys() if files.get(name) != again.get(name))
    if different:
        print(f"error: two builds differ: {', '.join(different)}", file=sys.stderr)
        return 1
    # 2. What it is made of, and the sums of all.
    try:
        files[SBOM] = (json.dumps(sbom(version, epoch, files), indent=1) + "\n").encode()
    except PackageNotFoundError as error:
        print(
            f"error: {error}. The bill of materials needs an environment with the library installed.", file=sys.stderr
        )
        return 1
    files["SHA256SUMS"] = "".join(f"{digest(files[name])}  {name}\n" for name in sorted(files)).encode()
    args.output.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (args.output / name).write_bytes(data)
    # 3. What the package index will say.
    packages = [str(args.output / name) for name in files if name.endswith((".whl", ".tar.gz"))]
    checked = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *packages])
    print(files["SHA256SUMS"].decode() + f"Written to {args.output}")
    return int(checked.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
