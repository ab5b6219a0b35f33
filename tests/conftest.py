"""What the tests share: nothing of the reader's is read or written; small models whose codes and logits are lively."""

import pytest
import torch
from einops import rearrange
from hypothesis import settings

from vqlib import data
from vqlib.transformer import Transformer, TransformerConfig
from vqlib.vqvae import VQVAE, VQVAEConfig

settings.register_profile("vqlib", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("vqlib")


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """Each test has its own runs folder, and none of the reader's settings."""
    monkeypatch.setenv("VQLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("VQLIB_FAST", raising=False)
    monkeypatch.delenv("VQLIB_DATA", raising=False)


@pytest.fixture(scope="session")
def train():
    return data.load_sample("train")


@pytest.fixture(scope="session")
def test():
    return data.load_sample("test")


@pytest.fixture(scope="session")
def images(test):
    """24 real pictures, (24, 1, 28, 28) float64."""
    return data.to_images(test.pixels[::21][:24]).double()


@pytest.fixture
def vqvae(images):
    """A small untrained VQ-VAE in float64 whose codebook lies among the encoder's vectors: dozens of codes in use."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VQVAE(VQVAEConfig(channels=8)).double()
    latents = rearrange(model.encoder(images), "b d h w -> (b h w) d").detach()
    model.quantizer.init_from(latents, torch.Generator().manual_seed(0))
    assert len(model.encode(images).unique()) > 20  # else what is said of codes would say little
    return model.eval()


@pytest.fixture
def transformer():
    return lively_transformer()


def lively_transformer(qk_norm=False):
    """A small Transformer in float64, with weights so large that attention and logits are far from uniform."""
    model = Transformer(TransformerConfig(d_model=32, n_heads=4, n_layers=2, qk_norm=qk_norm)).double()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data.normal_(std=1.0 if "embedding" in name else 0.35, generator=generator)
    return model.eval()
