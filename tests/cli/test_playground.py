"""What the page of ``pxfast app`` computes and draws, without Gradio and without a browser."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import socket
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from support.helpers import bundled_images

import pxfast
from pxfast.attacks import FGSM
from pxfast.classifiers import load_classifier, predict
from pxfast.cli.demonstration import load_demo_images
from pxfast.cli.playground import cards, maps
from pxfast.cli.playground.examination import ATTACKS, DATASETS, Laboratory, attack_on_one, partly_purified
from pxfast.cli.playground.page import chosen_image, examples, in_words
from pxfast.cli.playground.server import Desk, bound_socket, guarded
from pxfast.cli.playground.uploads import fit, read_upload


@pytest.fixture(scope="module")
def laboratory():
    return Laboratory("fashion-mnist")


@pytest.fixture(scope="module")
def examination(laboratory):
    return laboratory.examine(load_demo_images().clean[9], "fgsm", 25, 32)  # an ankle boot


@pytest.mark.parametrize(
    "dataset", [pytest.param(name, marks=[pytest.mark.whole] * (name == "cifar10")) for name in DATASETS]
)
def test_an_examination_is_what_the_public_functions_give(dataset):
    laboratory = Laboratory(dataset)
    image = load_demo_images(dataset).clean[5]
    eps = 8
    found = laboratory.examine(image, "fgsm", eps, 16)
    classifier = load_classifier(dataset)
    if dataset == "fashion-mnist":
        attacked = FGSM()(classifier, image[None], None, eps)
        assert (found.attacked.image != attacked[0]).float().mean() < 0.01, "but for rounding in other batches"
    assert (found.attacked.image.int() - image.int()).abs().max() == eps
    assert torch.equal(found.purified.image, pxfast.purify(found.attacked.image, eps=16))
    detector = pxfast.Detector(dataset)
    for judged in (found.clean, found.attacked, found.purified):
        assert judged.bits_per_dim == pytest.approx(float(pxfast.bits_per_dim(judged.image)), rel=1e-5)
        assert judged.bits_per_dim == pytest.approx(float(judged.surprise.double().mean()), rel=1e-6)
        assert judged.p_value == pytest.approx(float(detector.p_value(judged.image)), rel=0.01)
        torch.testing.assert_close(judged.surprise, pxfast.surprise(judged.image), rtol=1e-3, atol=1e-3)
        confidences = [confidence for _, confidence in judged.classes]
        assert confidences == sorted(confidences, reverse=True)
        assert sum(confidences) == pytest.approx(1)
        names = [name for _, name in examples(dataset)]
        assert judged.label == names[int(predict(classifier, judged.image[None].float() / 255))]


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(name, marks=[pytest.mark.whole] * (name not in ("none", "fgsm")))
        for name in ATTACKS
        if name != "deepfool"
    ],
)
def test_every_attack_keeps_its_bound(laboratory, attack):
    image = load_demo_images().clean[9]
    found = laboratory.examine(image, attack, 4, 2)
    assert (found.attacked.image.int() - image.int()).abs().max() == (0 if attack == "none" else 4)
    assert (found.purified.image.int() - found.attacked.image.int()).abs().max() <= 2


def test_an_attack_on_one_image_does_the_work_of_one():
    batches = []

    class Classifier(torch.nn.Module):
        def forward(self, x):
            batches.append(len(x))
            return x.sum((2, 3)) @ torch.ones(x.shape[1], 2)

    attack_on_one("rand")(Classifier().eval(), bundled_images(1)[:1], None, 8)
    assert set(batches) <= {1}
    assert attack_on_one("bpda").batch == 1
    assert type(attack_on_one("bpda")).batch == 32, "the class is as it was"


def test_wrong_requests_are_refused(laboratory, examination):
    image = load_demo_images().clean[0]
    with pytest.raises(ValueError, match="attack must be one of none, rand, fgsm"):
        laboratory.examine(image, "magic", 8, 8)
    with pytest.raises(ValueError, match=r"eps must be an integer in 0\.\.255, got 256"):
        laboratory.examine(image, "fgsm", 8, 256)
    with pytest.raises(TypeError, match=r"eps must be an integer in 0\.\.255, got 0\.5"):
        laboratory.examine(image, "fgsm", 0.5, 8)
    with pytest.raises(ValueError, match=r"expected an image \(C, H, W\) = \(1, 28, 28\), got \(3, 32, 32\)"):
        laboratory.examine(bundled_images(3)[0], "fgsm", 8, 8)
    with pytest.raises(ValueError, match="dataset must be one of fashion-mnist, cifar10, got 'mnist'"):
        Laboratory("mnist")
    with pytest.raises(ValueError, match=r"rows must be an integer in 0\.\.28, got 29"):
        laboratory.decoded(examination, 29)
    with pytest.raises(ValueError, match="rows must be an integer of at least 0, got -1"):
        partly_purified(examination, -1)


def test_the_decode_goes_row_by_row(laboratory, examination):
    """The rows done are those of a decode that stops there: their surprise is that of the finished image."""
    assert torch.equal(partly_purified(examination, 0), examination.attacked.image)
    assert torch.equal(partly_purified(examination, 28), examination.purified.image)
    decoded = laboratory.decoded(examination, 10)
    assert torch.equal(decoded.image[:, :10], examination.purified.image[:, :10])
    assert torch.equal(decoded.image[:, 10:], examination.attacked.image[:, 10:])
    torch.testing.assert_close(decoded.surprise[:, :10], examination.purified.surprise[:, :10], rtol=1e-3, atol=1e-3)
    again = pxfast.purify(decoded.image, eps=0)
    assert torch.equal(again, decoded.image)


@pytest.mark.parametrize(
    ("shape", "target", "said"),
    [
        ((1, 28, 28), (1, 28, 28), "is used as it is."),
        ((3, 32, 32), (1, 28, 28), "was shrunk to 28 \u00d7 28 and made grey, because"),
        ((1, 28, 28), (3, 32, 32), "was enlarged to 32 \u00d7 32 and given three equal channels, because"),
        (
            (3, 48, 100),
            (3, 32, 32),
            "was cropped to its middle 48 \u00d7 48 pixels and shrunk to 32 \u00d7 32, because",
        ),
        (
            (3, 300, 7),
            (1, 28, 28),
            "was cropped to its middle 7 \u00d7 7 pixels, enlarged to 28 \u00d7 28 and made grey,",
        ),
        ((1, 1, 1), (3, 32, 32), "was enlarged to 32 \u00d7 32 and given three equal channels"),
    ],
)
def test_a_picture_is_fitted_to_the_model(shape, target, said):
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image, changes = fit(pixels, target)
    assert image.shape == target
    assert image.dtype == torch.uint8
    assert said in changes


def test_the_middle_is_kept():
    pixels = torch.zeros(3, 40, 120, dtype=torch.uint8)
    pixels[0, :, 40:80] = 200
    image, _ = fit(pixels, (3, 32, 32))
    assert (image == torch.tensor([200, 0, 0], dtype=torch.uint8)[:, None, None]).all()


def test_uploads_are_read_as_everywhere_and_named_by_their_own_name(tmp_path):
    Image.fromarray(np.full((60, 80, 3), 7, np.uint8)).save(tmp_path / "photo.png")
    image, remark = read_upload(tmp_path / "photo.png", (3, 32, 32))
    assert image.eq(7).all()
    assert remark.startswith("photo.png (80 \u00d7 60 pixels, colour) was cropped to its middle 60 \u00d7 60 pixels")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    Image.new("L", (8, 8)).save(
        tmp_path / "moving.gif", save_all=True, append_images=[Image.new("L", (8, 8), 255)], duration=10
    )
    Image.new("1", (6000, 6000)).save(tmp_path / "huge.png")
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGBA", (8, 8)).save(tmp_path / "clear.png")
    for name, said in (
        ("deep.png", "deep.png has 16 bits a channel, expected 8"),
        ("moving.gif", "moving.gif has several frames, expected one"),
        ("huge.png", "huge.png has 6000 x 6000 pixels, expected 33554432 at most"),
        ("text.png", "text.png can't be read as an image"),
        ("clear.png", "with transparency"),
    ):
        with pytest.raises(ValueError, match=said) as refusal:
            read_upload(tmp_path / name, (3, 32, 32))
        assert str(tmp_path) not in str(refusal.value)


def test_examples_are_one_of_each_class(laboratory):
    for dataset, shape in (("fashion-mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))):
        found = examples(dataset)
        assert len({name for _, name in found}) == 10
        assert all(image.shape == shape for image, _ in found)
    image, remark = chosen_image(laboratory, 9, None)
    assert torch.equal(image, load_demo_images().clean[9])
    assert remark == "A test image of Fashion-MNIST: ankle boot."


def test_colours_are_in_the_order_of_the_bits():
    bits = torch.linspace(0, maps.MOST_BITS, 256)[None]
    assert (maps.coloured(bits) == maps.legend()).all()
    lightness = maps.legend()[0].astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > -0.5).all(), "the lightness alone tells the order"
    assert (maps.coloured(torch.tensor([[-1e-3, 99.0]])) == maps.legend()[:, [0, -1]]).all()
    colour = torch.arange(12.0).reshape(3, 2, 2)
    assert torch.equal(maps.plane(colour), colour.mean(0))
    assert torch.equal(maps.plane(colour, "green"), colour[1])
    assert torch.equal(maps.plane(colour[:1], "blue"), colour[0]), "grey has one channel"
    with pytest.raises(ValueError, match="channel must be one of mean, red, green, blue"):
        maps.plane(colour, "alpha")


def pictures(html: str) -> list[np.ndarray]:
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        for data in re.findall(r"data:image/png;base64,([^\"]*)", html)
    ]


def test_cards_show_the_very_pixels_and_their_map(examination):
    html = cards.card("Attacked", examination.attacked, "mean", line=0.5)
    image, surprise = pictures(html)
    assert (image == examination.attacked.image[0].numpy()).all()
    assert (surprise == maps.coloured(examination.attacked.surprise[0])).all()
    assert html.count("<img ") == len(re.findall(r'<img [^>]*alt="[^"]{20,}"', html)) == 2
    assert f"{examination.attacked.bits_per_dim:.3f}" in html
    assert html.count("top:50.00%") == 2
    assert "(suspicious)" in html
    assert examination.attacked.p_value <= 0.05
    whole = cards.results(examination, "mean")
    assert len(pictures(whole)) == 7, "three images, three maps, the legend"
    assert 'role="status"' in whole


def test_what_is_said_of_the_labels(examination, laboratory):
    label, other = examination.clean.label, examination.attacked.label
    assert label != other
    said = cards.verdict(examination)
    assert said.startswith(f"The attack turns {label} into {other}. Purification ")
    assert said.endswith(f"brings {label} back." if examination.purified.label == label else "")
    quiet = laboratory.examine(load_demo_images().clean[9], "none", 25, 0)
    assert cards.verdict(quiet) == "Purification keeps the label, ankle boot."
    weak = laboratory.examine(load_demo_images().clean[9], "rand", 1, 0)
    assert cards.verdict(weak) == "The attack does not change the label, ankle boot. Purification keeps it."


def test_numbers_are_not_rounded_to_what_they_are_not():
    assert [cards.percent(p) for p in (0, 0.0004, 0.5, 0.9994)] == ["< 0.1 %", "< 0.1 %", "50.0 %", "> 99.9 %"]
    assert [cards.p_value_text(p) for p in (2e-5, 0.05, 0.051)] == [
        "< 0.001 (suspicious)",
        "0.050 (suspicious)",
        "0.051",
    ]


def test_nothing_of_a_user_is_html():
    hostile = "<img src=x onerror=alert(1)>"
    assert "<img" not in cards.message(hostile)
    assert "<img" not in cards.remark(hostile)
    assert cards.message("") == ""


def test_errors_are_told_in_words(capsys):
    assert in_words(ValueError("x.png has 16 bits")) == "This did not work: x.png has 16 bits"
    assert capsys.readouterr().err == ""
    assert in_words(KeyError("row")).startswith("pxfast failed (KeyError: 'row'). The terminal")
    assert "KeyError" in capsys.readouterr().err


def test_the_desk_works_where_it_is_called():
    desk, found = Desk(), {}

    async def ask() -> None:
        found["thread"] = await desk.done(threading.current_thread)
        with pytest.raises(ZeroDivisionError):
            await desk.done(lambda: 1 / 0)
        found["after"] = await desk.done(lambda: 3)

    def serve() -> None:
        asyncio.run(ask())
        desk.close()

    server = threading.Thread(target=serve)
    server.start()
    desk.work()
    server.join(10)
    assert found == {"thread": threading.current_thread(), "after": 3}


def test_work_that_nobody_waits_for_is_not_begun():
    desk, begun = Desk(), []

    async def leave() -> None:
        waiting = asyncio.ensure_future(desk.done(lambda: begun.append(1)))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(leave())
    desk.close()
    desk.work()
    assert not begun


def test_ctrl_c_answers_what_is_done_and_what_waits():
    desk, found = Desk(), []

    def interrupted() -> None:
        raise KeyboardInterrupt

    async def ask() -> None:
        jobs = (interrupted, lambda: 1, lambda: 2)
        found.extend(await asyncio.gather(*map(desk.done, jobs), return_exceptions=True))
        found.extend(await asyncio.gather(desk.done(lambda: 3), return_exceptions=True))

    server = threading.Thread(target=lambda: asyncio.run(ask()))
    server.start()
    with pytest.raises(KeyboardInterrupt):
        desk.work()
    server.join(10)
    assert [type(each) for each in found] == [ConnectionAbortedError] * 4


def test_a_port_in_use_is_said():
    with bound_socket(0) as first:
        address, port = first.getsockname()
        assert address == "127.0.0.1"
        with pytest.raises(OSError, match=rf"^port {port} of 127\.0\.0\.1 is in use; choose another with --port"):
            bound_socket(port)
        with socket.create_connection((address, port), timeout=5):
            pass


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:7860", 200), ("localhost:7860", 200), ("localhost", 200), ("evil.example:7860", 421), ("", 421)],
)
def test_other_names_are_refused_and_every_answer_has_the_policy(host, status):
    sent = []

    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "headers": [(b"host", host.encode())]}
    asyncio.run(guarded(page)(scope, None, send))
    assert sent[0]["status"] == status
    if status == 200:
        policy = dict(sent[0]["headers"])[b"content-security-policy"].decode()
        assert policy.startswith("default-src 'self'")
        assert "http" not in policy


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # curl
        ({"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
def test_another_page_may_send_nothing(headers, status):
    """A form of any page could otherwise fill this machine's disk with uploads."""
    sent = []

    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    given = {"host": "127.0.0.1:7860", **headers}
    scope = {"type": "http", "headers": [(name.encode(), value.encode()) for name, value in given.items()]}
    asyncio.run(guarded(page)({**scope, "method": "POST"}, None, send))
    assert sent[0]["status"] == status
    asyncio.run(guarded(page)({**scope, "method": "GET"}, None, send))
    assert sent[-1]["status"] == 200
