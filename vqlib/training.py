"""Training both stages, and the classifiers that judge samples, from a notebook or from the command line.

    python -m vqlib.training all                      # both stages by the recipe of the shipped weights, into runs/
    python -m vqlib.training all --recipe ancestor    # by the ancestor's recipe, into runs/ancestor/
    python -m vqlib.training all --holdout            # choosing: train on 55,000, score the 5,000 held out
    python -m vqlib.training classifiers              # the two that judge samples
    torchrun --nproc-per-node 2 -m vqlib.training all    # in two processes (distributed.py)

All that is random in step t is drawn from (seed, t): data order, dropout, revived codes. So a run that was killed goes
on from its last checkpoint and ends with the weights of a run that was not.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import math
import os
import re
import signal
import sys
import threading
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from tqdm import tqdm

from vqlib import checkpoints, data, distributed, evaluation
from vqlib.classifier import Classifier, ClassifierConfig, accuracy
from vqlib.sampling import sample
from vqlib.tokens import END_TOKEN, encode_pixels, perplexity, to_sequences
from vqlib.transformer import Transformer, TransformerConfig
from vqlib.vqvae import VQVAE, VQVAEConfig

# --- recipes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str
    epochs: int
    batch_size: int
    learning_rate: float
    schedule: str = "constant"          # "constant"; "drop": × drop_factor from drop_epoch on; "cosine": to zero
    drop_epoch: int = 0
    drop_factor: float = 1.0
    warmup_steps: int = 0               # the rate rises linearly over these
    weight_decay: float = 0.0           # decoupled (AdamW, arXiv 1711.05101), on matrices only
    betas: tuple[float, float] = (0.9, 0.999)
    mixed_precision: bool = True        # bf16 autocast where the hardware has bf16 (a T4 has not), else float32
    seed: int = 0

    def __post_init__(self):
        for name, least in (("epochs", 1), ("batch_size", 1), ("drop_epoch", 0), ("warmup_steps", 0), ("seed", 0)):
            data.check_whole(name, getattr(self, name), least)
        for name in ("learning_rate", "drop_factor", "weight_decay"):
            data.check_number(name, getattr(self, name), 0)
        for beta in self.betas:
            data.check_number("each of betas", beta, 0, 1)
        if self.schedule not in ("constant", "drop", "cosine"):
            raise ValueError(f"schedule must be 'constant', 'drop' or 'cosine', got {self.schedule!r}")


@dataclass(frozen=True, kw_only=True)
class VQVAERecipe(Recipe):
    model: VQVAEConfig = field(default_factory=VQVAEConfig)
    beta: float = 0.25                  # weight of the commitment loss
    kmeans_init: bool = False           # start the codebook at k-means centres of the untrained encoder's vectors
    ema_decay: float = 0.99             # where model.ema
    revive_below: float = 0.0           # a code used less than this fraction of an even share restarts; 0: never


@dataclass(frozen=True, kw_only=True)
class TransformerRecipe(Recipe):
    model: TransformerConfig = field(default_factory=TransformerConfig)
    drop_class: float = 0.0             # share of sequences that begin with token 74, "any class": for guidance


@dataclass(frozen=True, kw_only=True)
class ClassifierRecipe(Recipe):
    model: ClassifierConfig = field(default_factory=ClassifierConfig)


# The recipe of the document this project grew from. Its stage 2 cut windows at stride 1 from one long stream of
# tokens, so that its "epoch" of 19,125 steps showed each token about 41 times. Here an epoch is one pass over aligned
# sequences: 469 steps. Precision is the hardware's affair, not the recipe's: both recipes use bf16 where there is any.
ANCESTOR_VQVAE = VQVAERecipe(name="ancestor", epochs=10, batch_size=64, learning_rate=1e-3,
                             schedule="drop", drop_epoch=5, drop_factor=0.3)
ANCESTOR_TRANSFORMER = TransformerRecipe(name="ancestor", epochs=1, batch_size=128, learning_rate=3e-4)

# Ours. Chosen on 5,000 pictures held out of the training set; tests/benchmarks compares the choices.
BEST_VQVAE = VQVAERecipe(name="best", epochs=10, batch_size=64, learning_rate=3e-3, schedule="cosine",
                         warmup_steps=200, model=VQVAEConfig(ema=True), beta=1.0,
                         kmeans_init=True, revive_below=0.33)
BEST_TRANSFORMER = TransformerRecipe(name="best", epochs=3, batch_size=64, learning_rate=1e-3, schedule="cosine",
                                     warmup_steps=200, weight_decay=0.1, betas=(0.9, 0.95), drop_class=0.1,
                                     model=TransformerConfig(dropout=0.0, qk_norm=True, tied=True))

# The judges of samples. SCORE is for few pictures: the classification accuracy score trains one on 10,000 samples.
JUDGE = ClassifierRecipe(name="judge", epochs=8, batch_size=128, learning_rate=2e-3, schedule="cosine",
                         warmup_steps=100, weight_decay=0.05)
CRITIC = dataclasses.replace(JUDGE, name="critic", seed=1)
SCORE = dataclasses.replace(JUDGE, name="score", epochs=10)
RECIPES = {"ancestor": (ANCESTOR_VQVAE, ANCESTOR_TRANSFORMER), "best": (BEST_VQVAE, BEST_TRANSFORMER)}


def learning_rate(recipe, step, steps_per_epoch):
    """The rate of step ``step`` (from 0)."""
    factor = 1.0
    if recipe.schedule == "cosine":
        factor = (1 + math.cos(math.pi * step / (recipe.epochs * steps_per_epoch))) / 2
    elif recipe.schedule == "drop" and step >= recipe.drop_epoch * steps_per_epoch:
        factor = recipe.drop_factor
    return recipe.learning_rate * factor * min(1.0, (step + 1) / max(1, recipe.warmup_steps))


# --- hardware --------------------------------------------------------------------------------------------------------


def pick_device():
    """"cuda" where there is one, else "mps" where it computes what a CPU does (else it says so), else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    if not torch.backends.mps.is_available():
        return "cpu"
    try:
        difference = _difference_from_cpu("mps")
        if difference < 1e-3:
            return "mps"
        reason = f"its results differ by {difference:.2g}"
    except (RuntimeError, TypeError, NotImplementedError) as error:  # operations or dtypes it doesn't have
        reason = str(error).splitlines()[0]
    warnings.warn(f"this machine has an Apple GPU (mps), but it does not do what is needed here ({reason}). Going on "
                  f"with the CPU; a newer PyTorch may help", stacklevel=2)
    return "cpu"


