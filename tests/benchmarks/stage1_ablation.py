"""What each trick buys in stage 1 at a small equal budget; and a codebook that collapses, with what cures it.

    python tests/benchmarks/stage1_ablation.py                     # eleven variants, three seeds, one epoch each
    python tests/benchmarks/stage1_ablation.py --limit 3200 --seeds 1 --only a e --out try.json        # a fast try
    python tests/benchmarks/stage1_ablation.py --only best muon --epochs 10 --seeds 1     # does Muon pay in stage 1?
    python tests/benchmarks/stage1_ablation.py --collapse          # the codebook that collapses, and three cures

It trains on 55,000 training pictures and scores the 5,000 held out of them; the test set is never touched. Each run is
written into the JSON as soon as it is done, and not run again, so a script that was killed goes on where it was.
"""

import argparse
import dataclasses
import json
import math
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from tqdm import tqdm

from vqlib import data, evaluation, training
from vqlib.training import BEST_VQVAE, ORIGINAL_VQVAE, VQVAERecipe, VQVAEStage, loop
from vqlib.vqvae import Quantized, VectorQuantizer, VQVAEConfig

# --- two other quantizers --------------------------------------------------------------------------------------------


class RotationQuantizer(VectorQuantizer):
    """The same codes and losses with another gradient: the rotation trick (Fifty et al., arXiv 2410.06424).

    Straight-through hands the encoder the decoder's gradient as it is. Here q = λRz, where R is the rotation that turns
    z into the direction of q and λ = |q| / |z|. Both are taken for constants, so the encoder gets λRᵀ times that.
    """

    def forward(self, latents):
        """(B, D, 7, 7) float latents -> `Quantized`."""
        quantized = super().forward(latents)
        with torch.autocast(latents.device.type, enabled=False):
            z = rearrange(latents, "b d h w -> b h w d").to(self.codebook.dtype)
            q = F.embedding(quantized.codes, self.codebook).detach()
            turned = rotate(z, q)
            q = turned + (q - turned).detach()  # λRz is q up to rounding (unless |z| is 0): make it exact
        return quantized._replace(latents=rearrange(q, "b h w d -> b d h w"))


def rotate(z, q, eps=1e-12):
    """λRz, equal to q for z ≠ 0; R and λ are constants to autograd: (..., D), (..., D) float -> (..., D) (section 4.2).

    R = I - 2wwᵀ + 2vuᵀ for the unit vectors u of z, v of q and w of u + v; no matrix is ever built.
    """
    u, v = F.normalize(z.detach(), dim=-1, eps=eps), F.normalize(q.detach(), dim=-1, eps=eps)
    w = F.normalize(u + v, dim=-1, eps=eps)
    turned = z - 2 * (z * w).sum(-1, keepdim=True) * w + 2 * (z * u).sum(-1, keepdim=True) * v
    return turned * (q.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True).clamp(min=eps)).detach()


