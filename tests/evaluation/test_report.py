"""The report's page: what it says, that it holds together, and what it refuses."""

import dataclasses
import itertools
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.report_folder import make_folder, random_table

from pxfast.evaluation.report import formats, render_report, write_report
from pxfast.evaluation.report.comparison import Comparison, letter, shortfalls, view_table
from pxfast.evaluation.report.headline import headline, survivors
from pxfast.evaluation.report.network_facts import model_facts
from pxfast.evaluation.results import (
    Cell,
    Row,
    figure_path,
    read_figure,
    read_table,
    read_tables,
    table_path,
    write_figure,
    write_table,
)

VOID = {"meta", "link", "img", "br"}


class Element:
    """An element of a page: its tag, attributes, ancestors and the text inside it."""

    def __init__(self, tag: str, attributes: dict[str, str], parents: list["Element"]) -> None:
        self.tag, self.attributes, self.parents, self.text = tag, attributes, parents, ""

    def inside(self, tag: str) -> bool:
        return any(parent.tag == tag for parent in self.parents)

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()


class Page(HTMLParser):
    """All elements of a page, in order; a tag that is not closed where it should be fails."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.open: list[Element] = []
        self.feed(html)
        self.close()
        assert not self.open, f"left open: {[element.tag for element in self.open]}"

    def handle_starttag(self, tag: str, attrs) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs}, list(self.open))
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def all(self, *tags: str) -> list[Element]:
        return [element for element in self.elements if element.tag in tags]

    def id(self, name: str) -> Element:
        return next(element for element in self.elements if element.attributes.get("id") == name)


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """The folder, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def page(folder) -> Page:
    return Page(render_report(folder))


def test_a_page_needs_nothing_but_itself(folder, page):
    html = render_report(folder)
    assert html == render_report(folder), "the same results give the same page"
    assert "http://" not in html
    assert "https://" not in html
    assert not page.all("script", "iframe", "object", "base")
    for element in page.elements:
        assert not any(name.startswith("on") for name in element.attributes)
        for name in ("src", "href"):
            assert element.attributes.get(name, "#").startswith(("#", "data:"))
    assert "@import" not in html
    assert "url(" not in html


def test_the_page_is_well_formed_and_can_be_navigated(page):
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(set(ids)) == len(ids)
    for element in page.elements:
        target = element.attributes.get("href", "")
        assert not target.startswith("#") or target[1:] in ids
        for name in element.attributes.get("aria-labelledby", "").split():
            assert name in ids
    listed = {link.attributes["href"][1:] for link in page.all("a") if link.inside("nav")}
    assert listed == {section.attributes["id"] for section in page.all("section")}
    assert len(page.all("h1")) == 1
    levels = [int(element.tag[1]) for element in page.all("h1", "h2", "h3", "h4")]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(image.attributes["alt"] for image in page.all("img"))


def test_tables_are_said_to_be_what_they_are(page):
    tables = page.all("table")
    assert len(page.all("caption")) == len(tables)
    assert all(any("scroll" in parent.classes for parent in table.parents) for table in tables)
    scopes = {header.attributes["scope"] for header in page.all("th")}
    assert scopes == {"row", "col", "colgroup", "rowgroup"}
    for table in tables:
        rows = [element for element in page.all("tr") if table in element.parents and element.inside("tbody")]
        assert rows
        widths = set()
        for row in rows:
            cells = [element for element in page.all("th", "td") if element.parents[-1] is row]
            assert cells[0].attributes.get("scope") in ("row", "rowgroup")
            widths.add(sum(int(cell.attributes.get("colspan", 1)) for cell in cells))
        assert len(widths) == 1


def test_every_cell_is_shown_with_its_interval_and_the_published_value(folder, page):
    shown = [words(element.text) for element in page.all("td")]
    for table in read_tables(folder):
        for cell in table.cells:
            low, high = (f"{100 * bound:.1f}".replace("100.0", "100") for bound in cell.interval)
            ours = f"{100 * cell.accuracy:.1f}".replace("100.0", "100")
            assert any(text.endswith(f"{ours}{low}–{high}") for text in shown)  # noqa: RUF001
            if cell.published is not None:
                difference = formats.points(100 * cell.accuracy - cell.published)
                assert any(text.startswith(f"{cell.published:g}") and text.endswith(difference) for text in shown)


