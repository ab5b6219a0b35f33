"""Draw notebooks/writing.gif: ten pictures, one per class, as they are written code by code.

python tools/make_writing.py
"""

from pathlib import Path

import torch
from PIL import Image

import vqlib
from vqlib import data
from vqlib.notebook import plots
from vqlib.notebook.panels.token_by_token import trace, usual_codes

pair = vqlib.load_pair(shipped=True)
usual = usual_codes(pair.vqvae, data.load_mini("train"))
traces = [trace(pair, usual, label, temperature=0.8, seed=0) for label in range(10)]
frames = []
for t in range(50):
    written = (torch.arange(49) < t).reshape(7, 7).repeat_interleave(4, 0).repeat_interleave(4, 1)
    images = torch.stack([trace.pictures[t] for trace in traces])
    images = torch.where(written, images, (images + 1) * 0.25 - 1)  # cells still to come: the usual codes, dimmed
    pixels = ((torch.as_tensor(plots.tile(images, 10)).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    frame = Image.fromarray(pixels)
    frames.append(frame.resize((frame.width * 2, frame.height * 2), Image.Resampling.NEAREST).quantize(24))
path = Path(__file__).parent.parent / "notebooks" / "writing.gif"
frames[0].save(path, save_all=True, append_images=frames[1:], duration=[120] * 49 + [3000], loop=0, optimize=True)
print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
