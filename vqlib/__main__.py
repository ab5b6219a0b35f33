"""Draw pictures from the command line, of classes or for captions, with the shipped pair or your own:

python -m vqlib generate "Ankle boot" --n 8 --temperature 0.8 --seed 0 --out boots.png
python -m vqlib generate "a bright slim dress" --n 8 --out dresses.png
"""

import argparse

from vqlib import captions
from vqlib.checkpoints import DECODERS
from vqlib.commands import in_words
from vqlib.data import CLASS_NAMES
from vqlib.files import check_writable, expand
from vqlib.pair import class_numbers, load_pair


def are_classes(given):
    """False if what was given are captions instead. Raises ValueError for what is neither."""
    try:
        class_numbers(given)
    except ValueError as error:
        if len(given) > 1 and not any(" " in one for one in given):
            raise ValueError(f"{error}. A caption stands in quotes: 'a bright slim dress'") from error
        try:
            captions.read_captions(given)
        except ValueError as worse:
            raise ValueError(f"{error}. Or {worse}") from error
        return False
    return True


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="vqlib", description="The two-stage image generator, in miniature.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="generate")
    generate = commands.add_parser("generate", help="draw pictures of classes, or for captions, into a PNG file")
    add = generate.add_argument
    classes, words = ", ".join(CLASS_NAMES), " ".join(captions.WORDS)
    given = f"a name or number: {classes}; or a caption in quotes, of these words: {words}"
    add("classes", nargs="+", metavar="CLASS", help=given)
    add("--n", type=int, default=8, help="pictures of each (default 8)")
    add("--temperature", type=float, default=0.8, help="0: the likeliest codes; 1: the model as it is (default 0.8)")
    add("--top-k", type=int, help="keep the k likeliest codes")
    add("--top-p", type=float, default=1.0, help="keep the likeliest codes that reach this share")
    add("--guidance", type=float, default=1.0, help="above 1, each is more like its class")
    add("--seed", type=int, default=0, help="the same seed gives the same pictures (default 0)")
    add("--run", help="folder of another pair, or the name of a run in the runs folder, such as original")
    add("--decoder", choices=("soft", *DECODERS), default="soft", help="what draws the codes (default soft)")
    add("--out", default="generated.png", help="default: generated.png")
    options = parser.parse_args(arguments)
    knobs = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "guidance", "seed")}
    with in_words("Stopped: no picture was written."):
        out = expand(options.out)
        check_writable(out)
        pair = load_pair(options.run, captions=not are_classes(options.classes), decoder=options.decoder)
        pair.save_png(out, pair.generate(options.classes, options.n, **knobs), columns=options.n)
        print(f"{options.n * len(options.classes)} pictures in {out}")


if __name__ == "__main__":
    main()