def test_what_is_not_there_is_said(folder, page):
    table = read_table(table_path(folder, "table2"))
    view = view_table(table)
    assert (view.computed, view.planned) == (len(table.cells), 10 * (1 + 3 * 6))
    missing = view.planned - view.computed
    pending = [element for element in page.all("td") if "pending" in element.classes]
    # the one clean cell that is missing is so in the panels of all eps
    assert len(pending) == missing + 2
    assert all("not yet computed" in element.text for element in pending)
    assert f"{view.computed} of {view.planned} cells" in words(page.all("main")[0].text)
    left_out = [words(element.text) for element in page.all("td") if "missing" in element.classes]
    assert left_out == ["Left out: no classifier trained with BIM examples: --no-train"] * 3
    assert "Left out: VGG, Normal (no such classifier)." in words(page.id("reproduction").text)
    assert "(Adversarial BIM)" not in page.id("summary").text.partition("Fashion-MNIST.")[0]


def test_several_eps_are_panels_and_many_attacks_are_rows(folder):
    for name, eps in (("table1", [8, 25]), ("table2", [2, 8, 16]), ("reproduction", [None])):
        assert [panel.eps for panel in view_table(read_table(table_path(folder, name))).panels] == eps
    turned = view_table(read_table(table_path(folder, "reproduction")))
    assert turned.turned
    assert [heading.label for heading in turned.panels[0].rows][:2] == ["Clean", "gradient sign"]
    assert [heading.label for heading in turned.panels[0].columns] == ["Normal", "Normal + PixelDefend"]
    assert turned.panels[0].cells[1][1].cell.row == "row-1"


def test_footnotes_are_marked_where_they_belong(folder, page):
    table = read_table(table_path(folder, "table2"))
    notes = dict(view_table(table).notes)
    assert notes == {
        "a": "at one confidence only",
        "b": "67 in the paper, 07 on its poster",
        "c": "rounded before it was measured",
    }
    marked = [element for element in page.all("sup") if not element.inside("ul")]
    assert [words(mark.text) for mark in marked] == ["a", "b,c", "a", "a"]  # CW's note at each eps
    assert [letter(i) for i in (0, 25, 26, 27, 52, 701)] == ["a", "z", "aa", "ab", "ba", "zz"]


@pytest.mark.parametrize(
    ("correct", "published", "verdict", "shade"),
    [
        (50, 50.0, "same", "same"),
        (50, 59.0, "same", "same"),  # the interval is 40.4 to 59.6
        (50, 60.0, "lower", "lower-2"),
        (50, 66.0, "lower", "lower-3"),
        (50, 40.0, "higher", "higher-2"),
        (99, 94.5, "higher", "higher-1"),
        (0, 0.0, "same", "same"),
        (0, 4.0, "lower", "lower-1"),
        (100, 100.0, "same", "same"),
        (50, None, "none", "none"),
    ],
)
def test_differences_count_beyond_the_interval(correct, published, verdict, shade):
    compared = Comparison(Cell.counted("row", "column", 8, correct, 100, published=published))
    assert (compared.verdict, compared.shade) == (verdict, shade)
    assert compared.difference == (None if published is None else correct - published)


