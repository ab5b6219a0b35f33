"""Data sets in memory, and the embedded mini set. Where the files come from is tested in test_sources.py."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

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


# --- a picture of one's own ------------------------------------------------------------------------------------------


def drawn(height, width, ground, piece):
    """A picture of ``ground`` with a rectangle of ``piece`` in its middle half: (H, W) uint8."""
    grey = np.full((height, width), ground, np.uint8)
    grey[height // 4 : -(height // 4), width // 4 : -(width // 4)] = piece
    return grey


def loaded(source, **options):
    images = data.load_picture(source, **options)
    assert images.shape == (1, 1, 28, 28) and images.dtype == torch.float32
    return data.to_pixels(images)[0]


def test_a_picture_of_28_by_28_comes_back_exactly(test, tmp_path):
    for i, pixels in enumerate(test.pixels[::25]):
        grey = Image.fromarray(pixels.numpy())
        for kind in ("L", "RGB", "RGBA", "LA"):
            grey.convert(kind).save(tmp_path / f"{i}.png")
            assert torch.equal(loaded(tmp_path / f"{i}.png"), pixels)
        Image.fromarray(255 - pixels.numpy()).save(tmp_path / "negative.png")  # as Zalando photographed it
        assert torch.equal(loaded(tmp_path / "negative.png"), pixels)
        assert torch.equal(loaded(tmp_path / "negative.png", invert=False), 255 - pixels)
        assert torch.equal(loaded(grey, invert=True), 255 - pixels)


GREY = drawn(28, 28, 0, 204)
FLOATS = (GREY / 255).astype(np.float32)
SOURCES = {
    "uint8 array": GREY,
    "uint8 tensor": torch.from_numpy(GREY),
    "colours": np.stack([GREY] * 3, -1),
    "colours and alpha": torch.from_numpy(np.stack([GREY] * 3 + [GREY * 0 + 255], -1)),
    "floats": FLOATS,
    "float64": FLOATS.astype(np.float64),
    "float tensor": torch.from_numpy(FLOATS),
    "with a gradient": torch.from_numpy(FLOATS).requires_grad_(),
    "float16": torch.from_numpy(FLOATS).half(),
    "turned": np.rot90(np.asfortranarray(GREY), 2),
    "PIL": Image.fromarray(GREY),
    "palette": Image.fromarray(GREY).convert("P"),
    "CMYK": Image.fromarray(GREY).convert("RGB").convert("CMYK"),
    "16 bits": Image.fromarray(GREY.astype(np.uint16) * 257),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_picture_may_be_an_array_a_tensor_or_of_pil(kind):
    assert torch.equal(loaded(SOURCES[kind]), torch.from_numpy(GREY))


def test_colours_become_grey_by_their_brightness():
    colours = np.zeros((28, 28, 3), np.uint8)
    colours[10:18, 4:10, 0], colours[10:18, 10:16, 1], colours[10:18, 16:22, 2] = 255, 255, 255
    grey = loaded(colours)
    assert grey[14, [0, 6, 12, 18]].tolist() == [0, 76, 150, 29]  # 0.299, 0.587, 0.114 of 255


@pytest.mark.parametrize("size", [(56, 56), (112, 40), (40, 112), (14, 14), (12, 8), (300, 451)])
def test_the_longer_side_becomes_28_and_the_piece_stands_in_the_middle(size):
    grey = loaded(drawn(*size, 255, 40))
    lit = (grey > 100).nonzero()
    for side, length in enumerate(size):
        expected = 28 * length / max(size) / 2
        first, last = lit[:, side].min().item(), lit[:, side].max().item()
        assert abs((first + last) / 2 - 13.5) <= 0.5 and abs(last - first + 1 - expected) <= 2
    assert 200 <= grey.max() <= 255 and not grey[0].any() and not grey[:, 0].any()


@pytest.mark.parametrize("piece", [20, 235])
def test_what_is_transparent_is_ground(piece, tmp_path):
    """Whatever colour is hidden there; and both dark and light pieces are seen."""
    for hidden in (0, 130, 255):
        alpha = drawn(60, 60, 0, 255)
        Image.merge("LA", [Image.fromarray(drawn(60, 60, hidden, piece)), Image.fromarray(alpha)]).save(
            tmp_path / "x.png"
        )
        grey = loaded(tmp_path / "x.png")
        assert grey[0, 0] == 0 and grey[14, 14] == 235
    empty = np.zeros((28, 28, 4), np.uint8)
    assert not loaded(empty).any()


def test_a_photograph_is_turned_the_way_it_was_held(tmp_path):
    grey = drawn(28, 28, 0, 0)
    grey[2:5, 3:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    Image.fromarray(np.rot90(grey)).save(tmp_path / "x.png", exif=exif)
    assert torch.equal(loaded(tmp_path / "x.png"), torch.from_numpy(grey))


def test_a_jpeg_and_a_path_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    Image.fromarray(drawn(280, 280, 250, 30)).save(tmp_path / "shirt.jpg", quality=95)
    for source in ("~/shirt.jpg", tmp_path / "shirt.jpg", str(tmp_path / "shirt.jpg")):
        grey = loaded(source)
        assert abs(int(grey[14, 14]) - 225) < 5 and grey[0].max() < 10


@pytest.mark.parametrize("cut", [0, 10, 60, 200])
def test_a_broken_picture_is_refused_in_words(tmp_path, cut):
    content = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(content, "PNG")
    (tmp_path / "x.png").write_bytes(content.getvalue()[:cut])
    with pytest.raises(ValueError, match="source must .*x.png"):
        data.load_picture(tmp_path / "x.png")


def test_a_missing_picture_is_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "shirt.png").replace("\\", ".")):
        data.load_picture("shirt.png")


NO_PICTURES = [
    np.zeros((3, 5, 28)),
    np.zeros((1, 28, 28), np.uint8),
    torch.zeros(1, 1, 28, 28),
    torch.full((28, 28), -1.0),
    np.full((28, 28), 255.0),
    np.full((28, 28), np.nan),
    np.zeros((28, 28), np.int64),
    np.zeros((28, 28), object),
    np.zeros((0, 28), np.uint8),
    np.zeros(28),
    torch.tensor(1.0),
    None,
    7,
    [[0, 255]],
    "\0",
    b"x",
    ".",
]


@pytest.mark.parametrize("source", NO_PICTURES, ids=lambda s: repr(s)[:30])
def test_what_is_no_picture_is_refused(source):
    with pytest.raises(ValueError, match="source must"):
        data.load_picture(source)


@pytest.mark.parametrize("ground", [120, 200, 230, 255])
def test_the_ground_of_a_photograph_becomes_black(ground):
    drawn = np.full((200, 150), ground, np.uint8)
    drawn[50:150, 40:110] = 30
    picture = data.load_picture(drawn, invert=True)
    assert picture.min() == -1 and (picture == -1).float().mean() > 0.5 and picture[0, 0, 14, 14] > 0
