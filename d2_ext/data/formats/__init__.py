"""Formats of data set folders, one file each, and how they are told apart."""

from d2_ext.data.formats.base import DataFolder, Split
from d2_ext.data.formats.recognize import FORMATS, recognize

__all__ = ["FORMATS", "DataFolder", "Split", "recognize"]
