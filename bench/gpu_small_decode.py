"""A small decode on the GPU, both orders and precisions, checked: what compute-sanitizer watches in bench/gpu.sh."""

from __future__ import annotations

import argparse

import torch

from pxfast.engines.choosers import Greedy
from pxfast.engines.registry import select
from pxfast.engines.schedule import schedule_for
from pxfast.engines.settings import DecodeSettings
from pxfast.pixelcnn.network import PixelCNN, PixelCNNConfig
from pxfast.pixeldefend.verify import verify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    engine = parser.parse_args().engine
    torch.manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    model = PixelCNN(PixelCNNConfig((8, 8), 3, filters=16, resnets=1, mixtures=5)).eval()
    model.initialise(images)
    clusters = engine == "cuda" and torch.cuda.get_device_capability() == (9, 0)
    decode = select(engine).decode
    for precision, wgmma in (("fp32", True), ("bf16", True), ("bf16", False)):
        results = []
        for order, team, shared in (
            ("sequential", 1, False),
            ("sequential", 2, False),
            ("speculative", 3, False),
            ("sequential", 4, True),
            ("speculative", 4, True),
        ):
            if shared and not clusters:
                continue
            way = DecodeSettings(order=order, team=team, clusters=shared, wgmma=wgmma)
            results.append(decode(schedule_for(model), images, Greedy(16), precision=precision, settings=way))
        assert all(torch.equal(result, results[0]) for result in results), "an order or a team changes bits"
        verdict = verify(images, results[0], 16, model=model, precision=precision)
        assert verdict.passed, f"{precision}: {verdict}"
        print(f"{precision}, wgmma {wgmma}: {verdict}")


if __name__ == "__main__":
    main()
