"""``pxfast app`` as a command: what it refuses, where it serves, how it ends; and its page in a headless Chromium."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.browser import COLOURS, READABLE, background, chromium, contrast
from support.helpers import command_line, environment, error_line, run_command

from pxfast.base import environment as pxfast_environment

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
ENDS_WITHIN = 20.0  # seconds after Ctrl-C, on a busy machine
SLOW = 60_000  # milliseconds for an answer, on a busy machine


def test_the_missing_extra_is_named(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(pxfast_environment, "keep_gradio_here", lambda folder: None)
    assert "gradio is not installed: pip install 'pxfast[app]'" in refused("app", "--no-browser")


def start(folder: Path, *arguments: object) -> tuple[subprocess.Popen[str], str]:
    """A server, whose temporary files go into ``folder``, and its address."""
    words = command_line("app", "--port", 0, "--no-browser", "--json", *arguments)
    process = subprocess.Popen(
        words, env=environment(TMPDIR=str(folder)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = ""
    while "}" not in said:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        said += line
    return process, json.loads(said)["url"]


def interrupt(process: subprocess.Popen[str]) -> str:
    """Ctrl-C, after which the server must be gone soon; gives its standard error."""
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert time.monotonic() - began < ENDS_WITHIN
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "interrupted"
    return errors


@pytest.mark.process
@pytest.mark.external
class TestServer:
    @pytest.fixture(autouse=True)
    def _gradio(self) -> None:
        pytest.importorskip("gradio", reason="gradio is not installed: pip install 'pxfast[app]'")

    def test_a_port_in_use_is_one_line_and_code_2(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            done = run_command("app", "--no-browser", "--port", port, code=2)
        assert f"port {port} of 127.0.0.1 is in use; choose another with --port" in error_line(done.stderr)
        assert not done.stdout

    def test_it_serves_this_machine_alone_and_ctrl_c_ends_it(self, tmp_path: Path) -> None:
        process, url = start(tmp_path)
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert answer.headers["content-security-policy"].startswith("default-src 'self'")
            page = answer.read().decode()
        assert '"analytics_enabled":false' in page.replace(" ", "")
        listening = Path(f"/proc/{process.pid}/net/tcp")
        if listening.exists():
            port = f"{int(url.rpartition(':')[2]):04X}"
            rows = [line.split()[1] for line in listening.read_text().splitlines()[1:] if line.split()[3] == "0A"]
            assert [row for row in rows if row.endswith(f":{port}")] == [f"0100007F:{port}"]
        assert "Ctrl-C ends it." in interrupt(process)
        assert os.listdir(tmp_path) == [], "uploads and pictures are gone"

    def test_of_files_only_uploads_are_read(self, tmp_path: Path) -> None:
        (tmp_path / "temporary").mkdir()
        secret = tmp_path / "secret.png"
        Image.new("RGB", (32, 32), (250, 10, 10)).save(secret)
        process, url = start(tmp_path / "temporary")
        try:
            with urllib.request.urlopen(f"{url}/config", timeout=60) as answer:
                functions = json.load(answer)["dependencies"]
            examine = min(each["id"] for each in functions if (len(each["inputs"]), len(each["outputs"])) == (7, 6))
            file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
            asked = {"fn_index": examine, "session_hash": "a", "data": ["cifar10", None, file, "none", 0, 0, "mean"]}
            request = urllib.request.Request(
                f"{url}/gradio_api/run/predict", json.dumps(asked).encode(), {"content-type": "application/json"}
            )
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=60)
            assert refused.value.code >= 400
        finally:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        assert "it was not uploaded by a user" in errors


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'pxfast[app]'")
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def url(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, url = start(tmp_path_factory.mktemp("app"))
    yield url
    interrupt(process)


@pytest.fixture
def opened(browser: Any, url: str) -> Iterator[Any]:
    """Opens the page; what it says on the console, or asks of another host, fails the test."""
    complaints: list[str] = []
    contexts = []

    def opened(size: dict[str, int] = DESKTOP, scheme: str = "light") -> Any:
        context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SLOW)
        # Gradio says the excepted one at every upload
        page.on("console", lambda m: m.text == "Method not implemented." or complaints.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        own = (f"{url}/", "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(own) or complaints.append(request.url))
        # Gradio's queue loses what is asked for while it closes its stream of answers
        page.on("request", lambda request: "/queue/" in request.url and complaints.append(request.url))
        page.goto(url)
        page.locator(".pf-verdict").wait_for()
        page.locator("#pf-decoding .pf-card").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints


def says(page: Any, text: str) -> None:
    """Wait until the page says it."""
    page.get_by_text(text).first.wait_for()


@pytest.mark.process
@pytest.mark.external
class TestPage:
    def test_it_opens_with_an_example_and_asks_no_other_host(self, opened):
        page = opened()
        assert page.title() == "pxfast"
        says(page, "A test image of Fashion-MNIST: T-shirt.")
        assert page.locator(".pf-verdict").inner_text().startswith("The attack turns T-shirt into ")
        assert page.locator(".pf-card").count() == 4
        pictures = page.evaluate(
            "[...document.images].map(i => [i.complete, i.naturalWidth, i.alt, i.parentElement.className])"
        )
        assert len(pictures) >= 10 + 8 + 1
        assert all(complete and width for complete, width, _, _ in pictures)
        assert all(alt for _, _, alt, place in pictures if place != "pf-scale")
        nameless = page.evaluate(
            "[...document.querySelectorAll('input, select, textarea, button')].filter(e => e.checkVisibility() &&"
            " !(e.labels?.length || e.ariaLabel || e.getAttribute('aria-labelledby') || e.innerText?.trim()"
            " || e.title)).map(e => e.outerHTML.slice(0, 120))"
        )
        assert nameless == []

    @pytest.mark.parametrize(
        "size", [PHONE, {"width": 768, "height": 1024}, DESKTOP], ids=["phone", "tablet", "desktop"]
    )
    def test_nothing_is_wider_than_the_page(self, opened, size):
        page = opened(size)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        page.get_by_label("CIFAR-10").check()
        says(page, "A test image of CIFAR-10: airplane.")
        page.get_by_label("green").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        widths = page.evaluate("[...document.querySelectorAll('.pf-frame img')].map(i => i.clientWidth)")
        assert min(widths) > 90, "pictures can be seen"

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_is_readable_on_every_colour(self, opened, scheme):
        page = opened(scheme=scheme)
        assert background(page) < 0.1 if scheme == "dark" else background(page) > 0.8
        page.get_by_text("What the numbers mean").click()
        says(page, "is how many bits the model needs")
        found = page.evaluate(COLOURS)
        assert len(found) > 3
        poor = {tuple(each): contrast(*each) for each in found if each[1] == 1 and contrast(*each) < READABLE}
        assert not poor

    def test_controls_change_what_is_shown(self, opened):
        page = opened()
        page.get_by_role("button", name="Thumbnail 10 of 10").click()
        says(page, "A test image of Fashion-MNIST: ankle boot.")
        page.get_by_label("Attack", exact=True).click()
        page.get_by_role("option", name="none").click()
        says(page, "Purification keeps the label, ankle boot.")
        eps = page.get_by_label("number input for The purifier's eps")
        eps.fill("0")
        eps.press("Enter")
        page.locator(".pf-card", has_text="Purified").get_by_text("eps 0").wait_for()
        clean, purified = (
            page.locator(".pf-card", has_text=name).locator("img").first.get_attribute("src")
            for name in ("Clean", "Purified")
        )
        assert clean == purified

    def test_the_decode_is_stepped_through_by_the_keyboard(self, opened):
        page = opened()
        says(page, "14 of 28 rows purified")
        slider = page.get_by_label("range slider for Decode row by row")
        slider.focus()
        slider.press("ArrowRight")
        says(page, "15 of 28 rows purified")
        slider.press("End")
        says(page, "28 of 28 rows purified")
        last, purified = (
            page.locator(place).locator("img").first.get_attribute("src")
            for place in ("#pf-decoding .pf-card", "#pf-results .pf-card:nth-child(3)")
        )
        assert last == purified
        slider.press("Home")
        says(page, "0 of 28 rows purified")

    def test_uploads_are_fitted_or_refused_in_words(self, opened, tmp_path):
        page = opened()
        name = "photo <b>of ${1+1}.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(tmp_path / name)
        Image.fromarray(np.zeros((40, 40), np.uint16)).save(tmp_path / "deep.png")
        (tmp_path / "text.png").write_text("no picture")
        chooser = page.locator("#pf-upload input[type=file]")
        chooser.set_input_files(tmp_path / "deep.png")
        page.get_by_role("alert").get_by_text("deep.png has 16 bits a channel, expected 8").wait_for()
        assert "/" not in page.get_by_role("alert").inner_text()
        page.get_by_label("CIFAR-10").check()
        page.get_by_label("green").wait_for()
        assert page.get_by_role("alert").count() == 1, "the file is still there"
        page.locator("#pf-upload").get_by_label("Clear").click()
        says(page, "A test image of CIFAR-10: airplane.")
        page.get_by_role("alert").wait_for(state="hidden")  # one part of the page after the other is new
        chooser.set_input_files(tmp_path / name)
        says(page, "(80 \u00d7 60 pixels, colour) was cropped to its middle 60 \u00d7 60 pixels and shrunk")
        assert page.locator("#pf-remark b").count() == 0
        page.get_by_label("green").check()
        page.locator("#pf-results img[alt*='of the channel green']").first.wait_for()

    def test_ctrl_c_ends_it_within_a_computation(self, browser, tmp_path):
        process, url = start(tmp_path)
        page = browser.new_context().new_page()
        page.set_default_timeout(SLOW)
        page.goto(url)
        page.locator(".pf-verdict").wait_for()
        page.get_by_label("CIFAR-10").check()
        says(page, "A test image of CIFAR-10: airplane.")
        page.get_by_label("Attack", exact=True).click()
        page.get_by_role("option", name="BPDA").click()
        time.sleep(0.3)
        interrupt(process)
        page.context.close()
        assert os.listdir(tmp_path) == []
