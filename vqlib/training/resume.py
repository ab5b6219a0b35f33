"""What surrounds the steps of a run: checkpoints, interruptions, the history, and earlier runs of the same name."""

import collections
import contextlib
import itertools
import os
import re
import signal
import threading
import time

from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from vqlib import checkpoints, files
from vqlib.training import devices, distributed


class Run:
    """A run in progress: how far it is (``step``), what it has recorded (``history``), and how it is saved."""

    def __init__(self, stage, path, data_id):
        self.stage, self.step, self.saved, self.asked_to_stop = stage, 0, 0, False
        self.checkpoint = checkpoint_of(path) if path else None
        self.identity = {"recipe": stage.recipe.as_json(), "data": data_id, "size": stage.size}
        self.history = {"steps": [], "epochs": [], "seconds": 0.0, "device": stage.device.type}
        self.history |= {"bf16": stage.bf16, "bf16_gain": stage.bf16_gain}

    def stepped(self, batch, loss):
        self.step, self.loss = self.step + 1, loss.detach()
        self.stage.totals["pictures"] += len(batch.examples())
        self.bar.update()

    def log(self):
        """Add a row to the history: the last loss, and the stage's figures since the row before."""
        for total in self.stage.totals.values():
            distributed.all_reduce(total)
        loss = distributed.all_reduce(self.loss / distributed.world_size())
        self.check_finite({"loss": loss, **self.stage.modules.state_dict()})
        figures = {"loss": loss.item(), **self.stage.metrics()}
        for total in self.stage.totals.values():
            total.zero_()
        self.history["steps"].append({"step": self.step, **figures})
        shown = itertools.islice(figures.items(), 2)  # more would leave no room for the bar in a terminal
        self.bar.set_postfix({name: f"{figure:.4g}" for name, figure in shown})

    def save(self):
        """Write a checkpoint, if the run has a path; if anything in it is not finite, the last good one stays."""
        self.history["seconds"] = time.perf_counter() - self.began
        tensors = self.stage.modules.state_dict()
        tensors |= {f"totals.{name}": distributed.all_reduce(t.clone()) for name, t in self.stage.totals.items()}
        for n, optimizer in enumerate(itertools.chain(*self.optimizers)):
            for i, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{n}.{i}.{name}": tensor for name, tensor in state.items()}
        self.check_finite({"loss": self.loss, **tensors})
        if self.checkpoint and distributed.rank() == 0:
            info = {"identity": self.identity, "step": self.step, "history": self.history}
            checkpoints.save(self.checkpoint, "training state", tensors, **info)
            self.saved = self.step

    def check_finite(self, tensors):
        if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            remedy = f"Try a lower learning rate than {self.stage.recipe.learning_rate}, or mixed_precision=False"
            raise FloatingPointError(f"the {broken[0]} became infinite or NaN by step {self.step}. {remedy}")

    def load(self):
        """Resume from the checkpoint. Raises ValueError if it is another run's, or doesn't fit."""
        tensors, info = checkpoints.read(self.checkpoint, "training state")
        weights, states = {}, collections.defaultdict(lambda: collections.defaultdict(dict))
        try:
            for key, value in self.identity.items():
                if info["identity"][key] != value:
                    raise ValueError(f"{key}: {_difference(info['identity'][key], value)}")
            for name, tensor in tensors.items():
                match name.split("."):
                    case ["totals", total]:  # over all processes: it goes on in the first, and in the others from 0
                        self.stage.totals[total].copy_(tensor * (distributed.rank() == 0))
                    case ["optimizer", n, i, moment]:
                        states[int(n)][int(i)][moment] = tensor
                    case _:
                        weights[name] = tensor
            self.stage.modules.load_state_dict(weights)
            if info["history"]["device"] == self.stage.device.type:
                self.stage.bf16 = info["history"]["bf16"]  # in which the run began, whatever was measured now
            self.optimizers = self.stage.optimizers()
            for n, optimizer in enumerate(itertools.chain(*self.optimizers)):
                optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(states.pop(n, {}))})
            if states:
                raise ValueError("it has the states of other optimizers")
            self.step = self.saved = int(info["step"])
            self.history |= info["history"]
        except Exception as error:  # whatever a file of another version, or made by hand, raises
            why = f"only one of them has {error}" if isinstance(error, KeyError) else error
            words = f"{self.checkpoint} is the checkpoint of a run of another recipe, data or version ({why})"
            remedy = "Move it away to start afresh, or set VQLIB_RUNS to another folder to keep both"
            raise ValueError(f"{words}. {remedy}") from error


