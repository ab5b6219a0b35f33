import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqlib import tokens
from vqlib.data import to_images

CODES = torch.arange(98).reshape(2, 7, 7) % 64
LABELS = torch.tensor([3, 9])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@st.composite
def pictures(draw):
    """Codes (B, 7, 7) and labels (B,), of 0 to 3 pictures."""
    rows = draw(st.lists(st.tuples(st.lists(st.integers(0, 63), min_size=49, max_size=49), st.integers(0, 9)),
                         max_size=3))
    return (torch.tensor([codes for codes, _ in rows], dtype=torch.int64).reshape(-1, 7, 7),
            torch.tensor([label for _, label in rows], dtype=torch.int64))


# --- sequences -------------------------------------------------------------------------------------------------------


def test_the_vocabulary_is_the_seeds():
    assert (tokens.NUM_CODES, tokens.NUM_CLASSES, tokens.END_TOKEN, tokens.VOCABULARY_SIZE) == (64, 10, 74, 75)
    assert (tokens.CODES_PER_IMAGE, tokens.SEQUENCE_LENGTH) == (49, 51)
    sequences = tokens.to_sequences(CODES, LABELS)
    assert sequences.tolist() == [[67, *range(49), 74], [73, *range(49, 64), *range(34), 74]]
    for label in range(10):
        assert tokens.to_sequences(CODES[:1], torch.tensor([label]))[0, 0] == 64 + label


@given(pictures())
def test_sequences_round_trip(pair):
    sequences = tokens.to_sequences(*pair)
    assert sequences.shape == (len(pair[0]), 51) and sequences.dtype == torch.int64
    codes, labels = tokens.from_sequences(sequences)
    assert torch.equal(codes, pair[0]) and torch.equal(labels, pair[1])
    assert torch.equal(tokens.to_sequences(codes, labels), sequences)


def test_ancestor_defect_2_decoding_keeps_the_first_code_and_shifts_nothing():
    codes, _ = tokens.from_sequences(tokens.to_sequences(CODES, LABELS))
    assert codes[0, 0, 0] == 0 and codes[0, 0, 1] == 1 and codes[0, 6, 6] == 48
    assert torch.equal(codes, CODES)


@pytest.mark.parametrize("position", [1, 25, 49])
@pytest.mark.parametrize("token", [64, 73, 74, 75, -1])
def test_ancestor_defect_3_no_token_is_clamped_into_a_code(token, position):
    sequences = tokens.to_sequences(CODES, LABELS)
    sequences[1, position] = token
    with pytest.raises(ValueError, match=rf"codes \(0…63\) at positions 1…49, found token {token}"):
        tokens.from_sequences(sequences)


@pytest.mark.parametrize("token", [0, 63, 74, -1])
def test_a_sequence_must_begin_with_a_class(token):
    sequences = tokens.to_sequences(CODES, LABELS)
    sequences[0, 0] = token
    with pytest.raises(ValueError, match=rf"a start token \(64…73\) at position 0, found token {token}"):
        tokens.from_sequences(sequences)


@pytest.mark.parametrize("token", [0, 63, 73, 75])
def test_a_sequence_must_end_with_the_end(token):
    sequences = tokens.to_sequences(CODES, LABELS)
    sequences[1, -1] = token
    with pytest.raises(ValueError, match=rf"the end token \(74\) at position 50, found token {token}"):
        tokens.from_sequences(sequences)


SEQUENCES = tokens.to_sequences(CODES, LABELS)


@pytest.mark.parametrize("sequences, came", [
    (SEQUENCES[:, 1:], "(2, 50)"), (SEQUENCES[0], "(51,)"), (SEQUENCES.int(), "int32"), (SEQUENCES.float(), "float32"),
    (SEQUENCES.tolist(), "list"), (None, "NoneType"), (SEQUENCES[None], "(1, 2, 51)"),
])
def test_from_sequences_refuses_another_shape_or_dtype(sequences, came):
    with pytest.raises(ValueError, match=rf"\(B, 51\) int64 tensor, got .*{re.escape(came)}"):
        tokens.from_sequences(sequences)


BAD_LABELS = [
    (torch.tensor([0, 10]), "0…9", "10"), (torch.tensor([-1, 0]), "0…9", "-1"),
    (torch.tensor([0.0, 1.0]), "int64", "float32"), (torch.tensor([0, 1], dtype=torch.int32), "int64", "int32"),
    (torch.tensor([[0, 1]]), "(B,)", "(1, 2)"),
    (torch.tensor(3), "(B,)", "()"), ([0, 1], "tensor", "[0, 1]"), (3, "tensor", "3"), (None, "tensor", "None"),
]


@pytest.mark.parametrize("labels, expected, came", BAD_LABELS)
def test_labels_are_checked(labels, expected, came):
    for function in (tokens.check_labels, lambda labels: tokens.to_sequences(CODES, labels)):
        with pytest.raises(ValueError, match=f"labels must .*{re.escape(expected)}.*got .*{re.escape(came)}"):
            function(labels)


@pytest.mark.parametrize("codes, came", [(CODES + 1 + 15, "79"), (CODES - 1, "-1"), (CODES.flatten(1), "(2, 49)"),
                                         (CODES.float(), "float32"), (CODES.tolist(), "list")])
def test_to_sequences_refuses_what_are_no_codes(codes, came):
    with pytest.raises(ValueError, match=f"codes must .*got .*{re.escape(came)}"):
        tokens.to_sequences(codes, LABELS)


def test_every_picture_needs_a_label():
    with pytest.raises(ValueError, match="2 pictures and 1 labels"):
        tokens.to_sequences(CODES, LABELS[:1])


