"""What training DALL·E 1 would take, from its paper and from the shipped weights: the figures of SCALING.md.

python tools/scale.py
"""

import json

from figures import BENCHMARKS

from vqlib import checkpoints

transformer = checkpoints.load_transformer(shipped=True)
recipe = transformer.info["recipe"]
speed = json.loads((BENCHMARKS / "speed.json").read_text(encoding="utf-8"))
step = speed["groups"]["10 training steps of 64 pictures"]["Transformer"]

# Ramesh et al., arXiv 2102.12092, section 2 and appendices A and B
PARAMETERS, PAIRS, UPDATES, BATCH, TOKENS, IMAGE_TOKENS, GPUS = 12e9, 250e6, 430_000, 1024, 1280, 1024, 1024

parameters = sum(p.numel() for p in transformer.parameters())
ours = 6 * parameters * 60_000 * recipe["epochs"] * 50
theirs = 6 * PARAMETERS * UPDATES * BATCH * TOKENS
rate = 6 * parameters * 10 * 64 * 50 / step["median"]
figures = {
    "passes over the pairs": f"{UPDATES * BATCH / PAIRS:.2f}",
    "operations, here": f"{ours:.1e}",
    "operations, there": f"{theirs:.1e}",
    "times as many": f"{theirs / ours:.0e}",
    "operations a second, here": f"{rate:.1e}",
    "years of these two cores": f"{theirs / rate / 3.15e7:,.0f}",
    "days of 1,024 GPUs at 30·10¹² operations a second each": f"{theirs / (GPUS * 30e12) / 86400:.0f}",
    "weights, gradients and Adam's moments, GB at 16 bytes a parameter": f"{16 * PARAMETERS / 1e9:.0f}",
    "gradients to agree on in a step, there, GB at 2 bytes": f"{2 * PARAMETERS / 1e9:.0f}",
    "gradients to agree on in a step, here, MB at 4 bytes": f"{4 * parameters / 1e6:.0f}",
    "all pairs as tokens, GB at 2 bytes a token": f"{2 * PAIRS * TOKENS / 1e9:.0f}",
    "all pictures of 256×256 in colour, TB": f"{PAIRS * 256 * 256 * 3 / 1e12:.0f}",
}

if __name__ == "__main__":
    for name, value in figures.items():
        print(f"{name}: {value}")
