import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import lively_transformer, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vqlib import captions, checkpoints, sampling, stepper
from vqlib.sampling import code_log_probs, filter_logits, gumbel_noise, log_likelihood, sample, sample_parallel
from vqlib.tokens import Vocabulary
from vqlib.transformer import Transformer

LABELS = torch.tensor([0, 3, 9, 3, 7, 1, 5])
NO_CODES = torch.zeros(7, 7, 7, dtype=torch.int64)
ANY_CLASS = torch.full((7, 1), 74)
TEXT = torch.randint(75, (7, 3), generator=seeded(8))  # a start of three tokens, as a caption would be
STARTS = {"classes": 64 + LABELS[:, None], "any class": ANY_CLASS, "text": TEXT}


class Toy(nn.Module):
    """Logits that are a table of the position, whatever the tokens: (49, 75)."""

    def __init__(self, table):
        super().__init__()
        self.table, self.token_embedding = table, nn.Embedding(1, 1, dtype=table.dtype)
        self.config = SimpleNamespace(vocabulary=Vocabulary(), context=50)

    def new_cache(self, batch_size, length):
        return SimpleNamespace(length=0)

    def forward(self, tokens, cache=None):
        start = cache.length if cache is not None else 0
        rows = self.table[start : start + tokens.shape[1]]
        if cache is not None:
            cache.length += tokens.shape[1]
        return rows.expand(len(tokens), *rows.shape)


def table(seed=0, scale=1.5, same=False):
    """Random logits, with class and end tokens far likelier than any code."""
    logits = torch.randn(1 if same else 49, 75, dtype=torch.float64, generator=seeded(seed)).expand(49, 75) * scale
    logits[:, 64:] = 1000.0
    return logits


def slow_distribution(logits, temperature, top_k=None, top_p=1.0):
    """What the documentation promises, code by code: {code: probability}."""
    likeliest = sorted(range(len(logits)), key=lambda c: -logits[c])[:top_k]
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


def slow_sample(transformer, start, noise, prefix=None, temperature=0.8, guidance=1.0, **filters):
    """What the documentation promises, with the whole sequence read again for each code: (N, 49)."""
    K = noise.shape[-1]
    codes = start[:, :0] if prefix is None else prefix
    unconditional = torch.full_like(start, K + 10)
    for t in range(codes.shape[1], 49):
        logits = transformer(torch.cat([start, codes], 1))[:, -1, :K]
        if guidance != 1:
            uncond = transformer(torch.cat([unconditional, codes], 1))[:, -1, :K]
            logits = uncond + guidance * (logits - uncond)
        for row in logits if filters and temperature else []:
            kept = list(slow_distribution(row.tolist(), temperature, **filters))
            row[[c for c in range(K) if c not in kept]] = -math.inf
        codes = torch.cat([codes, (logits + temperature * noise[:, t]).argmax(-1, keepdim=True)], 1)
    return codes


# --- exact distributions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "knobs",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"temperature": 0.8, "top_k": 5},
        {"temperature": 1.5, "top_k": 1},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 2.0, "top_p": 0.7},
        {"temperature": 0.8, "top_k": 12, "top_p": 0.6},
        {"temperature": 1.0, "top_k": 64, "top_p": 1},
    ],
    ids=str,
)
def test_samples_follow_the_exact_distribution(knobs):
    logits = table(same=True)  # the same distribution at all 49 places: 200 pictures are 9,800 draws
    codes = sample(Toy(logits), torch.zeros(200, dtype=torch.int64), generator=seeded(1), **knobs)
    expected = slow_distribution(logits[0, :64].tolist(), **knobs)
    counts, n = codes.flatten().bincount(minlength=64), codes.numel()
    assert set(counts.nonzero().flatten().tolist()) <= set(expected)
    if "top_k" in knobs and "top_p" not in knobs:
        assert len(expected) == knobs["top_k"]
    chi_square = sum((counts[c].item() - n * p) ** 2 / (n * p) for c, p in expected.items())
    freedom = len(expected) - 1
    assert chi_square <= freedom + 4 * math.sqrt(2 * freedom)  # mean + 4 standard deviations; all of one code: 0


