import math

import pytest
import torch

from vqlib import data, evaluation
from vqlib.sampling import log_likelihood
from vqlib.tokens import encode_pixels, perplexity, usage


@pytest.fixture
def some(test):
    return test.subset(torch.arange(23))


def test_errors_are_on_the_scale_from_zero_to_one():
    black, white, grey = (torch.full((2, 1, 28, 28), value) for value in (-1.0, 1.0, 0.0))
    assert evaluation.mse(black, white) == 1 and evaluation.mse(black, grey) == 0.25 and evaluation.mse(grey, grey) == 0
    pixels = torch.tensor([0, 51]).to(torch.uint8).repeat_interleave(784).reshape(2, 28, 28)  # 51 / 255 = 0.2
    first, second = data.to_images(pixels)
    assert evaluation.mse(first[None], second[None]) == pytest.approx(0.04, rel=1e-5)


def test_psnr_is_in_decibels():
    assert evaluation.psnr(1.0) == 0 and evaluation.psnr(0.01) == pytest.approx(20)
    assert evaluation.psnr(0.005) - evaluation.psnr(0.01) == pytest.approx(10 * math.log10(2))


def test_reconstruct_is_decode_over_batches(vqvae):
    codes = torch.randint(64, (23, 7, 7), generator=torch.Generator().manual_seed(0))
    images = evaluation.reconstruct(vqvae.float(), codes, batch_size=10)
    assert images.shape == (23, 1, 28, 28) and not images.requires_grad
    assert (images - torch.cat([vqvae.decode(picture[None]) for picture in codes])).abs().max() < 1e-5


def test_evaluate_vqvae_agrees_with_a_slow_loop(vqvae, some):
    vqvae, errors, counts = vqvae.float(), [], [0] * 64
    for pixels in some.pixels:
        codes = vqvae.encode(data.to_images(pixels[None]))
        shown = (vqvae.decode(codes)[0, 0] + 1) / 2
        errors.append(((shown - pixels / 255) ** 2).mean().item())
        for code in codes.flatten().tolist():
            counts[code] += 1
    shares = [count / sum(counts) for count in counts if count]
    figures = evaluation.evaluate_vqvae(vqvae, some)
    assert figures["mse"] == pytest.approx(sum(errors) / 23, rel=1e-4)
    assert figures["psnr"] == pytest.approx(-10 * math.log10(sum(errors) / 23), rel=1e-4)
    assert figures["codes_used"] == len(shares) > 20 and figures["pictures"] == 23
    assert figures["perplexity"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-4)
    assert figures["perplexity"] == perplexity(usage(encode_pixels(vqvae, some.pixels)))


def test_evaluate_transformer_agrees_with_log_likelihood(transformer, vqvae, some):
    codes = encode_pixels(vqvae.float(), some.pixels)
    figures = evaluation.evaluate_transformer(transformer, codes, some.labels, batch_size=10)
    nats = -log_likelihood(transformer, codes, some.labels).mean().item() / 49
    assert figures["nats_per_code"] == pytest.approx(nats, rel=1e-9) and figures["pictures"] == 23
    assert figures["bits_per_picture"] == pytest.approx(nats * 49 / math.log(2), rel=1e-9)
    by_position = torch.tensor(figures["nats_by_position"])
    assert by_position.shape == (7, 7) and by_position.mean().item() == pytest.approx(nats, abs=1e-4)
    _, _, third = transformer(torch.cat([64 + some.labels[:, None], codes.flatten(1)[:, :2]], 1)).unbind(1)
    log_p = third[:, :64].log_softmax(-1).gather(1, codes[:, 0, 2, None])
    assert by_position[0, 2].item() == pytest.approx(-log_p.mean().item(), abs=1e-4)


@pytest.mark.parametrize("batch_size", [7, 20, 1000])
def test_nearest_neighbours_agree_with_brute_force_across_batches(train, batch_size):
    pixels = train.pixels[:60]
    generator = torch.Generator().manual_seed(0)
    queries = data.to_images(train.pixels[60:90]) * 0.9 + torch.randn(30, 1, 28, 28, generator=generator) * 0.02
    index, distance = evaluation.nearest_neighbours(queries, pixels, batch_size)
    assert index.dtype == torch.int64 and len(index.unique()) > 5 and index.max() > 40
    for i, query in enumerate(queries):
        errors = [(((query[0] + 1) / 2 - p / 255) ** 2).mean().item() for p in pixels]
        assert index[i] == errors.index(min(errors)) and distance[i].item() == pytest.approx(min(errors), rel=1e-3)


def test_a_training_picture_is_its_own_nearest_neighbour(train):
    pixels, chosen = train.pixels[:60], torch.tensor([59, 0, 33])
    index, distance = evaluation.nearest_neighbours(data.to_images(pixels[chosen]), pixels, batch_size=25)
    assert torch.equal(index, chosen) and distance.max() < 1e-6
