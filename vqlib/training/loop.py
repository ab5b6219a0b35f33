"""The training loop that all stages share.

All that is random comes from the seed: the order of the data from (seed, epoch), dropout and revived codes from
(seed, step). So a run that was killed resumes from its last checkpoint and ends with the same weights as a run that
was not.
"""

import functools
import math
from typing import NamedTuple

import torch

from vqlib.training import distributed, resume
from vqlib.training.recipes import Recipe
from vqlib.transformer import eval_mode


class Batch(NamedTuple):
    """The indices of the global batch, and the slice of it that this process computes."""

    index: torch.Tensor  # (B,) int64
    mine: slice = slice(None)
    generator: torch.Generator | None = None  # the same in all processes
    done: float = 0.0  # the share of the run's steps that lie behind this one, in [0, 1)

    def examples(self):
        return self.index[self.mine]

    @property
    def weight(self):
        """The factor for this process's mean loss, 1 in a single process.

        DistributedDataParallel averages gradients as if every process had the same number of examples. So with W
        processes, one that has b of the B examples must count b · W / B.
        """
        return len(self.examples()) * distributed.world_size() / len(self.index)

    def happens(self, probability):
        """For each example of this process, draw True with this probability: (b,) bool, on the CPU."""
        # For the whole batch, however it is divided.
        drawn = torch.rand(len(self.index), generator=self.generator, dtype=torch.float32, device="cpu")
        return drawn[self.mine] < probability


def fit(stage, validation=None, path=None, data_id="", progress=True, log_every=50, save_every=200):
    """Train ``stage.model`` by ``stage.recipe`` and return the history. stage: see `stages.Stage`.

    validation: scored by ``stage.evaluate`` after each epoch. path: where the result will be saved, if anywhere;
    checkpoints are kept beside it, and a run resumes from the one it finds. data_id: says which data this is; a
    checkpoint of other data or of another recipe is refused. After Ctrl-C the step is finished and a checkpoint saved,
    then KeyboardInterrupt is raised; a second Ctrl-C aborts the step. Returns {"steps": [...], "epochs": [...], …}.
    Raises ValueError if the checkpoint doesn't fit, FloatingPointError if loss or weights are no longer finite, and
    MemoryError if there is too little memory.
    """
    recipe = stage.recipe
    steps_per_epoch = math.ceil(stage.size / recipe.batch_size)
    steps = recipe.epochs * steps_per_epoch
    with resume.run(stage, path, data_id, steps, progress) as run:  # calls model.train()
        for step in range(run.step, steps):
            epoch, at = divmod(step, steps_per_epoch)
            batch = draw_batch(stage, step, epoch, at)._replace(done=step / steps)
            # Usually there is one loss. Adversarial training has two, and as `losses` is a generator, the second is
            # computed after the step on the first.
            for optimizers, loss in zip(run.optimizers, stage.losses(batch), strict=True):
                loss = loss * batch.weight
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss.backward()
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate(recipe, step, steps_per_epoch)
                    optimizer.step()
            stage.after_step(batch)

            run.stepped(batch, loss)
            epoch_ends = at + 1 == steps_per_epoch
            if epoch_ends or (at + 1) % log_every == 0:
                run.log()
            if epoch_ends and validation is not None:
                with eval_mode(stage.model):
                    run.history["epochs"].append({"epoch": epoch + 1, **stage.evaluate(validation)})
            stopping = run.asked_to_stop
            if epoch_ends or stopping or (at + 1) % save_every == 0:
                run.save()
            if stopping:
                break  # out of `run`, which raises KeyboardInterrupt
    stage.model.eval()
    return run.history


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate of step ``step``, counted from 0."""
    factor = 1.0
    if recipe.schedule == "cosine":
        factor = (1 + math.cos(math.pi * step / (recipe.epochs * steps_per_epoch))) / 2
    elif recipe.schedule == "drop" and step >= recipe.drop_epoch * steps_per_epoch:
        factor = recipe.drop_factor
    return recipe.learning_rate * factor * min(1.0, (step + 1) / max(1, recipe.warmup_steps))


def draw_batch(stage, step, epoch, at):
    """The ``at``-th batch of an epoch, and everything random of this step seeded."""
    recipe = stage.recipe
    order = epoch_order(stage.size, recipe.seed * 1000 + epoch)
    index = order[at * recipe.batch_size : (at + 1) * recipe.batch_size].to(stage.device)
    generator = seed_step(recipe.seed, step)  # dropout too, so that a resumed run repeats it
    return Batch(index, distributed.shard(len(index)), generator)


@functools.lru_cache(maxsize=1)
def epoch_order(size, seed):
    """The order in which one epoch goes through the data: (size,) int64. Kept, since each of its steps asks for it."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed), device="cpu")


def seed_step(seed, step):
    """Seed what is random in a step. Returns a generator, the same in all processes; dropout is each process's own."""
    number = seed * 1_000_003 + step + 1  # large strides keep seeds, steps and ranks apart
    if distributed.world_size() == 1:
        torch.manual_seed(number)
        return torch.default_generator
    torch.manual_seed((1009 * number + distributed.rank() + 1) % 2**63)
    return torch.Generator().manual_seed(number)