class FSQ(nn.Module):
    """Finite scalar quantization: round each of D bounded numbers to L levels (Mentzer et al., arXiv 2309.15505).

    The codebook is the grid of all K = L^D points: there is nothing to learn, nothing to revive, and no further loss.
    As in appendix A.1, except for the shift: atanh takes 0 to 0, while the paper's tan only nearly does.
    """

    ema = False

    def __init__(self, config, eps=1e-3):
        super().__init__()
        K, D = config.num_codes, config.code_dim
        self.levels = L = round(K ** (1 / D))
        assert L**D == K
        self.half = (L - 1) * (1 - eps) / 2  # the bound lies a little inside: no level beyond the L
        self.offset = 0.5 if L % 2 == 0 else 0.0  # an even number of levels has none in the middle
        self.shift = math.atanh(self.offset / self.half)
        grid = torch.cartesian_prod(*[(torch.arange(L) - L // 2) / (L // 2)] * D).reshape(K, D)
        self.register_buffer("codebook", grid, persistent=False)  # (K, D) in [-1, 1]

    def bound(self, vectors):
        """Any numbers to the range that is rounded: -L/2 … L/2 - 1 for an even L."""
        return torch.tanh(vectors + self.shift) * self.half - self.offset

    def nearest(self, vectors):
        """Index of the grid point: (..., D) float -> (...) int64."""
        digits = self.bound(vectors).round().long() + self.levels // 2
        places = self.levels ** torch.arange(vectors.shape[-1], device=vectors.device).flip(0)
        return (digits * places).sum(-1)

    def forward(self, latents):
        """(B, D, 7, 7) float latents -> `Quantized`."""
        with torch.autocast(latents.device.type, enabled=False):
            z = rearrange(latents, "b d h w -> b h w d").to(self.codebook.dtype)
            bounded = self.bound(z)
            q = (bounded + (bounded.round() - bounded).detach()) / (self.levels // 2)  # straight through the rounding
        return Quantized(rearrange(q, "b h w d -> b d h w"), self.nearest(z), {})

    lookup = VectorQuantizer.lookup


# --- variants --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    text: str
    recipe: VQVAERecipe
    quantizer: type = VectorQuantizer
    codebook_std: float = 0.0  # > 0: the codebook starts at N(0, std²)
    steps: int = 0  # of the collapse: how many batches; 0: what --epochs and --limit say


def tricks(recipe, quantizer="gradient", **changes):
    return dataclasses.replace(recipe, model=VQVAEConfig(quantizer=quantizer), **changes)


REVIVE = 0.1  # a code that gets less than this fraction of an even share is dead
ALL = tricks(ORIGINAL_VQVAE, "ema", kmeans_init=True, revive_below=REVIVE)
VARIANTS = {
    "a": Variant("the original loss", ORIGINAL_VQVAE),
    "b": Variant("+ k-means start", tricks(ORIGINAL_VQVAE, kmeans_init=True)),
    "c": Variant("+ codebook by moving averages", tricks(ORIGINAL_VQVAE, "ema")),
    "d": Variant(f"+ revival below {REVIVE}", tricks(ORIGINAL_VQVAE, revive_below=REVIVE)),
    "e": Variant("+ all three", ALL),
    "f": Variant("+ rotation trick", ORIGINAL_VQVAE, RotationQuantizer),
    "g": Variant("FSQ, levels [8, 8]", dataclasses.replace(ORIGINAL_VQVAE, model=VQVAEConfig(code_dim=2)), FSQ),
    "h0.2": Variant("+ all three, revival below 0.2", dataclasses.replace(ALL, revive_below=0.2)),
    "h0.33": Variant("+ all three, revival below 0.33", dataclasses.replace(ALL, revive_below=0.33)),
    "best": Variant("the best recipe", BEST_VQVAE),
    "muon": Variant("the same by Muon", dataclasses.replace(BEST_VQVAE, optimizer="muon")),
}

# N(0, 1) is how nn.Embedding starts. In 16 dimensions such codes are about 4 long, but the untrained encoder's vectors
# about 0.3: the few codes nearest to the origin win them all, and no other code ever gets a gradient.
SHORT, NORMAL = dataclasses.replace(ORIGINAL_VQVAE, batch_size=32), {"codebook_std": 1.0, "steps": 300}
COLLAPSE = {
    "uniform": Variant("start at uniform ±1/K", SHORT, steps=300),
    "uniform-longer": Variant("start at uniform ±1/K", SHORT, steps=1200),
    "normal": Variant("start at N(0, 1) (nn.Embedding)", SHORT, **NORMAL),
    "normal-longer": Variant("start at N(0, 1) (nn.Embedding)", SHORT, codebook_std=1.0, steps=1200),
    "k-means": Variant("N(0, 1), cure: k-means start", tricks(SHORT, kmeans_init=True), **NORMAL),
    "ema": Variant("N(0, 1), cure: moving averages", tricks(SHORT, "ema"), **NORMAL),
    "revival": Variant("N(0, 1), cure: revival below 0.33", tricks(SHORT, revive_below=0.33), **NORMAL),
}


class AblationStage(VQVAEStage):
    """`VQVAEStage` with another quantizer or another start, and revival for a codebook that learns by gradient."""

    def __init__(self, variant, dataset, device):
        super().__init__(variant.recipe, dataset, device)
        self.codebook_std = variant.codebook_std
        if variant.quantizer is not VectorQuantizer:
            quantizer = variant.quantizer(self.recipe.model).to(device)
            quantizer.load_state_dict(self.model.quantizer.state_dict(), strict=False)  # the same start; FSQ has none
            self.model.quantizer = quantizer

    @torch.no_grad()
    def initialise(self):
        generator, quantizer = loop.seed_step(self.recipe.seed, -1), self.model.quantizer
        if self.codebook_std:
            quantizer.codebook.normal_(std=self.codebook_std, generator=generator)
            quantizer.ema_sum.copy_(quantizer.codebook)
        if self.recipe.kmeans_init:
            latents = self.model.encoder(data.to_images(self.pixels[:2000]))
            quantizer.init_from(rearrange(latents, "b d h w -> (b h w) d"), generator)

    @torch.no_grad()
    def after_step(self, batch):
        """Revival without EMA: use is counted as in `VectorQuantizer.ema_update`, and a dead code restarts at a random
        vector of the batch. Adam's moments of its row stay: after so long without use, the first has faded."""
        recipe, quantizer = self.recipe, self.model.quantizer
        if quantizer.ema or not recipe.revive_below:
            return super().after_step(batch)
        K = recipe.model.num_codes
        vectors, codes = rearrange(self.latents, "b d h w -> (b h w) d"), self.codes.flatten()
        share = torch.bincount(codes, minlength=K) * (K / len(codes))  # 1 = an even share
        quantizer.ema_count.lerp_(share, 1 - recipe.ema_decay)
        dead = quantizer.ema_count < recipe.revive_below
        picks = torch.randint(len(vectors), (K,), generator=batch.generator).to(dead.device)
        quantizer.codebook.copy_(torch.where(dead[:, None], vectors[picks], quantizer.codebook))
        quantizer.ema_count.masked_fill_(dead, 1.0)
        self.totals["revived"] += dead.sum()


def run(variant, train, validation):
    """Train once, and return the figures of the held-out pictures and how the run went."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(variant.recipe.seed)
        stage = AblationStage(variant, train, training.pick_device())
    history = training.fit(stage)
    rows = history["steps"]
    return {
        **evaluation.evaluate_vqvae(stage.model, validation),
        "seconds": round(history["seconds"], 1),
        "device": history["device"],
        "bf16": history["bf16"],
        "revived": sum(row["revived"] for row in rows),
        "codes_used_along": [[row["step"], row["codes"]] for row in rows],
    }  # in the steps since the row before


STORY = """
It is often told that a codebook collapses when it starts at uniform ±1/K. Here it is slow, but doesn't stay collapsed
(the first two rows). One that starts at N(0, 1) does (the next two). A k-means start cures it, and so does revival.
Moving averages alone do not: a code that no vector chooses is moved by them as little as by a gradient."""


def table(variants, done):
    """Markdown: the mean (smallest–largest) over the seeds, for each variant."""
    rows = ["| variant | steps | seeds | MSE · 10⁴ | codes used of 64 | perplexity |", "| --- " * 6 + "|"]
    for key, variant in variants.items():
        results = [entry["result"] for entry in done[key]]
        cells = [
            variant.text if variant.steps else f"({key}) {variant.text}",
            f"{results[0]['codes_used_along'][-1][0]:,}",
            str(len(results)),
        ]
        for figure, scale, digits in (("mse", 1e4, 2), ("codes_used", 1, 1), ("perplexity", 1, 1)):
            values = [result[figure] * scale for result in results]
            mean = sum(values) / len(values)
            cells.append(f"{mean:.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def summary(variants, done):
    """The figures that notebook 02 shows: {variant: {figure: [a value per seed]}}."""
    return {
        variant.text + (f", {variant.steps:,} steps" if variant.steps else ""): {
            figure: [entry["result"][figure] for entry in done[key]] for figure in ("mse", "codes_used", "perplexity")
        }
        for key, variant in variants.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collapse", action="store_true", help="show the codebook that collapses, and its cures")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help=f"of {', '.join([*VARIANTS, *COLLAPSE])}")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3, help="how many: 0, 1, …")
    parser.add_argument("--limit", type=int, default=55_000, help="number of training pictures, for a fast try")
    parser.add_argument("--threads", type=int, help="default: PyTorch's choice")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "stage1_ablation.json")
    parser.add_argument("--summary", type=Path, help="write what the table shows, as JSON, into this file too")
    options = parser.parse_args()
    variants = COLLAPSE if options.collapse else VARIANTS
    if unknown := set(options.only or []) - set(variants):
        parser.error(f"no such variant: {', '.join(sorted(unknown))}; there are {', '.join(variants)}")
    variants = {key: variants[key] for key in options.only or variants}
    torch.set_num_threads(options.threads or torch.get_num_threads())
    train, validation = data.split_validation(data.load("train", mini=False), 5000)
    results = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {"runs": []}
    options.out.parent.mkdir(parents=True, exist_ok=True)

    done = {key: [] for key in variants}
    for seed, key in tqdm([(seed, key) for seed in range(options.seeds) for key in variants], desc="runs"):
        variant = variants[key]
        recipe = dataclasses.replace(variant.recipe, seed=seed, epochs=1 if variant.steps else options.epochs)
        variant = dataclasses.replace(variant, recipe=recipe)
        pictures = variant.steps * recipe.batch_size or min(options.limit, len(train))
        settings = {"variant": key, "pictures": pictures, **dataclasses.asdict(variant)}
        del settings["text"]
        settings = json.loads(json.dumps(settings, default=lambda kind: kind.__name__))  # as it is read back
        entry = next((entry for entry in results["runs"] if entry["settings"] == settings), None)
        if entry is None:
            entry = {
                "settings": settings,
                "result": run(variant, train.subset(slice(pictures)), validation),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "command": shlex.join(["python", "tests/benchmarks/stage1_ablation.py", *sys.argv[1:]]),
            }
            results["runs"].append(entry)
            part = options.out.with_suffix(".part")
            part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            os.replace(part, options.out)  # whole or not at all
        done[key].append(entry)
    print(table(variants, done))
    if options.summary:
        options.summary.write_text(json.dumps(summary(variants, done), indent=1) + "\n", encoding="utf-8")
    if variants == COLLAPSE:
        print(STORY)


if __name__ == "__main__":
    main()
