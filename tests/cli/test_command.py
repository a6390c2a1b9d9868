"""Numbers of options: those of the range are taken, all others named with what was expected."""

from __future__ import annotations

import argparse

from d2_ext.cli.command import number_in

import pytest


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("7", 7), ("65535", 65535)])
def test_whole_numbers_of_the_range_are_taken(text: str, value: int) -> None:
    assert number_in(int, 0, 65535)(text) == value


@pytest.mark.parametrize("text", ["-1", "65536", "1.5", "x", "", "1e3", "9" * 400])
def test_other_whole_numbers_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}': expected a whole number from 0 to 65535"):
        number_in(int, 0, 65535)(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-0.1", "high"])
def test_what_is_no_finite_number_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}': expected a number from 0"):
        number_in(float, 0)(text)
