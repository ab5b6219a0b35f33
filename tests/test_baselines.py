import math

import pytest
import torch
from conftest import seeded

from vqlib import baselines, data
from vqlib.baselines import Histogram
from vqlib.tokens import Vocabulary

# --- 294 bits without learning ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [32, 64, 256])
def test_nearest_patches_agree_with_a_slow_loop(test, k):
    images = data.to_images(test.pixels[:2])
    codebook = torch.rand(k, 16, generator=seeded()) * 2 - 1
    copies = baselines.nearest_patches(images, codebook)
    for copy, image in zip(copies[:, 0], images[:, 0], strict=True):
        for top in range(0, 28, 4):
            for left in range(0, 28, 4):
                patch, drawn = (picture[top : top + 4, left : left + 4].flatten() for picture in (image, copy))
                errors = (codebook - patch).pow(2).sum(1)
                assert torch.equal(drawn, codebook[errors.argmin()])


def test_patches_are_put_back_together(test):
    images = data.to_images(test.pixels[:2])
    patches = baselines.patches(images)
    assert patches.shape == (98, 16) and torch.equal(patches[49 + 8], images[1, 0, 4:8, 4:8].flatten())
    assert torch.equal(baselines.from_patches(patches), images)


def test_a_thumbnail_has_49_grey_values_of_64_levels():
    flat = torch.linspace(-1, 1, 64).reshape(64, 1, 1, 1).expand(64, 1, 28, 28)
    assert (baselines.thumbnails(flat) - flat).abs().max() < 1e-6  # each of the 64 levels stays as it is
    between = baselines.thumbnails(flat[:-1] + 0.4 * 2 / 63)
    assert (between - flat[:-1]).abs().max() < 1e-6  # what lies between goes to the nearer one
    corner = torch.full((1, 1, 28, 28), -1.0)
    corner[..., :4, :4] = 1.0  # one cell white
    thumbnail = baselines.thumbnails(corner)
    assert thumbnail[0, 0, 0, 0] == 1 and thumbnail[0, 0, 8:, 8:].max() == -1
    shuffled = corner.clone()
    shuffled[..., :4, :4] = torch.tensor([1.0, -1.0]).repeat(8).reshape(4, 4)  # only a cell's mean counts
    assert baselines.thumbnails(shuffled)[0, 0, 0, 0].abs() < 2 / 63
    black_and_white = baselines.thumbnails(flat, levels=2)[..., 0, 0].flatten()
    assert black_and_white.tolist() == [-1.0] * 32 + [1.0] * 32


# --- histograms ------------------------------------------------------------------------------------------------------


def made_up(k=64):
    """60 pictures of classes 0…8 whose codes follow class and position: the very thing a histogram may know."""
    labels = torch.arange(60) % 9
    codes = (labels[:, None] * 5 + torch.arange(49) + torch.randint(0, 3, (60, 49), generator=seeded())) % k
    return codes.reshape(-1, 7, 7), labels


@pytest.mark.parametrize("k", [32, 64, 256])
@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("by_position", [False, True])
def test_a_histogram_is_the_counts_plus_one(k, by_class, by_position):
    codes, labels = made_up(k)
    log_probs = Histogram.fit(codes, labels, by_class, by_position, Vocabulary(k)).log_probs
    assert log_probs.shape == (10, 49, k)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(10, 49))
    for label, position in ((0, 0), (8, 48), (3, 20), (9, 5)):
        seen = [
            code
            for picture, y in zip(codes.flatten(1).tolist(), labels.tolist(), strict=True)
            if y == label or not by_class
            for at, code in enumerate(picture)
            if at == position or not by_position
        ]
        expected = [(seen.count(code) + 1) / (len(seen) + k) for code in range(k)]
        torch.testing.assert_close(log_probs[label, position].exp(), torch.tensor(expected))


def test_a_histogram_may_have_another_number_of_classes():
    codes, labels = made_up()
    histogram = Histogram.fit(codes, labels % 3, vocabulary=Vocabulary(num_classes=3))
    assert histogram.log_probs.shape == (3, 49, 64)


def test_flags_say_what_a_histogram_ignores():
    both, by_position, by_class, neither = (
        Histogram.fit(*made_up(), c, p).log_probs
        for c, p in ((True, True), (False, True), (True, False), (False, False))
    )
    assert torch.equal(by_position[0], by_position[7]) and not torch.equal(by_position[0, 0], by_position[0, 9])
    assert torch.equal(by_class[3, 0], by_class[3, 48]) and not torch.equal(by_class[0, 0], by_class[3, 0])
    assert torch.equal(neither[0, 0], neither[7, 30])
    assert not torch.equal(both[0], both[7]) and not torch.equal(both[0, 0], both[0, 9])


def test_knowing_more_lowers_the_nats():
    scores = [
        Histogram.fit(*made_up(), c, p).nats_per_code(*made_up())
        for c, p in ((False, False), (True, False), (True, True))
    ]
    assert math.log(64) > scores[0] > scores[1] > scores[2] > 0


def test_nats_per_code_agrees_with_a_slow_loop():
    codes, labels = made_up()
    histogram = Histogram.fit(codes[:40], labels[:40])
    total = sum(
        -histogram.log_probs[labels[i], position, codes[i].flatten()[position]].item()
        for i in range(40, 60)
        for position in range(49)
    )
    assert histogram.nats_per_code(codes[40:], labels[40:]) == pytest.approx(total / (20 * 49), rel=1e-5)


@pytest.mark.parametrize("k", [32, 64, 256])
def test_the_uniform_distribution_costs_ln_k(k):
    codes, labels = made_up(k)
    uniform = Histogram(torch.full((10, 49, k), -math.log(k)))
    assert uniform.nats_per_code(codes, labels) == pytest.approx(math.log(k))
    nothing_seen = Histogram.fit(codes[:0], labels[:0], vocabulary=Vocabulary(k))
    assert nothing_seen.nats_per_code(codes, labels) == pytest.approx(math.log(k), rel=1e-5)


@pytest.mark.parametrize("k", [32, 64, 256])
def test_a_histograms_samples_follow_its_frequencies(k):
    probs = torch.rand(10, 49, k, generator=seeded()).pow(8)
    probs[:, 7, 1:] = 0  # at position 7 there is only code 0
    probs[:, 7, 0] = 1
    probs /= probs.sum(-1, keepdim=True)
    histogram, labels = Histogram(probs.log()), torch.arange(10).repeat(300)
    codes = histogram.sample(labels, seeded(1))
    assert codes.shape == (3000, 7, 7) and codes.dtype == torch.int64
    assert (codes[:, 1, 0] == 0).all()
    for label, position in ((0, 0), (4, 48), (9, 10)):
        drawn = codes.flatten(1)[labels == label, position].bincount(minlength=k) / 300
        assert (drawn - probs[label, position]).abs().max() < 0.08
    assert torch.equal(codes, histogram.sample(labels, seeded(1)))
    assert not torch.equal(codes, histogram.sample(labels, seeded(2)))


def test_codes_and_labels_must_fit_each_other_and_the_vocabulary():
    codes, labels = made_up()
    with pytest.raises(ValueError, match="codes"):
        Histogram.fit(codes, labels, vocabulary=Vocabulary(32))
    with pytest.raises(ValueError, match="codes"):
        Histogram.fit(codes.flatten(1), labels)
    for wrong in (labels[:1], labels + 5, labels.float()):  # one label for all would broadcast
        with pytest.raises(ValueError, match="labels"):
            Histogram.fit(codes, wrong)
