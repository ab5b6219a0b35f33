"""The scorecard: its measures on tiny generators, and the shipped card against files, README and notebooks."""

import dataclasses
import json

import pytest
import torch

from vqlib import checkpoints, data, evaluation, scorecard, training
from vqlib.classifier import ClassifierConfig, accuracy
from vqlib.sampling import sample

QUICK = dataclasses.replace(training.SCORE, epochs=4, batch_size=16, warmup_steps=3, mixed_precision=False,
                            model=ClassifierConfig(channels=4, features=16))


@pytest.fixture(scope="module")
def referee(train, test):
    classifier = training.train_classifier(QUICK, train, device="cpu", progress=False)
    return scorecard.Referee(classifier, train.subset(torch.arange(400)), test.subset(torch.arange(200)), QUICK)


def test_balanced_takes_the_first_of_each_class(train):
    part = scorecard.balanced(train, 30)
    assert torch.bincount(part.labels).tolist() == [3] * 10
    for label in range(10):
        assert torch.equal(part.pixels[part.labels == label], train.pixels[train.labels == label][:3])


def test_samples_are_those_of_one_seed_whatever_the_batch(transformer):
    codes, labels = scorecard.write(transformer, 30, 0.8, 2.0, batch_size=7)
    assert labels.tolist() == list(range(10)) * 3
    whole = sample(transformer, labels, 0.8, guidance=2.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(codes, whole)


def test_real_pictures_score_as_real(referee, test):
    images = data.to_images(referee.test.pixels)
    figures = referee.measure(images, referee.test.labels)
    assert figures["fid"] == pytest.approx(0, abs=1e-4) and figures["coverage"] == 1 and figures["pictures"] == 200
    assert figures["agreement"] == accuracy(referee.classifier, referee.test)
    noise = referee.measure(torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1,
                            referee.test.labels)
    assert noise["fid"] > 0.01 and noise["coverage"] < 0.2
    assert noise["classification_accuracy_score"] < figures["classification_accuracy_score"] - 0.1
    assert noise["nearest_mean"] > 2 * figures["nearest_mean"] > 0


def test_the_accuracy_score_never_trains_on_what_it_scores(referee, train, monkeypatch):
    monkeypatch.setattr(training, "pick_device", lambda: "cpu")  # elsewhere two trainings need not be equal
    some = train.subset(torch.arange(100))
    model = training.train_classifier(QUICK, data.Dataset(some.pixels, some.labels, "samples"), progress=False)
    figures = referee.measure(data.to_images(some.pixels), some.labels, nearest=False)
    assert figures["classification_accuracy_score"] == accuracy(model, referee.test)


def test_references_are_training_pictures_as_many_as_test_pictures(referee):
    figures = referee.references()
    assert figures["pictures"] == 200 and 0 < figures["nearest_least"] < figures["nearest_mean"]
    assert figures["judge_accuracy"] == accuracy(referee.classifier, referee.test)


def test_a_pair_is_scored_on_all_counts(referee, vqvae, transformer):
    vqvae, transformer = vqvae.float(), transformer.float()
    transformer.info = {"recipe": {"drop_class": 0.1}}
    knobs = {"T = 1": (1.0, 1.0), "guided": (0.8, 2.0)}
    figures = scorecard.score_pair(vqvae, transformer, referee, n=20, knobs=knobs, bayes=20)
    assert figures["tokenizer"] == evaluation.evaluate_vqvae(vqvae, referee.test)
    assert 0 <= figures["training_reconstructions"]["classification_accuracy_score"] <= 1
    assert "classification_accuracy_score" not in figures["reconstructions"]  # a classifier would train on the test set
    assert set(figures["samples"]) == set(knobs) and figures["samples"]["guided"]["guidance"] == 2.0
    assert 0 <= figures["bayes_accuracy"] <= 1 and figures["bayes_pictures"] == 20
    transformer.info = {"recipe": {}}  # the ancestor's: no guidance
    assert set(scorecard.score_pair(vqvae, transformer, referee, 20, knobs, 20)["samples"]) == {"T = 1"}
    naive = scorecard.score_naive(vqvae, referee, n=20)
    assert naive["uniform codes"]["likelihood"]["nats_per_code"] == pytest.approx(4.1589, abs=1e-4)
    rows = scorecard.chart(vqvae, transformer, referee.classifier, referee.train, 20, points=[(0.8, 1.0)])
    assert rows[0]["temperature"] == 0.8 and 0 <= rows[0]["agreement"] <= 1


def test_there_are_at_most_twelve_points_and_ten_rows():
    assert len(scorecard.CHART) <= 12
    assert len(scorecard.table(checkpoints.load_scorecard()).splitlines()) - 2 <= 10


# --- the card that is shipped ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def card():
    return checkpoints.load_scorecard()


def test_the_shipped_card_is_of_the_shipped_pair(card):
    vqvae, transformer = checkpoints.load_vqvae(shipped=True), checkpoints.load_transformer(shipped=True)
    assert card["tokenizer"] == checkpoints.tokenizer_id(vqvae) and card["samples"] == 10_000
    ours = card["generators"]["ours"]
    for key, value in vqvae.info["test"].items():
        assert ours["tokenizer"][key] == pytest.approx(value, rel=1e-3)
    assert ours["likelihood"]["nats_per_code"] == pytest.approx(transformer.info["test"]["nats_per_code"], abs=1e-3)
    judge = checkpoints.load_classifier("judge", shipped=True)
    accuracy_of_judge = card["real pictures"]["judge_accuracy"]
    assert accuracy_of_judge == pytest.approx(judge.info["test"]["accuracy"], abs=2e-4) and accuracy_of_judge > 0.92


def test_what_the_notebooks_say_of_guidance_and_the_knobs(card):
    ours, chart = card["generators"]["ours"], {(p["temperature"], p["guidance"]): p for p in card["chart"]}
    plain, cool, guided, mild = (ours["samples"][knobs] for knobs in scorecard.KNOBS)
    assert guided["agreement"] > cool["agreement"] > plain["agreement"]
    assert guided["coverage"] < cool["coverage"] < plain["coverage"]
    assert mild["fid"] < plain["fid"] and mild["agreement"] > plain["agreement"]
    assert ours["reconstructions"]["fid"] < plain["fid"] < 1.5 * ours["reconstructions"]["fid"]
    for naive in ("uniform codes", "histogram"):
        assert card["generators"][naive]["samples"]["T = 1"]["fid"] > 2 * plain["fid"]
        assert card["generators"][naive]["samples"]["T = 1"]["coverage"] < 0.6 * plain["coverage"]
    assert ours["reconstructions"]["fid"] > 0.5 * plain["fid"]  # most of the distance is the tokenizer's
    assert card["generators"]["histogram"]["samples"]["T = 1"]["agreement"] > cool["agreement"] - 0.1
    for key in ("agreement", "coverage"):  # the free lunch of 05
        assert chart[1.0, 1.5][key] > chart[1.0, 1.0][key]
        assert chart[0.9, 1.0][key] > chart[1.2, 1.0][key]
    for key in ("agreement", "coverage"):  # guidance is the better trade
        assert chart[0.8, 1.5][key] > chart[0.7, 1.0][key]
    assert chart[0.5, 1.0]["coverage"] < chart[0.7, 1.0]["coverage"] < chart[0.9, 1.0]["coverage"]
    assert round(mild["agreement"], 2) == 0.91 and (round(plain["fid"]), round(mild["fid"])) == (19, 16)
    ancestors = card["generators"]["ancestor's recipe"]["samples"]["T = 1"]
    assert ancestors["fid"] == pytest.approx(2 * plain["fid"], rel=0.05)
    assert ancestors["coverage"] < plain["coverage"]
    copies = ours["training_reconstructions"]["classification_accuracy_score"]
    real = card["real pictures"]["classification_accuracy_score"]
    assert plain["classification_accuracy_score"] < copies < real
    for T in (0.8, 1.0):
        assert chart[T, 2.0]["coverage"] < chart[T, 1.5]["coverage"]


def test_the_seeds_column_and_the_seeds_record_are_of_one_run(card):
    record, column = checkpoints.load_ancestor_record(), card["generators"]["ancestor's recipe"]
    for stage, part, key in (("vqvae", "tokenizer", "mse"), ("vqvae", "tokenizer", "perplexity"),
                             ("transformer", "likelihood", "nats_per_code")):
        assert column[part][key] == pytest.approx(record[stage]["test"][key], rel=1e-3)
    assert {"T = 1", "T = 0.8"} <= set(column["samples"])


def test_a_damaged_card_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path)
    for content in (None, "{"):
        if content:
            (tmp_path / "scorecard.json").write_text(content)
        with pytest.raises(ValueError, match="scorecard.json is damaged or missing.*git checkout"):
            checkpoints.load_scorecard()


def test_what_the_scorecard_needs_is_looked_for_before_it_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scorecard, "Referee", None)
    with pytest.raises(FileNotFoundError, match="no .*ancestor.*vqvae.safetensors"):
        scorecard.main(["--sample", "--ancestor-run", str(tmp_path / "ancestor")])
    assert capsys.readouterr().out.startswith("ours: shipped weights")
    with pytest.raises(FileNotFoundError, match="no .*mine.*vqvae.safetensors"):
        scorecard.main(["--sample", "--run", str(tmp_path / "mine")])
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write into .*file"):
        scorecard.main(["--sample", "--out", str(tmp_path / "file" / "card.json")])


def test_the_card_is_plain_json(card):
    assert json.loads(json.dumps(card)) == card
    assert "NaN" not in (checkpoints.SHIPPED / "scorecard.json").read_text(encoding="utf-8")
