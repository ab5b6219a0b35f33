import gzip
import hashlib
import os
import urllib.error
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from vqlib import data

NAMES = [name for files in data.FILES.values() for name in files]


class Places:
    """A made-up data set of 12 + 8 pictures, and the places where `data.load` looks for it, all empty."""

    def __init__(self, folder):
        rng = np.random.default_rng(0)
        self.folder, self.content, self.downloads = folder, {}, 0
        self.cwd, self.system = folder / "cwd" / "data", folder / "system"
        self.cache = folder / "cache" / "vqlib" / "data"
        for images, labels, n in ((*NAMES[:2], 12), (*NAMES[2:], 8)):
            self.content[images] = idx(rng.integers(0, 256, (n, 28, 28), dtype=np.uint8))
            self.content[labels] = idx(rng.integers(0, 10, n, dtype=np.uint8))

    def fill(self, folder, gz=False):
        """Write the four files."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.content.items():
            (folder / f"{name}.gz" if gz else folder / name).write_bytes(gzip.compress(content) if gz else content)
        return folder

    def pixels(self, split):
        return np.frombuffer(self.content[next(iter(data.FILES[split]))], np.uint8, offset=16).reshape(-1, 28, 28)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


@pytest.fixture
def places(tmp_path, monkeypatch):
    places = Places(tmp_path)
    places.cwd.parent.mkdir()
    monkeypatch.chdir(places.cwd.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "SYSTEM_FOLDER", places.system)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in places.content.items()}
    monkeypatch.setattr(data, "FILES", {s: {name: digests[name] for name in files} for s, files in data.FILES.items()})

    def unreachable(root, download):
        places.downloads += 1
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", unreachable)
    return places


def serve(places, monkeypatch, alter=lambda folder: None):
    """A network that works: torchvision's class puts the files where it does in reality, then `alter` spoils them."""
    def downloading(root, download):
        places.downloads += 1
        alter(places.fill(Path(root) / "FashionMNIST" / "raw", gz=True))

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", downloading)


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- where the pictures come from ------------------------------------------------------------------------------------


def test_the_places_are_tried_in_the_documented_order(places, monkeypatch):
    given, named = places.folder / "given", places.folder / "named"
    for place in (given, named, places.cwd, places.cache, places.system):
        places.fill(place)
    monkeypatch.setenv("VQLIB_DATA", str(named))
    assert data.load("train", folder=given).source == str(given)
    assert data.load("train").source == str(named)
    monkeypatch.delenv("VQLIB_DATA")
    for place in (places.cwd, places.cache, places.system):
        found = data.load("test").source
        assert Path(found).resolve() == place.resolve()
        for file in place.iterdir():
            file.unlink()
    assert places.downloads == 0
    with pytest.warns(data.SampleWarning):
        assert "SAMPLE" in data.load("test").source
    assert places.downloads == 1


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("inside", [".", "FashionMNIST/raw"])
@pytest.mark.parametrize("split, n", [("train", 12), ("test", 8)])
def test_files_are_read_plain_or_gzipped(places, gz, inside, split, n):
    places.fill(places.folder / "here" / inside, gz=gz)
    dataset = data.load(split, folder=places.folder / "here")
    assert np.array_equal(dataset.pixels.numpy(), places.pixels(split)) and dataset.pixels.dtype == torch.uint8
    assert dataset.labels.dtype == torch.int64 and dataset.labels.shape == (n,) and len(dataset) == n
    assert bytes(dataset.labels.to(torch.uint8).tolist()) == places.content[list(data.FILES[split])[1]][8:]


HTML = b"<!DOCTYPE html><html><body>Please log in to the hotel's network</body></html>"


@pytest.mark.parametrize("how", ["argument", "VQLIB_DATA"])
def test_a_named_folder_must_hold_the_files(places, monkeypatch, how):
    places.fill(places.system)  # which must not be taken instead
    empty = places.folder / "empty"
    empty.mkdir()
    monkeypatch.setenv("VQLIB_DATA", str(empty) if how == "VQLIB_DATA" else "")
    message = f"{empty}(, which VQLIB_DATA names,)? holds no train-images.*train-labels.*looked for elsewhere"
    with pytest.raises(FileNotFoundError, match=message):
        data.load("train", folder=empty if how == "argument" else None)
    assert places.downloads == 0


