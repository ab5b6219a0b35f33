"""Training in several processes, one a GPU or a share of the cores, as PyTorch's launcher starts them:

    torchrun --nproc-per-node 2 -m vqlib.training all

Each process takes its part of every batch, and DistributedDataParallel averages the gradients. What depends on the
whole batch (moving averages, revived codes) each process computes from the whole batch, with the same random numbers:
so the codebooks stay equal, and a run is the same, to rounding and but for dropout, whatever the number of processes.
"""

import contextlib
import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def launched():
    """Whether `torchrun` started this process."""
    return "LOCAL_RANK" in os.environ


@contextlib.contextmanager
def processes(device):
    """Within it the processes that `torchrun` started work together: NCCL where ``device`` is "cuda", else Gloo."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # "cuda" is this process's own from now on
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def count():
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank():
    """0 in the process that writes and prints, and where there is only one."""
    return dist.get_rank() if count() > 1 else 0


def wait():
    """Go on when all processes have come this far."""
    if count() > 1:
        dist.barrier()


def wrap(model):
    """The model whose gradients are averaged over all processes; the model itself where there is one."""
    return DistributedDataParallel(model) if count() > 1 else model


def share(n):
    """Which of a batch's n pictures are this process's: a slice, whose slices side by side are the batch."""
    return slice(rank() * n // count(), (rank() + 1) * n // count())


def sum_up(tensor):
    """Replace a tensor by the sum over all processes, and return it."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather(part, mine, n):
    """The whole batch, (n, …), of which each process has the rows ``mine``: zeros but for those, added up."""
    if count() == 1:
        return part
    whole = part.new_zeros(n, *part.shape[1:])
    whole[mine] = part
    return sum_up(whole)
