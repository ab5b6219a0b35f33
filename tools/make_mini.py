"""Make the embedded mini set, data.MINI_FILE, from the full data set.

    python tools/make_mini.py

It takes the first 200 training and the first 50 test pictures of each class, in the data set's own order.
"""

import numpy as np
import torch

from vqlib import data

arrays = {}
for split, each in (("train", 200), ("test", 50)):
    full = data.load(split, mini=False)
    index = torch.cat([(full.labels == label).nonzero()[:each, 0] for label in range(10)]).sort().values
    arrays[f"{split}_pixels"] = full.pixels[index].numpy()
    arrays[f"{split}_labels"] = full.labels[index].to(torch.uint8).numpy()
np.savez_compressed(data.MINI_FILE, **arrays)
print(f"{data.MINI_FILE.name}: {data.MINI_FILE.stat().st_size:,} bytes")
