"""Runs that come to a bad end, each in a process of its own: test_training.py and test_faults.py start them."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import pictures, run, stop_at

from vqlib import checkpoints
from vqlib.training import loop

# Where a run can be killed: the owner of a function, its name, and whether to die after its work is done or before it.
PLACES = {
    "a step begins": (loop, "seed_step", False),
    "the weights were changed": (torch.optim.AdamW, "step", True),
    "a new checkpoint is in part on the disk": (os, "fsync", False),
    "a new checkpoint is not yet in place": (os, "replace", False),
    "a new checkpoint is in place": (os, "replace", True),
}


def train(recipe, path, threads=1, n=90):
    """A run that logs and saves every two steps."""
    torch.set_num_threads(threads)
    loop.fit = partial(loop.fit, log_every=2, save_every=2)
    run(recipe, pictures(n), path)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at_step(recipe, path, threads, step):
    stop_at(pytest.MonkeyPatch(), step, die)
    train(recipe, path, threads)


def killed_at_place(recipe, path, place, count):
    """Die at the ``count``-th time that the run comes to this place."""
    owner, name, after = PLACES[place]
    function, calls = getattr(owner, name), []

    def deadly(*arguments, **options):
        calls.append(1)
        if len(calls) == count and not after:
            die()
        result = function(*arguments, **options)
        if len(calls) == count:
            die()
        return result

    setattr(owner, name, deadly)
    train(recipe, path)


def on_a_full_disk(recipe, path, threads, said, save_number=3):
    """From this save on the system lets no file grow beyond 10 kB, so the write breaks off. The result is the 7th."""
    import resource  # POSIX only

    save, calls = checkpoints.save, []

    def filling(*arguments, **info):
        calls.append(1)
        if len(calls) == save_number:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        save(*arguments, **info)

    checkpoints.save = filling
    noting(said, OSError, train, recipe, path, threads)


def short_of_memory(recipe, path, said):
    """The process may take 300 MB more than it has."""
    import resource

    torch.ones(10) @ torch.ones(10)  # what the first product loads doesn't count
    room = 300_000_000 + int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    noting(said, MemoryError, train, recipe, path, 1, 1600)


def noting(said, kind, function, *arguments):
    """Call the function, and write the error of this kind that it raises to the file ``said``."""
    try:
        function(*arguments)
    except kind as error:
        Path(said).write_text(str(error), encoding="utf-8")
