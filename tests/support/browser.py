"""A headless Chromium, where there is one, and what its pages are judged by: contrast, and what they ask for."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
READABLE = 4.5  # contrast of text and background, WCAG 2.2 AA
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


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's browser; the test is skipped where there is no Chromium (PXFAST_CHROMIUM names another)."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install 'pxfast[test]'"
    )
    named = os.environ.get("PXFAST_CHROMIUM")
    path = named or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium: PXFAST_CHROMIUM is not set and none of " + ", ".join(NAMES) + " is installed")
    with sync_api.sync_playwright() as playwright:
        # in containers Chromium's own sandbox does not start; the page is one of ours
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


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


def background(page: Any) -> float:
    return luminance(numbers(page.evaluate("getComputedStyle(document.body).backgroundColor")))
