"""The example client of a service, against a small server: what it saves, and what it says of failures."""

from __future__ import annotations

import base64
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.helpers import SOURCE, environment

CLIENT = SOURCE / "examples" / "serving_client.py"


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers as a service whose purified image is the one that came; an empty one it refuses."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        answer = {
            "label": 0,
            "probabilities": [1.0],
            "undefended_label": 0,
            "p_value": None,
            "purified": base64.b64encode(body).decode(),
        }
        content = json.dumps(answer if body else {"error": "expected an image"}).encode()
        self.send_response(200 if body else 400)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CLIENT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment())


def test_images_are_saved_under_their_names(url: str, tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(name.encode())
    done = run("--url", url, "--save", tmp_path / "new" / "saved", tmp_path / "1.png", tmp_path / "2.png")
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "new" / "saved").iterdir()} == {
        "1.png": b"1.png",
        "2.png": b"2.png",
    }


def test_two_images_of_one_name_are_refused_before_any_is_sent(tmp_path: Path) -> None:
    done = run("--url", "http://127.0.0.1:1/", "--save", tmp_path / "saved", "a/1.png", "b/1.png")
    assert done.returncode == 2
    assert "two images of one name can't be saved in one folder" in done.stderr


def test_what_fails_is_told_and_the_others_go_on(url: str, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "good.png").write_bytes(b"x")
    done = run("--url", url, tmp_path / "empty.png", tmp_path / "missing.png", tmp_path / "good.png")
    assert done.returncode == 1
    assert "empty.png: expected an image" in done.stderr
    assert "missing.png" in done.stderr
    assert "good.png: class 0" in done.stdout
    done = run("--url", "http://127.0.0.1:1/", tmp_path / "good.png")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