def test_what_is_worse_is_listed_the_worst_first(folder, page):
    tables = read_tables(folder)
    cells = [cell for table in tables for cell in table.cells if cell.published is not None]
    below = [cell for cell in cells if 100 * cell.interval[1] < cell.published]
    assert [each.compared.cell for each in shortfalls(tables) if not each.compared.within] == sorted(
        below, key=lambda cell: 100 * cell.accuracy - cell.published
    )
    section = page.id("below")
    assert f"Of {len(cells)} accuracies with a published value beside them, {len(below)} are" in words(section.text)
    listed = [e for e in page.all("tr") if section in e.parents and e.inside("tbody")]
    assert len(listed) == len(below)
    points = [float(words(e.text).split()[-1].replace("−", "-")) for e in listed]  # noqa: RUF001
    assert points == sorted(points)
    causes = words(section.text)
    assert "CIFAR-10, density model cifar10: 3.250 bits/dim, where the paper has 3; trained for 7 min." in causes
    clean = next(table for table in tables if table.name == "table1").cell("row-1", "clean", None)
    assert f"Fashion-MNIST, classifier VGG normal: 87.50 %, where the paper has {clean.published:g} %" in causes


def test_the_headline_is_the_strongest_attack_without_and_with_the_defence():
    table = random_table("table2", "t", "cifar10", (2, 8, 16))
    found = headline(table)
    assert found.eps == 8
    assert found.attacks == ["RAND", "FGSM", "BIM", "DeepFool", "CW"]
    assert [(each.network, each.technique, each.defence) for each in found.contrasts] == [
        ("ResNet", "Normal", "PixelDefend"),
        ("VGG", "Normal", "PixelDefend"),
        ("ResNet", "Adversarial FGSM", "PixelDefend"),
        ("ResNet", "Adversarial FGSM", "adaptive PixelDefend"),
    ]
    first = found.contrasts[0]
    assert (first.without.cell, first.defended.cell) == tuple(
        table.cell(row, "strongest", 8) for row in ("row-0", "row-7")
    )
    assert headline(random_table("table1", "t", "fashion-mnist", (25, 32))).eps == 25
    assert headline(random_table("ten", "t", "cifar10", ())) is None
    started = dataclasses.replace(table, cells=[cell for cell in table.cells if cell.row != "row-7"][:60])
    assert headline(started) is None


def test_beside_a_row_without_a_defence_every_other_row_is_defended():
    table = random_table("judged", "t", "cifar10", (8,))
    names = ("No defence", "MedianBlur", "PixelDefend, eps 8 + Feature Squeezing", "No defence, two views")
    rows = [
        dataclasses.replace(row, network="ResNet", technique=name)
        for row, name in zip(table.rows[:4], names, strict=True)
    ]
    alone = {rows[0].name, rows[3].name}
    cells = [cell for cell in table.cells if cell.row in {row.name for row in rows}]
    cells = [cell for cell in cells if not (cell.row in alone and cell.column == "bim")]  # as one on defences
    table = dataclasses.replace(table, rows=rows, cells=cells)
    assert [(each.technique, each.defence) for each in headline(table).contrasts] == [
        ("No defence", "MedianBlur"),
        ("No defence", "PixelDefend, eps 8 + Feature Squeezing"),
    ]
    assert headline(table).on_defences == ["BIM"]
    assert [name for name, _ in survivors(table)] == ["MedianBlur", "PixelDefend, eps 8 + Feature Squeezing"]


def test_the_headline_stands_at_the_top(folder, page):
    text = words(page.id("summary").text)
    for name in ("table1", "table2"):
        for each in headline(read_table(table_path(folder, name))).contrasts:
            assert f"from {each.without.ours:.1f} to {each.defended.ours:.1f} %" in text
    assert "500 test images" in text
    assert "not secure against an attacker who does" in text
    assert "9 % accuracy on CIFAR-10 at eps 8" in text
    left = Comparison(read_table(table_path(folder, "adaptive")).cell("row-0", "strongest", 8))
    assert "Measured here: Attackers who know the purifier. The strongest at eps 8 leaves Normal + PixelDefend" in text
    assert f"PixelDefend {left.ours:.1f} % ({left.interval[0]:.1f}–{left.interval[1]:.1f}) of 100 images." in text  # noqa: RUF001


def test_without_adaptive_attacks_the_warning_says_so(copy):
    table_path(copy, "adaptive").unlink()
    assert "No such attacker was measured here." in render_report(copy)


