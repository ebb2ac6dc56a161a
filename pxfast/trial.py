"""Trying a GPU's kernels before they are relied upon: once a machine, in a process of its own.

A kernel that is wrong for a GPU or a driver can hang, or spoil every later call of its process. So when engine='auto'
first comes to an engine of a GPU, another process purifies a few images with it, and one forward pass of the network
judges them (:mod:`pxfast.verify`); and when a likelihood is first asked for on a GPU, another process compares the
fused kernel with plain torch. The verdict is kept in ``record_file()`` for this GPU, these versions and this code.

Environment: ``PXFAST_TRIAL=0`` trusts the kernels untried.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .engines import Engine

_log = logging.getLogger(__name__)

FORMAT = "pxfast-trials"
SECONDS = 900.0  # that a trial may take; Triton compiles for minutes at first
LIKELIHOOD = "likelihood"  # what is tried that is no engine
PACKAGE = Path(__file__).resolve().parent
# shipped models and precisions that are tried (None: the engine's best); images decoded together, which fill no tile of
# any engine evenly, and those of them that are judged
CASES = (("fashion-mnist", None), ("fashion-mnist", "fp32"), ("cifar10", None))
IMAGES, JUDGED = 21, 3
EPS = 16
TOLERANCE = 1e-3  # of log-probabilities and their gradients, absolute and relative: wrong kernels are further off
PROGRAM = f"""
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from {__name__} import main
sys.exit(main(sys.argv[2:]))
"""
WRONG, UNTRIED = 3, 4  # exit codes of a trial: the kernels are at fault; the circumstances are


def judge_engine(engine: Engine, cases: Sequence[tuple[str, str | None]] = CASES) -> str | None:
    """What is wrong with the images that an engine purifies here; None where nothing is."""
    from .engines import Greedy
    from .schedule import schedule_for
    from .verify import verify
    from .weights import load

    for name, wish in cases:
        model, precision = load(name), wish or engine.best_precision()
        images = _images(model.config.channels, *model.config.image_size)
        schedule = schedule_for(model)
        together = engine.decode(schedule, images, Greedy(EPS), precision=precision)
        alone = engine.decode(schedule, images[-1:], Greedy(EPS), precision=precision)
        if not torch.equal(alone, together[-1:]):
            return f"{name}, {precision}: an image alone does not become what it becomes among {len(images)}"
        found = verify(images[-JUDGED:], together[-JUDGED:], EPS, model=model, precision=precision)
        if not found.passed:
            return f"{name}, {precision}: {found}"
    return None


def judge_likelihood(log_prob: Callable[..., Tensor] | None = None, device: str = "cuda") -> str | None:
    """What is wrong with the fused likelihood of a mixture, or its gradient, here; None where nothing is.

    log_prob: a function like ``pxfast.kernels.mixture.mixture_log_prob``, by default that one.
    """
    from .heads import HEADS, LogisticHead, make_head
    from .kernels.mixture import mixture_log_prob, mixture_log_prob_twin

    random = torch.Generator().manual_seed(0)
    for name in HEADS:
        for C in (1, 3):
            head = make_head(name, C, 10)
            if not isinstance(head, LogisticHead):
                continue
            settings = (head.bins_per_unit, name == "pixelcnn++")
            features = torch.randn(3, head.features, 9, 7, generator=random, dtype=torch.float64).requires_grad_()
            images = torch.randint(0, 256, (3, C, 9, 7), generator=random, dtype=torch.uint8)
            expected = mixture_log_prob_twin(features, images, *settings)
            slopes = torch.autograd.grad(expected.sum(), features)[0]
            given = features.detach().float().to(device).requires_grad_()
            found = (log_prob or mixture_log_prob)(given, images.to(device), *settings)
            found_slopes = torch.autograd.grad(found.sum(), given)[0]
            for what, ours, theirs in (("", found, expected), ("gradient of the ", found_slopes, slopes)):
                error = (ours.detach().double().cpu() - theirs.detach()).abs() / (1 + theirs.detach().abs())
                if not error.max() <= TOLERANCE:
                    return f"{name}, {C} channels: the {what}log-likelihood is off by {float(error.max()):.2g}"
    return None


def _images(C: int, H: int, W: int) -> torch.Tensor:
    """Smooth images with some noise, the same everywhere: (IMAGES, C, H, W) uint8."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(IMAGES, C, H // 4, W // 4, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, (H, W), mode="bilinear", align_corners=False)
    return (255 * smooth + 16 * torch.rand(smooth.shape, generator=random) - 8).clamp(0, 255).to(torch.uint8)


