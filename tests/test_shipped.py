"""The weights that come with the package: what README and notebooks say of them."""

import math
from pathlib import Path

import pytest
import torch
from conftest import seeded

from vqlib import checkpoints, data, evaluation, load_pair, records, training
from vqlib.baselines import Histogram
from vqlib.classifier import accuracy
from vqlib.sampling import gumbel_noise, log_likelihood, sample
from vqlib.tokens import encode_pixels, perplexity, usage

CLASSES = torch.arange(1000) % 10
NOTEBOOK_4 = Path(__file__).parent.parent / "notebooks" / "04_transformer.ipynb"


@pytest.fixture(scope="module")
def vqvae():
    return load_pair(shipped=True).vqvae


@pytest.fixture(scope="module")
def transformer():
    return load_pair(shipped=True).transformer


@pytest.fixture(scope="module")
def codes(vqvae, test):
    return encode_pixels(vqvae, test.pixels)


@pytest.fixture(scope="module")
def nats(transformer, codes, test):
    return evaluation.evaluate_transformer(transformer, codes, test.labels)["nats_per_code"]


@pytest.fixture(scope="module")
def samples(transformer):
    """1,000 pictures, all classes in turn, temperature 0.8, seed 0: (1000, 7, 7)."""
    return sample(transformer, CLASSES, generator=seeded())


def test_without_a_run_of_the_readers_the_shipped_pair_is_loaded():
    for model in load_pair():
        assert model.info["path"].startswith(str(checkpoints.SHIPPED)) and not model.training
        assert model.info["recipe"]["name"] == "best" and "60000 pictures" in model.info["data"]


def test_all_of_it_is_small():
    assert sum(file.stat().st_size for file in checkpoints.SHIPPED.iterdir()) <= 24_000_000
    assert not [file for file in checkpoints.SHIPPED.iterdir() if file.suffix not in (".safetensors", ".json", ".md")]


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def test_the_vqvae_reconstructs_pictures_it_never_saw(vqvae, test):
    figures = evaluation.evaluate_vqvae(vqvae, test)
    assert figures["mse"] <= 0.0056
    assert figures["mse"] == pytest.approx(vqvae.info["test"]["mse"], rel=0.1)  # the mini set is a part of the test set


def test_all_codes_are_in_use(vqvae, train):
    frequencies = usage(encode_pixels(vqvae, train.pixels))
    assert (frequencies > 0).all() and perplexity(frequencies) >= 48


def test_the_header_states_the_figures_over_the_whole_test_set(vqvae):
    figures = vqvae.info["test"]
    assert figures["pictures"] == 10_000 and figures["mse"] <= 0.0052
    assert figures["codes_used"] == 64 and figures["perplexity"] >= 50


def test_the_header_states_the_recipe_and_its_history(vqvae, transformer):
    for model, recipe in zip((vqvae, transformer), training.RECIPES["best"], strict=True):
        assert model.info["recipe"] == recipe.as_json() and model.info["format"] == 2
        steps = model.info["history"]["steps"]
        assert steps[-1]["step"] == recipe.epochs * math.ceil(60_000 / recipe.batch_size)
        assert model.info["history"]["seconds"] > 0
    assert vqvae.info["history"]["steps"][-1]["mse"] < vqvae.info["history"]["steps"][0]["mse"] / 4
    assert transformer.info["history"]["steps"][-1]["nats_per_code"] < 2.6


def test_original_defect_1_the_shipped_codes_do_not_depend_on_the_batch(vqvae, codes, test):
    """In float32 two codes that are equally far away may change places: at most one in 5,000."""
    alone = encode_pixels(vqvae, test.pixels[:100], batch_size=1)
    assert (alone != codes[:100]).float().mean() <= 1 / 5000
    vqvae.train()
    in_training_mode = encode_pixels(vqvae, test.pixels)
    vqvae.eval()
    assert torch.equal(in_training_mode, codes)


# --- the Transformer -------------------------------------------------------------------------------------------------


def test_the_transformer_is_stored_in_half_precision_and_fits_the_tokenizer(vqvae, transformer):
    stored, _ = checkpoints.read(checkpoints.SHIPPED / "transformer.safetensors", "Transformer")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert {parameter.dtype for parameter in transformer.parameters()} == {torch.float32}
    assert transformer.info["tokenizer"] == checkpoints.tokenizer_id(vqvae)


def test_its_likelihood_on_the_mini_set_is_near_that_of_the_whole_test_set(transformer, nats):
    assert transformer.info["test"]["pictures"] == 10_000
    assert nats == pytest.approx(transformer.info["test"]["nats_per_code"], abs=0.1)


def test_it_beats_every_naive_baseline(nats, vqvae, codes, train, test):
    naive = Histogram.fit(encode_pixels(vqvae, train.pixels), train.labels).nats_per_code(codes, test.labels)
    assert nats < naive - 0.7 < math.log(64) - 0.7


def test_its_likelihood_tells_classes_apart(transformer, codes, test):
    some = torch.arange(0, 500, 8)
    scores = torch.stack([log_likelihood(transformer, codes[some], torch.full_like(some, c)) for c in range(10)], 1)
    assert (scores.argmax(1) == test.labels[some]).float().mean() > 0.75


