"""vqlib: the two-stage image generator behind DALL·E 1, in miniature, on Fashion-MNIST.

Data flows one way: ``data -> vqvae -> tokens -> transformer -> sampling``. One module for each notebook
(01 data, 02 vqvae, 03 tokens, 04 transformer, 05 sampling); the others are shared by all of them.
"""

import os
import sys

__version__ = "0.1.0"


def fast():
    """Whether VQLIB_FAST=1 asks for the tests' speed: small numbers, on the embedded sample, away from ``runs/``."""
    return os.environ.get("VQLIB_FAST") == "1"


def pick(full, small):
    """A number for a notebook: ``full``, or ``small`` at the tests' speed."""
    return small if fast() else full


def versions(device="cpu"):
    """One line that says what a notebook runs on."""
    import torch

    where = f"{device}, {torch.get_num_threads()} threads"
    if "cuda" in str(device):
        where = torch.cuda.get_device_name(device)
    python = sys.version.split()[0]
    return f"Python {python}, torch {torch.__version__}, vqlib {__version__}, device {where}, random seed 0"
