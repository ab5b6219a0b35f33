"""Data sets in memory, and the embedded mini set. Where the files come from is tested in test_sources.py."""

import warnings

import numpy as np
import pytest
import torch

from vqlib import data, sources

PIXELS, LABELS = torch.zeros(5, 28, 28, dtype=torch.uint8), torch.arange(5)

# --- data sets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pixels, labels, wrong",
    [
        (PIXELS.numpy(), LABELS, "pixels"),
        (PIXELS.float(), LABELS, "pixels"),
        (PIXELS[:, None], LABELS, "pixels"),
        (PIXELS, LABELS.tolist(), "labels"),
        (PIXELS, LABELS.int(), "labels"),
        (PIXELS, LABELS[:4], "labels"),
        (PIXELS, LABELS + 6, "labels"),
        (PIXELS, LABELS - 1, "labels"),
    ],
)
def test_a_dataset_of_ones_own_is_checked_when_it_is_made(pixels, labels, wrong):
    with pytest.raises(ValueError, match=wrong):
        data.Dataset(pixels, labels, "mine")


def test_a_dataset_prints_in_a_line_and_can_be_empty():
    own = data.Dataset(PIXELS, LABELS, "mine")
    assert repr(own) == "Dataset(source='mine')" and own == own and own != data.Dataset(PIXELS, LABELS, "mine")
    assert len(own.subset(LABELS > 9)) == 0


def test_a_subset_keeps_pictures_labels_and_source_together(train):
    part = train.subset(torch.tensor([7, 3]))
    assert torch.equal(part.pixels, train.pixels[[7, 3]]) and torch.equal(part.labels, train.labels[[7, 3]])
    assert part.source == train.source


# --- load ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["validation", "", None, 0, ["train"]])
def test_another_split_is_refused(split):
    for load in (data.load, data.load_mini):
        with pytest.raises(ValueError, match="split"):
            load(split)


def test_another_data_set_is_refused():
    with pytest.raises(ValueError, match="name.*KMNIST.*'CIFAR'.*Dataset"):
        data.load("train", name="CIFAR")
    with pytest.raises(ValueError, match="mini"):
        data.load("train", mini=True, name="MNIST")


@pytest.fixture
def nowhere(monkeypatch):
    """Looking for files is an error."""
    monkeypatch.setattr(sources, "load", lambda *arguments: pytest.fail("it looked for files"))


def test_asked_for_the_mini_set_comes_without_a_warning_or_a_look_elsewhere(nowhere, monkeypatch):
    monkeypatch.setenv("VQLIB_DATA", "nowhere")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(data.load("train", mini=True)) == 2000


def test_fast_mode_takes_the_mini_set_unless_told_otherwise(nowhere, monkeypatch):
    monkeypatch.setenv("VQLIB_FAST", "1")
    assert data.load("train").source == "MINI SET (2,000 of 60,000 train pictures)"
    for options in ({"mini": False}, {"name": "MNIST"}):
        with pytest.raises(pytest.fail.Exception, match="it looked for files"):
            data.load("train", **options)


# --- the mini set ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split, each", [("train", 200), ("test", 50)])
def test_the_mini_set_has_real_pictures_of_every_class(split, each):
    dataset = data.load_mini(split)
    assert dataset.pixels.dtype == torch.uint8 and dataset.pixels.shape == (10 * each, 28, 28)
    assert dataset.labels.dtype == torch.int64 and dataset.labels.bincount().tolist() == [each] * 10
    assert dataset.pixels.float().flatten(1).std(1).min() > 5
    mean = torch.stack([dataset.pixels[dataset.labels == c].float().mean(0) for c in range(10)])
    trouser, bag, boot = mean[1], mean[8], mean[9]  # labels belong to the pictures: trousers are narrow, boots are tall
    assert trouser[:, :6].mean() < 10 < bag[:, :6].mean() and boot[22:].mean() > 3 * boot[:4].mean()
    assert not torch.equal(dataset.labels, dataset.labels.sort().values)  # mixed: any first part has all classes


def test_the_mini_set_shares_no_picture_between_train_and_test(train, test):
    seen = {p.numpy().tobytes() for p in train.pixels}
    assert len(seen) == 2000 and not any(p.numpy().tobytes() in seen for p in test.pixels)


