"""Draw the README's picture: the first eight samples of each class at temperature 0.8 and seed 0, none of them chosen.

python tools/make_samples.py
"""

from pathlib import Path

import vqlib
from vqlib.notebook import plots

images = vqlib.load_pair(shipped=True).generate(range(10), n=8, temperature=0.8, seed=0)
path = Path(__file__).parent.parent / "notebooks" / "samples.png"
plots.class_grid(images, each=8).savefig(path, dpi=100)
print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
