"""Fashion-MNIST in memory: one uint8 tensor of pictures, verified, from wherever a copy can be found (notebook 01).

`load` looks at these places, in this order, and takes the first that has the files:

1. the folder given, or the one that the environment variable ``VQLIB_DATA`` names;
2. what torchvision downloaded earlier: ``./data`` and this module's own download folder (`download_folder`);
3. the operating system's copy (Debian's and Ubuntu's package ``dataset-fashion-mnist``);
4. a download through torchvision.

If all fail, it uses the sample embedded in the package and says so, loudly. ``name="MNIST"`` or ``"KMNIST"`` loads
another data set of the same form: from 1, 2 or 4.

Data set: Xiao, Rasul, Vollgraf, "Fashion-MNIST" (arXiv 1708.07747), MIT licence.
"""

import gzip
import hashlib
import math
import numbers
import os
import shutil
import tempfile
import warnings
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import vqlib

CLASS_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
               "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SIZE = 28  # pixels a side

# SHA-256 of the *uncompressed* content: the same whether a folder holds .gz files or extracted ones.
FILES = {
    "train": {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    },
    "test": {
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
NAMES = ("FashionMNIST", "MNIST", "KMNIST")
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
SAMPLE_FILE = Path(__file__).parent / "sample" / "fashion_mnist_sample.npz"
REMEDY = ("Remedies: connect to the internet (about 30 MB are fetched once); or on Debian and Ubuntu "
          "`apt-get install dataset-fashion-mnist`; or set VQLIB_DATA to a folder that holds the four files.")
OR_SAMPLE = "Or take the embedded sample: data.load(..., sample=True)."


class SampleWarning(UserWarning):
    """The embedded sample stands in for the real data set."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pictures of one split, in memory.

    pixels: (N, 28, 28) uint8, 0 black … 255 white.
    labels: (N,) int64 in 0…9, an index into `CLASS_NAMES`.
    source: where the pictures came from, in words.

    Raises ValueError where they are not so.
    """

    pixels: torch.Tensor = field(repr=False)
    labels: torch.Tensor = field(repr=False)
    source: str

    def __post_init__(self):
        pixels, labels = self.pixels, self.labels
        if not isinstance(pixels, torch.Tensor) or pixels.dtype != torch.uint8 or pixels.shape[1:] != (SIZE, SIZE):
            raise ValueError(f"pixels must be a tensor (N, 28, 28) uint8, got {describe(pixels)}")
        if not isinstance(labels, torch.Tensor) or labels.dtype != torch.int64 or labels.shape != pixels.shape[:1]:
            raise ValueError(f"labels must be a tensor ({len(pixels)},) int64, one for each picture, got "
                             f"{describe(labels)}")
        if len(labels) and not 0 <= labels.min() <= labels.max() <= 9:
            raise ValueError(f"labels must lie in 0…9, got {labels.min()} … {labels.max()}")

    def __len__(self):
        return len(self.pixels)

    def subset(self, index):
        """The pictures at ``index`` (anything that indexes a tensor), as a Dataset."""
        return Dataset(self.pixels[index], self.labels[index], self.source)


def check_whole(name, value, low, high=None):
    """Raise ValueError unless ``value`` is a whole number in low…high (no upper bound: None)."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)  # numpy's too
    if not whole or value < low or (high is not None and value > high):
        place = f"≥ {low}" if high is None else f"in {low}…{high}"
        raise ValueError(f"{name} must be a whole number {place}, got {value!r}")


def is_number(value):
    """Whether ``value`` is a number, Python's or numpy's; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_number(name, value, low, high=math.inf):
    """Raise ValueError unless ``value`` is a finite number in [low, high]."""
    if not (is_number(value) and math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} must be a finite number in [{low}, {high}], got {value!r}")


def describe(value):
    """What a value is, for an error: shape and dtype of a tensor or array, else its type and how it begins."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        kind = "" if isinstance(value, torch.Tensor) else f"{type(value).__name__} "
        return f"{kind}{tuple(value.shape)} {value.dtype}"
    if isinstance(value, torch.nn.Module):
        return f"a {type(value).__name__}"
    return f"{type(value).__name__} {repr(value)[:60]}"


def check_kinds(**given):
    """Raise ValueError unless each ``name=(value, class)`` is of its class: arguments in another's place."""
    for name, (value, kind) in given.items():
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got {describe(value)}")


def to_images(pixels):
    """Stored pixels to what the networks see: (..., 28, 28) uint8 0…255 -> (..., 1, 28, 28) float32 in [-1, 1]."""
    if not isinstance(pixels, torch.Tensor) or pixels.dtype != torch.uint8 or pixels.shape[-2:] != (SIZE, SIZE):
        raise ValueError(f"to_images takes (..., 28, 28) uint8 pixels as data.load returns them; "
                         f"got {describe(pixels)}")
    return (pixels.float() / 127.5 - 1).unsqueeze(-3)


def to_pixels(images):
    """The way back, rounded and clipped: (..., 1, 28, 28) float in [-1, 1] -> (..., 28, 28) uint8 0…255."""
    if not isinstance(images, torch.Tensor) or not images.is_floating_point() or images.shape[-3:] != (1, SIZE, SIZE):
        raise ValueError(f"to_pixels takes (..., 1, 28, 28) float images in [-1, 1]; got {describe(images)}")
    if images.isnan().any():
        raise ValueError("to_pixels takes images in [-1, 1]; among these are values that are not a number")
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).squeeze(-3)


def load(split, folder=None, sample=None, download=True, name="FashionMNIST"):
    """Load one split into memory.

    split: "train" (60,000 pictures) or "test" (10,000).
    folder: where the files are; default the environment variable VQLIB_DATA, then the places named in the
        module's docstring. A folder that is named must hold the files: nothing else is tried, but for the sample.
    sample: True takes the embedded sample (2,000 training, 500 test pictures) before it looks anywhere, False never
        does; None takes it only where nothing else can be had, with a `SampleWarning` (or at once where VQLIB_FAST=1).
    download: whether to try the network after the folders.
    name: "FashionMNIST", "MNIST" (digits) or "KMNIST" (Japanese letters): each 60,000 and 10,000 pictures of 28×28,
        ten classes. `CLASS_NAMES` and the sample are those of the first.

    Returns a `Dataset`. Raises ValueError where a file is damaged or altered, FileNotFoundError where a named
    folder lacks the files, RuntimeError where sample=False and no source worked.
    """
    if not isinstance(split, str) or split not in FILES:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if not isinstance(name, str) or name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}. For pictures of your own make a "
                         f"Dataset(pixels, labels, source)")
    named = folder or os.environ.get("VQLIB_DATA")
    named = named and Path(named).expanduser()
    if name != NAMES[0]:
        if sample:
            raise ValueError(f"there is no sample of {name}: leave sample=True out")
        return _load_other(name, split, named, download)
    if sample or (sample is None and vqlib.fast()):
        return load_sample(split)
    if named:
        found = find_files(named, split)
        if found is None:
            raise FileNotFoundError(
                f"{named}{'' if folder else ', which VQLIB_DATA names,'} "
                + (f"holds no {' and '.join(FILES[split])} (plain or .gz), neither at its top nor under "
                   f"FashionMNIST/raw" if Path(named).is_dir() else "is no folder")
                + f". {'Leave folder out' if folder else 'Unset VQLIB_DATA'}, and a copy is looked for elsewhere, and "
                  f"downloaded if there is none. {OR_SAMPLE}")
        return read_files(found, split)
    for place in (Path("data"), download_folder(), SYSTEM_FOLDER):
        found = find_files(place, split)
        if found is not None:
            return read_files(found, split)
    reason = "downloading was turned off"
    if download:
        try:
            return read_files(find_files(fetch(), split), split)
        except (OSError, RuntimeError, ValueError) as error:
            reason = f"the download failed ({type(error).__name__}: {error})"
    if sample is False:
        raise RuntimeError(f"No copy of Fashion-MNIST was found, and {reason}. {REMEDY} {OR_SAMPLE}")
    warnings.warn(f"No copy of Fashion-MNIST was found, and {reason}. Going on with the EMBEDDED SAMPLE, a small part "
                  f"of the real data: figures will differ from those in the text. {REMEDY}",
                  SampleWarning, stacklevel=2)
    return load_sample(split)


