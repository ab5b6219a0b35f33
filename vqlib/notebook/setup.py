"""The first lines of a notebook: the numbers it runs with, what it runs on, and where its runs are kept."""

import os
import sys

import torch

import vqlib
from vqlib import checkpoints


def pick(full, small):
    """A number for a notebook: ``full``, or ``small`` where VQLIB_FAST=1 asks for the speed of the tests."""
    return small if vqlib.fast() else full


def versions(device="cpu"):
    """One line that says what a notebook runs on: versions, device and random seed."""
    where = f"{device}, {torch.get_num_threads()} threads"
    if "cuda" in str(device):
        where = torch.cuda.get_device_name(device)
    python = sys.version.split()[0]
    return f"Python {python}, torch {torch.__version__}, vqlib {vqlib.__version__}, device {where}, random seed 0"


def keep_on_drive():
    """Keep the runs on Google Drive, so that they outlive the Colab machine. Colab asks for permission first.

    Raises RuntimeError outside Colab.
    """
    try:
        from google.colab import drive
    except ImportError as error:
        raise RuntimeError(
            "keep_on_drive works only in Colab. Elsewhere, set VQLIB_RUNS to a folder that you want to keep the runs in"
        ) from error
    drive.mount("/content/drive")
    os.environ["VQLIB_RUNS"] = "/content/drive/MyDrive/vqvae-from-scratch/runs"
    print(f"Runs are kept in {checkpoints.runs_folder()}.")
