"""The discrete VAE (notebook 08): the relaxation, the KL, the likelihood of pixels, and the third kind of quantizer."""

import math

import pytest
import torch
from conftest import DVAE_TINY, pictures, run, same_weights, seeded
from hypothesis import given
from hypothesis import strategies as st

from vqlib import checkpoints, data, dvae, evaluation
from vqlib.tokens import encode_pixels
from vqlib.vqvae import VQVAE, VQVAEConfig

GUMBEL = VQVAEConfig(channels=8, num_codes=16, code_dim=6, quantizer="gumbel")


@pytest.fixture
def model():
    """A small untrained discrete VAE, float64, in eval mode, whose logits are far from even."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VQVAE(GUMBEL).double().eval()
    model.encoder[-1].weight.data *= 20
    return model


def some_logits(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed)) * 2


# --- Gumbel-softmax --------------------------------------------------------------------------------------------------


def test_a_low_temperature_gives_one_code_and_a_high_one_an_even_mixture():
    logits, noise = some_logits(200, 8), dvae.gumbel_noise((200, 8), seeded(1)).double()
    chosen = torch.nn.functional.one_hot((logits + noise).argmax(-1), 8).double()
    assert (dvae.gumbel_softmax(logits, noise, 1e-5) - chosen).abs().max() < 1e-6
    assert (dvae.gumbel_softmax(logits, noise, 1e5) - 1 / 8).abs().max() < 1e-4
    between = dvae.gumbel_softmax(logits, noise, 0.5)
    assert torch.allclose(between.log(), ((logits + noise) / 0.5).log_softmax(-1))
    assert torch.allclose(between.sum(-1), torch.ones(200, dtype=torch.float64))


def test_the_code_in_front_is_a_draw_from_the_softmax():
    logits, n = some_logits(6), 20_000
    noise = dvae.gumbel_noise((n, 6), seeded(1))
    assert noise.dtype == torch.float32 and noise.isfinite().all()
    counts = dvae.gumbel_softmax(logits, noise, 0.3).argmax(-1).bincount(minlength=6)
    expected = n * logits.softmax(0)
    assert ((counts - expected) ** 2 / expected).sum() < 5 + 4 * math.sqrt(10)  # mean + 4 standard deviations
    assert torch.equal(noise, dvae.gumbel_noise((n, 6), seeded(1)))
    assert not torch.equal(noise, dvae.gumbel_noise((n, 6), seeded(2)))


@pytest.mark.parametrize("temperature", [1.0, 1 / 16])
def test_its_gradient_is_that_of_finite_differences(temperature):
    logits, noise = some_logits(5, 4).requires_grad_(), dvae.gumbel_noise((5, 4), seeded(1)).double()
    assert torch.autograd.gradcheck(lambda x: dvae.gumbel_softmax(x, noise, temperature), logits)


# --- the KL ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 70), st.integers(0, 1000), st.floats(0, 30))
def test_the_kl_is_pytorchs_and_lies_between_zero_and_ln_k(K, seed, scale):
    logits = torch.randn(3, 2, K, dtype=torch.float64, generator=seeded(seed)) * scale
    uniform = torch.distributions.Categorical(logits=torch.zeros(K, dtype=torch.float64))
    expected = torch.distributions.kl_divergence(torch.distributions.Categorical(logits=logits), uniform)
    kl = dvae.kl_to_uniform(logits)
    assert kl.shape == (3, 2) and torch.allclose(kl, expected, atol=1e-9)
    assert (kl > -1e-9).all() and (kl < math.log(K) + 1e-9).all()


def test_an_even_cell_pays_nothing_and_a_sure_one_ln_k():
    logits = torch.stack([torch.full((64,), 3.0), 100 * torch.nn.functional.one_hot(torch.tensor(5), 64)])
    assert dvae.kl_to_uniform(logits).tolist() == pytest.approx([0, math.log(64)], abs=1e-5)


# --- the likelihood of pixels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [-2.0, 0.0, 1.3])
@pytest.mark.parametrize("b", [0.1, 0.6, 0.9])  # at b ≥ 1 the density rises towards the ends: a sum would miss some
def test_the_logit_laplace_integrates_to_one_and_is_a_laplace_of_the_logit(mu, b):
    x = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000  # the middles of narrow strips of (0, 1)
    mu, ln_b = torch.tensor(mu, dtype=torch.float64), torch.tensor(math.log(b), dtype=torch.float64)
    nats = dvae.logit_laplace(x, mu, ln_b)
    assert (-nats).exp().mean().item() == pytest.approx(1, abs=3e-3)
    laplace = torch.distributions.Laplace(mu, ln_b.exp()).log_prob(x.logit())  # by the change of variables:
    assert torch.allclose(nats, -(laplace - (x * (1 - x)).log()))  # d logit(x) / dx = 1 / (x (1 - x))


@given(st.floats(0.1, 0.9), st.floats(-3, 1))
def test_a_pixel_costs_least_if_mu_is_its_logit(x, ln_b):
    x, offsets = torch.tensor(x, dtype=torch.float64), torch.linspace(-3, 3, 61, dtype=torch.float64)
    nats = dvae.logit_laplace(x, x.logit() + offsets, torch.tensor(ln_b, dtype=torch.float64))
    assert nats.argmin() == 30 and (nats[30:].diff() > 0).all() and (nats[:31].diff() < 0).all()


def test_pixels_are_squeezed_and_expanded_again():
    images = torch.linspace(-1, 1, 256, dtype=torch.float64)
    squeezed = dvae.squeeze_pixels(images)
    assert squeezed[[0, -1]].tolist() == pytest.approx([0.1, 0.9]) and (squeezed.diff() > 0).all()
    assert torch.allclose(dvae.expand_pixels(squeezed), images)
    assert dvae.expand_pixels(torch.tensor([0.0, 1.0])).tolist() == [-1, 1]  # what lies outside is cut off


# --- the schedules ---------------------------------------------------------------------------------------------------


def test_the_temperature_falls_and_the_kls_weight_rises():
    done = [i / 200 for i in range(201)]
    temperatures, weights = [dvae.temperature_at(d) for d in done], [dvae.kl_weight_at(d, 3.0) for d in done]
    assert temperatures == sorted(temperatures, reverse=True) and weights == sorted(weights)
    assert temperatures[0] == 1 and temperatures[150:] == pytest.approx([dvae.temperature_at(1)] * 51)
    assert 0 < temperatures[150] < temperatures[149] < 1
    assert weights[0] == 0 and weights[20:] == pytest.approx([3.0] * 181)


# --- the quantizer ---------------------------------------------------------------------------------------------------


def test_in_use_the_choice_is_hard(model, images):
    logits = model.encoder(images)
    assert logits.shape == (24, 16, 7, 7)
    quantized = model.quantizer(logits)
    assert torch.equal(quantized.codes, logits.argmax(1)) and len(quantized.codes.unique()) > 3
    assert torch.equal(quantized.latents, model.quantizer.codebook[quantized.codes].movedim(-1, 1))
    q = logits.softmax(1)
    expected = ((q * q.log()).sum(1) + math.log(16)).mean().item()  # nats per cell
    assert list(quantized.losses) == ["kl"] and quantized.losses["kl"].item() == pytest.approx(expected, rel=1e-5)
    output = model(images)
    assert torch.equal(output.quantized.codes, model.encode(images))
    assert torch.equal(output.images, model.decode(model.encode(images)))
    assert torch.equal(output.images, model.train()(images).images)  # in any mode


def test_without_noise_a_mixture_turns_into_the_likeliest_code(model, images):
    logits = model.encoder(images)
    expected = model.quantizer.lookup(model.encode(images))
    none = torch.zeros(24, 7, 7, 16, dtype=torch.float64)
    near = model.quantizer.relaxed(logits, none, 1e-9)
    assert near.shape == (24, 6, 7, 7) and (near - expected).abs().max() < 1e-6
    soft = model.quantizer.relaxed(logits, none, 1.0)
    slow = sum(logits.softmax(1)[:, k, None] * model.quantizer.codebook[k, :, None, None] for k in range(16))
    assert torch.allclose(soft, slow) and (soft - expected).abs().max() > 0.1


def test_noise_decides_cell_by_cell(model, images):
    logits, wanted = model.encoder(images), torch.randint(16, (24, 7, 7), generator=seeded())
    noise = 1e3 * torch.nn.functional.one_hot(wanted, 16).double()  # (B, 7, 7, K)
    assert torch.allclose(model.quantizer.relaxed(logits, noise, 1.0), model.quantizer.lookup(wanted))


def test_the_mixture_gives_the_encoder_a_gradient_and_the_choice_does_not(model, images):
    noise = dvae.gumbel_noise((24, 7, 7, 16), seeded()).double()
    model.quantizer.relaxed(model.encoder(images), noise, 1.0).pow(2).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in (*model.encoder.parameters(), model.quantizer.codebook))
    logits = model.encoder(images).detach().requires_grad_()
    model.quantizer(logits).latents.pow(2).sum().backward()
    assert logits.grad is None


def test_codes_do_not_depend_on_the_batch(model, test):
    codes = encode_pixels(model, test.pixels[:40])
    assert torch.equal(codes, encode_pixels(model, test.pixels[:40], batch_size=1))
    assert torch.equal(codes, encode_pixels(model.train(), test.pixels[:40], batch_size=7))


def test_the_decoder_draws_the_middle_of_each_pixels_distribution(model, images):
    latents = model.quantizer.lookup(model.encode(images))
    mu, ln_b = model.decoder.parameters_of(latents)
    assert mu.shape == ln_b.shape == (24, 1, 28, 28)
    drawn = model.decoder(latents)
    assert torch.allclose(drawn, ((1 / (1 + (-mu).exp()) - 0.5) / 0.4).clamp(-1, 1)) and drawn.abs().max() <= 1
    assert torch.equal(drawn, model.decode(model.encode(images)))


def test_a_discrete_vae_is_saved_and_loaded_as_a_vqvae(model, images, tmp_path):
    path, model = tmp_path / "dvae.safetensors", model.float()
    checkpoints.save_model(path, model)
    loaded = checkpoints.load_dvae(path)
    assert same_weights(loaded, model) and loaded.config == GUMBEL and not loaded.training
    assert torch.equal(loaded(images.float()).images, model(images.float()).images)
    assert same_weights(checkpoints.load_vqvae(path), model)
    assert checkpoints.tokenizer_id(model) != checkpoints.tokenizer_id(VQVAE(GUMBEL))


def test_the_figures_of_a_tokenizer_are_those_of_any_other(test):
    few = test.subset(torch.arange(0, 500, 10))
    model = run(DVAE_TINY, pictures(), test=few)
    codes = encode_pixels(model, few.pixels)
    error = (model.decode(codes) - data.to_images(few.pixels)).div(2).pow(2).mean().item()
    assert model.info["test"]["mse"] == pytest.approx(error, rel=1e-5)
    assert model.info["test"]["codes_used"] == len(codes.unique())
    assert model.info["test"] == evaluation.evaluate_vqvae(model, few)


@pytest.mark.parametrize("quantizer", ["soft", "", None, True])
def test_another_kind_of_quantizer_is_refused(quantizer):
    with pytest.raises(ValueError, match="quantizer.*gradient.*ema.*gumbel"):
        VQVAEConfig(quantizer=quantizer)
