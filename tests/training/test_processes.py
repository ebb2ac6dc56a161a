"""Data-parallel training: two processes under torchrun do what one does with the whole batch."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys

import pytest
import torch
import typer.main
from safetensors.torch import load_file
from support.helpers import SOURCE, environment, real_images
from support.small_training import CONFIG, SETTINGS
from torch.distributed.run import get_args_parser as torchrun_parser

from pxfast.cli.main import app
from pxfast.pixelcnn.files import load_model
from pxfast.pixelcnn.training import Trainer, train
from pxfast.training.processes import Processes
from pxfast.training.run import checkpoint_path

# 9 images are shared as 5 and 4; dropout is drawn anew in every process and has to be off in the comparison
UNEVEN = dataclasses.replace(SETTINGS, batch_size=9, epochs=1.0, ema_decay=0.9, compile=False)
PLAIN = dataclasses.replace(CONFIG, dropout=0.0)
STEPS = 4

# Two processes take some steps, keep a checkpoint, restore it into other trainers and go on; then a whole run. FOLDER.
TOGETHER = """
import dataclasses, json, sys
from pathlib import Path
import torch
from support.helpers import real_images
from pxfast.training.processes import join
from pxfast.pixelcnn.training import Trainer, train
from training.test_processes import PLAIN, STEPS, UNEVEN
torch.set_num_threads(1)
folder = Path(sys.argv[1])
images = real_images(1, (8, 8), 64)
said = {}
with join("cpu") as processes:
    for optimiser in ("adam", "muon"):
        settings = dataclasses.replace(UNEVEN, optimiser=optimiser)
        path = folder / f"{optimiser}.checkpoint.safetensors"
        first = Trainer(PLAIN, settings, images, processes)
        first.initialise()
        losses = [first.train_step() for _ in range(STEPS)]
        if processes.first:
            first.save(path)
        processes.agree(0.0, False)  # the file is there
        second = Trainer(PLAIN, settings, images, processes)
        second.restore(path)
        losses += [second.train_step() for _ in range(STEPS)]
        averaged = torch.cat([parameter.detach().flatten() for parameter in second.averaged.parameters()])
        said[optimiser] = {"losses": losses, "averaged": averaged.double().tolist()}
    said["agreed"] = processes.agree(10.0 + processes.rank, processes.rank == 1)
    train(PLAIN, images, folder / "whole.safetensors", settings=UNEVEN, processes=processes, progress=False)
    said["rank"], said["count"] = processes.rank, processes.count
Path(folder, f"rank{said['rank']}.json").write_text(json.dumps(said))
"""


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> list[dict]:
    """What the two processes said, and the folder they wrote to."""
    folder = tmp_path_factory.mktemp("together")
    script = folder / "together.py"
    script.write_text(TOGETHER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script), str(folder)],
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    for rank, one in enumerate(said):
        assert (one["rank"], one["count"]) == (rank, 2)
        one["folder"] = folder
    return said


@pytest.mark.process
@pytest.mark.parametrize("optimiser", ["adam", "muon"])
def test_two_processes_have_the_loss_of_one_with_the_whole_batch(together, optimiser):
    trainer = Trainer(PLAIN, dataclasses.replace(UNEVEN, optimiser=optimiser), real_images(1, (8, 8), 64))
    trainer.initialise()
    alone = [trainer.train_step() for _ in range(2 * STEPS)]
    assert len({round(loss, 3) for loss in alone}) > STEPS, "the losses tell the steps apart"
    averaged = torch.cat([parameter.detach().flatten() for parameter in trainer.averaged.parameters()]).double()
    for said in together:
        assert said[optimiser]["losses"] == pytest.approx(alone, abs=1e-3)
        torch.testing.assert_close(torch.tensor(said[optimiser]["averaged"]).double(), averaged, atol=1e-3, rtol=0)


@pytest.mark.process
def test_the_processes_have_the_same_averaged_weights_bit_for_bit(together):
    first, second = together
    for optimiser in ("adam", "muon"):
        assert first[optimiser] == second[optimiser]


@pytest.mark.process
def test_processes_agree_on_time_and_end(together):
    assert [said["agreed"] for said in together] == [[10.0, True], [10.0, True]]


@pytest.mark.process
def test_a_whole_run_of_two_processes_writes_once_and_what_one_process_writes(together, tmp_path):
    folder = together[0]["folder"]
    ours = folder / "whole.safetensors"
    train(PLAIN, real_images(1, (8, 8), 64), tmp_path / "alone.safetensors", settings=UNEVEN, progress=False)
    found, expected = load_file(checkpoint_path(ours)), load_file(tmp_path / "alone.checkpoint.safetensors")
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-3, rtol=1e-3)
    assert load_model(ours).config == PLAIN
    assert not list(folder.glob(".*")), "no temporary file is left"


@pytest.mark.parametrize(("images", "count", "sizes"), [(9, 2, [5, 4]), (8, 3, [3, 3, 2]), (4, 4, [1, 1, 1, 1])])
def test_shares_are_the_whole_batch(images, count, sizes):
    batch = torch.arange(images)
    shares = [Processes(rank, count).share(batch) for rank in range(count)]
    assert [len(share) for share in shares] == sizes
    assert torch.equal(torch.cat(shares), batch)


def test_a_batch_too_small_to_share_is_refused():
    with pytest.raises(ValueError, match="a batch of 2 images can't be shared by 3 processes"):
        Processes(0, 3).share(torch.zeros(2))


def test_torchrun_passes_every_option_on_as_the_guide_calls_it():
    """torchrun takes the beginning of its own options for them, such as ``--start`` for ``--start-method``."""
    guide = (SOURCE / "docs" / "training.md").read_text()
    [command] = re.findall(r"`torchrun (.* pxfast\.cli train) \.\.\.`", guide)
    options = [
        option for parameter in typer.main.get_command(app).commands["train"].params for option in parameter.opts
    ]
    assert "--start" in options
    called = [*shlex.split(command), *options]
    parsed = torchrun_parser().parse_args(called)
    assert parsed.training_script_args == ["train", *options]
    assert (parsed.training_script, parsed.module) == ("pxfast.cli", True)
    without = [part for part in called if part != "--"]
    with pytest.raises(SystemExit):
        torchrun_parser().parse_args(without)
