"""Checkpoints: published weights under our names."""

from d2_ext.checkpoint.convert import SOURCES, Conversion, ConversionReport, Source, convert

__all__ = ["SOURCES", "Conversion", "ConversionReport", "Source", "convert"]
