"""The report in a real browser: a headless Chromium, where there is one (PXFAST_CHROMIUM names another)."""

import functools
import os
import re
import shutil

import pytest
from support.report_folder import make_folder

from pxfast.evaluation.report import write_report

pytestmark = pytest.mark.external

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'pxfast[test]'")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
READABLE = 4.5  # contrast of text and background, WCAG 2.2 AA
DARK, LIGHT = 0.1, 0.8  # relative luminance
STRIPES = """() => [...document.querySelectorAll("*")].filter(
    element => element.getBoundingClientRect().right > innerWidth + 1 && !element.closest(".scroll")
).map(element => element.outerHTML.slice(0, 80))"""
# text and background colours of all elements that have text of their own, as 'rgb(...)', where both are opaque
COLOURS = """() => {
    const found = new Set();
    for (const element of document.querySelectorAll("body *")) {
        if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
        let behind = element;
        while (behind && getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
        const opacity = Number(getComputedStyle(element).opacity);
        const background = getComputedStyle(behind || document.body).backgroundColor;
        found.add(JSON.stringify([getComputedStyle(element).color, opacity, background]));
    }
    return [...found].map(text => JSON.parse(text));
}"""


@pytest.fixture(scope="module")
def browser():
    named = os.environ.get("PXFAST_CHROMIUM")
    path = named or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium: PXFAST_CHROMIUM is not set and none of " + ", ".join(NAMES) + " is installed")
    with sync_api.sync_playwright() as playwright:
        # in containers Chromium's own sandbox does not start; the page is one of ours
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


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


def luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance of an sRGB colour, 0..255 each, as WCAG 2.2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (each / 255 for each in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def numbers(colour: str) -> tuple[float, ...]:
    return tuple(float(each) for each in re.findall(r"[\d.]+", colour)[:3])


def contrast(colour: str, opacity: float, background: str) -> float:
    behind = numbers(background)
    seen = tuple(opacity * c + (1 - opacity) * b for c, b in zip(numbers(colour), behind, strict=True))
    lower, higher = sorted((luminance(seen), luminance(behind)))
    return (higher + 0.05) / (lower + 0.05)


def background(page) -> float:
    return luminance(numbers(page.evaluate("getComputedStyle(document.body).backgroundColor")))


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