@pytest.mark.parametrize("content", [None, b"", b"PK", b"<html>Please log in</html>"])
def test_a_damaged_mini_set_is_named_with_its_remedy(tmp_path, monkeypatch, content):
    monkeypatch.setattr(data, "MINI_FILE", tmp_path / "mini.npz")
    if content is not None:
        data.MINI_FILE.write_bytes(content)
    with pytest.raises(ValueError, match="mini.npz.*git checkout"):
        data.load_mini("train")


# --- pixels and images -----------------------------------------------------------------------------------------------


def test_all_256_grey_values_survive_the_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(49).reshape(-1, 28, 28)
    images = data.to_images(pixels)
    assert images.shape == (len(pixels), 1, 28, 28) and images.dtype == torch.float32
    assert images.min() == -1 and images.max() == 1
    assert torch.equal(data.to_pixels(images), pixels)
    assert torch.equal(data.to_pixels(images.double()), pixels)
    assert (images[:, 0] - (pixels / 255 * 2 - 1)).abs().max() < 1e-6


def test_to_pixels_rounds_and_clips():
    for value, pixel in ((-1.5, 0), (1.5, 255), (0.0, 128), (-1 + 2.4 / 127.5, 2), (-1 + 2.6 / 127.5, 3)):
        assert data.to_pixels(torch.full((1, 28, 28), value)).unique().tolist() == [pixel]


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(2, 28, 28),
        torch.zeros(2, 28, 27, dtype=torch.uint8),
        torch.zeros(784, dtype=torch.uint8),
        torch.zeros(2, 28, 28, dtype=torch.int64),
        np.zeros((2, 28, 28), np.uint8),
    ],
)
def test_to_images_refuses_what_are_no_pixels(pixels):
    with pytest.raises(ValueError, match="pixels"):
        data.to_images(pixels)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 1, 28, 28, dtype=torch.uint8),
        torch.zeros(2, 28, 28),
        torch.zeros(2, 3, 28, 28),
        torch.zeros(2, 1, 32, 32),
        torch.full((2, 1, 28, 28), torch.nan),
    ],
)
def test_to_pixels_refuses_what_are_no_images(images):
    with pytest.raises(ValueError, match="images"):
        data.to_pixels(images)


# --- splits ----------------------------------------------------------------------------------------------------------


def numbered(n):
    """n pictures that hold their numbers."""
    pixels = torch.zeros(n, 28, 28, dtype=torch.uint8)
    pixels[:, 0, 0], pixels[:, 0, 1] = torch.arange(n) // 256, torch.arange(n) % 256
    return data.Dataset(pixels, torch.arange(n) % 10, "made up")


def numbers(dataset):
    return dataset.pixels[:, 0, 0].int() * 256 + dataset.pixels[:, 0, 1]


def test_original_defect_5_validation_pictures_are_not_among_the_training_pictures():
    part, held_out = data.split_validation(numbered(600), 50)
    assert (len(part), len(held_out)) == (550, 50)
    assert sorted(numbers(part).tolist() + numbers(held_out).tolist()) == list(range(600))  # each once: none is in both
    assert numbers(held_out).max() > 300 and numbers(held_out).min() < 300  # drawn from everywhere


def test_the_same_seed_holds_out_the_same_pictures():
    first, again, other = (numbers(data.split_validation(numbered(600), 50, seed=s)[1]) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    state = torch.get_rng_state()
    data.split_validation(numbered(600), 50)
    assert torch.equal(torch.get_rng_state(), state)


def test_pictures_and_labels_stay_together(train):
    known = {p.numpy().tobytes(): int(y) for p, y in zip(train.pixels, train.labels, strict=True)}
    for part in data.split_validation(train, 300):
        assert [known[p.numpy().tobytes()] for p in part.pixels] == part.labels.tolist()


@pytest.mark.parametrize("n", [0, -1, 20, 21, 2.5, True, None])
def test_split_validation_refuses_to_empty_a_part(n):
    with pytest.raises(ValueError, match="n_validation"):
        data.split_validation(numbered(20), n)


def test_the_fingerprint_tells_data_sets_apart(train):
    some = train.subset(torch.arange(100))
    assert data.fingerprint(some) == data.fingerprint(train.subset(torch.arange(100)))
    darker, relabelled = some.pixels.clone(), some.labels.clone()
    darker[5, 3, 3] ^= 1
    relabelled[5] = (relabelled[5] + 1) % 10
    others = [
        data.Dataset(darker, some.labels, ""),
        data.Dataset(some.pixels, relabelled, ""),
        some.subset(torch.arange(99, -1, -1)),
        some.subset(torch.arange(99)),
    ]
    assert len({data.fingerprint(d) for d in [some, *others]}) == 5
