"""What surrounds the steps of a run: checkpoints, interruptions, the history, and runs that are already finished."""

import contextlib
import itertools
import os
import re
import signal
import threading
import time

import torch
from tqdm import tqdm

from vqlib import checkpoints
from vqlib.training import distributed
from vqlib.training.devices import own_randomness
from vqlib.training.distributed import say


class Run:
    """A run in progress: how far it is (``step``), what it has recorded (``history``), and how it is saved."""

    def __init__(self, stage, optimizers, path, data_id):
        self.stage, self.optimizers, self.step, self.saved = stage, optimizers, 0, 0
        self.checkpoint = checkpoint_of(path) if path else None
        self.identity = {"recipe": stage.recipe.as_json(), "data": data_id, "size": stage.size}
        self.history = {"steps": [], "epochs": [], "seconds": 0.0, "device": stage.device.type, "bf16": stage.bf16}
        self.asked_to_stop = []  # not empty once Ctrl-C was pressed

    def stepped(self, loss):
        self.step, self.loss = self.step + 1, loss.detach()
        self.bar.update()

    def log(self):
        """Add a row to the history: the last loss, and the stage's figures since the row before."""
        for total in self.stage.totals.values():
            distributed.all_reduce(total)
        loss = self.finite("loss", distributed.all_reduce(self.loss / distributed.world_size())).item()
        figures = {"loss": loss, **self.stage.metrics()}
        for total in self.stage.totals.values():
            total.zero_()
        self.history["steps"].append({"step": self.step, **figures})
        self.bar.set_postfix({name: f"{figure:.4g}" for name, figure in figures.items()})

    def evaluate(self, epoch, validation):
        self.stage.model.eval()
        self.history["epochs"].append({"epoch": epoch, **self.stage.evaluate(validation)})
        self.stage.model.train()

    def finite(self, name, tensor):
        if not tensor.isfinite().all():
            remedy = f"Try a lower learning rate than {self.stage.recipe.learning_rate}, or mixed_precision=False"
            raise FloatingPointError(f"the {name} became infinite or NaN by step {self.step}. {remedy}")
        return tensor

    def save(self):
        """Write a checkpoint; if anything in it is not finite, the last good one stays."""
        if self.checkpoint is None:
            return
        totals = {name: distributed.all_reduce(total.clone()) for name, total in self.stage.totals.items()}
        if distributed.rank() == 0:
            self.finite("loss", self.loss)
            self.history["seconds"] = self.seconds()
            tensors = {f"totals.{name}": total for name, total in totals.items()}
            for part, module in self.stage.modules.items():
                tensors |= {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
            for number, optimizer in enumerate(self.optimizers):
                for i, state in optimizer.state_dict()["state"].items():
                    tensors |= {f"optimizer.{number}.{i}.{name}": tensor for name, tensor in state.items()}
            info = {"identity": self.identity, "step": self.step, "history": self.history}
            tensors = {name: self.finite(name, tensor) for name, tensor in tensors.items()}
            checkpoints.save(self.checkpoint, "training state", tensors, **info)
        self.saved = self.step

    def load(self):
        """Go on from the checkpoint. Raises ValueError if it is another run's, or doesn't fit."""
        tensors, info = checkpoints.read(self.checkpoint, "training state")
        known, afresh = info.get("identity"), "Delete it to start afresh"
        if known != self.identity:
            known = known if isinstance(known, dict) else {}
            differs = " and ".join(key for key in self.identity if known.get(key) != self.identity[key])
            words = f"{self.checkpoint} is the checkpoint of another run (different {differs}). {afresh}"
            raise ValueError(f"{words}, or set VQLIB_RUNS to another folder to keep both")
        try:
            for part, module in self.stage.modules.items():
                module.load_state_dict(_under(f"{part}.", tensors))
            for name, total in self.stage.totals.items():
                total.copy_(tensors[f"totals.{name}"] if distributed.rank() == 0 else torch.zeros_like(total))
            for number, optimizer in enumerate(self.optimizers):
                self._load_optimizer(optimizer, f"optimizer.{number}.", tensors)
            self.step = self.saved = int(info["step"])
            self.history = {key: info["history"][key] for key in self.history}
        except Exception as error:  # whatever a file made by hand raises
            raise ValueError(f"{self.checkpoint} is not a checkpoint of this model ({error!r}). {afresh}") from error

    def _load_optimizer(self, optimizer, prefix, tensors):
        state, parameters = {}, [p for group in optimizer.param_groups for p in group["params"]]
        for key, tensor in _under(prefix, tensors).items():
            i, name = key.split(".")
            state.setdefault(int(i), {})[name] = tensor
            if tensor.shape not in (parameters[int(i)].shape, ()):
                raise ValueError(f"{prefix}{key} has the shape {tuple(tensor.shape)}")
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

    def seconds(self):
        return self.spent + time.perf_counter() - self.began


def _under(prefix, tensors):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@contextlib.contextmanager
def run(stage, optimizers, path, data_id, steps, progress):
    """Yields a `Run`, new or gone on with. If it ends early, the way to go on is said in words."""
    least, processes = (stage.size - 1) % stage.recipe.batch_size + 1, distributed.world_size()
    if processes > least:
        words = f"the last batch of an epoch has {least} of {stage.size} examples, too few for {processes} processes"
        raise ValueError(f"{words}: start fewer of them")
    if path:
        checkpoints.check_writable(path)
    now = Run(stage, optimizers, path, data_id)
    with own_randomness(stage.device), ctrl_c_waits(now.asked_to_stop):
        if now.checkpoint and now.checkpoint.is_file():
            now.load()
            if progress:
                say(f"going on from step {now.step} ({now.checkpoint})")
        else:
            stage.initialise()
        stage.parallel = {name: distributed.data_parallel(module) for name, module in stage.modules.items()}
        stage.model.train()
        now.began, now.spent = time.perf_counter(), now.history["seconds"]
        name, quiet = f"{type(stage.model).__name__} ({stage.recipe.name})", not progress or distributed.rank() > 0
        now.bar = tqdm(total=steps, initial=now.step, desc=name, disable=quiet, mininterval=1.0)
        try:
            yield now
        except KeyboardInterrupt:
            kept = (
                f"The last checkpoint, {now.checkpoint}, is of step {now.saved}: the same command goes on from there."
            )
            say(f"Stopped at step {now.step}. {kept if now.saved else 'No checkpoint was written.'}")
            raise
        except (RuntimeError, MemoryError) as error:  # PyTorch's own errors of this kind are RuntimeErrors
            words = re.search("out of memory|allocate memory|enough memory", str(error))
            if isinstance(error, RuntimeError) and not words:
                raise
            B = stage.recipe.batch_size
            remedy = (
                f"Try a smaller batch (--batch-size {max(1, B // 2)}, or batch_size in the recipe) or another device"
            )
            raise MemoryError(
                f"out of memory at step {now.step + 1}, with {B} examples in a batch. {remedy}"
            ) from error
        finally:
            now.bar.close()
        now.history["seconds"] = now.seconds()


@contextlib.contextmanager
def ctrl_c_waits(asked):
    """Within it the first Ctrl-C is only noted in the list ``asked``, so that a step is not cut in two.

    This holds if Ctrl-C means what it usually does, and in a single process: several would stop at different steps.
    """

    def note(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(True)

    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler and distributed.world_size() == 1
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def checkpoint_of(path):
    return checkpoints.expand(path).with_suffix(".resume.safetensors")


def finished(path, recipe, data_id, load):
    """The model that stands at ``path`` if it is a finished run of this recipe on this data, else None."""
    path = path and checkpoints.expand(path)
    if not path or not path.is_file():
        return None
    model = load(path)
    if model.info.get("recipe") != recipe.as_json() or model.info.get("data") != data_id:
        return None  # another run's: it stays until the new run is done, and is then kept, see `finish`
    if distributed.rank() == 0:
        checkpoint_of(path).unlink(missing_ok=True)  # left behind if a run was killed at its very end
    say(f"{path} is a finished run of this recipe on this data: loaded. Move it away to train again.")
    return model


def finish(model, path, info, dtype=None):
    """Save the result of a run, keep what stood there before under another name, and return the model."""
    model.info = info
    if path is not None:
        path = checkpoints.expand(path)
        if distributed.rank() == 0:
            if path.is_file():
                names = (path.with_suffix(f".{n}.safetensors") for n in itertools.count(1))
                kept = next(name for name in names if not name.exists())
                os.replace(path, kept)
                say(f"the earlier run that was {path} is kept as {kept.name}")
            checkpoints.save_model(path, model, dtype, **info)
            checkpoint_of(path).unlink(missing_ok=True)
        distributed.barrier()  # the next stage of each process reads this file
        model.info = {**info, "path": str(path)}
    return model