@functools.cache
def _difference_from_cpu(device):
    """The largest difference of both stages' losses, gradients and samples, computed there and on the CPU."""
    results = {}
    with _own_randomness("cpu"):
        for place in ("cpu", device):
            torch.manual_seed(0)
            vqvae = VQVAE(VQVAEConfig(channels=8))
            transformer = Transformer(TransformerConfig(d_model=32, n_layers=2, qk_norm=True))
            vqvae, transformer = vqvae.to(place), transformer.to(place).eval()
            output = vqvae(torch.linspace(-1, 1, 4 * 28 * 28).reshape(4, 1, 28, 28).to(place))
            quantized = output.quantized
            codes = sample(transformer, torch.arange(4), generator=torch.Generator().manual_seed(0))
            tokens = to_sequences(codes, torch.arange(4))
            nats = F.cross_entropy(transformer(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            loss = output.images.pow(2).mean() + quantized.codebook_loss + quantized.commitment_loss + nats
            loss.backward()
            gradients = [p.grad.flatten() for p in (*vqvae.parameters(), *transformer.parameters())]
            vqvae.quantizer.ema_update(rearrange(output.latents.detach(), "b d h w -> (b h w) d"),
                                       quantized.codes.flatten(), decay=0.9, revive_below=0.5,
                                       generator=torch.Generator().manual_seed(0))
            results[place] = torch.cat([loss.detach()[None], codes.flatten().float(),
                                        vqvae.quantizer.codebook.detach().flatten(), *gradients]).cpu()
    return (results["cpu"] - results[device]).abs().max().item()


def has_bf16(device):
    """Whether the hardware itself computes in bf16 (a T4 and most laptops only emulate it, slowly)."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


# --- what is particular to each stage --------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Which examples a step is about. Random numbers are drawn for all of it, whoever computes which part."""

    index: torch.Tensor                        # (B,) int64, the whole batch
    mine: slice = slice(None)                  # the part of it that is this process's
    generator: torch.Generator | None = None   # the same in all processes

    def examples(self):
        return self.index[self.mine]

    def happens(self, probability):
        """(b,) bool on the CPU: for each example of this process, whether something of this probability happens."""
        return torch.rand(len(self.index), generator=self.generator)[self.mine] < probability


class VQVAEStage:
    """Reconstruction + codebook + β · commitment (arXiv 1711.00937, eq. 3), on (N, 28, 28) uint8 pixels.

    With ``model.ema`` the codebook term is left out: moving averages take its place, after each step.
    """

    def __init__(self, recipe, dataset, device):
        self.recipe, self.pixels = recipe, dataset.pixels.to(device)
        self.model = VQVAE(recipe.model).to(device, memory_format=torch.channels_last)  # faster convolutions
        self.parallel = self.model
        self.reset_metrics()

    def initialise(self, generator):
        if self.recipe.kmeans_init:
            with torch.no_grad():
                latents = self.model.encoder(data.to_images(self.pixels[:2000]))
            self.model.quantizer.init_from(rearrange(latents, "b d h w -> (b h w) d"), generator)

    def loss(self, batch, autocast):
        images = data.to_images(self.pixels[batch.examples()])
        with autocast:
            output = self.parallel(images)
        quantized = output.quantized
        mse = F.mse_loss(output.images.float(), images)
        loss = mse + quantized.codebook_loss + self.recipe.beta * quantized.commitment_loss
        if self.recipe.model.ema:
            loss = mse + self.recipe.beta * quantized.commitment_loss
        self.latents, self.codes = output.latents.detach().float(), quantized.codes
        self.totals["squared error"] += mse.detach() / 4 * len(images)  # on the [0, 1] scale
        self.totals["pictures"] += len(images)
        self.totals["counts"] += torch.bincount(self.codes.flatten(), minlength=self.recipe.model.num_codes)
        return loss

    def after_step(self, batch):
        if self.recipe.model.ema:
            latents, codes = (distributed.gather(part, batch.mine, len(batch.index))
                              for part in (self.latents, self.codes))
            revived = self.model.quantizer.ema_update(
                rearrange(latents, "b d h w -> (b h w) d"), codes.flatten(), self.recipe.ema_decay,
                self.recipe.revive_below, batch.generator)
            self.totals["revived"] += revived / distributed.count()  # each process counts the same ones

    def reset_metrics(self):
        device = self.pixels.device
        self.totals = {name: torch.zeros((), device=device) for name in ("squared error", "pictures", "revived")}
        self.totals["counts"] = torch.zeros(self.recipe.model.num_codes, dtype=torch.int64, device=device)

    def metrics(self):
        counts = self.totals["counts"]
        return {"mse": (self.totals["squared error"] / self.totals["pictures"]).item(),
                "codes": int((counts > 0).sum()), "perplexity": perplexity(counts.float() / counts.sum()),
                "revived": round(self.totals["revived"].item())}

    def evaluate(self, dataset):
        return evaluation.evaluate_vqvae(self.model, dataset)


class TransformerStage:
    """Cross-entropy of the next token: 49 codes and the end token, given the class. On (codes, labels).

    With ``drop_class``, a share of the sequences has the end token where the class would stand: "any class" (Ho and
    Salimans, arXiv 2207.12598). No new token is needed: the end token never begins a sequence otherwise.
    """

    def __init__(self, recipe, pair, device):
        self.recipe, self.tokens = recipe, to_sequences(*pair).to(device)
        self.model = Transformer(recipe.model).to(device)
        self.parallel = self.model
        self.reset_metrics()

    def initialise(self, generator):
        pass

    def loss(self, batch, autocast):
        tokens = self.tokens[batch.examples()]
        if self.recipe.drop_class:
            dropped = batch.happens(self.recipe.drop_class).to(tokens.device)
            tokens[:, 0] = torch.where(dropped, END_TOKEN, tokens[:, 0])  # indexing made a copy
        with autocast:
            logits = self.parallel(tokens[:, :-1])
        nats = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        by_picture = nats.detach().reshape(len(tokens), -1)[:, :-1].mean(1)  # codes only: the end token is no news
        self.totals["nats"] += by_picture.sum()
        self.totals["pictures"] += len(tokens)
        return nats.mean()

    def after_step(self, batch):
        pass

    def reset_metrics(self):
        self.totals = {name: torch.zeros((), device=self.tokens.device) for name in ("nats", "pictures")}

    def metrics(self):
        return {"nats_per_code": (self.totals["nats"] / self.totals["pictures"]).item()}

    def evaluate(self, pair):
        return evaluation.evaluate_transformer(self.model, *pair)


class ClassifierStage:
    """Cross-entropy of the class, on a `Dataset`; every other picture is mirrored, at random."""

    def __init__(self, recipe, dataset, device):
        self.recipe, self.pixels, self.labels = recipe, dataset.pixels.to(device), dataset.labels.to(device)
        self.model = Classifier(recipe.model).to(device, memory_format=torch.channels_last)
        self.parallel = self.model
        self.reset_metrics()

    def initialise(self, generator):
        pass

    def loss(self, batch, autocast):
        images, labels = data.to_images(self.pixels[batch.examples()]), self.labels[batch.examples()]
        mirrored = batch.happens(0.5).to(images.device)[:, None, None, None]
        with autocast:
            logits = self.parallel(torch.where(mirrored, images.flip(-1), images))
        self.totals["right"] += (logits.argmax(1) == labels).sum()
        self.totals["pictures"] += len(labels)
        return F.cross_entropy(logits.float(), labels)

    def after_step(self, batch):
        pass

    def reset_metrics(self):
        self.totals = {name: torch.zeros((), device=self.pixels.device) for name in ("right", "pictures")}

    def metrics(self):
        return {"accuracy": (self.totals["right"] / self.totals["pictures"]).item()}

    def evaluate(self, dataset):
        return {"accuracy": accuracy(self.model, dataset), "pictures": len(dataset)}


# --- the loop that all share ----------------------------------------------------------------------------------------


def fit(stage, recipe, size, path=None, validation=None, data_id="", progress=True, log_every=50, save_every=200):
    """Train ``stage.model`` by ``recipe`` on ``size`` examples, going on from the checkpoint beside ``path``, if any.

    validation: scored after each epoch by ``stage.evaluate``. data_id: says what data it is; a checkpoint of other
    data or of another recipe is an error. Returns the history: {"steps": [...], "epochs": [...], "seconds": float}.
    Ctrl-C ends the step, saves a checkpoint and raises KeyboardInterrupt; a second one breaks the step off.
    Raises ValueError where the checkpoint doesn't fit, FloatingPointError where the loss is not a number, MemoryError
    where there is not enough memory.
    """
    model, device = stage.model, next(stage.model.parameters()).device
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": recipe.weight_decay},
                                   {"params": others, "weight_decay": 0.0}], betas=recipe.betas)  # decay 0: plain Adam
    bf16 = recipe.mixed_precision and has_bf16(device)
    B, steps_per_epoch = recipe.batch_size, math.ceil(size / recipe.batch_size)
    if distributed.count() > (least := size - B * (steps_per_epoch - 1)):
        raise ValueError(f"the last batch of an epoch has {least} of {size} examples, too few for "
                         f"{distributed.count()} processes: start fewer of them")
    history = {"steps": [], "epochs": [], "seconds": 0.0, "device": str(device.type), "bf16": bf16}
    resume = Path(path).with_suffix(".resume.safetensors") if path else None
    identity = {"recipe": _plain(recipe), "data": data_id, "size": size}
    first = step = saved = 0
    with _own_randomness(device), _ctrl_c_waits() as asked_to_stop:
        if resume:
            checkpoints.check_writable(path)
        if resume and resume.is_file():
            first, history = _load_state(resume, identity, stage, optimizer)
            if progress:
                _say(f"going on from step {first} ({resume})")
        else:
            stage.initialise(_seed(recipe.seed, -1))
        stage.parallel = distributed.wrap(model)
        model.train()
        started, spent = time.perf_counter(), history["seconds"]
        bar = tqdm(total=recipe.epochs * steps_per_epoch, initial=first, desc=f"{type(model).__name__} ({recipe.name})",
                   disable=not progress or distributed.rank() > 0, mininterval=1.0)
        try:
            for step in range(first, recipe.epochs * steps_per_epoch):
                epoch, at = divmod(step, steps_per_epoch)
                if at == 0 or step == first:
                    order = torch.randperm(size, generator=torch.Generator().manual_seed(recipe.seed * 1000 + epoch))
                    order = order.to(device)
                index = order[at * B:(at + 1) * B]
                batch = Batch(index, distributed.share(len(index)), _seed(recipe.seed, step))
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(recipe, step, steps_per_epoch)
                loss = stage.loss(batch, torch.autocast(device.type, torch.bfloat16, enabled=bf16))
                loss = loss * (len(batch.examples()) * distributed.count() / len(index))  # their mean is the batch's
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                stage.after_step(batch)
                bar.update()
                last = at + 1 == steps_per_epoch
                if (at + 1) % log_every == 0 or last:
                    for total in stage.totals.values():
                        distributed.sum_up(total)
                    mean_loss = distributed.sum_up(loss.detach() / distributed.count()).item()
                    row = {"step": step + 1, "loss": mean_loss, **stage.metrics()}
                    if not math.isfinite(row["loss"]):
                        raise FloatingPointError(f"the loss became {row['loss']} at step {step + 1}. Try a lower "
                                                 f"learning rate than {recipe.learning_rate}, or mixed_precision=False")
                    stage.reset_metrics()
                    history["steps"].append(row)
                    bar.set_postfix({k: f"{v:.4g}" for k, v in row.items() if k != "step"})
                if last and validation is not None:
                    model.eval()
                    history["epochs"].append({"epoch": epoch + 1, **stage.evaluate(validation)})
                    model.train()
                stop = bool(asked_to_stop)
                if resume and ((at + 1) % save_every == 0 or last or stop):
                    history["seconds"] = spent + time.perf_counter() - started
                    _save_state(resume, identity, step + 1, history, stage, optimizer)
                    saved = step + 1
                if stop:
                    step += 1
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            _say(f"Stopped at step {step}. " + (f"The last checkpoint, {resume}, is of step {saved or first}: the same "
                                                f"command goes on from there." if saved or first else
                                                "No checkpoint was written."))
            raise
        except (RuntimeError, MemoryError) as error:  # PyTorch's own errors of this kind are RuntimeErrors
            if isinstance(error, RuntimeError) and not re.search("out of memory|allocate memory|enough memory",
                                                                 str(error)):
                raise
            raise MemoryError(f"out of memory at step {step + 1}, with {B} examples in a batch. Try a smaller batch "
                              f"(--batch-size {max(1, B // 2)}, or batch_size in the recipe) or another device"
                              ) from error
        finally:
            bar.close()
        history["seconds"] = spent + time.perf_counter() - started
    model.eval()
    return history


