"""Training in several processes, started by torchrun on this machine's CPU (Gloo)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vqlib import checkpoints, distributed, training

TESTS = Path(__file__).parent
pytestmark = pytest.mark.skipif(not torch.distributed.is_available() or os.name == "nt",
                                reason="needs torchrun: no torch.distributed here, or Windows, whose builds lack libuv")


def launch(processes, arguments, **environment):
    """Run a Python script or module in so many processes; with one, without torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([*(command if processes > 1 else [sys.executable]), *map(str, arguments)], env=env,
                          cwd=TESTS, capture_output=True, text=True, timeout=300)


def train(processes, name, folder, *stop):
    done = launch(processes, [TESTS / "distributed_worker.py", name, folder, *stop])
    if not stop or stop[0] >= 1000:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def result(folder, rank=0):
    tensors, info = checkpoints.read(folder / f"rank{rank}.safetensors", "result")
    return tensors, info["history"]


def assert_close(one, other, rel):
    """Every figure of every step, and every weight, the same to rounding."""
    (weights, history), (other_weights, other_history) = one, other
    assert len(history["steps"]) == len(other_history["steps"]) == 50
    for key in ("steps", "epochs"):
        for row, other_row in zip(history[key], other_history[key], strict=True):
            figures, others = ({k: v for k, v in r.items() if k != "nats_by_position"} for r in (row, other_row))
            assert figures == pytest.approx(others, rel=rel)
    for name, tensor in weights.items():
        assert torch.allclose(tensor.float(), other_weights[name].float(), rtol=0, atol=2e-3), name


@pytest.mark.parametrize("name", ["ema", pytest.param("gradient", marks=pytest.mark.slow),
                                  pytest.param("transformer", marks=pytest.mark.slow)])
def test_two_processes_do_what_one_does(tmp_path, name):
    """50 steps: losses, metrics and codebooks as with one process; the same in both, to the last bit."""
    train(1, name, tmp_path / "one")
    train(2, name, tmp_path / "two")
    assert_close(result(tmp_path / "one"), result(tmp_path / "two"), rel=2e-4)
    first, second = result(tmp_path / "two", 0), result(tmp_path / "two", 1)
    assert all(torch.equal(tensor, second[0][key]) for key, tensor in first[0].items())
    assert first[1]["steps"] == second[1]["steps"] and first[1]["epochs"] == second[1]["epochs"]
    if name == "ema":
        assert sum(row["revived"] for row in first[1]["steps"]) > 0  # else revival would not have been compared
    assert sorted(os.listdir(tmp_path / "two")) == ["m.safetensors", "rank0.safetensors", "rank1.safetensors"]


def test_rows_that_a_checkpoint_cuts_in_two_are_whole_with_another_number_of_processes(tmp_path):
    """Saved every 5 steps and logged every 10: what is summed up at a checkpoint goes on, once."""
    train(1, "ema", tmp_path / "one", 1000, 10)
    for processes, step in ((2, 7), (1, 18), (2, 1000)):
        train(processes, "ema", tmp_path / "some", step, 10)
    ours, theirs = (result(tmp_path / folder)[1]["steps"] for folder in ("one", "some"))
    assert [row["step"] for row in ours] == [10, 20, 30, 40, 50]
    for row, other in zip(ours, theirs, strict=True):
        assert row == pytest.approx(other, rel=2e-4)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_another_number_of_processes(tmp_path):
    train(1, "ema", tmp_path / "one")
    for processes, step in ((2, 23), (1, 38)):  # killed in its 23rd step, then with one process in its 38th
        done = train(processes, "ema", tmp_path / "some", step)
        assert done.returncode != 0 and os.listdir(tmp_path / "some") == ["m.resume.safetensors"]
        _, info = checkpoints.read(tmp_path / "some" / "m.resume.safetensors", "training state")
        assert info["step"] == step // 5 * 5
    train(2, "ema", tmp_path / "some")
    assert_close(result(tmp_path / "one"), result(tmp_path / "some"), rel=2e-4)


def test_the_shares_side_by_side_are_the_batch(monkeypatch):
    for n in (1, 7, 13, 64):
        for processes in range(1, n + 1):
            monkeypatch.setattr(distributed, "count", lambda p=processes: p)
            shares = []
            for rank in range(processes):
                monkeypatch.setattr(distributed, "rank", lambda r=rank: r)
                shares.append(range(n)[distributed.share(n)])
            assert sum(map(list, shares), []) == list(range(n)) and min(map(len, shares)) >= 1


def test_more_processes_than_pictures_are_refused(train, monkeypatch):
    monkeypatch.setattr(distributed, "count", lambda: 11)
    from test_training import VQVAE_TINY, run
    with pytest.raises(ValueError, match="the last batch of an epoch has 10 of 90 examples, too few for 11 processes"):
        run(VQVAE_TINY, train.subset(torch.arange(90)))


@pytest.mark.slow
def test_the_command_line_under_torchrun(tmp_path):
    """Both stages, by the real command with a small recipe: one process prints and writes, the files are a pair."""
    script = tmp_path / "small.py"
    script.write_text("import sys\nfrom pathlib import Path\nsys.path.insert(0, str(Path(sys.argv.pop(1))))\n"
                      "import dataclasses, test_training as t\nfrom vqlib import training\n"
                      "recipes = t.EMA_TINY, t.TRANSFORMER_TINY\n"
                      "training.RECIPES['best'] = [dataclasses.replace(r, epochs=1, batch_size=250) for r in recipes]\n"
                      "training.main(sys.argv[1:])\n", encoding="utf-8")
    done = launch(2, [script, TESTS, "all", "--sample", "--device", "cpu"], VQLIB_RUNS=str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "runs" / "sample"
    assert sorted(os.listdir(folder)) == ["transformer.safetensors", "vqvae.safetensors"]
    vqvae = checkpoints.load_vqvae(folder / "vqvae.safetensors")
    checkpoints.load_transformer(folder / "transformer.safetensors", vqvae=vqvae)
    assert done.stdout.count("tokenizer:") == 1 and done.stdout.count("test: mse") == 1
    refused = launch(2, ["-m", "vqlib.training", "classifiers", "--sample"], VQLIB_RUNS=str(tmp_path / "runs"))
    assert refused.returncode != 0 and "BatchNorm needs whole batches" in refused.stderr


def test_without_torchrun_nothing_is_distributed():
    assert (distributed.count(), distributed.rank(), distributed.launched()) == (1, 0, False)
    model, part = torch.nn.Linear(2, 2), torch.ones(3)
    assert distributed.wrap(model) is model and distributed.gather(part, slice(None), 3) is part
    assert distributed.sum_up(part) is part and distributed.share(5) == slice(0, 5)
    assert training.Batch(torch.arange(5)).examples().tolist() == [0, 1, 2, 3, 4]
