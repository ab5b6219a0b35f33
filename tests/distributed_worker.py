"""One of the processes that test_distributed.py starts: trains a tiny recipe, and writes what it got.

torchrun --nproc-per-node 2 tests/distributed_worker.py NAME FOLDER [LOG EVERY [STEP AT WHICH TO DIE]]
"""

import dataclasses
import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import EMA_TINY, TRANSFORMER_TINY, pictures, run, stop_at

from vqlib import checkpoints
from vqlib.training import distributed, loop
from vqlib.transformer import TransformerConfig
from vqlib.vqvae import VQVAEConfig

# 50 steps, without dropout; everything else that draws a number is on.
FIFTY = {"epochs": 5, "batch_size": 20}
EMA = dataclasses.replace(EMA_TINY, **FIFTY, mixed_precision=False, model=VQVAEConfig(channels=16, quantizer="ema"))
RECIPES = {
    "ema": EMA,
    "gradient": dataclasses.replace(EMA, model=VQVAEConfig(channels=16), kmeans_init=False, beta=0.25),
    "transformer": dataclasses.replace(
        TRANSFORMER_TINY, **FIFTY, model=TransformerConfig(d_model=32, n_heads=2, n_layers=2, dropout=0.0)
    ),
}
PICTURES = 193  # 10 steps an epoch, the last of 13 pictures: an odd number


def train(name, folder, log_every=1, die_at=None):
    """Train, save every five steps, and write rank{n}.safetensors: the weights and history as this process has them."""
    torch.set_num_threads(1)
    loop.fit = partial(loop.fit, log_every=int(log_every), save_every=5)
    if die_at:
        stop_at(pytest.MonkeyPatch(), int(die_at), lambda: os.kill(os.getpid(), signal.SIGKILL))
    with distributed.process_group("cpu"):
        model = run(RECIPES[name], pictures(PICTURES), Path(folder, "m.safetensors"), validation=pictures(10))
        result = Path(folder, f"rank{distributed.rank()}.safetensors")
        checkpoints.save(result, "result", model.state_dict(), history=model.info["history"])


def as_torchrun_does(rank, world_size, port, *arguments):
    """Train in a process to which the launcher's variables are given by hand."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    train(*arguments)


if __name__ == "__main__":
    train(*sys.argv[1:])
