"""The scorecard: its measures on tiny generators, and the shipped card held against files and notebooks."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import lively_transformer, seeded

from vqlib import Pair, checkpoints, data, evaluation, records, scorecard, training
from vqlib.classifier import ClassifierConfig, accuracy
from vqlib.sampling import sample
from vqlib.vqvae import VQVAE, VQVAEConfig

ROOT = Path(__file__).parent.parent
MODEL = ClassifierConfig(channels=4, features=16)
QUICK = {"epochs": 4, "batch_size": 16, "warmup_steps": 3, "mixed_precision": False, "model": MODEL}
QUICK = dataclasses.replace(training.SCORE, **QUICK)


@pytest.fixture(scope="module")
def referee(train, test):
    judge = training.train_classifier(QUICK, train, device="cpu", progress=False)
    return scorecard.Referee(judge, train.subset(torch.arange(400)), test.subset(torch.arange(200)), QUICK)


@pytest.fixture
def pair(pair):
    """In float32, with a Transformer that knows "any class"."""
    pair.transformer.info = {"recipe": {"drop_class": 0.1}}
    return Pair(pair.vqvae.float(), pair.transformer.float())


def test_balanced_takes_the_first_of_each_class(train):
    part = scorecard.balanced(train, 30)
    assert torch.bincount(part.labels).tolist() == [3] * 10
    for label in range(10):
        assert torch.equal(part.pixels[part.labels == label], train.pixels[train.labels == label][:3])
    mixed = scorecard.balanced(train, 30, shuffled=True)
    assert mixed.labels.tolist() != part.labels.tolist()
    assert sorted(p.tobytes() for p in mixed.pixels.numpy()) == sorted(p.tobytes() for p in part.pixels.numpy())


def test_samples_are_those_of_one_seed_whatever_the_batch(pair):
    pair = Pair(pair.vqvae.double(), pair.transformer.double())
    images, labels = scorecard.draw(pair, 30, 0.8, 2.0, batch_size=7)
    assert labels.tolist() == list(range(10)) * 3
    whole = sample(pair.transformer, labels, temperature=0.8, guidance=2.0, generator=seeded())
    assert torch.equal(pair.vqvae.encode(images.double()), pair.vqvae.encode(pair.vqvae.decode(whole).float().double()))


def all_figures(referee, images):
    labels = referee.test.labels
    return referee.measure(images, labels) | referee.accuracy_score(images, labels)


def test_real_pictures_score_as_real(referee):
    images = data.to_images(referee.test.pixels)
    figures = all_figures(referee, images)
    assert figures["fid"] == pytest.approx(0, abs=1e-4) and figures["coverage"] == 1 and figures["pictures"] == 200
    assert figures["agreement"] == accuracy(referee.judge, referee.test)
    noise = torch.rand(images.shape, generator=seeded()) * 2 - 1
    noise = all_figures(referee, noise)
    assert noise["fid"] > 0.01 and noise["coverage"] < 0.2
    assert noise["classification_accuracy_score"] < figures["classification_accuracy_score"] - 0.1
    assert noise["nearest_mean"] > 2 * figures["nearest_mean"] > 0


def test_the_accuracy_score_never_trains_on_what_it_scores(referee, train):
    some = train.subset(torch.arange(100))
    model = training.train_classifier(QUICK, data.Dataset(some.pixels, some.labels, "samples"), progress=False)
    figures = referee.accuracy_score(data.to_images(some.pixels), some.labels)
    assert figures == {"classification_accuracy_score": pytest.approx(accuracy(model, referee.test), abs=0.02)}


def test_references_are_as_many_training_pictures_as_there_are_test_pictures(referee):
    figures = referee.references()
    assert figures["pictures"] == 200 and 0 < figures["nearest_least"] < figures["nearest_mean"]
    assert figures["judge_accuracy"] == accuracy(referee.judge, referee.test)


def test_a_pair_is_scored_on_all_counts(referee, pair):
    knobs = {"T = 1": (1.0, 1.0), "guided": (0.8, 2.0)}
    figures = scorecard.score_pair(pair, referee, n=20, knobs=knobs, bayes=20)
    assert figures["tokenizer"] == evaluation.evaluate_vqvae(pair.vqvae, referee.test)
    assert 0 <= figures["training_reconstructions"]["classification_accuracy_score"] <= 1
    assert "classification_accuracy_score" not in figures["reconstructions"]  # a classifier would train on the test set
    assert set(figures["samples"]) == set(knobs) and figures["samples"]["guided"]["guidance"] == 2.0
    assert 0 <= figures["bayes_accuracy"] <= 1 and figures["bayes_pictures"] == 20
    crisp = pair.drawn_by(VQVAE(VQVAEConfig(channels=8)).decoder.eval())
    both = scorecard.score_pair(pair, referee, 20, knobs, 20, others=[crisp])
    for figure in figures["samples"].values():
        del figure["seconds"]
    for figure in both[0]["samples"].values():
        del figure["seconds"]
    assert both[0] == figures and both[1]["likelihood"] == figures["likelihood"]
    assert both[1]["tokenizer"] == evaluation.evaluate_vqvae(crisp.vqvae, referee.test) != figures["tokenizer"]
    drawn = scorecard.draw(crisp, 20, 0.8, 2.0)
    assert both[1]["samples"]["guided"]["fid"] == referee.measure(*drawn)["fid"]
    pair.transformer.info = {}  # it never saw "any class", so there is no guidance
    assert set(scorecard.score_pair(pair, referee, 20, knobs, 20)["samples"]) == {"T = 1"}
    rows = scorecard.chart(pair, referee.judge, referee.train, 20, points=[(0.8, 1.0)])
    assert rows[0]["temperature"] == 0.8 and 0 <= rows[0]["agreement"] <= 1


@pytest.mark.parametrize("num_codes", [32, 128])
def test_a_pair_may_have_another_number_of_codes(referee, num_codes):
    vqvae = VQVAE(VQVAEConfig(num_codes=num_codes, channels=4)).eval()
    pair = Pair(vqvae, lively_transformer(num_codes=num_codes).float())
    figures = scorecard.score_pair(pair, referee, n=10, knobs={"T = 1": (1.0, 1.0)}, bayes=10)
    naive = scorecard.score_naive(vqvae, referee, n=10)
    assert naive["uniform codes"]["likelihood"]["nats_per_code"] == pytest.approx(math.log(num_codes), abs=1e-5)
    card = {"num_codes": num_codes, "samples": 10, "real pictures": {}, "generators": {"ours": figures} | naive}
    assert f"of {num_codes} |" in scorecard.table(card)


def test_there_are_at_most_twelve_points_and_eleven_rows(card):
    assert len(scorecard.CHART) <= 12
    assert len(scorecard.table(card).splitlines()) - 2 <= 11


# --- the command line ------------------------------------------------------------------------------------------------


def test_what_the_scorecard_needs_is_looked_for_before_it_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scorecard, "Referee", None)
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "mine")):
        scorecard.main(["--mini", "--original-run", str(tmp_path / "mine")])
    assert capsys.readouterr().out.startswith("ours: shipped weights")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "mine")):
        scorecard.main(["--mini", "--run", "mine"])
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        scorecard.main(["--mini", "--out", str(tmp_path / "file" / "card.json")])


def test_flags_of_0_1_are_understood():
    options = scorecard.parse(["--sample", "--ancestor-run", "runs/ancestor", "--run", "there"])
    assert options.mini and options.original_run.name == "ancestor"
    assert options.out.parts[-2:] == ("there", "scorecard-mini.json")


# --- the card that is shipped ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def card():
    return records.load_scorecard()


def test_the_shipped_card_is_of_the_shipped_pair(card):
    vqvae, transformer = checkpoints.load_vqvae(shipped=True), checkpoints.load_transformer(shipped=True)
    assert card["tokenizer"] == checkpoints.tokenizer_id(vqvae) and card["samples"] == 10_000
    assert card["num_codes"] == vqvae.config.num_codes
    ours = card["generators"]["ours"]
    for key, value in vqvae.info["test"].items():
        assert ours["tokenizer"][key] == pytest.approx(value, rel=1e-3)
    assert ours["likelihood"]["nats_per_code"] == pytest.approx(transformer.info["test"]["nats_per_code"], abs=1e-3)
    judge = checkpoints.load_classifier("judge", shipped=True)
    accuracy_of_judge = card["real pictures"]["judge_accuracy"]
    assert accuracy_of_judge == pytest.approx(judge.info["test"]["accuracy"], abs=2e-4) and accuracy_of_judge > 0.92


def test_what_the_notebooks_say_of_guidance_and_the_knobs(card):
    """Notebook 6, and the notebooks on sampling before it, in words; its figures are below."""
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
    for key in ("agreement", "coverage"):  # mild guidance costs nothing
        assert chart[1.0, 1.5][key] > chart[1.0, 1.0][key]
        assert chart[0.9, 1.0][key] > chart[1.2, 1.0][key]
    for key in ("agreement", "coverage"):  # guidance is the better trade
        assert chart[0.8, 1.5][key] > chart[0.7, 1.0][key]
    assert chart[0.5, 1.0]["coverage"] < chart[0.7, 1.0]["coverage"] < chart[0.9, 1.0]["coverage"]
    assert round(mild["agreement"], 2) == 0.92 and (round(plain["fid"]), round(mild["fid"])) == (17, 15)
    original = card["generators"]["original recipe"]["samples"]["T = 1"]
    assert 2 * plain["fid"] < original["fid"] < 2.5 * plain["fid"]
    assert original["coverage"] < plain["coverage"]
    copies = ours["training_reconstructions"]["classification_accuracy_score"]
    real = card["real pictures"]["classification_accuracy_score"]
    assert plain["classification_accuracy_score"] < copies < real
    for T in (0.8, 1.0):
        assert chart[T, 2.0]["coverage"] < chart[T, 1.5]["coverage"]


def said_in(notebook):
    cells = json.loads((ROOT / "notebooks" / notebook).read_text(encoding="utf-8"))["cells"]
    return " ".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def test_the_figures_in_the_text_of_notebook_7_are_the_cards(card):
    soft, crisp = (card["generators"][name] for name in ("ours", "ours, crisp"))
    copies = [pair["reconstructions"]["fid"] for pair in (soft, crisp)]
    samples = [pair["samples"]["T = 1"]["fid"] for pair in (soft, crisp)]
    words = f"FID of copies falls from {copies[0]:.2f} to {copies[1]:.2f}, and that of samples at $T = 1$ from"
    assert f"{words} {samples[0]:.2f} to {samples[1]:.2f}" in said_in("07_crisp.ipynb")
    assert abs(crisp["reconstructions"]["sharpness"] - 1) < 0.05 < abs(soft["reconstructions"]["sharpness"] - 1)


def test_the_figures_in_the_text_of_notebook_6_are_the_cards(card):
    said = said_in("06_quality.ipynb")
    real, ours, original = card["real pictures"], *(card["generators"][name] for name in ("ours", "original recipe"))
    plain, cool, copies = ours["samples"]["T = 1"], ours["samples"]["T = 0.8"], ours["reconstructions"]
    theirs, score = original["samples"]["T = 1"], "classification_accuracy_score"
    nats = [pair["likelihood"]["nats_per_code"] for pair in (original, ours)]
    for words in (
        f"it names {100 * real['judge_accuracy']:.1f} % of the test pictures right",
        f"At 10,000 ours is {plain['fid']:.2f}, and that of real pictures {real['fid']:.2f}",
        f"{100 * plain[score]:.1f} % from our samples, {100 * ours['training_reconstructions'][score]:.1f} % from the "
        f"tokenizer's copies of real training pictures, {100 * real[score]:.1f} % from those pictures themselves",
        f"Over 2,000 test pictures {100 * ours['bayes_accuracy']:.1f} % are right",
        f"{cool['nearest_mean']:.4f} on average over 1,000",
        f"the copies have an FID of {copies['fid']:.2f}, and our samples at $T = 1$ have {plain['fid']:.2f}",
        f"those copies have an FID of {card['generators']['ours, crisp']['reconstructions']['fid']:.2f}",
        f"A code costs {nats[0]:.3f} nats in the original recipe and {nats[1]:.3f} in ours",
        f"an FID of {theirs['fid']:.2f}, more than twice ours, and cover {100 * theirs['coverage']:.1f} % of the real "
        f"pictures, where ours cover {100 * plain['coverage']:.1f} %",
    ):
        assert words in said, words
    assert ours["bayes_pictures"] == 2000 and plain["pictures"] == copies["pictures"] == 10_000
    assert plain["nearest_mean"] > copies["nearest_mean"] > cool["nearest_mean"]
    naive = card["generators"]["histogram"]["samples"]["T = 1"]
    assert 4 * plain["fid"] < naive["fid"] < 5 * plain["fid"]
    by_eye = ["ours", "original recipe", "histogram", "uniform codes"]
    for measure in ("coverage", score):
        shares = [card["generators"][name]["samples"]["T = 1"][measure] for name in by_eye]
        assert shares == sorted(shares, reverse=True)
    assert original["samples"]["T = 0.8"]["agreement"] < naive["agreement"]  # ghosts are the easier to name
    assert ours["samples"]["T = 0.8, guidance 2"]["agreement"] > real["judge_accuracy"]
    assert ours["tokenizer"]["mse"] < original["tokenizer"]["mse"]
    assert ours["tokenizer"]["perplexity"] > original["tokenizer"]["perplexity"]


def test_the_original_recipes_column_and_its_record_are_of_one_run(card):
    record, column = records.load_original_record(), card["generators"]["original recipe"]
    for stage, part, key in (
        ("vqvae", "tokenizer", "mse"),
        ("vqvae", "tokenizer", "perplexity"),
        ("transformer", "likelihood", "nats_per_code"),
    ):
        assert column[part][key] == pytest.approx(record[stage]["test"][key], rel=1e-3)
    assert {"T = 1", "T = 0.8"} <= set(column["samples"])


def test_a_damaged_card_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path)
    for content in (None, "{"):
        if content:
            (tmp_path / "scorecard.json").write_text(content)
        with pytest.raises(ValueError, match="scorecard.json.*git checkout"):
            records.load_scorecard()


def test_the_card_is_plain_json(card):
    assert json.loads(json.dumps(card)) == card
    assert "NaN" not in (checkpoints.SHIPPED / "scorecard.json").read_text(encoding="utf-8")
