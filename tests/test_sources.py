"""Where pictures come from, on made-up files: 12 + 8 pictures under each of the three names."""

import gzip
import hashlib
import os
import re
import time
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import forked

from vqlib import data, sources

FASHION, MNIST, KMNIST = sources.NAMES
FILES = list(sources.SHA256)
HTML = b"<!DOCTYPE html><html><body>Please log in to the hotel's network</body></html>"


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


def packed(content):
    return gzip.compress(content, mtime=0)


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Places:
    """The made-up files, and the places where `data.load` looks for them, all empty."""

    def __init__(self, folder):
        self.folder, self.downloads, self.contents = folder, 0, {}
        self.cwd, self.system = folder / "cwd" / "data", folder / "system"
        self.cache, self.named = folder / "cache" / "vqlib" / "data", folder / "named"
        for seed, name in enumerate(sources.NAMES):
            rng = np.random.default_rng(seed)
            shapes = ((12, 28, 28), (12,), (8, 28, 28), (8,))
            arrays = (rng.integers(0, 256 if len(shape) > 1 else 10, shape, dtype=np.uint8) for shape in shapes)
            self.contents[name] = dict(zip(FILES, map(idx, arrays), strict=True))

    def fill(self, folder, name=FASHION, gz=False):
        """Write a data set's four files."""
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in self.contents[name].items():
            (folder / f"{file}.gz" if gz else folder / file).write_bytes(packed(content) if gz else content)
        return folder

    def pixels(self, split, name=FASHION):
        return np.frombuffer(self.contents[name][sources.FILES[split][0]], np.uint8, offset=16).reshape(-1, 28, 28)

    def labels(self, split, name=FASHION):
        return list(self.contents[name][sources.FILES[split][1]][8:])


@pytest.fixture
def places(tmp_path, monkeypatch):
    return made_up(tmp_path, monkeypatch)


