"""Train one stage, or both, or other decoders, or the classifiers that judge samples, into the runs folder:

    python -m vqlib.training all                         # both stages by the recipe of the shipped weights
    python -m vqlib.training all --recipe original       # by the original recipe
    python -m vqlib.training all --holdout               # for choosing: train on 55,000, score the 5,000 held out
    python -m vqlib.training decoders                    # "crisp" and "fabrics": other decoders for the same codes
    python -m vqlib.training dalle                       # "dvae", "captions" and "contrastive", of notebook 08
    python -m vqlib.training classifiers                 # the judge and the critic
    torchrun --nproc-per-node 2 -m vqlib.training all    # in two processes

With any option but the last two, a run is saved in a folder of its name in there. A killed run goes on where it was.
"""

import argparse
import dataclasses
import math
import sys

import torch

from vqlib import baselines, checkpoints, commands, data, evaluation, sources
from vqlib.tokens import Vocabulary, encode_pixels
from vqlib.training import dalle, devices, distributed, recipes, stages
from vqlib.vqvae import kmeans

DALLE = "dalle", "dvae", "captions", "contrastive"
STOPPED = "Stopped. What was finished is saved, and the same command goes on from there."
TRY = """This is a try of some minutes, on 2,000 of the 60,000 pictures. It shows that
everything runs. Its figures are far from those of all the data, and what such a
model draws is debris."""
FULL = "This was a try. What all of the data gives: vqlib.load_pair(shipped=True)."


def parse(arguments):
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m vqlib.training", description=__doc__, formatter_class=plain)
    decoders = "decoders", *recipes.DECODERS
    parser.add_argument("stage", choices=("vqvae", "transformer", "all", *decoders, *DALLE, "classifiers"))
    chosen = {"choices": tuple(recipes.RECIPES), "type": lambda name: name.replace("ancestor", "original")}  # as in 0.1
    parser.add_argument("--recipe", **chosen, default="best", help="of the shipped weights, or of our starting point")
    parser.add_argument(
        "--holdout", action="store_true", help="score 5,000 training pictures, leave the test set alone"
    )
    parser.add_argument("--mini", "--sample", action="store_true", help="a try of some minutes on 2,500 pictures")
    parser.add_argument("--data", choices=sources.NAMES, default=sources.NAMES[0], help="pictures of the same form")
    parser.add_argument("--batch-size", type=int, metavar="B", help="if memory is short; by default the recipe's")
    parser.add_argument("--device", help="by default the first of cuda, mps and cpu that is there and works")
    options = parser.parse_args(arguments)
    options.device = options.device or devices.pick_device()
    try:
        torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError, NotImplementedError):
        parser.error(f"--device: no {options.device!r} works here. The default is {devices.pick_device()!r}")
    if options.batch_size is not None and options.batch_size < 1:
        parser.error(f"--batch-size must be 1 or more, got {options.batch_size}")
    if options.mini and options.data != sources.NAMES[0]:
        parser.error(f"there is no mini set of {options.data}: leave --mini out")
    if options.stage == "classifiers" and options.recipe != "best":
        parser.error("the classifiers have one recipe: leave --recipe out")
    if options.stage in DALLE and options.data != sources.NAMES[0]:
        parser.error(f"the captions speak of clothes: leave --data {options.data} out")
    if options.stage in DALLE and distributed.launched():
        parser.error("what notebook 8 adds is trained in one process: leave torchrun out")
    if options.stage in decoders and distributed.launched():
        parser.error("a decoder and its discriminator train by turns, in one process: leave torchrun out")
    if options.stage == "classifiers" and distributed.launched():
        parser.error("the classifiers' BatchNorm needs whole batches: train them without torchrun")
    return options


def main(arguments=None):
    options = parse(arguments)
    if distributed.launched():  # each process has a GPU of its own, or else a CPU: Gloo has no mps
        options.device = "cuda" if options.device.startswith("cuda") else "cpu"
    with distributed.process_group(options.device):
        train(options)


