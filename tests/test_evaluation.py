"""The measures, held against slow and obvious versions of them."""

import math

import numpy as np
import pytest
import torch
from conftest import lively_transformer, seeded

from vqlib import data, evaluation
from vqlib.sampling import log_likelihood
from vqlib.vqvae import VQVAE, VQVAEConfig


@pytest.fixture
def some(test):
    return test.subset(torch.arange(23))


def test_errors_are_on_the_scale_from_zero_to_one():
    board, grey = torch.ones(2, 1, 28, 28), torch.zeros(2, 1, 28, 28)
    board[..., ::2] = -1
    assert (
        evaluation.mse(board, -board) == 1 and evaluation.mse(board, grey) == 0.25 and evaluation.mse(grey, grey) == 0
    )
    assert evaluation.mse(board.bfloat16(), -board.half()) == 1  # any float dtype
    pixels = torch.tensor([0, 51]).to(torch.uint8).repeat_interleave(784).reshape(2, 28, 28)  # 51 / 255 = 0.2
    first, second = data.to_images(pixels)
    assert evaluation.mse(first[None], second[None]) == pytest.approx(0.04, rel=1e-5)
    with pytest.raises(ValueError, match="others"):
        evaluation.mse(board, board[:1])  # it would be broadcast


def test_sharpness_is_the_mean_difference_of_neighbours_both_ways():
    stripes = torch.ones(1, 1, 28, 28)
    stripes[..., ::2] = -1
    assert evaluation.sharpness(stripes) == evaluation.sharpness(stripes.mT) == 0.5
    with pytest.raises(ValueError, match="images"):
        evaluation.sharpness(torch.zeros(0, 1, 28, 28))


def test_psnr_is_in_decibels():
    assert evaluation.psnr(1.0) == 0 and evaluation.psnr(0.01) == pytest.approx(20)
    assert evaluation.psnr(0.005) - evaluation.psnr(0.01) == pytest.approx(10 * math.log10(2))
    assert evaluation.psnr(0) == math.inf
    with pytest.raises(ValueError, match="mean_squared_error"):
        evaluation.psnr(-1e-9)


def test_reconstruct_is_decode_over_batches(vqvae):
    codes = torch.randint(64, (23, 7, 7), generator=seeded())
    images = evaluation.reconstruct(vqvae.float(), codes, batch_size=10)
    assert images.shape == (23, 1, 28, 28) and not images.requires_grad
    assert (images - torch.cat([vqvae.decode(picture[None]) for picture in codes])).abs().max() < 1e-5
    assert evaluation.reconstruct(vqvae.bfloat16(), codes[:2]).dtype == torch.float32


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


def test_a_larger_codebook_is_measured_as_a_whole(test):
    torch.manual_seed(0)
    vqvae = VQVAE(VQVAEConfig(channels=4, num_codes=128)).eval()
    latents = vqvae.encoder(data.to_images(test.pixels[:40])).detach().movedim(1, -1).flatten(0, 2)
    vqvae.quantizer.init_from(latents, seeded())
    figures = evaluation.evaluate_vqvae(vqvae, test.subset(torch.arange(40)))
    assert figures["codes_used"] > 64 and figures["perplexity"] > 64


def test_evaluate_transformer_agrees_with_a_forward_pass(transformer, some):
    codes = torch.randint(64, (23, 7, 7), generator=seeded())
    figures = evaluation.evaluate_transformer(transformer, codes, some.labels, batch_size=10)
    with torch.no_grad():
        logits = transformer(torch.cat([64 + some.labels[:, None], codes.flatten(1)[:, :48]], 1))[..., :64]
    nats = -logits.log_softmax(-1).gather(-1, codes.flatten(1)[..., None])[..., 0]  # (23, 49)
    assert figures["nats_per_code"] == pytest.approx(nats.mean().item(), rel=1e-9) and figures["pictures"] == 23
    assert figures["bits_per_picture"] == pytest.approx(nats.sum(1).mean().item() / math.log(2), rel=1e-9)
    assert np.array(figures["nats_by_position"]) == pytest.approx(nats.mean(0).reshape(7, 7).numpy(), abs=1e-4)


def test_nothing_to_measure_is_refused(vqvae, transformer, test):
    empty = test.subset(slice(0))
    with pytest.raises(ValueError, match="number of codes"):
        evaluation.evaluate_vqvae(vqvae.float(), empty)
    with pytest.raises(ValueError, match="number of codes"):
        evaluation.evaluate_transformer(transformer, torch.zeros(0, 7, 7, dtype=torch.int64), empty.labels)