def load_sample(split):
    """The embedded sample: the same number of pictures of every class (200 each in train, 50 in test)."""
    try:
        with np.load(SAMPLE_FILE, allow_pickle=False) as arrays:
            pixels = torch.from_numpy(arrays[f"{split}_pixels"])
            labels = torch.from_numpy(arrays[f"{split}_labels"]).long()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{SAMPLE_FILE} is damaged or missing ({error}). Restore it with `git checkout vqlib/sample`, "
                         f"or install the package again") from error
    whole = 60_000 if split == "train" else 10_000
    return Dataset(pixels, labels, f"EMBEDDED SAMPLE ({len(labels):,} of {whole:,} {split} pictures)")


def split_validation(train, n_validation=5000, seed=0):
    """Hold pictures out of a training set, for choosing between recipes: (training part, validation part).

    The same ``seed`` holds out the same pictures, whatever is trained on the rest.
    """
    check_whole("n_validation", n_validation, 1, len(train) - 1)
    check_whole("seed", seed, 0, 2**63 - 1)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(int(seed)))
    return train.subset(order[n_validation:]), train.subset(order[:n_validation])


def fingerprint(dataset):
    """SHA-256 of a dataset's pixels and labels: which pictures, in which order."""
    digest = hashlib.sha256(dataset.pixels.numpy().tobytes())
    digest.update(dataset.labels.numpy().tobytes())
    return digest.hexdigest()


