"""Print the README's table of results, from the headers of the shipped files: each figure is of the run that made them.

    python tools/figures.py
"""

from vqlib import checkpoints


def table():
    """The table as Markdown: the seed's recipe beside the shipped weights'."""
    seed = checkpoints.load_seed_record()
    vqvae, transformer = checkpoints.load_vqvae(shipped=True).info, checkpoints.load_transformer(shipped=True).info
    columns = [(seed["vqvae"], seed["transformer"]), (vqvae, transformer)]
    rows = [
        ("test MSE, pixels in [0, 1]", [f"{v['test']['mse']:.5f}" for v, _ in columns]),
        ("PSNR", [f"{v['test']['psnr']:.2f} dB" for v, _ in columns]),
        ("codes used of 64", [f"{v['test']['codes_used']}" for v, _ in columns]),
        ("perplexity of the codes", [f"{v['test']['perplexity']:.1f}" for v, _ in columns]),
        ("test nats per code ¹", [f"{t['test']['nats_per_code']:.3f}" for _, t in columns]),
        ("bits per picture ¹", [f"{t['test']['bits_per_picture']:.0f}" for _, t in columns]),
        ("training, VQ-VAE ²", [f"{v['history']['seconds'] / 60:.0f} min" for v, _ in columns]),
        ("training, Transformer ²", [f"{t['history']['seconds'] / 60:.0f} min" for _, t in columns]),
    ]
    head = ["| 10,000 test pictures | the seed's recipe | ours, shipped |", "| --- | --- | --- |"]
    return "\n".join(head + [f"| {name} | {' | '.join(values)} |" for name, values in rows])


if __name__ == "__main__":
    print(table())