def test_the_noise_is_gumbel_and_belongs_to_the_picture():
    noise = gumbel_noise(60, generator=seeded())
    assert noise.shape == (60, 49, 64) and noise.dtype == torch.float64 and noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)
    uniform = (-(-noise).exp()).exp().flatten()  # the Gumbel distribution function of Gumbel noise is uniform
    counts, each = torch.histc(uniform, 50, 0, 1), len(uniform) / 50
    assert ((counts - each) ** 2 / each).sum() < 49 + 4 * math.sqrt(98)
    assert len(noise.flatten(1).unique(dim=0)) == 60


@pytest.mark.parametrize("K", [32, 64, 256])
def test_the_first_pictures_of_a_large_batch_have_the_noise_of_a_small_one(K):
    noise, one_by_one = gumbel_noise(7, K, seeded()), seeded()
    assert noise.shape == (7, 49, K) and torch.equal(gumbel_noise(3, K, seeded()), noise[:3])
    assert torch.equal(torch.cat([gumbel_noise(n, K, one_by_one) for n in (1, 2, 4)]), noise)
    assert not torch.equal(gumbel_noise(7, K, seeded(1)), noise)


def test_without_a_generator_the_global_one_is_used():
    torch.manual_seed(5)
    noise = gumbel_noise(2)
    assert torch.equal(noise, gumbel_noise(2, generator=seeded(5))) and not torch.equal(noise, gumbel_noise(2))


# --- against a slow loop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start, given, knobs",
    [
        ("classes", 0, {}),
        ("classes", 0, {"temperature": 0}),
        ("classes", 0, {"temperature": 1.0, "top_k": 9}),
        ("classes", 0, {"guidance": 0.0}),
        ("classes", 0, {"guidance": 0.5, "top_p": 0.9}),
        ("classes", 21, {"top_k": 20, "top_p": 0.9}),
        ("classes", 21, {"guidance": 6, "temperature": 2.0}),
        ("any class", 0, {}),
        ("any class", 21, {}),
        ("text", 0, {"guidance": 2.0}),
        ("text", 21, {}),
        ("text", 48, {"guidance": 2.0}),
    ],
)
@torch.no_grad()
def test_pictures_are_those_of_a_slow_loop(transformer, start, given, knobs):
    prefix, tokens = torch.randint(64, (7, given), generator=seeded(9)), STARTS[start]
    expected = slow_sample(transformer, tokens, gumbel_noise(7, generator=seeded(2)), prefix, **knobs)
    codes = sample(transformer, tokens, prefix=prefix, generator=seeded(2), **knobs)
    assert codes.shape == (7, 7, 7) and codes.dtype == torch.int64 and not codes.requires_grad
    assert torch.equal(codes.flatten(1), expected) and len(codes.unique()) > 10


def test_classes_are_the_start_tokens_behind_the_codes(transformer):
    for K in (64, 32):
        model = transformer if K == 64 else lively_transformer(num_codes=K)
        by_class, by_token = (sample(model, x, generator=seeded()) for x in (LABELS, K + LABELS[:, None]))
        assert torch.equal(by_class, by_token)
        assert not torch.equal(by_class, sample(model, K - 1 + LABELS[:, None], generator=seeded()))


@torch.no_grad()
@pytest.mark.parametrize("K", [32, 256])
def test_other_codebooks_have_pictures_too(K):
    transformer = lively_transformer(num_codes=K)
    labels, noise = LABELS[:4], gumbel_noise(4, K, seeded())
    codes = sample(transformer, labels, guidance=2.0, generator=seeded())
    assert torch.equal(codes.flatten(1), slow_sample(transformer, K + labels[:, None], noise, guidance=2.0))
    assert K / 2 < codes.max() < K
    assert log_likelihood(transformer, codes, labels).isfinite().all()


def test_a_start_may_be_as_long_as_the_context_leaves_room():
    transformer = lively_transformer(context=51)  # 49 codes, of which the last is not fed again, and 3 tokens
    assert sample(transformer, TEXT).shape == (7, 7, 7)
    with pytest.raises(ValueError, match="start"):
        sample(transformer, torch.cat([TEXT, TEXT], 1))


