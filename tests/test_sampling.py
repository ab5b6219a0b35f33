import copy
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vqlib import sampling
from vqlib.sampling import code_log_probs, filter_logits, gumbel_noise, log_likelihood, sample

LABELS = torch.tensor([0, 3, 9, 3, 7, 1, 5])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Toy(nn.Module):
    """Logits that are a table of the position, whatever the tokens: (49, 75)."""

    def __init__(self, table):
        super().__init__()
        self.table, self.head = table, nn.Linear(1, 1, bias=False, dtype=table.dtype)

    def new_cache(self, batch_size, length):
        return SimpleNamespace(length=0)

    def forward(self, tokens, cache=None):
        start = cache.length if cache is not None else 0
        rows = self.table[start:start + tokens.shape[1]]
        if cache is not None:
            cache.length += tokens.shape[1]
        return rows.expand(len(tokens), *rows.shape)

    def stepper(self, rows):
        return lambda tokens, cache: self(tokens[:, None], cache)[:, -1]


def table(seed=0, scale=1.5, same=False):
    """Random logits, with class and end tokens far likelier than any code."""
    logits = torch.randn(1 if same else 49, 75, dtype=torch.float64, generator=seeded(seed)).expand(49, 75) * scale
    logits[:, 64:] = 1000.0
    return logits


# --- exact distributions ---------------------------------------------------------------------------------------------


def slow_distribution(logits, temperature, top_k=None, top_p=1.0):
    """What the documentation promises, code by code: {code: probability}."""
    likeliest = sorted(range(64), key=lambda c: -logits[c])[:top_k]
    weight = {c: math.exp((logits[c] - max(logits)) / temperature) for c in likeliest}
    total = sum(weight.values())
    kept, reached = [], 0.0
    for code in likeliest:
        if reached >= top_p:
            break
        kept.append(code)
        reached += weight[code] / total
    total = sum(weight[c] for c in kept)
    return {c: weight[c] / total for c in kept}


@pytest.mark.parametrize("knobs", [
    {"temperature": 1.0}, {"temperature": 0.5}, {"temperature": 2.0}, {"temperature": 0.8, "top_k": 5},
    {"temperature": 1.5, "top_k": 1}, {"temperature": 1.0, "top_p": 0.7}, {"temperature": 2.0, "top_p": 0.7},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.6}, {"temperature": 1.0, "top_k": 64, "top_p": 1},
], ids=str)
def test_samples_follow_the_exact_distribution(knobs):
    logits = table(same=True)  # the same distribution at all 49 places: 400 pictures are 19,600 draws
    codes = sample(Toy(logits), torch.zeros(400, dtype=torch.int64), generator=seeded(1), **knobs)
    expected = slow_distribution(logits[0, :64].tolist(), **knobs)
    counts, n = codes.flatten().bincount(minlength=64), codes.numel()
    assert set(counts.nonzero().flatten().tolist()) <= set(expected)
    if "top_k" in knobs and "top_p" not in knobs:
        assert len(expected) == knobs["top_k"]
    chi_square = sum((counts[c].item() - n * p) ** 2 / (n * p) for c, p in expected.items())
    freedom = len(expected) - 1
    assert chi_square <= freedom + 4 * math.sqrt(2 * freedom)  # mean + 4 standard deviations; all of one code: 0


def test_a_sample_is_the_argmax_of_logits_plus_scaled_noise():
    logits = table()
    for temperature in (0.3, 1.0, 2.5):
        expected = (logits[:, :64] + temperature * gumbel_noise(20, seeded(4))).argmax(-1)
        codes = sample(Toy(logits), torch.zeros(20, dtype=torch.int64), temperature, generator=seeded(4))
        assert torch.equal(codes.flatten(1), expected)


