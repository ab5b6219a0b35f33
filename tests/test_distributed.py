"""Training in several processes, on this machine's CPU (Gloo)."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import distributed_worker
import pytest
import torch
from conftest import VQVAE_TINY, forked, run, visible

from vqlib import checkpoints
from vqlib.training import Batch, distributed

TESTS = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or os.name == "nt",
    reason="needs torchrun: no torch.distributed here, or Windows, whose builds lack libuv",
)


def torchrun(processes, *arguments, **environment):
    """Run a Python script or module in so many processes, by the real launcher."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command += map(str, arguments)
    return subprocess.run(command, env=environment, cwd=TESTS, capture_output=True, text=True, timeout=300)


def launch(processes, *arguments):
    """`distributed_worker.train` in so many processes, launched as torchrun does; returns their exit codes."""
    if processes == 1:
        workers = [forked(distributed_worker.train, *arguments)]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        world = [(rank, processes, port) for rank in range(processes)]
        workers = [forked(distributed_worker.as_torchrun_does, *variables, *arguments) for variables in world]
    for worker in workers:
        worker.join(120)
    return [worker.exitcode for worker in workers]


def result(folder, rank=0):
    tensors, info = checkpoints.read(folder / f"rank{rank}.safetensors", "result")
    return tensors, info["history"]


def assert_close(one, other, rows):
    """Every figure of every row, and every weight, the same to rounding."""
    (weights, history), (other_weights, other_history) = one, other
    assert [row["step"] for row in history["steps"]] == rows and len(history["epochs"]) == 5
    for key in ("steps", "epochs"):
        for row, other_row in zip(history[key], other_history[key], strict=True):
            figures, others = ({k: v for k, v in r.items() if k != "nats_by_position"} for r in (row, other_row))
            assert figures == pytest.approx(others, rel=2e-4)
    for name, tensor in weights.items():
        assert torch.allclose(tensor.float(), other_weights[name].float(), rtol=0, atol=2e-3), name


@pytest.mark.parametrize(
    "name",
    ["ema", pytest.param("gradient", marks=pytest.mark.slow), pytest.param("transformer", marks=pytest.mark.slow)],
)
def test_two_processes_do_what_one_does(tmp_path, name):
    """50 steps: losses, metrics and codebooks as with one process; the same in both, to the last bit."""
    assert launch(1, name, tmp_path / "one") == [0]
    done = torchrun(2, TESTS / "distributed_worker.py", name, tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_close(result(tmp_path / "one"), result(tmp_path / "two"), [*range(1, 51)])
    first, second = result(tmp_path / "two", 0), result(tmp_path / "two", 1)
    assert all(torch.equal(tensor, second[0][key]) for key, tensor in first[0].items())
    assert first[1]["steps"] == second[1]["steps"] and first[1]["epochs"] == second[1]["epochs"]
    if name == "ema":
        assert sum(row["revived"] for row in first[1]["steps"]) > 0  # else revival would not have been compared
    assert sorted(os.listdir(tmp_path / "two")) == ["m.safetensors", "rank0.safetensors", "rank1.safetensors"]


def test_a_killed_run_goes_on_with_another_number_of_processes(tmp_path):
    """Saved every 5 steps and logged every 10: what was summed up at a checkpoint goes on, and is counted once."""
    one, some, log_every = tmp_path / "one", tmp_path / "some", 10
    assert launch(1, "ema", one, log_every) == [0]
    for processes, step in ((2, 7), (1, 18), (2, 36)):
        assert launch(processes, "ema", some, log_every, step) == [-signal.SIGKILL] * processes
        assert visible(some) == ["m.resume.safetensors"]
        _, info = checkpoints.read(some / "m.resume.safetensors", "training state")
        assert info["step"] == step // 5 * 5
    assert launch(2, "ema", some, log_every) == [0, 0]
    assert_close(result(one), result(some), [10, 20, 30, 40, 50])


def test_the_shards_side_by_side_are_the_batch(monkeypatch):
    for n in (1, 7, 13, 64):
        for processes in range(1, n + 1):
            monkeypatch.setattr(distributed, "world_size", lambda p=processes: p)
            shards = []
            for rank in range(processes):
                monkeypatch.setattr(distributed, "rank", lambda r=rank: r)
                shards.append(range(n)[distributed.shard(n)])
            assert sum(map(list, shards), []) == list(range(n)) and min(map(len, shards)) >= 1


def test_more_processes_than_pictures_are_refused(some, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 11)
    with pytest.raises(ValueError, match="10 of 90.*11 processes"):
        run(VQVAE_TINY, some)


@pytest.mark.slow
def test_the_command_line_under_torchrun(tmp_path):
    """Both stages, by the real command with a small recipe: one process prints and writes, the files are a pair."""
    script = tmp_path / "small.py"
    script.write_text(
        "import dataclasses, sys\n"
        "sys.path.insert(0, sys.argv.pop(1))\n"
        "from conftest import EMA_TINY, TRANSFORMER_TINY\n"
        "from vqlib.training import __main__, recipes\n"
        "best = [dataclasses.replace(r, epochs=1, batch_size=250) for r in (EMA_TINY, TRANSFORMER_TINY)]\n"
        "recipes.RECIPES['best'] = best\n"
        "__main__.main(sys.argv[1:])\n",
        encoding="utf-8",
    )
    done = torchrun(2, script, TESTS, "all", "--mini", "--device", "cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "runs" / "mini"
    assert sorted(os.listdir(folder)) == ["transformer.safetensors", "vqvae.safetensors"]
    vqvae = checkpoints.load_vqvae(folder / "vqvae.safetensors")
    checkpoints.load_transformer(folder / "transformer.safetensors", vqvae=vqvae)
    assert done.stdout.count("tokenizer:") == 1 and done.stdout.count("test: mse") == 1
    refused = torchrun(2, "-m", "vqlib.training", "classifiers", "--mini")
    assert refused.returncode != 0 and "BatchNorm" in refused.stderr


def test_without_torchrun_nothing_is_distributed():
    assert (distributed.world_size(), distributed.rank(), distributed.launched()) == (1, 0, False)
    part, batch = torch.ones(5), Batch(torch.arange(5))
    with distributed.process_group("cpu"):
        assert torch.equal(distributed.all_gather(part, batch), part) and distributed.world_size() == 1
    assert distributed.all_reduce(part) is part and distributed.shard(5) == slice(0, 5)
    assert batch.examples().tolist() == [0, 1, 2, 3, 4] and batch.weight == 1
