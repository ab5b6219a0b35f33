"""Written with version 0.1: tiny runs, whose files later versions must still load.

python tests/files_of_0_1/make.py      # with vqlib 0.1 installed
"""

import dataclasses
from pathlib import Path

import torch

from vqlib import data, training
from vqlib.classifier import ClassifierConfig
from vqlib.transformer import TransformerConfig
from vqlib.vqvae import VQVAEConfig

FOLDER = Path(__file__).parent
QUICK = {"epochs": 1, "batch_size": 10, "mixed_precision": False}
some = data.load_sample("test").subset(torch.arange(20))
recipe = dataclasses.replace(
    training.ANCESTOR_VQVAE, **QUICK, model=VQVAEConfig(code_dim=2, channels=2, residual_blocks=0, ema=True)
)
vqvae = training.train_vqvae(recipe, some, path=FOLDER / "vqvae.safetensors", device="cpu")
recipe = dataclasses.replace(
    training.ANCESTOR_TRANSFORMER, **QUICK, model=TransformerConfig(d_model=4, n_heads=2, n_layers=1, context=50)
)
training.train_transformer(recipe, vqvae, some, path=FOLDER / "transformer.safetensors", device="cpu")
recipe = dataclasses.replace(training.JUDGE, **QUICK, model=ClassifierConfig(channels=1, features=4))
training.train_classifier(recipe, some, path=FOLDER / "judge.safetensors", device="cpu")