def test_models_settings_machine_and_time(folder, page):
    tables = read_tables(folder)
    facts = model_facts(tables)
    assert len(facts) == len({model["sha256"] for table in tables for model in table.models})
    density = next(each for each in facts if each.datasets == ["fashion-mnist"])
    assert (density.value, density.published, density.seconds, density.steps) == (3.25, 2.7, 395.0, 220.0)
    assert density.machines == ["a processor"]
    classifier = facts[-1]
    assert (classifier.measure, classifier.value, classifier.seconds) == ("accuracy", 87.5, 4000.0)
    text = words(page.all("main")[0].text)
    for each in facts:
        assert each.sha256 in text
    for expected in (
        "a processor of the tests",
        "horizontal flips",
        "3.250 bits/dim",
        "7 min",
        "purify, eps 16",
        "0.567",
    ):
        assert expected in text
    seconds = view_table(read_table(table_path(folder, "table1"))).seconds
    assert formats.duration(seconds) in words(page.id("time").text)
    assert "A publication that the tests made up: Table 1." in words(page.id("sources").text)


def test_a_model_without_notes_is_said_to_have_none(copy):
    table = read_table(table_path(copy, "adaptive"))
    models = [{"role": "classifier", "name": "bare", "sha256": "0" * 64, "notes": {}}]
    write_table(copy, dataclasses.replace(table, models=models))
    text = words(Page(render_report(copy)).id("models").text)
    assert "bare CIFAR-10 not recorded – not recorded – not recorded" in text  # noqa: RUF001


def test_text_is_text(copy):
    table = read_table(table_path(copy, "adaptive"))
    evil = "<script>alert(1)</script>&"
    rows = [dataclasses.replace(table.rows[0], technique=evil), Row("out", evil, evil, missing=evil)]
    write_table(copy, dataclasses.replace(table, title=evil, caption=evil, rows=rows, settings={evil: evil}))
    figure = read_figure(figure_path(copy, "grid"))
    write_figure(copy, dataclasses.replace(figure, alt=f'">{evil}', caption=evil, numbers={evil: [evil]}))
    page = Page(render_report(copy))
    assert not page.all("script")
    assert evil in page.id("adaptive").text
    assert any(image.attributes["alt"] == f'">{evil}' for image in page.all("img"))


def test_figures_stand_in_the_page_or_are_said_to_be_missing(copy):
    page = Page(render_report(copy))
    kinds = [image.attributes["src"].partition(",")[0] for image in page.all("img")]
    assert kinds == ["data:image/webp;base64", "data:image/svg+xml;base64"]
    (copy / "figures" / "grid.png").unlink()
    means = read_figure(figure_path(copy, "means"))
    (copy / "secret.png").write_bytes(b"of somebody else")
    write_figure(copy, dataclasses.replace(means, file="../secret.png"))
    page = Page(render_report(copy))
    assert not page.all("img")
    text = words(page.id("figures").text)
    assert "grid.png has not been drawn" in text
    assert "../secret.png is not the name of" in text


def test_tables_alone_figures_alone_and_a_table_that_has_just_begun(copy):
    table = read_table(table_path(copy, "table1"))
    write_table(copy, dataclasses.replace(table, cells=[], finished=False))
    page = Page(render_report(copy))
    assert "0 of 143 cells" in words(page.all("main")[0].text)
    shutil.rmtree(copy / "figures")
    assert "figures" not in {section.attributes["id"] for section in Page(render_report(copy)).all("section")}
    make_folder(copy / "again")
    shutil.rmtree(copy / "again" / "tables")
    page = Page(render_report(copy / "again"))
    assert [section.attributes["id"] for section in page.all("section")] == ["summary", "figures", "sources"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: "{", "adaptive.json is not JSON"),
        (lambda values: [], "no file of format 'pxfast-table', version 1"),
        (lambda values: {**values, "version": 2}, "no file of format 'pxfast-table', version 1"),
        (lambda values: {**values, "format": "pxfast-figure"}, "no file of format 'pxfast-table'"),
        (lambda values: {k: v for k, v in values.items() if k != "cells"}, "adaptive.json lacks cells"),
        (lambda values: {**values, "rows": values["rows"][1:]}, "is of no row or column of the table"),
        (lambda values: {**values, "cells": [{**values["cells"][0], "accuracy": 2.0}]}, "that is not of its counts"),
        (
            lambda values: {**values, "cells": [{**values["cells"][0], "accuracy": None}]},
            "accuracy must be a number, got None",
        ),
        (lambda values: {**values, "models": [{}]}, "models lacks role, name, sha256"),
        (lambda values: {**values, "rates": [None]}, "rates[0] must be a table, got None"),
        (lambda values: {**values, "source": None}, "source must be a table, got None"),
        (lambda values: {**values, "machine": 3}, "machine must be a table, got 3"),
    ],
)
def test_broken_files_are_refused_in_one_line(copy, refused, change, message):
    path = table_path(copy, "adaptive")
    changed = change(json.loads(path.read_text()))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    assert message in refused("report", copy)
    assert not (copy / "report.html").exists()