def test_encode_pixels_is_encode_over_batches(vqvae, train):
    pixels, vqvae = train.pixels[:23], vqvae.float()
    codes = tokens.encode_pixels(vqvae, pixels, batch_size=10)
    assert codes.shape == (23, 7, 7) and codes.dtype == torch.int64 and len(codes.unique()) > 20
    assert torch.equal(codes, torch.cat([vqvae.encode(to_images(part)) for part in pixels.split(10)]))


# --- how codes are used ----------------------------------------------------------------------------------------------


def test_usage_counts_every_code():
    frequencies = tokens.usage(torch.tensor([[0, 0, 0], [63, 5, 0]]))
    assert frequencies.shape == (64,) and frequencies[[0, 5, 63]].tolist() == pytest.approx([4 / 6, 1 / 6, 1 / 6])
    assert frequencies.sum() == pytest.approx(1) and (frequencies > 0).sum() == 3


@pytest.mark.parametrize("k", [1, 2, 13, 64])
def test_k_equally_frequent_codes_have_perplexity_k(k):
    assert tokens.perplexity(tokens.usage(torch.arange(k).repeat(7))) == pytest.approx(k, rel=1e-5)


@given(st.lists(st.integers(0, 63), min_size=1, max_size=200))
def test_perplexity_lies_between_one_and_the_number_of_codes_used(codes):
    frequencies = tokens.usage(torch.tensor(codes))
    value = tokens.perplexity(frequencies)
    assert 1 - 1e-5 <= value <= len(set(codes)) * (1 + 1e-5) <= 64 * (1 + 1e-5)
    entropy = -sum(p * math.log(p) for p in (codes.count(c) / len(codes) for c in set(codes)))
    assert value == pytest.approx(math.exp(entropy), rel=1e-4)


# --- naive baselines -------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus():
    """60 pictures of classes 0…8 whose codes follow class and position: the very thing the histograms may know."""
    labels = torch.arange(60) % 9
    codes = (labels[:, None] * 5 + torch.arange(49) + torch.randint(0, 3, (60, 49), generator=seeded())) % 64
    return codes.reshape(-1, 7, 7), labels


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("by_position", [False, True])
def test_a_histogram_is_the_counts_plus_one(corpus, by_class, by_position):
    codes, labels = corpus
    log_probs = tokens.Histogram.fit(codes, labels, by_class, by_position).log_probs
    assert log_probs.shape == (10, 49, 64)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(10, 49))
    for label, position in ((0, 0), (8, 48), (3, 20), (9, 5)):
        seen = [c for picture, y in zip(codes.flatten(1).tolist(), labels.tolist(), strict=True)
                if y == label or not by_class
                for at, c in enumerate(picture) if at == position or not by_position]
        expected = [(seen.count(code) + 1) / (len(seen) + 64) for code in range(64)]
        torch.testing.assert_close(log_probs[label, position].exp(), torch.tensor(expected))


def test_flags_say_what_a_histogram_ignores(corpus):
    both, by_position, by_class, neither = (tokens.Histogram.fit(*corpus, c, p).log_probs
                                            for c, p in ((True, True), (False, True), (True, False), (False, False)))
    assert torch.equal(by_position[0], by_position[7]) and not torch.equal(by_position[0, 0], by_position[0, 9])
    assert torch.equal(by_class[3, 0], by_class[3, 48]) and not torch.equal(by_class[0, 0], by_class[3, 0])
    assert torch.equal(neither[0, 0], neither[7, 30])
    assert not torch.equal(both[0], both[7]) and not torch.equal(both[0, 0], both[0, 9])


def test_knowing_more_lowers_the_nats(corpus):
    scores = [tokens.Histogram.fit(*corpus, c, p).nats_per_code(*corpus)
              for c, p in ((False, False), (True, False), (True, True))]
    assert math.log(64) > scores[0] > scores[1] > scores[2] > 0


def test_nats_per_code_agrees_with_a_slow_loop(corpus):
    codes, labels = corpus
    histogram = tokens.Histogram.fit(codes[:40], labels[:40])
    total = sum(-histogram.log_probs[labels[i], position, codes[i].flatten()[position]].item()
                for i in range(40, 60) for position in range(49))
    assert histogram.nats_per_code(codes[40:], labels[40:]) == pytest.approx(total / (20 * 49), rel=1e-5)


def test_the_uniform_distribution_costs_ln_64(corpus):
    uniform = tokens.Histogram(torch.full((10, 49, 64), -math.log(64)))
    assert uniform.nats_per_code(*corpus) == pytest.approx(math.log(64))
    nothing_seen = tokens.Histogram.fit(corpus[0][:0], corpus[1][:0])
    assert nothing_seen.nats_per_code(*corpus) == pytest.approx(math.log(64), rel=1e-5)


def test_a_histograms_samples_follow_its_frequencies():
    probs = torch.rand(10, 49, 64, generator=seeded()).pow(8)
    probs[:, 7, 1:] = 0  # at position 7 there is only code 0
    probs[:, 7, 0] = 1
    probs /= probs.sum(-1, keepdim=True)
    histogram, labels = tokens.Histogram(probs.log()), torch.arange(10).repeat(300)
    codes = histogram.sample(labels, seeded(1))
    assert codes.shape == (3000, 7, 7) and codes.dtype == torch.int64
    assert (codes[:, 1, 0] == 0).all()
    for label, position in ((0, 0), (4, 48), (9, 10)):
        drawn = codes.flatten(1)[labels == label, position].bincount(minlength=64) / 300
        assert (drawn - probs[label, position]).abs().max() < 0.08
    assert torch.equal(codes, histogram.sample(labels, seeded(1)))
    assert not torch.equal(codes, histogram.sample(labels, seeded(2)))