@pytest.mark.parametrize("knobs", [{}, {"temperature": 0.0}, {"guidance": 2.0, "top_k": 5}], ids=str)
@pytest.mark.parametrize("given", [0, 21])
def test_the_loop_tells_each_choice_with_the_models_own_logits(transformer, knobs, given):
    codes = sample(transformer, LABELS, generator=seeded(), **knobs)
    start, noise, prefix = 64 + LABELS[:, None], gumbel_noise(7, generator=seeded()), codes.flatten(1)[:, :given]
    logits, chosen = zip(*sampling.write(transformer, start, noise, prefix, **knobs), strict=True)
    assert torch.equal(torch.stack(chosen, 1), codes.flatten(1)[:, given:])
    whole = transformer(torch.cat([start, codes.flatten(1)[:, :-1]], 1))[:, given:, :64]
    assert (torch.stack(logits, 1) - whole).abs().max() < 1e-9


# --- all codes at once -----------------------------------------------------------------------------------------------

LIVELY = lively_transformer()
SOME_KNOBS = {
    "temperature": st.one_of(st.just(0), st.floats(0.05, 3)),
    "top_k": st.integers(1, 70),
    "top_p": st.floats(0.05, 1),
    "guidance": st.floats(0, 4),
}


class Chain(Toy):
    """Each code is the one before it, plus 1: whatever is guessed, a pass can't mend more than the first wrong one."""

    def forward(self, tokens, cache=None):
        return 50 * nn.functional.one_hot((tokens + 1) % 64, 75).double()


def some_codes(seed, *shape):
    return torch.randint(64, shape, generator=seeded(seed))


def right(states, final):
    """How many codes before the first wrong one, after each pass and for each picture: (passes, 7)."""
    return (torch.stack(states) == final).long().cumprod(-1).sum(-1)


def passes(transformer, guess, prefix=None, **knobs):
    """The codes after each pass, from the noise of seed 0."""
    noise = gumbel_noise(len(guess), generator=seeded())
    return list(sampling.write_parallel(transformer, 64 + LABELS[:, None], noise, guess, prefix, **knobs))


@given(
    start=st.sampled_from(sorted(STARTS)),
    length=st.integers(0, 49),
    seed=st.integers(0, 10_000),
    guess=st.one_of(st.none(), st.integers(0, 10_000).map(lambda seed: some_codes(seed, 3, 7, 7))),
    knobs=st.fixed_dictionaries({}, optional=SOME_KNOBS),
)
def test_in_parallel_the_pictures_are_the_same_whatever_is_guessed(start, length, seed, guess, knobs):
    labels, prefix = STARTS[start][:3], some_codes(seed, 3, length) if length else None
    expected = sample(LIVELY, labels, prefix=prefix, generator=seeded(seed), **knobs)
    codes = sample_parallel(LIVELY, labels, guess=guess, prefix=prefix, generator=seeded(seed), **knobs)
    assert codes.dtype == torch.int64 and torch.equal(codes, expected)


@pytest.mark.parametrize(
    "length, knobs",
    [(0, {}), (0, {"temperature": 0}), (21, {"temperature": 1.0, "top_k": 20}), (0, {"guidance": 2.0, "top_p": 0.9})],
    ids=str,
)
def test_in_parallel_the_shipped_model_writes_the_same_pictures(length, knobs):
    transformer, prefix = checkpoints.load_transformer(shipped=True).double(), some_codes(1, 2, length)
    arguments = {"prefix": prefix, **knobs}
    expected = sample(transformer, LABELS[:2], generator=seeded(), **arguments)
    guess = some_codes(2, 2, 7, 7)
    assert torch.equal(sample_parallel(transformer, LABELS[:2], guess=guess, generator=seeded(), **arguments), expected)


@pytest.mark.parametrize("knobs", [{}, {"temperature": 0.0}, {"guidance": 2.0, "top_k": 5}], ids=str)
@pytest.mark.parametrize("given", [0, 21, 48, 49])
def test_each_pass_mends_the_first_wrong_code(transformer, given, knobs):
    final = sample(transformer, LABELS, generator=seeded(), **knobs).flatten(1)
    guess = (final + 1) % 64  # wrong everywhere
    states = passes(transformer, guess, final[:, :given], **knobs)
    assert len(states) <= 49 - given
    counts = [torch.full((7,), given), *(right(states, final) if states else [])]
    for before, after in itertools.pairwise(counts):
        assert ((after > before) | (before == 49)).all()
    assert given == 49 or torch.equal(states[-1], final)


