"""Measures an engine on this machine's GPU: whether it is right, how fast, beside plain PyTorch and matrix products.

    python bench/gpu_report.py PART [--network NAME] [--precision bf16|fp32] [--batch N] [--plans 2,4,mma,clusters] ...

Every row goes to $OUT (default: bench/results) as a line of JSON the moment it is known; an error is a row, and what
follows goes on. What is timed is timed alone (gpu_rows.py). Times are of the host around a decode that is finished on
return, medians over the repeats. A plan is default, a number of blocks in a team, mma (no wgmma), clusters, an order,
or several with + between them. --engine cpu --small rehearses a part without a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from gpu_rows import alone, failures, keep, kept
from gpu_triton import fused
from noisy_images import noisy_images
from torch import Tensor
from torch_cached import TorchDecoder

from pxfast.base.checks import PRECISIONS
from pxfast.base.environment import ORDERS
from pxfast.engines import benchmark, cuda_plans
from pxfast.engines.choosers import Greedy
from pxfast.engines.registry import ENGINES, select
from pxfast.engines.schedule import Schedule, schedule_for
from pxfast.engines.settings import DecodeSettings
from pxfast.engines.yardstick import matrix_rate
from pxfast.pixelcnn.network import PixelCNN, PixelCNNConfig, forward_flops
from pxfast.pixeldefend.trial import JUDGED, LARGEST_REGRET
from pxfast.pixeldefend.verify import verify

EPS = benchmark.EPS
CROSSOVER = (1, 2, 4, 8, 16, 32, 64, 128)
SINGLE = 6  # images that are purified alone


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is measured, as the command line says it. small: tiny networks in the place of the paper's."""

    engine: str
    small: bool
    network: str
    precision: str
    batch: int
    plans: tuple[str, ...]
    order: str
    repeats: int

    @property
    def device(self) -> str:
        return "cuda" if ENGINES[self.engine].gpu else "cpu"

    @property
    def facts(self) -> dict[str, Any]:
        """What every row of a network tells."""
        weights = "trained" if self.network.startswith("shipped-") else "random"
        return {"engine": self.engine, "network": self.network, "weights": weights, "precision": self.precision}

    def model(self) -> PixelCNN:
        if not self.small or self.network.startswith("shipped-"):
            return benchmark.network(self.network)
        config = dataclasses.replace(benchmark.PAPER_NETWORKS[self.network], filters=4, resnets=1)
        return tiny_network(config)

    def images(self, count: int) -> Tensor:
        return noisy_images(self.model().config.channels, count)

    @functools.cached_property
    def schedule(self) -> Schedule:
        return schedule_for(self.model())

    def decode(self, images: Tensor, settings: DecodeSettings) -> Tensor:
        decode = select(self.engine).decode
        return decode(self.schedule, images, Greedy(EPS), precision=self.precision, settings=settings)

    def seconds(self, function: Callable[[], object]) -> list[float]:
        """Of ``repeats`` calls after one that warms up, each waited for."""
        times = []
        for _ in range(1 + self.repeats):
            before = time.perf_counter()
            function()
            if self.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - before)
        return times[1:]


def tiny_network(config: PixelCNNConfig) -> PixelCNN:
    """A network for a rehearsal, the same at every call of a process."""
    if config not in TINY:
        torch.manual_seed(0)
        TINY[config] = PixelCNN(config).eval()
        TINY[config].initialise(noisy_images(config.channels, 16))
    return TINY[config]


TINY: dict[PixelCNNConfig, PixelCNN] = {}


def parse_plan(text: str) -> DecodeSettings:
    """The settings that a plan's words ask for. ValueError names a word that is none."""
    settings: dict[str, Any] = {}
    for word in text.split("+"):
        if word.isdecimal():
            settings["team"] = int(word)
        elif word == "mma":
            settings["wgmma"] = False
        elif word == "clusters":
            settings["clusters"] = True
        elif word in ORDERS:
            settings["order"] = word
        elif word != "default":
            raise ValueError(f"a plan is default, a number, mma, clusters, an order or several with +, got {word!r}")
    return DecodeSettings(**settings)


