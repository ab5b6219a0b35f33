"""Train one stage, or both, or the classifiers that judge samples, into the runs folder:

    python -m vqlib.training all                         # both stages by the recipe of the shipped weights
    python -m vqlib.training all --recipe original       # by the original recipe
    python -m vqlib.training all --holdout               # for choosing: train on 55,000, score the 5,000 held out
    python -m vqlib.training classifiers                 # the judge and the critic
    torchrun --nproc-per-node 2 -m vqlib.training all    # in two processes

With any option but the last two, a run is saved in a folder of its name in there. A killed run goes on where it was.
"""

import argparse
import dataclasses
import sys

import torch

from vqlib import checkpoints, data, sources
from vqlib.training import devices, distributed, recipes, stages


def parse(arguments):
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m vqlib.training", description=__doc__, formatter_class=plain)
    parser.add_argument("stage", choices=("vqvae", "transformer", "all", "classifiers"))
    chosen = {"choices": tuple(recipes.RECIPES), "type": lambda name: name.replace("ancestor", "original")}  # as in 0.1
    parser.add_argument("--recipe", **chosen, default="best", help="of the shipped weights, or of our starting point")
    parser.add_argument(
        "--holdout", action="store_true", help="score 5,000 training pictures, leave the test set alone"
    )
    parser.add_argument("--mini", "--sample", action="store_true", help="some minutes on the embedded 2,500 pictures")
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
    try:
        train_set, *test = (data.load(split, mini=options.mini, name=options.data) for split in splits)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}".replace(data.OR_MINI, "Or use the embedded mini set: --mini."))
    if distributed.rank() == 0:
        distributed.barrier()
    held_out, folder = None, folder_of(options)
    if options.holdout:
        train_set, held_out = data.split_validation(train_set, len(train_set) // 12)

    def run(train_stage, name, recipe, *tokenizer):
        recipe = dataclasses.replace(recipe, batch_size=options.batch_size or recipe.batch_size)
        path, device = folder / f"{name}.safetensors", options.device
        report(train_stage(recipe, *tokenizer, train_set, held_out, *test, path=path, device=device))

    if options.stage == "classifiers":
        run(stages.train_classifier, "judge", recipes.JUDGE)
        run(stages.train_classifier, "critic", recipes.CRITIC)
        return
    vqvae_recipe, transformer_recipe = recipes.RECIPES[options.recipe]
    if options.stage != "transformer":
        run(stages.train_vqvae, "vqvae", vqvae_recipe)
    if options.stage != "vqvae":
        own = folder / "vqvae.safetensors"
        if folder != checkpoints.runs_folder() and not own.is_file():  # the shipped one won't do
            sys.exit(f"error: this run has no tokenizer, {own}. Train vqvae first, with the same options")
        vqvae = checkpoints.load_vqvae(own if own.is_file() else None)
        distributed.say(f"tokenizer: {vqvae.info['path']}")
        run(stages.train_transformer, "transformer", transformer_recipe, vqvae)


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


def report(model):
    history, which = model.info["history"], "test" if "test" in model.info else "validation"
    figures = model.info.get("test") or history["epochs"][-1]
    shown = ", ".join(f"{k} {v:.5g}" for k, v in figures.items() if isinstance(v, int | float))
    distributed.say(f"{model.info['path']}: {history['seconds']:.0f} s; {which}: {shown}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell expects of what Ctrl-C ended
    except (OSError, ValueError, MemoryError, FloatingPointError) as error:  # these say what to do
        sys.exit(f"error: {error}")
