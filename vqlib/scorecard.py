"""The scorecard: score a trained pair on the test set, print eleven rows, write all figures as JSON (notebook 06).

    python -m vqlib.scorecard                                  # your own pair, or the shipped one
    python -m vqlib.scorecard --original-run runs/original     # with a run of the original recipe beside it

Nothing is chosen by it: the chart, which the guidance was chosen from, compares with training pictures.
"""

import argparse
import json
import shlex
import sys
import time

import torch
from tqdm import tqdm

from vqlib import checkpoints, commands, data, evaluation, files, records, training
from vqlib.baselines import Histogram
from vqlib.classifier import accuracy, classify
from vqlib.pair import Pair, load_pair, seeded
from vqlib.sampling import sample
from vqlib.tokens import Vocabulary, encode_pixels

GUIDANCE, MILD = 2.0, 1.5  # recommended by the chart: at T = 0.8 for clear pictures, at T = 1 for variety
KNOBS = {"T = 1": (1.0, 1.0), "T = 0.8": (0.8, 1.0)}  # name: (temperature, guidance)
KNOBS |= {f"T = 0.8, guidance {GUIDANCE:g}": (0.8, GUIDANCE), f"T = 1, guidance {MILD:g}": (1.0, MILD)}
CHART = [(T, 1.0) for T in (0.5, 0.7, 0.8, 0.9, 1.0, 1.2)]
CHART += [(0.8, w) for w in (1.5, 2.0, 3.0, 5.0)] + [(1.0, w) for w in (1.5, 2.0)]
STOPPED = "Stopped: nothing was written."


