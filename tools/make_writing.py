"""Draw notebooks/writing.gif, the README's moving picture: one picture of each class, as it is written code by code.

python tools/make_writing.py
"""

from pathlib import Path

import torch
from einops import rearrange
from PIL import Image

import vqlib
from vqlib import data
from vqlib.notebook.panels.token_by_token import trace, usual_codes

ZOOM, COLUMNS, GREY = 3, 5, 64  # five pictures of 3 · 28 pixels: 420 pixels wide

pair = vqlib.load_pair(decoder="crisp", shipped=True)
usual = usual_codes(pair.vqvae, data.load_mini("train"))
traces = [trace(pair, usual, label, temperature=0.8, seed=0) for label in range(10)]
frames = []
for t in range(50):
    written = (torch.arange(49) < t).reshape(7, 7).repeat_interleave(4, 0).repeat_interleave(4, 1)
    images = torch.stack([trace.pictures[t] for trace in traces])
    images = torch.where(written, images, (images + 1) * 0.25 - 1)  # cells still to come: the usual codes, dimmed
    pixels = data.to_pixels(images).repeat_interleave(ZOOM, 1).repeat_interleave(ZOOM, 2)
    pixels[:, 0], pixels[:, :, 0] = GREY, GREY  # a thin line between neighbours
    frames.append(Image.fromarray(rearrange(pixels, "(r c) h w -> (r h) (c w)", c=COLUMNS).numpy()).quantize(16))
path = Path(__file__).parent.parent / "notebooks" / "writing.gif"
milliseconds = [1000] + [100] * 49 + [2500]  # the finished pictures first, for pages that show one frame only
frames[-1].save(path, save_all=True, append_images=frames, duration=milliseconds, loop=0, optimize=True)
print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
