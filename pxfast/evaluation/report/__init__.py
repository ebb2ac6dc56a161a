"""`pxfast report`: an output folder of `pxfast evaluate` as one HTML page that needs nothing else."""

from .page import render_report, write_report

__all__ = ["render_report", "write_report"]
