"""The command line: ``python -m vqlib.training --help``."""

import argparse
import dataclasses
import sys

import torch

from vqlib import checkpoints, data, sources
from vqlib.training import distributed, recipes, stages
from vqlib.training.devices import pick_device
from vqlib.training.distributed import say

HELP = {
    "recipe": "best (default): that of the shipped weights; original: that of this project's starting point",
    "holdout": "train on 55,000 pictures, score the other 5,000 after each epoch, leave the test set alone",
    "mini": "a try of some minutes on the embedded mini set: 2,000 training and 500 test pictures",
    "data": "train on other pictures of the same form",
    "batch_size": "another than the recipe's, e.g. if memory is short",
    "device": "cuda, mps or cpu; by default the first of them that is there and works",
}


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m vqlib.training",
        description="Train one stage, or both, or the classifiers that judge samples, into the runs folder; with any "
        "option but the last two, into a folder of its name in there. A run that was killed goes on where it was.",
    )
    parser.add_argument("stage", choices=("vqvae", "transformer", "all", "classifiers"))
    renamed = {"ancestor": "original"}  # its name in version 0.1
    chosen = {"choices": tuple(recipes.RECIPES), "type": lambda name: renamed.get(name, name), "default": "best"}
    parser.add_argument("--recipe", **chosen, help=HELP["recipe"])
    parser.add_argument("--holdout", action="store_true", help=HELP["holdout"])
    parser.add_argument("--mini", "--sample", action="store_true", help=HELP["mini"])
    parser.add_argument("--data", choices=sources.NAMES, default=sources.NAMES[0], help=HELP["data"])
    parser.add_argument("--batch-size", type=int, metavar="B", help=HELP["batch_size"])
    parser.add_argument("--device", help=HELP["device"])
    options = parser.parse_args(arguments)
    options.device, options.refuse = options.device or pick_device(), parser.error
    try:
        torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError, NotImplementedError):
        parser.error(
            f"--device: there is no {options.device!r} here that works. Without it, {pick_device()!r} is taken"
        )
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
    if not distributed.launched():
        return train(options)
    options.device = "cuda" if options.device.startswith("cuda") else "cpu"  # each process its own; Gloo has no mps
    with distributed.process_group(options.device):
        return train(options)


def train(options):
    if distributed.rank() > 0:
        distributed.barrier()  # the first process may have to download
    splits = ("train",) if options.holdout else ("train", "test")
    try:
        train_set, *test = (data.load(split, mini=options.mini, name=options.data) for split in splits)
    except (OSError, RuntimeError, ValueError) as error:
        options.refuse(f"{error}".replace(data.OR_MINI, "Or use the embedded mini set: --mini."))
    if distributed.rank() == 0:
        distributed.barrier()
    held_out, folder = None, folder_of(options)
    if options.holdout:
        train_set, held_out = data.split_validation(train_set, len(train_set) // 12)

    def run(train_stage, name, recipe, *tokenizer):
        if options.batch_size:
            recipe = dataclasses.replace(recipe, batch_size=options.batch_size)
        path, device = folder / f"{name}.safetensors", options.device
        report(train_stage(recipe, *tokenizer, train_set, held_out, *test, path=path, device=device))

    vqvae_recipe, transformer_recipe = recipes.RECIPES[options.recipe]
    if options.stage in ("vqvae", "all"):
        run(stages.train_vqvae, "vqvae", vqvae_recipe)
    if options.stage == "classifiers":
        for recipe in (recipes.JUDGE, recipes.CRITIC):
            run(stages.train_classifier, recipe.name, recipe)
    if options.stage in ("transformer", "all"):
        own = folder / "vqvae.safetensors"
        if folder != checkpoints.runs_folder() and not own.is_file():  # the shipped one won't do
            options.refuse(f"{own}, the tokenizer of this run, is not there: first train vqvae with the same options")
        vqvae = checkpoints.load_vqvae(own if own.is_file() else None)
        say(f"tokenizer: {vqvae.info['path']}")
        run(stages.train_transformer, "transformer", transformer_recipe, vqvae)


def folder_of(options):
    """Where a run with these options is saved."""
    parts = [options.data] * (options.data != sources.NAMES[0]) + [options.recipe] * (options.recipe != "best")
    parts += ["holdout"] * options.holdout + ["mini"] * options.mini
    folder = checkpoints.runs_folder().joinpath(*parts)
    old = checkpoints.runs_folder().joinpath(*("ancestor" if part == "original" else part for part in parts))
    if old.is_dir() and not folder.is_dir():
        say(f"going on in {old}, which version 0.1 made: it called the original recipe so")
        return old
    return folder


def report(model):
    which = "test" if "test" in model.info else "validation"
    figures = model.info.get("test") or model.info["history"]["epochs"][-1]
    shown = ", ".join(f"{k} {v:.5g}" for k, v in figures.items() if isinstance(v, int | float))
    say(f"{model.info['path']}: {model.info['history']['seconds']:.0f} s; {which}: {shown}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell expects of what Ctrl-C ended
    except (OSError, ValueError, MemoryError, FloatingPointError) as error:  # these say what to do
        sys.exit(f"error: {error}")
