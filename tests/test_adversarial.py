"""Adversarial decoders (notebook 07): the discriminator, the losses, what a step changes, and the shipped decoders."""

import dataclasses
import itertools
import math

import pytest
import torch
from conftest import DECODER_TINY, pictures, run, same_weights, seeded, tokenizer

import vqlib
from vqlib import adversarial, checkpoints, data, evaluation
from vqlib.adversarial import Discriminator, DiscriminatorConfig, FabricDecoder, Verdict
from vqlib.tokens import encode_pixels
from vqlib.training import CRISP, Batch, DecoderStage, stages
from vqlib.vqvae import VQVAE, Decoder, VQVAEConfig

SMALL = DiscriminatorConfig(code_dim=16, channels=8)


@pytest.fixture
def discriminator():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Discriminator(SMALL).double()


def some_latents(n=2):
    return torch.randn(n, 16, 7, 7, generator=seeded(1), dtype=torch.float64)


def verdict(seed, logits=(3, 7, 7)):
    draw = [torch.randn(shape, generator=seeded(seed)) for shape in (logits, (3, 4, 14, 14), (3, 8, 7, 7))]
    return Verdict(draw[0], draw[1:])


# --- the discriminator -----------------------------------------------------------------------------------------------


def test_it_judges_each_cell_by_the_codes_in_and_around_it(discriminator, images):
    latents = some_latents(1)
    changed = latents.clone()
    changed[0, :, 3, 2] += 1
    moved = (discriminator(images[:1], latents).logits != discriminator(images[:1], changed).logits)[0]
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[2:5, 1:4] = True
    assert torch.equal(moved, expected)


def test_it_judges_each_cell_by_18_pixels_around_it(discriminator, images):
    images, latents = images[:1].clone().requires_grad_(), some_latents(1)
    discriminator(images, latents).logits[0, 3, 3].backward()
    rows, columns = (images.grad[0, 0] != 0).nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 22, 5, 22)  # cell (3, 3) has pixels 12 to 15


def test_its_sizes(discriminator, images):
    logits, features = discriminator(images[:2], some_latents())
    assert logits.shape == (2, 7, 7) and logits.dtype == torch.float32
    assert [tuple(f.shape) for f in features] == [(2, 4, 14, 14), (2, 8, 7, 7), (2, 8, 7, 7)]
    with pytest.raises(ValueError, match="channels"):
        DiscriminatorConfig(channels=1)


# --- the losses ------------------------------------------------------------------------------------------------------


def test_the_losses_are_cross_entropies():
    real, drawn = verdict(0), verdict(1)
    sure = [[-math.log(1 / (1 + math.exp(-x))) for x in v.logits.flatten().tolist()] for v in (real, drawn)]
    unsure = [-math.log(1 - 1 / (1 + math.exp(-x))) for x in drawn.logits.flatten().tolist()]
    expected = sum(sure[0]) / len(unsure) + sum(unsure) / len(unsure)
    assert adversarial.discriminator_loss(real, drawn).item() == pytest.approx(expected, rel=1e-5)
    assert adversarial.adversarial_loss(drawn).item() == pytest.approx(sum(sure[1]) / len(unsure), rel=1e-5)


def test_a_drawing_that_is_found_out_still_gets_a_gradient():
    logits = torch.full((1, 7, 7), -20.0, requires_grad=True)
    adversarial.adversarial_loss(Verdict(logits, [])).backward()
    assert logits.grad.sum().item() == pytest.approx(-1)  # log(1 - σ) would give 2e-9


def test_matching_is_the_mean_distance_of_each_layer():
    real, drawn, other = (verdict(seed) for seed in range(3))

    def distance(one, two):
        layers = [
            sum(abs(a - b) for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)) / x.numel()
            for x, y in zip(one.features, two.features, strict=True)
        ]
        return sum(layers) / len(layers)

    assert adversarial.matching_loss(real, drawn).item() == pytest.approx(distance(real, drawn), rel=1e-5)
    expected = (distance(real, drawn) + distance(real, other) - distance(drawn, other)) / 2
    assert adversarial.matching_loss(real, drawn, other).item() == pytest.approx(expected, rel=1e-5)


def matching(r, a, b):
    return adversarial.matching_loss(*(Verdict(x, [x]) for x in (r, a, b)))


