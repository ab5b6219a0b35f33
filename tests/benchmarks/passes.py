"""How many passes of the Transformer a picture takes when all of its codes are guessed and then corrected together.

    python tests/benchmarks/passes.py           # some minutes; nothing else should be running
    python tests/benchmarks/passes.py --quick --out try.json   # a fast try, with the embedded mini set

`sampling.sample` takes 49 passes, `sampling.sample_parallel` as many as a picture needs until nothing changes; the pass
that finds nothing to change is one of them. They are counted for three first guesses: code 0 everywhere; what a
histogram per class and position of the training codes draws from the same noise; and codes drawn without any knowledge.
Then both functions are timed in turn, at temperature 0.8 and from zeros.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch
from speed import interleave, processor, shown
from tqdm import tqdm

from vqlib import checkpoints, data, load_pair, sampling, tokens, training
from vqlib.baselines import Histogram
from vqlib.transformer import eval_mode

SETTINGS = {f"T = {T:g}": {"temperature": T} for T in (0.0, 0.5, 0.8, 1.0)}
SETTINGS["T = 0.8, w = 2"] = {"temperature": 0.8, "guidance": 2.0}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def first_guesses(histogram, labels, temperature):
    """Three ways to begin: the name -> (N, 49) codes."""
    by_class = histogram.log_probs[labels]  # (N, 49, K)
    noise = sampling.gumbel_noise(len(labels), by_class.shape[-1], seeded(0))
    return {
        "zeros": torch.zeros(by_class.shape[:2], dtype=torch.int64),
        "histogram": (by_class + temperature * noise).argmax(-1),
        "random": torch.randint(by_class.shape[-1], by_class.shape[:2], generator=seeded(1)),
    }


def correct(transformer, labels, guess, knobs):
    """How many passes each picture took, (N,), and its codes, (N, 49), from the noise of seed 0."""
    start = sampling.start_tokens(transformer, labels, knobs.get("guidance", 1.0))
    noise = sampling.noise_for(transformer, len(labels), seeded(0))
    codes, passes = guess.to(start.device), torch.ones_like(labels)  # one for the pass that changes nothing
    with eval_mode(transformer):
        for corrected in sampling.write_parallel(transformer, start, noise, codes, **knobs):
            passes += (corrected != codes).any(1).cpu()
            codes = corrected
    return passes.clamp(max=tokens.CODES_PER_IMAGE), codes  # after 49 nothing can change, and no other pass is made


def count(transformer, histogram, labels):
    """For each setting and first guess the passes of a picture, and how many pictures are not those of `sample`."""
    counts = {}
    for setting, knobs in tqdm(SETTINGS.items(), desc="settings"):
        usual = sampling.sample(transformer, labels, generator=seeded(0), **knobs).flatten(1)
        counts[setting] = {}
        for name, guess in first_guesses(histogram, labels, knobs["temperature"]).items():
            passes, codes = correct(transformer, labels, guess, knobs)
            figures = {"mean": passes.double().mean(), "median": passes.double().quantile(0.5), "most": passes.max()}
            counts[setting][name] = {key: value.item() for key, value in figures.items()}
            counts[setting][name]["unlike sample"] = (codes != usual).any(1).sum().item()
    return counts


def contenders(transformer, n):
    labels = torch.arange(n) % 10
    return {
        "sample": lambda: sampling.sample(transformer, labels, generator=seeded(0)),
        "sample_parallel": lambda: sampling.sample_parallel(transformer, labels, generator=seeded(0)),
    }


def table(results):
    """Markdown: passes as mean / median / most, and then seconds."""
    counts = results["passes"]
    rows = ["| first guess | " + " | ".join(counts) + " |", "| --- " * (len(counts) + 1) + "|"]
    for name in next(iter(counts.values())):
        cells = ("{mean:.1f} / {median:g} / {most}".format(**entry[name]) for entry in counts.values())
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    unlike = (str(sum(figures["unlike sample"] for figures in entry.values())) for entry in counts.values())
    rows += [f"| of {3 * results['pictures']} unlike `sample`'s | " + " | ".join(unlike) + " |", ""]
    rows += ["| pictures | sample | sample_parallel |", "| --- | --- | --- |"]
    for n, entry in results["seconds"].items():
        rows.append(f"| {n} | " + " | ".join(shown(figures["median"]) for figures in entry.values()) + " |")
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three pictures, the mini set, and times of one picture")
    parser.add_argument("--repeats", type=int, default=5, help="calls of each function after the first")
    parser.add_argument("--device", default=training.pick_device())
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    torch.set_num_threads(options.threads)
    train, (vqvae, transformer) = data.load("train", mini=options.quick), load_pair(shipped=True, device=options.device)
    histogram = Histogram.fit(tokens.encode_pixels(vqvae, train.pixels), train.labels)
    labels, sizes = (torch.arange(3), [1]) if options.quick else (torch.arange(10).repeat(10), [1, 8, 64])
    results = {
        "command": shlex.join(["python", "tests/benchmarks/passes.py", *sys.argv[1:]]),
        "device": options.device,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "sha256 of the tokenizer": checkpoints.tokenizer_id(vqvae),
        "pictures": len(labels),
        "passes": count(transformer, histogram, labels),
    }
    with tqdm(total=2 * len(sizes) * (options.repeats + 1), desc="calls") as bar:
        timed = {n: interleave(contenders(transformer, n), options.repeats, options.device, bar) for n in sizes}
    results |= {"repeats": options.repeats, "seconds": timed}
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
