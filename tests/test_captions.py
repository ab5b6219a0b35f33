"""Captions (notebook 08): words by rules, words as tokens, what is kept from training, and the loss of one stream."""

import itertools
import math
import sys
import textwrap

import pytest
import torch
from conftest import defaults, seeded, shown
from hypothesis import given
from hypothesis import strategies as st

from vqlib import captions, checkpoints, data, evaluation
from vqlib.captions import BRIGHTNESS, CLASSES, KINDS, NEVER, NUM_WORDS, SIZE, TEXT, WORDS
from vqlib.tokens import Vocabulary

EVERY = torch.cartesian_prod(*(torch.arange(len(kind)) for kind in KINDS))  # the facts of all 180 whole captions
VOCABULARY = Vocabulary(64, 10, NUM_WORDS)
FIRST = VOCABULARY.end + 1  # the token of the first word
FORMS = ["a bright slim dress", "boot", "shirt, wide and dark and upside-down", "an upside-down bag", "Bag,BRIGHT"]


@pytest.fixture(scope="module")
def judge():
    return checkpoints.load_classifier("judge", shipped=True)


# --- the grammar -----------------------------------------------------------------------------------------------------


def grammar(brightness, size, turned, label):
    """All captions of one row of facts, form by form."""
    words = [BRIGHTNESS[brightness]], [SIZE[size]]
    for said in ([], *words, words[0] + words[1], words[1] + words[0]):
        said = said + ["upside-down"] * turned
        yield " ".join([{"upside-down": "an"}.get(said[0], "a") if said else "a", *said, CLASSES[label]])
        if said:
            yield f"{CLASSES[label]}, {' and '.join(said)}"


def test_captions_are_those_of_the_grammar_and_each_fits():
    written = captions.write_captions(EVERY.repeat(150, 1), seeded())
    forms = {caption for facts in EVERY.tolist() for caption in grammar(*facts)}
    assert set(written) == forms
    assert max(len(captions.split(caption)) for caption in forms) <= TEXT  # `split` refuses unknown words


def test_what_is_said_is_what_was_and_what_is_left_out_is_minus_one():
    facts = EVERY.repeat(50, 1)
    written = captions.write_captions(facts, seeded(1))
    stated = captions.read_captions(written)
    assert stated.dtype == torch.int64 and torch.equal(stated[:, 2:], facts[:, 2:])  # these are always said
    for kind in range(2):
        said = torch.tensor([bool(set(KINDS[kind]) & set(captions.split(caption))) for caption in written])
        assert torch.equal(stated[:, kind], torch.where(said, facts[:, kind], -1))
        assert 0.73 < said.float().mean() < 0.77
    assert captions.write_captions(facts, seeded(1)) == written != captions.write_captions(facts, seeded(2))


def test_without_a_generator_everything_is_said_in_the_first_form():
    assert torch.equal(captions.read_captions(captions.write_captions(EVERY)), EVERY)
    shown = captions.write_captions(torch.tensor([[2, 0, 0, 3], [0, 2, 1, 9]]))
    assert shown == ["a bright slim dress", "a dark wide upside-down boot"]


def test_what_captions_leave_out_can_be_written_again():
    short = ["a dress", "a slim dress", "a dark coat", "an upside-down bag"]
    assert captions.write_captions(captions.read_captions(short)) == short


@pytest.mark.parametrize(
    "caption, facts",
    [
        ("slim", [-1, 0, 0, -1]),
        ("Dress,BRIGHT", [2, -1, 0, 3]),
        ("  a   dark\tdress ", [0, -1, 0, 3]),
        ("a dark bright dress", [-1, -1, 0, 3]),
        ("a dark dark dress", [0, -1, 0, 3]),
        ("a dress and a boot", [-1, -1, 0, -1]),
        ("upside-down", [-1, -1, 1, -1]),
    ],
)
def test_a_caption_in_ones_own_words_states_what_it_says_once(caption, facts):
    assert captions.read_captions([caption]).tolist() == [facts]


def test_no_captions_state_no_facts():
    assert captions.read_captions([]).shape == (0, 4) and captions.write_captions(EVERY[:0]) == []
    assert captions.text_tokens([], VOCABULARY).shape == (0, TEXT)


@pytest.mark.parametrize(
    "caption", ["", "  ", "a blue dress", "a dress.", "ankle boot", "a upright dress", "a " * 9, None, 3, ["dress"]]
)
def test_what_is_no_caption_is_refused_with_the_words_that_are_known(caption):
    listed = ".*".join(("caption", "1 to 8", "dark", "slim", "upside-down", "t-shirt", "boot", ","))
    for use in (captions.split, lambda c: captions.read_captions(["a bag", c])):
        with pytest.raises(ValueError, match=listed):
            use(caption)
    with pytest.raises(ValueError, match=listed):
        captions.text_tokens(["a bag", caption], VOCABULARY)


