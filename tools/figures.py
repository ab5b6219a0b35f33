"""Print the README's tables of results: the scorecard's, and what takes how long.

    python tools/figures.py
"""

import json
import math
from pathlib import Path

from vqlib import checkpoints, scorecard

SPEED = Path(__file__).parent.parent / "tests" / "benchmarks" / "speed.json"  # of tests/benchmarks/speed.py


def times():
    """Training by the shipped weights' recipes, steps times the time of one, and writing 8 pictures, as Markdown."""
    rows, groups = ["| on two cores ³ | |", "| --- | --- |"], json.loads(SPEED.read_text(encoding="utf-8"))["groups"]
    for name, load in (("VQ-VAE", checkpoints.load_vqvae), ("Transformer", checkpoints.load_transformer)):
        recipe = load(shipped=True).info["recipe"]
        steps = recipe["epochs"] * math.ceil(60_000 / recipe["batch_size"])
        seconds = steps * groups["10 training steps of 64 pictures"][name]["median"] / 10
        rows.append(f"| train the {name}, {steps:,} steps | {seconds / 60:.0f} minutes |")
    writing = groups["write 8 pictures"]
    names = {"vqlib": "write 8 pictures", "vqlib, no cache": "the same without a cache",
             "Hugging Face transformers, GPT-2": "Hugging Face transformers, a GPT-2 of the same size",
             "x-transformers": "x-transformers, the same size"}
    rows += [f"| {text} | {writing[name]['median']:.2f} s |" for name, text in names.items()]
    return "\n".join(rows)


if __name__ == "__main__":
    print(scorecard.table(checkpoints.load_scorecard()))
    print()
    print(times())