def verified(wish: Wish, images: Tensor, result: Tensor) -> dict[str, Any]:
    """What a forward pass says of some images of a result, by the limits of a GPU's trial."""
    judged = [round(part * (len(images) - 1)) for part in JUDGED]
    before = time.perf_counter()
    found = verify(images[judged], result[judged].cpu(), EPS, model=wish.model(), precision=wish.precision)
    return {
        "passed": found.passed and found.max_regret <= LARGEST_REGRET[wish.precision],
        "mean_regret": found.mean_regret,
        "max_regret": found.max_regret,
        "judging": time.perf_counter() - before,
    }


def differing(result: Tensor, other: Tensor) -> int:
    """How many images of two results are not the same."""
    return int((result != other).flatten(1).any(1).sum())


def canary(wish: Wish) -> None:
    """Small decodes of one order and precision by every plan: equal bits, and exact. A row before each, and after."""
    count, ways = 9, cuda_plans.plans(3, clusters=False)
    if wish.engine == "cuda":
        count, ways = cuda_plans.plans_of(torch.cuda.current_device())
    wgmma = parse_plan(wish.plans[0]).wgmma
    plain = DecodeSettings(order=wish.order, wgmma=wgmma)
    images = wish.images(count)
    first: Tensor | None = None
    for way in [plain, *(dataclasses.replace(way, wgmma=wgmma) for way in ways if way.order == wish.order)]:
        name = cuda_plans.described(way)
        facts = {"part": "canary", **wish.facts, "plan": name, "wgmma": wgmma is not False, "batch": count}
        keep({**facts, "started": True})  # a hang shows whose it is
        with kept(**facts) as row:
            result = wish.decode(images, way)
            first = result if first is None else first
            row["differing"] = differing(result, first)
            if result is first or row["differing"]:
                row |= verified(wish, images, result)


def throughput(wish: Wish) -> None:
    """Images/s by plan. What the first one makes is verified, and that of the others must be the same bit for bit.

    With another matrix instruction it need not be, and is verified for itself.
    """
    model, batch = wish.model(), 8 if wish.small else wish.batch
    images = wish.images(batch)
    given, firsts = images.to(wish.device), dict[bool | None, Tensor]()
    for plan in wish.plans:
        with kept(part="throughput", **wish.facts, plan=plan, batch=batch) as row:
            result: list[Tensor] = []

            def run(plan: str = plan, result: list[Tensor] = result) -> None:
                result[:] = [wish.decode(given, parse_plan(plan))]

            with alone():
                row["seconds"] = wish.seconds(run)
            rate = batch / statistics.median(row["seconds"])
            row |= {"images_per_second": rate, "tflops": 1e-12 * rate * forward_flops(model.config)}
            keep({**row, "verified": None})  # known before it is judged
            first = firsts.setdefault(parse_plan(plan).wgmma, result[0])
            if first is result[0]:
                row |= {"verified": "by a pass", **verified(wish, images, first)}
            else:
                row |= {"verified": "as the first plan's", "differing": differing(result[0], first)}


def plain(wish: Wish) -> None:
    """Plain PyTorch's cached decoding beside the engine's rate in the same run, which is kept before."""
    throughput(dataclasses.replace(wish, plans=("default",)))
    batch = 8 if wish.small else wish.batch
    with kept(part="plain", **wish.facts, batch=batch) as row:
        images = wish.images(batch).to(wish.device)
        decoder = TorchDecoder(wish.schedule, batch, EPS, wish.precision, wish.device)
        with alone():
            row["seconds"] = wish.seconds(lambda: decoder.decode(images))
        row["images_per_second"] = batch / statistics.median(row["seconds"])


