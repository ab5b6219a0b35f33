import math

import pytest
import torch
from conftest import seeded
from hypothesis import given
from hypothesis import strategies as st

from vqlib import tokens
from vqlib.checks import check_codes, check_labels
from vqlib.data import to_images
from vqlib.tokens import Vocabulary
from vqlib.vqvae import VQVAE, VQVAEConfig

CODES = torch.arange(98).reshape(2, 7, 7) % 64
LABELS = torch.tensor([3, 9])
VOCABULARY = Vocabulary()
SEQUENCES = VOCABULARY.to_sequences(CODES, LABELS)


# --- sequences -------------------------------------------------------------------------------------------------------


def test_the_vocabulary_is_that_of_the_original():
    assert VOCABULARY == Vocabulary(64, 10) and (VOCABULARY.end, VOCABULARY.size) == (74, 75)
    assert (tokens.CODES_PER_IMAGE, tokens.SEQUENCE_LENGTH) == (49, 51)
    assert SEQUENCES.tolist() == [[67, *range(49), 74], [73, *range(49, 64), *range(34), 74]]
    for label in range(10):
        assert VOCABULARY.to_sequences(CODES[:1], torch.tensor([label]))[0, 0] == 64 + label


@pytest.mark.parametrize("K, classes", [(32, 10), (256, 10), (5, 3)])
def test_other_vocabularies_follow_the_same_order(K, classes):
    vocabulary, codes = Vocabulary(K, classes), torch.randint(K, (2, 7, 7), generator=seeded())
    codes[0, 0, 0], codes[1, 6, 6] = 0, K - 1
    sequences = vocabulary.to_sequences(codes, torch.tensor([0, classes - 1]))
    ends = [K, K + classes - 1]
    assert sequences.tolist() == [[ends[i], *codes[i].flatten().tolist(), K + classes] for i in range(2)]
    assert (vocabulary.end, vocabulary.size) == (K + classes, K + classes + 1)
    back, labels = vocabulary.from_sequences(sequences)
    assert torch.equal(back, codes) and labels.tolist() == [0, classes - 1]
    with pytest.raises(ValueError, match=f"codes must .*{K - 1}"):
        vocabulary.to_sequences(codes + 1, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=f"labels must .*{classes - 1}"):
        vocabulary.to_sequences(codes, torch.tensor([0, classes]))
    with pytest.raises(ValueError, match="tokens"):
        Vocabulary(K - 1, classes).from_sequences(sequences)


def test_words_stand_behind_everything_else_and_change_nothing_before_them():
    spoken = Vocabulary(64, 10, 33)
    assert (spoken.end, spoken.size) == (VOCABULARY.end, VOCABULARY.size + 33)
    assert torch.equal(spoken.to_sequences(CODES, LABELS), SEQUENCES)


@st.composite
def pictures(draw):
    """Codes (B, 7, 7) and labels (B,), of 0 to 3 pictures."""
    picture = st.lists(st.integers(0, 63), min_size=49, max_size=49)
    rows = draw(st.lists(st.tuples(picture, st.integers(0, 9)), max_size=3))
    codes, labels = ([row[i] for row in rows] for i in range(2))
    return torch.tensor(codes, dtype=torch.int64).reshape(-1, 7, 7), torch.tensor(labels, dtype=torch.int64)


@given(pictures())
def test_sequences_round_trip(pair):
    sequences = VOCABULARY.to_sequences(*pair)
    assert sequences.shape == (len(pair[0]), 51) and sequences.dtype == torch.int64
    codes, labels = VOCABULARY.from_sequences(sequences)
    assert torch.equal(codes, pair[0]) and torch.equal(labels, pair[1])
    assert torch.equal(VOCABULARY.to_sequences(codes, labels), sequences)


def test_original_defect_2_decoding_keeps_the_first_code_and_shifts_nothing():
    codes, _ = VOCABULARY.from_sequences(SEQUENCES)
    assert codes[0, 0, 0] == 0 and codes[0, 0, 1] == 1 and codes[0, 6, 6] == 48
    assert torch.equal(codes, CODES)


def refused(position, token):
    """The words in which a sequence with this token there is refused."""
    sequences = SEQUENCES.clone()
    sequences[1, position] = token
    with pytest.raises(ValueError, match="tokens") as error:
        VOCABULARY.from_sequences(sequences)
    return str(error.value)


