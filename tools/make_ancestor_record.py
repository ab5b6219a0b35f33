"""Keep the figures, histories and samples of a run of the ancestor's recipe, without its weights.

    python -m vqlib.training all --recipe ancestor
    VQLIB_RUNS=runs/ancestor python tools/make_ancestor_record.py
"""

import torch

from vqlib import checkpoints, data, sampling

vqvae, transformer = checkpoints.load_vqvae(), checkpoints.load_transformer()
labels = torch.arange(10).repeat_interleave(8)
codes = sampling.sample(transformer, labels, temperature=0.8, generator=torch.Generator().manual_seed(0))
samples = data.to_pixels(vqvae.decode(codes)).reshape(10, 8, data.SIZE, data.SIZE)
info = {stage: {key: model.info[key] for key in ("recipe", "history", "test")}
        for stage, model in (("vqvae", vqvae), ("transformer", transformer))}
assert all(record["recipe"]["name"] == "ancestor" for record in info.values()), "this run is of another recipe"
checkpoints.save(checkpoints.SHIPPED / "ancestor.safetensors", "ancestor record", {"samples": samples}, **info)
for stage, record in info.items():
    figures = {k: v for k, v in record["test"].items() if not isinstance(v, list)}
    print(f"{stage}: {figures}, {record['history']['seconds']:.0f} s")
