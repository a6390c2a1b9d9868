"""Check what the project depends on: licences of what is installed, and version ranges, without network.

Licences are compared with a list of those that do not bind users of an Apache-2.0 project; ranges must have a lower
bound that leaves out versions with known holes, and be satisfied by what is installed.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from d2_ext.cli.command import command_parser

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

EXAMPLES = """examples:
  check, as CI does:
    python dev/check_dependencies.py
  write the page of licences anew:
    python dev/check_dependencies.py --write docs/licences.md
  the oldest versions that setup.py allows, in an environment of their own:
    python dev/check_dependencies.py --lowest lowest.txt
    python -m venv lowest && lowest/bin/pip install -r lowest.txt pytest hypothesis
    PYTHONPATH=$PWD lowest/bin/python -m pytest tests/checkpoint tests/layers tests/contract
"""
ROOT = Path(__file__).resolve().parents[1]

# Words of a licence, lower case, that may stand in what a package says of itself.
ALLOWED = (
    *("apache", "bsd", "freebsd", "mit", "isc", "psf", "hpnd", "mpl", "lgpl", "zlib", "0bsd", "cc0", "unlicense"),
    *("python software foundation", "mozilla", "historical permission", "public domain", "lesser general public"),
)
# Packages that say nothing a program can read -> what their repositories say.
KNOWN = {"pycocotools": "BSD-2-Clause", "iopath": "MIT", "atheris": "Apache-2.0"}
# Package -> (versions below this one must not be allowed, why). The reason is what a later reader needs to know whether
# a floor may go up or down; checkpoint/safe.py knows torch's, too.
KNOWN_BAD = {
    "torch": ("2.10", "torch.load(weights_only=True) corrupts memory on a crafted file: CVE-2026-24747"),
    "Pillow": ("10.3", "buffer overflow in _imagingcms: CVE-2024-28219"),
    "pyyaml": ("5.4", "full_load could run code: CVE-2020-14343"),
    "opencv-python": ("4.8.1.78", "bundled libwebp writes out of bounds: CVE-2023-4863"),
    "tqdm": ("4.66.3", "arguments of its command line were evaluated: CVE-2024-34062"),
    "numpy": ("1.22", "null pointer in array sorting: CVE-2021-41496"),
}


@dataclass(frozen=True)
class Package:
    """An installed dependency.

    Attributes:
        name: as on the package index.
        licence: what it says of itself.
        extra: which extra of ours asks for it; empty for the library itself.
    """

    name: str
    licence: str
    extra: str


def requirements(setup_py: Path = ROOT / "setup.py") -> dict[str, list[Requirement]]:
    """Requirements of ``setup.py`` by extra; those of the library have the empty name. The file is not run."""
    for node in ast.walk(ast.parse(setup_py.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup":
            words = {k.arg: k.value for k in node.keywords}
            found = {"": ast.literal_eval(words["install_requires"]), **ast.literal_eval(words["extras_require"])}
            return {extra: [Requirement(text) for text in texts] for extra, texts in found.items()}
    raise ValueError(f"{setup_py} does not call setup(...)")


def range_problems(wanted: dict[str, list[Requirement]]) -> Iterator[str]:
    """What is wrong with version ranges; an optional package need not be installed."""
    for extra, entries in wanted.items():
        for entry in entries:
            bad = next((v for k, v in KNOWN_BAD.items() if canonicalize_name(k) == canonicalize_name(entry.name)), None)
            if bad is not None and _allows_below(entry, Version(bad[0])):
                yield f"{entry}: allows versions below {bad[0]} ({bad[1]}). Write {entry.name}>={bad[0]}."
            if not extra and not any(s.operator in (">=", "==", "~=") for s in entry.specifier):
                yield f"{entry}: has no lower bound. Write the oldest version that the tests have passed with."
            try:
                installed = distribution(entry.name).version
            except PackageNotFoundError:
                if not extra:
                    yield f"{entry}: is not installed."
                continue
            if not entry.specifier.contains(installed, prereleases=True):
                yield f"{entry}: {installed} is installed, which the range leaves out."


def _allows_below(entry: Requirement, limit: Version) -> bool:
    bounds = [Version(s.version) for s in entry.specifier if s.operator in (">=", "==", "~=", ">")]
    return not bounds or max(bounds) < limit


def lowest(wanted: dict[str, list[Requirement]]) -> list[str]:
    """The library's requirements, each at the lower end of its range: lines for ``pip install -r``."""
    return [
        f"{entry.name}=={bound.version}" for entry in wanted[""] for bound in entry.specifier if bound.operator == ">="
    ]


def installed(wanted: dict[str, list[Requirement]]) -> list[Package]:
    """The installed ones among the dependencies, by name."""
    found = {}
    for extra, entries in wanted.items():
        for entry in entries:
            try:
                found.setdefault(entry.name, Package(entry.name, licence(distribution(entry.name)), extra))
            except PackageNotFoundError:
                continue
    return sorted(found.values(), key=lambda package: package.name.lower())


def licence(package: Distribution) -> str:
    """What a package says: its licence expression, else its classifiers, else its licence field in one line."""
    meta = package.metadata
    if meta.get("License-Expression"):
        return str(meta["License-Expression"])
    classifiers = [c.rpartition(" :: ")[2] for c in meta.get_all("Classifier") or () if c.startswith("License ::")]
    classifiers = [c for c in classifiers if c != "OSI Approved"]
    if classifiers:
        return ", ".join(classifiers)
    text = (meta.get("License") or "").strip().partition("\n")[0]
    return text or KNOWN.get(canonicalize_name(meta["Name"]), "unknown")


def licence_problems(packages: Sequence[Package]) -> Iterator[str]:
    """Licences that are not on the list."""
    for package in packages:
        if not any(re.search(rf"\b{word}\b", package.licence.lower()) for word in ALLOWED):
            yield f"{package.name}: licence {package.licence!r} is not on the list of dev/check_dependencies.py."


def page(packages: Sequence[Package]) -> str:
    """The page of licences."""
    rows = [f"| {p.name} | {p.licence} | {f'`[{p.extra}]`' if p.extra else 'the library'} |" for p in packages]
    return "\n".join(
        [
            "# Licences of the dependencies",
            "",
            "What the installed packages say of themselves. `dev/check_dependencies.py` compares them with a list of "
            "licences that",
            "do not bind users of this project (Apache-2.0), and checks the version ranges of `setup.py`; CI runs it.",
            "Written by `python dev/check_dependencies.py --write docs/licences.md`.",
            "",
            "| package | licence | needed by |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--write", type=Path, help="write the page of licences here")
    parser.add_argument("--lowest", type=Path, metavar="FILE", help="write the lowest allowed versions here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    args = argument_parser().parse_args(argv)
    wanted = requirements()
    packages = installed(wanted)
    problems = [*range_problems(wanted), *licence_problems(packages)]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{len(packages)} dependencies, {len(problems)} problems")
    if args.lowest:
        args.lowest.write_text("\n".join(lowest(wanted)) + "\n", encoding="utf-8")
    if args.write:
        args.write.write_text(page(packages), encoding="utf-8")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
