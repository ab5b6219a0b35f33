"""The benchmark runs, and writes what its table shows; what it counts is held to what must be so."""

import json
import subprocess
import sys
from pathlib import Path

import passes
import torch
from conftest import lively_transformer, seeded

from vqlib import sampling
from vqlib.baselines import Histogram

SCRIPT = Path(__file__).parent / "passes.py"


def test_a_fast_try_writes_the_figures_that_its_table_shows(tmp_path):
    out = tmp_path / "passes.json"
    command = [sys.executable, SCRIPT, "--quick", "--repeats", "1", "--out", out]
    table = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    results = json.loads(out.read_text(encoding="utf-8"))
    assert list(results["passes"]) == ["T = 0", "T = 0.5", "T = 0.8", "T = 1", "T = 0.8, w = 2"]
    assert list(results["seconds"]) == ["1"] and set(results["seconds"]["1"]) == {"sample", "sample_parallel"}
    for name in ("zeros", "histogram", "random"):
        cells = []
        for entry in results["passes"].values():
            figures = entry[name]
            assert 1 < figures["mean"] <= figures["most"] <= 49 and 1 < figures["median"] <= figures["most"]
            cells.append(f"{figures['mean']:.1f} / {figures['median']:g} / {figures['most']}")
        assert f"| {name} | {' | '.join(cells)} |" in table


def test_passes_are_counted_for_each_picture():
    transformer, labels = lively_transformer(), torch.arange(3)
    codes = sampling.sample(transformer, labels, generator=seeded()).flatten(1)
    guess = codes.clone()
    guess[1, 0] = (guess[1, 0] + 1) % 64
    counts, corrected = passes.correct(transformer, labels, guess, {})
    assert counts[0] == counts[2] == 1 and counts[1] > 1 and torch.equal(corrected, codes)


def test_the_histograms_guess_has_the_noise_of_the_pictures():
    """A model for which all codes are equally likely is this histogram, so that its guess is right."""
    transformer, labels = lively_transformer(), torch.arange(3)
    transformer.head.weight.data.zero_()
    guesses = passes.first_guesses(Histogram(torch.zeros(10, 49, 64)), labels, 0.8)
    assert passes.correct(transformer, labels, guesses["histogram"], {"temperature": 0.8})[0].tolist() == [1, 1, 1]
    assert passes.correct(transformer, labels, guesses["random"], {"temperature": 0.8})[0].tolist() == [2, 2, 2]
