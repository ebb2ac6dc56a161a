"""The service on a local Ray: batches, back-pressure, the example client; slow, so only when PXFAST_TEST_RAY is 1.

They pass with RAY_SERVE_ENABLE_HA_PROXY=1 and RAY_SERVE_THROUGHPUT_OPTIMIZED=1, too (docs/serving.md).
"""

from __future__ import annotations

import concurrent.futures
import io
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.helpers import SOURCE, bundled_images, environment

import pxfast
from pxfast.data.image_decoding import read_image
from pxfast.data.image_files import write_png
from pxfast.serving import application, build

if os.environ.get("PXFAST_TEST_RAY") != "1":
    pytest.skip("a local Ray takes minutes on a busy machine: PXFAST_TEST_RAY=1 runs these", allow_module_level=True)
ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'pxfast[ray]'")
serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'pxfast[ray]'")

pytestmark = [pytest.mark.timeout(900), pytest.mark.external]
PORT = 8765
URL = f"http://127.0.0.1:{PORT}/"


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    yield
    serve.shutdown()
    ray.shutdown()


def post(content: bytes) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(URL, data=content, method="POST")) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, {}


def test_two_replicas_answer_many_requests_at_once_as_the_parts_do(tmp_path: Path) -> None:
    serve.run(build({"classifier": "fashion-mnist", "eps": "16", "replicas": "2", "threads": "1"}), name="pxfast")
    images = bundled_images(1)[:48]
    contents = []
    for image in images:
        file = io.BytesIO()
        write_png(image, file)
        contents.append(file.getvalue())
    with concurrent.futures.ThreadPoolExecutor(48) as pool:
        answers = list(pool.map(post, contents))
    assert {status for status, _ in answers} == {200}
    defended = pxfast.Defended(pxfast.classifiers.load_classifier("fashion-mnist"), [pxfast.Purifier(16)])
    with torch.no_grad():
        expected = defended(images).argmax(dim=1)
    assert [answer["label"] for _, answer in answers] == expected.tolist()
    p_values = pxfast.Detector().p_value(images)
    assert [answer["p_value"] for _, answer in answers] == pytest.approx(p_values.tolist(), abs=1e-3)

    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(contents[i])
    (tmp_path / "2.png").write_bytes(b"no image")
    client = [sys.executable, SOURCE / "examples" / "serving_client.py", "--url", URL, "--save", tmp_path / "out"]
    done = subprocess.run(
        [*client, *sorted(tmp_path.glob("*.png"))],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2
    assert f"class {int(expected[0])} with" in done.stdout
    assert "2.png: the image can't be read as an image" in done.stderr
    purified = pxfast.purify(images[:2], 16)
    assert torch.equal(torch.tensor(read_image(tmp_path / "out" / "1.png")), purified[1])


class Slow(torch.nn.Module):
    """A purifier that takes its time."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(1.0)
        return images


def test_where_too_many_wait_the_others_are_told_so() -> None:
    app = application(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)),
        purifier=Slow(),
        image_shape=(1, 28, 28),
        max_batch_size=1,
        max_waiting=1,
        threads=1,
    )
    serve.run(app, name="pxfast")
    file = io.BytesIO()
    write_png(bundled_images(1)[0], file)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        statuses = [status for status, _ in pool.map(post, [file.getvalue()] * 12)]
    assert set(statuses) == {200, 503}
    assert urllib.request.urlopen(f"{URL}-/healthz").read() == b"success"
