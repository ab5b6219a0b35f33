"""Draw the README's picture: ten classes, eight samples each, temperature 0.8, seed 0, the first eight, none chosen.

    python tools/make_samples.py
"""

from pathlib import Path

import torch

from vqlib import checkpoints, plots, sampling

vqvae, transformer = checkpoints.load_vqvae(shipped=True), checkpoints.load_transformer(shipped=True)
labels = torch.arange(10).repeat_interleave(8)
codes = sampling.sample(transformer, labels, temperature=0.8, generator=torch.Generator().manual_seed(0))
figure = plots.class_grid(vqvae.decode(codes), each=8)
path = Path(__file__).parent.parent / "notebooks" / "samples.png"
figure.savefig(path, dpi=100)
print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
