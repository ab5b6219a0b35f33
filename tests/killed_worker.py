"""Train a tiny recipe twice: in one go, and killed by SIGKILL 20 times in a row, each time at a random place.

    python tests/killed_worker.py NAME FOLDER

Writes whole.safetensors and killed.safetensors, and prints where each of the 20 died. Each run is a fork of this
process, which computes nothing itself: so PyTorch is imported once, and no thread of it is lost in a fork.
"""

import dataclasses
import os
import random
import signal
import sys
from functools import partial
from pathlib import Path

import test_training as t
import torch

from vqlib import data, training

KILLS, EPOCHS = 20, 42  # 252 steps, saved every second one: 20 kills within 12 steps each cannot reach the end


def run(name, path, place=None, count=0):
    """In a fork: train; die at the ``count``-th time that the run comes to ``place``. Returns the exit status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    torch.set_num_threads(1)
    training.fit = partial(training.fit, log_every=2, save_every=2)
    if place:
        owner, function, after = PLACES[place]
        setattr(owner, function, deadly(getattr(owner, function), count, after))
    t.run(dataclasses.replace(t.RECIPES[name], epochs=EPOCHS), data.load_sample("train").subset(torch.arange(90)), path)
    os._exit(0)


def deadly(function, count, after):
    """``function``, in whose ``count``-th call this process dies, before or after the work is done."""
    calls = []

    def call(*arguments, **options):
        calls.append(1)
        if len(calls) == count and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


PLACES = {"a step begins": (training, "_seed", False), "the weights were changed": (torch.optim.AdamW, "step", True),
          "a new checkpoint is in part on the disk": (os, "fsync", False),
          "a new checkpoint is not yet in place": (os, "replace", False),
          "a new checkpoint is in place": (os, "replace", True)}


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    assert run(name, folder / "whole.safetensors") == 0
    chance = random.Random(0)
    for _ in range(KILLS):
        place, count = chance.choice(list(PLACES)), chance.randint(1, 6)
        status = run(name, folder / "killed.safetensors", place, count)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
        print(f"killed when {place}, time {count}", flush=True)
    assert run(name, folder / "killed.safetensors") == 0