def test_codes_that_depend_on_nothing_take_two_passes_and_a_chain_takes_them_all():
    for model, expected in ((Toy(table()), [49, 49]), (Chain(table()), range(1, 50))):
        final = sample(model, LABELS, generator=seeded()).flatten(1)
        guess = (final + 1) % 64
        states = passes(model, guess)
        assert torch.equal(right(states, final), torch.tensor(expected)[:, None].expand(-1, 7))
        assert torch.equal(guess, (final + 1) % 64)  # it is the reader's
        assert len(passes(model, final)) == 1 and torch.equal(passes(model, final)[0], final)


@pytest.mark.parametrize("guidance, rows", [(1.0, 1), (2.0, 2)])
def test_pictures_that_have_settled_leave_the_batch(transformer, fed, guidance, rows):
    final = sample(transformer, LABELS, guidance=guidance, generator=seeded()).flatten(1)
    guess = final.clone()
    guess[4, :9] = (final[4, :9] + 1) % 64
    fed.clear()
    states = passes(transformer, guess, guidance=guidance)
    assert len(states) > 2 and fed == [(7 * rows, 49)] + [(rows, 49)] * (len(states) - 1)
    assert torch.equal(states[-1], final)
    fed.clear()
    sample_parallel(transformer, LABELS, guess=final.reshape(7, 7, 7), guidance=guidance, generator=seeded())
    assert fed == [(7 * rows, 49)]


def test_in_parallel_a_picture_depends_on_its_own_class_and_noise(transformer):
    codes = sample_parallel(transformer, LABELS, generator=seeded())
    assert torch.equal(codes[:3], sample_parallel(transformer, LABELS[:3], generator=seeded()))
    generator = seeded()
    parts = [sample_parallel(transformer, labels, generator=generator) for labels in LABELS.split([1, 4, 2])]
    assert torch.equal(codes, torch.cat(parts))
    usual = seeded()
    sample(transformer, LABELS, generator=usual)
    assert torch.equal(generator.get_state(), usual.get_state())


# --- what may stand where --------------------------------------------------------------------------------------------


def test_original_defect_2_the_first_code_is_kept_and_nothing_is_shifted():
    wanted = torch.arange(49) * 5 % 64
    logits = torch.zeros(49, 75, dtype=torch.float64)
    logits[torch.arange(49), wanted] = 50.0  # at each place one code, another one each time
    codes = sample(Toy(logits), LABELS, temperature=1.0, generator=seeded())
    assert torch.equal(codes.flatten(1), wanted.expand(7, 49))


def test_original_defect_3_the_end_token_never_becomes_the_last_code():
    logits = torch.zeros(49, 75, dtype=torch.float64)
    logits[:, 74] = 1e6
    last = sample(Toy(logits), torch.zeros(500, dtype=torch.int64), temperature=1.0, generator=seeded())[:, 6, 6]
    assert (last == 63).sum() < 30  # of 500: a clamp would make it 500, chance makes it 8


@pytest.mark.parametrize("knobs", [{}, {"temperature": 0}, {"temperature": 5.0}, {"top_k": 3}, {"top_p": 0.5}], ids=str)
def test_original_defect_4_only_codes_stand_in_a_picture(knobs):
    codes = sample(Toy(table()), LABELS, generator=seeded(), **knobs)  # its class and end logits are 1,000
    assert codes.shape == (7, 7, 7) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() <= 63
    without = table()
    without[:, 64:] = -1000.0
    assert torch.equal(codes, sample(Toy(without), LABELS, generator=seeded(), **knobs))


@pytest.fixture
def fed(monkeypatch):
    """The sizes of all tokens that a Transformer is fed, by the plain forward or by the fast step."""
    sizes, forward, one_token_step = [], Transformer.forward, sampling.one_token_step

    def recorded(*arguments):
        step = one_token_step(*arguments)
        return lambda tokens, cache: sizes.append((len(tokens), 1)) or step(tokens, cache)

    monkeypatch.setattr(sampling, "one_token_step", recorded)
    monkeypatch.setattr(
        Transformer,
        "forward",
        lambda model, *arguments: sizes.append((*arguments[0].shape,)) or forward(model, *arguments),
    )
    monkeypatch.setattr(stepper, "METHODS", stepper._methods())  # or the changed forward would take all the steps
    return sizes


