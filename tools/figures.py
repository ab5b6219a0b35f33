"""Print the README's tables of results: the scorecard's, and the time that training took.

    python tools/figures.py
"""

from vqlib import checkpoints, scorecard


def times():
    """Minutes of training, as Markdown: from the headers of the shipped files."""
    rows = ["| training, minutes on two cores ³ | |", "| --- | --- |"]
    for name, load in (("VQ-VAE", checkpoints.load_vqvae), ("Transformer", checkpoints.load_transformer)):
        rows.append(f"| {name} | {load(shipped=True).info['history']['seconds'] / 60:.0f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(scorecard.table(checkpoints.load_scorecard()))
    print()
    print(times())
