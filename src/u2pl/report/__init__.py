"""From run folders to pages: a report of one run, a comparison of several; no network is needed."""

from u2pl.report.compare import compare_records
from u2pl.report.page import write_comparison, write_report
from u2pl.report.record import Record, read_record

__all__ = ["Record", "compare_records", "read_record", "write_comparison", "write_report"]
