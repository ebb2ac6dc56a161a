"""The paper's tables and figures, computed anew beside the published numbers.

``evaluate_table(load_table("table1"), root, out)`` computes a table into a folder, ``table_text`` prints it and
``write_report`` makes a page of all that the folder holds. :mod:`pxfast.evaluation.figures` draws the figures.
"""

from .benchmark import BenchmarkTable
from .preparation import Settings
from .report import render_report, write_report
from .results import Cell, Check, Column, Figure, Row, Table, read_figure, read_figures, read_table, read_tables
from .run import evaluate_table
from .specification import (
    TABLES,
    ColumnSpecification,
    RowSpecification,
    TableSpecification,
    load_table,
    parse_table,
)
from .text import table_text
from .verdict import Score, Verdict

__all__ = [
    "TABLES",
    "BenchmarkTable",
    "Cell",
    "Check",
    "Column",
    "ColumnSpecification",
    "Figure",
    "Row",
    "RowSpecification",
    "Score",
    "Settings",
    "Table",
    "TableSpecification",
    "Verdict",
    "evaluate_table",
    "load_table",
    "parse_table",
    "read_figure",
    "read_figures",
    "read_table",
    "read_tables",
    "render_report",
    "table_text",
    "write_report",
]
