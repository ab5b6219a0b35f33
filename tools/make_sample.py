"""Make the embedded sample vqlib/sample/fashion_mnist_sample.npz from the full data set.

    python tools/make_sample.py

Takes the first 200 training and the first 50 test pictures of each class, in the data set's own order: nothing chosen.
"""

import numpy as np
import torch

from vqlib import data

arrays = {}
for split, each in (("train", 200), ("test", 50)):
    full = data.load(split, sample=False)
    index = torch.cat([(full.labels == label).nonzero()[:each, 0] for label in range(10)]).sort().values
    arrays[f"{split}_pixels"] = full.pixels[index].numpy()
    arrays[f"{split}_labels"] = full.labels[index].to(torch.uint8).numpy()
np.savez_compressed(data.SAMPLE_FILE, **arrays)
print(f"{data.SAMPLE_FILE.name}: {data.SAMPLE_FILE.stat().st_size:,} bytes")