@pytest.mark.parametrize("loss", [matching, adversarial.squared_error])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.7, 1.0])
def test_with_two_drawings_no_other_odds_pay_better_than_the_true_ones(share, loss):
    """This share of the pictures with the same codes have a stripe (1), the others none (0). What should one draw?"""
    values = list(itertools.product((0.0, 1.0), repeat=3))
    paid = {bits: loss(*(torch.tensor([bit]) for bit in bits)).item() for bits in values}

    def expected(odds, twice=False):  # of a stripe; twice: both drawings are the same one
        bits = [v for v in values if v[1] == v[2]] if twice else values
        chance = {
            v: math.prod((p if bit else 1 - p) for bit, p in zip(v, (share, odds, odds), strict=True)) for v in bits
        }
        if twice:
            chance = {v: (share if v[0] else 1 - share) * (odds if v[1] else 1 - odds) for v in bits}
        return sum(chance[v] * paid[v] for v in bits)

    every = [i / 20 for i in range(21)]
    assert min(every, key=expected) == share
    if share in (0.2, 0.7):  # one drawing must always be the likelier, or pay more
        assert min(every, key=lambda odds: expected(odds, twice=True)) == round(share)


def test_the_error_of_the_mean_drawing_comes_from_pairs():
    x, a, b = (torch.randn(3, 1, 28, 28, generator=seeded(seed), dtype=torch.float64) for seed in range(3))
    assert adversarial.squared_error(x, a).item() == pytest.approx((x - a).pow(2).mean().item())
    draws = torch.randn(5, 3, 1, 28, 28, generator=seeded(9), dtype=torch.float64)
    pairs = [adversarial.squared_error(x, a, b).item() for a, b in itertools.product(draws, draws)]
    assert sum(pairs) / 25 == pytest.approx((x - draws.mean(0)).pow(2).mean().item())


# --- noise -----------------------------------------------------------------------------------------------------------


def test_noise_changes_the_drawing_and_only_around_its_cell():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = FabricDecoder(VQVAEConfig(channels=8, residual_blocks=0))
    latents, noise = some_latents().float(), torch.zeros(2, 1, 7, 7)
    noise[:, :, 0, 0] = 3
    moved = (decoder(latents, noise) != decoder(latents, torch.zeros(2, 1, 7, 7))).any(0)[0]
    assert moved[:4, :4].any() and not moved[16:].any() and not moved[:, 16:].any()
    assert torch.equal(decoder(latents), decoder(latents, decoder.usual))


def test_a_fabric_decoder_starts_as_the_plain_one():
    plain = tokenizer().decoder
    new, latents = FabricDecoder.like(plain), some_latents().float()
    assert torch.equal(new(latents, torch.zeros(2, 1, 7, 7)), plain(latents)) and not torch.equal(
        new(latents), plain(latents)
    )
    assert not same_weights(new, FabricDecoder.like(plain))  # what the noise does is drawn anew