# --- sampling in float32 ---------------------------------------------------------------------------------------------


def different(codes, others):
    return (codes != others).flatten(1).any(1).sum().item()


def test_the_same_pictures_whatever_the_batch_size(transformer, samples):
    """In float32 at least 99.9 % of the pictures: of 1,000, one may differ by a near-tie."""
    generator = seeded()
    parts = [sample(transformer, part, generator=generator) for part in CLASSES.split([1, 8, 91, 150, 250, 500])]
    assert different(samples, torch.cat(parts)) <= 1


def test_the_same_pictures_with_the_cache_and_without(transformer, samples):
    """Every step of 1,000 pictures again, from the whole sequence at once, without a cache."""
    noise, again = gumbel_noise(1000, generator=seeded()).float(), []
    tokens = torch.cat([64 + CLASSES[:, None], samples.flatten(1)[:, :-1]], 1)
    with torch.no_grad():
        for part, own_noise in zip(tokens.split(250), noise.split(250), strict=True):
            again.append((transformer(part)[..., :64] + 0.8 * own_noise).argmax(-1))
    assert different(samples, torch.cat(again).reshape(-1, 7, 7)) <= 1


def test_samples_look_like_their_class_and_are_no_copies(vqvae, samples, train):
    assert len(samples.flatten(1).unique(dim=0)) == 1000 and perplexity(usage(samples)) > 40
    index, distance = evaluation.nearest_neighbours(evaluation.reconstruct(vqvae, samples), train.pixels)
    assert (train.labels[index] == CLASSES).float().mean() > 0.65
    assert distance.min() > 0.0005 and distance.mean() < 0.05


def test_completion_keeps_the_upper_half(vqvae, transformer, codes, test):
    whole = codes[:16]
    completed = sample(transformer, test.labels[:16], generator=seeded(), prefix=whole.flatten(1)[:, :28])
    assert torch.equal(completed[:, :4], whole[:, :4]) and not torch.equal(completed, whole)
    upper = (vqvae.decode(completed) - vqvae.decode(whole))[..., :8, :].abs().mean()
    assert upper < 0.01


# --- the record of the original recipe -------------------------------------------------------------------------------


def test_the_record_of_the_original_recipe_is_whole():
    record = records.load_original_record()
    for name, recipe in zip(("vqvae", "transformer"), training.RECIPES["original"], strict=True):
        assert record[name]["recipe"] == recipe.as_json()
        steps = record[name]["history"]["steps"]
        assert steps[-1]["step"] == recipe.epochs * math.ceil(60_000 / recipe.batch_size)
        assert record[name]["test"]["pictures"] == 10_000
    assert record["samples"].shape == (10, 8, 28, 28) and record["samples"].dtype == torch.uint8
    judge = checkpoints.load_classifier("judge", shipped=True)
    samples = data.Dataset(record["samples"].flatten(0, 1), torch.arange(10).repeat_interleave(8), "the record")
    assert accuracy(judge, samples) > 0.6  # clothes, each in its class's row


# --- the ablations of stage 1 ----------------------------------------------------------------------------------------


def test_what_notebook_02_says_of_the_tricks():
    runs = records.load_ablation()
    assert all(len(values) == 3 for figures in runs.values() for values in figures.values())
    mse, perplexity = ({name: sum(figures[key]) / 3 for name, figures in runs.items()} for key in ("mse", "perplexity"))
    plain, kmeans, ema, revival, all_three, rotation, fsq = mse.values()
    assert list(mse)[0] == "the original loss" and list(mse)[-1] == "FSQ, levels [8, 8]"
    assert ema < rotation < kmeans < revival < plain
    assert all_three < 0.72 * plain and 0.9 * all_three < fsq < 1.05 * all_three
    plain, _, ema, revival, *_ = perplexity.values()
    assert ema < 0.7 * plain and revival > 50


def test_what_notebook_04_says_of_muon():
    runs, notebook = records.load_optimizers(), NOTEBOOK_4.read_text(encoding="utf-8")
    adamw, muon = runs["QK-norm"], runs["Muon"]
    assert f"After the same {muon['steps'][-1]['step']} steps AdamW is at {adamw['validation']:.2f} nats" in notebook
    assert f"on the held-out pictures, and Muon at {muon['validation']:.2f}" in notebook
    assert [row["step"] for row in adamw["steps"]] == [row["step"] for row in muon["steps"]]
    level = adamw["steps"][-1]["nats_per_code"]
    assert min(abs(row["nats_per_code"] - level) for row in muon["steps"] if row["step"] in (150, 200, 250)) < 0.01
    assert 1.1 < muon["seconds"] / adamw["seconds"] < 1.2  # "about a seventh longer"
    assert f"come to {checkpoints.load_transformer(shipped=True).info['test']['nats_per_code']:.2f}" in notebook


def test_what_notebook_02_says_of_the_collapse():
    runs = records.load_ablation(collapse=True)
    uniform, uniform_longer, normal, normal_longer, kmeans, ema, revival = (f["codes_used"] for f in runs.values())
    assert max(normal) <= 8 and max(normal_longer) <= 8 and max(ema) <= 8
    assert min(kmeans) > 40 and revival == [64, 64, 64]
    assert min(uniform) > 25 and min(uniform_longer) >= 50