# --- the rules -------------------------------------------------------------------------------------------------------


def slow_facts(pixels, label):
    """Brightness and size of one piece, pixel by pixel."""
    piece = [value for row in pixels.tolist() for value in row if value > 25]
    measured = sum(piece) / max(1, len(piece)), len(piece)
    thirds = [
        sum(m >= limit for limit in row) for m, row in zip(measured, captions.LIMITS[label].tolist(), strict=True)
    ]
    return [*thirds, 0, label]


def test_facts_are_what_the_rules_say(test):
    facts = captions.facts_of(test.pixels[:150], test.labels[:150])
    assert facts.dtype == torch.int64
    expected = [slow_facts(*example) for example in zip(test.pixels[:150], test.labels[:150].tolist(), strict=True)]
    assert facts.tolist() == expected
    assert all(len(facts[:, kind].unique()) == 3 for kind in range(2))  # or the comparison would show little


def test_the_rules_say_the_same_of_a_picture_alone_and_upside_down(test):
    facts = captions.facts_of(test.pixels, test.labels)
    alone = torch.cat([captions.facts_of(test.pixels[i : i + 1], test.labels[i : i + 1]) for i in range(0, 500, 10)])
    assert torch.equal(alone, facts[::10])
    assert torch.equal(captions.facts_of(test.pixels.flip(1), test.labels), facts)


def test_an_empty_picture_is_dark_and_slim():
    black = torch.zeros(10, 28, 28, dtype=torch.uint8)
    assert not captions.measure(black).any()
    assert captions.facts_of(black, torch.arange(10)).tolist() == [[0, 0, 0, c] for c in range(10)]


def test_the_limits_cut_each_class_of_a_set_into_thirds(train):
    limits = captions.limits(train)
    assert limits.shape == captions.LIMITS.shape and (limits[..., 0] < limits[..., 1]).all()
    measured = captions.measure(train.pixels)
    for c in range(10):
        for kind in range(2):
            ours = measured[train.labels == c, kind]
            for limit, share in zip(limits[c, kind].tolist(), (2 / 3, 1 / 3), strict=True):
                assert (ours >= limit).float().mean().item() == pytest.approx(share, abs=0.02)


def test_the_words_divide_the_mini_set_into_thirds_roughly(train):
    facts = captions.facts_of(train.pixels, train.labels)
    for c in range(10):
        for kind in range(2):
            counts = facts[facts[:, 3] == c, kind].bincount(minlength=3)
            assert (counts.float() / counts.sum() - 1 / 3).abs().max() < 0.1


def test_the_limits_are_those_of_the_training_set():
    try:
        dataset = data.load("train", mini=False, download=False)
    except RuntimeError:
        pytest.skip("needs the 60,000 training pictures")
    assert torch.equal(captions.limits(dataset), captions.LIMITS)


# --- what is kept from training --------------------------------------------------------------------------------------


def slow_withheld(facts, words):
    brightness, size, turned, label = facts
    shown = {BRIGHTNESS[brightness], SIZE[size]} | ({"upside-down"} if turned else set())
    return any(NEVER[(label + i) % 7] in shown for i in range(words))


@pytest.mark.parametrize("words", range(5))
def test_what_is_withheld_is_what_the_rule_says(words):
    away = captions.withheld(EVERY, words)
    assert away.tolist() == [slow_withheld(facts, words) for facts in EVERY.tolist()]
    assert not (captions.withheld(EVERY, max(0, words - 1)) & ~away).any()  # more words, and all of the others
    for c in range(10):
        ours = EVERY[:, 3] == c
        assert (away & ours).any() == (words >= 1)
        for kind, values in enumerate((BRIGHTNESS, SIZE, ["upright"])):
            assert set(EVERY[ours & ~away][:, kind].tolist()) & set(range(len(values)))


def test_the_combinations_that_were_written_down_before_training():
    """A dark t-shirt, a slim trouser, an upside-down pullover…: one word per class, and it is the default."""
    away = EVERY[captions.withheld(EVERY)]
    for label, word in enumerate(["dark", "slim", "upside-down", "bright", "wide", "grey", "medium", "dark", "slim"]):
        kind, value = next((k, values.index(word)) for k, values in enumerate(KINDS[:3]) if word in values)
        ours = away[away[:, 3] == label]
        assert (ours[:, kind] == value).all() and len(ours) == len(EVERY) // 10 // len(KINDS[kind])


