"""The training loop that all stages share.

Everything random in step t is drawn from (seed, t): the order of the data, dropout, revived codes. So a run that was
killed goes on from its last checkpoint and ends with the same weights as a run that was not.
"""

import functools
import math
from typing import NamedTuple

import torch

from vqlib.training import distributed, resume
from vqlib.training.recipes import learning_rate


class Batch(NamedTuple):
    """The indices of the global batch, and the slice of it that this process computes."""

    index: torch.Tensor  # (B,) int64
    mine: slice = slice(None)
    generator: torch.Generator | None = None  # the same in all processes

    def examples(self):
        return self.index[self.mine]

    @property
    def weight(self):
        """What makes DDP's average over the processes the mean over the global batch; 1 in a single process."""
        return len(self.examples()) * distributed.world_size() / len(self.index)

    def happens(self, probability):
        """Whether something of this probability happens, for each example of this process: (b,) bool on the CPU."""
        drawn = torch.rand(len(self.index), generator=self.generator)  # for all, however the batch is divided
        return drawn[self.mine] < probability


def fit(stage, validation=None, path=None, data_id="", progress=True, log_every=50, save_every=200):
    """Train ``stage.model`` by ``stage.recipe`` and return the history.

    validation: scored by ``stage.evaluate`` after each epoch. path: where the result will be saved; checkpoints are
    kept beside it, and a run goes on from the one it finds. data_id: says which data this is; a checkpoint of other
    data or of another recipe is refused. Ctrl-C ends the step, saves a checkpoint and raises KeyboardInterrupt; a
    second Ctrl-C breaks the step off. Returns {"steps": [...], "epochs": [...], "seconds", "device", "bf16"}.
    Raises ValueError if the checkpoint doesn't fit, FloatingPointError if the loss is not finite, MemoryError.
    """
    recipe, optimizers = stage.recipe, stage.optimizers()
    steps_per_epoch = math.ceil(stage.size / recipe.batch_size)
    steps = recipe.epochs * steps_per_epoch
    with resume.run(stage, optimizers, path, data_id, steps, progress) as run:
        for step in range(run.step, steps):
            epoch, at = divmod(step, steps_per_epoch)
            batch = draw_batch(stage, step, epoch, at)
            for optimizer, loss in zip(optimizers, stage.losses(batch), strict=True):  # one; adversaries take turns
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(recipe, step, steps_per_epoch)
                loss = loss * batch.weight
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            stage.after_step(batch)

            last = at + 1 == steps_per_epoch
            run.stepped(loss)
            if last or (at + 1) % log_every == 0:
                run.log()
            if last and validation is not None:
                run.evaluate(epoch + 1, validation)
            if last or (at + 1) % save_every == 0 or run.asked_to_stop:
                run.save()
            if run.asked_to_stop:
                raise KeyboardInterrupt
    stage.model.eval()
    return run.history


def draw_batch(stage, step, epoch, at):
    """The ``at``-th batch of an epoch. From here on, what is random in this step comes from (seed, step)."""
    recipe = stage.recipe
    order = epoch_order(stage.size, recipe.seed * 1000 + epoch)
    index = order[at * recipe.batch_size : (at + 1) * recipe.batch_size].to(stage.device)
    return Batch(index, distributed.shard(len(index)), seed_step(recipe.seed, step))


@functools.lru_cache(maxsize=1)
def epoch_order(size, seed):
    """The order in which one epoch goes through the data: (size,) int64."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def seed_step(seed, step):
    """Seed what is random in a step. Returns a generator, the same in all processes; dropout is each process's own."""
    number = seed * 1_000_003 + step + 1
    if distributed.world_size() == 1:
        torch.manual_seed(number)
        return torch.default_generator
    torch.manual_seed((1009 * number + distributed.rank() + 1) % 2**63)
    return torch.Generator().manual_seed(number)
