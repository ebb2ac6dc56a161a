"""What is looked at before an evaluation loads, trains or computes anything: libraries, and where results go."""

from __future__ import annotations

import os

from ..base.extras import require
from ..base.files import check_output_folder
from .specification import TableSpecification


def check_libraries(runner: str, *, roc: bool = False, lbfgs: bool = False) -> None:
    """ImportError, which names the extra, where a library is missing. roc, lbfgs: whether these are to be computed."""
    if runner == "ray":
        require("ray", "ray")
        require("ray.data", "ray")
    if roc:
        require("sklearn.metrics", "evaluate")
    if lbfgs:
        require("scipy.optimize", "evaluate")


def check_table(chosen: TableSpecification, out: str | os.PathLike[str]) -> None:
    """ImportError where an attack's library is missing, and what :func:`check_output_folder` raises of ``out``."""
    chosen.check_installed()
    check_output_folder(out)