# --- words as tokens -------------------------------------------------------------------------------------------------


def words_of(tokens):
    """The words of (8,) text tokens, without the padding."""
    return [WORDS[token - FIRST] for token in tokens.tolist() if token - FIRST < len(WORDS)]


def test_each_word_has_a_token_of_its_own_behind_codes_classes_and_end():
    assert len(set(WORDS)) == len(WORDS) and NUM_WORDS == len(WORDS) + 8
    for K in (64, 32):
        tokens = captions.text_tokens(list(WORDS), Vocabulary(K, 10, NUM_WORDS))
        assert tokens.dtype == torch.int64 and tokens[:, 0].tolist() == list(range(K + 11, K + 11 + len(WORDS)))
        assert tokens.max() < Vocabulary(K, 10, NUM_WORDS).size


def test_a_short_caption_is_filled_up_with_a_padding_token_for_each_position():
    tokens = captions.text_tokens(FORMS, VOCABULARY)
    assert tokens.shape == (len(FORMS), 8)
    for row, caption in zip(tokens.tolist(), FORMS, strict=True):
        length = len(captions.split(caption))
        assert all(token < FIRST + len(WORDS) for token in row[:length])
        assert row[length:] == [FIRST + len(WORDS) + at for at in range(length, 8)]
    assert [words_of(row) for row in tokens] == [captions.split(caption) for caption in FORMS]


@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join), min_size=1, max_size=5))
def test_the_tokens_of_a_caption_are_the_same_whatever_stands_beside_it(texts):
    together = captions.text_tokens(texts, VOCABULARY)
    assert torch.equal(together, torch.cat([captions.text_tokens([text], VOCABULARY) for text in texts]))
    assert [words_of(row) for row in together] == [text.split() for text in texts]


@pytest.mark.parametrize("default", [torch.float64, "meta"])
def test_the_readers_defaults_change_nothing(test, default):
    def all_of_it():
        facts = captions.facts_of(test.pixels[:50], test.labels[:50])
        texts = captions.write_captions(facts, seeded())
        tokens, limits = captions.text_tokens(texts, VOCABULARY), captions.limits(test)
        written = captions.write_captions(facts)
        return texts, written, facts, captions.read_captions(texts), tokens, captions.withheld(facts, 2), limits

    usual = all_of_it()
    with defaults(default):
        other = all_of_it()
    assert other[:2] == usual[:2] and all(torch.equal(a, b) for a, b in zip(other[2:], usual[2:], strict=True))


def test_a_default_device_set_before_the_import_changes_nothing():
    code = """
        import torch
        torch.set_default_device("meta")
        from vqlib import captions, data
        test = data.load_mini("test")
        print(captions.facts_of(test.pixels[:5], test.labels[:5]).sum().item())
    """
    test = data.load_mini("test")
    assert shown(sys.executable, textwrap.dedent(code)) == [
        str(captions.facts_of(test.pixels[:5], test.labels[:5]).sum().item())
    ]


@given(st.tuples(*(st.integers(-1, len(kind) - 1) for kind in KINDS)).filter(lambda facts: facts[2] >= 0))
def test_what_is_not_said_is_not_written(facts):
    written = captions.write_captions(torch.tensor([facts, facts]), None)
    assert captions.read_captions(written).tolist() == [list(facts)] * 2


# --- one stream: the loss --------------------------------------------------------------------------------------------


def a_batch(dropped=(1,)):
    """Four captions and codes, of which some captions were dropped; and random logits, float64."""
    tokens = torch.cat([captions.text_tokens(FORMS[:4], VOCABULARY), torch.randint(64, (4, 49), generator=seeded())], 1)
    tokens[list(dropped), :8] = VOCABULARY.end
    logits = torch.randn(4, 56, VOCABULARY.size, dtype=torch.float64, generator=seeded(1)) * 2
    return logits, tokens


def candidates(at):
    """What may stand at a place of the sequence: words at the first eight, codes at all others."""
    return range(FIRST, VOCABULARY.size) if at < 8 else range(64)


def slow_stream_loss(logits, tokens):
    """Position by position: the nats of each token among what may stand there."""
    nats = {"text": [], "codes": []}
    for row, sequence in zip(logits.tolist(), tokens.tolist(), strict=True):
        for at in range(1, 57):
            if at < 8 and sequence[at] == VOCABULARY.end:
                continue  # the caption was dropped
            among = [row[at - 1][token] for token in candidates(at)]
            score = math.log(sum(map(math.exp, among))) - row[at - 1][sequence[at]]
            nats["text" if at < 8 else "codes"].append(score)
    return [sum(part) / max(1, len(part)) for part in nats.values()]


