"""Print the README's tables of results: the scorecard, and how long things take.

python tools/figures.py
"""

import json
import math
from pathlib import Path

from vqlib import load_pair, records, scorecard

BENCHMARKS = Path(__file__).parent.parent / "tests" / "benchmarks"
SPEEDS = {"AVX2, float32": "speed.json", "AVX-512, training in bf16": "speed_bf16.json"}  # of tests/benchmarks/speed.py


def times():
    """As Markdown: training by the recipes of the shipped weights (steps times the time of one), writing 8 pictures."""
    groups = [json.loads((BENCHMARKS / name).read_text(encoding="utf-8"))["groups"] for name in SPEEDS.values()]
    rows = [f"| on two cores ³ | {' | '.join(SPEEDS)} |", "| --- " * (1 + len(SPEEDS)) + "|"]
    for name, model in zip(("VQ-VAE", "Transformer"), load_pair(shipped=True), strict=True):
        recipe = model.info["recipe"]
        steps = recipe["epochs"] * math.ceil(60_000 / recipe["batch_size"])
        minutes = [steps * group["10 training steps of 64 pictures"][name]["median"] / 600 for group in groups]
        rows.append(f"| train the {name}, {steps:,} steps | {' | '.join(f'{m:.2g} minutes' for m in minutes)} |")
    names = {
        "vqlib": "write 8 pictures",
        "vqlib, no cache": "the same without a cache",
        "Hugging Face transformers, GPT-2": "Hugging Face transformers, a GPT-2 of the same size",
        "x-transformers": "x-transformers, the same size",
    }
    for name, text in names.items():
        seconds = [group["write 8 pictures"][name]["median"] for group in groups]
        rows.append(f"| {text} | {' | '.join(f'{s:.2f} s' for s in seconds)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(scorecard.table(records.load_scorecard()))
    print()
    print(times())