@contextlib.contextmanager
def _ctrl_c_waits():
    """Within it the first Ctrl-C is noted in the list it yields, so that a step is not cut in two."""
    asked = []

    def note(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(True)

    # Only where Ctrl-C means what it usually does, and in one process: of several each would stop at its own step.
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler and distributed.count() == 1
    if not usual or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _own_randomness(device):
    """Within it torch's global generators may be seeded: afterwards they are as the reader left them."""
    return torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else [])


def _seed(seed, step):
    """What is random in a step: returns a generator, the same in all processes; dropout is each process's own."""
    number = seed * 1_000_003 + step + 1
    if distributed.count() == 1:
        torch.manual_seed(number)
        return torch.default_generator
    torch.manual_seed((1009 * number + distributed.rank() + 1) % 2**63)
    return torch.Generator().manual_seed(number)


def _plain(recipe):
    return {**dataclasses.asdict(recipe), "betas": list(recipe.betas)}  # as JSON gives it back


def _save_state(path, identity, step, history, stage, optimizer):
    totals = {name: distributed.sum_up(total.clone()) for name, total in stage.totals.items()}
    if distributed.rank() > 0:
        return
    tensors = {f"model.{name}": tensor for name, tensor in stage.model.state_dict().items()}
    tensors |= {f"totals.{name}": total for name, total in totals.items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": tensor for name, tensor in state.items()}
    checkpoints.save(path, "training state", tensors, identity=identity, step=step, history=history)


def _load_state(path, identity, stage, optimizer):
    tensors, info = checkpoints.read(path, "training state")
    found = info.get("identity") if isinstance(info, dict) else None
    if found != identity:
        differs = [k for k in identity if not isinstance(found, dict) or found.get(k) != identity[k]]
        raise ValueError(f"{path} is the checkpoint of another run (different {' and '.join(differs)}). Delete it to "
                         f"start afresh, or set VQLIB_RUNS to another folder to keep both")
    state = {}
    try:
        model = {k.removeprefix("model."): t for k, t in tensors.items() if k.startswith("model.")}
        stage.model.load_state_dict(model)
        for name, total in stage.totals.items():
            total.copy_(tensors[f"totals.{name}"] if distributed.rank() == 0 else torch.zeros_like(total))
        for key, tensor in tensors.items():
            if key.startswith("optimizer."):
                _, i, name = key.split(".")
                state.setdefault(int(i), {})[name] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        history = info["history"]
        assert isinstance(info["step"], int) and {"steps", "epochs", "seconds"} <= set(history), "no step, no history"
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for i, moments in state.items():
            assert all(m.shape in (parameters[i].shape, ()) for m in moments.values()), "moments of another shape"
        return info["step"], history
    except Exception as error:  # whatever a file made by hand raises
        raise ValueError(f"{path} is no checkpoint of this model ({error}). Delete it to start afresh") from error


# --- the two stages, start to end ------------------------------------------------------------------------------------


def train_vqvae(recipe, train, validation=None, test=None, path=None, device=None, progress=True):
    """Train a VQ-VAE and return it, in eval mode, with its history and figures in ``vqvae.info``.

    train, validation, test: `data.Dataset`. validation is scored after each epoch, test once, at the end.
    path: where to save the result, with checkpoints beside it; None saves nothing. A finished run of the same recipe
    on the same data that already stands there is loaded instead of trained again.
    device: default `pick_device`.
    Raises ValueError where an argument is of another kind, and what `fit` raises.
    """
    data.check_kinds(recipe=(recipe, VQVAERecipe), train=(train, data.Dataset))
    device = device or pick_device()
    data_id = f"{len(train)} pictures, SHA-256 {data.fingerprint(train)[:16]}"
    if done := _finished(path, recipe, data_id, lambda p: checkpoints.load_vqvae(p, device=device)):
        return done
    with _own_randomness(device):
        torch.manual_seed(recipe.seed)
        stage = VQVAEStage(recipe, train, device)
    history = fit(stage, recipe, len(train), path, validation, data_id, progress)
    vqvae = stage.model.to(memory_format=torch.contiguous_format)
    info = {"recipe": _plain(recipe), "history": history, "data": data_id}
    if test is not None:
        info["test"] = evaluation.evaluate_vqvae(vqvae, test)
    return _finish(vqvae, path, info)


def train_transformer(recipe, vqvae, train, validation=None, test=None, path=None, device=None, progress=True):
    """Train a Transformer on the codes of ``vqvae`` and return it, in eval mode, as `train_vqvae` does.

    What is saved, scored and returned are the weights rounded to float16: half the size for the same figures.
    """
    data.check_kinds(recipe=(recipe, TransformerRecipe), vqvae=(vqvae, VQVAE), train=(train, data.Dataset))
    device = device or pick_device()
    vqvae = vqvae.to(device)
    tokenizer = checkpoints.tokenizer_id(vqvae)
    data_id = f"{len(train)} pictures, SHA-256 {data.fingerprint(train)[:16]}, tokenizer {tokenizer[:16]}"
    load = functools.partial(checkpoints.load_model, cls=Transformer, config_cls=TransformerConfig, device=device)
    if done := _finished(path, recipe, data_id, load):  # data_id names the tokenizer: another's is trained anew
        return done
    progress = progress and distributed.rank() == 0
    pairs = [d and (encode_pixels(vqvae, d.pixels, progress=progress), d.labels) for d in (train, validation, test)]
    with _own_randomness(device):
        torch.manual_seed(recipe.seed)
        stage = TransformerStage(recipe, pairs[0], device)
    history = fit(stage, recipe, len(train), path, pairs[1], data_id, progress)
    transformer = stage.model
    info = {"recipe": _plain(recipe), "history": history, "data": data_id, "tokenizer": tokenizer}
    unrounded = pairs[2] and evaluation.evaluate_transformer(transformer, *pairs[2])
    transformer.half().float()
    if pairs[2]:
        info["test"] = evaluation.evaluate_transformer(transformer, *pairs[2])
        info["test"]["nats_per_code_before_rounding"] = unrounded["nats_per_code"]
    return _finish(transformer, path, info, torch.float16)


def train_classifier(recipe, train, validation=None, test=None, path=None, device=None, progress=True):
    """Train a `Classifier` and return it, in eval mode, as `train_vqvae` does; rounded to float16."""
    data.check_kinds(recipe=(recipe, ClassifierRecipe), train=(train, data.Dataset))
    device = device or pick_device()
    data_id = f"{len(train)} pictures, SHA-256 {data.fingerprint(train)[:16]}"
    if done := _finished(path, recipe, data_id, lambda p: checkpoints.load_classifier(path=p, device=device)):
        return done
    with _own_randomness(device):
        torch.manual_seed(recipe.seed)
        stage = ClassifierStage(recipe, train, device)
    history = fit(stage, recipe, len(train), path, validation, data_id, progress)
    classifier = stage.model.to(memory_format=torch.contiguous_format).half().float()
    info = {"recipe": _plain(recipe), "history": history, "data": data_id}
    if test is not None:
        info["test"] = {"accuracy": accuracy(classifier, test), "pictures": len(test)}
    return _finish(classifier, path, info, torch.float16)


def _finished(path, recipe, data_id, load):
    if path is None or not Path(path).is_file():
        return None
    model = load(path)
    if model.info.get("recipe") != _plain(recipe) or model.info.get("data") != data_id:
        return None  # of another recipe: it stays until the new run is done, and is kept then, see _finish
    if distributed.rank() == 0:
        Path(path).with_suffix(".resume.safetensors").unlink(missing_ok=True)  # where a run was killed at its very end
    _say(f"{path} is a finished run of this recipe on this data: loaded. Delete it to train again.")
    return model


def _finish(model, path, info, dtype=None):
    model.info = info
    if path is not None:
        if distributed.rank() == 0:
            if Path(path).is_file():
                numbers = (Path(path).with_suffix(f".{n}.safetensors") for n in itertools.count(1))
                kept = next(name for name in numbers if not name.exists())
                os.replace(path, kept)
                _say(f"the earlier run that was {path} is kept as {kept.name}")
            checkpoints.save_model(path, model, dtype, **info)
            Path(path).with_suffix(".resume.safetensors").unlink(missing_ok=True)
        distributed.wait()  # the next stage of each process reads this file
        model.info = {**info, "path": str(path)}
    return model


def _say(text):
    if distributed.rank() == 0:
        print(text)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m vqlib.training", description="Train one stage, or both, or the "
                                     "judges, into the runs folder. A killed run goes on where it was when "
                                     "started again.")
    parser.add_argument("stage", choices=("vqvae", "transformer", "all", "classifiers"))
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="best",
                        help="best: that of the shipped weights (default); ancestor: that of the project "
                        "ours grew from; saves under ancestor/")
    parser.add_argument("--holdout", action="store_true", help="train on 55,000 pictures, score the other 5,000 after "
                        "each epoch, leave the test set alone; saves under holdout/")
    parser.add_argument("--sample", action="store_true", help="a try of a minute or two, on the embedded sample: 2,000 "
                        "pictures to train on, 500 to test; saves under sample/")
    parser.add_argument("--data", choices=data.NAMES, default=data.NAMES[0], help="train on other pictures of the same "
                        "form; saves under a folder of that name")
    parser.add_argument("--batch-size", type=int, metavar="B", help="another batch size than the recipe's, e.g. where "
                        "memory is short")
    parser.add_argument("--device", help="cuda, mps or cpu; default the first of them that is there and works")
    options = parser.parse_args(arguments)
    options.device = options.device or pick_device()
    try:
        torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError, NotImplementedError):
        parser.error(f"there is no device {options.device!r} here, or this PyTorch can't use it: leave --device out, "
                     f"and {pick_device()!r} is taken")
    if options.batch_size is not None and options.batch_size < 1:
        parser.error(f"--batch-size must be 1 or more, got {options.batch_size}")
    if options.stage == "classifiers" and options.recipe != "best":
        parser.error("the classifiers have one recipe: leave --recipe out")
    if not distributed.launched():
        return _train(options, parser.error)
    options.device = "cuda" if options.device.startswith("cuda") else "cpu"  # each process its own; Gloo has no mps
    if options.stage == "classifiers":
        parser.error("the classifiers' BatchNorm needs whole batches: train them without torchrun")
    with distributed.processes(options.device):
        return _train(options, parser.error)


