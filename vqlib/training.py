"""Training both stages, and the classifiers that judge samples, from a notebook or from the command line.

    python -m vqlib.training all                      # both stages by the recipe of the shipped weights, into runs/
    python -m vqlib.training vqvae --recipe seed      # one stage, by the seed's recipe as written
    python -m vqlib.training all --holdout            # choosing: train on 55,000, score the 5,000 held out
    python -m vqlib.training classifiers              # the two that judge samples

All that is random in step t is drawn from (seed, t): data order, dropout, revived codes. So a run that was killed goes
on from its last checkpoint and ends with the weights of a run that was not.
"""

import argparse
import contextlib
import dataclasses
import math
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from tqdm import tqdm

from vqlib import checkpoints, data, evaluation
from vqlib.classifier import Classifier, ClassifierConfig, accuracy
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
SEED_VQVAE = VQVAERecipe(name="seed", epochs=10, batch_size=64, learning_rate=1e-3,
                         schedule="drop", drop_epoch=5, drop_factor=0.3)
SEED_TRANSFORMER = TransformerRecipe(name="seed", epochs=1, batch_size=128, learning_rate=3e-4)

# Ours. Chosen on 5,000 pictures held out of the training set; tests/benchmarks compares the choices.
BEST_VQVAE = VQVAERecipe(name="best", epochs=10, batch_size=64, learning_rate=3e-3, schedule="cosine",
                         warmup_steps=200, model=VQVAEConfig(ema=True), beta=1.0,
                         kmeans_init=True, revive_below=0.33)
BEST_TRANSFORMER = TransformerRecipe(name="best", epochs=2, batch_size=64, learning_rate=1e-3, schedule="cosine",
                                     warmup_steps=200, weight_decay=0.1, betas=(0.9, 0.95), drop_class=0.1,
                                     model=TransformerConfig(dropout=0.0, qk_norm=True))

# The judges of samples. SCORE is for few pictures: the classification accuracy score trains one on 10,000 samples.
JUDGE = ClassifierRecipe(name="judge", epochs=8, batch_size=128, learning_rate=2e-3, schedule="cosine",
                         warmup_steps=100, weight_decay=0.05)
CRITIC = dataclasses.replace(JUDGE, name="critic", seed=1)
SCORE = dataclasses.replace(JUDGE, name="score", epochs=10)
RECIPES = {"seed": (SEED_VQVAE, SEED_TRANSFORMER), "best": (BEST_VQVAE, BEST_TRANSFORMER)}


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
    """"cuda" where there is one, else "mps", else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def has_bf16(device):
    """Whether the hardware itself computes in bf16 (a T4 and most laptops only emulate it, slowly)."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


# --- what is particular to each stage --------------------------------------------------------------------------------


class VQVAEStage:
    """Reconstruction + codebook + β · commitment (arXiv 1711.00937, eq. 3), on (N, 28, 28) uint8 pixels."""

    def __init__(self, recipe, dataset, device):
        self.recipe, self.pixels = recipe, dataset.pixels.to(device)
        self.model = VQVAE(recipe.model).to(device, memory_format=torch.channels_last)  # faster convolutions
        self.reset_metrics()

    def initialise(self):
        if self.recipe.kmeans_init:
            with torch.no_grad():
                latents = self.model.encoder(data.to_images(self.pixels[:2000]))
            self.model.quantizer.init_from(rearrange(latents, "b d h w -> (b h w) d"))

    def loss(self, index, autocast):
        images = data.to_images(self.pixels[index])
        with autocast:
            output = self.model(images)
        quantized = output.quantized
        mse = F.mse_loss(output.images.float(), images)
        loss = mse + quantized.codebook_loss + self.recipe.beta * quantized.commitment_loss
        if self.recipe.model.ema:
            loss = mse + self.recipe.beta * quantized.commitment_loss
        self.vectors = rearrange(output.latents.detach().float(), "b d h w -> (b h w) d")
        self.codes = quantized.codes.flatten()
        self.squared_error += mse.detach() / 4 * len(images)  # on the [0, 1] scale
        self.pictures += len(images)
        self.counts += torch.bincount(self.codes, minlength=len(self.counts))
        return loss

    def after_step(self):
        if self.recipe.model.ema:
            self.revived += self.model.quantizer.ema_update(self.vectors, self.codes, self.recipe.ema_decay,
                                                            self.recipe.revive_below)

    def reset_metrics(self):
        device = self.pixels.device
        self.squared_error, self.revived = torch.zeros((), device=device), torch.zeros((), device=device)
        self.counts = torch.zeros(self.recipe.model.num_codes, dtype=torch.int64, device=device)
        self.pictures = 0

    def metrics(self):
        return {"mse": self.squared_error.item() / self.pictures, "codes": int((self.counts > 0).sum()),
                "perplexity": perplexity(self.counts.float() / self.counts.sum()), "revived": int(self.revived)}

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
        self.reset_metrics()

    def initialise(self):
        pass

    def loss(self, index, autocast):
        tokens = self.tokens[index]
        if self.recipe.drop_class:
            dropped = (torch.rand(len(tokens)) < self.recipe.drop_class).to(tokens.device)
            tokens[:, 0] = torch.where(dropped, END_TOKEN, tokens[:, 0])  # indexing made a copy
        with autocast:
            logits = self.model(tokens[:, :-1])
        nats = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        self.nats += nats.detach().reshape(len(tokens), -1)[:, :-1].mean()  # codes only: the end token is no news
        self.steps += 1
        return nats.mean()

    def after_step(self):
        pass

    def reset_metrics(self):
        self.nats, self.steps = torch.zeros((), device=self.tokens.device), 0

    def metrics(self):
        return {"nats_per_code": self.nats.item() / self.steps}

    def evaluate(self, pair):
        return evaluation.evaluate_transformer(self.model, *pair)


