"""The Ray runner and Ray Data pipelines, on a local Ray of two workers; slow, so only when PXFAST_TEST_RAY is 1."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from support.helpers import real_images

import pxfast
from pxfast.defences import OnColumn
from pxfast.evaluation.defences import Context, describe
from pxfast.evaluation.networks import ModelFiles
from pxfast.evaluation.pipeline import Pipeline
from pxfast.evaluation.runners import LocalRunner, make_runner
from pxfast.evaluation.stages import Task
from pxfast.pixelcnn.files import load_model
from pxfast.pixelcnn.fingerprint import model_fingerprint
from pxfast.tensors.store import Store

if os.environ.get("PXFAST_TEST_RAY") != "1":
    pytest.skip("a local Ray takes minutes on a busy machine: PXFAST_TEST_RAY=1 runs these", allow_module_level=True)
ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'pxfast[ray]'")

pytestmark = [pytest.mark.timeout(900), pytest.mark.external]
SHARD, SHARDS = 4, 16


@pytest.fixture(scope="module", autouse=True)
def two_workers():
    for last in (
        False,
        False,
        True,
    ):  # Ray gives its own processes 30 seconds to start, which on a busy machine is little
        try:
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="warning")
            break
        except Exception:
            if last:
                raise
            ray.shutdown()
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def evaluation(make_model, tmp_path_factory) -> tuple[ModelFiles, Context, torch.Tensor]:
    """A model's file, what its defences share, and images for it."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    pxfast.save(make_model(), path, dtype=torch.float32)
    key = model_fingerprint(load_model(path))
    images = real_images(1, (8, 8), SHARD * SHARDS)
    return ModelFiles({}, {key: str(path)}), Context(key, 1, engine="reference", precision="fp32"), images


def actors() -> list[int]:
    """The processes of this test's workers: those of Ray Data's actors that descend from here."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().startswith(b"ray::MapWorker(MapBatches(RayWorker))"):
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue

    def is_ours(process: int) -> bool:
        return process == os.getpid() or (process in parents and is_ours(parents[process]))

    return [process for process in found if is_ours(process)]


def bytes_of(store: Store) -> dict[str, bytes]:
    """The tensors of every entry, as bytes; the seconds that they took differ."""
    return {path.name: save(load_file(path)) for path in sorted(store.folder.rglob("*.safetensors"))}


def purified(runner, evaluation, store: Store, report=None) -> torch.Tensor:
    _, context, images = evaluation
    pipeline = Pipeline(store, runner, context, shard=SHARD, report=report)
    return pipeline.defended(images, [describe({"kind": "purifier", "eps": 16}, context)])[0].values


def test_a_killed_worker_loses_nothing_and_the_bytes_are_those_without_ray(evaluation, tmp_path):
    files, _, images = evaluation
    local, spread = Store(tmp_path / "local"), Store(tmp_path / "ray")
    expected = purified(LocalRunner(files, "cpu"), evaluation, local)
    runner = make_runner("ray", files, "cpu")
    assert runner.workers == 2
    killed, finished, seen = [], {}, []

    def report(what: str, done: int, total: int) -> None:
        seen.append(done)
        if done >= 4 * SHARD and not killed:
            finished.update({path: path.stat().st_mtime_ns for path in spread.folder.rglob("*.safetensors")})
            both = actors()
            assert len(both) == 2
            os.kill(both[0], signal.SIGKILL)
            killed.append(both[0])

    result = purified(runner, evaluation, spread, report)
    assert killed
    assert killed[0] not in actors()
    assert seen == list(range(0, len(images) + 1, SHARD)), "every shard came once"
    assert len(finished) == 4
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items()), "what was finished is as it was"
    assert torch.equal(result, expected)
    assert torch.equal(
        result,
        pxfast.purify(
            images, 16, model=load_model(next(iter(files.densities.values()))), engine="reference", precision="fp32"
        ),
    )
    assert bytes_of(spread) == bytes_of(local)

    class Refusing:
        def run(self, tasks):
            raise AssertionError("nothing is left to compute")

    assert torch.equal(purified(Refusing(), evaluation, spread), expected)


def test_a_failed_task_is_one_error(evaluation):
    files, _, images = evaluation
    tasks = [Task(0, {"stage": "likelihood", "model": "another"}, {"images": images[:1]})]
    with pytest.raises(RuntimeError, match="a task failed on a Ray worker: KeyError: 'another'"):
        list(make_runner("ray", files, "cpu").run(tasks))
    deadline = time.monotonic() + 120
    while actors():
        assert time.monotonic() < deadline, "a worker outlives the failure"
        time.sleep(0.5)


def test_a_purifier_is_a_stage_of_ray_data(evaluation):
    files, _, images = evaluation
    path = next(iter(files.densities.values()))
    labels = np.arange(32)
    settings = {"eps": 16, "model": path, "engine": "reference", "precision": "fp32"}
    batches = (
        ray.data.from_items(
            [{"image": image, "label": label} for image, label in zip(images[:32].numpy(), labels, strict=True)]
        )
        .map_batches(
            OnColumn,
            fn_constructor_kwargs={"function": pxfast.Purifier(**settings), "column": "image"},
            batch_size=8,
            compute=ray.data.ActorPoolStrategy(size=2),
        )
        .take_all()
    )
    expected = pxfast.purify(images[:32].numpy(), 16, model=path, engine="reference", precision="fp32")
    assert sorted(row["label"] for row in batches) == labels.tolist()
    for row in batches:
        assert row["image"].dtype == np.uint8
        np.testing.assert_array_equal(row["image"], expected[row["label"]])
    plain = ray.data.from_numpy(images[:32].numpy())
    purified = OnColumn(pxfast.Purifier(**settings), "data")
    found = plain.map_batches(purified, batch_size=16).take_batch(32)["data"]
    np.testing.assert_array_equal(found, expected)
