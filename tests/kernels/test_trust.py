"""Whether a GPU's kernels are relied upon: how a trial is held, and how its verdict is kept and heeded."""

import ast
import contextlib
import dataclasses
import functools
import json
import os
import shutil
import sys
import types
import warnings

import pytest
import torch

from pxfast.cli.machine import engine_on
from pxfast.engines import info
from pxfast.engines import registry as engines
from pxfast.engines.registry import ENGINES
from pxfast.kernels import trust
from pxfast.pixelcnn import heads

pytestmark = pytest.mark.engine("cpu")


@pytest.mark.process
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("import os; print('half way', flush=True); os.abort()", (True, "its process ended with -6: half way")),
        ("raise RuntimeError('illegal address')", (True, "its process ended with 1: RuntimeError: illegal address")),
        (f"print('not exact'); raise SystemExit({trust.WRONG})", (True, "not exact")),
        (f"print('GPU busy'); raise SystemExit({trust.UNTRIED})", (False, "it could not be tried: GPU busy")),
        # as the kernel of Linux does where memory runs out
        (
            "import os; print('half way', flush=True); os.kill(os.getpid(), 9)",
            (False, "its process was ended by SIGKILL: half way"),
        ),
    ],
)
def test_how_a_trial_ends(program, expected):
    assert trust.run([sys.executable, "-c", program], 100) == expected


@pytest.mark.process
def test_a_trial_that_hangs_is_ended_and_is_no_verdict():
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert trust.run(command, seconds=0.5) == (False, "it did not end within 0.5 seconds")


def test_only_what_compiles_has_minutes():
    assert {name: trust.seconds_of(name) for name in ("cuda", "triton", "likelihood")} == {
        "cuda": 120,
        "triton": 900,
        "likelihood": 900,
    }