@pytest.mark.parametrize("dropped", [(), (1,), (0, 1, 3), range(4)], ids=str)
def test_the_loss_is_that_of_a_slow_version(dropped):
    logits, tokens = a_batch(dropped)
    losses = captions.stream_loss(logits, tokens, VOCABULARY)
    assert [loss.item() for loss in losses] == pytest.approx(slow_stream_loss(logits, tokens), rel=1e-5)
    assert all(loss.shape == () for loss in losses)


def test_text_is_no_candidate_where_a_code_is_due_nor_a_code_where_text_is():
    logits, tokens = a_batch()
    allowed = torch.zeros(56, VOCABULARY.size, dtype=torch.bool)
    for at in range(1, 57):
        allowed[at - 1, list(candidates(at))] = True
    losses = captions.stream_loss(logits.requires_grad_(), tokens, VOCABULARY)
    other = torch.where(allowed, logits.detach(), 1000.0)
    assert all(torch.equal(a, b) for a, b in zip(losses, captions.stream_loss(other, tokens, VOCABULARY), strict=True))
    sum(losses).backward()
    moved = logits.grad != 0
    assert not moved[:, ~allowed].any() and moved[[0, 2, 3]][:, allowed].all()


def test_a_dropped_caption_counts_for_nothing_in_the_texts_loss():
    logits, tokens = a_batch(dropped=(1,))
    rest = [0, 2, 3]
    text, _ = captions.stream_loss(logits.requires_grad_(), tokens, VOCABULARY)
    assert text.item() == pytest.approx(captions.stream_loss(logits[rest], tokens[rest], VOCABULARY)[0].item())
    text.backward()
    assert not logits.grad[1].any()


def test_if_all_captions_are_dropped_there_is_no_nan():
    logits, tokens = a_batch(dropped=range(4))
    text, codes = captions.stream_loss(logits.requires_grad_(), tokens, VOCABULARY)
    (text / 8 + codes * 7 / 8).backward()
    assert text == 0 and logits.grad.isfinite().all() and not logits.grad[:, :7].any() and logits.grad[:, 7:].any()


# --- right, or not ---------------------------------------------------------------------------------------------------


def slow_right(image, facts, judge):
    """One picture held against what was asked for, kind by kind."""
    brightness, size, turned, label = facts
    upright = image.flip(-2) if turned == 1 else image
    with torch.no_grad():
        seen, other_way = (judge(picture[None])[0].log_softmax(0) for picture in (upright, upright.flip(-2)))
    of = label if label >= 0 else seen.argmax().item()
    found = slow_facts(data.to_pixels(upright[None])[0], of)
    orientation = seen.max() > other_way.max()
    checks = found[0] == brightness, found[1] == size, bool(orientation), seen.argmax().item() == label
    return [fact < 0 or check for fact, check in zip(facts, checks, strict=True)]


def test_right_is_what_a_slow_version_finds(test, judge):
    """Half of the pictures upside down; what is asked for is true, false, or left open."""
    pixels, labels = test.pixels[::5], test.labels[::5]
    facts, wrong = captions.facts_of(pixels, labels), torch.rand(100, 4, generator=seeded())
    images = data.to_images(pixels)
    images[1::2] = images[1::2].flip(2)
    facts[1::2, 2] = 1
    for kind, values in enumerate(KINDS):
        facts[:, kind] = torch.where(wrong[:, kind] < 0.3, (facts[:, kind] + 1) % len(values), facts[:, kind])
    facts[wrong > 0.8] = -1
    seen = evaluation.facts_found(images, facts, judge)
    assert (seen >= 0).all() and (seen.amax(0) < torch.tensor([len(values) for values in KINDS])).all()
    found = evaluation.as_asked(images, facts, judge)
    assert found.tolist() == [slow_right(*example, judge) for example in zip(images, facts.tolist(), strict=True)]
    for way, kind in itertools.product((slice(0, None, 2), slice(1, None, 2)), range(4)):
        assert found[way, kind].any() and not found[way, kind].all() and (facts[way, kind] < 0).any()


def test_real_pictures_are_right_either_way_round(test, judge):
    images, facts = data.to_images(test.pixels), captions.facts_of(test.pixels, test.labels)
    found = evaluation.as_asked(images, facts, judge)
    assert found[:, :2].all() and (found.float().mean(0) > 0.8).all()
    turned = facts.clone()
    turned[:, 2] = 1
    assert torch.equal(evaluation.as_asked(images.flip(2), turned, judge), found)
    wrong_way = evaluation.as_asked(images, turned, judge)[:, 2]
    assert torch.equal(wrong_way, ~found[:, 2])
