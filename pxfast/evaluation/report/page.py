"""The report's page: one HTML file with its style and pictures inside, without scripts or links to fetch from."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from ...base.checks import check_path
from ...base.files import output_files
from ...base.reading import regular_file
from ...base.version import __version__
from ...data.datasets import TITLES
from ..results import Figure, Table, figures_folder, read_figures, read_tables, tables_folder
from . import formats
from .comparison import LARGE, SMALL, knows_defences, shortfalls, view_table
from .embedded import data_uri
from .headline import headline, survivors
from .judged_rows import judged_rows
from .network_facts import model_facts

MIME_TYPES = {".png": "image/png", ".svg": "image/svg+xml", ".jpg": "image/jpeg"}
ORDER = ("table2", "table1", "reproduction", "adaptive", "adaptive-fashion-mnist")  # others follow, by name
ADAPTIVE = "adaptive"  # what the names of tables of attacks that know the purifier begin with
SHORTFALLS_SHOWN = 12  # the rest are folded away on a screen


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure and its picture as a data URI, or why there is none."""

    figure: Figure
    uri: str | None
    missing: str | None = None


def write_report(
    folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, *, force: bool = False
) -> Path:
    """Write the report of an output folder of ``pxfast evaluate``; returns its path.

    out: the page, an .html file, by default report.html in the folder. Raises FileExistsError when it exists, unless
    ``force``, ValueError for another suffix, and what :func:`render_report` raises.
    """
    folder = check_path("folder", folder)
    path = folder / "report.html" if out is None else check_path("out", out)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{path}: this output must have the suffix .html")
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    page = render_report(folder)  # before anything is written beside what it reads
    with output_files(path, force=force) as (temporary,):
        temporary.write_text(page, encoding="utf-8", errors="replace")  # names of files may be no text
    return path


def render_report(folder: str | os.PathLike[str]) -> str:
    """The report of an output folder as an HTML page; an unfinished evaluation gives one that says so.

    Raises FileNotFoundError when the folder, or anything to report in it, is not there, and ValueError, naming the
    file, for a table or figure that is broken or of another version.
    """
    folder = check_path("folder", folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    tables = sorted(read_tables(folder), key=_table_order)
    figures = read_figures(folder)
    if not tables and not figures:
        raise FileNotFoundError(f"{folder} has neither tables nor figures: pxfast evaluate writes them")
    try:
        return _render(folder, tables, figures)
    except (jinja2.TemplateError, AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        # a file with every field there, and values of other kinds inside
        raise ValueError(f"{folder} has a table or figure that is not as pxfast evaluate writes it: {error}") from error


def _render(folder: Path, tables: list[Table], figures: list[Figure]) -> str:
    views = [view_table(table) for table in tables]
    below = shortfalls(tables)
    page = _environment().get_template("report.html.jinja")
    return page.render(
        style=markupsafe.Markup(_template("report.css")),
        version=__version__,
        date=_date(folder),
        views=views,
        judged={table.name: judged_rows(table) for table in tables},
        adaptive=[(table, survivors(table)) for table in tables if _is_adaptive(table)],
        headlines=[found for found in map(headline, tables) if found],
        pictures=[_picture(folder, figure) for figure in figures],
        below=[each for each in below if not each.compared.within],
        below_within=sum(1 for each in below if each.compared.within),
        compared=sum(1 for table in tables for cell in table.cells if cell.published is not None),
        shown=SHORTFALLS_SHOWN,
        models=model_facts(tables),
        datasets=list(dict.fromkeys([*(table.dataset for table in tables), *(figure.dataset for figure in figures)])),
        settings=_grouped(tables, "settings"),
        machines=_grouped(tables, "machine"),
        sources=_sources(tables, figures),
        small=SMALL,
        large=LARGE,
    )


def _is_adaptive(table: Table) -> bool:
    """Whether attackers who know the purifier are in a table."""
    return table.name.startswith(ADAPTIVE) or any(knows_defences(table, column) for column in table.columns)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        dataset=lambda name: TITLES.get(name, name),
        percent=formats.percent,
        points=formats.points,
        number=formats.number,
        duration=formats.duration,
        words=formats.words,
        plain=formats.plain,
        listed=formats.listed,
    )
    environment.globals["deep"] = formats.deep
    return environment


def _template(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _table_order(table: Table) -> tuple[int, str]:
    return ORDER.index(table.name) if table.name in ORDER else len(ORDER), table.name


def _date(folder: Path) -> str:
    """The day of the newest result, so that the same results always give the same page."""
    files = [*tables_folder(folder).glob("*.json"), *figures_folder(folder).glob("*.json")]
    newest = max(file.stat().st_mtime for file in files)
    return datetime.datetime.fromtimestamp(newest, datetime.timezone.utc).date().isoformat()


def _picture(folder: Path, figure: Figure) -> Picture:
    path = figures_folder(folder) / figure.file
    kind = MIME_TYPES.get(path.suffix.lower())
    if path.name != figure.file or kind is None:
        return Picture(figure, None, f"{figure.file} is not the name of a PNG, SVG or JPEG file beside its description")
    try:
        data = regular_file(path).read_bytes()
    except FileNotFoundError:
        return Picture(figure, None, f"{figure.file} has not been drawn")
    except ValueError as error:
        return Picture(figure, None, str(error))
    return Picture(figure, data_uri(kind, data))


def _grouped(tables: list[Table], field: str) -> list[tuple[list[Table], dict[str, Any]]]:
    """The tables' values of a field, the same ones once, with the tables they are of."""
    groups: dict[str, tuple[list[Table], dict[str, Any]]] = {}
    for table in tables:
        value = getattr(table, field)
        groups.setdefault(json.dumps(value, sort_keys=True), ([], value))[0].append(table)
    return list(groups.values())


def _sources(tables: list[Table], figures: list[Figure]) -> list[tuple[str, list[str]]]:
    """Each publication with the places in it that are compared with, in order of appearance."""
    places: dict[str, list[str]] = {}
    everything: list[Table | Figure] = [*tables, *figures]
    for each in everything:
        if not each.source.get("title"):
            continue
        found = places.setdefault(each.source["title"], [])
        where = each.source.get("where")
        if where and where not in found:
            found.append(where)
    return list(places.items())