@pytest.mark.process
def test_a_trial_inherits_no_choice_but_of_kernels(monkeypatch, tmp_path):
    """A wrong one fails the call that it is for; the verdict is of the kernels, and lasts."""
    for name in ("PXFAST_CUDA_TEAM", "PXFAST_ORDER", "PXFAST_CUDA_CLUSTERS", "PXFAST_TRIAL", "PXFAST_ISA"):
        monkeypatch.setenv(name, "500")
    monkeypatch.setenv("PXFAST_CUDA_WGMMA", "0")
    monkeypatch.setenv("PXFAST_TILES", str(tmp_path / "mine.json"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    shown = "{k: v for k, v in os.environ.items() if k.startswith(('PXFAST', 'CUDA'))}"
    program = f"import os; print({shown}); raise SystemExit({trust.WRONG})"
    expected = {"CUDA_VISIBLE_DEVICES": "3", "PXFAST_CUDA_WGMMA": "0", "PXFAST_TILES": str(tmp_path / "mine.json")}
    assert ast.literal_eval(trust.run([sys.executable, "-c", program], 100)[1]) == expected


def test_a_verdict_is_of_the_kernels_that_were_chosen(gpu, monkeypatch, tmp_path):
    monkeypatch.setenv("PXFAST_TILES", str(tmp_path / "mine.json"))
    keys = [trust._key(name, 0) for name in ("cuda", "triton")]
    monkeypatch.setenv("PXFAST_CUDA_TEAM", "3")  # all teams are tried
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert [trust._key(name, 0) for name in ("cuda", "triton")] == keys
    monkeypatch.setenv("PXFAST_CUDA_WGMMA", "0")
    assert trust._key("cuda", 0) != keys[0]
    assert trust._key("triton", 0) == keys[1]
    (tmp_path / "mine.json").write_text("{}")
    tuned = trust._key("triton", 0)
    assert tuned != keys[1]
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    assert trust._key("triton", 0) != tuned


def test_no_process_can_be_started(tmp_path):
    verdict, found = trust.run([str(tmp_path / "missing")], 100)
    assert not verdict
    assert "did not start" in found


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A registry whose first engine is said to run on a GPU, that GPU, and a count of the trials held."""
    trials = []

    def start(program):
        """Trials run this program; what an earlier process had in memory is forgotten."""
        trust._problem.cache_clear()
        trust._code.cache_clear()
        monkeypatch.setattr(trust, "PROGRAM", program)

    def run(command, seconds, held=trust.run):
        trials.append(command)
        return held(command, seconds)

    fast = dataclasses.replace(ENGINES["cpu"], name="fast", summary="a test's", gpu=True)
    registry = {"fast": fast, **{name: ENGINES[name] for name in ("cpu", "reference")}}
    monkeypatch.setattr(engines, "ENGINES", registry)
    monkeypatch.setattr(trust, "run", run)
    monkeypatch.setattr(trust, "_gpu", lambda device: f"a GPU of a test, number {device}")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PXFAST_TRIAL", raising=False)
    start("raise SystemExit(0)")
    yield start, trials
    trust._problem.cache_clear()
    trust._code.cache_clear()


@pytest.mark.process
def test_a_verdict_is_kept(gpu, monkeypatch):
    start, trials = gpu
    said = []
    monkeypatch.setattr(trust, "_log", types.SimpleNamespace(warning=lambda *words: said.append(words[0] % words[1:])))
    assert engines.select().name == "fast"
    assert engines.select().name == "fast"
    assert len(trials) == 1
    assert len(said) == 1
    assert said[0].startswith("trying the kernels of fast on a GPU of a test, number 0")
    start("raise SystemExit(1)")  # another process, which finds the verdict
    assert engines.select().name == "fast"
    assert len(trials) == 1
    (key,) = json.loads(trust.record_file().read_text())["trials"]
    assert key.startswith("fast, a GPU of a test, number 0, driver ")
    assert torch.__version__ in key


@pytest.mark.process
def test_another_choice_is_tried_in_the_same_process(gpu, monkeypatch, tmp_path):
    _, trials = gpu
    engines.select()
    monkeypatch.setenv("PXFAST_TILES", str(tmp_path / "mine.json"))
    (tmp_path / "mine.json").write_text("{}")
    engines.select()
    assert len(trials) == 2
    engines.select()
    assert len(trials) == 2


@pytest.mark.process
def test_a_path_object_among_the_folders_of_modules_is_passed_over_as_python_does(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])
    assert engines.select().name == "fast"


@pytest.mark.process
def test_other_code_is_tried_again(gpu, monkeypatch):
    start, trials = gpu
    engines.select()
    start("raise SystemExit(0)")
    monkeypatch.setattr(trust, "_code", functools.cache(lambda: "other"))
    engines.select()
    assert len(trials) == 2


@pytest.mark.process
def test_auto_passes_over_an_engine_that_failed(gpu):
    start, trials = gpu
    start(f"print('not exact'); raise SystemExit({trust.WRONG})")
    for _ in range(2):
        trust._problem.cache_clear()
        with pytest.warns(RuntimeWarning, match="passes over the fast engine, .*: not exact; engine='fast' uses it"):
            assert engines.select().name == "cpu"
    assert len(trials) == 1, "the verdict is kept"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engines.select("fast").name == "fast", "who asks for it gets it"


@pytest.mark.process
def test_info_tells_of_a_failed_trial(gpu):
    start, _ = gpu
    start(f"print('not exact'); raise SystemExit({trust.WRONG})")
    with pytest.warns(RuntimeWarning, match="not exact"):
        text = info.describe(info.collect())
    assert "usable, bf16, but passed over by 'auto': not exact" in text or (
        "usable, fp32, but passed over by 'auto': not exact" in text
    )
    assert "picked by 'auto'" in text


@pytest.mark.process
def test_a_likelihood_whose_kernel_failed_takes_plain_torch(gpu, monkeypatch):
    """Eagerly the trial decides; a trace takes the kernel on trust, unless it has failed before."""
    start, trials = gpu
    monkeypatch.setattr(heads, "FUSED_DEVICES", ("cuda",))
    monkeypatch.setattr(heads, "_rejected", set())
    place = torch.device("cuda", 0)
    assert not heads.likelihood_is_fused(torch.device("cpu"))
    assert heads.likelihood_is_fused(place)
    assert [command[-2] for command in trials] == ["likelihood"]
    start(f"print('off by 1'); raise SystemExit({trust.WRONG})")
    trust.record_file().unlink()
    with monkeypatch.context() as tracing:
        tracing.setattr(torch.compiler, "is_compiling", lambda: True)
        assert heads.likelihood_is_fused(place)
    with pytest.warns(RuntimeWarning, match="likelihoods take plain torch, .*: off by 1"):
        assert not heads.likelihood_is_fused(torch.device("cuda"))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not heads.likelihood_is_fused(place)
    assert len(trials) == 2


@pytest.fixture
def second(gpu, monkeypatch):
    """A second GPU, whose kernels are wrong; the first one is torch's current one."""
    start, trials = gpu
    current = [0]

    @contextlib.contextmanager
    def chosen(device):
        before, current[0] = current[0], device.index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", chosen)
    start(f"import sys; print('not exact'); raise SystemExit({trust.WRONG} if sys.argv[-1] == '1' else 0)")
    yield torch.device("cuda", 1), trials
    assert current == [0]


@pytest.mark.process
def test_an_engine_is_tried_on_the_gpu_that_has_the_images(second):
    other, trials = second
    assert engines.select(device=torch.device("cpu")).name == "fast"
    assert engines.select(device=torch.device("cuda", 0)).name == "fast"
    with pytest.warns(RuntimeWarning, match="not exact"):
        assert engines.select(device=other).name == "cpu"
    assert engines.select("fast", device=other).name == "fast"
    assert [command[-1] for command in trials] == ["0", "1"]


def test_a_command_makes_its_device_the_current_gpu(second, monkeypatch):
    other, _ = second
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert [engine_on(device, "fast") for device in ("auto", "cuda", "cuda:1")] == ["fast"] * 3
    assert chosen == [other]


@pytest.mark.process
def test_a_likelihood_is_tried_on_the_gpu_that_computes_it(second, monkeypatch):
    other, trials = second
    monkeypatch.setattr(heads, "FUSED_DEVICES", ("cuda",))
    monkeypatch.setattr(heads, "_rejected", set())
    with pytest.warns(RuntimeWarning, match="not exact"):
        assert not heads.likelihood_is_fused(other)
    assert heads.likelihood_is_fused(torch.device("cuda", 0)), "another one's kernel is no reason"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not heads.likelihood_is_fused(other)
    assert [command[-1] for command in trials] == ["1", "0"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("program", "said"),
    [
        (f"print('GPU busy'); raise SystemExit({trust.UNTRIED})", "could not be tried: GPU busy"),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL"),
    ],
)
def test_a_trial_that_could_not_be_held_is_held_again(gpu, program, said):
    start, trials = gpu
    start(program)
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match=said):
            assert engines.select().name == "cpu"
    assert len(trials) == 1, "once in a process"
    start("raise SystemExit(0)")
    assert engines.select().name == "fast"
    assert len(trials) == 2


def test_engines_are_trusted_on_demand(gpu, monkeypatch):
    _, trials = gpu
    monkeypatch.setenv("PXFAST_TRIAL", "0")
    assert engines.select().name == "fast"
    assert not trials


@pytest.mark.process
@pytest.mark.parametrize("content", ["", "[]", '{"format": "another", "trials": {}}', '{"format": "pxfast-trials"}'])
def test_a_spoilt_record_is_replaced(gpu, content):
    _, trials = gpu
    trust.record_file().parent.mkdir(parents=True)
    trust.record_file().write_text(content)
    assert engines.select().name == "fast"
    assert len(trials) == 1
    assert list(json.loads(trust.record_file().read_text())["trials"].values()) == [None]


@pytest.mark.process
def test_a_folder_that_cannot_be_written_is_no_error(gpu, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "file"))
    assert engines.select().name == "fast"


@pytest.mark.parametrize("file", ["engines/cuda.py", "engines/schedule.py", "kernels/step.py", "pixelcnn/heads.py"])
def test_a_change_of_what_decodes_is_other_code(gpu, monkeypatch, tmp_path, file):
    before, package = trust._code(), tmp_path / "pxfast"
    for folder in ("engines", "kernels", "pixelcnn"):
        shutil.copytree(trust.PACKAGE / folder, package / folder)
    monkeypatch.setattr(trust, "PACKAGE", package)
    trust._code.cache_clear()
    assert trust._code() == before
    with (package / file).open("a") as source:
        source.write("# changed")
    trust._code.cache_clear()
    assert trust._code() != before
