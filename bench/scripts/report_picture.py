"""Take the picture of a report: its top, as a headless Chromium shows it.

python bench/scripts/report_picture.py REPORT.html PICTURE.png [--width 1180] [--height 1330] [--dark]

Needs playwright (pip install 'pxfast[test]') and a Chromium; PXFAST_CHROMIUM names one that is not on the path.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from pxfast.base.files import whole_file

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SHARPNESS = 1.5  # pixels of the picture to one of the page
COLOURS = 128  # enough for text and a dozen shades, and a third of the size


def find_chromium() -> str | None:
    """The path of a Chromium, or None."""
    return os.environ.get("PXFAST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1180, help="of the page, in CSS pixels")
    parser.add_argument("--height", type=int, default=1330, help="of what is shown of it")
    parser.add_argument("--dark", action="store_true", help="as people with a dark desktop see it")
    arguments = parser.parse_args()
    chromium = find_chromium()
    if chromium is None:
        sys.exit("no Chromium: install one, or name one in PXFAST_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": arguments.width, "height": arguments.height},
            device_scale_factor=SHARPNESS,
            color_scheme="dark" if arguments.dark else "light",
        )
        page.goto(arguments.report.absolute().as_uri())
        shot = page.screenshot()
        browser.close()
    with Image.open(io.BytesIO(shot)) as image, whole_file(arguments.picture) as temporary:
        image.convert("RGB").quantize(COLOURS).save(temporary, "PNG", optimize=True)
    print(f"{arguments.picture}: {arguments.picture.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
