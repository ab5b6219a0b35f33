"""Draw the README's picture: the first four samples of each class at temperature 0.8 and seed 0, none of them chosen.

At the left by the crisp decoder, at the right the same codes by the soft one.

python tools/make_samples.py
"""

from pathlib import Path

import torch
from einops import rearrange

import vqlib
from vqlib.notebook import plots

pairs = [vqlib.load_pair(decoder=decoder, shipped=True) for decoder in ("crisp", "soft")]
images = torch.stack([pair.generate(range(10), n=4, temperature=0.8, seed=0) for pair in pairs])
images = rearrange(images, "pair (c n) 1 h w -> (c pair n) 1 h w", n=4)
path = Path(__file__).parent.parent / "notebooks" / "samples.png"
plots.class_grid(images, each=8).savefig(path, dpi=100)
print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
