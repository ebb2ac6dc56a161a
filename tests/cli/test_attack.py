"""``pxfast attack``: its files, its counts, and a run that is killed and started again."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.attack_network import attack_fixture
from support.helpers import bundled_images, environment
from support.small_defences import Noisy

import pxfast
from pxfast.attacks import BPDA, Rand, attack_to_file, resumable
from pxfast.attacks.attack import BLOCK
from pxfast.attacks.resumable import labels_path
from pxfast.base.parts import parts_path
from pxfast.classifiers import load_classifier, predict
from pxfast.cli.attack import default_classifier, parse_options
from pxfast.cli.main import main
from pxfast.data.image_files import open_collection
from pxfast.defences import Defended, FeatureSqueezing
from pxfast.defences.named import parse_defence, parse_value

FIXTURE = attack_fixture()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three Fashion-MNIST images by class: 3 and 7 as named by the classifier's own labels."""
    images = bundled_images(1)[:3]
    for i, (image, label) in enumerate(zip(images, predict(load_classifier("fashion-mnist"), images), strict=True)):
        for k in range(10):  # all ten classes, so that labels are the classifier's
            (tmp_path / "data" / str(k)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(tmp_path / "data" / str(int(label)) / f"{i}.png")
    return tmp_path / "data"


def call(monkeypatch, capfd, *arguments: object, code: int = 0) -> tuple[str, str]:
    monkeypatch.setattr(sys, "argv", ["pxfast", "attack", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capfd.readouterr()
    assert (stop.value.code or 0) == code, err
    assert "Traceback" not in err
    return out, err


def test_class_folders_that_are_not_the_classifiers_are_noticed(monkeypatch, capfd, folder: Path, tmp_path) -> None:
    empty = next(place for place in sorted(folder.iterdir()) if not any(place.iterdir()))
    empty.rmdir()  # the labels behind it would be those of other classes
    _, err = call(monkeypatch, capfd, folder, "--attack", "fgsm", "--out", tmp_path / "out.npy", code=2)
    assert "has 9 classes, but the classifier has 10" in err
    assert not (tmp_path / "out.npy").exists()


def test_a_folder_is_attacked_and_purify_can_read_the_result(monkeypatch, capfd, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "attacked.npy"
    printed, bar = call(monkeypatch, capfd, folder, "--attack", "fgsm", "--out", out, "--json")
    assert "3/3" in bar
    attacked, labels = np.load(out, allow_pickle=False), np.load(labels_path(out), allow_pickle=False)
    assert labels.tolist() == sorted(labels)
    order = [file.name for file in sorted(folder.rglob("*.png"))]
    images = bundled_images(1)[[int(name[0]) for name in order]]
    change = np.abs(attacked.astype(int) - images.numpy())
    assert change.max() == 8
    wrong = predict(load_classifier("fashion-mnist"), torch.from_numpy(attacked)).numpy() != labels
    facts = json.loads(printed)
    assert facts["images"] == 3
    assert facts["misclassified"]["clean"] == 0
    assert facts["misclassified"]["rounded"] == wrong.mean()
    collection = open_collection(out)
    assert collection.names == ["0", "1", "2"]
    assert not parts_path(out).exists()

    _, err = call(monkeypatch, capfd, folder, "--attack", "fgsm", "--out", out, code=2)
    assert "exists already" in err
    printed, _ = call(
        monkeypatch, capfd, folder, "--attack", "rand", "--eps", 2, "--out", out, "--force", "--images", 1
    )
    assert "misclassified of 1 images" in printed
    assert np.load(out).shape == (1, 1, 28, 28)


def test_wrong_requests_are_refused_and_write_nothing(monkeypatch, capfd, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "attacked.npy"
    for arguments, said in [
        (["--attack", "zoo", "--out", out], "unknown attack"),
        (["--out", tmp_path / "attacked.png"], "a .png holds one image, and there are 3"),
        (["--out", tmp_path / "attacked.jpg"], ".npy"),
        (["--attack", "saliency-map", "--eps", 8, "--out", out], "no eps"),
        (["--option", "speed=3", "--out", out], "steps, label_rule"),
        (["--out", tmp_path / "nowhere" / "attacked.npy"], "no such folder"),
        (["--eps", 256, "--out", out], "256"),
        (["--defence", "lock", "--out", out], "unknown defence 'lock'; known: purifier, adp, feature-squeezing"),
        (["--defence", "purifier:sigma=1", "--out", out], "eps, adaptive, threshold"),
        (["--attack", "bpda", "--out", out], "bpda attacks a purifier"),
        (
            ["--attack", "bpda", "--defence", "purifier", "--option", "name=x", "--out", out],
            "steps, step, draws, max_queries, max_gradients",
        ),
    ]:
        _, err = call(monkeypatch, capfd, folder, *arguments, code=2)
        assert said in err
    _, err = call(monkeypatch, capfd, "fashion-mnist", "--out", out, code=2)
    assert "root" in err
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_a_defended_classifier_is_attacked_through_its_defence(
    monkeypatch, capfd, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "attacked.npy"
    defence = ["--defence", "feature-squeezing:colours=16", "--defence", "purifier:eps=32"]
    printed, _ = call(monkeypatch, capfd, folder, "--attack", "bpda", *defence, "--steps", 2, "--out", out, "--json")
    facts = json.loads(printed)
    classifier = load_classifier("fashion-mnist")
    defended = Defended(classifier, [FeatureSqueezing(16), pxfast.Purifier(32)])
    order = [int(file.name[0]) for file in sorted(folder.rglob("*.png"))]
    images = bundled_images(1)[order]
    labels = torch.from_numpy(np.load(labels_path(out)))
    result = BPDA(steps=2).run(defended, images, labels, 8)
    attacked = torch.from_numpy(np.load(out))
    assert torch.equal(attacked, result.images)
    rights = {
        (kind, what): float((predict(model, x) == labels).double().mean())
        for kind, model in (("undefended", classifier), ("defended", defended))
        for what, x in (("clean", images), ("attacked", attacked))
    }
    assert facts["accuracy"] == {
        kind: {what: pytest.approx(rights[kind, what]) for what in ("clean", "attacked")}
        for kind in ("undefended", "defended")
    }
    assert facts["queries"] == facts["gradients"] == float(result.queries.double().mean())
    assert facts["images_per_second"] > 0
    settings = ["--option", "max_queries=1", "--images", 1, "--force"]
    printed, _ = call(monkeypatch, capfd, folder, "--attack", "bpda", *defence, *settings, "--out", out)
    assert "through the defence: 100.0 % of the clean images" in printed
    assert "without the defence: 100.0 % of the clean images" in printed
    assert "images/s, 1.0 queries an image, 1.0 gradients an image" in printed


def test_the_accuracy_is_that_of_the_views_that_were_attacked(folder, tmp_path, monkeypatch, capfd) -> None:
    words = ["--attack", "fgsm", "--eps", 25, "--views", "flip", "--out", tmp_path / "attacked.npy", "--json"]
    printed, _ = call(monkeypatch, capfd, folder, *words)
    facts = json.loads(printed)
    for kind, stage in (("clean", "clean"), ("attacked", "rounded")):
        assert facts["accuracy"]["defended"][kind] == pytest.approx(1.0 - facts["misclassified"][stage])
    labels = torch.from_numpy(np.load(labels_path(tmp_path / "attacked.npy")))
    attacked = torch.from_numpy(np.load(tmp_path / "attacked.npy"))
    views = Defended(load_classifier("fashion-mnist"), views="flip")
    right = float((predict(views, attacked) == labels).double().mean())
    assert facts["accuracy"]["defended"]["attacked"] == pytest.approx(right)


def test_defences_by_name() -> None:
    purifier = parse_defence("purifier:eps=4,adaptive=image,threshold=2.5,backward=error")
    assert (purifier.eps, purifier.adaptive, purifier.threshold) == (4, "image", 2.5)
    assert repr(parse_defence("purifier")) == repr(pxfast.Purifier())
    assert parse_defence("adp:sigma=0.1,runs=2").sigma == 0.1
    assert [parse_value(text) for text in ("3", "0.5", "true", "false", "x")] == [3, 0.5, True, False, "x"]
    with pytest.raises(ValueError, match="eps must be an integer"):
        parse_defence("purifier:eps=300")
    with pytest.raises(ValueError, match="eps is given twice: 8 and 9"):
        parse_defence("purifier:eps=8,eps=9")
    with pytest.raises(ValueError, match="eps is given twice: in 'purifier:eps=8', and as eps = 4"):
        parse_defence("purifier:eps=8", eps=4)


def test_options_and_default_classifiers() -> None:
    assert parse_options("bim", ["steps=3", "label_rule=predicted"]) == {"steps": 3, "label_rule": "predicted"}
    with pytest.raises(ValueError, match=r"steps, label_rule.*'steps'"):
        parse_options("bim", ["steps"])
    with pytest.raises(ValueError, match="steps is given twice: 3 and 4"):
        parse_options("bim", ["steps=3", "steps=4"])
    with pytest.raises(ValueError, match=r"\(none\)"):
        parse_options("rand", ["generators=1"])
    assert parse_options("bpda", ["max_gradients=5", "draws=2"]) == {"max_gradients": 5, "draws": 2}
    with pytest.raises(ValueError, match="meter"):
        parse_options("bpda", ["meter=1"])
    assert default_classifier("fashion-mnist", (1, 28, 28)) == "fashion-mnist"
    assert default_classifier("some/folder", (1, 28, 28)) == "fashion-mnist"
    with pytest.raises(ValueError, match="--classifier"):
        default_classifier("some/folder", (1, 8, 8))


def images_of(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 1, 10, 10), dtype=torch.uint8, generator=generator)


def fill_disk(monkeypatch: pytest.MonkeyPatch, finished: int) -> None:
    """No part is written any more once so many images are."""
    write_part = resumable.write_part

    def broken(places, result, path):
        if path.stem == f"{finished:08d}":
            raise OSError("no space left on device")
        write_part(places, result, path)

    monkeypatch.setattr(resumable, "write_part", broken)


def test_finished_parts_are_kept_and_used(tmp_path: Path, monkeypatch) -> None:
    images, out = images_of(2 * BLOCK + 3), tmp_path / "attacked.npy"
    whole = Rand().run(FIXTURE.network, images, None, 5)
    write_part = resumable.write_part
    fill_disk(monkeypatch, 2 * BLOCK)
    with pytest.raises(OSError, match="no space"):
        attack_to_file(Rand(), FIXTURE.network, images, None, out, eps=5)
    assert not out.exists()
    assert len(list(parts_path(out).glob("*.safetensors"))) == 2

    with pytest.raises(ValueError, match=r"other settings \(eps\)"):
        attack_to_file(Rand(), FIXTURE.network, images, None, out, eps=6)
    other = attack_fixture.__wrapped__().network
    with torch.no_grad():
        other[1].bias[0] += 1.0
    with pytest.raises(ValueError, match=r"other settings \(classifier\)"):
        attack_to_file(Rand(), other, images, None, out, eps=5)
    changed = images.clone()
    changed[0, 0, 0, 0] ^= 1
    with pytest.raises(ValueError, match=r"other settings \(images\)"):
        attack_to_file(Rand(), FIXTURE.network, changed, None, out, eps=5)

    written = []
    monkeypatch.setattr(resumable, "write_part", lambda *given: (written.append(given[-1]), write_part(*given)))
    result = attack_to_file(Rand(), FIXTURE.network, images, None, out, eps=5)
    assert [path.stem for path in written] == [f"{2 * BLOCK:08d}"]
    assert torch.equal(result.images, whole.images)
    assert torch.equal(result.rounded, whole.rounded)
    assert np.array_equal(np.load(out), whole.images.numpy())
    assert set(np.load(labels_path(out)).tolist()) == {-1}
    assert not parts_path(out).exists()


class Signed(torch.nn.Module):
    """A classifier with what neither its weights nor its text tell: an attribute, and a buffer that is not kept."""

    def __init__(self, sign: float, shift: float) -> None:
        super().__init__()
        self.inner, self.sign = FIXTURE.network, sign
        self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.sign * self.inner(images) + self.shift
        return logits


@pytest.mark.parametrize("changed", [(-1.0, 0.0), (1.0, 0.5)], ids=["attribute", "buffer"])
def test_parts_of_another_classifier_of_the_same_weights_are_refused(tmp_path, monkeypatch, changed) -> None:
    images, out = images_of(BLOCK + 3), tmp_path / "attacked.npy"
    first, other = Signed(1.0, 0.0).eval(), Signed(*changed).eval()
    assert repr(first) == repr(other)
    assert first.state_dict().keys() == other.state_dict().keys()

    fill_disk(monkeypatch, BLOCK)
    with pytest.raises(OSError, match="no space"):
        attack_to_file(Rand(), first, images, None, out, eps=5)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"other settings \(classifier\)"):
        attack_to_file(Rand(), other, images, None, out, eps=5)
    attack_to_file(Rand(), first, images, None, out, eps=5)


def test_force_drops_the_parts_of_another_run(tmp_path: Path) -> None:
    out = tmp_path / "attacked.npy"
    parts_path(out).mkdir()
    (parts_path(out) / "settings.json").write_text(json.dumps({"attack": "bim"}))
    with pytest.raises(ValueError, match="other settings"):
        attack_to_file(Rand(), FIXTURE.network, FIXTURE.images, FIXTURE.labels, out, eps=5)
    attack_to_file(Rand(), FIXTURE.network, FIXTURE.images, FIXTURE.labels, out, eps=5, force=True)
    assert np.load(labels_path(out)).tolist() == FIXTURE.labels.tolist()
    with pytest.raises(ValueError, match="at least one image"):
        attack_to_file(Rand(), FIXTURE.network, FIXTURE.images[:0], None, tmp_path / "none.npy", eps=5)


SLOW_RUN = """
import sys, time
import torch
from support.attack_network import attack_fixture
from pxfast.attacks import Rand
from pxfast.attacks.attack import BLOCK
from pxfast.attacks import resumable
from cli.test_attack import images_of

write_part = resumable.write_part
def slowly(*given):
    write_part(*given)
    print("written", flush=True)
    time.sleep(60)
resumable.write_part = slowly
resumable.attack_to_file(Rand(), attack_fixture().network, images_of(BLOCK + 5), None, sys.argv[1], eps=5)
"""


def run_and_kill(code: str, out: Path) -> None:
    """Run Python code with the argument ``out`` until it says 'written', and end it with kill -9."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(out)], env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "written\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.process
def test_killed_and_started_again(tmp_path: Path) -> None:
    out = tmp_path / "attacked.npy"
    run_and_kill(SLOW_RUN, out)
    assert not out.exists()
    first = parts_path(out) / f"{0:08d}.safetensors"
    assert [path.name for path in parts_path(out).glob("*.safetensors")] == [first.name]
    before, images = first.stat().st_mtime_ns, images_of(BLOCK + 5)
    time.sleep(0.01)
    modified = []
    write_part = resumable.write_part
    resumable.write_part = lambda *given: (write_part(*given), modified.append(first.stat().st_mtime_ns))
    try:
        result = attack_to_file(Rand(), FIXTURE.network, images, None, out, eps=5)
    finally:
        resumable.write_part = write_part
    assert modified == [before]  # one part was left to do, and the finished one was not touched
    assert torch.equal(result.images, Rand()(FIXTURE.network, images, None, 5))
    assert np.array_equal(np.load(out), result.images.numpy())


SLOW_BPDA = SLOW_RUN.replace(
    "from pxfast.attacks import Rand",
    "from pxfast.attacks import BPDA, grid_ascent\nfrom cli.test_attack import DEFENDED",
).replace(
    "resumable.attack_to_file(Rand(), attack_fixture().network, images_of(BLOCK + 5), None, sys.argv[1], eps=5)",
    "grid_ascent.RELEASED = 8\n"
    "resumable.attack_to_file(BPDA(steps=2), DEFENDED, images_of(12), None, sys.argv[1], eps=5)",
)
DEFENDED = Defended(FIXTURE.network, [Noisy()])


@pytest.mark.process
def test_an_attack_through_a_random_defence_is_killed_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "attacked.npy"
    run_and_kill(SLOW_BPDA, out)
    assert [path.stem for path in parts_path(out).glob("*.safetensors")] == [f"{0:08d}"]
    other = Defended(FIXTURE.network, [Noisy(0.2)])
    with pytest.raises(ValueError, match=r"other settings \(classifier\)"):
        attack_to_file(BPDA(steps=2), other, images_of(12), None, out, eps=5)
    asked = len(DEFENDED.defences[0].calls)
    result = attack_to_file(BPDA(steps=2), DEFENDED, images_of(12), None, out, eps=5)
    rest = images_of(12)[8:].float() / 255
    for seen in torch.cat([x for x, _, _ in DEFENDED.defences[0].calls[asked:]]):
        assert ((rest - seen).abs().amax((1, 2, 3)) < 5.5 / 255).any()
    whole = BPDA(steps=2).run(DEFENDED, images_of(12), None, 5)
    for name in ("images", "rounded", "queries", "gradients"):
        assert torch.equal(getattr(result, name), getattr(whole, name)), name
    assert result.seconds > 0


def test_parts_know_the_weights_of_a_purifiers_model(make_model) -> None:
    """They are no part of the module's own state."""
    images = images_of(2)[..., :8, :8].contiguous()
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).eval()
    settings = [
        resumable.describe(BPDA(), Defended(classifier, [pxfast.Purifier(4, model=model)]), images, None, 5, 0)
        for model in (make_model(), make_model(), make_model(seed=1))
    ]
    assert settings[0] == settings[1]
    assert {name for name in settings[0] if settings[0][name] != settings[2][name]} == {"classifier"}