def test_the_noise_is_gumbel_and_belongs_to_the_picture():
    noise = gumbel_noise(60, seeded())
    assert noise.shape == (60, 49, 64) and noise.dtype == torch.float64 and noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi ** 2 / 6, abs=0.03)
    uniform = (-(-noise).exp()).exp().flatten()  # the Gumbel distribution function of Gumbel noise is uniform
    counts, each = torch.histc(uniform, 50, 0, 1), len(uniform) / 50
    assert ((counts - each) ** 2 / each).sum() < 49 + 4 * math.sqrt(98)
    assert torch.equal(gumbel_noise(7, seeded()), noise[:7])
    one_by_one = seeded()
    assert torch.equal(torch.cat([gumbel_noise(n, one_by_one) for n in (1, 2, 4)]), noise[:7])
    assert not torch.equal(gumbel_noise(7, seeded(1)), noise[:7])
    assert len(noise.flatten(1).unique(dim=0)) == 60


def test_without_a_generator_the_global_one_is_used():
    torch.manual_seed(5)
    noise = gumbel_noise(2)
    assert torch.equal(noise, gumbel_noise(2, seeded(5))) and not torch.equal(noise, gumbel_noise(2))


# --- what may stand where --------------------------------------------------------------------------------------------


def test_ancestor_defect_2_the_first_code_is_kept_and_nothing_is_shifted():
    wanted = torch.arange(49) * 5 % 64
    logits = torch.zeros(49, 75, dtype=torch.float64)
    logits[torch.arange(49), wanted] = 50.0  # at each place one code, another one each time
    for use_cache in (True, False):
        codes = sample(Toy(logits), LABELS, 1.0, generator=seeded(), use_cache=use_cache)
        assert torch.equal(codes.flatten(1), wanted.expand(7, 49))


def test_ancestor_defect_3_the_end_token_never_becomes_the_last_code():
    logits = torch.zeros(49, 75, dtype=torch.float64)
    logits[:, 74] = 1e6
    last = sample(Toy(logits), torch.zeros(500, dtype=torch.int64), 1.0, generator=seeded())[:, 6, 6]
    assert (last == 63).sum() < 30  # of 500, where a clamp makes it 500 and chance makes it 8


@pytest.mark.parametrize("knobs", [{}, {"temperature": 0}, {"temperature": 5.0}, {"top_k": 3}, {"top_p": 0.5}], ids=str)
def test_ancestor_defect_4_only_codes_stand_in_a_picture(knobs):
    codes = sample(Toy(table()), LABELS, generator=seeded(), **knobs)  # its class and end logits are 1,000
    assert codes.shape == (7, 7, 7) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() <= 63
    without = table()
    without[:, 64:] = -1000.0
    assert torch.equal(codes, sample(Toy(without), LABELS, generator=seeded(), **knobs))


def fed(transformer, monkeypatch, dimension):
    """A list that grows by the length of this dimension of the tokens, each time the Transformer is fed."""
    sizes, make = [], transformer.stepper

    def stepper(rows):
        step = make(rows)
        return lambda tokens, cache: sizes.append(tokens[:, None].shape[dimension]) or step(tokens, cache)

    monkeypatch.setattr(transformer, "stepper", stepper)
    transformer.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape[dimension]))
    return sizes


def test_ancestor_defect_9_with_the_cache_each_step_feeds_one_token(transformer, monkeypatch):
    widths = fed(transformer, monkeypatch, 1)
    codes = sample(transformer, LABELS, generator=seeded())
    assert widths == [1] * 49
    widths.clear()
    sample(transformer, LABELS, generator=seeded(), prefix=codes.flatten(1)[:, :21])
    assert widths == [22] + [1] * 27
    widths.clear()
    sample(transformer, LABELS, generator=seeded(), use_cache=False)
    assert widths == list(range(1, 50))


@pytest.mark.parametrize("knobs", [{}, {"temperature": 0.0}, {"guidance": 2.0, "top_k": 5}, {"use_cache": False}],
                         ids=str)
def test_each_choice_is_told_with_the_models_own_logits(transformer, knobs):
    told = []
    codes = sample(transformer, LABELS, generator=seeded(), on_choice=lambda *choice: told.append(choice), **knobs)
    assert [t for t, _, _ in told] == list(range(49))
    assert torch.equal(torch.stack([chosen for _, _, chosen in told], 1), codes.flatten(1))
    assert torch.equal(codes, sample(transformer, LABELS, generator=seeded(), **knobs))  # it changes nothing
    log_probs = torch.stack([logits.log_softmax(-1).gather(-1, chosen[:, None])[:, 0] for _, logits, chosen in told], 1)
    assert (log_probs - code_log_probs(transformer, codes, LABELS)).abs().max() < 1e-9
    prefix, later = codes.flatten(1)[:, :21], []
    sample(transformer, LABELS, prefix=prefix, on_choice=lambda t, *choice: later.append(t))
    assert later == list(range(21, 49))