@pytest.mark.parametrize("batch_size", [7, 20, 1000])
def test_nearest_neighbours_agree_with_brute_force_across_batches(train, batch_size):
    pixels = train.pixels[:60]
    queries = data.to_images(train.pixels[60:90]) * 0.9 + torch.randn(30, 1, 28, 28, generator=seeded()) * 0.02
    index, distance = evaluation.nearest_neighbours(queries, pixels, batch_size)
    assert index.dtype == torch.int64 and len(index.unique()) > 5 and index.max() > 40
    for i, query in enumerate(queries):
        errors = [(((query[0] + 1) / 2 - p / 255) ** 2).mean().item() for p in pixels]
        assert index[i] == errors.index(min(errors)) and distance[i].item() == pytest.approx(min(errors), rel=1e-3)


def test_a_training_picture_is_its_own_nearest_neighbour(train):
    pixels, chosen = train.pixels[:60], torch.tensor([59, 0, 33])
    index, distance = evaluation.nearest_neighbours(data.to_images(pixels[chosen]), pixels, batch_size=25)
    assert torch.equal(index, chosen) and distance.max() < 1e-6


# --- samples ---------------------------------------------------------------------------------------------------------


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def test_frechet_distance_of_one_feature_is_the_textbook_formula():
    a, b = normal(50, 1), normal(80, 1, seed=1) * 3 + 2
    expected = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    assert evaluation.frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_distance_agrees_with_the_eigenvalues_of_the_product():
    a, b = (normal(200, 6, seed=s) @ normal(6, 6, seed=s + 5) + s for s in (0, 1))
    product = np.cov(a.numpy().T) @ np.cov(b.numpy().T)
    root = np.sqrt(np.linalg.eigvals(product).astype(complex)).real.sum()
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum().item()
    expected = shift + np.cov(a.numpy().T).trace() + np.cov(b.numpy().T).trace() - 2 * root
    assert evaluation.frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)


def test_frechet_distance_to_itself_is_nothing_and_a_shift_is_its_square():
    a = normal(300, 8).float()
    a[:, 7] = a[:, 0]  # a feature too many: the covariance has no inverse
    assert evaluation.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert evaluation.frechet_distance(a, a + 2) == pytest.approx(32, rel=1e-4)
    assert evaluation.frechet_distance(a, a + 2) == pytest.approx(evaluation.frechet_distance(a + 2, a), rel=1e-6)
    for others, name in ((a[:1], "number of pictures"), (a[:, :3], "others"), (a * math.nan, "others")):
        with pytest.raises(ValueError, match=name):
            evaluation.frechet_distance(a, others)


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_coverage_agrees_with_a_slow_loop(k, dtype):
    real, samples = normal(60, 3).to(dtype), (normal(40, 3, seed=1) * 1.5).to(dtype)
    covered = 0
    for i, point in enumerate(real.tolist()):
        others = sorted(math.dist(point, other) for j, other in enumerate(real.tolist()) if j != i)
        covered += min(math.dist(point, s) for s in samples.tolist()) <= others[k - 1]
    assert evaluation.coverage(real, samples, k) == pytest.approx(covered / 60) and 0 < covered < 60


def test_coverage_sees_what_is_missing():
    real = normal(200, 4).float()
    real[100:] += 50
    assert evaluation.coverage(real, real) == 1
    assert evaluation.coverage(real, real[:100]) == 0.5  # one of two clusters is never drawn
    assert evaluation.coverage(real, real[:1].repeat(200, 1)) < 0.1  # one picture, again and again
    for samples, k, name in ((real, 0, "k"), (real, 200, "k"), (real[:0], 5, "samples"), (real[:, :2], 5, "samples")):
        with pytest.raises(ValueError, match=name):
            evaluation.coverage(real, samples, k)


def test_agreement_is_counted_class_by_class():
    log_probs = torch.eye(10)[torch.tensor([0, 0, 1, 2])].log()
    shares = evaluation.agreement(log_probs, torch.tensor([0, 1, 1, 2]))
    assert shares[:3].tolist() == [1.0, 0.5, 1.0] and shares[3:].isnan().all()
    with pytest.raises(ValueError, match="labels"):
        evaluation.agreement(log_probs, torch.tensor([0, 1]))


@pytest.mark.parametrize("vocabulary", [{}, {"num_codes": 32, "num_classes": 3}])
def test_bayes_classes_are_those_with_the_highest_likelihood(vocabulary):
    transformer = lively_transformer(**vocabulary)
    config = transformer.config
    codes = torch.randint(config.num_codes, (9, 7, 7), generator=seeded())
    guess = evaluation.bayes_classes(transformer, codes, batch_size=4)
    for picture, label in zip(codes, guess, strict=True):
        classes = torch.arange(config.num_classes)[:, None]
        scores = [log_likelihood(transformer, picture[None], c).item() for c in classes]
        assert scores.index(max(scores)) == label
    assert len(guess.unique()) > 1