def test_the_command_writes_whole_pages_and_replaces_none_unasked(run_here, refused, copy, tmp_path):
    out, _ = run_here("report", copy)
    assert out.strip() == str(copy / "report.html")
    before = (copy / "report.html").read_text(encoding="utf-8")
    assert before == render_report(copy)
    assert "exists already" in refused("report", copy)
    table_path(copy, "adaptive").unlink()
    out, _ = run_here("report", copy, "--force", "--json")
    assert json.loads(out) == {"files": [str(copy / "report.html")]}
    assert (copy / "report.html").read_text(encoding="utf-8") != before
    assert write_report(copy, tmp_path / "other.html") == tmp_path / "other.html"
    assert "no such folder" in refused("report", copy, "--out", tmp_path / "nowhere" / "page.html")
    assert "must have the suffix .html" in refused("report", copy, "--out", tmp_path / "page.txt")
    assert not list(copy.glob(".report*"))


def test_folders_without_results_are_refused(refused, tmp_path):
    assert "no such folder" in refused("report", tmp_path / "nowhere")
    assert "neither tables nor figures: pxfast evaluate writes them" in refused("report", tmp_path)
    (tmp_path / "tables").mkdir()
    assert "neither tables nor figures" in refused("report", tmp_path)


def test_numbers_in_words():
    assert [formats.percent(value) for value in (0, 7.25, 99.96, 100)] == ["0.0", "7.2", "100.0", "100"]
    assert [formats.points(value) for value in (-12.44, 0.04, -0.04, 3.06)] == ["−12.4", "0.0", "0.0", "+3.1"]  # noqa: RUF001
    assert [formats.number(value) for value in (8, 0.0, 0.0123, 4.561, 271.4, 12345.6)] == [
        "8",
        "0",
        "0.0123",
        "4.56",
        "271",
        "12,346",
    ]
    assert [formats.duration(value) for value in (0.42, 12, 200, 7500, 7200)] == [
        "0.4 s",
        "12 s",
        "3 min",
        "2 h 5 min",
        "2 h",
    ]
    assert formats.plain({"a_b": [1, 0.5, None], "c": True}) == "a b 1, 0.5, none; c yes"
    assert [formats.listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_the_strongest_attack_is_named_in_its_cell(folder):
    table = read_table(table_path(folder, "table1"))
    place = {(cell.row, cell.eps): cell for cell in table.cells if cell.column == "strongest"}
    late = dataclasses.replace(place["row-0", 8], notes="BIM; without CW, not computed yet")
    cells = [late if cell is place["row-0", 8] else cell for cell in table.cells]
    view = view_table(dataclasses.replace(table, cells=cells))
    assert view.notes == [("a", "without CW, not computed yet")]
    shown = [panel.cells[row][-1] for panel in view.panels for row in range(len(table.rows))]
    assert (shown[0].attack, shown[0].marks) == ("BIM", "a")
    assert all((each.attack, each.marks) == (each.cell.notes, "") for each in shown[1:])
