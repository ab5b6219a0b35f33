"""The benchmark of the captions runs, on a tiny model, and counts as it says."""

import dataclasses

import captions as bench
import pytest
import torch
from conftest import pictures, tokenizer

from vqlib import captions, checkpoints, records
from vqlib.contrastive import ContrastiveConfig, ContrastivePair
from vqlib.pair import Pair
from vqlib.training import CAPTIONS
from vqlib.transformer import Transformer


@pytest.fixture(scope="module")
def judge():
    return checkpoints.load_classifier("judge", shipped=True)


@pytest.fixture
def small(monkeypatch):
    """A recipe of a step or two, and a pair of such a model, untrained."""
    model = dataclasses.replace(CAPTIONS.model, d_model=16, n_heads=2, n_layers=1)
    monkeypatch.setattr(bench, "SMALL", dataclasses.replace(CAPTIONS, model=model, warmup_steps=1))
    torch.manual_seed(0)
    return Pair(tokenizer(), Transformer(model).eval())


def test_shares_count_what_is_right():
    right = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 1]]).bool()
    shares = bench.shares(right)
    expected = {"brightness": 2 / 3, "size": 1 / 3, "orientation": 2 / 3, "class": 1, "all": 1 / 3}
    assert {name: shares[name] for name in expected} == pytest.approx(expected) and shares["pictures"] == 3
    assert bench.shares(right, torch.tensor([False, True, False]))["all"] == 0


@pytest.mark.parametrize("words", [1, 2, 4])
def test_asked_is_about_the_words_that_were_withheld_and_no_others(words):
    """Let just those be right: brightness of the dark t-shirts, and so on."""
    facts, right = bench.EVERY, torch.zeros(180, 4).bool()
    for c in range(10):
        for i in range(words):
            kind, value = captions.fact_of(captions.NEVER[(c + i) % 7])
            right[(facts[:, 3] == c) & (facts[:, kind] == value), kind] = True
    assert bench.asked(right, facts, words) == 1 and bench.asked(~right, facts, words) == 0
    assert bench.asked(right, facts, 0) is None
    for combination, row in bench.by_word(right, facts).items():
        assert row["asked"] == 1, combination
        assert words > 1 or row["asked_elsewhere"] == 0, combination


def test_everything_is_measured_and_written_as_the_kept_file_is(small, judge, tmp_path):
    test, kept = pictures(20), records.load_captions()
    figures = {"seen": bench.measure_seen(small, judge, each=1) | {"real": bench.measure_real(small, judge, test)}}
    figures["guided"] = bench.measure_seen(small, judge, each=1, guidance=bench.GUIDANCE)
    figures["curve"] = bench.measure_curve(pictures(90), small.vqvae, judge, tmp_path, steps=1, each=1)
    chooser = ContrastivePair(ContrastiveConfig(channels=4, features=8)).eval()
    figures["choose"] = bench.measure_choice(small, chooser, judge, test, candidates=(1, 2))
    figures["tokenizers"] = bench.measure_tokenizers(test, judge, {"VQ-VAE": small})
    assert figures.keys() == kept.keys()
    for name in ("seen", "guided", "curve"):
        assert figures[name].keys() == kept[name].keys()
    assert figures["choose"]["2"].keys() == kept["choose"]["64"].keys()
    assert figures["tokenizers"]["VQ-VAE"].keys() == kept["tokenizers"]["VQ-VAE"].keys()
    one = figures["curve"]
    assert one["0"]["examples"] > one["1"]["examples"] > one["2"]["examples"] > one["4"]["examples"] > 0
    assert figures["choose"]["2"]["similarity"] >= figures["choose"]["1"]["similarity"]
