"""What the pages name exists, and the README's commands are those that the checks run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from helpers.scripts import ROOT

PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "projects").rglob("*.md"),
        *(ROOT / "configs").glob("*.md"),
    ]
)
LINK = re.compile(r"\[[^\]]*\]\(([^)#]+?)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_configs_on_a_page_exist(page: Path) -> None:
    text = page.read_text()
    for target in LINK.findall(text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for config in re.findall(r"configs/[\w./-]+\.yaml", text):
        assert (ROOT / config).is_file(), f"{page.name} names {config}"


@pytest.mark.parametrize(
    ("name", "start"), [("quickstart", "pip install -e . && python train_net.py"), ("test", "pip install -e")]
)
def test_the_readme_has_the_marked_commands(name: str, start: str) -> None:
    block = re.search(rf"<!-- ci: {name} -->\n```bash\n(.+?)\n```\n", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    assert block.group(1).startswith(start)


def test_the_check_script_is_well_formed() -> None:
    subprocess.run(["bash", "-n", str(ROOT / ".ci/run")], check=True)
