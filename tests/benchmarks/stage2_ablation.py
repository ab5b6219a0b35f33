"""What each choice of stage 2 buys at an equal budget: half a pass over the 55,000 training sequences, one seed.

    python -m vqlib.training vqvae --holdout              # first: a tokenizer that never saw the validation pictures
    python tests/benchmarks/stage2_ablation.py            # then this: an hour or more on two cores
    python tests/benchmarks/stage2_ablation.py --only original QK-norm --pictures 2000     # a fast try

`--only QK-norm Muon --shipped --out vqlib/weights/optimizers.json` made the two curves of notebook 4: on the shipped
tokenizer, which costs no training (it has seen the validation pictures, for both rows alike). The score is taken on the
5,000 held-out pictures; the test set is never touched. Each run is kept in the runs folder, so a script that was killed
goes on where it was.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from vqlib import checkpoints, data, training
from vqlib.training import BEST_TRANSFORMER, ORIGINAL_TRANSFORMER
from vqlib.transformer import TransformerConfig

ADAMW = {"optimizer": "adamw", "learning_rate": 1e-3}
BASE = dataclasses.replace(BEST_TRANSFORMER, epochs=1, drop_class=0.0, warmup_steps=43, **ADAMW)
PLAIN = dataclasses.replace(BASE.model, qk_norm=False)
DROPOUT = dataclasses.replace(PLAIN, dropout=TransformerConfig().dropout)
VARIANTS = {
    "original": ORIGINAL_TRANSFORMER,
    "dropout, batch 128": dataclasses.replace(BASE, batch_size=128, warmup_steps=21, model=DROPOUT),
    "no dropout, batch 64": dataclasses.replace(BASE, model=PLAIN),
    "constant rate": dataclasses.replace(BASE, model=PLAIN, schedule="constant"),
    "rate 2e-3": dataclasses.replace(BASE, model=PLAIN, learning_rate=2e-3),
    "QK-norm": BASE,
    "QK-norm, not tied": dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, tied=False)),
    "QK-norm, any class in a tenth": dataclasses.replace(BASE, drop_class=0.1),
    "Muon": dataclasses.replace(BASE, optimizer="muon", learning_rate=3e-3),  # QK-norm, too
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--pictures", type=int, default=27_500, help="how many pictures each variant sees, once")
    parser.add_argument("--shipped", action="store_true", help="on the shipped tokenizer, in a folder of its own")
    parser.add_argument("--out", type=Path, help="where to write the rows with their curves, as JSON")
    options, rows = parser.parse_args(), {}
    folder = checkpoints.runs_folder() / ("holdout-shipped" if options.shipped else "holdout")
    vqvae = checkpoints.load_vqvae(None if options.shipped else folder / "vqvae.safetensors", shipped=options.shipped)
    train, validation = data.split_validation(data.load("train"))
    train = train.subset(slice(0, options.pictures))
    print("| stage 2, half a pass | nats per code, validation | seconds |\n| --- | --- | --- |")
    for name in options.only:
        recipe = dataclasses.replace(VARIANTS[name], name=name)
        path = folder / "stage2" / f"{'-'.join(name.replace(',', '').split())}.safetensors"
        history = training.train_transformer(recipe, vqvae, train, validation, path=path).info["history"]
        rows[name] = {"validation": history["epochs"][-1]["nats_per_code"], "seconds": round(history["seconds"])}
        rows[name]["steps"] = [{key: row[key] for key in ("step", "nats_per_code")} for row in history["steps"]]
        print(f"| {name} | {rows[name]['validation']:.4f} | {rows[name]['seconds']} |", flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
