"""The variants of the crisp decoder: each trains, and differs from the recipe in what its name says."""

import dataclasses

import decoders
import pytest
import torch
from conftest import pictures, same_weights, tokenizer

from vqlib.adversarial import DiscriminatorConfig
from vqlib.training import CRISP, Batch, loop


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
    stage = stage_class(recipe, stage_class.examples(recipe, pictures(48), vqvae, False), "cpu")
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


def test_each_name_says_what_is_switched_off():
    off = {"matching alone": {"adversarial"}, "adversarial alone": {"matching"}, "neither": {"adversarial", "matching"}}
    off |= {"no MSE": {"mse"}, "adversarial alone, no MSE": {"matching", "mse"}}
    for name, weights in off.items():
        assert decoders.VARIANTS[name] == (dict.fromkeys(weights, 0.0), decoders.DecoderStage)


def test_r1_adds_half_the_squared_gradient_of_the_verdict():
    penalized, usual = (
        stage(dataclasses.replace(CRISP, batch_size=16, mixed_precision=False), (*a_few(),), "cpu")
        for stage in (decoders.GradientPenalty, decoders.DecoderStage)
    )
    penalized.modules.load_state_dict(usual.modules.state_dict())
    batch = Batch(torch.arange(16))
    images, latents = usual.inputs(batch)
    images.requires_grad_()
    usual.modules["discriminator"](images, latents).logits.mean((1, 2)).sum().backward()
    penalty = images.grad.square().sum((1, 2, 3)).mean() / 2
    first, plain = (next(stage.losses(batch)).item() for stage in (penalized, usual))
    assert first - plain == pytest.approx(penalty.item(), rel=0.02) and penalty > 1e-6


def a_few():
    return decoders.DecoderStage.examples(CRISP, pictures(16), tokenizer(), False)


def test_the_plane_is_one_weight_of_both_losses():
    for name, (changes, _) in decoders.PLANE.items():
        assert changes["adversarial"] == float(name.split()[1]) * CRISP.adversarial
        assert changes["matching"] == pytest.approx(CRISP.matching / CRISP.adversarial * changes["adversarial"]), name