def balanced(dataset, n, shuffled=False):
    """The first n / 10 pictures of each class, in the order of the data set: nothing is chosen."""
    index = torch.cat([(dataset.labels == label).nonzero()[: n // 10, 0] for label in range(10)])
    return dataset.subset(index[torch.randperm(len(index), generator=seeded(0))] if shuffled else index)


def draw(pair, n, temperature, guidance, seed=0, batch_size=500):
    """n samples of one seed, the classes in turn, none chosen: (n, 1, 28, 28) images on the CPU, and (n,) labels."""
    codes, labels = write(pair, n, temperature, guidance, seed, batch_size)
    return evaluation.reconstruct(pair.vqvae, codes), labels


def write(pair, n, temperature, guidance, seed=0, batch_size=500):
    """The codes of those samples, (n, 7, 7) int64, whichever decoder will draw them, and their labels."""
    labels = torch.arange(n) % pair.transformer.config.num_classes
    knobs = {"temperature": temperature, "guidance": guidance, "generator": seeded(seed)}
    words = f"sampling at {temperature:g}, guidance {guidance:g}"
    parts = tqdm(labels.split(batch_size), words, disable=None)  # no bar unless in a terminal
    return torch.cat([sample(pair.transformer, part, **knobs) for part in parts]), labels


class Referee:
    """What the samples of all generators are held against: real pictures, and the judge's features of them."""

    def __init__(self, judge, train, test, score=training.SCORE, progress=False):
        self.judge, self.train, self.test, self.score, self.progress = judge, train, test, score, progress
        images = data.to_images(test.pixels)
        self.features, self.sharpness = classify(judge, images)[1], evaluation.sharpness(images)

    def measure(self, images, labels):
        """Quality and variety against the test pictures, and how near the training pictures come: plain numbers.

        images: (N, 1, 28, 28) float in [-1, 1]. labels: (N,) int64, what they should show.
        """
        return self.quality(images, labels) | self.nearness(images)

    def quality(self, images, labels):
        log_probs, features = classify(self.judge, images)
        return {
            "pictures": len(images),
            "fid": evaluation.frechet_distance(features, self.features),
            "sharpness": evaluation.sharpness(images) / self.sharpness,
            "agreement": (log_probs.argmax(1) == labels).float().mean().item(),
            "agreement_by_class": [round(x, 4) for x in evaluation.agreement(log_probs, labels).tolist()],
            "coverage": evaluation.coverage(self.features[: len(images)], features),
        }

    def nearness(self, images):
        _, nearest = evaluation.nearest_neighbours(images[:1000], self.train.pixels)
        return {"nearest_mean": nearest.mean().item(), "nearest_least": nearest.min().item()}

    def accuracy_score(self, images, labels):
        """The accuracy on the test pictures of a classifier trained on these pictures alone (arXiv 1905.10887)."""
        pictures = data.Dataset(data.to_pixels(images), labels, "samples")
        model = training.train_classifier(self.score, pictures, progress=self.progress)
        return {"classification_accuracy_score": accuracy(model, self.test)}

    def references(self):
        """As many real training pictures as there are test pictures, measured as if they were samples."""
        real, unseen = balanced(self.train, len(self.test), shuffled=True), data.to_images(self.test.pixels)
        given = data.to_images(real.pixels), real.labels
        figures = self.quality(*given) | self.nearness(unseen)  # a training picture would be its own nearest
        return figures | self.accuracy_score(*given) | {"judge_accuracy": accuracy(self.judge, self.test)}


def score_pair(pair: Pair, referee, n=10_000, knobs=KNOBS, bayes=2000, others=()):
    """All figures of a pair: a dict, as it goes into the JSON.

    others: pairs that differ from this one in nothing but the decoder. With them, a list: a dict for each pair.
    """
    (vqvae, transformer), test, pairs = pair, referee.test, (pair, *others)
    codes, few, copied = encode_pixels(vqvae, test.pixels), balanced(test, bayes), balanced(referee.train, n, True)
    guess = evaluation.bayes_classes(transformer, encode_pixels(vqvae, few.pixels))
    of_codes = {
        "likelihood": evaluation.evaluate_transformer(transformer, codes, test.labels),
        "bayes_accuracy": (guess == few.labels).float().mean().item(),
        "bayes_pictures": len(few),
    }
    copied_codes, figures = encode_pixels(vqvae, copied.pixels), []
    for vqvae, _ in pairs:
        best = evaluation.reconstruct(vqvae, copied_codes), copied.labels  # what the tokenizer allows
        of_copies = {
            "tokenizer": evaluation.evaluate_vqvae(vqvae, test),
            "reconstructions": referee.measure(evaluation.reconstruct(vqvae, codes), test.labels),
            "training_reconstructions": referee.accuracy_score(*best),  # test ones would train on the test
        }
        figures.append(of_copies | of_codes | {"samples": {}})
    for name, (temperature, guidance) in knobs.items():
        if guidance == 1 or getattr(transformer, "info", {}).get("recipe", {}).get("drop_class"):
            began = time.perf_counter()
            written, labels = write(pair, n, temperature, guidance)
            how = {"temperature": temperature, "guidance": guidance, "seconds": round(time.perf_counter() - began, 1)}
            for of_pair, (vqvae, _) in zip(figures, pairs, strict=True):
                drawn = evaluation.reconstruct(vqvae, written), labels
                of_pair["samples"][name] = referee.measure(*drawn) | referee.accuracy_score(*drawn) | how
    return figures if others else figures[0]


def score_naive(vqvae, referee, n=10_000):
    """Generators that know next to nothing: uniform codes, and each position drawn from its class's histogram."""
    codes, test_codes = (encode_pixels(vqvae, part.pixels) for part in (referee.train, referee.test))
    histogram = Histogram.fit(codes, referee.train.labels, vocabulary=Vocabulary(vqvae.config.num_codes))
    uniform = Histogram(torch.full_like(histogram.log_probs, 1 / vqvae.config.num_codes).log())
    card, labels, generator = {}, torch.arange(n) % len(histogram.log_probs), seeded(0)
    for name, model in (("uniform codes", uniform), ("histogram", histogram)):
        images = evaluation.reconstruct(vqvae, model.sample(labels, generator))
        figures = referee.measure(images, labels) | referee.accuracy_score(images, labels)
        nats = model.nats_per_code(test_codes, referee.test.labels)
        samples = dict.fromkeys(("T = 1", "T = 0.8"), figures)  # they have no temperature
        card[name] = {"likelihood": {"nats_per_code": nats}, "samples": samples}
    return card


def chart(pair: Pair, judge, train, n=2000, points=CHART):
    """Agreement against coverage over temperature and guidance, held against n training pictures: a list of dicts."""
    referee, rows = Referee(judge, train, balanced(train, n)), []
    for temperature, guidance in points:
        figures = referee.quality(*draw(pair, n, temperature, guidance, seed=1))
        kept = {name: figures[name] for name in ("agreement", "coverage", "fid")}
        rows.append({"temperature": temperature, "guidance": guidance, **kept})
    return rows


def rows(card):
    """Eleven rows of cells below their head, and a column per generator."""

    def cell(figures, keys, form):
        for key in keys:
            figures = figures.get(key, {})
        return "–" if figures == {} else form.format(figures)

    fid, share, score = "{:.2f}", "{:.1%}", "classification_accuracy_score"
    free, cool, guided, _ = (("samples", knob) for knob in KNOBS)
    columns, real = card["generators"], card["real pictures"]
    figures_of = [  # name, what stands under "real", which figure of a generator, its format
        ("MSE, pixels in [0, 1]", "0", ("tokenizer", "mse"), "{:.5f}"),
        (f"perplexity of the codes, of {card['num_codes']}", "–", ("tokenizer", "perplexity"), "{:.1f}"),
        ("FID ¹ of reconstructions", cell(real, ["fid"], fid), ("reconstructions", "fid"), fid),
        ("sharpness of reconstructions", cell(real, ["sharpness"], share), ("reconstructions", "sharpness"), share),
        ("nats per code ²", "–", ("likelihood", "nats_per_code"), "{:.3f}"),
        ("class by Bayes' rule", "–", ("bayes_accuracy",), share),
        ("FID ¹ of samples, T = 1", cell(real, ["fid"], fid), (*free, "fid"), fid),
        ("class agreement, T = 0.8", cell(real, ["judge_accuracy"], share), (*cool, "agreement"), share),
        (f"the same, guidance {GUIDANCE:g}", "–", (*guided, "agreement"), share),
        ("coverage, T = 1", cell(real, ["coverage"], share), (*free, "coverage"), share),
        ("classification accuracy score, T = 1", cell(real, [score], share), (*free, score), share),
    ]
    lines = [[f"test set, {card['samples']:,} pictures", "real", *columns]]
    for name, first, keys, form in figures_of:
        lines.append([name, first, *(cell(figures, keys, form) for figures in columns.values())])
    return lines


def table(card):
    """The card as Markdown."""
    head, *lines = rows(card)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m vqlib.scorecard", description=__doc__.splitlines()[0])
    add, run = parser.add_argument, {"type": checkpoints.named, "metavar": "RUN"}  # second names: version 0.1's
    add("--run", **run, help="folder of the pair to score, or its name in the runs folder; default: yours, or shipped")
    add("--original-run", "--ancestor-run", **run, help="a run of the original recipe, to score beside it")
    add("--out", type=files.expand, metavar="PATH", help="default: scorecard.json with the run")
    add("--mini", "--sample", action="store_true", help="a quick look: the mini set, into scorecard-mini.json")
    options = parser.parse_args(arguments)
    name = "scorecard-mini.json" if options.mini else "scorecard.json"
    options.out = options.out or (options.run or checkpoints.runs_folder()) / name
    return options


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    with commands.in_words(STOPPED, RuntimeError):
        train, test = (data.load(split, mini=options.mini) for split in ("train", "test"))
    pair = load_pair(options.run)
    print(f"ours: {checkpoints.describe(pair.vqvae)}; {checkpoints.describe(pair.transformer)}")
    try:
        crisp = load_pair(options.run, decoder="crisp")
        print(f"crisp: {checkpoints.describe(crisp.vqvae.decoder)}")
    except (OSError, ValueError) as error:
        print(f"no crisp column: {error}")
        crisp = None
    original = options.original_run and load_pair(options.original_run)
    with files.only_writer(options.out):
        card = {"command": shlex.join(["python", "-m", "vqlib.scorecard", *arguments])}
        card |= score(pair, crisp, original, train, test, options.mini)
        print(commands.aligned(rows(card)))
        print("¹ On the judge's features: comparable within this table only. ² Not comparable between tokenizers.")
        files.replace_file(options.out, (json.dumps(card, indent=1, ensure_ascii=False) + "\n").encode())
    print(f"all figures: {options.out}")


def score(pair, crisp, original, train, test, mini):
    """The whole card, but for the command that asked for it.

    crisp: None, or the pair with its crisp decoder. original: None, or a pair of the original recipe.
    """
    n, few, judge, began = len(test), len(test) // 5, checkpoints.load_classifier("judge"), time.perf_counter()
    referee = Referee(judge, train, test, progress=True)
    card = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    card |= {"tokenizer": checkpoints.tokenizer_id(pair.vqvae), "num_codes": pair.vqvae.config.num_codes}
    card |= {"samples": n, "seed": 0, "real pictures": referee.references()}
    if crisp:
        both = score_pair(pair, referee, n, bayes=few, others=[crisp])
        columns = card["generators"] = dict(zip(("ours", "ours, crisp"), both, strict=True))
    else:
        columns = card["generators"] = {"ours": score_pair(pair, referee, n, bayes=few)}
    if original:
        columns["original recipe"] = score_pair(original, referee, n, bayes=few)
    elif not mini:  # its weights are not kept, but its figures over all 10,000 test pictures are
        kept = records.load_original_record()
        columns["original recipe"] = {"tokenizer": kept["vqvae"]["test"], "likelihood": kept["transformer"]["test"]}
    columns |= score_naive(pair.vqvae, referee, n)
    return card | {"chart": chart(pair, judge, train, few), "seconds": round(time.perf_counter() - began)}


if __name__ == "__main__":
    with commands.in_words(STOPPED):
        main()
