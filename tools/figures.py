"""Print the tables of README.md and of tests/benchmarks/README.md, from the figures that are kept as files.

python tools/figures.py
"""

import json
import math
import sys
from pathlib import Path

from vqlib import load_pair, records, scorecard

BENCHMARKS = Path(__file__).parent.parent / "tests" / "benchmarks"
SPEEDS = {"AVX2, float32": "speed.json", "AVX-512, training in bf16": "speed_bf16.json"}  # of tests/benchmarks/speed.py
COLUMNS = (
    "real",
    "ours",
    "ours, crisp",
    "original recipe",
)  # of the README's table; its rows, by their names in the scorecard:
ROWS = {
    "MSE, pixels in [0, 1]": "↓ **error of a copy**: mean squared, of pixels in [0, 1]",
    "FID ¹ of reconstructions": "↓ **FID of copies**: how far they are, as a crowd, from real pictures",
    "FID ¹ of samples, T = 1": "↓ **FID of samples**, T = 1: the same for new pictures",
    "class agreement, T = 0.8": "↑ **agreement**, T = 0.8: the judge sees the class that was asked for",
    "coverage, T = 1": "↑ **coverage**, T = 1: the share of real pictures that have a new one close by",
    "classification accuracy score, T = 1": "↑ **accuracy score**, T = 1: of a classifier trained on these alone",
}


def kept(name):
    return json.loads((BENCHMARKS / name).read_text(encoding="utf-8"))


def markdown(head, *rows):
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def results():
    """Six rows of the scorecard, and what each of them means."""
    head, *lines = scorecard.rows(records.load_scorecard())
    found = {line[0]: [line[head.index(column)] for column in COLUMNS] for line in lines}
    names = ["ours, soft" if column == "ours" else column for column in COLUMNS]
    return markdown(["", *names], *([text, *found[name]] for name, text in ROWS.items()))


def training_minutes():
    """By the recipes of the shipped weights, steps times the benchmark's time of one: {stage: (steps, [minutes])}."""
    times = {}
    for name, model in zip(("VQ-VAE", "Transformer"), load_pair(shipped=True), strict=True):
        recipe = model.info["recipe"]
        steps = recipe["epochs"] * math.ceil(60_000 / recipe["batch_size"])
        ten = [kept(file)["groups"]["10 training steps of 64 pictures"][name]["median"] for file in SPEEDS.values()]
        times[name] = steps, [steps * seconds / 600 for seconds in ten]
    return times


def writing_seconds(name="vqlib"):
    """Of 8 pictures: one number per machine."""
    return [kept(file)["groups"]["write 8 pictures"][name]["median"] for file in SPEEDS.values()]


def times():
    """How long training and writing take, ours and others'."""
    rows = [
        [f"train the {name}, {steps:,} steps", *(f"{m:.2g} minutes" for m in minutes)]
        for name, (steps, minutes) in training_minutes().items()
    ]
    names = {
        "vqlib": "write 8 pictures",
        "vqlib, no cache": "the same without a cache",
        "Hugging Face transformers, GPT-2": "Hugging Face transformers, a GPT-2 of the same size",
        "x-transformers": "x-transformers, the same size",
    }
    rows += [[text, *(f"{s:.2f} s" for s in writing_seconds(name))] for name, text in names.items()]
    return markdown(["on two cores", *SPEEDS], *rows)


def tricks(collapse):
    """The ablation of stage 1: the mean of three random starts, and their range."""

    def cell(values, scale=1, form="{:.0f}"):
        mean, low, high = (form.format(scale * v) for v in (sum(values) / len(values), min(values), max(values)))
        return mean if low == high else f"{mean} ({low} to {high})"

    rows = [
        [name, cell(row["mse"], 1000, "{:.1f}"), cell(row["codes_used"]), cell(row["perplexity"], form="{:.1f}")]
        for name, row in records.load_ablation(collapse).items()
    ]
    return markdown(["", "MSE · 1000", "codes used, of 64", "perplexity"], *rows)


def optimizers():
    rows = [
        ["AdamW" if name == "QK-norm" else name, f"{run['steps'][-1]['step']}", f"{run['validation']:.3f}"]
        for name, run in records.load_optimizers().items()
    ]
    return markdown(["", "steps of 64", "nats per code"], *rows)