def test_a_kept_stepper_gives_the_same_pictures_and_serves_no_other_transformer(transformer):
    stepper = transformer.stepper(3)
    for seed in range(3):
        assert torch.equal(sample(transformer, LABELS, generator=seeded(seed), stepper=stepper),
                           sample(transformer, LABELS, generator=seeded(seed), use_cache=False))
    assert not sample(transformer, LABELS).is_inference()  # a reader may train on what was written
    with pytest.raises(ValueError, match="another Transformer"):
        sample(copy.deepcopy(transformer), LABELS, stepper=stepper)


@pytest.mark.parametrize("knobs", [{"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}], ids=str)
def test_the_filter_refuses_what_would_leave_nothing_or_means_nothing(knobs):
    with pytest.raises(ValueError, match="top_"):
        filter_logits(torch.randn(2, 64), 1.0, **knobs)


# --- knobs, seeds, batches -------------------------------------------------------------------------------------------


def test_temperature_zero_is_greedy(transformer):
    tokens = 64 + LABELS[:, None]
    for _ in range(49):
        logits = transformer(tokens)[:, -1, :64]
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
    greedy = sample(transformer, LABELS, temperature=0, generator=seeded())
    assert torch.equal(greedy.flatten(1), tokens[:, 1:])
    assert torch.equal(greedy, sample(transformer, LABELS, 0.0, top_k=3, top_p=0.1, generator=seeded(1)))
    assert torch.equal(greedy, sample(transformer, LABELS, 1.7, top_k=1, generator=seeded(2)))


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_seed_means_the_same_pictures_whatever_the_batch(transformer, use_cache):
    def draw(labels, generator):
        return sample(transformer, labels, generator=generator, use_cache=use_cache)

    codes = draw(LABELS, seeded(3))
    assert len(codes.flatten(1).unique(dim=0)) == 7 and len(codes.unique()) > 40
    assert torch.equal(codes, draw(LABELS, seeded(3))) and not torch.equal(codes, draw(LABELS, seeded(4)))
    assert torch.equal(codes[:3], draw(LABELS[:3], seeded(3)))
    generator = seeded(3)
    assert torch.equal(codes, torch.cat([draw(labels, generator) for labels in LABELS.split([1, 4, 2])]))


@pytest.mark.parametrize("knobs", [{}, {"temperature": 1.0, "top_k": 9}, {"top_p": 0.9}, {"temperature": 0}], ids=str)
def test_the_cache_changes_no_picture(transformer, knobs):
    cached, uncached = (sample(transformer, LABELS, generator=seeded(), use_cache=c, **knobs) for c in (True, False))
    assert torch.equal(cached, uncached) and len(cached.unique()) > 10


def test_changing_one_class_changes_that_picture_alone(transformer):
    other = LABELS.clone()
    other[2] = 4
    before, after = (sample(transformer, labels, generator=seeded()) for labels in (LABELS, other))
    changed = (before != after).flatten(1).any(1)
    assert changed.tolist() == [i == 2 for i in range(7)]


def test_every_knob_leaves_the_noise_alone(transformer):
    states = []
    for knobs in ({}, {"temperature": 0}, {"temperature": 2.0}, {"top_k": 1}, {"top_p": 0.1}, {"use_cache": False},
                  {"prefix": torch.zeros(7, 30, dtype=torch.int64)}, {"prefix": torch.zeros(7, 49, dtype=torch.int64)}):
        generator = seeded()
        sample(transformer, LABELS, generator=generator, **knobs)
        states.append(generator.get_state())
    assert all(torch.equal(state, states[0]) for state in states)


def test_a_hardly_moved_slider_hardly_moves_the_pictures(transformer):
    one, near, far = (sample(transformer, LABELS, t, generator=seeded()) for t in (0.8, 0.8 + 1e-9, 2.0))
    assert torch.equal(one, near) and not torch.equal(one, far)


def test_knobs_that_rule_nothing_out_change_nothing(transformer):
    plain = sample(transformer, LABELS, generator=seeded())
    for knobs in ({"top_k": 64}, {"top_k": 1000}, {"top_p": 1}, {"top_p": 1 - 1e-15}):
        assert torch.equal(plain, sample(transformer, LABELS, generator=seeded(), **knobs))


def test_numpys_numbers_are_numbers(transformer):
    plain = sample(transformer, LABELS, 0.5, top_p=0.5, generator=seeded())
    assert torch.equal(plain, sample(transformer, LABELS, np.float32(0.5), top_p=np.float64(0.5), generator=seeded()))


# --- guidance and "any class" ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("guidance", [0.0, 0.5, 2.0, 6])
def test_guidance_agrees_with_a_slow_loop(transformer, guidance, use_cache):
    noise, expected = gumbel_noise(7, seeded(2)), torch.zeros(7, 49, dtype=torch.int64)
    for i, label in enumerate(LABELS.tolist()):
        for t in range(49):
            cond, uncond = (transformer(torch.tensor([[first, *expected[i, :t].tolist()]]))[0, -1, :64]
                            for first in (64 + label, 74))
            expected[i, t] = (uncond + guidance * (cond - uncond) + 0.8 * noise[i, t]).argmax()
    codes = sample(transformer, LABELS, 0.8, guidance=guidance, generator=seeded(2), use_cache=use_cache)
    assert torch.equal(codes.flatten(1), expected)


def test_guidance_of_one_is_off_and_costs_nothing(transformer, monkeypatch):
    rows = fed(transformer, monkeypatch, 0)
    plain, off, on = (sample(transformer, LABELS, generator=seeded(), **knobs)
                      for knobs in ({}, {"guidance": 1}, {"guidance": 3.0}))
    assert torch.equal(plain, off) and not torch.equal(plain, on)
    assert rows == [7] * 98 + [14] * 49


def test_guidance_of_zero_forgets_the_class(transformer):
    codes = sample(transformer, LABELS, guidance=0, generator=seeded())
    assert torch.equal(codes, sample(transformer, 9 - LABELS, guidance=0, generator=seeded()))
    assert torch.equal(codes, sample(transformer, None, n=7, generator=seeded()))


def test_guidance_keeps_prefix_seed_and_batch(transformer):
    prefix = torch.randint(64, (7, 21), generator=seeded(9))
    codes = sample(transformer, LABELS, guidance=2.5, prefix=prefix, generator=seeded())
    assert torch.equal(codes.flatten(1)[:, :21], prefix)
    assert torch.equal(codes[:3], sample(transformer, LABELS[:3], guidance=2.5, prefix=prefix[:3], generator=seeded()))
    assert torch.equal(codes, sample(transformer, LABELS, guidance=2.5, prefix=codes.flatten(1)[:, :30],
                                     generator=seeded()))


def test_any_class_begins_with_the_end_token(transformer):
    firsts = []
    transformer.register_forward_pre_hook(lambda module, inputs: firsts.append(inputs[0][:, 0]))
    codes = sample(transformer, None, n=3, generator=seeded())
    assert codes.shape == (3, 7, 7) and firsts[0].tolist() == [74] * 3
    assert sample(transformer, None, n=0).shape == (0, 7, 7)


def test_any_class_is_refused_where_it_was_never_learned(transformer):
    transformer.info = {"recipe": {"name": "ancestor", "drop_class": 0.0}}
    for refused in ({"labels": LABELS, "guidance": 2.0}, {"labels": None, "n": 2}):
        with pytest.raises(ValueError, match="never saw .any class.*drop_class=0.1"):
            sample(transformer, **refused)
    assert sample(transformer, LABELS, guidance=1).shape == (7, 7, 7)
    transformer.info = {"recipe": {"name": "best", "drop_class": 0.1}}
    assert sample(transformer, LABELS, guidance=2.0).shape == (7, 7, 7)


@pytest.mark.parametrize("arguments, expected", [
    ({"labels": None}, "n=8; got n=None"), ({"labels": None, "n": -1}, "got n=-1"),
    ({"labels": None, "n": 2.0}, "got n=2.0"), ({"labels": None, "n": True}, "got n=True"),
    ({"labels": None, "n": 2, "guidance": 2.0}, "needs labels"), ({"labels": LABELS, "n": 8}, "7 labels and n=8"),
])
def test_how_many_is_said_once(transformer, arguments, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        sample(transformer, **arguments)


# --- completion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("length", [0, 1, 21, 48, 49])
def test_a_picture_continued_from_its_own_beginning_is_itself(transformer, length, use_cache):
    whole = sample(transformer, LABELS, generator=seeded())
    again = sample(transformer, LABELS, generator=seeded(), prefix=whole.flatten(1)[:, :length], use_cache=use_cache)
    assert torch.equal(whole, again)


def test_a_prefix_is_kept_and_what_follows_depends_on_it(transformer):
    prefix = torch.randint(64, (7, 21), generator=seeded(9))
    codes = sample(transformer, LABELS, generator=seeded(), prefix=prefix)
    assert torch.equal(codes.flatten(1)[:, :21], prefix)
    other = prefix.clone()
    other[0, 20] = (other[0, 20] + 1) % 64
    changed = (sample(transformer, LABELS, generator=seeded(), prefix=other) != codes).flatten(1)
    assert changed[0, 21:].any() and not changed[1:].any()


# --- likelihood ------------------------------------------------------------------------------------------------------


def test_log_likelihood_agrees_with_a_slow_loop(transformer):
    codes, labels = sample(transformer, LABELS[:3], generator=seeded()), LABELS[:3]
    by_code = code_log_probs(transformer, codes, labels)
    assert by_code.shape == (3, 49) and (by_code <= 0).all()
    for i in range(3):
        tokens, total = [64 + labels[i].item()], 0.0
        for t, code in enumerate(codes[i].flatten().tolist()):
            logits = transformer(torch.tensor([tokens]))[0, -1, :64].tolist()
            log_p = logits[code] - math.log(sum(math.exp(x) for x in logits))
            assert by_code[i, t].item() == pytest.approx(log_p, abs=1e-10)
            total += log_p
            tokens.append(code)
        assert log_likelihood(transformer, codes, labels)[i].item() == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("position", [0, 13, 48])
def test_the_64_continuations_share_all_of_the_probability(transformer, position):
    codes = torch.randint(64, (49,), generator=seeded()).repeat(64, 1)
    codes[:, position] = torch.arange(64)
    log_p = code_log_probs(transformer, codes.reshape(64, 7, 7), torch.full((64,), 6))
    assert log_p[:, position].exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert torch.equal(log_p[:, :position], log_p[:1, :position].expand(64, position))  # what came before is as it was


def test_class_and_end_tokens_have_no_share_in_the_likelihood():
    codes = sample(Toy(table()), LABELS, generator=seeded())
    expected = table()[:, :64].log_softmax(-1).gather(1, codes.flatten(1).T).sum(0)
    torch.testing.assert_close(log_likelihood(Toy(table()), codes, LABELS), expected)


def test_samples_are_likelier_under_their_own_class(transformer):
    labels = torch.arange(10).repeat(8)
    codes = sample(transformer, labels, 1.0, generator=seeded())
    assert (log_likelihood(transformer, codes, labels) - log_likelihood(transformer, codes, 9 - labels)).mean() > 0


def test_likelihoods_are_float32_or_finer(transformer):
    codes = torch.zeros(2, 7, 7, dtype=torch.int64)
    for dtype, expected in ((torch.float64, torch.float64), (torch.float32, torch.float32),
                            (torch.bfloat16, torch.float32)):
        assert log_likelihood(transformer.to(dtype), codes, LABELS[:2]).dtype == expected


# --- the model is left as it was -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("use", [
    lambda model: sample(model, LABELS), lambda model: sample(model, LABELS, use_cache=False),
    lambda model: log_likelihood(model, torch.zeros(7, 7, 7, dtype=torch.int64), LABELS),
], ids=["sample", "uncached", "log_likelihood"])
def test_the_mode_is_restored_and_dropout_never_acts(transformer, use, mode):
    transformer.eval()
    torch.manual_seed(0)
    expected = use(transformer)
    transformer.train(mode)
    torch.manual_seed(0)
    assert torch.equal(use(transformer), expected)
    assert transformer.training is mode and all(m.training is mode for m in transformer.modules())
    assert not expected.requires_grad

    def fail(module, inputs):
        raise RuntimeError("out of memory")

    transformer.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        use(transformer)
    assert transformer.training is mode


def test_an_empty_batch_is_no_error(transformer):
    none = torch.zeros(0, dtype=torch.int64)
    codes = sample(transformer, none)
    assert codes.shape == (0, 7, 7) and codes.dtype == torch.int64
    assert sample(transformer, none, prefix=torch.zeros(0, 5, dtype=torch.int64)).shape == (0, 7, 7)
    assert code_log_probs(transformer, codes, none).shape == (0, 49)
    assert log_likelihood(transformer, codes, none).shape == (0,)
    assert gumbel_noise(0).shape == (0, 49, 64)


# --- filters ---------------------------------------------------------------------------------------------------------

seeds, temperatures = st.integers(0, 100_000), st.floats(0.05, 5)


def some_logits(seed):
    return torch.randn(3, 64, dtype=torch.float64, generator=seeded(seed)) * (seed % 7 + 0.1)


@given(seeds, temperatures, st.integers(1, 80))
def test_top_k_keeps_the_k_likeliest(seed, temperature, k):
    logits = some_logits(seed)
    kept = filter_logits(logits, temperature, top_k=k)
    assert (kept.isfinite().sum(-1) == min(k, 64)).all()
    for row, filtered in zip(logits, kept, strict=True):
        assert torch.equal(filtered[filtered.isfinite()], row[filtered.isfinite()])  # what is kept is as it was
        assert filtered.isfinite().nonzero().flatten().tolist() == sorted(row.argsort(descending=True)[:k].tolist())


@given(seeds, temperatures, st.floats(0.001, 0.999), st.one_of(st.none(), st.integers(1, 64)))
def test_the_nucleus_is_the_smallest_set_that_reaches_p(seed, temperature, p, k):
    logits = some_logits(seed)
    kept = filter_logits(logits, temperature, top_k=k, top_p=p).isfinite()
    for row, mask in zip(logits, kept, strict=True):
        probs = slow_distribution(row.tolist(), temperature, top_k=k)
        inside, outside = ([probs[c] for c in probs if mask[c] == flag] for flag in (True, False))
        assert set(mask.nonzero().flatten().tolist()) <= set(probs) and mask[row.argmax()]
        assert sum(inside) >= p - 1e-9 and sum(sorted(inside)[1:]) < p + 1e-9
        assert not outside or min(inside) >= max(outside)


def test_ties_do_not_let_more_than_k_through():
    assert filter_logits(torch.zeros(2, 64), 1.0, top_k=3).isfinite().sum(-1).tolist() == [3, 3]
    assert filter_logits(torch.zeros(2, 64), 1.0, top_p=0.5).isfinite().sum(-1).tolist() == [32, 32]


def test_the_nucleus_is_taken_at_the_temperature():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    sizes = [filter_logits(logits, t, top_p=0.6).isfinite().sum().item() for t in (0.1, 1.0, 100.0)]
    assert sizes == [1, 1, 3]


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, value, expected", [
    ("temperature", -0.1, "≥ 0"), ("temperature", float("nan"), "≥ 0"), ("temperature", float("inf"), "≥ 0"),
    ("temperature", None, "≥ 0"), ("temperature", "hot", "≥ 0"), ("temperature", [0.8], "≥ 0"),
    ("top_k", 0, "≥ 1"), ("top_k", -1, "≥ 1"), ("top_k", 1.5, "≥ 1"), ("top_k", "3", "≥ 1"), ("top_k", True, "≥ 1"),
    ("top_p", 0, "(0, 1]"), ("top_p", 0.0, "(0, 1]"), ("top_p", 1.1, "(0, 1]"), ("top_p", -0.5, "(0, 1]"),
    ("top_p", float("nan"), "(0, 1]"), ("top_p", None, "(0, 1]"), ("top_p", "all", "(0, 1]"),
    ("guidance", -1, "≥ 0"), ("guidance", float("nan"), "≥ 0"), ("guidance", float("inf"), "≥ 0"),
    ("guidance", None, "≥ 0"), ("guidance", "strong", "≥ 0"), ("guidance", True, "≥ 0"),
])
def test_knobs_are_checked(transformer, name, value, expected):
    with pytest.raises(ValueError, match=f"{name} must .*{re.escape(expected)}.*got {re.escape(repr(value))}"):
        sample(transformer, LABELS, **{name: value})


