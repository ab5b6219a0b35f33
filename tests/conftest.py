"""What the tests share: nothing of the reader's is read or written; small models whose codes and logits are lively."""

import contextlib
import dataclasses
import multiprocessing
import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
import torch
from einops import rearrange
from hypothesis import settings

from vqlib import captions, data
from vqlib.adversarial import DiscriminatorConfig
from vqlib.classifier import ClassifierConfig
from vqlib.contrastive import ContrastiveConfig
from vqlib.pair import Pair
from vqlib.training import (
    CaptionRecipe,
    ClassifierRecipe,
    ContrastiveRecipe,
    DecoderRecipe,
    DVAERecipe,
    TransformerRecipe,
    VQVAERecipe,
    dalle,
    loop,
    stages,
)
from vqlib.transformer import Transformer, TransformerConfig
from vqlib.vqvae import VQVAE, VQVAEConfig

ROOT = Path(__file__).parent.parent
OLD = ["ipywidgets==7.7.1", "ipython==7.34.0", "ipykernel<7", "anywidget==0.9.3"]  # Colab's; the last: our oldest

torch.set_num_threads(1)  # the tensors are tiny, and a second thread that waits for work takes a core from others
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that they start

settings.register_profile("vqlib", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("vqlib")


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """Each test has its own runs folder, and none of the reader's settings."""
    monkeypatch.setenv("VQLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("VQLIB_FAST", raising=False)
    monkeypatch.delenv("VQLIB_DATA", raising=False)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def same_weights(model, other):
    """Whether two models have the same state, bit for bit."""
    state, others = model.state_dict(), other.state_dict()
    return state.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in state.items())


@contextlib.contextmanager
def defaults(changed):
    """Within it a reader has set another default dtype, or another default device."""
    try:
        torch.set_default_dtype(changed) if isinstance(changed, torch.dtype) else torch.set_default_device(changed)
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


# --- pictures and small models ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def train():
    return data.load_mini("train")


@pytest.fixture(scope="session")
def test():
    return data.load_mini("test")


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
    model.quantizer.init_from(latents, seeded())
    assert len(model.encode(images).unique()) > 20  # with few codes in use, tests of codes would prove little
    return model.eval()


@pytest.fixture
def transformer():
    return lively_transformer()


@pytest.fixture
def pair(vqvae, transformer):
    """Both of them, in float64."""
    return Pair(vqvae, transformer)


def lively_transformer(qk_norm=False, **config):
    """A small Transformer in float64, with weights so large that attention and logits are far from uniform."""
    model = Transformer(TransformerConfig(d_model=32, n_heads=4, n_layers=2, qk_norm=qk_norm, **config)).double()
    generator = seeded()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data.normal_(std=1.0 if "embedding" in name else 0.35, generator=generator)
    return model.eval()


# --- tiny runs -------------------------------------------------------------------------------------------------------

# Two epochs of six steps on 90 pictures, the last batch of 10 (of 6 where pictures are withheld and turned). All that
# can be random in a run is random in EMA_TINY, TRANSFORMER_TINY or one of notebook 8's.
QUICK = {"name": "tiny", "epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "mixed_precision": False}
STEPS = 12
VQVAE_TINY = VQVAERecipe(**QUICK, model=VQVAEConfig(channels=8))
EMA_TINY = dataclasses.replace(
    VQVAE_TINY,
    model=VQVAEConfig(channels=8, quantizer="ema"),
    kmeans_init=True,
    ema_decay=0.8,
    revive_below=0.33,
    schedule="cosine",
    warmup_steps=3,
    mixed_precision=True,
)
TRANSFORMER_TINY = TransformerRecipe(
    **QUICK,
    schedule="cosine",
    optimizer="muon",
    weight_decay=0.1,
    drop_class=0.3,
    model=TransformerConfig(d_model=16, n_heads=2, n_layers=1),
)
DECODER_TINY = DecoderRecipe(
    **QUICK, schedule="cosine", fabrics=True, discriminator=DiscriminatorConfig(channels=8), betas=(0.5, 0.99)
)
CLASSIFIER_TINY = ClassifierRecipe(**QUICK, schedule="cosine", model=ClassifierConfig(channels=4, features=16))
DVAE_TINY = DVAERecipe(**QUICK, schedule="cosine", model=VQVAEConfig(channels=8, num_codes=16, quantizer="gumbel"))
CAPTION_TINY = CaptionRecipe(
    **QUICK,
    schedule="cosine",
    optimizer="muon",
    weight_decay=0.1,
    drop_caption=0.3,
    model=TransformerConfig(d_model=16, n_heads=2, n_layers=1, num_words=captions.NUM_WORDS, context=57),
)
CONTRASTIVE_TINY = ContrastiveRecipe(**QUICK, schedule="cosine", model=ContrastiveConfig(channels=4, features=8))
TINY = {"vqvae": VQVAE_TINY, "ema": EMA_TINY, "transformer": TRANSFORMER_TINY}
TINY |= {"decoder": DECODER_TINY, "classifier": CLASSIFIER_TINY}
TINY |= {"dvae": DVAE_TINY, "captions": CAPTION_TINY, "contrastive": CONTRASTIVE_TINY}


def pictures(n=90):
    return data.load_mini("train").subset(torch.arange(n))


@pytest.fixture(scope="session")
def some():
    return pictures()


def run(recipe, dataset, path=None, **options):
    """Train by this recipe, whichever stage it is of, on the codes of `tokenizer` if it needs one."""
    options = {"path": path, "device": "cpu", "progress": False, **options}
    of_codes = {
        TransformerRecipe: stages.train_transformer,
        DecoderRecipe: stages.train_decoder,
        CaptionRecipe: dalle.train_captions,
    }
    of_pictures = {
        VQVAERecipe: stages.train_vqvae,
        ClassifierRecipe: stages.train_classifier,
        DVAERecipe: dalle.train_dvae,
        ContrastiveRecipe: dalle.train_contrastive,
    }
    if type(recipe) in of_codes:
        return of_codes[type(recipe)](recipe, tokenizer(), dataset, **options)
    return of_pictures[type(recipe)](recipe, dataset, **options)


def tokenizer():
    """A small untrained VQ-VAE in float32, always the same, that uses dozens of codes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vqvae = VQVAE(VQVAEConfig(channels=8)).eval()
    latents = vqvae.encoder(data.to_images(pictures(50).pixels)).detach()
    vqvae.quantizer.init_from(rearrange(latents, "b d h w -> (b h w) d"), seeded())
    return vqvae


def without_seconds(model):
    """The history of a run, without what was measured: how long it took, and how much faster bf16 would be."""
    return {key: value for key, value in model.info["history"].items() if key not in ("seconds", "bf16_gain")}


def visible(folder):
    """The names in a folder, sorted, without the hidden ones: a process that is killed leaves such files behind."""
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def stop_at(monkeypatch, step, action, seen=None):
    """Do ``action`` at the beginning of this step, counted from 1, but only the first time. seen: notes the steps."""
    seen, original = [] if seen is None else seen, loop.seed_step

    def seed_step(seed, at):
        seen.append(at)
        if at + 1 == step and seen.count(at) == 1:
            action()
        return original(seed, at)

    monkeypatch.setattr(loop, "seed_step", seed_step)


def forked(function, *arguments):
    """Start ``function(*arguments)`` in a new process, without the seconds that it takes to import PyTorch.

    The process is forked by a server that has imported it once and computed nothing, so no thread is lost in the fork.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "pytest", "hypothesis", "vqlib.training"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


# --- Colab's versions: an environment layered over this one ----------------------------------------------------------


def environment(**more):
    """This one's variables, without those that would put other packages or data first."""
    return {key: value for key, value in os.environ.items() if key not in ("VQLIB_DATA", "PYTHONPATH")} | more


@pytest.fixture(scope="session")
def old_python(tmp_path_factory):
    """A Python with Colab's ipywidgets, IPython and ipykernel; all else, torch too, is this environment's."""
    return layered(tmp_path_factory.mktemp("old") / "env", OLD)


def layered(folder, requirements):
    """A Python with these packages of its own, all others from this environment; skips if they can't be had."""
    binary = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    try:
        venv.create(folder, with_pip=True, symlinks=os.name != "nt")
        install = [binary, "-m", "pip", "install", "-q", "--retries", "1", "--timeout", "15", *requirements]
        subprocess.run(install, check=True, capture_output=True, text=True, env=environment(), timeout=600)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"could not make an environment with {', '.join(requirements)}: {error} {str(error.stderr)[-300:]}")
    packages = shown(binary, "import sysconfig; print(sysconfig.get_path('purelib'))")[0]
    (Path(packages) / "zz_layer.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")  # searched after its own
    return binary


def shown(python, code):
    """The lines that this code prints there."""
    run = [python, "-c", code]
    return subprocess.run(run, capture_output=True, text=True, check=True, env=environment()).stdout.splitlines()