def decoders():
    """What each choice of the crisp decoder buys."""
    columns = {"fid": "FID", "fid_third": "by a third classifier", "mse": "MSE · 1000", "sharpness": "sharpness"}
    columns |= {"fid_samples_0.8": "FID of samples, T = 0.8", "fid_samples_1": "T = 1"}
    forms, rows = {"mse": lambda x: f"{1000 * x:.2f}", "sharpness": lambda x: f"{x:.1%}"}, []
    for name, row in records.load_decoders().items():
        cells = [forms.get(key, lambda x: f"{x:.2f}")(row[key]) if key in row else "–" for key in columns]
        rows.append([name, *cells])
    return markdown(["held-out pictures", *columns.values()], *rows)


def captions():
    """Five: combinations seen and not, each of the latter, the curve, choosing by text, and the two tokenizers."""
    record, kinds = records.load_captions(), ("brightness", "size", "orientation", "class", "all")

    def shares(row):
        return [f"{row[kind]:.1%}" for kind in kinds]

    seen, guided = record["seen"], record["guided"]
    rows = {"seen together": seen["seen"], "never seen together": seen["unseen"]}
    rows |= {"guidance 3: seen together": guided["seen"], "guidance 3: never seen together": guided["unseen"]}
    rows |= {"chance": seen["chance"], "real, through the tokenizer": seen["real"]["copies"]}
    rows |= {"real": seen["real"]["pictures"]}
    first = markdown(["right", *kinds], *([name, *shares(row)] for name, row in rows.items()))

    rows = []
    for name, row in seen["by_word"].items():
        cells = [row["asked_elsewhere"], row["asked"], guided["by_word"][name]["asked"], row["class"]]
        rows.append([name, *(f"{cell:.1%}" for cell in cells)])
    second = markdown(["", "its other words", "the word never seen", "the same, guidance 3", "class"], *rows)

    rows = []
    for name, row in record["curve"].items():
        cells = [
            f"{row['withheld']:.0%}{', few examples' * name.startswith('few')}",
            f"{row['examples']:,}",
            f"{row['steps']:,}",
        ]
        for part in (row["guidance 1"], row["guidance 3"]):
            unseen = f"{part['unseen']['all']:.1%}" if part["unseen"] else "–"
            cells += [f"{part['seen']['all']:.1%}", unseen, f"{part['first']:.1%}"]
        rows.append(cells)
    three = ("seen", "unseen", "the ten")
    head = ["withheld", "examples", "steps", *three, *(f"{name}, guidance 3" for name in three)]
    third = markdown(head, *rows)

    rows = [
        [count, *(f"{row[part]['all']:.1%}" if part in row else "–" for part in ("seen", "unseen"))]
        for count, row in record["choose"].items()
    ]
    rows = [[*row, f"{record['choose'][row[0]]['similarity']:.3f}"] for row in rows]
    fourth = markdown(["best of", "seen: all right", "unseen: all right", "similarity"], *rows)

    forms = {"mse": lambda x: f"{1000 * x:.2f}"}
    keys = {"mse": "MSE · 1000", "perplexity": "perplexity", "fid_copies": "FID of copies"}
    keys |= {"fid_samples_0.8": "FID of samples, T = 0.8", "fid_samples_1": "T = 1"}
    rows = [
        [name, *(forms.get(key, lambda x: f"{x:.2f}")(row[key]) for key in keys), f"{row['right_0.8']['all']:.1%}"]
        for name, row in record["tokenizers"].items()
    ]
    return [first, second, third, fourth, markdown(["", *keys.values(), "all right, T = 0.8"], *rows)]


def batches():
    """How sampling scales with the number of pictures that are written together."""
    rows = [
        [f"{row['pictures']:,}", f"{row['per second']:.0f}", f"{row['peak, MB']:.0f}"]
        for row in kept("scale.json")["rows"]
    ]
    return markdown(["pictures together", "pictures per second", "memory beyond the model, MB"], *rows)


def tables():
    """The README's table, and a list of those of the benchmarks."""
    sys.path.insert(0, str(BENCHMARKS))
    import pairs
    import passes

    card = records.load_scorecard()
    others = pairs.table({**kept("pairs.json"), "shipped": card["generators"]["ours"]})
    corrected = passes.table(kept("passes.json")).split("\n\n")
    return results(), [
        scorecard.table(card),
        times(),
        tricks(False),
        tricks(True),
        optimizers(),
        decoders(),
        *captions(),
        others,
        *corrected,
        batches(),
    ]


if __name__ == "__main__":
    first, rest = tables()
    print(first, *rest, sep="\n\n")
