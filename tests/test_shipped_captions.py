"""The weights of notebook 8 that come with the package: the captioned model, the pair that chooses, the discrete VAE.

The margins are those of small samples, drawn with seed 0: fractions of the pictures that are right by the captions'
rules and the judge.
"""

import pytest
import torch

from vqlib import captions, checkpoints, data, evaluation, load_pair, training
from vqlib.contrastive import WORDS_ONLY, best_of
from vqlib.tokens import usage

EVERY = torch.cartesian_prod(*(torch.arange(len(kind)) for kind in captions.KINDS))  # the facts of all 180 captions
KINDS = ("brightness", "size", "orientation", "class")

# Margins, a little below what a run gives.
# At least this share of the pictures of combinations that training saw.
SEEN = {"brightness": 0.78, "size": 0.69, "orientation": 0.78, "class": 0.77, "all": 0.4}
UNSEEN_CLASS = 0.55  # at least this share has the right class, of combinations that training never saw
LIKELIER = 0.95  # at least this share of real pictures is likelier given its own caption than given another one
FOUND = 0.53  # at least this share of the mini test set finds its own caption among all 180
CHOSEN_GAIN = 0.08  # the best of eight is right in all kinds this much more often than the eight are on average
DVAE_MSE = 0.009  # at most, [0, 1] scale, over the mini test set
DVAE_CODES = 60  # at least so many of the codes are in use there


@pytest.fixture(scope="module")
def pair():
    return load_pair(captions=True, shipped=True)


@pytest.fixture(scope="module")
def chooser():
    return checkpoints.load_contrastive(shipped=True)


@pytest.fixture(scope="module")
def dvae():
    return checkpoints.load_dvae(shipped=True)


@pytest.fixture(scope="module")
def judge():
    return checkpoints.load_classifier("judge", shipped=True)


@pytest.fixture(scope="module")
def drawn(pair):
    """Two pictures for each of the 180 captions: (360, 1, 28, 28)."""
    return pair.generate(captions.write_captions(EVERY), n=2)


@pytest.fixture(scope="module")
def right(drawn, judge):
    return evaluation.as_asked(drawn, EVERY.repeat_interleave(2, 0), judge).float()


@pytest.mark.parametrize("name, kind", [("captions", "Transformer"), ("contrastive", "ContrastivePair")])
def test_the_header_says_which_combinations_were_withheld(name, kind):
    tensors, info = checkpoints.read(checkpoints.SHIPPED / f"{name}.safetensors", kind)
    assert info["recipe"] == getattr(training, name.upper()).as_json() and info["recipe"]["withheld"] == 1
    assert info["data"].startswith("60000 pictures") and {t.dtype for t in tensors.values()} == {torch.float16}


def test_the_captioned_model_fits_the_shipped_tokenizer(pair):
    assert pair.transformer.info["tokenizer"] == checkpoints.tokenizer_id(load_pair(shipped=True).vqvae)
    assert pair.transformer.config.num_words == captions.NUM_WORDS


def test_it_draws_what_captions_of_seen_combinations_say(right):
    seen = right[~captions.withheld(EVERY).repeat_interleave(2)]
    shares = dict(zip(KINDS, seen.mean(0).tolist(), strict=True)) | {"all": seen.prod(1).mean().item()}
    assert all(shares[kind] >= margin for kind, margin in SEEN.items()), shares


def test_it_knows_the_class_of_combinations_that_it_never_saw(right):
    unseen = right[captions.withheld(EVERY).repeat_interleave(2)]
    assert unseen[:, 3].mean() >= UNSEEN_CLASS


def test_a_picture_is_likelier_given_its_own_caption(pair, test):
    """Than given the caption with another class, brightness and size."""
    some = torch.arange(0, 500, 8)
    facts = captions.facts_of(test.pixels[some], test.labels[some])
    other = torch.stack([(facts[:, 0] + 1) % 3, (facts[:, 1] + 1) % 3, facts[:, 2], (facts[:, 3] + 1) % 10], 1)
    images = data.to_images(test.pixels[some])
    own, wrong = (pair.log_likelihood(images, captions.write_captions(f)) for f in (facts, other))
    assert (own > wrong).float().mean() >= LIKELIER


@torch.no_grad()
def test_pictures_find_their_captions(chooser, test):
    facts = captions.facts_of(test.pixels, test.labels)
    tokens = captions.text_tokens(captions.write_captions(EVERY), WORDS_ONLY)
    pictures, texts = chooser(data.to_images(test.pixels), tokens)
    found = (EVERY[(pictures @ texts.T).argmax(1)] == facts).all(1).float().mean()
    assert found >= FOUND


def test_the_best_of_eight_is_right_more_often(pair, chooser, judge):
    facts = EVERY[::4]  # 45 captions
    images, gain = pair.generate(captions.write_captions(facts), n=8), []
    for i, text in enumerate(captions.write_captions(facts)):
        eight = images[8 * i : 8 * i + 8]
        best = evaluation.as_asked(eight[best_of(chooser, eight, text)], facts[i : i + 1], judge).all()
        any_one = evaluation.as_asked(eight, facts[i : i + 1].expand(8, 4), judge).all(1).float().mean()
        gain.append(best.float() - any_one)
    assert torch.stack(gain).mean() >= CHOSEN_GAIN


def test_the_discrete_vae_reconstructs_pictures_it_never_saw(dvae, test):
    assert dvae.config.quantizer == "gumbel" and dvae.info["recipe"] == training.DVAE.as_json()
    figures = evaluation.evaluate_vqvae(dvae, test)
    assert figures["mse"] <= DVAE_MSE and figures["mse"] == pytest.approx(dvae.info["test"]["mse"], rel=0.1)


def test_the_discrete_vae_uses_its_codes(dvae, test):
    used = usage(dvae.encode(data.to_images(test.pixels)), dvae.config.num_codes) > 0
    assert used.sum() >= DVAE_CODES
