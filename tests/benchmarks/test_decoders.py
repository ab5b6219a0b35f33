"""The variants of the crisp decoder: each trains, and differs from the recipe in what its name says."""

import dataclasses

import decoders
import pytest
import torch
from conftest import pictures, same_weights, tokenizer

from vqlib.adversarial import DiscriminatorConfig
from vqlib.training import CRISP, loop


def trained(name):
    """A few steps of a variant on a tokenizer with few channels: the tokenizer, and the stage."""
    changes, stage_class = decoders.VARIANTS[name]
    small = {
        "batch_size": 16,
        "warmup_steps": 1,
        "mixed_precision": False,
        "discriminator": DiscriminatorConfig(channels=8),
    }
    recipe = dataclasses.replace(CRISP, **small, **changes)
    vqvae = tokenizer()
    if name == "whole tokenizer":
        vqvae.quantizer.codebook.requires_grad_(False)  # as with moving averages
    torch.manual_seed(0)
    stage = stage_class(recipe, stage_class.examples(pictures(48), vqvae, False), "cpu")
    history = loop.fit(stage, progress=False)
    assert torch.tensor(history["steps"][-1]["loss"]).isfinite()
    return vqvae, stage


@pytest.mark.parametrize("name", decoders.VARIANTS)
def test_each_variant_trains_and_leaves_the_tokenizer_alone(name):
    vqvae, stage = trained(name)
    assert all(torch.equal(p, q) for p, q in zip(vqvae.parameters(), tokenizer().parameters(), strict=True))
    usual = stage if name == "crisp" else trained("crisp")[1]
    assert same_weights(stage.modules, usual.modules) == (name == "crisp")


def test_a_blind_discriminator_learns_nothing_about_the_codes():
    _, stage = trained("discriminator blind to the codes")
    weights = stage.modules["discriminator"].joint.weight.grad
    assert weights[:, :8].any() and not weights[:, 8:].any()


def test_the_whole_tokenizer_moves_its_own_copy():
    vqvae, stage = trained("whole tokenizer")
    for part in ("encoder", "quantizer"):
        assert not same_weights(stage.modules[part], getattr(vqvae, part))


def test_the_plane_is_one_weight_of_both_losses():
    for name, (changes, _) in decoders.PLANE.items():
        assert changes["matching"] == pytest.approx(CRISP.matching / CRISP.adversarial * changes["adversarial"]), name
