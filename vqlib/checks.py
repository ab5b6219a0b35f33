"""What public functions ask of their arguments, and the words in which they refuse: a `ValueError` with the remedy."""

import math
import numbers
import sys
import warnings

import torch

LABELS = "data.CLASS_NAMES says which number is which class, and pair.class_numbers(names) makes labels of names"


class ScaleWarning(UserWarning):
    """Pictures seem to be in [0, 1], where [-1, 1] is meant."""


def check_tensor(name, value, shape, dtype, low=None, high=None, remedy=""):
    """Raise ValueError unless ``value`` is a tensor of this shape, dtype and range, and has no NaN or infinity.

    shape: a size for each dimension, or a letter where any will do: ("B", 7, 7); "..." first for any more before them.
    dtype: of PyTorch; or `float` for any floating-point one. low, high: the bounds, which belong to the range.
    """
    leading, sizes = shape[0] == "...", tuple(s for s in shape if s != "...")
    fits = isinstance(value, torch.Tensor) and (value.is_floating_point() if dtype is float else value.dtype == dtype)
    fits = fits and (value.ndim >= len(sizes) if leading else value.ndim == len(sizes))
    fits = fits and all(isinstance(s, str) or s == n for s, n in zip(sizes[::-1], value.shape[::-1], strict=False))
    got = describe(value)
    if type(value).__module__ == "numpy":
        remedy = f"torch.from_numpy makes a tensor of an array. {remedy}"
    if fits and value.numel() and low is not None:
        least, most = value.min().item(), value.max().item()
        slack = 1e-3 if value.is_floating_point() else 0
        if not (low - slack <= least and most <= high + slack):  # NaN fails this too
            fits, got = False, f"{least:.4g} … {most:.4g}"
    elif fits and value.is_floating_point() and not value.isfinite().all():
        fits, got = False, "NaN or infinite values"
    if not fits:
        kind = "float" if dtype is float else str(dtype).removeprefix("torch.")
        floating = dtype is float or dtype.is_floating_point
        place = "" if low is None else f" in [{low}, {high}]" if floating else f" in {low}…{high}"
        wanted = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
        raise ValueError(f"{name} must be a {wanted} {kind} tensor{place}, got {got}. {remedy}".strip())


def check_images(name, images, dtype=float):
    """Raise ValueError unless these are (B, 1, 28, 28) float images in [-1, 1], and see `check_scale`."""
    remedy = "data.to_images(pixels) makes them from (B, 28, 28) uint8 pixels, data.load_picture from a file"
    check_tensor(name, images, ("B", 1, 28, 28), dtype, -1, 1, remedy)
    check_scale(name, images)


def check_scale(name, images):
    """Warn if the images seem to be in [0, 1], as others keep them, since that range lies within ours."""
    if images.numel() and images.min() >= 0 and images.max() > 0.5:  # an untrained decoder draws nothing as light
        words = f"{name} must be in [-1, 1], from black to white, and nothing in them is below 0. If they are in [0, 1]"
        frame, level = sys._getframe(), 1
        while frame.f_back and frame.f_globals.get("__name__", "").startswith(("vqlib.", "torch.")):
            frame, level = frame.f_back, level + 1  # up to the reader's own line
        warnings.warn(f"{words}, give {name} * 2 - 1", ScaleWarning, stacklevel=level)


def check_whole(name, value, low, high=None, remedy=""):
    """Raise ValueError unless ``value`` is a whole number in low…high. Booleans don't count as numbers."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)  # numpy's too
    if not whole or value < low or (high is not None and value > high):
        place = f"≥ {low}" if high is None else f"in {low}…{high}"
        raise ValueError(f"{name} must be a whole number {place}, got {value!r}. {remedy}".removesuffix(". "))


def check_number(name, value, low, high=math.inf):
    """Raise ValueError unless ``value`` is a finite number in [low, high]. Booleans don't count as numbers."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)  # numpy's too
    if not (number and math.isfinite(value) and low <= value <= high):
        place = f"≥ {low}" if high == math.inf else f"in [{low}, {high}]"
        raise ValueError(f"{name} must be a finite number {place}, got {value!r}")


def check_choice(name, value, choices, remedy=""):
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}. {remedy}".strip())


def check_codes(codes, num_codes):
    """Raise ValueError unless ``codes`` is (B, 7, 7) int64 in 0…num_codes-1."""
    remedy = "Class and end tokens are not codes: Vocabulary.from_sequences takes them off a sequence"
    check_tensor("codes", codes, ("B", 7, 7), torch.int64, 0, num_codes - 1, remedy)


def check_labels(labels, num_classes, count="B"):
    """Raise ValueError unless ``labels`` is (B,) int64 in 0…num_classes-1, or has ``count`` of them."""
    check_tensor("labels", labels, (count,), torch.int64, 0, num_classes - 1, f"There is one per picture; {LABELS}")


def check_sequences(tokens, num_codes, end):
    """Raise ValueError unless each row of ``tokens``, (B, 51) int64, is a class's start token, 49 codes and the end."""
    check_tensor("tokens", tokens, ("B", 51), torch.int64)
    check_tensor("tokens at position 0 (the class)", tokens[:, 0], ("B",), torch.int64, num_codes, end - 1)
    check_tensor("tokens at positions 1…49 (the codes)", tokens[:, 1:50], ("B", 49), torch.int64, 0, num_codes - 1)
    check_tensor("tokens at position 50 (the end)", tokens[:, 50], ("B",), torch.int64, end, end)


def check_knobs(temperature, top_k, top_p, guidance, generator=None):
    """Raise ValueError unless these are as `sampling.sample` describes them."""
    check_number("temperature", temperature, 0)
    check_number("top_p", top_p, 1e-6, 1)
    check_number("guidance", guidance, 0)
    if top_k is not None:
        check_whole("top_k", top_k, 1)
    if generator is not None and not (isinstance(generator, torch.Generator) and generator.device.type == "cpu"):
        why = "so that a seed means the same pictures on every device: torch.Generator().manual_seed(seed)"
        raise ValueError(f"generator must be a torch.Generator on the CPU, {why}; got {describe(generator)}")


def check_kinds(**given):
    """Raise ValueError unless each ``name=(value, class)`` is of its class, as it isn't when arguments are swapped."""
    for name, (value, kind) in given.items():
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got {describe(value)}")


def describe(value):
    """What a value is, for an error: shape and dtype of a tensor or array, else its type and how it begins."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        kind = "" if isinstance(value, torch.Tensor) else f"{type(value).__name__} "
        return f"{kind}{tuple(value.shape)} {value.dtype}"
    if isinstance(value, torch.nn.Module):
        return f"a {type(value).__name__}"
    return f"{type(value).__name__} {repr(value)[:60]}"
