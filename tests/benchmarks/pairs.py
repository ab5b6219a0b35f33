"""Other pairs at the full budget, scored beside the shipped one: another optimizer, and another tokenizer.

    python tests/benchmarks/pairs.py adamw      # half an hour on two cores with bf16, more without
    python tests/benchmarks/pairs.py plain      # as long
    python tests/benchmarks/pairs.py plain --quick --out try.json      # a fast try, on the embedded mini set

*adamw* has the shipped tokenizer's recipe, and a Transformer trained by AdamW in three passes. *plain* asks whether
better reconstructions give better samples: beside the same Transformer its tokenizer has the original recipe (β = 0.25,
a rate that drops once) with a k-means start, moving averages and revival below 0.2 of an even share.

Both are scored on the test set, as `python -m vqlib.scorecard` scores the shipped pair. This is a comparison; nothing
is chosen by it. Trained weights are kept in the runs folder, so a script that was killed goes on where it was. All
figures are kept in pairs.json.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from vqlib import Pair, checkpoints, data, records, scorecard, training
from vqlib.training import BEST_TRANSFORMER, BEST_VQVAE, ORIGINAL_VQVAE
from vqlib.vqvae import VQVAEConfig

EMA = VQVAEConfig(quantizer="ema")
PLAIN = dataclasses.replace(ORIGINAL_VQVAE, name="plain", model=EMA, kmeans_init=True, revive_below=0.2)
ADAMW = dataclasses.replace(BEST_TRANSFORMER, optimizer="adamw", learning_rate=1e-3, epochs=3, warmup_steps=200)
PAIRS = {"adamw": (BEST_VQVAE, ADAMW), "plain": (PLAIN, ADAMW)}
ROWS = [
    ("MSE · 10⁴", ("tokenizer", "mse"), 1e4, 1),
    (f"codes used of {EMA.num_codes}", ("tokenizer", "codes_used"), 1, 0),
    ("perplexity", ("tokenizer", "perplexity"), 1, 1),
    ("FID of reconstructions", ("reconstructions", "fid"), 1, 2),
    ("coverage of reconstructions, %", ("reconstructions", "coverage"), 100, 1),
    ("agreement of reconstructions, %", ("reconstructions", "agreement"), 100, 1),
    ("bits per picture (two tokenizers: not to be compared)", ("likelihood", "bits_per_picture"), 1, 1),
    ("class by Bayes' rule, %", ("bayes_accuracy",), 100, 1),
]
ROWS += [
    (f"{text}, {knob}", ("samples", knob, figure), scale, digits)
    for knob in scorecard.KNOBS
    for text, figure, scale, digits in (
        ("FID", "fid", 1, 2),
        ("agreement, %", "agreement", 100, 1),
        ("coverage, %", "coverage", 100, 1),
    )
]
ROWS += [
    ("classification accuracy score, T = 1, %", ("samples", "T = 1", "classification_accuracy_score"), 100, 1),
    ("the same of copied training pictures, %", ("training_reconstructions", "classification_accuracy_score"), 100, 1),
]


def table(generators):
    """Markdown, with a column per generator."""
    lines = ["| test set | " + " | ".join(generators) + " |", "| --- " * (len(generators) + 1) + "|"]
    for text, keys, scale, digits in ROWS:
        values = []
        for figures in generators.values():
            for key in keys:
                figures = figures[key]
            values.append(f"{figures * scale:.{digits}f}")
        lines.append(f"| {text} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", choices=PAIRS)
    parser.add_argument("--quick", action="store_true", help="one epoch each on the mini set, 500 samples")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    train, test = (data.load(split, mini=options.quick) for split in ("train", "test"))
    recipes = PAIRS[options.pair]
    if options.quick:
        recipes = [dataclasses.replace(recipe, epochs=1) for recipe in recipes]
    folder = checkpoints.runs_folder() / "pairs" / (options.pair + ("-quick" if options.quick else ""))
    vqvae = training.train_vqvae(recipes[0], train, test=test, path=folder / "vqvae.safetensors")
    transformer = training.train_transformer(
        recipes[1], vqvae, train, test=test, path=folder / "transformer.safetensors"
    )
    referee = scorecard.Referee(checkpoints.load_classifier("judge", shipped=True), train, test, progress=True)
    card = scorecard.score_pair(Pair(vqvae, transformer), referee, n=len(test), bayes=len(test) // 5)
    for stage, model in (("vqvae", vqvae), ("transformer", transformer)):
        card[stage] = {
            "recipe": model.info["recipe"],
            **{key: model.info["history"][key] for key in ("device", "bf16", "seconds")},
        }
    card |= {
        "command": f"python tests/benchmarks/pairs.py {options.pair}" + (" --quick" if options.quick else ""),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "sha256 of the tokenizer": checkpoints.tokenizer_id(vqvae),
    }
    kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    kept[options.pair] = card
    options.out.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table({**kept, "shipped": records.load_scorecard()["generators"]["ours"]}))


if __name__ == "__main__":
    main()