def problem(name: str) -> str | None:
    """What the trial of an engine, or of the likelihood, on torch's current GPU found wrong, now or earlier; or None.

    A trial that could not be held, such as on a GPU that another process has for itself, is a problem too, but is held
    again by the next process.
    """
    if os.environ.get("PXFAST_TRIAL") == "0":
        return None
    return _problem(name, torch.cuda.current_device())


@functools.cache
def _problem(name: str, device: int) -> str | None:
    key = _key(name, device)
    trials = _read_record()
    if key not in trials:
        _log.warning("trying the kernels of %s on %s, once; this may take minutes", name, _gpu(device))
        verdict, found = run(command_of(name, device))
        if not verdict:
            return found
        trials[key] = found
        _write_record({**_read_record(), key: found})
    return trials[key]


def command_of(name: str, device: int) -> list[str]:
    """What starts a trial: Python, with modules from where this process has them."""
    return [sys.executable, "-c", PROGRAM, json.dumps(sys.path), name, str(device)]


def run(command: Sequence[str], seconds: float = SECONDS) -> tuple[bool, str | None]:
    """Hold a trial. Gives whether it came to a verdict, and what is wrong, None where nothing is."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return True, f"it did not end within {seconds:g} seconds"
    except OSError as error:
        return False, f"a process to try it in did not start: {error}"
    last = (done.stdout.strip() or done.stderr.strip()).rpartition("\n")[2]
    if done.returncode == 0:
        return True, None
    if done.returncode == UNTRIED:
        return False, f"it could not be tried: {last}"
    return True, last if done.returncode == WRONG else f"its process ended with {done.returncode}: {last}"


def record_file() -> Path:
    """Where verdicts are kept: pxfast/trials.json where the user keeps caches. It may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pxfast" / "trials.json"


def _read_record() -> dict[str, str | None]:
    """Problems by key. A file that is not there, or not what it should be, holds none."""
    try:
        content = json.loads(record_file().read_text(encoding="utf-8"))
        return dict(content["trials"]) if content["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write_record(trials: dict[str, str | None]) -> None:
    """Where nothing can be written, the next process holds its own trial."""
    from .files import whole_file

    path = record_file()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps({"format": FORMAT, "trials": trials}, indent=2) + "\n", encoding="utf-8")


def _gpu(device: int) -> str:
    properties: Any = torch.cuda.get_device_properties(device)
    return f"{properties.name} (compute capability {properties.major}.{properties.minor})"


def _key(name: str, device: int) -> str:
    """All that a verdict hangs on."""
    versions = [f"torch {torch.__version__}", f"CUDA {torch.version.cuda}", f"ROCm {torch.version.hip}"]
    with contextlib.suppress(metadata.PackageNotFoundError):
        versions.append(f"triton {metadata.version('triton')}")
    return ", ".join([name, _gpu(device), f"driver {_driver()}", *versions, f"code {_code()}"])


def _driver() -> str:
    """The version of NVIDIA's or AMD's kernel module, where Linux tells it."""
    for path in ("/sys/module/nvidia/version", "/sys/module/amdgpu/version"):
        with contextlib.suppress(OSError):
            return Path(path).read_text().strip()
    return "unknown"


@functools.cache
def _code() -> str:
    """A hash of the engines, the kernels, what both rest on, and the compiled module."""
    compiled = importlib.util.find_spec(f"{PACKAGE.name}._C")
    files = [
        *sorted(PACKAGE.glob("engines/*.py")),
        *sorted(PACKAGE.glob("kernels/*.py")),
        PACKAGE / "schedule.py",
        PACKAGE / "heads.py",
    ]
    if compiled is not None and compiled.origin is not None:
        files.append(Path(compiled.origin))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def main(arguments: Sequence[str]) -> int:
    """Hold the trial of a name on a device: the process that :func:`run` starts."""
    from .engines import select

    name, device = arguments
    engine = None if name == LIKELIHOOD else select(name)
    if engine is None or engine.gpu:
        try:
            torch.cuda.set_device(int(device))
            torch.empty(1, device="cuda")
        except RuntimeError as error:  # such as another process that has the GPU for itself
            return _say(error, UNTRIED)
    try:
        found = judge_likelihood() if engine is None else judge_engine(engine)
    except torch.OutOfMemoryError as error:
        return _say(error, UNTRIED)
    return 0 if found is None else _say(found, WRONG)


def _say(what: object, code: int) -> int:
    print(" ".join(str(what).split()))
    return code
