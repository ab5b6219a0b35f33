"""The scorecard: one command that scores a trained pair, prints at most ten rows and writes everything as JSON.

    python -m vqlib.scorecard                          # the reader's own pair, or the shipped one; into runs/
    python -m vqlib.scorecard --ancestor-run runs/ancestor     # with the ancestor's recipe beside it, trained before

Whatever is chosen is chosen on other pictures than the test set's; the README says where it was seen before the final
recipes. The chart of knobs, from which the recommended guidance was chosen, compares with training pictures.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from vqlib import checkpoints, data, evaluation, training
from vqlib.classifier import accuracy, judge
from vqlib.sampling import sample
from vqlib.tokens import NUM_CLASSES, Histogram, encode_pixels

GUIDANCE, MILD = 2.0, 1.5  # recommended, from the chart: at T = 0.8 for clear pictures, at T = 1 for variety
KNOBS = {"T = 1": (1.0, 1.0), "T = 0.8": (0.8, 1.0), f"T = 0.8, guidance {GUIDANCE:g}": (0.8, GUIDANCE),
         f"T = 1, guidance {MILD:g}": (1.0, MILD)}
CHART = ([(T, 1.0) for T in (0.5, 0.7, 0.8, 0.9, 1.0, 1.2)] + [(0.8, w) for w in (1.5, 2.0, 3.0, 5.0)]
         + [(1.0, w) for w in (1.5, 2.0)])  # (temperature, guidance)


def balanced(dataset, n):
    """The first n / 10 pictures of each class, in the data set's own order: nothing chosen."""
    return dataset.subset(torch.cat([(dataset.labels == c).nonzero()[:n // 10, 0] for c in range(NUM_CLASSES)]))


def shuffled(dataset):
    return dataset.subset(torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)))


def write(transformer, n, temperature, guidance, batch_size=500, progress=False, seed=0):
    """n samples, the classes in turn, from one random seed, none chosen: (n, 7, 7) codes on the CPU and (n,) labels."""
    labels, generator = torch.arange(n) % NUM_CLASSES, torch.Generator().manual_seed(seed)
    parts = tqdm(labels.split(batch_size), desc=f"sampling at {temperature:g}, guidance {guidance:g}",
                 disable=not progress)
    return torch.cat([sample(transformer, part, temperature, guidance=guidance, generator=generator).cpu()
                      for part in parts]), labels


class Referee:
    """What the samples of all generators are compared with: real pictures, and the judge's features of them."""

    def __init__(self, classifier, train, test, score=training.SCORE, progress=False):
        self.classifier, self.train, self.test, self.score, self.progress = classifier, train, test, score, progress
        _, self.features = judge(classifier, data.to_images(test.pixels))

    def measure(self, images, labels, score=True, nearest=True):
        """Figures of any set of pictures of known class, a dict of plain numbers.

        images: (N, 1, 28, 28) float in [-1, 1], labels: (N,). fid, coverage: against the test pictures. agreement:
        how often the judge sees the class. classification_accuracy_score: of a classifier trained on these pictures
        alone, on the test pictures (Ravuri and Vinyals, arXiv 1905.10887). nearest: the mean over 1,000 of them of the
        MSE to the nearest training picture, and the least.
        """
        log_probs, features = judge(self.classifier, images)
        by_class = evaluation.agreement(log_probs, labels)
        figures = {"pictures": len(images), "fid": evaluation.frechet_distance(features, self.features),
                   "agreement": (log_probs.argmax(1) == labels).float().mean().item(),
                   "agreement_by_class": [round(x, 4) for x in by_class.tolist()],
                   "coverage": evaluation.coverage(self.features[:len(images)], features)}
        if score:
            figures["classification_accuracy_score"] = self.accuracy_score(images, labels)
        if nearest:
            _, distance = evaluation.nearest_neighbours(images[:1000], self.train.pixels)
            figures |= {"nearest_mean": distance.mean().item(), "nearest_least": distance.min().item()}
        return figures

    def accuracy_score(self, images, labels):
        """Accuracy on the test pictures of a classifier that was trained on these pictures alone."""
        pictures = data.Dataset(data.to_pixels(images), labels, "samples")
        return accuracy(training.train_classifier(self.score, pictures, progress=self.progress), self.test)

    def references(self):
        """Real training pictures, as many as there are test pictures, measured as if they were samples."""
        real = shuffled(balanced(self.train, len(self.test)))
        figures = self.measure(data.to_images(real.pixels), real.labels, nearest=False)
        _, distance = evaluation.nearest_neighbours(data.to_images(self.test.pixels[:1000]), self.train.pixels)
        return figures | {"nearest_mean": distance.mean().item(), "nearest_least": distance.min().item(),
                          "judge_accuracy": accuracy(self.classifier, self.test)}


def score_pair(vqvae, transformer, referee, n=10_000, knobs=KNOBS, bayes=2000):
    """All figures of a tokenizer and the Transformer that learned its codes: a dict, as it goes into the JSON."""
    test = referee.test
    codes = encode_pixels(vqvae, test.pixels)
    reconstructions = evaluation.reconstruct(vqvae, codes)
    few = balanced(test, bayes)
    guess = evaluation.bayes_classes(transformer, encode_pixels(vqvae, few.pixels))
    figures = {"tokenizer": evaluation.evaluate_vqvae(vqvae, test),
               "reconstructions": referee.measure(reconstructions, test.labels, score=False),  # they are the test set
               "likelihood": evaluation.evaluate_transformer(transformer, codes, test.labels),
               "bayes_accuracy": (guess == few.labels).float().mean().item(), "bayes_pictures": len(few), "samples": {}}
    copied = shuffled(balanced(referee.train, n))  # what a classifier can learn from the tokenizer's best
    copies = evaluation.reconstruct(vqvae, encode_pixels(vqvae, copied.pixels))
    figures["training_reconstructions"] = {
        "classification_accuracy_score": referee.accuracy_score(copies, copied.labels)}
    for name, (temperature, guidance) in knobs.items():
        if guidance != 1 and not transformer.info["recipe"].get("drop_class"):
            continue
        began = time.perf_counter()
        codes, labels = write(transformer, n, temperature, guidance, progress=referee.progress)
        seconds = time.perf_counter() - began
        figures["samples"][name] = referee.measure(evaluation.reconstruct(vqvae, codes), labels) | {
            "temperature": temperature, "guidance": guidance, "seconds": round(seconds, 1)}
    return figures


def score_naive(vqvae, referee, n=10_000):
    """The generators that know nothing: uniform codes, and each position drawn alone from its class's histogram."""
    codes, labels = encode_pixels(vqvae, referee.train.pixels), torch.arange(n) % NUM_CLASSES
    test_codes, generator = encode_pixels(vqvae, referee.test.pixels), torch.Generator().manual_seed(0)
    histogram = Histogram.fit(codes, referee.train.labels)
    uniform = Histogram(torch.full_like(histogram.log_probs, 1 / 64).log())
    card = {}
    for name, model in (("uniform codes", uniform), ("histogram", histogram)):
        figures = referee.measure(evaluation.reconstruct(vqvae, model.sample(labels, generator)), labels)
        card[name] = {"likelihood": {"nats_per_code": model.nats_per_code(test_codes, referee.test.labels)},
                      "samples": {knob: figures for knob in list(KNOBS)[:2]}}  # they have no temperature
    return card


def chart(vqvae, transformer, classifier, train, n=2000, points=CHART, progress=False):
    """Agreement against coverage over temperature and guidance, beside n training pictures: a list of dicts."""
    real, rows = balanced(train, n), []
    _, features = judge(classifier, data.to_images(real.pixels))
    for temperature, guidance in points:
        codes, labels = write(transformer, n, temperature, guidance, progress=progress, seed=1)
        log_probs, made = judge(classifier, evaluation.reconstruct(vqvae, codes))
        rows.append({"temperature": temperature, "guidance": guidance,
                     "agreement": (log_probs.argmax(1) == labels).float().mean().item(),
                     "coverage": evaluation.coverage(features, made),
                     "fid": evaluation.frechet_distance(made, features)})
    return rows


def table(card):
    """The card as Markdown, a column a generator: at most ten rows."""
    real, columns = card["real pictures"], card["generators"]
    plain, _, guided, _ = KNOBS

    def cell(figures, *keys, form="{:.3f}", missing="–"):
        for key in keys:
            figures = figures.get(key) if isinstance(figures, dict) else None
        return missing if figures is None else form.format(figures)

    def row(name, real_value, *keys, form="{:.3f}"):
        return [name, real_value, *(cell(v, *keys, form=form) for v in columns.values())]

    percent, cool = "{:.1%}", "T = 0.8"
    rows = [
        row("MSE, pixels in [0, 1]", "0", "tokenizer", "mse", form="{:.5f}"),
        row("perplexity of the codes, of 64", "–", "tokenizer", "perplexity", form="{:.1f}"),
        row("FID ¹ of reconstructions", cell(real, "fid", form="{:.2f}"), "reconstructions", "fid", form="{:.2f}"),
        row("nats per code ²", "–", "likelihood", "nats_per_code"),
        row("class by Bayes' rule", "–", "bayes_accuracy", form=percent),
        row("FID ¹ of samples, T = 1", cell(real, "fid", form="{:.2f}"), "samples", plain, "fid", form="{:.2f}"),
        row("class agreement, T = 0.8", cell(real, "judge_accuracy", form=percent), "samples", cool, "agreement",
            form=percent),
        row(f"the same, guidance {GUIDANCE:g}", "–", "samples", guided, "agreement", form=percent),
        row("coverage, T = 1", cell(real, "coverage", form=percent), "samples", plain, "coverage", form=percent),
        row("classification accuracy score, T = 1", cell(real, "classification_accuracy_score", form=percent),
            "samples", plain, "classification_accuracy_score", form=percent),
    ]
    head = [f"| test set, {card['samples']:,} pictures |", " real |", *(f" {name} |" for name in columns)]
    return "\n".join(["".join(head), "|" + " --- |" * (len(columns) + 2)]
                     + ["| " + " | ".join(line) + " |" for line in rows])


def _pair(folder):
    vqvae = checkpoints.load_vqvae(folder / "vqvae.safetensors")
    return vqvae, checkpoints.load_transformer(folder / "transformer.safetensors", vqvae=vqvae)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m vqlib.scorecard", description="Score a trained pair on the test "
                                     "set: print a table, write all figures as JSON.")
    parser.add_argument("--run", type=Path, help="folder of the pair to score, such as runs/ancestor; default: your "
                        "own in the runs folder, or the shipped one")
    parser.add_argument("--ancestor-run", type=Path, help="folder of a run of `python -m vqlib.training all --recipe "
                        "ancestor`, to score beside it")
    parser.add_argument("--out", type=Path, help="default: scorecard.json in the pair's folder under runs/; with "
                        "--sample, scorecard-sample.json")
    parser.add_argument("--sample", action="store_true", help="a quick look: the embedded sample, 500 samples")
    options = parser.parse_args(arguments)
    name = "scorecard-sample.json" if options.sample else "scorecard.json"
    out = options.out or (options.run or checkpoints.runs_folder()) / name
    train, test = (data.load(split, sample=options.sample) for split in ("train", "test"))
    n, few = len(test), len(test) // 5
    vqvae, transformer = _pair(options.run) if options.run else (checkpoints.load_vqvae(),
                                                                 checkpoints.load_transformer())
    print(f"ours: {checkpoints.describe(vqvae)}; {checkpoints.describe(transformer)}")
    checkpoints.check_writable(out)
    if options.ancestor_run:
        ancestor_pair = _pair(options.ancestor_run)
    classifier = checkpoints.load_classifier("judge")
    began = time.perf_counter()
    referee = Referee(classifier, train, test, progress=True)
    given = {"--run": options.run, "--ancestor-run": options.ancestor_run}
    words = [word for flag, value in given.items() if value for word in (flag, str(value))]
    card = {"command": " ".join(["python -m vqlib.scorecard", *words, *["--sample"] * options.sample]),
            "torch": torch.__version__, "threads": torch.get_num_threads(),
            "tokenizer": checkpoints.tokenizer_id(vqvae), "samples": n, "seed": 0,
            "real pictures": referee.references(),
            "generators": {"ours": score_pair(vqvae, transformer, referee, n, bayes=few)}}
    if options.ancestor_run:
        card["generators"]["ancestor's recipe"] = score_pair(*ancestor_pair, referee, n, bayes=few)
    elif not options.sample:
        record = checkpoints.load_ancestor_record()  # of all 10,000 test pictures; its weights are not kept
        card["generators"]["ancestor's recipe"] = {"tokenizer": record["vqvae"]["test"],
                                               "likelihood": record["transformer"]["test"]}
    card["generators"] |= score_naive(vqvae, referee, n)
    card["chart"] = chart(vqvae, transformer, classifier, train, few, progress=True)
    card["seconds"] = round(time.perf_counter() - began)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(card))
    print("¹ On the judge's features: comparable within this table only. ² Not comparable between tokenizers.")
    print(f"all figures: {out}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped: nothing was written")
    except (OSError, ValueError) as error:  # these say what to do
        sys.exit(f"error: {error}".replace(data.OR_SAMPLE, "Or take the embedded sample: --sample."))