def _difference(there, here, path=""):
    """The first thing in which two descriptions of a run differ, in words."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**there, **here}:
            if there.get(key) != here.get(key):
                usual = "adamw" if key == "optimizer" else None  # left out, see `Recipe.as_json`
                return _difference(there.get(key, usual), here.get(key, usual), f"{path}{key} ")
    return f"{path}{there!r} there, {here!r} here"


@contextlib.contextmanager
def run(stage, path, data_id, steps, progress):
    """Yields a `Run`, new or gone on with. If it ends early, the way to go on is said in words."""
    B, processes = stage.recipe.batch_size, distributed.world_size()
    if processes > (least := (stage.size - 1) % B + 1):
        words = f"the last batch of an epoch has {least} of {stage.size} examples, too few for {processes} processes"
        raise ValueError(f"{words}: start fewer of them")
    if path:
        files.check_writable(path)
    now = Run(stage, path, data_id)
    with only_run(path), devices.own_state(stage.device), ctrl_c_waits(now):
        if now.checkpoint and now.checkpoint.is_file():
            now.load()
            if progress:
                distributed.say(f"going on from step {now.step} ({now.checkpoint})")
        else:
            stage.initialise()
            now.optimizers = stage.optimizers()
        if progress:
            distributed.say(precision(stage))
        if processes > 1:
            stage.parallel = {name: DistributedDataParallel(module) for name, module in stage.modules.items()}
        stage.model.train()
        now.began = time.perf_counter() - now.history["seconds"]
        name, quiet = f"{type(stage.model).__name__} ({stage.recipe.name})", not progress or distributed.rank() > 0
        now.bar = tqdm(total=steps, initial=now.step, desc=name, disable=quiet, mininterval=1.0)
        try:
            yield now
            if now.asked_to_stop:
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            now.bar.close()  # or the words would stand on its line
            kept = f"{now.checkpoint} is of step {now.saved}: the same command, or cell, goes on from there."
            words = f"Stopped at step {now.step}. {kept if now.saved else 'No checkpoint was written.'}"
            distributed.say(words)
            raise KeyboardInterrupt(words) from None
        except (RuntimeError, MemoryError) as error:  # PyTorch's own errors of this kind are RuntimeErrors
            if isinstance(error, RuntimeError) and not re.search("(out of|allocate|enough) memory", str(error)):
                raise
            words = f"out of memory at step {now.step + 1}, with {B} examples in a batch. Try another device, or a"
            raise MemoryError(f"{words} smaller batch: --batch-size {B // 2 or 1} or recipe.batch_size") from error
        finally:
            now.bar.close()


def precision(stage):
    """In which precision the stage computes, and why, in words."""
    chosen = f"computing in {'bf16' if stage.bf16 else 'float32'}"
    if not stage.bf16_gain:  # nothing was measured
        return f"{chosen}, as {'it must on this device' if stage.recipe.mixed_precision else 'the recipe says'}"
    gain = f"{stage.bf16_gain:.2g} times as fast"
    return f"{chosen}: bf16 multiplies matrices {gain}, and pays from {devices.BF16_PAYS} on"


@contextlib.contextmanager
def ctrl_c_waits(now):
    """Within it the first Ctrl-C only sets ``now.asked_to_stop``, so that a step is not cut in two; a second one cuts.

    This holds if Ctrl-C means what it usually does, and in a single process: several would stop at different steps.
    """
    usual, main_thread = signal.default_int_handler, threading.current_thread() is threading.main_thread()
    waits = signal.getsignal(signal.SIGINT) is usual and main_thread and distributed.world_size() == 1

    def note(number, frame):
        now.asked_to_stop = True
        signal.signal(signal.SIGINT, usual)

    if waits:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        if waits:
            signal.signal(signal.SIGINT, usual)


def only_run(path):
    """A block in which no other process trains into ``path``: whoever comes second is refused. It may be nested.

    With several processes the first one stands for all. A finished run in a folder that can only be read needs none.
    """
    read_only = path and os.path.isfile(path) and not os.access(files.expand(path).parent, os.W_OK)
    return contextlib.nullcontext() if not path or read_only or distributed.rank() > 0 else files.only_writer(path)


def checkpoint_of(path):
    return files.expand(path).with_suffix(".resume.safetensors")


def save_result(path, model, dtype):
    """Save a trained model in place of its checkpoint. A file that stood there before is kept, with a number added."""
    if distributed.rank() == 0:
        fresh = path.with_suffix(".new.safetensors")  # only when this is on the disk is the old one renamed
        checkpoints.save_model(fresh, model, dtype, **model.info)
        if path.is_file():
            names = (path.with_suffix(f".{n}.safetensors") for n in itertools.count(1))
            kept = path.rename(next(name for name in names if not name.exists()))
            distributed.say(f"the earlier run that was {path} is kept as {kept.name}")
        fresh.replace(path)
        checkpoint_of(path).unlink(missing_ok=True)
    distributed.barrier()  # the next stage of each process reads this file
    model.info["path"] = str(path)
