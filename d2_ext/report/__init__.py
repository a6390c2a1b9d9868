"""A run folder as one self-contained HTML page: what was learned, what was found, what it costs, how it was set."""

from d2_ext.report.report import ReportOptions, write_report

__all__ = ["ReportOptions", "write_report"]