class ClassifierStage:
    """Cross-entropy of the class, on a `Dataset`; every other picture is mirrored, at random."""

    def __init__(self, recipe, dataset, device):
        self.recipe, self.pixels, self.labels = recipe, dataset.pixels.to(device), dataset.labels.to(device)
        self.model = Classifier(recipe.model).to(device, memory_format=torch.channels_last)
        self.reset_metrics()

    def initialise(self):
        pass

    def loss(self, index, autocast):
        images, labels = data.to_images(self.pixels[index]), self.labels[index]
        mirrored = (torch.rand(len(images), 1, 1, 1) < 0.5).to(images.device)
        with autocast:
            logits = self.model(torch.where(mirrored, images.flip(-1), images))
        self.right += (logits.argmax(1) == labels).sum()
        self.pictures += len(labels)
        return F.cross_entropy(logits.float(), labels)

    def after_step(self):
        pass

    def reset_metrics(self):
        self.right, self.pictures = torch.zeros((), device=self.pixels.device), 0

    def metrics(self):
        return {"accuracy": self.right.item() / self.pictures}

    def evaluate(self, dataset):
        return {"accuracy": accuracy(self.model, dataset), "pictures": len(dataset)}


# --- the loop that all share ----------------------------------------------------------------------------------------


def fit(stage, recipe, size, path=None, validation=None, data_id="", progress=True, log_every=50, save_every=200):
    """Train ``stage.model`` by ``recipe`` on ``size`` examples, going on from the checkpoint beside ``path``, if any.

    validation: scored after each epoch by ``stage.evaluate``. data_id: says what data it is; a checkpoint of other
    data or of another recipe is an error. Returns the history: {"steps": [...], "epochs": [...], "seconds": float}.
    Raises ValueError where the checkpoint doesn't fit, FloatingPointError where the loss is not a number.
    """
    model, device = stage.model, next(stage.model.parameters()).device
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": recipe.weight_decay},
                                   {"params": others, "weight_decay": 0.0}], betas=recipe.betas)  # decay 0: plain Adam
    bf16 = recipe.mixed_precision and has_bf16(device)
    steps_per_epoch = math.ceil(size / recipe.batch_size)
    history = {"steps": [], "epochs": [], "seconds": 0.0, "device": str(device.type), "bf16": bf16}
    resume = Path(path).with_suffix(".resume.safetensors") if path else None
    identity = {"recipe": _plain(recipe), "data": data_id, "size": size}
    first = 0
    with _own_randomness(device):
        if resume and resume.is_file():
            first, history = _load_state(resume, identity, model, optimizer)
        else:
            _seed(recipe.seed, -1)
            stage.initialise()
        model.train()
        started, spent = time.perf_counter(), history["seconds"]
        bar = tqdm(total=recipe.epochs * steps_per_epoch, initial=first, desc=f"{type(model).__name__} ({recipe.name})",
                   disable=not progress, mininterval=1.0)
        try:
            for step in range(first, recipe.epochs * steps_per_epoch):
                epoch, at = divmod(step, steps_per_epoch)
                if at == 0 or step == first:
                    order = torch.randperm(size, generator=torch.Generator().manual_seed(recipe.seed * 1000 + epoch))
                    order = order.to(device)
                _seed(recipe.seed, step)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(recipe, step, steps_per_epoch)
                index = order[at * recipe.batch_size:(at + 1) * recipe.batch_size]
                loss = stage.loss(index, torch.autocast(device.type, torch.bfloat16, enabled=bf16))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                stage.after_step()
                bar.update()
                last = at + 1 == steps_per_epoch
                if (at + 1) % log_every == 0 or last:
                    row = {"step": step + 1, "loss": loss.item(), **stage.metrics()}
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
                if resume and ((at + 1) % save_every == 0 or last):
                    history["seconds"] = spent + time.perf_counter() - started
                    _save_state(resume, identity, step + 1, history, model, optimizer)
        except KeyboardInterrupt:
            bar.write(f"Stopped at step {step}. " + (f"The last checkpoint is {resume.name}: the same command goes on "
                                                     f"from there." if resume and resume.is_file() else
                                                     "No checkpoint was written yet."))
            raise
        finally:
            bar.close()
        history["seconds"] = spent + time.perf_counter() - started
    model.eval()
    return history


def _own_randomness(device):
    """Within it torch's global generators may be seeded: afterwards they are as the reader left them."""
    return torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else [])