PREFIX = torch.zeros(7, 5, dtype=torch.int64)


@pytest.mark.parametrize("prefix, expected, came", [
    (PREFIX + 64, "0…63", "64"), (PREFIX + 74, "0…63", "74"), (PREFIX - 1, "0…63", "-1"),
    (torch.zeros(7, 50, dtype=torch.int64), "at most 49", "50"), (PREFIX[:6], "(7, P)", "(6, 5)"),
    (PREFIX[0], "(7, P)", "(5,)"), (torch.zeros(7, 7, 7, dtype=torch.int64), "(7, P)", "(7, 7, 7)"),
    (PREFIX.float(), "int64", "float32"), (PREFIX.int(), "int64", "int32"), (PREFIX.tolist(), "int64", "list"),
])
def test_a_prefix_is_checked(transformer, prefix, expected, came):
    with pytest.raises(ValueError, match=f"prefix must .*{re.escape(expected)}.*got .*{re.escape(came)}"):
        sample(transformer, LABELS, prefix=prefix)


@pytest.mark.parametrize("labels, expected, came", [
    (torch.tensor([0, 10]), "0…9", "10"), (torch.tensor([-1]), "0…9", "-1"), (torch.tensor([0.0]), "int64", "float32"),
    (torch.tensor([[0]]), "(B,)", "(1, 1)"), (torch.tensor(3), "(B,)", "()"), ([0, 1], "tensor", "[0, 1]"),
    (3, "tensor", "3"),
])
def test_labels_are_checked(transformer, labels, expected, came):
    codes = torch.zeros(2, 7, 7, dtype=torch.int64)
    for function in (lambda: sample(transformer, labels), lambda: log_likelihood(transformer, codes, labels)):
        with pytest.raises(ValueError, match=f"labels must .*{re.escape(expected)}.*got .*{re.escape(came)}"):
            function()


