"""Views of the records: one HTML page and the terminal's tables. Imports no torch, not even indirectly."""

from goodnet.report.page import Part, policy, read_parts, render_report, write_report

__all__ = ["Part", "policy", "read_parts", "render_report", "write_report"]
