"""A load test of the service on this machine: images/s and latency by the number of clients, beside the bare engine.

    pip install '.[ray]' && python bench/serving_load.py cifar10 --replicas 2 --seconds 30 --json serving.json

Clients on the loopback interface post one attacked image after another (FGSM of eps 8 on real test images; shipped
classifier and density model). The bare engine purifies the same images in batches of 64 on as many threads, before and
after the clients of each number; its rate is the median. With --detect both compute p-values too, and both classify.
Where RAY_SERVE_ENABLE_HA_PROXY=1 and RAY_SERVE_THROUGHPUT_OPTIMIZED=1 are set and ray[haproxy] is installed, requests
go through HAProxy, not through Ray's own proxy (docs/serving.md).
"""

from __future__ import annotations

import argparse
import http.client
import io
import itertools
import json
import os
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noisy_images import real_images

import pxfast
from pxfast import attacks
from pxfast.base.files import output_files, refuse_existing
from pxfast.base.machine import processor_name, usable_processors
from pxfast.classifiers import load_classifier
from pxfast.data.image_files import write_png
from pxfast.engines.cpu import best_precision, isa_of
from pxfast.serving import Protected, application

CHANNELS = {"cifar10": 3, "fashion-mnist": 1}
EPS = {"cifar10": 16, "fashion-mnist": 32}  # the paper's
BATCH = 64


def attacked_images(dataset: str, count: int) -> torch.Tensor:
    """Real test images, attacked by FGSM of eps 8: (count, C, H, W) uint8. Beyond the bundled ones they come again."""
    images = real_images(CHANNELS[dataset])
    attacked = attacks.FGSM()(load_classifier(dataset), images, labels=None, eps=8)
    return attacked.repeat(-(-count // len(attacked)), 1, 1, 1)[:count]


class BareEngine:
    """The same work in this process, without a service: batches of 64 on ``threads`` threads."""

    def __init__(self, dataset: str, images: torch.Tensor, threads: int, detect: bool) -> None:
        self.images = images[:BATCH].numpy()
        self.threads = threads
        detector = pxfast.Detector() if detect else None
        self.protected = Protected(dataset, purifier=pxfast.Purifier(EPS[dataset], threads=threads), detector=detector)

    def rate(self) -> dict[str, float]:
        """Images/s: of the purifier alone, and of purifying, classifying and, if asked for, judging."""
        torch.set_num_threads(self.threads)
        purifier = self.protected.defended.defences[0]
        rates = {}
        for name, work in (("purify", purifier), ("answer", self.protected.answer)):
            began = time.perf_counter()
            work(self.images)
            rates[name] = BATCH / (time.perf_counter() - began)
        return rates


def load(port: int, bodies: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """What ``clients`` see who post for ``seconds``, after a tenth of that unmeasured: images/s, latency in ms."""
    latencies: list[tuple[float, float]] = []
    refused: list[int] = []
    failed: list[Exception] = []
    began = time.perf_counter()
    until = began + 1.1 * seconds
    turn = itertools.count()

    def client() -> None:
        try:
            post()
        except Exception as error:  # fewer clients than asked for would be measured as if they were all
            failed.append(error)

    def post() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        while (sent := time.perf_counter()) < until:
            connection.request("POST", "/", bodies[next(turn) % len(bodies)])
            response = connection.getresponse()
            response.read()
            if response.status == 200:
                latencies.append((sent, time.perf_counter()))
            else:
                refused.append(response.status)
                time.sleep(0.05)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise RuntimeError(f"{len(failed)} of {clients} clients failed") from failed[0]
    start = began + 0.1 * seconds
    answered = [end for _, end in latencies if start <= end < until]
    taken = np.array([end - sent for sent, end in latencies if sent >= start]) * 1000
    if not len(taken):
        raise RuntimeError(f"no request of {clients} clients was answered within {seconds:g} s")
    return {
        "clients": clients,
        "images_per_second": len(answered) / (until - start),
        "p50_ms": float(np.percentile(taken, 50)),
        "p99_ms": float(np.percentile(taken, 99)),
        "answers": len(answered),
        "refused": len(refused),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(CHANNELS))
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of each replica; by default the processors, shared out")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--port", type=int, default=8124)
    parser.add_argument("--detect", action="store_true", help="p-values too")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.json:
        refuse_existing(arguments.json, force=False)
    import ray
    from ray import serve

    images = attacked_images(arguments.dataset, 256)
    bodies = []
    for image in images:
        file = io.BytesIO()
        write_png(image, file)
        bodies.append(file.getvalue())
    threads = arguments.threads or max(1, usable_processors() // arguments.replicas)
    bare = BareEngine(arguments.dataset, images, threads * arguments.replicas, arguments.detect)
    bare.rate()  # the first packs the weights and times both orders
    ray.init(
        num_cpus=threads * arguments.replicas, include_dashboard=False, log_to_driver=False, logging_level="warning"
    )
    rows = []
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
        app = application(
            arguments.dataset,
            purifier=pxfast.Purifier(EPS[arguments.dataset], threads=threads),
            detector=pxfast.Detector() if arguments.detect else None,
            replicas=arguments.replicas,
            threads=threads,
            max_batch_size=BATCH,
        )
        serve.run(app, name="pxfast", logging_config={"enable_access_log": False})
        load(arguments.port, bodies, BATCH, 3.0)
        for clients in arguments.clients:
            rates = [bare.rate()]
            row = load(arguments.port, bodies, clients, arguments.seconds)
            rates.append(bare.rate())
            for name in ("purify", "answer"):
                row[f"bare_{name}_per_second"] = statistics.median(rate[name] for rate in rates)
            row["of_bare_purify"] = row["images_per_second"] / row["bare_purify_per_second"]
            row["of_bare_answer"] = row["images_per_second"] / row["bare_answer_per_second"]
            rows.append(row)
            print(
                f"{clients:3} clients: {row['images_per_second']:.1f} images/s, 50 % within {row['p50_ms']:.0f} ms, "
                f"99 % within {row['p99_ms']:.0f} ms; {row['of_bare_purify']:.0%} of the purifier's "
                f"{row['bare_purify_per_second']:.1f}, {row['of_bare_answer']:.0%} of the same work's "
                f"{row['bare_answer_per_second']:.1f}",
                flush=True,
            )
    finally:
        serve.shutdown()
        ray.shutdown()
    if arguments.json:
        result = {
            "script": "bench/serving_load.py",
            "dataset": arguments.dataset,
            "eps": EPS[arguments.dataset],
            "replicas": arguments.replicas,
            "threads": threads,
            "detect": arguments.detect,
            "haproxy": os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1",
            "machine": {
                "processor": processor_name(),
                "processors": usable_processors(),
                "isa": isa_of(),
                "precision": best_precision(),
                "torch": torch.__version__,
                "ray": ray.__version__,
            },
            "rows": rows,
        }
        with output_files(arguments.json, force=False) as (path,):
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
