"""The other pairs: a fast try runs, and what the README says of the kept figures is what they are."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vqlib import records

SCRIPT = Path(__file__).parent / "pairs.py"
README = (SCRIPT.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_fast_try_writes_the_figures_that_its_table_shows(tmp_path):
    out = tmp_path / "pairs.json"
    command = [sys.executable, SCRIPT, "plain", "--quick", "--out", out]
    table = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
    figures = json.loads(out.read_text())["plain"]
    assert f"| perplexity | {figures['tokenizer']['perplexity']:.1f} | " in table
    assert f"| FID, T = 1 | {figures['samples']['T = 1']['fid']:.2f} | " in table


def test_what_the_benchmarks_readme_says_of_them():
    pairs = json.loads(SCRIPT.with_suffix(".json").read_text(encoding="utf-8"))
    ours, plain, adamw = records.load_scorecard()["generators"]["ours"], pairs["plain"], pairs["adamw"]
    said = re.sub(r"\s+", " ", README)
    assert adamw["tokenizer"] == pytest.approx(ours["tokenizer"], rel=1e-5)  # another machine rounds differently
    free = adamw["samples"]["T = 1"]
    assert f"{adamw['likelihood']['nats_per_code']:.3f} nats, and its samples have an FID of {free['fid']:.2f}" in said
    assert ours["likelihood"]["nats_per_code"] < adamw["likelihood"]["nats_per_code"] - 0.02
    assert (
        f"copies worse, MSE {plain['tokenizer']['mse']:.5f}, and its samples have an FID of "
        f"{plain['samples']['T = 1']['fid']:.2f}"
    ) in said
    assert plain["tokenizer"]["mse"] == pytest.approx(1.1 * adamw["tokenizer"]["mse"], rel=0.02)  # "a tenth larger"
    other = plain["samples"]["T = 1"]
    assert other["fid"] == pytest.approx(free["fid"], rel=0.06)  # "about the same"
    assert other["coverage"] == pytest.approx(free["coverage"], rel=0.02)  # "about the same"
    assert other["classification_accuracy_score"] < 0.98 * free["classification_accuracy_score"]  # "lower"
