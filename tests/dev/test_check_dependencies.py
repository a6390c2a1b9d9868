"""Version ranges and licences: what is allowed passes, what is not is named."""

from __future__ import annotations

from d2_ext.checkpoint.safe import SAFE_TORCH

import pytest
from packaging.requirements import Requirement

from helpers.scripts import load_script

tool = load_script("dev/check_dependencies.py")


def test_the_dependencies_of_the_project_are_in_order() -> None:
    assert tool.main([]) == 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "torch>=2.4",
            "allows versions below 2.10 (torch.load(weights_only=True) corrupts memory",
        ),
        ("torch>=2.9.1", "Write torch>=2.10"),
        ("torch", "has no lower bound"),
        ("torch>=2.10,!=2.10.0,<2.10.1", "which the range leaves out"),
        ("pyyaml>=5.1", "CVE-2020-14343"),
        ("no-such-package-of-d2-ext>=1", "is not installed"),
    ],
)
def test_a_range_that_lets_bad_versions_in_is_named(text: str, problem: str) -> None:
    assert any(problem in found for found in tool.range_problems({"": [Requirement(text)]}))


def test_the_lowest_versions_are_those_of_the_ranges() -> None:
    wanted = {"": [Requirement("torch>=2.10,<3"), Requirement("yacs>=0.1.8")], "test": [Requirement("scipy>=1")]}
    assert tool.lowest(wanted) == ["torch==2.10", "yacs==0.1.8"]


def test_an_optional_package_need_not_be_installed() -> None:
    assert not list(tool.range_problems({"extra": [Requirement("no-such-package-of-d2-ext")]}))


def test_a_licence_that_binds_users_is_named() -> None:
    packages = [
        tool.Package("a", "MIT License", ""),
        tool.Package("b", "GPL-3.0-only", ""),
        tool.Package("c", "limited", ""),
    ]
    assert [found.partition(":")[0] for found in tool.licence_problems(packages)] == ["b", "c"]


def test_the_reader_of_checkpoints_knows_the_floor_of_torch() -> None:
    assert tool.KNOWN_BAD["torch"][0] == SAFE_TORCH
