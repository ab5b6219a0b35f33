"""Training in several processes, one per GPU or per share of the cores, as PyTorch's `torchrun` starts them.

Each process takes its part of every batch, and DistributedDataParallel averages the gradients. What depends on the
whole batch (moving averages, revived codes) every process computes from all of it, with the same random numbers. So
the codebooks stay equal, and apart from rounding and dropout a run doesn't depend on the number of processes.
"""

import contextlib
import os

import torch
import torch.distributed as dist


def launched():
    """Whether `torchrun` started this process."""
    return "LOCAL_RANK" in os.environ


@contextlib.contextmanager
def process_group(device):
    """Within it the processes that `torchrun` started work together: over NCCL if ``device`` is "cuda", else Gloo."""
    if not launched():
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # from now on "cuda" is this process's own
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_size():
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank():
    """0 in the process that writes and prints, and if there is only one."""
    return dist.get_rank() if world_size() > 1 else 0


def barrier():
    """Wait until all processes have come this far."""
    if world_size() > 1:
        dist.barrier()


def say(text):
    """Print, in one process only."""
    if rank() == 0:
        print(text)


def shard(n):
    """The slice of a batch of n pictures that is this process's part; the slices of all processes make the batch."""
    return slice(rank() * n // world_size(), (rank() + 1) * n // world_size())


def all_reduce(tensor):
    """Replace a tensor by its sum over all processes, and return it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def mean(number, device):
    """The mean of a number over all processes, so that all of them choose the same by it."""
    return (all_reduce(torch.tensor(number, dtype=torch.float32, device=device)) / world_size()).item()


def all_gather(part, batch):
    """The rows of the whole batch, (B, …), of which each process has those of its own part."""
    whole = part.new_zeros(len(batch.index), *part.shape[1:])
    whole[batch.mine] = part
    return all_reduce(whole)
