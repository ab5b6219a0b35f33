"""Finding, fetching and verifying the files of Fashion-MNIST, MNIST and KMNIST.

Each data set is four files in the IDX format, two per split, plain or gzipped. All are verified by their form (number
and size of the pictures, labels in 0…9); Fashion-MNIST's also by the SHA-256 of the uncompressed content, whoever
compressed it; the .gz files of MNIST and KMNIST also by the MD5 that torchvision knows.
"""

import gzip
import hashlib
import math
import os
import shutil
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch

from vqlib.files import expand

NAMES = ("FashionMNIST", "MNIST", "KMNIST")
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of the Debian package
OR_MINI = "Or use the embedded mini set: data.load(..., mini=True)."  # command lines put their own flag here
COUNTS = {"train": 60_000, "test": 10_000}
SHA256 = {  # of Fashion-MNIST's files, uncompressed
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
FILES = {"train": list(SHA256)[:2], "test": list(SHA256)[2:]}  # images, then labels; all three data sets' names


def download_folder():
    """Where downloads are kept, whatever the working directory; None if this user has no home directory."""
    cache = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return None if cache.startswith("~") else Path(cache, "vqlib", "data").absolute()


def load(name, split, folder=None, download=True):
    """Read a split as `read` does, from the first place that has its files. `vqlib.data` lists places and errors."""
    fashion, named = name == NAMES[0], folder or os.environ.get("VQLIB_DATA")
    places = filter(None, [expand("data"), download_folder(), SYSTEM_FOLDER])
    if not fashion:  # files that lie loose in one of these are taken for Fashion-MNIST's
        places = [place / name / "raw" for place in places]
    for place in [expand(named)] if named else places:
        if paths := find(name, place, split):
            return read(paths, name, split)
    or_mini = f" {OR_MINI}" * fashion
    if named:
        what, got = "folder" if folder else "VQLIB_DATA", "" if os.path.isdir(place) else ", which is not a folder"
        wanted = f"{' and '.join(FILES[split])} (plain or .gz), at its top or in {name}/raw"
        remedy = f"Leave it out, and a copy is found elsewhere, or downloaded.{or_mini}"
        raise FileNotFoundError(f"{what} must hold {wanted}, got {place}{got}. {remedy}")
    reason = "downloading was turned off"
    if download:
        try:
            return read(find(name, fetch(name), split), name, split)
        except (OSError, RuntimeError, ValueError) as error:
            where = f" into {download_folder()}, which XDG_CACHE_HOME moves," if download_folder() else ""
            reason = f"the download{where} failed ({type(error).__name__}: {error})"
    package = "on Debian and Ubuntu `apt-get install dataset-fashion-mnist`; or " * fashion
    remedy = f"{package}set VQLIB_DATA to a folder with {', '.join(SHA256)}, plain or .gz.{or_mini}"
    raise RuntimeError(f"No copy of {name} was found, and {reason}. Connect to the internet (30 MB); or {remedy}")


def find(name, folder, split):
    """The split's [image file, label file] in ``folder/name/raw`` or at the folder's top; None if one is missing."""
    for place in (Path(folder, name, "raw"), Path(folder)):
        both_ways = [(place / f"{file}.gz", place / file) for file in FILES[split]]  # .gz first: easier to verify
        paths = [next(filter(os.path.isfile, ways), None) for ways in both_ways]  # Path.is_file may raise
        if all(paths):
            return paths


def read(paths, name, split):
    """Read what `find` found: pixels (N, 28, 28) uint8, labels (N,) int64, source. ValueError unless it is original."""
    n = COUNTS[split]
    pixels, labels = _read(paths[0], name, (n, 28, 28)), _read(paths[1], name, (n,))
    return pixels, labels.long(), f"{name}, {paths[0].parent}"


def _read(path, name, shape):
    # IDX: two zero bytes, a type code (8 is uint8), the number of dimensions, then each dimension as big-endian int32.
    header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes()
    try:
        stored = path.read_bytes()
        content = gzip.decompress(stored) if path.suffix == ".gz" else stored
        values = np.frombuffer(content, np.uint8)[len(header) :]
        sound = content.startswith(header) and len(values) == math.prod(shape) and (len(shape) > 1 or values.max() <= 9)
        is_fashion = hashlib.sha256(content).hexdigest() == SHA256[path.name.removesuffix(".gz")]
        if not sound or is_fashion != (name == NAMES[0]):  # all three have files of the same names and form
            raise ValueError("truncated, altered, or another data set's")
        if path.suffix == ".gz" and not is_fashion:
            from torchvision import datasets  # slow to import, and needed only here and in `fetch`

            known = dict(getattr(datasets, name).resources)[path.name]
            if hashlib.md5(stored, usedforsecurity=False).hexdigest() != known:
                raise ValueError("another MD5 than torchvision knows")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        remedy = "Replace it; or move it away and unset VQLIB_DATA, and a copy is found elsewhere, or downloaded."
        remedy += f" {OR_MINI}" * (name == NAMES[0])
        raise ValueError(f"{path} is not the original file of {name} ({error}). {remedy}") from error
    return torch.from_numpy(values.reshape(shape).copy())


def fetch(name):
    """Download a data set through torchvision, verify it, only then move it into `download_folder`; return that."""
    from torchvision import datasets

    if not (target := download_folder()):
        raise RuntimeError("there is no home directory to keep it in: set XDG_CACHE_HOME to a folder")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as fresh:  # on the same disk, so that a move is a rename
        getattr(datasets, name)(fresh, download=True)
        for split in FILES:
            load(name, split, fresh, download=False)  # verifies
        shutil.copytree(Path(fresh, name), target / name, copy_function=os.replace, dirs_exist_ok=True)
    return target
