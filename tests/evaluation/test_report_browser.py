"""The report in a real browser: a headless Chromium, where there is one (PXFAST_CHROMIUM names another)."""

import functools
import re

import pytest
from support.browser import COLOURS, READABLE, background, chromium, contrast
from support.report_folder import make_folder

from pxfast.evaluation.report import write_report

pytestmark = pytest.mark.external

PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
DARK, LIGHT = 0.1, 0.8  # relative luminance
STRIPES = """() => [...document.querySelectorAll("*")].filter(
    element => element.getBoundingClientRect().right > innerWidth + 1 && !element.closest(".scroll")
).map(element => element.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def loaded(browser, tmp_path_factory):
    """The report in a page without a network, and what it says on the console or asks for, which should be nothing."""
    report = write_report(make_folder(tmp_path_factory.mktemp("evaluation"))).as_uri()
    page = browser.new_context(offline=True).new_page()
    complaints = []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: request.url.startswith("data:") or complaints.append(request.url))
    page.goto(report, wait_until="load")
    assert complaints.pop(0) == report
    return page, complaints


@pytest.fixture
def opened(loaded):
    """Gives the page as the settings want it; a complaint fails the test."""
    page, complaints = loaded

    def opened(size=DESKTOP, scheme="light", media="screen"):
        page.set_viewport_size(size)
        page.emulate_media(color_scheme=scheme, media=media)
        page.evaluate("document.querySelectorAll('details').forEach(element => element.open = false)")
        return page

    yield opened
    assert not complaints


def test_it_opens_without_an_error_and_with_all_its_pictures(opened):
    page = opened()
    assert page.title() == "PixelDefend evaluated on CIFAR-10 and Fashion-MNIST"
    pictures = page.evaluate(
        "[...document.images].map(image => [image.complete, image.naturalWidth, image.naturalHeight])"
    )
    assert len(pictures) == 2
    assert all(complete and width > 100 and height > 100 for complete, width, height in pictures)
    assert page.get_by_role("table").count() == page.locator("table:not(details *), [role=table]").count() > 8
    page.get_by_role("link", name="Where ours is worse").click()
    assert page.evaluate("location.hash") == "#below"
    assert page.locator("#below-title").evaluate("element => element.getBoundingClientRect().top") < DESKTOP["height"]


@pytest.mark.parametrize("size", [PHONE, {"width": 768, "height": 1024}, DESKTOP], ids=["phone", "tablet", "desktop"])
def test_nothing_but_tables_is_wider_than_the_page(opened, size):
    page = opened(size)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert page.evaluate(STRIPES) == []
    wide = page.locator("#table2 .scroll").first
    assert wide.evaluate("element => element.scrollWidth > element.clientWidth") == (size != DESKTOP)
    if size == PHONE:
        # the classifier's name stays where it is when its numbers are scrolled
        name = wide.locator("tbody th").first
        wide.evaluate("element => element.scrollBy(300, 0)")
        assert name.evaluate("element => element.getBoundingClientRect().left") == pytest.approx(
            wide.evaluate("element => element.getBoundingClientRect().left"), abs=1
        )
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('td, th, p, li, dd, span, small')]"
        ".map(element => parseFloat(getComputedStyle(element).fontSize)))"
    )
    assert smallest >= 9


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_on_every_colour(opened, scheme):
    page = opened(scheme=scheme)
    assert background(page) < DARK if scheme == "dark" else background(page) > LIGHT
    page.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
    colours = page.evaluate(COLOURS)
    assert len({behind for _, _, behind in colours}) >= 8, "the page, and six shades of difference"
    poor = {tuple(each): contrast(*each) for each in colours if contrast(*each) < READABLE}
    assert not poor
    shades = ["lower-1", "lower-2", "lower-3", "higher-1", "higher-2", "higher-3"]
    seen = {page.locator(f".{name}").first.evaluate("e => getComputedStyle(e).backgroundColor") for name in shades}
    assert len(seen) == len(shades)


def test_it_prints_on_white_paper_with_everything_unfolded(opened, tmp_path):
    folded = "[...document.querySelectorAll('details table, details dl')].map(element => element.checkVisibility())"
    assert not any(opened().evaluate(folded))
    page = opened(scheme="dark", media="print")
    assert background(page) == 1.0
    display = functools.partial(page.evaluate, "selector => getComputedStyle(document.querySelector(selector)).display")
    assert display("#table2 thead") == "table-header-group"
    assert display("nav") == "none"
    unfolded = page.evaluate(folded)
    assert len(unfolded) > 3
    assert all(unfolded)
    file = tmp_path / "report.pdf"
    page.pdf(path=file, prefer_css_page_size=True, print_background=True)
    written = file.read_bytes()
    assert written.startswith(b"%PDF-")
    assert 8 <= len(re.findall(rb"/Type\s*/Page\b", written)) <= 40
    # nothing is cut off at the right: A4 less its margins, at 96 pixels to the inch
    page.set_viewport_size({"width": round((210 - 28) / 25.4 * 96), "height": 1000})
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    widest = page.evaluate(
        "Math.max(...[...document.querySelectorAll('table')].map(e => e.getBoundingClientRect().right))"
    )
    assert widest <= page.viewport_size["width"]