def test_original_defect_9_each_step_feeds_one_token(transformer, fed):
    codes = sample(transformer, LABELS)
    assert fed == [(7, 1)] * 49
    fed.clear()
    sample(transformer, LABELS, prefix=codes.flatten(1)[:, :21])
    assert fed == [(7, 22)] + [(7, 1)] * 27
    fed.clear()
    sample(transformer, TEXT)
    assert fed == [(7, 3)] + [(7, 1)] * 48


def test_guidance_of_one_is_off_and_costs_nothing(transformer, fed):
    plain, off, on = (
        sample(transformer, LABELS, generator=seeded(), **knobs) for knobs in ({}, {"guidance": 1}, {"guidance": 3.0})
    )
    assert torch.equal(plain, off) and not torch.equal(plain, on)
    assert fed == [(7, 1)] * 98 + [(14, 1)] * 49


# --- knobs, seeds, batches -------------------------------------------------------------------------------------------


def test_temperature_zero_is_greedy_whatever_is_kept(transformer):
    greedy = sample(transformer, LABELS, temperature=0, generator=seeded())
    assert torch.equal(greedy, sample(transformer, LABELS, temperature=0.0, top_k=3, top_p=0.1, generator=seeded(1)))
    assert torch.equal(greedy, sample(transformer, LABELS, temperature=1.7, top_k=1, generator=seeded(2)))


@pytest.mark.parametrize("knobs", [{}, {"guidance": 2.5}], ids=str)
def test_a_seed_means_the_same_pictures_whatever_the_batch(transformer, knobs):
    def draw(labels, generator):
        return sample(transformer, labels, generator=generator, **knobs)

    codes = draw(LABELS, seeded(3))
    assert len(codes.flatten(1).unique(dim=0)) == 7 and len(codes.unique()) > 40
    assert torch.equal(codes, draw(LABELS, seeded(3))) and not torch.equal(codes, draw(LABELS, seeded(4)))
    assert torch.equal(codes[:3], draw(LABELS[:3], seeded(3)))
    generator = seeded(3)
    assert torch.equal(codes, torch.cat([draw(labels, generator) for labels in LABELS.split([1, 4, 2])]))


def test_changing_one_class_changes_that_picture_alone(transformer):
    other = LABELS.clone()
    other[2] = 4
    before, after = (sample(transformer, labels, generator=seeded()) for labels in (LABELS, other))
    changed = (before != after).flatten(1).any(1)
    assert changed.tolist() == [i == 2 for i in range(7)]


def test_every_knob_leaves_the_noise_alone(transformer):
    prefix, states = torch.zeros(7, 49, dtype=torch.int64), []
    knobs = [{"temperature": t} for t in (0, 0.8, 2.0)] + [{"top_k": 1}, {"top_p": 0.1}, {"guidance": 2.0}]
    for more in (*knobs, {"prefix": prefix}, {"prefix": prefix[:, :30]}):
        generator = seeded()
        sample(transformer, LABELS, generator=generator, **more)
        states.append(generator.get_state())
    assert all(torch.equal(state, states[0]) for state in states)


def test_knobs_that_rule_nothing_out_change_nothing(transformer):
    plain = sample(transformer, LABELS, generator=seeded())
    for knobs in ({"temperature": 0.8 + 1e-9}, {"top_k": 64}, {"top_k": 1000}, {"top_p": 1}, {"top_p": 1 - 1e-15}):
        assert torch.equal(plain, sample(transformer, LABELS, generator=seeded(), **knobs))
    assert not torch.equal(plain, sample(transformer, LABELS, temperature=2.0, generator=seeded()))


def test_numpys_numbers_are_numbers(transformer):
    plain = sample(transformer, LABELS, temperature=0.5, top_p=0.5, top_k=9, generator=seeded())
    knobs = {"temperature": np.float32(0.5), "top_p": np.float64(0.5), "top_k": np.int64(9)}
    assert torch.equal(plain, sample(transformer, LABELS, generator=seeded(), **knobs))


# --- guidance and "any class" ----------------------------------------------------------------------------------------


def test_guidance_of_zero_forgets_the_class(transformer):
    codes = sample(transformer, LABELS, guidance=0, generator=seeded())
    assert torch.equal(codes, sample(transformer, 9 - LABELS, guidance=0, generator=seeded()))
    assert torch.equal(codes, sample(transformer, ANY_CLASS, generator=seeded()))