def train(options):
    if distributed.rank() > 0:
        distributed.barrier()  # the first process may have to download
    splits = ("train",) if options.holdout else ("train", "test")
    with commands.in_words(STOPPED, RuntimeError):
        train_set, *test = (data.load(split, mini=options.mini, name=options.data) for split in splits)
    if distributed.rank() == 0:
        distributed.barrier()
    folder, trained, held_out = folder_of(options), {}, None
    if options.mini:
        distributed.say(TRY)
    if options.holdout:
        train_set, held_out = data.split_validation(train_set, len(train_set) // 12)

    def run(train_stage, name, recipe, *tokenizer):
        recipe = dataclasses.replace(recipe, batch_size=options.batch_size or recipe.batch_size)
        path, device = folder / f"{name}.safetensors", options.device
        trained[name] = train_stage(recipe, *tokenizer, train_set, held_out, *test, path=path, device=device)
        report(trained[name])

    vqvae, (vqvae_recipe, transformer_recipe) = None, recipes.RECIPES[options.recipe]
    if options.stage == "classifiers":
        run(stages.train_classifier, "judge", recipes.JUDGE)
        run(stages.train_classifier, "critic", recipes.CRITIC)
    if options.stage in ("vqvae", "all"):
        run(stages.train_vqvae, "vqvae", vqvae_recipe)
    if options.stage not in ("vqvae", "classifiers", "dvae", "contrastive"):
        own = folder / "vqvae.safetensors"
        if folder != checkpoints.runs_folder() and not own.is_file():  # the shipped one won't do
            sys.exit(f"error: this run has no tokenizer, {own}. Train vqvae first, with the same options")
        vqvae = checkpoints.load_vqvae(own if own.is_file() else None)
        distributed.say(f"tokenizer: {vqvae.info['path']}")
    if options.stage in ("dvae", "dalle"):
        run(dalle.train_dvae, "dvae", recipes.DVAE)
    if options.stage in ("contrastive", "dalle"):
        run(dalle.train_contrastive, "contrastive", recipes.CONTRASTIVE)
    if options.stage in ("transformer", "all"):
        run(stages.train_transformer, "transformer", transformer_recipe, vqvae)
    if options.stage in ("captions", "dalle"):
        run(dalle.train_captions, "captions", recipes.CAPTIONS, vqvae)
    for name, recipe in recipes.DECODERS.items():
        if options.stage in ("decoders", name):
            run(stages.train_decoder, name, recipe, vqvae)
    if distributed.rank() == 0:
        print(commands.aligned(compare(trained, vqvae, train_set, held_out or test[0])))
        if options.mini:
            print(FULL)


def compare(trained, vqvae, train_set, scored):
    """Rows of a table: the figures of the models trained, beside those of what needs no learning."""
    rows = [(f"on {len(scored):,} other pictures", "trained", "without learning", "")]
    for name, model in trained.items():
        figures = dict.fromkeys(("mse", "nats_per_code", "accuracy", "fid"), math.nan) | figures_of(model)
        if name in recipes.DECODERS:
            given = vqvae.decoder, vqvae, encode_pixels(vqvae, scored.pixels), scored.pixels
            soft = evaluation.evaluate_decoder(*given, checkpoints.load_classifier("critic"))
            for figure, words in (("mse", "MSE, pixels in [0, 1]"), ("fid", "Fréchet distance by the critic")):
                rows.append((f"{name}: {words}", f"{figures[figure]:.4f}", f"soft {soft[figure]:.4f}", ""))
        elif name in ("vqvae", "dvae"):  # as many bits per picture as its codes take
            K, images = model.config.num_codes, data.to_images(scored.pixels)
            patches = baselines.patches(data.to_images(train_set.pixels[:2000]))
            dictionary, _ = kmeans(patches, K, generator=torch.Generator().manual_seed(0))
            copies = baselines.thumbnails(images, K), baselines.nearest_patches(images, dictionary)
            mse = [f"{evaluation.mse(copy, images):.4f}" for copy in copies]
            naive = f"thumbnails {mse[0]}", f"patches {mse[1]}"
            rows.append((f"{name}: MSE, pixels in [0, 1]", f"{figures['mse']:.4f}", *naive))
        elif name == "transformer":
            K, (codes, others) = vqvae.config.num_codes, (encode_pixels(vqvae, d.pixels) for d in (train_set, scored))
            histogram = baselines.Histogram.fit(codes, train_set.labels, vocabulary=Vocabulary(K))
            naive = f"uniform {math.log(K):.3f}", f"histogram {histogram.nats_per_code(others, scored.labels):.3f}"
            rows.append(("nats per code", f"{figures['nats_per_code']:.3f}", *naive))
        elif name == "captions":
            unseen = f"of combinations never seen {figures.get('nats_per_code_unseen', math.nan):.3f}"
            rows.append(("nats per code, given a caption", f"{figures['nats_per_code']:.3f}", unseen, ""))
        elif name == "contrastive":
            chance = f"chance {1 / dalle.CHOICES:.1%}"
            rows.append(("finds the picture's caption", f"{figures['accuracy']:.1%}", chance, ""))
        else:
            rows.append((f"accuracy of the {name}", f"{figures['accuracy']:.1%}", "chance 10.0%", ""))
    return rows


def folder_of(options):
    """Where a run with these options is saved."""
    names = (options.data, options.recipe, "holdout" * options.holdout, "mini" * options.mini)
    names = [name for name in names if name not in (sources.NAMES[0], "best", "")]
    folder = checkpoints.runs_folder().joinpath(*names)
    old = checkpoints.runs_folder().joinpath(*("ancestor" if name == "original" else name for name in names))
    if old.is_dir() and not folder.is_dir():
        distributed.say(f"going on in {old}, which version 0.1 made: it called the original recipe so")
        return old
    return folder


def figures_of(model):
    """The figures of the test set, else of the pictures held out; {} if the model's header states none."""
    epochs = model.info.get("history", {}).get("epochs") or [{}]
    return model.info.get("test") or epochs[-1]


def report(model):
    seconds, which = model.info.get("history", {}).get("seconds", 0), "test" if "test" in model.info else "validation"
    shown = ", ".join(f"{k} {v:.5g}" for k, v in figures_of(model).items() if isinstance(v, int | float))
    distributed.say(f"{model.info['path']}: {seconds:.0f} s; {which}: {shown}")


if __name__ == "__main__":
    with commands.in_words(STOPPED):
        main()
