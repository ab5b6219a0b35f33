"""Which hardware to train on, and in which precision."""

import contextlib
import functools
import time
import warnings

import torch
import torch.nn.functional as F

from vqlib.sampling import sample
from vqlib.transformer import Transformer, TransformerConfig
from vqlib.vqvae import VQVAE, VQVAEConfig

BF16_PAYS = 1.25  # times as fast as float32; a smaller gain goes into converting


@functools.cache
def pick_device() -> str:
    """ "cuda" if there is one; else "mps" if it computes what a CPU does, with a warning if it doesn't; else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        try:
            torch.testing.assert_close(results_on("mps"), results_on("cpu"), rtol=0, atol=1e-3)
            return "mps"
        except (AssertionError, RuntimeError, TypeError, NotImplementedError) as error:  # other results, or none
            words = "this machine's Apple GPU (mps) can't do what is needed here. Going on with the CPU"
            warnings.warn(f"{words}; a newer PyTorch may help: {error}", stacklevel=2)
    return "cpu"


def results_on(device):
    """Loss, samples and gradients of small models of both stages: (N,) float32 on the CPU, to compare devices by."""
    with own_state("cpu"):
        torch.manual_seed(0)
        vqvae = VQVAE(VQVAEConfig(channels=8)).to(device)
        transformer = Transformer(TransformerConfig(d_model=32, n_layers=2, qk_norm=True)).to(device).eval()
    output = vqvae(torch.linspace(-1, 1, 4 * 28 * 28).reshape(4, 1, 28, 28).to(device))
    codes = sample(transformer, torch.arange(4), generator=torch.Generator().manual_seed(0))
    tokens = transformer.config.vocabulary.to_sequences(codes, torch.arange(4))
    nats = F.cross_entropy(transformer(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss = output.images.pow(2).mean() + sum(output.quantized.losses.values()) + nats
    loss.backward()
    gradients = [p.grad.flatten() for p in (*vqvae.parameters(), *transformer.parameters())]
    return torch.cat([loss.detach()[None], codes.flatten().float(), *gradients]).cpu()


@functools.cache
def bf16_gain(device) -> float:
    """How many times as fast in bf16 as in float32 the device multiplies matrices; 0 if it isn't to be used there.

    Measured once, in about 0.1 s, since no flag tells: most laptops only emulate bf16, slowly, and of two processors
    that have it one was twice as fast in it and the other slower. On "mps" bf16 has not been tried, and a GPU without
    it (a T4) is not asked.
    """
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False) or kind not in ("cpu", "cuda"):
        return 0.0
    size = {"cpu": 512, "cuda": 4096}[kind]  # enough arithmetic to count, little enough to be emulated
    with torch.autocast(kind, enabled=False):
        return seconds(size, torch.float32, device) / seconds(size, torch.bfloat16, device)


def seconds(size, dtype, device):
    """How long a product of two matrices of this size takes: the fastest of those in 50 ms, after a first one."""
    x, taken, began = torch.ones(size, size, dtype=dtype, device=device), [], time.perf_counter()
    while len(taken) < 2 or time.perf_counter() - began < 0.05:
        now = time.perf_counter()
        x @ x
        if x.is_cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - now)
    return min(taken[1:])


@contextlib.contextmanager
def own_state(device):
    """Within it torch's global generators may be seeded, and float32, the CPU and gradients are its defaults.

    Afterwards all of that is as the reader left it: neither disturbs the other.
    """
    dtype, elsewhere = torch.get_default_dtype(), torch.get_default_device().type != "cpu"
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu") if elsewhere else contextlib.nullcontext(), torch.inference_mode(False):
            with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
                yield
    finally:
        torch.set_default_dtype(dtype)
