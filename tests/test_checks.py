import math

import numpy as np
import pytest
import torch

from vqlib.checks import check_kinds, check_number, check_tensor, check_whole, describe

CODES = torch.arange(98).reshape(2, 7, 7) % 64
IMAGES = torch.linspace(-1, 1, 2 * 784).reshape(2, 1, 28, 28)

# --- tensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", [CODES, CODES[:1], CODES[:0], CODES.transpose(1, 2)])
def test_a_right_tensor_passes(codes):
    assert check_tensor("codes", codes, ("B", 7, 7), torch.int64, 0, 63) is None


@pytest.mark.parametrize(
    "codes, got",
    [
        (CODES.flatten(1), r"\(2, 49\) torch.int64"),
        (CODES[:, :6], r"\(2, 6, 7\)"),
        (CODES[None], r"\(1, 2, 7, 7\)"),
        (torch.tensor(3), r"\(\)"),
        (CODES.int(), "torch.int32"),
        (CODES.float(), "torch.float32"),
        (CODES.numpy(), r"ndarray \(2, 7, 7\)"),
        (CODES.tolist(), "list"),
        (None, "NoneType"),
        (CODES - 1, "-1"),
        (CODES + 1, "64"),
    ],
)
def test_a_wrong_tensor_is_refused_with_what_is_wanted_and_what_came(codes, got):
    with pytest.raises(ValueError, match=rf"codes must be a \(B, 7, 7\) int64 tensor in 0…63, got .*{got}.*Ask"):
        check_tensor("codes", codes, ("B", 7, 7), torch.int64, 0, 63, remedy="Ask the tokenizer.")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_float_stands_for_any_floating_dtype(dtype):
    check_tensor("images", IMAGES.to(dtype), ("B", 1, 28, 28), float, -1, 1)
    with pytest.raises(ValueError, match="images must be a .* float tensor"):
        check_tensor("images", CODES, ("B", 7, 7), float)
    if dtype != torch.float32:
        with pytest.raises(ValueError, match="images must be a .* float32 tensor"):
            check_tensor("images", IMAGES.to(dtype), ("B", 1, 28, 28), torch.float32)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bounds", [(), (-1, 1)])
def test_one_value_that_is_not_finite_is_refused(bad, bounds):
    images = IMAGES.clone()
    images[1, 0, 3, 4] = bad
    with pytest.raises(ValueError, match="images"):
        check_tensor("images", images, ("B", 1, 28, 28), float, *bounds)


def test_bounds_of_floating_numbers_leave_room_for_rounding():
    check_tensor("images", IMAGES * 1.0009, ("B", 1, 28, 28), float, -1, 1)
    with pytest.raises(ValueError, match="images"):
        check_tensor("images", IMAGES * 1.002, ("B", 1, 28, 28), float, -1, 1)


def test_dots_stand_for_any_number_of_dimensions():
    for shape in ((28, 28), (5, 28, 28), (2, 3, 28, 28), (0, 28, 28)):
        check_tensor("pixels", torch.zeros(shape, dtype=torch.uint8), ("...", 28, 28), torch.uint8)
    check_tensor("codes", torch.tensor(3), ("...",), torch.int64)
    for shape in ((28,), (28, 27), (28, 28, 1)):
        with pytest.raises(ValueError, match="pixels"):
            check_tensor("pixels", torch.zeros(shape, dtype=torch.uint8), ("...", 28, 28), torch.uint8)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 9, np.int64(3), np.uint8(3)])
def test_whole_numbers_pass(value):
    check_whole("n", value, 1, 9)
    check_whole("n", value + 100, 1)


@pytest.mark.parametrize("value", [0, 10, -1, 2.0, True, np.float64(2), "2", None, [2], torch.tensor(2), math.nan])
def test_what_is_no_whole_number_in_range_is_refused(value):
    with pytest.raises(ValueError, match="n must be a whole number in 1…9, got"):
        check_whole("n", value, 1, 9)
    if value != 10:
        with pytest.raises(ValueError, match="n must be a whole number ≥ 1, got"):
            check_whole("n", value, 1)


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.5), np.int64(1)])
def test_numbers_pass(value):
    check_number("top_p", value, 0, 1)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, True, "1", None, torch.tensor(0.5), 1j])
def test_what_is_no_finite_number_in_range_is_refused(value):
    with pytest.raises(ValueError, match="top_p must be a finite number in .0, 1., got"):
        check_number("top_p", value, 0, 1)


def test_without_an_upper_bound_a_number_must_still_be_finite():
    check_number("temperature", 1e300, 0)
    with pytest.raises(ValueError, match="temperature"):
        check_number("temperature", math.inf, 0)


# --- kinds -----------------------------------------------------------------------------------------------------------


def test_arguments_of_another_kind_are_refused_by_name():
    linear, norm = torch.nn.Linear(2, 2), torch.nn.LayerNorm(2)
    check_kinds(first=(linear, torch.nn.Linear), second=(norm, torch.nn.LayerNorm), both=(norm, torch.nn.Module))
    with pytest.raises(ValueError, match="second must be a LayerNorm, got a Linear"):
        check_kinds(first=(linear, torch.nn.Linear), second=(linear, torch.nn.LayerNorm))


@pytest.mark.parametrize(
    "value, words",
    [
        (torch.zeros(2, 3), "(2, 3) torch.float32"),
        (np.zeros((2, 3)), "ndarray (2, 3) float64"),
        (torch.nn.GELU(), "a GELU"),
        ("x" * 1000, "str '" + "x" * 59),
        (None, "NoneType None"),
    ],
)
def test_a_value_is_described_in_a_few_words(value, words):
    assert describe(value) == words
