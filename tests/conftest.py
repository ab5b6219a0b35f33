"""What the tests share: nothing of the reader's is read or written; small models whose codes and logits are lively."""

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
import torch
from einops import rearrange
from hypothesis import settings

from vqlib import data
from vqlib.transformer import Transformer, TransformerConfig
from vqlib.vqvae import VQVAE, VQVAEConfig

ROOT = Path(__file__).parent.parent
OLD = ["ipywidgets==7.7.1", "ipython==7.34.0", "ipykernel<7"]  # Colab's

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


# --- Colab's versions: an environment layered over this one ----------------------------------------------------------


def environment(**more):
    """This one's variables, without those that would put other packages or data first."""
    return {key: value for key, value in os.environ.items() if key not in ("VQLIB_DATA", "PYTHONPATH")} | more


@pytest.fixture(scope="session")
def old_python(tmp_path_factory):
    """A Python with Colab's ipywidgets, IPython and ipykernel; all else, torch too, is this environment's."""
    return layered(tmp_path_factory.mktemp("old") / "env", OLD)


def layered(folder, requirements):
    """A Python with these packages of its own, and all else from this environment; skips where they can't be had."""
    binary = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    try:
        venv.create(folder, with_pip=True, symlinks=os.name != "nt")
        subprocess.run([binary, "-m", "pip", "install", "-q", "--retries", "1", "--timeout", "15", *requirements],
                       check=True, capture_output=True, text=True, env=environment(), timeout=600)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"could not make an environment with {', '.join(requirements)}: {error} {str(error.stderr)[-300:]}")
    packages = shown(binary, "import sysconfig; print(sysconfig.get_path('purelib'))")[0]
    (Path(packages) / "zz_layer.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")  # searched after its own
    return binary


def shown(python, code):
    """The lines that this code prints there."""
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True,
                          env=environment()).stdout.splitlines()
