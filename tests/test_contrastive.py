"""The pair that chooses by text (notebook 08): the contrastive loss, similarity, and the best of many."""

import math

import pytest
import torch
from conftest import defaults, same_weights, seeded

from vqlib import captions, checkpoints, data
from vqlib.contrastive import WORDS_ONLY, ContrastiveConfig, ContrastivePair, best_of, info_nce, similarity

TEXTS = ["a bright slim dress", "boot", "bag, wide and dark", "an upside-down shirt", "a dress"]


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ContrastivePair(ContrastiveConfig(channels=4, features=8)).double()


def features(n, seed, dim=8):
    rows = torch.randn(n, dim, dtype=torch.float64, generator=seeded(seed))
    return rows / rows.norm(dim=1, keepdim=True)


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 14.0])
def test_the_loss_is_that_of_a_slow_version(scale):
    pictures, texts = features(7, 0), features(7, 1)
    nats = 0
    for i in range(7):
        score = [[scale * (pictures[a] @ texts[b]).item() for b in range(7)] for a in range(7)]
        of_captions = math.log(sum(math.exp(score[i][b]) for b in range(7))) - score[i][i]
        of_pictures = math.log(sum(math.exp(score[a][i]) for a in range(7))) - score[i][i]
        nats += (of_captions + of_pictures) / 14
    loss = info_nce(pictures, texts, scale)
    assert loss.shape == () and loss.item() == pytest.approx(nats, rel=1e-5)
    assert info_nce(texts, pictures, scale).item() == pytest.approx(nats, rel=1e-5)  # both ways count alike


def test_the_loss_of_a_perfect_pair_is_near_zero_and_of_a_blind_one_ln_b():
    own = torch.eye(16)
    assert info_nce(own, own, 50.0) < 1e-6
    same = torch.ones(16, 4) / 2
    assert info_nce(same, own[:, :4], 50.0).item() > math.log(16)  # right for none, sure of some
    assert info_nce(same, same, 50.0).item() == pytest.approx(math.log(16), rel=1e-6)


def test_the_loss_moves_own_pairs_together_and_others_apart():
    pictures = torch.eye(3).requires_grad_()
    texts = torch.eye(3).roll(1, 0)
    info_nce(pictures, texts, 1.0).backward()
    moved = -pictures.grad @ texts.T
    assert (moved.diagonal() > 0).all() and (moved[~torch.eye(3, dtype=torch.bool)] < 0).all()


# --- similarity ------------------------------------------------------------------------------------------------------


def test_features_have_length_one_and_similarity_is_their_product(model, images):
    tokens = captions.text_tokens(TEXTS, WORDS_ONLY)
    pictures, texts = model(images[:5], tokens)
    assert pictures.shape == texts.shape == (5, 8)
    for rows in (pictures, texts):
        assert torch.allclose(rows.norm(dim=1), torch.ones(5, dtype=torch.float64))
    bags = torch.stack([model.text.weight[row].sum(0) for row in tokens])
    assert torch.allclose(texts, bags / bags.norm(dim=1, keepdim=True))
    scores = similarity(model, images[:5], TEXTS)
    assert scores.dtype == torch.float32 and scores.shape == (5,) and not scores.requires_grad
    assert torch.allclose(scores, (pictures * texts).sum(1).float()) and len(scores.unique()) == 5


def test_similarity_lies_between_minus_one_and_one_and_is_the_same_one_by_one(model, images):
    texts = [TEXTS[i % 5] for i in range(24)]
    scores = similarity(model, images, texts, batch_size=7)
    alone = torch.cat([similarity(model, images[i : i + 1], texts[i : i + 1]) for i in range(24)])
    assert (scores.abs() <= 1 + 1e-6).all() and torch.allclose(scores, alone)
    assert torch.equal(similarity(model.train(), images, texts, batch_size=7), scores) and model.training


def test_the_order_of_words_does_not_count_and_the_words_do(model, images):
    def score(text):
        return similarity(model, images, [text] * 24)

    assert torch.allclose(score("a dark slim dress"), score("dress slim dark a"))
    for other in ("a dark slim coat", "a dark wide dress", "a dark dress", "a dark slim upside-down dress"):
        assert (score(other) - score("a dark slim dress")).abs().max() > 1e-3


def test_no_pictures_have_no_similarity(model):
    assert similarity(model, torch.zeros(0, 1, 28, 28), []).shape == (0,)


def test_the_best_are_those_that_fit_best(model, images):
    scores = similarity(model, images, [TEXTS[0]] * 24).tolist()
    order = sorted(range(24), key=lambda i: -scores[i])
    for keep in (1, 5, 24):
        assert best_of(model, images, TEXTS[0], keep).tolist() == order[:keep]
    assert best_of(model, images, TEXTS[0]).tolist() == order[:1]


def test_what_cannot_be_compared_is_refused(model, images):
    with pytest.raises(ValueError, match="number of captions"):
        similarity(model, images, TEXTS)
    with pytest.raises(ValueError, match="images"):
        similarity(model, images[:, 0], TEXTS[:1] * 24)
    for use in (lambda text: similarity(model, images, [text] * 24), lambda text: best_of(model, images, text)):
        for wrong in ("a blue dress", "", None):
            with pytest.raises(ValueError, match="caption.*dark.*dress"):
                use(wrong)
    for keep in (0, 25, 1.5, True):
        with pytest.raises(ValueError, match="keep"):
            best_of(model, images, TEXTS[0], keep)
    for wrong in ({"channels": 0}, {"features": 2.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ContrastiveConfig(**wrong)


@pytest.mark.parametrize("default", [torch.float64, "meta"])
def test_the_readers_defaults_change_nothing(model, images, default):
    usual = similarity(model, images[:5], TEXTS), best_of(model, images, TEXTS[0], 3)
    with defaults(default):
        other = similarity(model, images[:5], TEXTS), best_of(model, images, TEXTS[0], 3)
    assert all(torch.equal(a, b) for a, b in zip(usual, other, strict=True))


def test_a_pair_is_saved_and_loaded(model, test, tmp_path):
    checkpoints.save_model(tmp_path / "contrastive.safetensors", model.float())
    loaded = checkpoints.load_contrastive(tmp_path / "contrastive.safetensors")
    assert same_weights(loaded, model) and loaded.config == model.config and not loaded.training
    images = data.to_images(test.pixels[:5])
    assert torch.equal(similarity(loaded, images, TEXTS), similarity(model, images, TEXTS))
