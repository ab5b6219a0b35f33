"""The classifiers that judge samples."""

import dataclasses

import pytest
import torch
from conftest import same_weights

from vqlib import checkpoints, data, training
from vqlib.classifier import Classifier, ClassifierConfig, accuracy, classify, rerank

MODEL = ClassifierConfig(channels=4, features=16)
TINY = dataclasses.replace(training.JUDGE, epochs=2, warmup_steps=3, mixed_precision=False, model=MODEL)


@pytest.fixture(scope="module")
def classifier(train):
    """Trained for four epochs on the mini set, so that its batch statistics are of real pictures."""
    return training.train_classifier(dataclasses.replace(TINY, epochs=4), train, device="cpu", progress=False)


@pytest.fixture
def pictures(test):
    return data.to_images(test.pixels[:40])


def test_classify_gives_log_probabilities_and_features(classifier, pictures):
    log_probs, features = classify(classifier, pictures, batch_size=7)
    assert log_probs.shape == (40, 10) and features.shape == (40, 16) and not log_probs.requires_grad
    assert (log_probs.exp().sum(1) - 1).abs().max() < 1e-5 and (features >= 0).all() and features.std() > 0
    by_hand = (features @ classifier.head[1].weight.T + classifier.head[1].bias).log_softmax(-1)
    assert (by_hand - log_probs).abs().max() < 1e-5
    for images in (pictures[0], pictures * 2, data.to_pixels(pictures)):
        with pytest.raises(ValueError, match="images"):
            classify(classifier, images)


def test_a_verdict_depends_neither_on_the_batch_nor_on_the_mode(classifier, pictures):
    together, _ = classify(classifier, pictures)
    alone = torch.cat([classify(classifier, picture[None])[0] for picture in pictures])
    assert (together - alone).abs().max() < 1e-4
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    classifier.train()
    assert torch.equal(classify(classifier, pictures)[0], together) and classifier.training
    classifier.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())


def test_accuracy_is_the_share_of_right_answers(classifier, test):
    some, right = test.subset(torch.arange(60)), 0
    for pixels, label in zip(some.pixels, some.labels.tolist(), strict=True):
        right += int(classifier(data.to_images(pixels[None])).argmax()) == label
    assert accuracy(classifier, some) == pytest.approx(right / 60) and right > 30  # by chance it would be 6
    with pytest.raises(ValueError, match="number of pictures"):
        accuracy(classifier, test.subset(slice(0)))


def test_rerank_keeps_what_the_critic_finds_most_like_the_class(classifier, pictures):
    log_probs, _ = classify(classifier, pictures)
    kept = rerank(classifier, pictures, label=3, keep=5)
    assert kept.tolist() == sorted(range(40), key=lambda i: -log_probs[i, 3])[:5]
    for label, keep, name in ((3, 0, "keep"), (3, 41, "keep"), (10, 5, "label"), (-1, 5, "label")):
        with pytest.raises(ValueError, match=name):
            rerank(classifier, pictures, label, keep)


def test_training_is_repeatable_and_what_is_saved_is_what_was_scored(train, test, tmp_path):
    path, some = tmp_path / "judge.safetensors", train.subset(torch.arange(300))
    first = training.train_classifier(TINY, some, test=test, path=path, device="cpu", progress=False)
    again = training.train_classifier(TINY, some, test=test, device="cpu", progress=False)
    loaded = checkpoints.load_classifier(path=path)
    assert same_weights(first, again) and same_weights(first, loaded)
    assert loaded.info["test"]["accuracy"] == accuracy(loaded, test) and loaded.info["recipe"]["name"] == "judge"


def test_pictures_are_mirrored_at_random_in_training(train):
    stage, seen = training.ClassifierStage(TINY, train.subset(torch.arange(8)), "cpu"), []
    stage.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = data.to_images(stage.pixels)
    for _ in range(20):
        stage.loss(training.Batch(torch.arange(8)))
    mirrored = [torch.equal(a, b.flip(-1)) for batch in seen for a, b in zip(batch, images, strict=True)]
    kept = [torch.equal(a, b) for batch in seen for a, b in zip(batch, images, strict=True)]
    assert 50 < sum(mirrored) < 110 and sum(mirrored) + sum(kept) == 160


def test_the_configuration_says_how_wide_it_is():
    sizes = [sum(p.numel() for p in Classifier(ClassifierConfig(channels=c)).parameters()) for c in (4, 32)]
    assert sizes[0] < sizes[1] < 500_000  # below 1 MB in float16
    for name, value in (("channels", 0), ("features", 2.5), ("dropout", 1.5)):
        with pytest.raises(ValueError, match=name):
            ClassifierConfig(**{name: value})
