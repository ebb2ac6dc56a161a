"""The real command line, as a user runs it: help, errors, exit codes, streams."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors import SafetensorError
from support.engines import QUICK
from support.helpers import command_line, environment, error_line, run_command, run_python

import pxfast
from pxfast.cli import main as main_module
from pxfast.cli.main import COMMANDS
from pxfast.training.loop import deferred_interrupt


@pytest.mark.process
def test_version_and_help(run_here):
    assert run_command("--version").stdout.strip() == f"pxfast {pxfast.__version__}"
    listing, _ = run_here("--help")
    assert run_here()[0] == listing
    places = [listing.index(f" {name} ") for commands in COMMANDS.values() for name in commands]
    assert places == sorted(places), "the commands stand in the order of COMMANDS"
    for panel in COMMANDS:
        assert f"─ {panel} ─" in listing


@pytest.mark.process
def test_the_package_is_a_program():
    command = [sys.executable, "-m", "pxfast", "--version"]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == f"pxfast {pxfast.__version__}"


@pytest.mark.process
def test_errors_are_one_line_and_code_2(refused, tmp_path):
    assert "no such file or folder" in error_line(run_command("bpd", tmp_path / "missing.npy", code=2).stderr)
    assert "OUT" in refused("purify", tmp_path)


@pytest.mark.process
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_ctrl_c_and_termination_are_clean(model, tmp_path, number, code, word):
    """The run ends quickly with one line, and neither output nor temporary files."""
    np.save(tmp_path / "in.npy", np.zeros((4096, 1, 8, 8), dtype=np.uint8))
    arguments = command_line(
        "purify", tmp_path / "in.npy", tmp_path / "out.npy", "--engine", "reference", "--model", model
    )
    process = subprocess.Popen(arguments, env=environment(), stderr=subprocess.PIPE, text=True)
    while not [name for name in os.listdir(tmp_path) if name.startswith(".out")]:
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == word
    assert os.listdir(tmp_path) == ["in.npy"]


def test_termination_reaches_what_ctrl_c_is_for_and_goes_back(monkeypatch):
    """A training finishes its step and keeps it (:func:`pxfast.training.loop.deferred_interrupt`)."""
    stopped = []

    def training(**options: object) -> None:
        with deferred_interrupt() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            stopped.append(asked.wait(10))
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "app", training)
    with pytest.raises(SystemExit) as end:
        main_module.main()
    assert end.value.code == 143
    assert stopped == [True]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_removed_folder_is_told(refused, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "the current folder has been removed" in refused("info")


def test_help_needs_no_terminal_of_some_width(run_here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    listing, _ = run_here("--help")
    assert "purify" in listing


HELP = """
import sys
from pxfast.cli.main import COMMANDS, main

pages = [[], *([name] for commands in COMMANDS.values() for name in commands)]
pages += [["evaluate", "table1"], ["evaluate", "figures"], ["convert", "openai-tf"]]
pages += [["figures", "density"], ["figures", "detectors"]]
for page in pages:
    sys.argv = ["pxfast", *page, "--help"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, page
print("imported:", *sorted({"torch", "numpy", "safetensors", "PIL", "matplotlib", "tqdm"} & set(sys.modules)))
"""


@pytest.mark.process
def test_help_does_not_import_what_takes_long() -> None:
    assert run_python(HELP).splitlines()[-1] == "imported:"


@pytest.mark.process
@pytest.mark.parametrize(
    ("typed", "offered"),
    [("purge", []), ("train", ["train", "train-classifier", "train-adp"]), ("purify --device cu", ["cuda"])],
)
def test_completion(typed: str, offered: list[str]) -> None:
    words = ["pxfast", *typed.split()]
    settings = {"_PXFAST_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(command_line(), env=environment(**settings), capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == offered, done.stderr


@pytest.mark.parametrize("group", ["evaluate", "figures", "convert"])
def test_a_group_without_a_command_prints_its_help(run_here, group: str) -> None:
    out, err = run_here(group, code=2)
    assert f"pxfast {group} [OPTIONS] COMMAND [ARGS]" in out
    assert error_line(err).startswith(f"error: pxfast {group} needs a command: ")
    assert len(err.splitlines()) == 1


@pytest.mark.process
@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-"])
def test_closed_streams_do_no_harm(model, images, reference, tmp_path, closed: str) -> None:
    """Nothing is written into the output file in place of the closed stream."""
    np.save(tmp_path / "in.npy", images.numpy())
    words = command_line("purify", tmp_path / "in.npy", tmp_path / "out.npy", *reference, "--json")
    shell = ["sh", "-c", f"{shlex.join(words)} {closed}"]
    done = subprocess.run(shell, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    if closed.startswith(">"):
        assert not done.stdout
    else:
        assert json.loads(done.stdout)["images"] == 3
    if "2>&-" in closed:
        assert not done.stderr
    expected = pxfast.purify(images, 16, model=model, engine=QUICK, precision="fp32")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    refusal = shlex.join(command_line("bpd", tmp_path / "missing.npy"))
    assert subprocess.run(["sh", "-c", f"{refusal} {closed}"], env=environment(), timeout=240).returncode == 2


def test_errors_of_libraries_are_one_line_too(refused, tmp_path) -> None:
    np.save(tmp_path / "in.npy", np.zeros((1, 1, 8, 8), dtype=np.uint8))
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    assert "model.safetensors" in refused("bpd", tmp_path / "in.npy", "--model", tmp_path / "model.safetensors")


def test_what_nobody_expects_is_not_hidden(monkeypatch) -> None:
    """A defect shows where it is."""

    def broken(**options: object) -> None:
        raise AssertionError("a defect")

    monkeypatch.setattr(main_module, "app", broken)
    with pytest.raises(AssertionError, match="a defect"):
        main_module.main()
    assert main_module.is_expected(SafetensorError("header"))
    assert not main_module.is_expected(KeyError("x"))
