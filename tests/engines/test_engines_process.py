"""What an engine promises to the process it runs in: flat memory, and Ctrl-C. Each run has a process of its own."""

import re
import signal
import subprocess
import sys
import time

import pytest
from support.engines import ENGINE_PARAMS
from support.helpers import environment, run_python

pytestmark = pytest.mark.process

MODEL = """
import sys
import torch
from support.helpers import noisy, real_images
from pxfast.engines.choosers import Greedy
from pxfast.engines.registry import select
from pxfast.pixelcnn.network import PixelCNN, PixelCNNConfig
from pxfast.engines.schedule import schedule_for

torch.manual_seed(0)
model = PixelCNN(PixelCNNConfig((12, 8), 1, 16, 1)).eval()
model.initialise(real_images(1, (12, 8), 32))

def decode(images):
    return select(sys.argv[1]).decode(schedule_for(model), images, Greedy(16), precision="fp32")
"""

# Prints how much the peak of resident memory grew, in bytes, from few images to many, the images themselves not counted
MEMORY = (
    MODEL
    + """
import resource

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

few, many = int(sys.argv[2]), int(sys.argv[3])
images = noisy(real_images(1, (12, 8), 64)).repeat(many // 64 + 1, 1, 1, 1)[:many]
decode(images[:few].contiguous())
before = peak()
decode(images)
print(peak() - before - 2 * images.numel())
"""
)

# Says when it starts to decode far more images than it could finish
ENDLESS = (
    MODEL
    + """
images = real_images(1, (12, 8), 64).repeat(int(sys.argv[2]), 1, 1, 1)
decode(images[:1])
print("started", flush=True)
decode(images)
print("finished", flush=True)
"""
)


# the reference engine evaluates the whole batch at once: it is there to be right, not to be big
@pytest.mark.parametrize("engine", [param for param in ENGINE_PARAMS if "reference" not in param.values])
def test_memory_does_not_grow_with_the_batch(engine):
    from pxfast.engines.cpu import isa_of, packed
    from pxfast.engines.schedule import schedule_for
    from pxfast.pixelcnn.network import PixelCNN, PixelCNNConfig

    model = PixelCNN(PixelCNNConfig((12, 8), 1, 16, 1)).eval()
    per_image = packed(schedule_for(model), "fp32", isa_of()).bytes_per_image
    few, many = 256, 8192  # few: enough for a full block of images on each of two threads
    unchunked = (many - few) * per_image
    allowed = 16 << 20  # the allocator's slack
    assert unchunked > 4 * allowed, "too few images for a difference to be seen"
    growth = int(run_python(MEMORY, engine, str(few), str(many), PXFAST_THREADS="2"))
    assert growth < allowed, f"{growth} bytes more for {many} images than for {few}"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send to one process")
def test_interrupt_is_honoured_soon(engine):
    # minutes of work; the reference engine holds the activations of all images at once
    repeats = 16 if engine == "reference" else 40_000
    command = [sys.executable, "-c", ENDLESS, engine, str(repeats)]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "started\n", process.stderr.read()
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            # the promise is a second; the rest is for the interpreter's end, and for a machine with other things to do
            output, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert "KeyboardInterrupt" in errors
    assert "finished" not in output
    assert process.returncode != 0


# Decodes one image again and again: the work of a team
ALONE = """
import pxfast
from support.helpers import bundled_images

image = bundled_images(3)[:1]
purifier = pxfast.Purifier(eps=16, engine="cpu")
purifier(image)
print("started", flush=True)
while True:
    purifier(image)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send to one process")
@pytest.mark.engine("cpu")
@pytest.mark.parametrize("order", ["auto", "speculative"])
def test_a_team_is_interrupted_as_a_whole(order):
    """No member waits for ever for one that has left."""
    settings = environment(PXFAST_THREADS="2", PXFAST_ORDER=order)
    with subprocess.Popen(
        [sys.executable, "-c", ALONE], env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "started\n", process.stderr.read()
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert "KeyboardInterrupt" in errors
    assert process.returncode != 0


@pytest.mark.engine("cpu")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_papers_network_stays_under_8_mb_an_image(precision):
    from pxfast.engines import benchmark, cpu
    from pxfast.engines.schedule import schedule_for

    schedule = schedule_for(benchmark.network("paper-cifar10"))
    assert cpu.packed(schedule, precision, cpu.isa_of()).bytes_per_image < 8e6


# Ends while a thread that nobody waits for decodes, which it has begun to; more images than it could finish
DAEMON = (
    MODEL
    + """
import threading

images, begun = real_images(1, (12, 8), 64).repeat(4_000, 1, 1, 1), threading.Event()

def work():
    engine = select(sys.argv[1])
    engine.decode(schedule_for(model), images, Greedy(16), precision="fp32", report=lambda done: begun.set())

threading.Thread(target=work, daemon=True).start()
begun.wait()
print("ends", flush=True)
"""
)


@pytest.mark.engine("cpu")
def test_a_program_ends_while_a_daemon_thread_decodes():
    """Python ends such a thread when it asks for the GIL; to swallow that would abort the process."""
    assert run_python(DAEMON, "cpu", timeout=60.0) == "ends\n"


# Prints how decodes fail in a process that gets 64 MiB more: one in many threads, whose stacks count, and one of wide
# images in one thread
LIMITED = (
    MODEL
    + """
import resource
from pathlib import Path
from pxfast.engines.settings import DecodeSettings

wide = PixelCNN(PixelCNNConfig((4, 8192), 1, 16, 1)).eval()
cases = (
    (model, real_images(1, (12, 8), 64).repeat(64, 1, 1, 1), 1024),
    (wide, torch.zeros(64, 1, 4, 8192, dtype=torch.uint8), 1),
)
engine = select("cpu")
for network, images, threads in cases:
    engine.decode(schedule_for(network), images[:1], Greedy(0), precision="fp32")  # the weights are packed now
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20),) * 2)
for network, images, threads in cases:
    try:
        settings = DecodeSettings(threads=threads)
        engine.decode(schedule_for(network), images, Greedy(0), precision="fp32", settings=settings)
    except (MemoryError, RuntimeError) as error:
        print(type(error).__name__, error)
"""
)


@pytest.mark.engine("cpu")
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep to a limit of memory")
def test_a_limit_of_the_system_is_named():
    many_threads, wide_images = run_python(LIMITED, "cpu").splitlines()
    assert re.fullmatch(
        r"RuntimeError only \d+ of the decode's 1024 threads can be started here, so ask for fewer "
        r"\(threads, PXFAST_THREADS\): .+",
        many_threads,
    ), many_threads
    expected = r"MemoryError the CPU engine asked for \d+ MB, which the system does not give"
    assert re.fullmatch(expected, wide_images), wide_images
