"""One of the processes that test_distributed.py starts with torchrun: trains a tiny recipe, and writes what it got.

    torchrun --nproc-per-node 2 tests/distributed_worker.py NAME FOLDER [STEP AT WHICH TO STOP [LOG EVERY]]
"""

import dataclasses
import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import test_training as t
import torch

from vqlib import checkpoints, data, distributed, training
from vqlib.transformer import TransformerConfig
from vqlib.vqvae import VQVAEConfig

torch.set_num_threads(1)
# 50 steps: 200 pictures in batches of 20, the last of 90 odd; no dropout; everything that draws a number is on.
EMA = dataclasses.replace(t.EMA_TINY, epochs=5, batch_size=20, mixed_precision=False,
                          model=VQVAEConfig(channels=16, ema=True))
RECIPES = {
    "ema": EMA,
    "gradient": dataclasses.replace(EMA, model=VQVAEConfig(channels=16), kmeans_init=False, beta=0.25),
    "transformer": dataclasses.replace(t.TRANSFORMER_TINY, epochs=5, batch_size=20,
                                       model=TransformerConfig(d_model=32, n_heads=2, n_layers=2, dropout=0.0)),
}
PICTURES = 193  # 10 steps an epoch, the last of 13 pictures: an odd number


def train(name, folder, stop=None, log_every=1):
    """Train and write rank{n}.safetensors: the weights and history as this process has them."""
    some = data.load_sample("train").subset(torch.arange(PICTURES))
    training.fit = partial(training.fit, log_every=log_every, save_every=5)
    if stop:
        t.stop_at(pytest.MonkeyPatch(), stop, lambda: os.kill(os.getpid(), signal.SIGKILL))
    model = t.run(RECIPES[name], some, folder / "m.safetensors", validation=some.subset(torch.arange(10)))
    checkpoints.save(folder / f"rank{distributed.rank()}.safetensors", "result", model.state_dict(),
                     history=model.info["history"])


if __name__ == "__main__":
    name, folder, *stop = sys.argv[1:]
    if distributed.launched():
        with distributed.processes("cpu"):
            train(name, Path(folder), *map(int, stop))
    else:
        train(name, Path(folder), *map(int, stop))