def test_a_named_folder_may_begin_with_the_home_folder(places, monkeypatch):
    places.fill(places.folder / "mine")
    monkeypatch.setenv("HOME", str(places.folder))
    monkeypatch.setenv("USERPROFILE", str(places.folder))  # Windows
    monkeypatch.setenv("VQLIB_DATA", "~/mine")
    assert data.load("train").source == str(places.folder / "mine")


def test_a_named_folder_that_is_not_there_is_told_so(places, monkeypatch):
    monkeypatch.setenv("VQLIB_DATA", str(places.folder / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere, which VQLIB_DATA names, is no folder.*Unset VQLIB_DATA"):
        data.load("train")


@pytest.mark.parametrize("content", [None, b"", b"PK", HTML])
def test_a_damaged_sample_is_named_with_its_remedy(tmp_path, monkeypatch, content):
    monkeypatch.setattr(data, "SAMPLE_FILE", tmp_path / "sample.npz")
    if content is not None:
        data.SAMPLE_FILE.write_bytes(content)
    with pytest.raises(ValueError, match="sample.npz is damaged or missing.*git checkout"):
        data.load_sample("train")


PIXELS, LABELS = torch.zeros(5, 28, 28, dtype=torch.uint8), torch.arange(5)


@pytest.mark.parametrize(("pixels", "labels", "message"), [
    (PIXELS.numpy(), LABELS, "pixels must be a tensor .N, 28, 28. uint8, got ndarray"),
    (PIXELS.float(), LABELS, r"got \(5, 28, 28\) torch.float32"),
    (PIXELS[:, None], LABELS, r"got \(5, 1, 28, 28\)"),
    (PIXELS, LABELS.tolist(), r"labels must be a tensor \(5,\) int64.*got list"),
    (PIXELS, LABELS.int(), "got .* torch.int32"),
    (PIXELS, LABELS[:4], r"one for each picture, got \(4,\)"),
    (PIXELS, LABELS + 6, "0…9, got 6 … 10"),
    (PIXELS, LABELS - 1, "0…9, got -1 … 3"),
])
def test_a_dataset_of_ones_own_is_checked_when_it_is_made(pixels, labels, message):
    with pytest.raises(ValueError, match=message):
        data.Dataset(pixels, labels, "mine")


def test_a_dataset_prints_in_a_line_and_can_be_empty():
    own = data.Dataset(PIXELS, LABELS, "mine")
    assert repr(own) == "Dataset(source='mine')" and own == own and own != data.Dataset(PIXELS, LABELS, "mine")
    assert len(own.subset(LABELS > 9)) == 0


def test_a_folder_with_half_of_the_files_is_passed_over(places):
    places.fill(places.cwd)
    (places.cwd / NAMES[1]).unlink()
    places.fill(places.system)
    assert data.load("train").source == str(places.system)


# --- damaged files ---------------------------------------------------------------------------------------------------

DAMAGE = {
    "truncated": lambda c: c[:-9],
    "one bit": lambda c: c[:len(c) // 2] + bytes([c[len(c) // 2] ^ 1]) + c[len(c) // 2 + 1:],
    "longer": lambda c: c + b"\1",
    "empty": lambda c: b"",
    "html": lambda c: HTML,
}


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("name", NAMES[:2])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("place", ["cwd", "cache", "system", "named"])
def test_a_damaged_file_is_an_error_that_names_it_and_the_remedy(places, place, damage, name, gz):
    folder = places.fill(getattr(places, place, places.folder / "named"), gz=gz)
    file = folder / (f"{name}.gz" if gz else name)
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    remedy = {"system": "system's package", "named": "original in its place"}.get(place, "Delete it and load again")
    with pytest.raises(ValueError, match=f"{name}.*{remedy}.*sample=True"):
        data.load("train", folder=folder if place == "named" else None)
    assert places.downloads == 0


def test_swapped_files_are_an_error(places):
    folder = places.fill(places.folder / "named")
    os.rename(folder / NAMES[0], folder / "aside")
    os.rename(folder / NAMES[2], folder / NAMES[0])
    os.rename(folder / "aside", folder / NAMES[2])
    for split in ("train", "test"):  # well-formed, the right size, and not the file of that name
        with pytest.raises(ValueError, match="SHA-256.*another data set's"):
            data.load(split, folder=folder)


def test_the_digest_is_of_the_uncompressed_content(places):
    folder = places.fill(places.folder / "named", gz=True)
    for name, content in places.content.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1, mtime=123))
    assert len(data.load("train", folder=folder)) == 12


# --- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("Error downloading"), urllib.error.URLError("no route to host"),
                                   RuntimeError("File not found or corrupted."), PermissionError("read-only")])
