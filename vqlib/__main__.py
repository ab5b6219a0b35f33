"""Draw pictures from the command line, with the shipped pair or your own:

python -m vqlib generate "Ankle boot" --n 8 --temperature 0.8 --seed 0 --out boots.png
"""

import argparse

from vqlib.checkpoints import DECODERS
from vqlib.commands import in_words
from vqlib.data import CLASS_NAMES
from vqlib.files import check_writable, expand
from vqlib.pair import load_pair


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="vqlib", description="The two-stage image generator, in miniature.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="generate")
    generate = commands.add_parser("generate", help="draw pictures of one or more classes into a PNG file")
    add = generate.add_argument
    add("classes", nargs="+", metavar="CLASS", help=f"a name or number: {', '.join(CLASS_NAMES)}")
    add("--n", type=int, default=8, help="pictures of each class (default 8)")
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
        pair = load_pair(options.run, decoder=options.decoder)
        pair.save_png(out, pair.generate(options.classes, options.n, **knobs), columns=options.n)
        print(f"{options.n * len(options.classes)} pictures in {out}")


if __name__ == "__main__":
    main()