def made_up(folder, monkeypatch):
    """No file anywhere, and no network."""
    places = Places(folder)
    places.cwd.parent.mkdir(exist_ok=True)
    monkeypatch.chdir(places.cwd.parent)
    monkeypatch.delenv("VQLIB_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr(sources, "SYSTEM_FOLDER", places.system)
    monkeypatch.setattr(sources, "COUNTS", {"train": 12, "test": 8})
    digests = {file: hashlib.sha256(content).hexdigest() for file, content in places.contents[FASHION].items()}
    monkeypatch.setattr(sources, "SHA256", digests)
    online(places, monkeypatch, RuntimeError("Error downloading train-images-idx3-ubyte.gz"))
    return places


def online(places, monkeypatch, error=None, alter=lambda folder: None):
    """Stand-ins for torchvision's classes. They raise the error, or put the files and then `alter` spoils them."""

    def download(name):
        def init(self, root, download):
            places.downloads += 1
            if error is not None:
                raise error
            raw = Path(root) / name / "raw"
            places.fill(raw, name)  # torchvision unpacks the files, and keeps the packed ones
            alter(places.fill(raw, name, gz=True))

        return init

    for name in sources.NAMES:
        resources = [(f"{file}.gz", hashlib.md5(packed(c)).hexdigest()) for file, c in places.contents[name].items()]
        stand_in = type(name, (), {"resources": resources, "__init__": download(name)})
        monkeypatch.setattr(torchvision.datasets, name, stand_in)


# --- where they are looked for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sources.NAMES)
def test_the_places_are_tried_in_the_documented_order(places, monkeypatch, name):
    raw = Path(name) / "raw"
    usual = [places.cwd / raw, places.cache / raw] + [places.system] * (name == FASHION)
    for place in (places.folder / "given", places.named, *usual):
        places.fill(place, name, gz=True)
    monkeypatch.setenv("VQLIB_DATA", str(places.named))
    assert data.load("train", folder=places.folder / "given", name=name).source == f"{name}, {places.folder / 'given'}"
    assert data.load("train", name=name).source == f"{name}, {places.named}"
    monkeypatch.delenv("VQLIB_DATA")
    for place in usual:
        source = data.load("test", name=name).source.removeprefix(f"{name}, ")
        assert Path(source).resolve() == place.resolve()
        for file in place.iterdir():
            file.unlink()
    assert places.downloads == 0
    with pytest.raises(RuntimeError, match=name):
        data.load("test", name=name, mini=False)
    assert places.downloads == 1


@pytest.mark.parametrize("name", sources.NAMES)
@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("inside", [".", "NAME/raw"])
@pytest.mark.parametrize("split, n", [("train", 12), ("test", 8)])
def test_files_are_read_plain_or_gzipped(places, name, gz, inside, split, n):
    places.fill(places.named / inside.replace("NAME", name), name, gz)
    dataset = data.load(split, folder=places.named, name=name)
    assert dataset.pixels.dtype == torch.uint8 and np.array_equal(dataset.pixels.numpy(), places.pixels(split, name))
    assert dataset.labels.dtype == torch.int64 and dataset.labels.tolist() == places.labels(split, name)
    assert len(dataset) == n


@pytest.mark.parametrize("name", sources.NAMES)
def test_of_two_copies_the_gzipped_one_is_taken(places, name):
    places.fill(places.named, name, gz=True)
    places.fill(places.named, KMNIST if name == MNIST else MNIST)
    dataset = data.load("train", folder=places.named, name=name)
    assert np.array_equal(dataset.pixels.numpy(), places.pixels("train", name))


def test_one_folder_may_hold_all_three(places):
    for name in sources.NAMES:
        places.fill(places.named / name / "raw", name)
    places.fill(places.named)  # loose files, which could be anyone's, don't come first
    for name in sources.NAMES:
        dataset = data.load("test", folder=places.named, name=name)
        assert np.array_equal(dataset.pixels.numpy(), places.pixels("test", name))


def test_loose_files_in_a_usual_place_are_not_taken_for_another_data_set(places):
    places.fill(places.cwd)
    with pytest.raises(RuntimeError, match="No copy of MNIST"):
        data.load("train", name=MNIST, download=False)


def test_a_folder_with_half_of_the_files_is_passed_over(places):
    places.fill(places.cwd)
    (places.cwd / FILES[1]).unlink()
    places.fill(places.system)
    assert str(places.system) in data.load("train").source


@pytest.mark.parametrize("name", sources.NAMES)
@pytest.mark.parametrize("how", ["folder", "VQLIB_DATA"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_named_folder_must_hold_the_files(places, monkeypatch, name, how, is_there):
    places.fill(places.system)  # which must not be taken instead
    places.fill(places.cache / name / "raw", name)
    if is_there:
        places.named.mkdir()
    monkeypatch.setenv("VQLIB_DATA", str(places.named) if how == "VQLIB_DATA" else "")
    with pytest.raises(
        FileNotFoundError, match=f"{how} must hold {FILES[0]}.*got {re.escape(str(places.named))}"
    ) as error:
        data.load("train", folder=places.named if how == "folder" else None, name=name)
    assert ("not a folder" in str(error.value)) != is_there and places.downloads == 0


@pytest.mark.parametrize("how", ["folder", "VQLIB_DATA"])
def test_a_named_folder_may_begin_with_the_home_folder(places, monkeypatch, how):
    places.fill(places.named)
    monkeypatch.setenv("HOME", str(places.folder))
    monkeypatch.setenv("USERPROFILE", str(places.folder))  # Windows
    monkeypatch.setenv("VQLIB_DATA", "~/named" if how == "VQLIB_DATA" else "")
    assert str(places.named) in data.load("train", folder="~/named" if how == "folder" else None).source


def test_without_a_home_directory_its_place_is_skipped(places, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does if nobody knows the home directory
    assert sources.download_folder() is None
    with pytest.raises(RuntimeError, match="XDG_CACHE_HOME"):
        data.load("train", mini=False)
    places.fill(places.system)
    assert str(places.system) in data.load("train").source
    (places.system / FILES[0]).write_bytes(HTML)
    with pytest.raises(ValueError, match=FILES[0]):
        data.load("train")


# --- damaged files ---------------------------------------------------------------------------------------------------

DAMAGE = {
    "truncated": lambda c: c[:-9],
    "one bit": lambda c: c[: len(c) // 2] + bytes([c[len(c) // 2] ^ 64]) + c[len(c) // 2 + 1 :],
    "longer": lambda c: c + b"\1",
    "empty": lambda c: b"",
    "html": lambda c: HTML,
}


@pytest.mark.parametrize("name", sources.NAMES)
@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("file", FILES[:2])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_an_error_that_names_it(places, name, gz, file, damage):
    path = places.fill(places.named, name, gz) / (f"{file}.gz" if gz else file)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    if name != FASHION and not gz and file == FILES[0] and damage == "one bit":
        assert len(data.load("train", folder=places.named, name=name)) == 12  # nobody could tell
        return
    with pytest.raises(ValueError, match=re.escape(str(path))):
        data.load("train", folder=places.named, name=name)
    assert places.downloads == 0


@pytest.mark.parametrize("place", ["cache", "system", "cwd"])
def test_a_damaged_file_comes_with_a_remedy_that_deletes_nothing(places, monkeypatch, place):
    path = places.fill(getattr(places, place)) / FILES[0]
    path.write_bytes(HTML)
    with pytest.raises(ValueError, match=f"{FILES[0]}.*Replace it; or move it away.*mini=True") as error:
        data.load("train")
    assert "elete" not in str(error.value) and places.downloads == 0
    path.rename(places.folder / "aside")  # as it says
    online(places, monkeypatch)
    assert len(data.load("train")) == 12


@pytest.mark.parametrize("name", sources.NAMES)
@pytest.mark.parametrize("gz", [False, True])
def test_the_other_splits_files_are_refused(places, name, gz):
    folder, end = places.fill(places.named, name, gz), ".gz" if gz else ""
    for train, test in zip(sources.FILES["train"], sources.FILES["test"], strict=True):
        os.rename(folder / f"{train}{end}", folder / "aside")
        os.rename(folder / f"{test}{end}", folder / f"{train}{end}")
        os.rename(folder / "aside", folder / f"{test}{end}")
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=f"not the original file of {name}"):
            data.load(split, folder=folder, name=name)


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("name, other", [(FASHION, MNIST), (MNIST, FASHION), (KMNIST, FASHION)])
def test_another_data_sets_files_are_refused(places, name, other, gz):
    places.fill(places.named, other, gz)
    with pytest.raises(ValueError, match=f"not the original file of {name}"):
        data.load("train", folder=places.named, name=name)


@pytest.mark.parametrize("name, other", [(MNIST, KMNIST), (KMNIST, MNIST)])
def test_packed_files_of_the_right_form_are_held_against_their_md5(places, name, other):
    places.fill(places.named, other, gz=True)
    with pytest.raises(ValueError, match=f"not the original file of {name}.*MD5"):
        data.load("train", folder=places.named, name=name)
    assert len(data.load("train", folder=places.named, name=other)) == 12


def test_a_label_above_9_is_refused(places):
    path = places.fill(places.named, MNIST) / FILES[1]
    path.write_bytes(path.read_bytes()[:-1] + b"\12")
    with pytest.raises(ValueError, match=FILES[1]):
        data.load("train", folder=places.named, name=MNIST)


def test_fashion_mnist_may_be_compressed_by_anyone(places):
    folder = places.fill(places.named, gz=True)
    for file, content in places.contents[FASHION].items():
        (folder / f"{file}.gz").write_bytes(gzip.compress(content, compresslevel=1, mtime=123))
    assert len(data.load("train", folder=folder)) == 12


# --- the network -----------------------------------------------------------------------------------------------------

ERRORS = [
    RuntimeError("Error downloading"),
    urllib.error.URLError("no route to host"),
    RuntimeError("File not found or corrupted."),
    PermissionError("read-only"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_without_a_network_the_mini_set_stands_in_with_a_warning(places, monkeypatch, error):
    online(places, monkeypatch, error)
    with pytest.warns(data.MiniWarning, match=f"{type(error).__name__}.*VQLIB_DATA.*MINI SET") as caught:
        dataset = data.load("train")
    assert caught[0].filename == __file__  # the line that called load
    assert len(dataset) == 2000 and "MINI SET" in dataset.source
    with pytest.raises(RuntimeError, match=f"{type(error).__name__}.*dataset-fashion-mnist.*VQLIB_DATA") as refused:
        data.load("train", mini=False)
    assert data.OR_MINI in str(refused.value)  # which command lines replace by their own flag
    assert list(places.cache.iterdir()) == []


@pytest.mark.parametrize("name", [MNIST, KMNIST])
def test_nothing_stands_in_for_another_data_set(places, name):
    with pytest.raises(RuntimeError, match=f"No copy of {name}.*Error downloading.*VQLIB_DATA") as error:
        data.load("train", name=name)
    assert "mini" not in str(error.value) and "apt" not in str(error.value)


@pytest.mark.parametrize("name", sources.NAMES)
def test_downloading_can_be_turned_off(places, name):
    with pytest.raises(RuntimeError, match="turned off"):
        data.load("test", download=False, mini=False, name=name)
    assert places.downloads == 0


@pytest.mark.parametrize("name", sources.NAMES)
def test_a_download_is_verified_kept_and_found_again(places, monkeypatch, name):
    online(places, monkeypatch)
    dataset = data.load("train", name=name)
    assert np.array_equal(dataset.pixels.numpy(), places.pixels("train", name))
    assert sorted(tree(places.cache)) == sorted(f"{name}/raw/{file}{end}" for file in FILES for end in ("", ".gz"))
    assert [p.name for p in places.cache.iterdir()] == [name]  # no temporary folder stays
    assert len(data.load("test", name=name)) == 8 and places.downloads == 1


def downloading(folder, number):
    """Download, and go on only when the other process has its files as well, so that both move them into place."""

    def wait(raw):
        (folder / f"has{number}").touch()
        until = time.monotonic() + 60
        while len(list(folder.glob("has?"))) < 2 and time.monotonic() < until:
            time.sleep(0.001)

    patch = pytest.MonkeyPatch()
    online(made_up(folder, patch), patch, alter=wait)
    assert len(data.load("train", name=KMNIST)) == 12


def test_two_downloads_at_once_do_not_disturb_each_other(tmp_path):
    both = [forked(downloading, tmp_path, number) for number in range(2)]
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0] and len(list(tmp_path.glob("has?"))) == 2
    cache = tmp_path / "cache" / "vqlib" / "data"
    assert [p.name for p in cache.iterdir()] == [KMNIST] and len(tree(cache)) == 8


def spoil(file, content):
    return lambda raw: (raw / f"{file}.gz").write_bytes(content((raw / f"{file}.gz").read_bytes()))


BAD = {
    "truncated": spoil(FILES[2], lambda c: c[: len(c) // 2]),
    "html": spoil(FILES[0], lambda c: HTML),
    "altered": spoil(FILES[3], lambda c: packed(b"other")),
    "missing": lambda raw: [(raw / f"{FILES[1]}{end}").unlink() for end in ("", ".gz")],
}


@pytest.mark.parametrize("name", sources.NAMES)
@pytest.mark.parametrize("alter", BAD.values(), ids=BAD)
def test_a_bad_download_never_replaces_a_good_copy(places, monkeypatch, name, alter):
    raw = places.fill(places.cache / name / "raw", name)
    (raw / FILES[3]).unlink()  # so that the test split must be fetched
    before = tree(places.cache)
    online(places, monkeypatch, alter=alter)
    with pytest.raises(RuntimeError, match="the download into .* failed"):
        data.load("test", mini=False, name=name)
    assert places.downloads == 1
    assert tree(places.cache) == before and [p.name for p in places.cache.iterdir()] == [name]
    assert len(data.load("train", name=name)) == 12


# --- the real files --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sources.find(FASHION, sources.SYSTEM_FOLDER, "train"), reason="no dataset-fashion-mnist here")
@pytest.mark.parametrize("split, n", [("train", 60_000), ("test", 10_000)])
def test_the_mini_set_is_a_part_of_the_real_data(split, n):
    real = data.load(split, folder=sources.SYSTEM_FOLDER)
    assert len(real) == n and real.labels.bincount().tolist() == [n // 10] * 10
    known = {p.numpy().tobytes(): int(y) for p, y in zip(real.pixels, real.labels, strict=True)}
    mini = data.load_mini(split)
    assert all(known.get(p.numpy().tobytes()) == y for p, y in zip(mini.pixels, mini.labels.tolist(), strict=True))
