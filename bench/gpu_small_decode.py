"""A small decode on the GPU, both orders and precisions, checked: what compute-sanitizer watches in bench/gpu.sh."""

from __future__ import annotations

import os

import torch

from pxfast.engines.choosers import Greedy
from pxfast.engines.registry import select
from pxfast.engines.schedule import schedule_for
from pxfast.pixelcnn.network import PixelCNN, PixelCNNConfig
from pxfast.pixeldefend.verify import verify


def main() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    model = PixelCNN(PixelCNNConfig((8, 8), 3, filters=16, resnets=1, mixtures=5)).eval()
    model.initialise(images)
    clusters = torch.cuda.get_device_capability() == (9, 0)
    for precision, wgmma in (("fp32", 1), ("bf16", 1), ("bf16", 0)):
        results = []
        os.environ["PXFAST_CUDA_WGMMA"] = str(wgmma)
        for order, team, shared in (
            ("sequential", 1, 0),
            ("sequential", 2, 0),
            ("speculative", 3, 0),
            ("sequential", 1, 1),
        ):
            if shared and not clusters:
                continue
            os.environ.update(PXFAST_ORDER=order, PXFAST_CUDA_TEAM=str(team), PXFAST_CUDA_CLUSTERS=str(shared))
            results.append(select("cuda").decode(schedule_for(model), images, Greedy(16), precision=precision))
        assert all(torch.equal(result, results[0]) for result in results), "an order or a team changes bits"
        verdict = verify(images, results[0], 16, model=model, precision=precision)
        assert verdict.passed, f"{precision}: {verdict}"
        print(f"{precision}, wgmma {wgmma}: {verdict}")


if __name__ == "__main__":
    main()
