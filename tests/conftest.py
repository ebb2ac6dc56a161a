"""Fixtures shared by the tests: real data where it is present, and small random models."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# The networks of the tests are tiny: more threads of torch only wait for each other, on a busy machine for minutes.
# Set before torch is imported, and inherited by the commands that the tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What trainings write must not depend on what is installed here; the tests of TensorBoard's files ask for them.
os.environ.setdefault("PXFAST_TENSORBOARD", "0")

# A shell ignores Ctrl-C for what it starts in the background, and so would every process that the tests start, down to
# those that are to be interrupted.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
import typer
from support.engines import ENGINE_PARAMS, is_here, left_out
from support.helpers import common_folder, error_line, made_once, models_kept_in, random_model, whole_command

from pxfast.cli import main
from pxfast.pixelcnn.network import PixelCNN

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out what needs an engine that is not here, and marks what reads whole data sets."""
    items[:] = [item for item in items if is_here(item)]
    for item in items:
        if "data_root" in getattr(item, "fixturenames", ()):
            item.add_marker("data")


def pytest_collection_finish() -> None:
    """What importing and collecting made stays: the garbage collector need not look at it again and again."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in left_out():
        terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def models_are_trained_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The models of ``trained_model`` are trained by the first worker that needs them, and kept in pytest's cache.

    The command line's ``-p no:cacheprovider`` has them trained in every run, ``--cache-clear`` in this one.
    """
    cache: pytest.Cache | None = getattr(request.config, "cache", None)
    models_kept_in.append(common_folder(tmp_path_factory) if cache is None else cache.mkdir("trained-models"))


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torchvision root folder with Fashion-MNIST and CIFAR-10; the test is skipped where there is none.

    The environment variable PXFAST_DATA names such a folder. Without it, compact copies in ../shared/data beside the
    repository are unpacked into a temporary folder.
    """
    if "PXFAST_DATA" in os.environ:
        root = Path(os.environ["PXFAST_DATA"])
        assert root.is_dir(), f"PXFAST_DATA={root} is not a folder"
        return root
    unpack = SHARED_DATA / "unpack.py"
    if not unpack.is_file():
        pytest.skip("no data sets: PXFAST_DATA is not set and there is no ../shared/data")
    return made_once(
        tmp_path_factory, "data", lambda folder: subprocess.run([sys.executable, unpack, folder], check=True)
    )


@pytest.fixture(scope="session")
def few_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torchvision root folder with a few real images in Fashion-MNIST's files: 42 to train on, 5 to test."""
    pytest.importorskip("torchvision")
    from support.torchvision_files import write_mnist

    root = tmp_path_factory.mktemp("few")
    write_mnist(root, "FashionMNIST", more=30)
    return root


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PixelCNN]:
    """``random_model``: a factory of small random networks."""
    return random_model


@pytest.fixture(scope="session")
def tiny_model() -> PixelCNN:
    """A random network over 8x8 images of one channel. Don't change it."""
    return random_model()


@pytest.fixture(scope="session")
def tiny_colour_model() -> PixelCNN:
    """A random network over 8x8 images of three channels. Don't change it."""
    return random_model(channels=3)


@pytest.fixture(params=ENGINE_PARAMS)
def engine(request: pytest.FixtureRequest) -> str:
    """The name of every engine that can run here, in turn."""
    return request.param


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes with one thread: sums in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Runs the command line within this process, to save the seconds that a new one takes to import torch.

    Typer's own commands are built once as well, which it takes a tenth of a second for.

    Takes arguments and the exit code that is expected; gives standard output and standard error.
    """

    monkeypatch.setattr(typer.main, "get_command", lambda app: whole_command())

    def run_here(*arguments, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["pxfast", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main.main()
        out, err = capfd.readouterr()
        assert (stop.value.code or 0) == code, err
        assert "Traceback" not in err
        return out, err

    return run_here


@pytest.fixture
def refused(run_here) -> Callable[..., str]:
    """Runs a command that must fail; gives its one line."""
    return lambda *arguments: error_line(run_here(*arguments, code=2)[1])