@pytest.mark.parametrize("position", [1, 25, 49])
@pytest.mark.parametrize("token", [64, 73, 74, 75, -1])
def test_original_defect_3_no_token_is_clamped_into_a_code(token, position):
    assert "the codes" in (words := refused(position, token)) and str(token) in words.split("got")[1]


@pytest.mark.parametrize("token", [0, 63, 74, -1])
def test_a_sequence_must_begin_with_a_class(token):
    assert "the class" in (words := refused(0, token)) and str(token) in words.split("got")[1]


@pytest.mark.parametrize("token", [0, 63, 73, 75])
def test_a_sequence_must_end_with_the_end(token):
    assert "the end" in (words := refused(50, token)) and str(token) in words.split("got")[1]


@pytest.mark.parametrize(
    "sequences",
    [SEQUENCES[:, 1:], SEQUENCES[0], SEQUENCES.int(), SEQUENCES.float(), SEQUENCES.tolist(), None, SEQUENCES[None]],
)
def test_from_sequences_refuses_another_shape_or_dtype(sequences):
    with pytest.raises(ValueError, match="tokens"):
        VOCABULARY.from_sequences(sequences)


BAD_LABELS = [
    torch.tensor([0, 10]),
    torch.tensor([-1, 0]),
    torch.tensor([0.0, 1.0]),
    torch.tensor([0, 1], dtype=torch.int32),
    torch.tensor([[0, 1]]),
    torch.tensor(3),
    [0, 1],
    3,
    None,
]


@pytest.mark.parametrize("labels", BAD_LABELS)
def test_labels_are_checked(labels):
    for function in (lambda labels: check_labels(labels, 10), lambda labels: VOCABULARY.to_sequences(CODES, labels)):
        with pytest.raises(ValueError, match="labels must .*CLASS_NAMES"):
            function(labels)


@pytest.mark.parametrize("codes", [CODES + 1, CODES - 1, CODES.flatten(1), CODES.float(), CODES.tolist(), None])
def test_codes_are_checked(codes):
    for function in (lambda codes: check_codes(codes, 64), lambda codes: VOCABULARY.to_sequences(codes, LABELS)):
        with pytest.raises(ValueError, match="codes must"):
            function(codes)


def test_every_picture_needs_a_label():
    with pytest.raises(ValueError, match="labels"):
        VOCABULARY.to_sequences(CODES, LABELS[:1])


def test_encode_pixels_is_encode_over_batches(vqvae, train):
    pixels = train.pixels[:23]
    codes = tokens.encode_pixels(vqvae, pixels, batch_size=10)
    assert codes.shape == (23, 7, 7) and codes.dtype == torch.int64 and len(codes.unique()) > 20
    assert torch.equal(codes, torch.cat([vqvae.encode(to_images(part).double()) for part in pixels.split(10)]))
    assert tokens.encode_pixels(vqvae, pixels[:0]).shape == (0, 7, 7)


def test_encode_pixels_shows_its_progress_if_asked(train, capsys):
    vqvae = VQVAE(VQVAEConfig(channels=2))
    tokens.encode_pixels(vqvae, train.pixels[:4])
    assert not capsys.readouterr().err
    tokens.encode_pixels(vqvae, train.pixels[:4], batch_size=2, progress=True)
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, None])
def test_a_batch_has_a_size(vqvae, train, batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        tokens.encode_pixels(vqvae, train.pixels[:4], batch_size)


def test_what_are_no_pixels_are_refused(vqvae, train, images):
    for pixels in (images, train.pixels[0], train.pixels.numpy(), train.pixels[:, :27]):
        with pytest.raises(ValueError, match="pixels"):
            tokens.encode_pixels(vqvae, pixels)


# --- how codes are used ----------------------------------------------------------------------------------------------


def test_usage_counts_every_code():
    frequencies = tokens.usage(torch.tensor([[0, 0, 0], [63, 5, 0]]))
    assert frequencies.shape == (64,) and frequencies[[0, 5, 63]].tolist() == pytest.approx([4 / 6, 1 / 6, 1 / 6])
    assert frequencies.sum() == pytest.approx(1) and (frequencies > 0).sum() == 3


def test_usage_is_of_as_many_codes_as_there_are():
    codes = torch.tensor([0, 255])
    assert tokens.usage(codes, 256).nonzero().flatten().tolist() == [0, 255]
    for wrong in (codes, codes[:0], codes.int(), codes - 1, [0, 1]):
        with pytest.raises(ValueError, match="codes"):
            tokens.usage(wrong)


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
