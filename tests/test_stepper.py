import copy
import gc
import weakref

import pytest
import torch
from conftest import lively_transformer, same_weights, seeded
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from vqlib import stepper
from vqlib.sampling import gumbel_noise, sample
from vqlib.stepper import one_token_step
from vqlib.transformer import Transformer

LABELS = torch.tensor([0, 3, 9, 3])
TOKENS = torch.randint(75, (4, 50), generator=seeded(5))


def livelier_transformer(qk_norm):
    """Its gains and biases are far from 1 and 0, so that one that is left out shows."""
    model, generator = lively_transformer(qk_norm), seeded(1)
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.data.add_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator) * 0.3)
    return model


@pytest.fixture
def transformer():
    return livelier_transformer(qk_norm=True)


@pytest.fixture
def laid_out(monkeypatch):
    """A list that grows with each matrix that is laid out: four per block, eight per Transformer."""
    calls, lay_out = [], stepper.laid_out
    monkeypatch.setattr(stepper, "laid_out", lambda linears, few: calls.extend(linears) or lay_out(linears, few))
    return calls


@torch.no_grad()
def assert_right(transformer, rows=8, length=6):
    """The logits of tokens read one by one are the plain model's, which reads them all at once: (4, length, 75)."""
    step, cache = one_token_step(transformer, rows), transformer.new_cache(4, length)
    fast = torch.stack([step(token, cache) for token in TOKENS[:, :length].T], dim=1)
    plain = transformer(TOKENS[:, :length])
    assert fast.dtype == plain.dtype and cache.length == length
    assert (fast - plain).abs().max() < (1e-10 if plain.dtype == torch.float64 else 2e-5) * plain.abs().max()
    return plain.double()


def draw(transformer):
    return sample(transformer, LABELS, generator=seeded())


# --- the same logits -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("rows", [8, 500])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_fast_step_is_the_cached_forward(laid_out, qk_norm, rows):
    transformer = livelier_transformer(qk_norm)
    assert_right(transformer, rows, length=50)
    step, (cache, other) = one_token_step(transformer, rows), (transformer.new_cache(4, 6) for _ in range(2))
    for c in (cache, other):
        transformer(TOKENS[:, :3], c)
    for t in range(3, 6):  # it goes on where the plain forward stopped, and leaves the cache as that would
        plain = transformer(TOKENS[:, t : t + 1], other)[:, -1]
        assert (step(TOKENS[:, t], cache) - plain).abs().max() < 1e-9 and cache.length == other.length
    assert (cache.keys - other.keys).abs().max() < 1e-9 and (cache.values - other.values).abs().max() < 1e-9
    assert len(laid_out) == 8


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 1e-3])
def test_queries_and_keys_are_normalised_as_rmsnorm_does_even_if_they_are_tiny(transformer, scale):
    for block in transformer.blocks:
        block.attention.qkv.weight[:64].mul_(scale)
        block.attention.qkv.bias[:64].mul_(scale)
    assert_right(transformer)
    assert_right(transformer.float())


@torch.no_grad()
def test_weights_that_share_memory_with_earlier_ones_are_not_disturbed_by_them(transformer):
    norm = transformer.blocks[0].norm1
    old = norm.weight.data
    assert_right(transformer)
    norm.weight.data = old.clone()
    old.mul_(5)
    assert_right(transformer)


@torch.no_grad()
@pytest.mark.parametrize("rows", [8, 500])
@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_only_float16_weights_are_read_as_float16(qk_norm, rows, halves):
    transformer = livelier_transformer(qk_norm).float()
    for parameter in transformer.parameters():
        parameter.copy_(parameter.half())
        if not halves:  # as far from a float16 number as can be
            parameter.mul_(1 + 2**-12)
    plain = assert_right(transformer, rows, length=50)
    rounded = copy.deepcopy(transformer).half().float()(TOKENS)
    assert halves or (rounded - plain).abs().max() > 4e-4 * plain.abs().max()  # or this test would not notice


# --- laid out once, and anew after any change ------------------------------------------------------------------------


def test_what_is_laid_out_is_kept(transformer, laid_out):
    codes = draw(transformer)
    assert torch.equal(codes, draw(transformer)) and len(laid_out) == 8
    assert not codes.is_inference()  # one may train on what was drawn
    sample(transformer.train(), LABELS, guidance=2.0)
    sample(transformer, torch.full((5, 3), 74))
    assert len(laid_out) == 8


