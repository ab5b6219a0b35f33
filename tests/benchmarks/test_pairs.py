"""The other pairs: a fast try runs, and what the README says of the kept figures is what they are."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vqlib import checkpoints, records

SCRIPT = Path(__file__).parent / "pairs.py"
NOTEBOOK = (SCRIPT.parent.parent.parent / "notebooks" / "05_sampling.ipynb").read_text(encoding="utf-8")
README = (SCRIPT.parent.parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_fast_try_writes_the_figures_that_its_table_shows(tmp_path):
    out = tmp_path / "pairs.json"
    command = [sys.executable, SCRIPT, "plain", "--quick", "--out", out]
    table = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
    figures = json.loads(out.read_text())["plain"]
    assert f"| perplexity | {figures['tokenizer']['perplexity']:.1f} | " in table
    assert f"| FID, T = 1 | {figures['samples']['T = 1']['fid']:.2f} | " in table


def test_what_the_readme_and_notebook_5_say_of_them():
    pairs = json.loads(SCRIPT.with_suffix(".json").read_text(encoding="utf-8"))
    ours, plain, again = records.load_scorecard()["generators"]["ours"], pairs["plain"], pairs["again"]
    said = re.sub(r"\s+", " ", README)
    assert (
        f"copies worse, MSE {plain['tokenizer']['mse']:.5f}, and its samples have an FID of "
        f"{plain['samples']['T = 1']['fid']:.2f}"
    ) in said
    assert plain["tokenizer"]["mse"] == pytest.approx(1.1 * ours["tokenizer"]["mse"], rel=0.02)  # "a tenth larger"
    assert plain["samples"]["T = 1"]["fid"] == pytest.approx(ours["samples"]["T = 1"]["fid"], rel=0.02)
    free, best = plain["samples"]["T = 1"], ours["samples"]["T = 1"]
    assert free["coverage"] == pytest.approx(best["coverage"], rel=0.02)  # "about the same"
    assert free["classification_accuracy_score"] < 0.98 * best["classification_accuracy_score"]  # "lower"
    assert (
        f"reaches about the same FID, {free['fid']:.2f}, and coverage, {100 * free['coverage']:.1f} %, and a lower "
        f"accuracy score, {100 * free['classification_accuracy_score']:.1f} %, at $T = 1$"
    ) in NOTEBOOK
    assert (
        f"the tokenizer's figures are the same, {again['likelihood']['nats_per_code']:.3f} nats, FID "
        f"{again['samples']['T = 1']['fid']:.2f}"
    ) in said
    assert again["tokenizer"] == pytest.approx(ours["tokenizer"], rel=1e-5)  # another machine rounds differently
    assert again["transformer"]["bf16"]
    assert checkpoints.load_transformer(shipped=True).info["history"]["bf16"] is False