@pytest.mark.parametrize("codes, came", [
    (torch.zeros(7, 49, dtype=torch.int64), "(7, 49)"), (torch.zeros(7, 7, 7), "float32"),
    (torch.full((7, 7, 7), 64), "64"), (torch.full((7, 7, 7), -1), "-1"), (None, "NoneType"),
])
def test_log_likelihood_checks_codes(transformer, codes, came):
    with pytest.raises(ValueError, match=f"codes must .*got .*{re.escape(came)}"):
        log_likelihood(transformer, codes, LABELS)


def test_log_likelihood_needs_a_label_a_picture(transformer):
    with pytest.raises(ValueError, match="3 pictures and 7 labels"):
        log_likelihood(transformer, torch.zeros(3, 7, 7, dtype=torch.int64), LABELS)


def test_a_generator_on_another_device_is_refused(transformer):
    elsewhere = SimpleNamespace(device=torch.device("cuda"))
    with pytest.raises(ValueError, match="CPU torch.Generator.*got one on cuda.*manual_seed"):
        sample(transformer, LABELS, generator=elsewhere)


def test_bad_input_draws_nothing_and_asks_the_model_nothing(transformer):
    def unexpected(module, inputs):
        raise AssertionError("the model was called")

    transformer.register_forward_pre_hook(unexpected)
    generator = seeded()
    state = generator.get_state()
    with pytest.raises(ValueError, match="top_p"):
        sample(transformer, LABELS, top_p=2.0, generator=generator)
    assert torch.equal(generator.get_state(), state) and sampling.CODES_PER_IMAGE == 49


def test_arguments_in_each_others_place_are_refused_by_name(transformer, vqvae):
    labels = torch.tensor([1, 2])
    with pytest.raises(ValueError, match="transformer must be a Transformer, got a VQVAE"):
        sample(vqvae, labels)
    with pytest.raises(ValueError, match=r"transformer must be a Transformer, got \(2,\) torch.int64"):
        sample(labels, transformer)
