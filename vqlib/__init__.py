"""vqlib: the two-stage image generator behind DALL·E 1, in miniature, on Fashion-MNIST.

    pair = vqlib.load_pair()
    images = pair.generate("Ankle boot", n=8)

Data flows one way: ``data -> vqvae -> tokens -> transformer -> sampling``, one module for each of notebooks 01 to 05.
"""

import os

__version__ = "0.2.0"


def fast():
    """Whether VQLIB_FAST=1 asks for the tests' speed: small numbers, on the mini set, away from ``runs/``."""
    return os.environ.get("VQLIB_FAST") == "1"


from vqlib.pair import Pair, load_pair  # noqa: E402 (it needs what stands above)
