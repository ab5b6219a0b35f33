import dataclasses

import pytest
import torch

from vqlib import checkpoints, data, training
from vqlib.classifier import Classifier, ClassifierConfig, accuracy, judge, rerank

TINY = dataclasses.replace(training.JUDGE, epochs=2, warmup_steps=3, mixed_precision=False,
                           model=ClassifierConfig(channels=4, features=16))


@pytest.fixture(scope="module")
def classifier(train):
    """Trained for two epochs on the embedded sample: its batch statistics are of real pictures."""
    return training.train_classifier(dataclasses.replace(TINY, epochs=4), train, device="cpu", progress=False)


@pytest.fixture
def pictures(test):
    return data.to_images(test.pixels[:40])


def test_judge_gives_log_probabilities_and_features(classifier, pictures):
    log_probs, features = judge(classifier, pictures, batch_size=7)
    assert log_probs.shape == (40, 10) and features.shape == (40, 16) and not log_probs.requires_grad
    assert (log_probs.exp().sum(1) - 1).abs().max() < 1e-5 and (features >= 0).all() and features.std() > 0
    by_hand = (features @ classifier.head[1].weight.T + classifier.head[1].bias).log_softmax(-1)
    assert (by_hand - log_probs).abs().max() < 1e-5


def test_a_verdict_depends_neither_on_the_batch_nor_on_the_mode(classifier, pictures):
    together, _ = judge(classifier, pictures)
    alone = torch.cat([judge(classifier, picture[None])[0] for picture in pictures])
    assert (together - alone).abs().max() < 1e-4
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    classifier.train()
    assert torch.equal(judge(classifier, pictures)[0], together) and classifier.training
    classifier.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())


def test_accuracy_is_the_share_of_right_answers(classifier, test):
    some = test.subset(torch.arange(60))
    right = sum(int(classifier(data.to_images(pixels[None])).argmax()) == label
                for pixels, label in zip(some.pixels, some.labels.tolist(), strict=True))
    assert accuracy(classifier, some) == pytest.approx(right / 60) and right > 30  # chance: 6


def test_rerank_keeps_what_the_critic_finds_most_like_the_class(classifier, pictures):
    log_probs, _ = judge(classifier, pictures)
    kept = rerank(classifier, pictures, label=3, keep=5)
    assert kept.tolist() == sorted(range(40), key=lambda i: -log_probs[i, 3])[:5]
    for keep in (0, 41):
        with pytest.raises(ValueError, match=f"keep must be a whole number in 1…40.*got {keep}"):
            rerank(classifier, pictures, 3, keep)


def test_training_is_repeatable_and_what_is_saved_is_what_was_scored(train, test, tmp_path):
    path, some = tmp_path / "judge.safetensors", train.subset(torch.arange(300))
    first = training.train_classifier(TINY, some, test=test, path=path, device="cpu", progress=False)
    again = training.train_classifier(TINY, some, test=test, device="cpu", progress=False)
    loaded = checkpoints.load_classifier(path=path)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]) and torch.equal(tensor, loaded.state_dict()[name])
    assert loaded.info["test"]["accuracy"] == accuracy(loaded, test) and loaded.info["recipe"]["name"] == "judge"


def test_pictures_are_mirrored_at_random_in_training(train):
    stage = training.ClassifierStage(TINY, train.subset(torch.arange(8)), "cpu")
    seen = []
    stage.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = data.to_images(stage.pixels)
    for _ in range(20):
        stage.loss(training.Batch(torch.arange(8)), torch.autocast("cpu", enabled=False))
    mirrored = [torch.equal(a, b.flip(-1)) for batch in seen for a, b in zip(batch, images, strict=True)]
    kept = [torch.equal(a, b) for batch in seen for a, b in zip(batch, images, strict=True)]
    assert 50 < sum(mirrored) < 110 and sum(mirrored) + sum(kept) == 160


def test_only_the_two_judges_are_known():
    with pytest.raises(ValueError, match="'judge' or 'critic', got 'jury'"):
        checkpoints.load_classifier("jury")


def test_the_configuration_says_how_wide_it_is():
    sizes = [sum(p.numel() for p in Classifier(ClassifierConfig(channels=c)).parameters()) for c in (4, 32)]
    assert sizes[0] < sizes[1] < 500_000  # float16: below 1 MB