# --- finding, reading and fetching the files -------------------------------------------------------------------------

def download_folder():
    """Where `fetch` puts the files: one place for all projects of this user, whatever the working directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "vqlib" / "data"


def find_files(folder, split):
    """Paths of the split's files in a folder or in its ``FashionMNIST/raw``, images first; None if any is missing."""
    for place in (Path(folder), Path(folder) / "FashionMNIST" / "raw"):
        paths = [next((p for p in (place / name, place / f"{name}.gz") if p.is_file()), None) for name in FILES[split]]
        if all(paths):
            return paths
    return None


def read_files(paths, split):
    """Read and verify an image and a label file (IDX format, plain or gzipped) into a `Dataset`."""
    pixels, labels = (_read_idx(path, digest) for path, digest in zip(paths, FILES[split].values(), strict=True))
    return Dataset(pixels, labels.long(), f"{paths[0].parent}")


def _read_idx(path, digest):
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}. {_remedy(path)}") from error
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{path} is not the original Fashion-MNIST file: it has {len(content):,} bytes and SHA-256 "
                         f"{hashlib.sha256(content).hexdigest()[:12]}…, expected {digest[:12]}…. It is truncated, "
                         f"altered, or another data set's. {_remedy(path)}")
    # IDX: two zero bytes, a type code (8 = uint8), the number of dimensions, then each dimension as big-endian int32.
    ndim = content[3]
    shape = np.frombuffer(content, ">i4", ndim, offset=4)
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy())


def _remedy(path):
    """What to do about a damaged file: a copy that torchvision downloaded is fetched anew when it is gone."""
    if SYSTEM_FOLDER in path.parents:
        return "Install the system's package again. " + OR_SAMPLE
    if {Path("data").resolve(), download_folder().resolve()} & set(path.resolve().parents):
        return "Delete it and load again to fetch a fresh copy. " + OR_SAMPLE
    return "Put the original in its place, or unset VQLIB_DATA, and a copy is looked for elsewhere. " + OR_SAMPLE


def _load_other(name, split, folder, download):
    """MNIST or KMNIST, from the .gz files that torchvision keeps, held against the MD5 that torchvision knows."""
    from torchvision import datasets

    kind, names = getattr(datasets, name), [f"{file}.gz" for file in FILES[split]]
    places = [Path("data") / name / "raw", download_folder() / name / "raw"]
    if folder:
        places = [Path(folder) / name / "raw", Path(folder)]
    folders = [place for place in places if all((place / file).is_file() for file in names)]
    if not folders and (folder or not download):
        raise FileNotFoundError(f"no {' and '.join(names)} in {' or '.join(map(str, places))}. Put {name}'s there, or "
                                f"connect to the internet and leave VQLIB_DATA unset")
    if not folders:
        try:
            kind(download_folder(), download=True)
        except (OSError, RuntimeError) as error:
            four = ", ".join(f"{file}.gz" for files in FILES.values() for file in files)
            raise RuntimeError(f"{name} could not be downloaded ({error}). Connect to the internet, or set VQLIB_DATA "
                               f"to a folder that holds {four}, in {name}/raw or at its top") from error
        folders = [download_folder() / name / "raw"]
    known = dict(kind.resources)
    for file in names:
        if hashlib.md5((folders[0] / file).read_bytes()).hexdigest() != known[file]:
            remedy = f"Put {name}'s into {Path(folder) / name / 'raw'}, or unset VQLIB_DATA" if folder else \
                "Delete it and load again to fetch a fresh copy"
            raise ValueError(f"{folders[0] / file} is not the original file of {name}: truncated, altered, or another "
                             f"data set's. {remedy}")
    pixels, labels = (_read_idx(folders[0] / file, digest=None) for file in names)
    return Dataset(pixels, labels.long(), f"{name}, {folders[0]}")


def fetch():
    """Download the four files through torchvision, verify them, and only then put them into `download_folder`."""
    from torchvision.datasets import FashionMNIST  # only needed here, and slow to import

    target = download_folder()
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as fresh:  # on the same disk, so that the move below is a rename
        FashionMNIST(fresh, download=True)
        for split in FILES:
            paths = find_files(fresh, split)
            if paths is None:
                raise RuntimeError(f"torchvision reported no error but {' and '.join(FILES[split])} are not there")
            read_files(paths, split)
        raw = target / "FashionMNIST" / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        for path in (Path(fresh) / "FashionMNIST" / "raw").iterdir():
            shutil.move(path, raw / path.name)
    return target