def _train(options, refuse):
    if distributed.rank() > 0:
        distributed.wait()  # the first process may have to download
    if options.sample and options.data != data.NAMES[0]:
        refuse(f"there is no sample of {options.data}: leave --sample out")
    try:
        train, *test = (data.load(split, sample=options.sample, name=options.data)
                        for split in (("train",) if options.holdout else ("train", "test")))
    except (OSError, RuntimeError, ValueError) as error:
        refuse(f"{error}".replace(data.OR_SAMPLE, "Or take the embedded sample: --sample."))
    validation, test, folder = None, test[0] if test else None, checkpoints.runs_folder()
    if options.data != data.NAMES[0]:
        folder = folder / options.data
    if options.recipe != "best":
        folder = folder / options.recipe
    if options.holdout:
        train, validation = data.split_validation(train, len(train) // 12)
        folder = folder / "holdout"
    if options.sample:
        folder = folder / "sample"
    if distributed.rank() == 0:
        distributed.wait()
    recipes = (*RECIPES[options.recipe], JUDGE, CRITIC)
    if options.batch_size:
        recipes = [dataclasses.replace(recipe, batch_size=options.batch_size) for recipe in recipes]
    vqvae_recipe, transformer_recipe, *judges = recipes
    if options.stage in ("vqvae", "all"):
        vqvae = train_vqvae(vqvae_recipe, train, validation, test, folder / "vqvae.safetensors", options.device)
        _report(vqvae)
    if options.stage == "classifiers":
        for recipe in judges:
            _report(train_classifier(recipe, train, validation, test, folder / f"{recipe.name}.safetensors",
                                     options.device))
    if options.stage in ("transformer", "all"):
        own = folder / "vqvae.safetensors"
        if folder != checkpoints.runs_folder() and not own.is_file():  # the shipped one won't do
            refuse(f"the tokenizer that this run takes, {own}, is not there yet: train the stage vqvae first, with the "
                   f"same options, or all")
        vqvae = checkpoints.load_vqvae(own if own.is_file() else None)
        _say(f"tokenizer: {vqvae.info['path']}")
        transformer = train_transformer(transformer_recipe, vqvae, train, validation, test,
                                        folder / "transformer.safetensors", options.device)
        _report(transformer)


def _report(model):
    figures = model.info.get("test") or model.info["history"]["epochs"][-1]
    shown = ", ".join(f"{k} {v:.5g}" for k, v in figures.items() if isinstance(v, int | float))
    _say(f"{model.info['path']}: {model.info['history']['seconds']:.0f} s; "
          f"{'test' if 'test' in model.info else 'validation'}: {shown}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell expects of what Ctrl-C ended
    except (OSError, ValueError, MemoryError, FloatingPointError) as error:  # these say what to do
        sys.exit(f"error: {error}")
