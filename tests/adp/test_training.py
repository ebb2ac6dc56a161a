"""ADP's score network and its training: shapes, the loss and what minimises it, kill -9, files, the command."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.helpers import bundled_images, environment, real_images
from support.small_training import position
from torch import Tensor, nn

from pxfast.adp import training as score_training
from pxfast.adp.files import SHIPPED, load_score_network, read_score_metadata, save_score_network
from pxfast.adp.score_network import InstanceNormPlus, ScoreNetwork, ScoreNetworkConfig
from pxfast.adp.training import (
    PRESETS,
    ScoreSettings,
    ScoreTrainer,
    denoising_losses,
    denoising_quality,
    read_score_settings,
    record_quality,
    score_preset,
    train_score_network,
)
from pxfast.base.machine import torch_prefers_bf16
from pxfast.training.run import checkpoint_path

CONFIG = ScoreNetworkConfig((8, 8), 1, ngf=4)
SETTINGS = ScoreSettings(
    batch_size=16, epochs=5, learning_rate=3e-3, warmup=5, clamped=0.5, precision="fp32", horizontal_flips=True
)

# A training run in a process of its own, with a checkpoint after every step: OUT.
RUN = """
import sys
from pathlib import Path
import torch
from adp.test_training import run
torch.set_num_threads(1)
run(Path(sys.argv[1]), 0)
"""


def run(out: Path, interval: float, *, resume: bool = False) -> None:
    """Train on 64 images, with ``interval`` seconds between checkpoints."""
    options = {"settings": SETTINGS, "resume": resume, "checkpoint_interval": interval, "progress": False}
    train_score_network(CONFIG, real_images(1, (8, 8), 64), out, **options)


def build(config: ScoreNetworkConfig = CONFIG, seed: int = 0) -> ScoreNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ScoreNetwork(config).eval()


@pytest.mark.parametrize(("C", "H", "W"), [(1, 28, 28), (3, 32, 32), (1, 9, 7), (3, 4, 5)])
def test_shapes(C: int, H: int, W: int) -> None:
    network = build(ScoreNetworkConfig((H, W), C, ngf=4))
    x = torch.rand(2, C, H, W, generator=torch.Generator().manual_seed(0))
    assert network(x).shape == x.shape
    with pytest.raises(
        ValueError, match=rf"expected images \(N, {C}, H, W\), H and W at least 4, got \(2, {C}, 3, 9\)"
    ):
        network(torch.zeros(2, C, 3, 9))
    with pytest.raises(ValueError, match="expected images"):
        network(torch.zeros(2, 4 - C, H, W))


def test_the_full_network_is_the_authors_size() -> None:
    """29.7 M parameters: NCSNv2 for CIFAR-10 with ngf 128, counted from its layers."""
    n, C = 128, 3

    def conv(a: int, b: int, size: int = 9, bias: bool = True) -> int:
        return size * a * b + bias * b

    def norm(features: int) -> int:
        return 3 * features

    def block(a: int, b: int, middle: int) -> int:
        return norm(a) + conv(a, middle) + norm(middle) + conv(middle, b)

    def refine(inputs: tuple[int, ...], features: int, units: int = 1) -> int:
        adapt = sum(4 * conv(a, a, bias=False) for a in inputs)
        fuse = sum(conv(a, features) for a in inputs) if len(inputs) > 1 else 0
        return adapt + fuse + (2 + 2 * units) * conv(features, features, bias=False)

    m = 2 * n
    expected = conv(C, n) + 2 * block(n, n, n)
    expected += block(n, m, n) + conv(n, m, size=1) + block(m, m, m)  # halves
    expected += 2 * (block(m, m, m) + conv(m, m) + block(m, m, m))  # dilated by 2 and by 4
    expected += refine((m,), m) + refine((m, m), m) + refine((m, m), n) + refine((n, n), n, units=3)
    expected += norm(n) + conv(n, C)
    config, settings = score_preset("full", "cifar10")
    with torch.device("meta"):
        network = ScoreNetwork(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    assert 29.5e6 < expected < 29.9e6
    assert (settings.batch_size, settings.learning_rate, settings.ema_decay) == (128, 1e-4, 0.999)


def test_the_network_sees_far_and_all_of_it_learns() -> None:
    network = build(ScoreNetworkConfig((16, 16), 1, ngf=4))
    x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    network(x)[0, 0, 8, 8].backward()
    assert float((x.grad != 0).double().mean()) == 1.0
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_instance_norm_plus_is_its_formula() -> None:
    norm = InstanceNormPlus(5).double()
    nn.init.normal_(norm.beta, generator=torch.Generator().manual_seed(1))
    x = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 1
    means = x.mean((2, 3))
    relative = (means - means.mean(1, keepdim=True)) / (means.var(1, correction=1, keepdim=True) + 1e-5).sqrt()
    standard = nn.functional.instance_norm(x)
    shape = (1, 5, 1, 1)
    literal = norm.gamma.view(shape) * (standard + norm.alpha.view(shape) * relative[:, :, None, None])
    torch.testing.assert_close(norm(x), literal + norm.beta.view(shape))


def test_noise_levels() -> None:
    sigmas = ScoreSettings(levels=3, sigma_max=1.0, sigma_min=0.01).sigmas()
    torch.testing.assert_close(sigmas, torch.tensor([1.0, 0.1, 0.01]))
    assert ScoreSettings(levels=1, sigma_max=0.25, sigma_min=0.25).sigmas().tolist() == [0.25]


def test_the_losses_of_no_answer_and_of_the_right_one() -> None:
    images = bundled_images(1)[:4].double() / 255
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = torch.tensor([0.01, 0.1, 0.25, 1.0], dtype=torch.float64)
    nothing = denoising_losses(torch.zeros_like, images, sigmas, noise)
    torch.testing.assert_close(nothing, noise.square().mean((1, 2, 3)))

    def right(noisy: Tensor) -> Tensor:
        return (images - noisy) / sigmas[:, None, None, None]

    assert float(denoising_losses(right, images, sigmas, noise).max()) < 1e-12
    seen: list[Tensor] = []

    def watched(noisy: Tensor) -> Tensor:
        seen.append(noisy)
        return right(noisy)

    clamped = torch.tensor([True, False, True, False])
    assert float(denoising_losses(watched, images, sigmas, noise, clamped).max()) < 1e-12
    outside = ((seen[0] < 0) | (seen[0] > 1)).flatten(1).any(1)
    assert outside.tolist() == [False, True, False, True]


def test_some_noisy_images_are_clamped() -> None:
    images = bundled_images(1)
    config, settings = ScoreNetworkConfig((28, 28), 1, ngf=2), dataclasses.replace(SETTINGS, batch_size=64)
    for fraction, least, most in ((0.0, 0, 0), (0.5, 20, 44), (1.0, 64, 64)):
        trainer = ScoreTrainer(config, dataclasses.replace(settings, clamped=fraction), images)
        batch = trainer.batch(3)
        assert least <= int(batch[3].sum()) <= most
        assert all(torch.equal(a, b) for a, b in zip(batch, trainer.batch(3), strict=True))


def test_a_run_may_start_from_a_network(tmp_path) -> None:
    start, images = build(seed=4), real_images(1, (8, 8), 64)
    settings = dataclasses.replace(SETTINGS, epochs=0.25, learning_rate=1e-6)
    network = train_score_network(CONFIG, images, tmp_path / "a.safetensors", settings=settings, start=start,
                                  progress=False)  # fmt: skip
    for (name, before), after in zip(start.named_parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(after, before, rtol=2**-8, atol=1e-5, msg=name)  # it comes back rounded to bf16
    with pytest.raises(ValueError, match=r"expected to start from a score network of .*got"):
        train_score_network(CONFIG, images, tmp_path / "b.safetensors", settings=SETTINGS,
                            start=build(dataclasses.replace(CONFIG, ngf=2)))  # fmt: skip


def test_the_loss_is_least_at_the_score_of_a_gaussian() -> None:
    """Images from N(m, v): of all f(x) = w (x - m), the score of the noisy images times sigma, w = -s / (s^2 + v)."""
    generator = torch.Generator().manual_seed(0)
    m, v, sigma = 0.5, 0.04, 0.25
    images = m + v**0.5 * torch.randn(500, 1, 16, 16, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    sigmas = torch.full((500,), sigma)

    def slope(w: float) -> float:
        weight = torch.tensor(w, requires_grad=True)
        denoising_losses(lambda x: weight * (x - m), images, sigmas, noise).mean().backward()
        return float(weight.grad)

    best = -sigma / (sigma**2 + v)
    assert abs(slope(best)) < 0.01
    assert slope(0.9 * best) > 0.02
    assert slope(1.1 * best) < -0.02


def test_quality_of_a_perfect_and_of_an_idle_network() -> None:
    images = bundled_images(1)[:8]

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x

    idle = denoising_quality(Idle(), images, 0.1)
    assert idle["psnr"] == idle["noisy_psnr"] > 20
    assert idle["loss"] == pytest.approx(1.0, abs=0.05)
    assert denoising_quality(Idle(), images, 0.1) == idle


def test_training_learns_and_its_file_says_how(tmp_path) -> None:
    images, out = real_images(1, (12, 12), 64), tmp_path / "score.safetensors"
    config = ScoreNetworkConfig((12, 12), 1, ngf=4)
    settings = dataclasses.replace(SETTINGS, epochs=8, sigma_min=0.1, precision="bf16", ema_decay=0.9)
    network = train_score_network(config, images, out, settings=settings, progress=False)
    found = record_quality(out, images[:16], (0.25,))
    assert found["0.25"]["loss"] < 0.7
    assert found["0.25"]["psnr"] > found["0.25"]["noisy_psnr"] + 1
    stored = load_score_network(out)
    for name, value in stored.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name
    written, notes = read_score_metadata(out)
    assert written == config
    assert notes["steps"] == 32
    assert notes["training"] == dataclasses.asdict(settings)
    assert notes["denoising"] == found
    assert notes["test_images"] == 16


@pytest.mark.process
def test_kill_and_resume_gives_the_weights_of_an_uninterrupted_run(tmp_path, one_thread) -> None:
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    process = subprocess.Popen([sys.executable, "-c", RUN, str(killed)], env=environment(OMP_NUM_THREADS="1"))
    deadline = time.monotonic() + 120
    while position(checkpoint_path(killed)) < 4:
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert position(checkpoint_path(killed)) < 20, "killed too late to say anything"
    run(whole, 1000)
    run(killed, 1000, resume=True)
    for ours, theirs in ((checkpoint_path(killed), checkpoint_path(whole)), (killed, whole)):
        ours, theirs = load_file(ours), load_file(theirs)
        assert ours.keys() == theirs.keys()
        for name in theirs:  # network, averaged network and Adam's state, bit for bit
            assert torch.equal(ours[name], theirs[name]), name
    assert position(checkpoint_path(killed)) == position(checkpoint_path(whole)) == 20


def test_refusals(tmp_path) -> None:
    images, out = real_images(1, (8, 8), 64), tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="128 images, got 64"):
        train_score_network(CONFIG, images, out)
    with pytest.raises(TypeError, match=r"uint8 training images \(N, 1, 8, 8\), N > 0, got torch\.float32"):
        ScoreTrainer(CONFIG, SETTINGS, images.float())
    trainer = ScoreTrainer(CONFIG, SETTINGS, images)
    trainer.save(checkpoint_path(out))
    assert read_score_settings(checkpoint_path(out)) == (CONFIG, SETTINGS)
    with pytest.raises(FileExistsError):
        train_score_network(CONFIG, images, out, settings=SETTINGS)
    with pytest.raises(ValueError, match=r"another settings \(levels: 10 then, 9 now\)"):
        train_score_network(CONFIG, images, out, settings=dataclasses.replace(SETTINGS, levels=9), resume=True)
    nn.init.constant_(trainer.model.end.bias, float("nan"))
    before = trainer.model.begin.weight.clone()
    with pytest.raises(FloatingPointError, match="step 0: loss nan"):
        trainer.train_step()
    assert torch.equal(trainer.model.begin.weight, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScoreSettings(levels=0), "levels must be an integer of at least 1, got 0"),
        (lambda: ScoreSettings(sigma_min=0.0), r"sigma_min must be a number in \(0, inf\)"),
        (lambda: ScoreSettings(sigma_max=0.001), "0 < sigma_min <= sigma_max"),
        (lambda: ScoreSettings(gradient_clip=-1.0), "gradient_clip"),
        (lambda: ScoreSettings(ema_decay=1.0), "ema_decay"),
        (lambda: ScoreSettings(clamped=1.5), "clamped"),
        (lambda: ScoreNetworkConfig((8, 3), 1), "image_size"),
        (lambda: ScoreNetworkConfig((8, 8), 2), "channels"),
        (lambda: ScoreNetworkConfig((8, 8), 1, ngf=1), "ngf"),
        (lambda: score_preset("paper", "cifar10"), "unknown preset 'paper'; known: full, small"),
        (lambda: load_score_network("mnist"), "unknown score network 'mnist'; shipped: cifar10, fashion-mnist"),
    ],
)
def test_bad_settings(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_files_that_do_not_fit_are_refused(tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    save_score_network(build(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"a\.safetensors is truncated"):
        load_score_network(path)
    path.write_bytes(whole.replace(b'\\"ngf\\": 4', b'\\"ngf\\": 6'))
    with pytest.raises(ValueError, match="should have shape"):
        load_score_network(path)


def test_command(run_here, refused, tmp_path) -> None:
    """On a folder of images: trains, measures, refuses to overwrite, goes on with a checkpoint's own settings."""
    folder, out = tmp_path / "images", tmp_path / "score.safetensors"
    folder.mkdir()
    for number, image in enumerate(real_images(1, (8, 8), 40)):
        Image.fromarray(image[0].numpy()).save(folder / f"{number:02}.png")
    words = ["train-adp", folder, "--out", out, "--device", "cpu"]
    options = ["--preset", "small", "--ngf", 4, "--levels", 5, "--sigma-max", 0.4, "--sigma-min", 0.1, "--epochs", 2]
    printed, _ = run_here(*words, *options, "--batch-size", 12)
    assert [line.split(":")[0] for line in printed.splitlines()] == ["noise 0.05", "noise 0.1", "noise 0.25"]
    config, notes = read_score_metadata(out)
    assert config == CONFIG
    _, small = PRESETS["small"]
    changes = {"levels": 5, "sigma_max": 0.4, "sigma_min": 0.1, "epochs": 2.0, "batch_size": 12}
    expected = dataclasses.asdict(dataclasses.replace(small, **changes))
    assert notes["training"] == {**expected, "precision": "bf16" if torch_prefers_bf16("cpu") else "fp32"}
    assert (notes["steps"], notes["test_images"]) == (6, 4)
    assert "exists already" in refused(*words, *options)
    again, _ = run_here(*words, "--resume", "--quiet")
    assert again == printed
    facts = json.loads(run_here(*words, "--resume", "--json")[0])
    assert (facts["steps"], facts["test_images"], facts["files"]) == (6, 4, [str(out)])
    assert facts["denoising"] == notes["denoising"]
    more = tmp_path / "more.safetensors"
    options.remove("--ngf")
    options.remove(4)
    run_here("train-adp", folder, "--out", more, "--device", "cpu", "--start", out, *options, "--batch-size", 12)
    config, both = read_score_metadata(more)
    assert config == CONFIG, "the width is the start's, not the preset's"
    assert [part["steps"] for part in both["parts"]] == [6, 6]
    assert both["steps"] == 12
    assert "another settings (seed: 0 then, 1 now)" in refused(*words, "--resume", "--seed", 1)


@pytest.mark.parametrize(("name", "shape"), [("fashion-mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))])
def test_shipped_networks_find_noise(name: str, shape: tuple[int, int, int], monkeypatch) -> None:
    assert name in SHIPPED
    path = SHIPPED[name]
    if not path.is_file():
        pytest.skip(f"no {path.name} in this tree: pxfast train-adp makes it")
    assert path.stat().st_size <= 4_000_000
    config, notes = read_score_metadata(name)
    assert (config.channels, *config.image_size) == shape
    network = load_score_network(name)
    monkeypatch.setattr(score_training, "EVALUATED_AT_ONCE", 8)
    for sigma in (0.1, 0.25):
        found = denoising_quality(network, bundled_images(shape[0])[:16], sigma)
        assert found["loss"] == pytest.approx(notes["denoising"][str(sigma)]["loss"], rel=0.25)
        assert found["psnr"] > found["noisy_psnr"] + 4