def test_any_class_is_refused_if_it_was_never_learned(transformer):
    transformer.info = {"recipe": {"name": "original", "drop_class": 0.0}}
    for labels, knobs in ((LABELS, {"guidance": 2.0}), (ANY_CLASS, {})):
        with pytest.raises(ValueError, match="drop_class=0.1"):
            sample(transformer, labels, **knobs)
    assert sample(transformer, LABELS, guidance=1).shape == (7, 7, 7)
    transformer.info = {"recipe": {"name": "best", "drop_class": 0.1}}
    assert sample(transformer, LABELS, guidance=2.0).shape == sample(transformer, ANY_CLASS).shape == (7, 7, 7)


# --- a caption as the start ------------------------------------------------------------------------------------------

CAPTIONED = lively_transformer(num_words=captions.NUM_WORDS)
CAPTIONS = ["boot", "a bright slim dress", "shirt, wide and dark and upside-down", "a bag"]
TOKENS = captions.text_tokens(CAPTIONS, CAPTIONED.config.vocabulary)


@pytest.mark.parametrize("length, knobs", [(0, {}), (0, {"guidance": 2.0}), (21, {"guidance": 0.5, "top_k": 20})])
@torch.no_grad()
def test_for_captions_the_pictures_are_those_of_a_slow_loop(length, knobs):
    """With guidance the end token stands in the place of all eight; in parallel the codes are the same."""
    prefix = some_codes(9, 4, length)
    expected = slow_sample(CAPTIONED, TOKENS, gumbel_noise(4, generator=seeded(2)), prefix, **knobs)
    for draw in (sample, sample_parallel):
        codes = draw(CAPTIONED, TOKENS, prefix=prefix, generator=seeded(2), **knobs)
        assert torch.equal(codes.flatten(1), expected)


def test_a_caption_alone_is_drawn_and_scored_as_beside_longer_ones():
    codes = sample(CAPTIONED, TOKENS, generator=seeded())
    nats, generator = log_likelihood(CAPTIONED, codes, TOKENS), seeded()
    for i, text in enumerate(CAPTIONS):
        start = captions.text_tokens([text], CAPTIONED.config.vocabulary)
        assert torch.equal(sample(CAPTIONED, start, generator=generator), codes[i : i + 1])
        assert log_likelihood(CAPTIONED, codes[i : i + 1], start).item() == pytest.approx(nats[i].item(), abs=1e-9)
    assert not torch.equal(codes, sample(CAPTIONED, TOKENS.roll(1, 0), generator=seeded()))  # captions matter


@torch.no_grad()
def test_the_likelihood_given_a_caption_is_summed_over_positions():
    codes = some_codes(3, 4, 7, 7)
    nats = torch.zeros(4, dtype=torch.float64)
    for i, t in itertools.product(range(4), range(49)):
        seen = torch.cat([TOKENS[i], codes[i].flatten()[:t]])
        nats[i] += CAPTIONED(seen[None])[0, -1, :64].log_softmax(0)[codes[i].flatten()[t]]
    assert (log_likelihood(CAPTIONED, codes, TOKENS) - nats).abs().max() < 1e-9


def test_a_model_that_reads_captions_refuses_classes():
    for use in (sample, sample_parallel):
        with pytest.raises(ValueError, match="labels.*captions"):
            use(CAPTIONED, torch.tensor([3]))
    with pytest.raises(ValueError, match="labels.*captions"):
        log_likelihood(CAPTIONED, torch.zeros(1, 7, 7, dtype=torch.int64), torch.tensor([3]))


@torch.no_grad()
def test_words_are_never_drawn_however_likely_they_are():
    model = lively_transformer(num_words=captions.NUM_WORDS)
    model.norm.weight.data.fill_(1.0)
    model.norm.bias.data.fill_(10.0)
    model.head.weight.data[:64] -= model.head.weight.data[:64].mean(1, keepdim=True)  # these don't see the bias
    model.head.weight.data[75:] = 1.0  # the words' logits are 320 at every position
    for draw in (sample, sample_parallel):
        codes = draw(model, TOKENS, temperature=1.0, guidance=2.0, generator=seeded())
        assert codes.max() < 64 and len(codes.unique()) > 10
    sequences = torch.cat([TOKENS, codes.flatten(1)[:, :-1]], 1)
    assert (model(sequences).argmax(-1) >= 75).all()


