"""Print the README's tables of results: the scorecard's, and the time that training took.

    python tools/figures.py
"""

from vqlib import checkpoints, scorecard


def times():
    """Minutes of training, as Markdown: from the headers of the shipped files."""
    seed = checkpoints.load_seed_record()
    ours = {"vqvae": checkpoints.load_vqvae(shipped=True), "transformer": checkpoints.load_transformer(shipped=True)}
    rows = ["| training, minutes on two cores ³ | ours | seed's recipe |", "| --- | --- | --- |"]
    for stage, name in (("vqvae", "VQ-VAE"), ("transformer", "Transformer")):
        minutes = [f"{run['history']['seconds'] / 60:.0f}" for run in (ours[stage].info, seed[stage])]
        rows.append(f"| {name} | {' | '.join(minutes)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(scorecard.table(checkpoints.load_scorecard()))
    print()
    print(times())