def latency(wish: Wish) -> None:
    """One image alone, of a trained model and real: with random weights a row settles at once. By the order."""
    if not wish.network.startswith("shipped-"):
        raise SystemExit(f"latency is that of trained weights, not of {wish.network}")
    images = wish.images(SINGLE)
    for order in ORDERS[::-1]:
        with kept(part="latency", **wish.facts, order=order, images=SINGLE) as row:
            settings = DecodeSettings(order=order)
            wish.decode(images[:1], settings)
            times = []
            for image in images.split(1):
                given = image.to(wish.device)
                with alone():
                    times.append(min(wish.seconds(lambda given=given, to=settings: wish.decode(given, to))))
            row |= {"seconds": times, "milliseconds": 1e3 * statistics.median(times)}


def crossover(wish: Wish) -> None:
    """Either order by the batch, and what the engine's own choice takes."""
    for batch, order in itertools.product(CROSSOVER[: 2 if wish.small else None], ORDERS):
        with kept(part="crossover", **wish.facts, batch=batch, order=order) as row:
            given = wish.images(batch).to(wish.device)
            with alone():
                seconds = wish.seconds(lambda given=given, o=order: wish.decode(given, DecodeSettings(order=o)))
            row["milliseconds"] = 1e3 * statistics.median(seconds)


def memory(wish: Wish) -> None:
    """Device memory an image in flight takes beyond the weights, as torch's allocator counts it."""
    for precision in PRECISIONS if wish.device == "cuda" else ():
        one = dataclasses.replace(wish, precision=precision)
        with kept(part="memory", **one.facts) as row, alone():
            images = one.images(512).cuda()
            one.decode(images[:1], DecodeSettings())  # packs the weights
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            one.decode(images, DecodeSettings())
            row["bytes_per_image"] = (torch.cuda.max_memory_allocated() - before) / len(images)


def matrix(wish: Wish) -> None:
    """The machine, and torch's best matrix product on it."""
    facts: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if wish.device == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(), "multiprocessors": cuda_multiprocessors()}
    keep({"part": "machine", **facts})
    for precision in PRECISIONS:
        with kept(part="matrix", precision=precision) as row, alone():
            row["tflops"] = 1e-3 * matrix_rate(precision, torch.get_num_threads(), device=wish.device)


def cuda_multiprocessors() -> int:
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count)


def decode(wish: Wish) -> None:
    """One decode, for a profiler, or so that what it takes is compiled."""
    with kept(part="decode", **wish.facts, batch=wish.batch) as row:
        before = time.perf_counter()
        wish.decode(wish.images(4 if wish.small else wish.batch).to(wish.device), parse_plan(wish.plans[0]))
        row["seconds"] = time.perf_counter() - before


PARTS: dict[str, Callable[[Wish], None]] = {
    "matrix": matrix,
    "canary": canary,
    "throughput": throughput,
    "plain": plain,
    "latency": latency,
    "crossover": crossover,
    "memory": memory,
    "fused": lambda wish: fused(wish.model(), wish.device, wish.small),
    "decode": decode,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--engine", choices=list(ENGINES), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny networks and batches, to rehearse")
    parser.add_argument("--network", choices=benchmark.NETWORKS, default="paper-cifar10")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--plans", type=lambda text: tuple(text.split(",")), default=("default",))
    parser.add_argument("--order", choices=ORDERS, default="sequential", help="of the canary")
    parser.add_argument("--repeats", type=int, default=3)
    options = vars(parser.parse_args())
    part, wish = PARTS[options.pop("part")], Wish(**options)
    reason = ENGINES[wish.engine].unavailable()
    if reason is not None:
        raise SystemExit(f"nothing can be measured: {reason}")
    for plan in wish.plans:
        parse_plan(plan)
    torch.backends.cuda.matmul.allow_tf32 = False
    part(wish)
    if failures:
        raise SystemExit(f"{len(failures)} rows tell of an error or of wrong images")


if __name__ == "__main__":
    main()