def test_any_caption_is_refused_if_it_was_never_learned():
    model, nothing = lively_transformer(num_words=captions.NUM_WORDS), torch.full((2, 8), 74)
    for share in (0.0, 0.1):
        model.info = {"recipe": {"name": "captions", "drop_caption": share}}
        for start, knobs in ((TOKENS[:2], {"guidance": 2.0}), (nothing, {})):
            if share:
                assert sample(model, start, **knobs).shape == (2, 7, 7)
            else:
                with pytest.raises(ValueError, match="guidance"):
                    sample(model, start, **knobs)
        assert sample(model, TOKENS[:2]).shape == (2, 7, 7)


# --- completion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", [{}, {"guidance": 2.5}], ids=str)
@pytest.mark.parametrize("length", [0, 1, 21, 48, 49])
def test_a_picture_continued_from_its_own_beginning_is_itself(transformer, length, knobs):
    whole = sample(transformer, LABELS, generator=seeded(), **knobs)
    prefix = whole.flatten(1)[:, :length]
    assert torch.equal(whole, sample(transformer, LABELS, generator=seeded(), prefix=prefix, **knobs))


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


@pytest.mark.parametrize("K, position", [(64, 0), (64, 48), (32, 20), (256, 13)])
def test_the_continuations_share_all_of_the_probability(K, position):
    transformer = lively_transformer(num_codes=K)
    codes = torch.randint(K, (49,), generator=seeded()).repeat(K, 1)
    codes[:, position] = torch.arange(K)
    log_p = code_log_probs(transformer, codes.reshape(K, 7, 7), torch.full((K,), 6))
    assert log_p[:, position].exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert torch.equal(log_p[:, :position], log_p[:1, :position].expand(K, position))  # what came before is as it was


def test_class_and_end_tokens_have_no_share_in_the_likelihood():
    codes = sample(Toy(table()), LABELS, generator=seeded())
    expected = table()[:, :64].log_softmax(-1).gather(1, codes.flatten(1).T).sum(0)
    torch.testing.assert_close(log_likelihood(Toy(table()), codes, LABELS), expected)


def test_samples_are_likelier_under_their_own_class(transformer):
    labels = torch.arange(10).repeat(8)
    codes = sample(transformer, labels, temperature=1.0, generator=seeded())
    assert (log_likelihood(transformer, codes, labels) - log_likelihood(transformer, codes, 9 - labels)).mean() > 0


def test_likelihoods_are_float32_or_finer(transformer):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        nats = log_likelihood(transformer.to(dtype), NO_CODES, LABELS)
        assert nats.dtype == (dtype if dtype == torch.float64 else torch.float32) and not nats.requires_grad


# --- the model is left as it was -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize(
    "use",
    [
        lambda model: sample(model, LABELS),
        lambda model: sample_parallel(model, LABELS),
        lambda model: log_likelihood(model, NO_CODES, LABELS),
    ],
    ids=["sample", "sample_parallel", "log_likelihood"],
)
def test_the_mode_is_restored_and_dropout_never_acts(transformer, use, mode):
    transformer.eval()
    torch.manual_seed(0)
    expected = use(transformer)
    transformer.train(mode)
    torch.manual_seed(0)
    assert torch.equal(use(transformer), expected)
    assert transformer.training is mode and all(m.training is mode for m in transformer.modules())

    def fail(module, inputs):
        raise RuntimeError("out of memory")

    transformer.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        use(transformer)
    assert transformer.training is mode


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_an_empty_batch_is_no_error(transformer, guidance):
    none = torch.zeros(0, dtype=torch.int64)
    codes = sample(transformer, none, guidance=guidance)
    assert codes.shape == (0, 7, 7) and codes.dtype == torch.int64
    assert torch.equal(sample_parallel(transformer, none, guess=codes, guidance=guidance), codes)
    assert sample(transformer, none, prefix=torch.zeros(0, 5, dtype=torch.int64), guidance=guidance).shape == (0, 7, 7)
    assert sample(transformer, torch.zeros(0, 3, dtype=torch.int64), guidance=guidance).shape == (0, 7, 7)
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
    likelier = (logits[:, None] > logits[..., None]).sum(-1)  # how many codes are likelier than this one
    assert torch.equal(kept, torch.where(likelier < k, logits, -torch.inf))  # what is kept is as it was


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