def test_without_network_the_sample_stands_in_and_says_so(places, monkeypatch, error):
    def failing(root, download):
        raise error

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", failing)
    with pytest.warns(data.SampleWarning, match="EMBEDDED SAMPLE.*figures will differ.*Remedies"):
        dataset = data.load("train")
    assert len(dataset) == 2000 and "EMBEDDED SAMPLE" in dataset.source
    with pytest.raises(RuntimeError, match=f"{type(error).__name__}.*Remedies.*dataset-fashion-mnist"):
        data.load("train", sample=False)
    assert tree(places.folder / "cache") == {} and list(places.cache.iterdir()) == []


def test_downloading_can_be_turned_off(places):
    with pytest.warns(data.SampleWarning, match="turned off"):
        data.load("test", download=False)
    with pytest.raises(RuntimeError, match="turned off"):
        data.load("test", download=False, sample=False)
    assert places.downloads == 0


def test_asked_for_the_sample_comes_without_a_warning_or_a_look_elsewhere(places):
    places.fill(places.system)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(data.load("train", sample=True)) == 2000
    assert places.downloads == 0


def test_a_download_is_verified_kept_and_found_again(places, monkeypatch):
    serve(places, monkeypatch)
    assert np.array_equal(data.load("train").pixels.numpy(), places.pixels("train"))
    assert sorted(tree(places.cache)) == sorted(f"FashionMNIST/raw/{name}.gz" for name in NAMES)
    assert [p.name for p in places.cache.iterdir()] == ["FashionMNIST"]  # no temporary folder stays
    assert len(data.load("test")) == 8 and places.downloads == 1


def spoil(name, content):
    return lambda raw: (raw / f"{name}.gz").write_bytes(content((raw / f"{name}.gz").read_bytes()))