def test_few_and_many_rows_are_kept_side_by_side(transformer, laid_out):
    expected = draw(transformer)
    for n, count in ((132, 16), (4, 16), (132, 16)):
        codes = sample(transformer, LABELS.repeat(n // 4), generator=seeded())
        assert torch.equal(codes[:4], expected) and len(laid_out) == count


def step_of_an_optimizer(model):
    model(TOKENS).square().mean().backward()
    torch.optim.Adam(model.parameters(), 0.1).step()


def load(model, **options):
    model.load_state_dict({name: weight.roll(1, 0) for name, weight in model.state_dict().items()}, **options)


def swap_two(weights):
    weights.data[[0, 1]] = weights.data[[1, 0]]


def tie(model):
    model.head.weight = model.token_embedding.weight


CHANGES = {
    "a step of an optimizer": step_of_an_optimizer,
    "load_state_dict": load,
    "load_state_dict, assigned": lambda model: load(model, assign=True),
    "mul_": lambda model: [p.data.mul_(1.01) for p in model.parameters()],
    "neg_": lambda model: [p.data.neg_() for p in model.parameters()],
    "one bias": lambda model: model.blocks[1].mlp[2].bias.data[3:4].add_(1.0),
    "one weight, a little": lambda model: model.blocks[0].mlp[0].weight.data[0, :1].mul_(1 + 1e-6),
    "two rows swapped": lambda model: swap_two(model.blocks[0].mlp[0].weight),
    "two numbers swapped": lambda model: swap_two(model.blocks[1].attention.qkv.weight[70]),
    "half().float()": lambda model: model.half().float(),
    "float()": lambda model: model.float(),
    "float().double()": lambda model: model.float().double(),
    "another layer": lambda model: setattr(model.blocks[0].mlp, "2", nn.Linear(128, 32).double()),
    "other blocks": lambda model: setattr(model, "blocks", lively_transformer(qk_norm=True).blocks),
    "one matrix for both": tie,
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_any_change_it_is_laid_out_anew(transformer, laid_out, change):
    before = assert_right(transformer)
    CHANGES[change](transformer)
    after = assert_right(transformer)
    assert len(laid_out) == 16
    assert (after - before).abs().max() > 1e-8  # or a stale copy would not show
    assert_right(transformer)
    assert len(laid_out) == 16


def test_a_change_of_float16_weights_gains_and_biases_is_seen():
    transformer = lively_transformer(qk_norm=True).half().float()
    attention = transformer.blocks[0].attention
    before = assert_right(transformer)
    for weight in (attention.qkv.weight, attention.qkv.bias, attention.norm_q.weight, attention.norm_k.weight):
        weight.data[:5] = weight.data[:5] * 2 + (weight is attention.qkv.bias)  # such numbers remain float16 numbers
        after = assert_right(transformer)
        assert (after - before).abs().max() > 1e-2
        before = after


# --- whatever is not plain is called as it is ------------------------------------------------------------------------


class Sub(Transformer):
    def forward(self, tokens, cache=None):
        return -super().forward(tokens, cache)


class Louder(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def own_forward(model):
    layer = model.blocks[1].attention.out
    layer.forward = lambda x: 2 * nn.Linear.forward(layer, x)


def parametrized(model):
    layer = nn.utils.parametrizations.weight_norm(model.blocks[0].mlp[0])
    layer.parametrizations.weight.original0.data.mul_(2)


def double(module, inputs, output):
    return 2 * output


UNUSUAL = {
    "a replaced module": lambda model: setattr(model.blocks[0].mlp, "1", nn.ReLU()),
    "fewer blocks": lambda model: setattr(model, "blocks", model.blocks[:1]),
    "an exact GELU": lambda model: setattr(model.blocks[0].mlp[1], "approximate", "none"),
    "a changed class": lambda model: setattr(model.blocks[0].mlp[0], "__class__", Louder),
    "a forward of its own": own_forward,
    "a parametrization": parametrized,
    "a hook that changes something": lambda model: model.blocks[0].mlp.register_forward_hook(double),
    "a subclass": lambda model: setattr(model, "__class__", Sub),
}


@pytest.mark.parametrize("change", UNUSUAL)
def test_a_model_that_is_not_plain_is_called_as_it_is(transformer, laid_out, change):
    before = assert_right(transformer)
    laid_out.clear()
    UNUSUAL[change](transformer)
    assert (assert_right(transformer) - before).abs().max() > 1e-6
    tokens, noise = 64 + LABELS[:, None], gumbel_noise(4, generator=seeded())
    for t in range(5):  # a slow loop
        logits = transformer(tokens)[:, -1, :64]
        tokens = torch.cat([tokens, (logits + 0.8 * noise[:, t]).argmax(-1, keepdim=True)], 1)
    assert torch.equal(draw(transformer).flatten(1)[:, :5], tokens[:, 1:]) and not laid_out


HOOKS = {
    "forward hook": lambda model, see: model.register_forward_hook(see),
    "forward pre-hook": lambda model, see: model.register_forward_pre_hook(see),
    "hook of a layer": lambda model, see: model.blocks[1].mlp[0].register_forward_hook(lambda *_: see(model)),
    "pre-hook of a layer": lambda model, see: model.head.register_forward_pre_hook(lambda *_: see(model)),
    "global hook": lambda model, see: register_module_forward_hook(see),
    "global pre-hook": lambda model, see: register_module_forward_pre_hook(see),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_fire_for_each_token(transformer, laid_out, kind):
    expected, seen = draw(transformer), []
    laid_out.clear()
    handle = HOOKS[kind](transformer, lambda module, *_: seen.append(1) if module is transformer else None)
    try:
        assert torch.equal(draw(transformer), expected) and len(seen) == 49 and not laid_out
    finally:
        handle.remove()
    assert torch.equal(draw(transformer), expected) and len(seen) == 49


def test_autocast_is_left_to_the_plain_forward(laid_out):
    transformer, dtypes = lively_transformer().float(), []
    with torch.autocast("cpu", torch.bfloat16):
        codes = draw(transformer)
        assert not laid_out
        transformer.head.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
        assert torch.equal(draw(transformer), codes)
    assert dtypes == [torch.bfloat16] * 49


# --- models come and go ----------------------------------------------------------------------------------------------


def test_a_copy_has_its_own(transformer, laid_out):
    before = assert_right(transformer)
    other = copy.deepcopy(transformer)
    other.blocks[0].mlp[0].weight.data.neg_()
    assert (assert_right(other) - before).abs().max() > 1e-3
    assert torch.equal(assert_right(transformer), before) and len(laid_out) == 16


def test_what_is_kept_goes_with_its_model():
    transformer = lively_transformer()
    for n in (1, 33):
        sample(transformer, LABELS.repeat(n), prefix=torch.zeros(4 * n, 47, dtype=torch.int64))
    assert transformer in stepper._KEPT
    steppers = [one_token_step(transformer, rows) for rows in (4, 200)]
    parts = [weakref.ref(part) for part in (transformer, transformer.head.weight, *steppers)]
    del transformer, steppers
    if any(part() for part in parts):
        gc.collect()
    assert not any(part() for part in parts)


def test_laying_out_leaves_the_model_and_the_global_generator_alone(transformer):
    transformer.train()
    before, state = copy.deepcopy(transformer), torch.get_rng_state()
    stepper._built.cache_clear()
    draw(transformer)
    assert torch.equal(torch.get_rng_state(), state) and same_weights(transformer, before)
    assert transformer.training and all(p.requires_grad for p in transformer.parameters())


def test_what_was_laid_out_in_inference_mode_serves_outside(transformer, laid_out):
    with torch.inference_mode():
        codes = draw(transformer)
    assert torch.equal(draw(transformer), codes) and len(laid_out) == 8


def blocks_in_another_order(transformer):
    first, second = transformer.blocks
    transformer.blocks[0], transformer.blocks[1] = second, first


def a_replaced_method(transformer):
    attention, other = (block.attention for block in transformer.blocks)
    attention.queries_keys_values = other.queries_keys_values


def a_replaced_embedding(transformer):
    transformer.embed = lambda tokens, cache=None: 2 * Transformer.embed(transformer, tokens, cache)


@pytest.mark.parametrize("change", [blocks_in_another_order, a_replaced_method, a_replaced_embedding])
def test_a_model_put_together_otherwise_is_called_as_it_is(transformer, change):
    draw(transformer)
    change(transformer)
    assert_right(transformer)
