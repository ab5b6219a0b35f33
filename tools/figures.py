"""Print the README's tables of results: the scorecard's, and what takes how long.

    python tools/figures.py
"""

import json
from pathlib import Path

from vqlib import checkpoints, scorecard

SPEED = Path(__file__).parent.parent / "tests" / "benchmarks" / "speed.json"  # of tests/benchmarks/speed.py


def times():
    """Training, from the headers of the shipped files, and writing 8 pictures, beside others, as Markdown."""
    rows = ["| on two cores ³ | |", "| --- | --- |"]
    for name, load in (("VQ-VAE", checkpoints.load_vqvae), ("Transformer", checkpoints.load_transformer)):
        rows.append(f"| train the {name} | {load(shipped=True).info['history']['seconds'] / 60:.0f} minutes |")
    writing = json.loads(SPEED.read_text(encoding="utf-8"))["groups"]["write 8 pictures"]
    names = {"vqlib": "write 8 pictures", "vqlib, no cache": "the same without a cache",
             "Hugging Face transformers, GPT-2": "Hugging Face transformers, a GPT-2 of the same size",
             "x-transformers": "x-transformers, the same size"}
    rows += [f"| {text} | {writing[name]['median']:.2f} s |" for name, text in names.items()]
    return "\n".join(rows)


if __name__ == "__main__":
    print(scorecard.table(checkpoints.load_scorecard()))
    print()
    print(times())