def _seed(seed, step):
    torch.manual_seed(seed * 1_000_003 + step + 1)


def _plain(recipe):
    return {**dataclasses.asdict(recipe), "betas": list(recipe.betas)}  # as JSON gives it back


def _save_state(path, identity, step, history, model, optimizer):
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": tensor for name, tensor in state.items()}
    checkpoints.save(path, "training state", tensors, identity=identity, step=step, history=history)


def _load_state(path, identity, model, optimizer):
    tensors, info = checkpoints.read(path, "training state")
    if info["identity"] != identity:
        differs = [k for k in identity if info["identity"].get(k) != identity[k]]
        raise ValueError(f"{path} is the checkpoint of another run (different {' and '.join(differs)}). Delete it to "
                         f"start afresh, or set VQLIB_RUNS to another folder to keep both")
    model.load_state_dict({k.removeprefix("model."): t for k, t in tensors.items() if k.startswith("model.")})
    state = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".")
            state.setdefault(int(i), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return info["step"], info["history"]


# --- the two stages, start to end ------------------------------------------------------------------------------------


def train_vqvae(recipe, train, validation=None, test=None, path=None, device=None, progress=True):
    """Train a VQ-VAE and return it, in eval mode, with its history and figures in ``vqvae.info``.

    train, validation, test: `data.Dataset`. validation is scored after each epoch, test once, at the end.
    path: where to save the result, with checkpoints beside it; None saves nothing. A finished run of the same recipe
    on the same data that already stands there is loaded instead of trained again.
    device: default `pick_device`.
    """
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
    device = device or pick_device()
    vqvae = vqvae.to(device)
    tokenizer = checkpoints.tokenizer_id(vqvae)
    data_id = f"{len(train)} pictures, SHA-256 {data.fingerprint(train)[:16]}, tokenizer {tokenizer[:16]}"
    load = partial(checkpoints.load_model, cls=Transformer, config_cls=TransformerConfig, device=device)
    if done := _finished(path, recipe, data_id, load):  # data_id names the tokenizer: another's is trained anew
        return done
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
    if model.info["recipe"] != _plain(recipe) or model.info["data"] != data_id:
        return None  # of another recipe: it stays until the new run is done
    print(f"{path} is a finished run of this recipe on this data: loaded. Delete it to train again.")
    return model


def _finish(model, path, info, dtype=None):
    model.info = info
    if path is not None:
        checkpoints.save_model(path, model, dtype, **info)
        Path(path).with_suffix(".resume.safetensors").unlink(missing_ok=True)
        model.info = {**info, "path": str(path)}
    return model


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m vqlib.training", description="Train one stage, or both, or the "
                                     "judges, into the runs folder. A killed run goes on where it was when "
                                     "started again.")
    parser.add_argument("stage", choices=("vqvae", "transformer", "all", "classifiers"))
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="best",
                        help="best: that of the shipped weights (default); seed: the document's, as written")
    parser.add_argument("--holdout", action="store_true", help="train on 55,000 pictures, score the other 5,000 after "
                        "each epoch, leave the test set alone; saves under holdout/")
    parser.add_argument("--sample", action="store_true", help="use the embedded sample: 2,000 pictures to train on, "
                        "500 to test")
    parser.add_argument("--device", help="cuda, mps or cpu; default the first of them that is there")
    options = parser.parse_args(arguments)
    train = data.load("train", sample=options.sample)
    validation, test, folder = None, None, checkpoints.runs_folder()
    if options.holdout:
        train, validation = data.split_validation(train, len(train) // 12)
        folder = folder / "holdout"
    else:
        test = data.load("test", sample=options.sample)
    vqvae_recipe, transformer_recipe = RECIPES[options.recipe]
    if options.stage in ("vqvae", "all"):
        vqvae = train_vqvae(vqvae_recipe, train, validation, test, folder / "vqvae.safetensors", options.device)
        _report(vqvae)
    if options.stage == "classifiers":
        for recipe in (JUDGE, CRITIC):
            _report(train_classifier(recipe, train, validation, test, folder / f"{recipe.name}.safetensors",
                                     options.device))
    if options.stage in ("transformer", "all"):
        own = folder / "vqvae.safetensors"
        if options.holdout and not own.is_file():
            parser.error(f"--holdout takes a tokenizer that never saw the held-out pictures, and there is no {own}: "
                         f"run `python -m vqlib.training vqvae --holdout` first, or `all --holdout`")
        vqvae = checkpoints.load_vqvae(own if own.is_file() else None)
        print(f"tokenizer: {vqvae.info['path']}")
        transformer = train_transformer(transformer_recipe, vqvae, train, validation, test,
                                        folder / "transformer.safetensors", options.device)
        _report(transformer)


def _report(model):
    figures = model.info.get("test") or model.info["history"]["epochs"][-1]
    shown = ", ".join(f"{k} {v:.5g}" for k, v in figures.items() if isinstance(v, int | float))
    print(f"{model.info['path']}: {model.info['history']['seconds']:.0f} s; "
          f"{'test' if 'test' in model.info else 'validation'}: {shown}")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
