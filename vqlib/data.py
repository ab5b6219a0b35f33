"""Fashion-MNIST in memory: one uint8 tensor of pictures, from wherever a verified copy can be found (notebook 01).

`load` takes the first of these places that has the files (MNIST's and KMNIST's only from 1, 2 or the download):

1. the folder given, or the one that the environment variable ``VQLIB_DATA`` names: at its top or in its NAME/raw;
2. what torchvision downloaded earlier: ``./data``, and the folder where vqlib keeps its downloads;
3. the system's copy (the Debian and Ubuntu package ``dataset-fashion-mnist``);
4. a download through torchvision, and if that fails, with a warning, the mini set embedded in the package.

Data set: Xiao, Rasul, Vollgraf, "Fashion-MNIST" (arXiv 1708.07747), MIT licence.
"""

import hashlib
import io
import os
import warnings
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import vqlib
from vqlib import sources
from vqlib.checks import check_choice, check_labels, check_tensor, check_whole, describe

CLASS_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SIZE = 28  # pixels per side
MINI_FILE = Path(__file__).parent / "sample" / "fashion_mnist_sample.npz"
OR_MINI = sources.OR_MINI


class MiniWarning(UserWarning):
    """The embedded mini set stands in for the real data set."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """The pictures of one split, in memory. Raises ValueError if the tensors are not as described."""

    pixels: torch.Tensor = field(repr=False)  # (N, 28, 28) uint8, from 0 (black) to 255 (white)
    labels: torch.Tensor = field(repr=False)  # (N,) int64 in 0…9, an index into `CLASS_NAMES`
    source: str  # where the pictures came from, in words

    def __post_init__(self):
        check_tensor("pixels", self.pixels, ("N", SIZE, SIZE), torch.uint8)
        check_labels(self.labels, len(CLASS_NAMES), len(self.pixels))

    def __len__(self):
        return len(self.pixels)

    def subset(self, index):
        """The pictures at ``index`` (anything that indexes a tensor), as a Dataset."""
        return Dataset(self.pixels[index], self.labels[index], self.source)


def to_images(pixels: torch.Tensor) -> torch.Tensor:
    """From stored pixels to what the networks see: (..., 28, 28) uint8 -> (..., 1, 28, 28) float32 in [-1, 1]."""
    check_tensor("pixels", pixels, ("...", SIZE, SIZE), torch.uint8, remedy="data.load returns such pixels.")
    return (pixels.float() / 127.5 - 1).unsqueeze(-3)


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """The way back, rounded and clipped: (..., 1, 28, 28) float in [-1, 1] -> (..., 28, 28) uint8."""
    check_tensor("images", images, ("...", 1, SIZE, SIZE), float)
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).squeeze(-3)


def load_picture(source, invert: bool | None = None) -> torch.Tensor:
    """A picture of your own, prepared as those of Fashion-MNIST were: (1, 1, 28, 28) float32 in [-1, 1].

    It is made grey, its longer side 28 pixels, and put in the middle, light on black. Nothing is cut off, so the piece
    should fill the picture and lie on an even ground.

    source: the path of a PNG or JPEG file, a PIL image, or an array or tensor, (H, W) or (H, W, 3 or 4), of uint8 or of
        floats in [0, 1]. What is transparent becomes ground.
    invert: whether to swap light and dark. None does if the rim is light, as in most photographs of clothes.
    Raises FileNotFoundError if there is no such file, ValueError if the source is no picture.
    """
    from PIL import Image, ImageOps

    source = _to_uint8(source) if isinstance(source, torch.Tensor | np.ndarray) else source
    try:
        if isinstance(source, np.ndarray):
            picture = Image.fromarray(source)
        elif isinstance(source, Image.Image):
            picture = source
        else:
            path = Path(os.path.expanduser(source)).absolute()
            picture = Image.open(io.BytesIO(path.read_bytes()))
        picture = ImageOps.exif_transpose(picture)  # a camera may note which way it was held
        if picture.mode.startswith("I"):  # 16 bits per pixel
            picture = Image.fromarray((np.array(picture) / 257).astype(np.uint8))
        grey, opaque = np.moveaxis(np.array(picture.convert("RGBA").convert("LA")) / 255, -1, 0)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no {path}. Give a path from where you stand, or a whole one") from error
    except Exception as error:  # whatever Pillow raises of a damaged file
        wanted = "source must be the path of a picture, a PIL image, or an array or tensor"
        got = source if isinstance(source, str | Path) else describe(source)
        raise ValueError(f"{wanted}, got {got} ({type(error).__name__}: {error})") from error
    light = (grey * opaque).sum() < opaque.sum() / 2 if invert is None else invert  # a dark piece lies on light ground
    grey = grey * opaque + light * (1 - opaque)

    def ground():
        return np.median([*grey[0], *grey[-1], *grey[:, 0], *grey[:, -1]])

    if invert or (invert is None and ground() > 0.5):
        grey = 1 - grey
    if grey.shape != (SIZE, SIZE):  # one of this size is taken to be prepared already; no photograph's ground is black
        grey = ((grey - ground()) / (1 - min(ground(), 0.9))).clip(0, 1)
    picture = Image.fromarray((grey * 255).round().astype(np.uint8))
    return to_images(torch.from_numpy(np.array(ImageOps.pad(picture, (SIZE, SIZE))))[None])


def _to_uint8(picture):
    """An array or tensor as `load_picture` takes it, in uint8."""
    if isinstance(picture, torch.Tensor):
        picture = (picture.float() if picture.is_floating_point() else picture).detach().cpu().numpy()
    if picture.size and (picture.ndim == 2 or picture.shape[2:] in ((3,), (4,))):
        if picture.dtype == np.uint8:
            return picture
        if np.issubdtype(picture.dtype, np.floating) and ((picture >= 0) & (picture <= 1)).all():
            return (picture * 255).round().astype(np.uint8)
    wanted = "(H, W) or (H, W, 3 or 4), of uint8 or of floats in [0, 1]"
    got = f"{describe(picture)}, {picture.min():.4g} … {picture.max():.4g}" if picture.size else describe(picture)
    raise ValueError(f"source must be {wanted}, got {got}. Images in [-1, 1] are ready as they are")


def load(split: str, folder=None, *, mini=None, download=True, name="FashionMNIST") -> Dataset:
    """Load one split, "train" (60,000 pictures) or "test" (10,000).

    folder: where the files are, and must be; by default VQLIB_DATA, then the other places that the module lists.
    mini: True takes the embedded mini set (2,000 training, 500 test pictures) without looking anywhere; False never
        does; None takes it only if there is nothing else, with a `MiniWarning` (and at once if VQLIB_FAST=1).
    download: whether to try the network when no folder has the files.
    name: "FashionMNIST", to which `CLASS_NAMES` and the mini set belong, "MNIST" (digits) or "KMNIST" (Japanese).

    Raises ValueError if a file is damaged or altered, FileNotFoundError if a folder that was named lacks the files, and
    RuntimeError if no source worked and the mini set may not stand in.
    """
    check_choice("split", split, ("train", "test"))
    check_choice("name", name, sources.NAMES, "For pictures of your own, make a Dataset")
    if name != sources.NAMES[0]:
        check_choice("mini", mini, (None, False), f"There is no mini set of {name}")
        mini = False
    if mini or (mini is None and vqlib.fast()):
        return load_mini(split)
    try:
        return Dataset(*sources.load(name, split, folder, download))
    except RuntimeError as error:
        if mini is False:
            raise
        warnings.warn(f"{error} For now, the MINI SET stands in: figures will differ.", MiniWarning, stacklevel=2)
    return load_mini(split)


def load_mini(split: str) -> Dataset:
    """The embedded mini set, with the same number of pictures of every class (200 each in train, 50 in test)."""
    check_choice("split", split, ("train", "test"))
    try:
        with np.load(MINI_FILE, allow_pickle=False) as arrays:
            pixels, labels = (torch.from_numpy(arrays[f"{split}_{part}"]) for part in ("pixels", "labels"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        remedy = "Restore it with `git checkout vqlib/sample`, or install the package again."
        raise ValueError(f"{MINI_FILE} is damaged or missing ({error}). {remedy}") from error
    return Dataset(pixels, labels.long(), f"MINI SET ({len(labels):,} of {sources.COUNTS[split]:,} {split} pictures)")


def split_validation(train: Dataset, n_validation=5000, seed=0) -> tuple[Dataset, Dataset]:
    """Hold the same pictures out of a training set for every recipe to be compared: (training part, held-out part)."""
    check_whole("n_validation", n_validation, 1, len(train) - 1)
    check_whole("seed", seed, 0, 2**63 - 1)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(int(seed)), device="cpu")
    return train.subset(order[n_validation:]), train.subset(order[:n_validation])


def fingerprint(dataset: Dataset) -> str:
    """The SHA-256 of a dataset's pixels and labels: the same pictures in the same order give the same one."""
    return hashlib.sha256(dataset.pixels.cpu().numpy().tobytes() + dataset.labels.cpu().numpy().tobytes()).hexdigest()
