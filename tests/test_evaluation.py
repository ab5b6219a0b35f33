import math

import numpy as np
import pytest
import torch

from vqlib import data, evaluation
from vqlib.sampling import log_likelihood
from vqlib.tokens import encode_pixels, perplexity, usage
from vqlib.vqvae import VQVAE, VQVAEConfig


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


# --- samples ---------------------------------------------------------------------------------------------------------


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_frechet_distance_of_one_feature_is_the_textbook_formula():
    a, b = (torch.randn(n, 1, dtype=torch.float64, generator=seeded(n)) * s + m for n, s, m in ((50, 1, 0), (80, 3, 2)))
    expected = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    assert evaluation.frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_distance_agrees_with_the_eigenvalues_of_the_product():
    a, b = (torch.randn(200, 6, dtype=torch.float64, generator=seeded(s)) @ torch.randn(6, 6, dtype=torch.float64,
            generator=seeded(s + 5)) + s for s in (0, 1))
    product = np.cov(a.numpy().T) @ np.cov(b.numpy().T)
    root = np.sqrt(np.linalg.eigvals(product).astype(complex)).real.sum()
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum().item()
    expected = shift + np.cov(a.numpy().T).trace() + np.cov(b.numpy().T).trace() - 2 * root
    assert evaluation.frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)


def test_frechet_distance_to_itself_is_nothing_and_a_shift_is_its_square():
    a = torch.randn(300, 8, generator=seeded())
    a[:, 7] = a[:, 0]  # a feature too many: the covariance has no inverse
    assert evaluation.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert evaluation.frechet_distance(a, a + 2) == pytest.approx(32, rel=1e-4)
    assert evaluation.frechet_distance(a, a + 2) == pytest.approx(evaluation.frechet_distance(a + 2, a), rel=1e-6)
    with pytest.raises(ValueError, match="at least 2 pictures, got 300 and 1"):
        evaluation.frechet_distance(a, a[:1])


@pytest.mark.parametrize("k", [1, 5])
def test_coverage_agrees_with_a_slow_loop(k):
    real, samples = torch.randn(60, 3, generator=seeded()), torch.randn(40, 3, generator=seeded(1)) * 1.5
    covered = 0
    for i, point in enumerate(real):
        others = sorted(math.dist(point, other) for j, other in enumerate(real.tolist()) if j != i)
        covered += min(math.dist(point, s) for s in samples.tolist()) <= others[k - 1]
    assert evaluation.coverage(real, samples, k) == pytest.approx(covered / 60) and 0 < covered < 60


def test_coverage_sees_what_is_missing():
    real = torch.randn(200, 4, generator=seeded())
    real[100:] += 50
    assert evaluation.coverage(real, real) == 1
    assert evaluation.coverage(real, real[:100]) == 0.5  # one of two clusters is never written
    assert evaluation.coverage(real, real[:1].repeat(200, 1)) < 0.1  # one picture, again and again
    for k in (0, 200):
        with pytest.raises(ValueError, match=f"k must be a whole number in 1…199.*got {k}"):
            evaluation.coverage(real, real, k)


def test_agreement_is_counted_class_by_class():
    log_probs = torch.eye(10)[torch.tensor([0, 0, 1, 2])].log()
    labels = torch.tensor([0, 1, 1, 2])
    shares = evaluation.agreement(log_probs, labels)
    assert shares[:3].tolist() == [1.0, 0.5, 1.0] and shares[3:].isnan().all()


def test_bayes_classes_are_those_with_the_highest_likelihood(transformer):
    codes = torch.randint(64, (9, 7, 7), generator=seeded())
    guess = evaluation.bayes_classes(transformer, codes, batch_size=4)
    for picture, label in zip(codes, guess, strict=True):
        scores = [log_likelihood(transformer, picture[None], torch.tensor([c])).item() for c in range(10)]
        assert scores.index(max(scores)) == label
    assert len(guess.unique()) > 1


def test_a_larger_codebook_is_measured_as_a_whole(test):
    vqvae = VQVAE(VQVAEConfig(channels=4, num_codes=128)).eval()
    latents = vqvae.encoder(data.to_images(test.pixels[:40])).detach().movedim(1, -1).flatten(0, 2)
    vqvae.quantizer.init_from(latents, torch.Generator().manual_seed(0))
    figures = evaluation.evaluate_vqvae(vqvae, test.subset(torch.arange(40)))
    assert figures["codes_used"] > 64 and figures["perplexity"] > 64


# --- what 294 bits buy without learning ------------------------------------------------------------------------------


def test_nearest_patches_agree_with_a_slow_loop(test):
    images = data.to_images(test.pixels[:2])
    codebook = torch.rand(64, 16, generator=seeded()) * 2 - 1
    copies = evaluation.nearest_patches(images, codebook)
    for copy, image in zip(copies[:, 0], images[:, 0], strict=True):
        for top in range(0, 28, 4):
            for left in range(0, 28, 4):
                patch, drawn = (picture[top:top + 4, left:left + 4].flatten() for picture in (image, copy))
                errors = [((patch - code) ** 2).sum().item() for code in codebook]
                assert torch.equal(drawn, codebook[errors.index(min(errors))])
    assert torch.equal(evaluation.from_patches(evaluation.patches(images)), images)


def test_a_thumbnail_has_49_grey_values_of_64_levels():
    flat = torch.linspace(-1, 1, 64).reshape(64, 1, 1, 1).expand(64, 1, 28, 28)
    assert (evaluation.thumbnails(flat) - flat).abs().max() < 1e-6  # each of the 64 levels stays as it is
    between = evaluation.thumbnails(flat[:-1] + 0.4 * 2 / 63)
    assert (between - flat[:-1]).abs().max() < 1e-6  # what lies between goes to the nearer one
    corner = torch.full((1, 1, 28, 28), -1.0)
    corner[..., :4, :4] = 1.0  # one cell white
    thumbnail = evaluation.thumbnails(corner)
    assert thumbnail[0, 0, 0, 0] == 1 and thumbnail[0, 0, 8:, 8:].max() == -1
    shuffled = corner.clone()
    shuffled[..., :4, :4] = torch.tensor([1.0, -1.0]).repeat(8).reshape(4, 4)  # only a cell's mean counts
    assert (evaluation.thumbnails(shuffled)[0, 0, 0, 0] - 0.0).abs() < 2 / 63