@pytest.mark.parametrize("alter", [
    spoil(NAMES[2], lambda c: c[:len(c) // 2]), spoil(NAMES[0], lambda c: HTML),
    spoil(NAMES[3], lambda c: gzip.compress(b"other")), lambda raw: (raw / f"{NAMES[1]}.gz").unlink(),
], ids=["truncated", "html", "altered", "missing"])
def test_a_bad_download_never_replaces_a_good_copy(places, monkeypatch, alter):
    raw = places.fill(places.cache / "FashionMNIST" / "raw")
    (raw / NAMES[3]).unlink()  # so that the test split must be fetched
    before = tree(places.cache)
    serve(places, monkeypatch, alter)
    with pytest.raises(RuntimeError, match="the download failed"):
        data.load("test", sample=False)
    assert places.downloads == 1
    assert tree(places.cache) == before and [p.name for p in places.cache.iterdir()] == ["FashionMNIST"]
    assert len(data.load("train")) == 12


def test_fast_mode_takes_the_sample_unless_told_otherwise(places, monkeypatch):
    places.fill(places.system)
    monkeypatch.setenv("VQLIB_FAST", "1")
    assert "SAMPLE" in data.load("train").source
    assert data.load("train", sample=False).source == str(places.system)


# --- pixels and images -----------------------------------------------------------------------------------------------


def test_all_256_grey_values_survive_the_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(49)[:2 * 28 * 28 * 8].reshape(-1, 28, 28)
    assert len(pixels.unique()) == 256
    images = data.to_images(pixels)
    assert images.shape == (len(pixels), 1, 28, 28) and images.dtype == torch.float32
    assert images.min() == -1 and images.max() == 1
    assert torch.equal(data.to_pixels(images), pixels)
    assert torch.equal(data.to_pixels(images.double()), pixels)
    assert (images[:, 0] - (pixels / 255 * 2 - 1)).abs().max() < 1e-6


def test_to_pixels_rounds_and_clips():
    for value, pixel in ((-1.5, 0), (1.5, 255), (0.0, 128), (-1 + 2.4 / 127.5, 2), (-1 + 2.6 / 127.5, 3)):
        assert data.to_pixels(torch.full((1, 28, 28), value)).unique().tolist() == [pixel]


@pytest.mark.parametrize("pixels, came", [
    (torch.zeros(2, 28, 28), "float32"), (torch.zeros(2, 28, 27, dtype=torch.uint8), r"\(2, 28, 27\)"),
    (torch.zeros(784, dtype=torch.uint8), r"\(784,\)"), (torch.zeros(2, 28, 28, dtype=torch.int64), "int64"),
    (np.zeros((2, 28, 28)), "float64"),
])
def test_to_images_refuses_what_are_no_pixels(pixels, came):
    with pytest.raises(ValueError, match=f"uint8.*got .*{came}"):
        data.to_images(pixels)


@pytest.mark.parametrize("images, came", [
    (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "uint8"), (torch.zeros(2, 28, 28), r"\(2, 28, 28\)"),
    (torch.zeros(2, 3, 28, 28), r"\(2, 3, 28, 28\)"), (torch.zeros(2, 1, 32, 32), r"\(2, 1, 32, 32\)"),
])
def test_to_pixels_refuses_what_are_no_images(images, came):
    with pytest.raises(ValueError, match=f"float.*got .*{came}"):
        data.to_pixels(images)


@pytest.mark.parametrize("split", ["validation", "", None, 0])
def test_load_refuses_another_split(split):
    with pytest.raises(ValueError, match=f"'train' or 'test', got {split!r}"):
        data.load(split)


# --- the sample ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split, each", [("train", 200), ("test", 50)])
def test_the_sample_has_real_pictures_of_every_class(split, each):
    dataset = data.load_sample(split)
    assert dataset.pixels.dtype == torch.uint8 and dataset.pixels.shape == (10 * each, 28, 28)
    assert dataset.labels.dtype == torch.int64 and dataset.labels.bincount().tolist() == [each] * 10
    assert dataset.pixels.float().flatten(1).std(1).min() > 5
    mean = torch.stack([dataset.pixels[dataset.labels == c].float().mean(0) for c in range(10)])
    trouser, bag, boot = mean[1], mean[8], mean[9]  # labels belong to the pictures: trousers are narrow, boots are tall
    assert trouser[:, :6].mean() < 10 < bag[:, :6].mean() and boot[22:].mean() > 3 * boot[:4].mean()
    assert not torch.equal(dataset.labels, dataset.labels.sort().values)  # mixed: any first part has all classes


def test_the_sample_shares_no_picture_between_train_and_test(train, test):
    seen = {p.numpy().tobytes() for p in train.pixels}
    assert len(seen) == 2000 and not any(p.numpy().tobytes() in seen for p in test.pixels)


@pytest.mark.skipif(data.find_files(data.SYSTEM_FOLDER, "train") is None, reason="no dataset-fashion-mnist here")
@pytest.mark.parametrize("split, n", [("train", 60_000), ("test", 10_000)])
def test_the_sample_is_a_part_of_the_real_data(split, n):
    real = data.load(split, folder=data.SYSTEM_FOLDER)
    assert len(real) == n and real.labels.bincount().tolist() == [n // 10] * 10
    known = {p.numpy().tobytes(): int(y) for p, y in zip(real.pixels, real.labels, strict=True)}
    sample = data.load_sample(split)
    assert all(known.get(p.numpy().tobytes()) == y
               for p, y in zip(sample.pixels, sample.labels.tolist(), strict=True))


# --- splits ----------------------------------------------------------------------------------------------------------


def numbered(n):
    """n pictures that hold their numbers."""
    pixels = torch.zeros(n, 28, 28, dtype=torch.uint8)
    pixels[:, 0, 0], pixels[:, 0, 1] = torch.arange(n) // 256, torch.arange(n) % 256
    return data.Dataset(pixels, torch.arange(n) % 10, "made up")


def numbers(dataset):
    return dataset.pixels[:, 0, 0].int() * 256 + dataset.pixels[:, 0, 1]


def test_ancestor_defect_5_validation_pictures_are_not_among_the_training_pictures():
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
    part, held_out = data.split_validation(train, 300)
    known = {p.numpy().tobytes(): int(y) for p, y in zip(train.pixels, train.labels, strict=True)}
    assert all(known[p.numpy().tobytes()] == y for d in (part, held_out)
               for p, y in zip(d.pixels, d.labels.tolist(), strict=True))


@pytest.mark.parametrize("n", [0, -1, 20, 21])
def test_split_validation_refuses_to_empty_a_part(n):
    with pytest.raises(ValueError, match=f"1…19, got {n}"):
        data.split_validation(numbered(20), n)


def test_the_fingerprint_tells_data_sets_apart(train):
    some = train.subset(torch.arange(100))
    assert data.fingerprint(some) == data.fingerprint(train.subset(torch.arange(100)))
    darker, relabelled = some.pixels.clone(), some.labels.clone()
    darker[5, 3, 3] ^= 1
    relabelled[5] = (relabelled[5] + 1) % 10
    others = [data.Dataset(darker, some.labels, ""), data.Dataset(some.pixels, relabelled, ""),
              some.subset(torch.arange(99, -1, -1)), some.subset(torch.arange(99))]
    assert len({data.fingerprint(d) for d in [some, *others]}) == 5


# --- MNIST and KMNIST ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["MNIST", "KMNIST"])
def other(request, places, monkeypatch):
    """Made-up files of that name, which torchvision is told to take for the real ones: (name, how to put them)."""
    gz = {f"{name}.gz": gzip.compress(content) for name, content in places.content.items()}
    kind = type(request.param, (), {"resources": [(n, hashlib.md5(c).hexdigest()) for n, c in gz.items()]})
    kind.__init__ = lambda self, root, download: put(Path(root) / request.param / "raw", count=True) and None

    def put(folder, count=False):
        places.downloads += count
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in gz.items():
            (folder / name).write_bytes(content)
        return folder

    monkeypatch.setattr(torchvision.datasets, request.param, kind)
    return request.param, put


def test_another_data_set_is_found_or_downloaded_and_kept_apart(other, places):
    name, put = other
    dataset = data.load("train", name=name)
    assert np.array_equal(dataset.pixels.numpy(), places.pixels("train")) and dataset.labels.dtype == torch.int64
    assert name in dataset.source and (places.cache / name / "raw").is_dir()
    assert len(data.load("test", name=name)) == 8 and places.downloads == 1  # found again
    named = put(places.folder / "named")
    assert str(named) in data.load("train", folder=named, name=name).source and places.downloads == 1


def test_another_data_sets_files_are_held_against_what_torchvision_knows(other, places):
    name, put = other
    folder = put(places.folder / "named")
    (folder / f"{NAMES[1]}.gz").write_bytes(gzip.compress(places.content[NAMES[1]][:-1] + b"\7"))
    with pytest.raises(ValueError, match=f"not the original file of {name}: .*Put {name}'s into .*VQLIB_DATA"):
        data.load("train", folder=folder, name=name)
    with pytest.raises(FileNotFoundError, match=f"Put {name}'s there"):
        data.load("train", folder=places.folder / "empty", name=name)
    with pytest.raises(ValueError, match="no sample of"):
        data.load("train", sample=True, name=name)


def test_another_data_set_without_a_network_says_what_to_do(places, monkeypatch):
    def unreachable(root, download):
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(torchvision.datasets, "MNIST", unreachable)
    with pytest.raises(RuntimeError, match="MNIST could not be downloaded .Error downloading.*VQLIB_DATA"):
        data.load("train", name="MNIST")
    with pytest.raises(ValueError, match="FashionMNIST, MNIST, KMNIST, got 'CIFAR'.*Dataset.pixels"):
        data.load("train", name="CIFAR")