NAN, INF = float("nan"), float("inf")
BAD_KNOBS = {
    "temperature": [-0.1, NAN, INF, None, "hot", [0.8]],
    "top_k": [0, -1, 1.5, "3", True],
    "top_p": [0, 0.0, 1.1, -0.5, NAN, None, "all"],
    "guidance": [-1, NAN, INF, None, "strong", True],
    "generator": [0, SimpleNamespace(device=torch.device("cuda"))],
}


@pytest.mark.parametrize("function", [sample, sample_parallel])
@pytest.mark.parametrize("name, value", [(name, value) for name, values in BAD_KNOBS.items() for value in values])
def test_knobs_are_checked(transformer, name, value, function):
    with pytest.raises(ValueError, match=f"{name} must"):
        function(transformer, LABELS, **{name: value})


def test_knobs_that_there_are_not_are_refused(transformer):
    with pytest.raises(TypeError, match="temprature"):
        sample_parallel(transformer, LABELS, temprature=1.0)


@pytest.mark.parametrize(
    "guess", [NO_CODES + 64, NO_CODES - 1, NO_CODES[:6], NO_CODES.flatten(1), NO_CODES.float(), NO_CODES.tolist()]
)
def test_a_guess_is_checked(transformer, guess):
    with pytest.raises(ValueError, match="guess must"):
        sample_parallel(transformer, LABELS, guess=guess)


PREFIX = torch.zeros(7, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    "prefix",
    [
        PREFIX + 64,
        PREFIX + 74,
        PREFIX - 1,
        torch.zeros(7, 50, dtype=torch.int64),
        PREFIX[:6],
        PREFIX[0],
        NO_CODES,
        PREFIX.float(),
        PREFIX.int(),
        PREFIX.tolist(),
    ],
)
def test_a_prefix_is_checked(transformer, prefix):
    with pytest.raises(ValueError, match="prefix must"):
        sample(transformer, LABELS, prefix=prefix)


BAD_LABELS = [
    torch.tensor([0, 10]),
    torch.tensor([-1]),
    torch.tensor([0.0]),
    torch.tensor([3], dtype=torch.int32),
    torch.tensor(3),
    torch.zeros(1, 1, 1, dtype=torch.int64),
    [0, 1],
    3,
    None,
]


@pytest.mark.parametrize("labels", BAD_LABELS)
def test_labels_are_checked(transformer, labels):
    with pytest.raises(ValueError, match="labels must"):
        sample(transformer, labels)
    with pytest.raises(ValueError, match="labels must"):
        log_likelihood(transformer, NO_CODES[:1], labels)


@pytest.mark.parametrize("start", [ANY_CLASS + 1, TEXT - 75, TEXT.float(), TEXT.int()])
def test_a_start_is_checked(transformer, start):
    with pytest.raises(ValueError, match="labels must"):
        sample(transformer, start)


def test_a_start_has_a_token_at_least(transformer):
    with pytest.raises(ValueError, match="start"):
        sample(transformer, TEXT[:, :0])


@pytest.mark.parametrize("codes", [NO_CODES.flatten(1), NO_CODES.float(), NO_CODES + 64, NO_CODES - 1, None])
def test_log_likelihood_checks_codes(transformer, codes):
    with pytest.raises(ValueError, match="codes must"):
        log_likelihood(transformer, codes, LABELS)


def test_log_likelihood_needs_a_label_per_picture(transformer):
    with pytest.raises(ValueError, match="labels must .*3.*7"):
        log_likelihood(transformer, NO_CODES[:3], LABELS)


def test_bad_input_draws_nothing_and_asks_the_model_nothing(transformer, fed):
    generator = seeded()
    state = generator.get_state()
    with pytest.raises(ValueError, match="top_p"):
        sample(transformer, LABELS, top_p=2.0, generator=generator)
    with pytest.raises(ValueError, match="prefix"):
        sample(transformer, LABELS, prefix=PREFIX - 1, generator=generator)
    with pytest.raises(ValueError, match="guess"):
        sample_parallel(transformer, LABELS, guess=NO_CODES - 1, generator=generator)
    assert torch.equal(generator.get_state(), state) and not fed


def test_swapped_arguments_are_refused_by_name(transformer, vqvae):
    with pytest.raises(ValueError, match="transformer must be a Transformer, got a VQVAE"):
        sample(vqvae, LABELS)
    with pytest.raises(ValueError, match=r"transformer must be a Transformer, got \(7,\) torch.int64"):
        sample(LABELS, transformer)
