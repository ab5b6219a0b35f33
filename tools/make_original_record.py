"""Keep the figures, histories and samples of a run of the original recipe, without its weights.

python -m vqlib.training all --recipe original
python tools/make_original_record.py
"""

import sys

import torch

from vqlib import checkpoints, data, load_pair, sampling

pair = load_pair(checkpoints.runs_folder() / "original")
stages = zip(("vqvae", "transformer"), pair, strict=True)
info = {stage: {key: model.info[key] for key in ("recipe", "history", "test")} for stage, model in stages}
if any(record["recipe"]["name"] != "original" for record in info.values()):
    sys.exit("error: this run is of another recipe")
labels = torch.arange(10).repeat_interleave(8)
codes = sampling.sample(pair.transformer, labels, temperature=0.8, generator=torch.Generator().manual_seed(0))
samples = data.to_pixels(pair.vqvae.decode(codes)).reshape(10, 8, data.SIZE, data.SIZE)
checkpoints.save(checkpoints.SHIPPED / "original.safetensors", "original record", {"samples": samples}, **info)
for stage, record in info.items():
    figures = {k: v for k, v in record["test"].items() if not isinstance(v, list)}
    print(f"{stage}: {figures}, {record['history']['seconds']:.0f} s")
