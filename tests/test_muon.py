"""Muon: its steps against PyTorch's own and against a slow, obvious version; and whom it is given to."""

import copy
import dataclasses

import pytest
import torch
from conftest import EMA_TINY, TRANSFORMER_TINY
from hypothesis import given
from hypothesis import strategies as st

from vqlib import training
from vqlib.training.muon import Muon, orthogonalized


def matrix(rows, columns, seed, dtype=torch.float32):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99), st.sampled_from([1e-6, 1.0, 1e6]))
def test_every_direction_that_is_not_lost_becomes_about_as_strong_as_any_other(rows, columns, seed, scale):
    given = matrix(rows, columns, seed, torch.float64) * scale
    u, s, vh = torch.linalg.svd(given, full_matrices=False)
    strengths = u.T @ orthogonalized(given) @ vh.T  # diagonal if the directions are kept
    assert (strengths - strengths.diagonal().diag()).abs().max() < 1e-6
    found = strengths.diagonal()[s / given.norm() > 0.002]
    assert len(found) and 0.68 < found.min() and found.max() < 1.21


def test_a_gradient_of_nothing_but_zeros_moves_nothing():
    assert orthogonalized(torch.zeros(3, 5)).count_nonzero() == 0


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 16)])
def test_the_steps_are_those_of_pytorch(shape):
    ours, theirs = (torch.nn.Parameter(matrix(*shape, seed=0)) for _ in range(2))
    knobs = {"lr": 0.01, "weight_decay": 0.3, "momentum": 0.9}
    optimizers = (
        Muon([ours], **knobs, dtype=torch.bfloat16),
        torch.optim.Muon([theirs], **knobs, adjust_lr_fn="match_rms_adamw"),
    )
    began = ours.detach().clone()
    for step in range(5):
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            p.grad = matrix(*shape, seed=step + 1)
            optimizer.step()
    moved = (theirs - began).norm()
    assert (ours - theirs).norm() < 0.02 * moved  # bf16 rounds theirs at other places


def test_a_parameter_without_gradient_stays_and_a_copy_goes_on_alike():
    still, moved = (torch.nn.Parameter(matrix(4, 6, seed=seed)) for seed in (0, 1))
    optimizer, began = Muon([still, moved], lr=0.1, dtype=torch.float64), still.detach().clone()
    moved.grad = matrix(4, 6, seed=2)
    optimizer.step()
    assert torch.equal(still, began) and not torch.equal(moved, matrix(4, 6, seed=1))
    other = copy.deepcopy(optimizer)
    copied = other.param_groups[0]["params"][1]
    copied.grad = moved.grad.clone()
    for each in (optimizer, other):
        each.step()
    assert torch.equal(copied, moved)


def test_a_convolution_is_a_matrix_with_a_row_per_output_channel():
    flat = torch.nn.Parameter(matrix(8, 36, seed=0))
    kernel = torch.nn.Parameter(flat.detach().reshape(8, 4, 3, 3).to(memory_format=torch.channels_last))
    flat.grad = matrix(8, 36, seed=1)
    kernel.grad = flat.grad.reshape(8, 4, 3, 3).to(memory_format=torch.channels_last)
    for p in (flat, kernel):
        Muon([p], lr=0.1).step()
    assert torch.allclose(kernel.flatten(1), flat, atol=1e-6)


@pytest.mark.parametrize("stage_of", ["transformer", "vqvae"])
def test_it_gets_the_matrices_in_between_and_adamw_the_rest(some, stage_of):
    if stage_of == "transformer":
        recipe = dataclasses.replace(TRANSFORMER_TINY, optimizer="muon")
        codes = torch.zeros(len(some), 7, 7, dtype=torch.int64)
        stage = training.TransformerStage(recipe, (codes, some.labels), "cpu")
        expected = {p for block in stage.model.blocks for p in block.parameters() if p.ndim == 2}
    else:
        stage = training.VQVAEStage(dataclasses.replace(EMA_TINY, optimizer="muon"), some, "cpu")
        expected = {p for p in stage.model.parameters() if p.ndim == 4 and p.shape != (4, 1, 4, 4)}
    ((adamw, muon),) = stage.optimizers()
    given = [{p for group in optimizer.param_groups for p in group["params"]} for optimizer in (adamw, muon)]
    assert given[1] == expected and not given[0] & given[1]
    assert given[0] | given[1] == {p for p in stage.model.parameters() if p.requires_grad}