def test_draw_takes_its_noise_from_the_generator():
    latents, decoder = some_latents().float(), FabricDecoder.like(tokenizer().decoder)
    first, again, other = (adversarial.draw(decoder, latents, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


# --- what a step changes ---------------------------------------------------------------------------------------------


def a_stage(**changes):
    vqvae, few = tokenizer(), pictures(16)
    recipe = dataclasses.replace(DECODER_TINY, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return vqvae, DecoderStage(recipe, DecoderStage.examples(recipe, few, vqvae, progress=False), "cpu")


@pytest.mark.parametrize("fabrics", [False, True])
def test_each_step_reaches_its_own_network_and_nothing_else(fabrics):
    vqvae, stage = a_stage(fabrics=fabrics)
    networks = {"discriminator": stage.modules["discriminator"], "decoder": stage.model, "vqvae": vqvae}
    moved, generator = [], seeded()
    losses = stage.losses(Batch(torch.arange(16), generator=generator))
    for (optimizer,), loss in zip(stage.optimizers(), losses, strict=True):
        before = {name: [p.detach().clone() for p in n.parameters()] for name, n in networks.items()}
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 1e-3
        optimizer.step()
        for name, network in networks.items():
            same = [torch.equal(p, q) for p, q in zip(before[name], network.parameters(), strict=True)]
            moved += [name] * (not all(same))
            assert all(same) or not any(same)  # all parameters of a network learn, or none
        if len(moved) == 1:
            assert all(p.grad is None for p in stage.model.parameters())  # the discriminator's loss asks nothing of it
    assert moved == ["discriminator", "decoder"]
    assert all(p.grad is None for p in vqvae.parameters())


@pytest.mark.parametrize("fabrics", [False, True])
def test_the_second_loss_is_the_weighted_sum_of_three(fabrics):
    vqvae, stage = a_stage(fabrics=fabrics, adversarial=2.0, matching=3.0, mse=5.0)
    discriminator, batch = stage.modules["discriminator"], Batch(torch.arange(16), generator=seeded())
    if fabrics:  # it starts as the plain one, with a channel more
        assert torch.equal(stage.model[0].weight[:, :-1], vqvae.decoder[0].weight)
    else:
        assert same_weights(stage.model, vqvae.decoder)
    losses = stage.losses(batch)
    next(losses)
    loss, generator, (images, latents) = next(losses).item(), seeded(), stage.inputs(batch)
    noise = [(torch.randn(16, 1, 7, 7, generator=generator),) if fabrics else () for _ in range(2)]
    drawn, other = (stage.model(latents, *some) for some in noise)
    real, a, b = (discriminator(x, latents) for x in (images, drawn, other))
    expected = 2 * adversarial.adversarial_loss(a) + 3 * adversarial.matching_loss(real, a, b)
    expected = expected + 5 * ((images - drawn) * (images - other)).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert stage.totals["fooled"].item() == pytest.approx((a.logits > 0).float().mean((1, 2)).sum().item())
    assert all(optimizer.param_groups[0]["betas"] == (0.5, 0.99) for (optimizer,) in stage.optimizers())


def test_a_frozen_tokenizer_of_another_form_gets_a_decoder_that_learns(some):
    vqvae = VQVAE(VQVAEConfig(channels=8, code_dim=5)).double().requires_grad_(False)
    recipe = dataclasses.replace(DECODER_TINY, fabrics=False)
    model = stages.train_decoder(recipe, vqvae, some, test=some, progress=False)
    assert model.info["test"]["pictures"] == len(some)
    assert model[0].weight.dtype == torch.float32 and (model[0].weight - vqvae.decoder[0].weight).abs().max() > 1e-3


def test_what_cannot_be_trained_is_refused_before_it_begins(some):
    vqvae = tokenizer()
    with pytest.raises(ValueError, match="test"):
        stages.train_decoder(DECODER_TINY, vqvae, some, test=some.subset(slice(0, 1)), progress=False)
    vqvae.decoder = FabricDecoder.like(vqvae.decoder)
    with pytest.raises(ValueError, match="decoder"):
        stages.train_decoder(DECODER_TINY, vqvae, some, progress=False)
    for wrong in ({"mse": -1.0}, {"matching": math.nan}, {"optimizer": "muon"}, {"weight_decay": 0.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            dataclasses.replace(DECODER_TINY, **wrong)


def test_another_start_is_another_run(tmp_path, some):
    path, vqvae = tmp_path / "fabrics.safetensors", tokenizer()
    first = stages.train_decoder(DECODER_TINY, vqvae, some, path=path, progress=False)
    with torch.no_grad():
        vqvae.decoder[0].bias += 1
    second = stages.train_decoder(DECODER_TINY, vqvae, some, path=path, progress=False)
    assert not same_weights(first, second)
    assert same_weights(second, stages.train_decoder(DECODER_TINY, vqvae, some, path=path, progress=False))


def test_the_second_loss_is_judged_by_the_discriminator_after_its_step():
    _, stage = a_stage(fabrics=False, matching=0.0, mse=0.0)
    losses = stage.losses(Batch(torch.arange(16), generator=seeded()))
    next(losses)
    with torch.no_grad():
        stage.modules["discriminator"].verdict.bias += 100
    assert next(losses).item() == pytest.approx(0, abs=1e-6)  # whatever is drawn passes for real now


def test_a_trained_decoder_fits_its_tokenizer_and_no_other(tmp_path, some):
    model = run(DECODER_TINY, some, tmp_path / "fabrics.safetensors")
    same = checkpoints.load_decoder("fabrics", tmp_path / "fabrics.safetensors", vqvae=tokenizer())
    assert same_weights(model, same) and not same.training
    with pytest.raises(ValueError, match="decoders"):  # names the command that trains one
        checkpoints.load_decoder("fabrics", tmp_path / "fabrics.safetensors")
    with pytest.raises(ValueError, match="FabricDecoder"):
        checkpoints.load_decoder("crisp", tmp_path / "fabrics.safetensors", vqvae=tokenizer())
    with pytest.raises(ValueError, match="name"):
        checkpoints.load_decoder("soft")


# --- the shipped ones ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def figures(test):
    """Of each decoder, over the embedded test set: {name: figures}."""
    vqvae, critic = checkpoints.load_vqvae(shipped=True), checkpoints.load_classifier("critic", shipped=True)
    decoders = {"soft": vqvae.decoder}
    decoders |= {name: checkpoints.load_decoder(name, shipped=True, vqvae=vqvae) for name in checkpoints.DECODERS}
    codes = encode_pixels(vqvae, test.pixels)
    return {n: evaluation.evaluate_decoder(d, vqvae, codes, test.pixels, critic) for n, d in decoders.items()}


def test_the_shipped_decoders_draw_more_like_real_pictures(figures):
    assert figures["crisp"]["fid"] < 0.5 * figures["soft"]["fid"]
    assert figures["fabrics"]["fid"] < 0.8 * figures["soft"]["fid"]
    assert figures["soft"]["sharpness"] < 0.85 and all(figures[n]["sharpness"] > 0.93 for n in ("crisp", "fabrics"))


def test_they_pay_for_it_in_squared_error(figures):
    soft, crisp, fabrics = (figures[name]["mse"] for name in ("soft", "crisp", "fabrics"))
    assert soft < crisp < 0.0065 and 1.7 * soft < fabrics < 2.3 * soft  # a draw from the posterior has twice the least


def test_a_pair_writes_the_same_codes_with_any_decoder(test):
    soft, crisp, fabrics = (vqlib.load_pair(decoder=name, shipped=True) for name in ("soft", "crisp", "fabrics"))
    assert type(crisp.vqvae.decoder) is Decoder and type(fabrics.vqvae.decoder) is FabricDecoder
    images = data.to_images(test.pixels[:20])
    for pair in (crisp, fabrics):
        assert checkpoints.tokenizer_id(pair.vqvae) == checkpoints.tokenizer_id(soft.vqvae)
        assert torch.equal(pair.encode(images), soft.encode(images))
        assert same_weights(pair.transformer, soft.transformer)
    drawn = crisp.generate("Shirt", 3, seed=5)
    assert not torch.equal(drawn, soft.generate("Shirt", 3, seed=5))
    assert torch.equal(drawn, crisp.generate("Shirt", 3, seed=5))
    assert "decoder: shipped weights, recipe 'crisp'" in repr(crisp) and "decoder" not in repr(soft)


def test_fabrics_differ_in_more_than_a_few_pixels(test):
    pair, images = vqlib.load_pair(decoder="fabrics", shipped=True), data.to_images(test.pixels[test.labels == 6][:10])
    drawn = pair.fabrics(images, n=8, seed=1)
    assert drawn.shape == (80, 1, 28, 28) and torch.equal(drawn, pair.fabrics(images, n=8, seed=1))
    spread = drawn.reshape(10, 8, -1).div(2).var(1).mean().item()
    assert spread > 0.002  # the same order as the error that the codes leave open
    assert not torch.equal(drawn, pair.fabrics(images, n=8, seed=2))
    means = drawn.reshape(10, 8, 1, 28, 28).mean(1)
    assert torch.cdist(means.flatten(1), images.flatten(1)).argmin(1).tolist() == list(range(10))  # each in its place
    with pytest.raises(ValueError, match="FabricDecoder"):
        vqlib.load_pair(shipped=True).fabrics(images)
    with pytest.raises(ValueError, match="n must"):
        pair.fabrics(images, n=0)


def test_drawn_by_leaves_the_pair_alone():
    pair = vqlib.load_pair(shipped=True)
    before = pair.vqvae.decoder
    other = pair.drawn_by(checkpoints.load_decoder(shipped=True))
    assert pair.vqvae.decoder is before and other.vqvae.encoder is pair.vqvae.encoder
    assert other.vqvae.quantizer is pair.vqvae.quantizer and not other.vqvae.training


def test_a_decoder_that_does_not_fit_is_refused(tmp_path):
    pair, own = vqlib.load_pair(shipped=True), vqlib.pair.Pair(tokenizer(), None)
    with pytest.raises(ValueError, match="decoder"):
        vqlib.load_pair(decoder="sharp")
    for wrong in ("crisp", None, pair.vqvae):
        with pytest.raises(ValueError, match="decoder"):
            pair.drawn_by(wrong)
    with pytest.raises(ValueError, match="tokenizer"):
        own.drawn_by(checkpoints.load_decoder(shipped=True))
    for name, model in zip(("vqvae", "transformer"), pair, strict=True):
        checkpoints.save_model(tmp_path / f"{name}.safetensors", model, **model.info)
    with pytest.raises(FileNotFoundError, match=r"crisp\.safetensors.*decoders"):
        vqlib.load_pair(tmp_path, decoder="crisp")


def test_the_shipped_recipe_is_the_one_of_the_package():
    decoder = checkpoints.load_decoder(shipped=True)
    assert decoder.info["recipe"] == CRISP.as_json()
