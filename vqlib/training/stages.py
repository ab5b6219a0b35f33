"""What is particular to each stage: its model, its loss, its figures; and each stage from start to end."""

import copy
import dataclasses

import torch
import torch.nn.functional as F
from einops import rearrange

from vqlib import adversarial, checkpoints, data, evaluation, files
from vqlib.adversarial import Discriminator, FabricDecoder
from vqlib.checks import check_choice, check_kinds, check_whole
from vqlib.classifier import Classifier, accuracy
from vqlib.tokens import encode_pixels, perplexity
from vqlib.training import devices, distributed, loop, resume
from vqlib.training.muon import Muon
from vqlib.training.recipes import ClassifierRecipe, DecoderRecipe, Recipe, TransformerRecipe, VQVAERecipe
from vqlib.transformer import Transformer
from vqlib.vqvae import GRID, VQVAE, Decoder, VQVAEConfig


class Stage:
    """What `fit` needs to train a model. A subclass defines `loss`; the other hooks may stay as they are.

    recipe, model, device: how, what and where to train. size: the number of training examples.
    totals: names of running sums, () float32 tensors that `loss` adds to; `fit` counts the "pictures" among them.
    """

    model_class = None  # a network made from the recipe's `model`, unless `classes` says otherwise
    dtype = None  # what the trained weights are rounded to, e.g. torch.float16 for half the file

    def __init__(self, recipe: Recipe, model: torch.nn.Module, device, size: int, totals=()):
        check_whole("size", size, 1)
        self.recipe, self.device, self.size = recipe, torch.device(device), size
        self.model = model.to(device, memory_format=torch.channels_last)  # faster convolutions
        self.modules = torch.nn.ModuleDict({"model": model})  # what is trained; an adversarial stage adds to it
        self.parallel = self.modules  # until `fit` wraps them, if several processes train together
        self.bf16_gain = distributed.mean(devices.bf16_gain(device), device) if recipe.mixed_precision else 0.0
        self.bf16 = self.bf16_gain > devices.BF16_PAYS
        self.totals = {name: torch.zeros((), dtype=torch.float32, device=device) for name in ("pictures", *totals)}

    @classmethod
    def classes(cls, recipe):
        """What `checkpoints.load_model` needs to know: the classes of the model and of its configuration."""
        return cls.model_class, type(recipe.model)

    @staticmethod
    def examples(recipe, dataset, vqvae, progress):
        """What is made of a `Dataset` before it is given to the stage."""
        return dataset

    def forward(self, *inputs, module="model"):
        """What one of the modules makes of its inputs, in bf16 where that is faster and the recipe allows it."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.parallel[module](*inputs)

    def loss(self, batch: loop.Batch) -> torch.Tensor:
        """The loss of a batch, a () tensor. Adds to the totals."""
        raise NotImplementedError

    def losses(self, batch):
        """The losses, in turn: each is asked for after the optimizers' step on the one before."""
        yield self.loss(batch)

    def hidden(self) -> list[torch.nn.Parameter]:
        """The parameters whose matrices Muon takes if it is asked for: all, unless a stage keeps some for AdamW."""
        return list(self.model.parameters())

    def optimizers(self) -> list[list[torch.optim.Optimizer]]:
        """New optimizers: for each of the losses those that make a step on it. All go by the recipe's rate.

        AdamW decays matrices only (without decay it is Adam); with ``optimizer="muon"`` it leaves the hidden matrices
        to Muon.
        """
        recipe, learned = self.recipe, [p for p in self.model.parameters() if p.requires_grad]
        hidden = set(self.hidden()) if recipe.optimizer == "muon" else set()
        muon, matrices = ([p for p in learned if p.ndim > 1 and (p in hidden) is inside] for inside in (True, False))
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}]
        groups.append({"params": [p for p in learned if p.ndim < 2]})
        optimizers = [torch.optim.AdamW(groups, weight_decay=0.0, betas=recipe.betas)]
        if muon:
            dtype = torch.bfloat16 if self.bf16 else torch.float32
            optimizers.append(Muon(muon, weight_decay=recipe.weight_decay, dtype=dtype))
        return [optimizers]

    def initialise(self):
        """What happens before the first step of a new run."""

    def after_step(self, batch):
        """What happens after each step."""

    def metrics(self) -> dict:
        """The figures of a row of the history, as plain numbers: each total per picture, since the row before."""
        seen = self.totals["pictures"]
        return {name: (total / seen).item() for name, total in self.totals.items() if name != "pictures"}

    def evaluate(self, dataset) -> dict:
        """The figures of the whole of another data set, as plain numbers."""
        return {}


class VQVAEStage(Stage):
    """Reconstruction + codebook + β · commitment (arXiv 1711.00937, eq. 3), on a `Dataset`.

    With ``quantizer="ema"`` there is no codebook term: moving averages take its place, after each step.
    """

    model_class = VQVAE

    def __init__(self, recipe: VQVAERecipe, dataset: data.Dataset, device):
        super().__init__(recipe, VQVAE(recipe.model), device, len(dataset), ("mse", "revived"))
        self.totals["codes"] = torch.zeros(recipe.model.num_codes, dtype=torch.int64, device=device)
        self.pixels = dataset.pixels.to(device)

    @torch.no_grad()
    def initialise(self):
        if self.recipe.kmeans_init:
            generator = loop.seed_step(self.recipe.seed, -1)
            latents = self.model.encoder(data.to_images(self.pixels[:2000]))
            self.model.quantizer.init_from(rearrange(latents, "b d h w -> (b h w) d"), generator)

    def hidden(self):
        return [p for p in self.model.parameters() if p.ndim == 4 and p.shape[1] > 2]  # not what reads or draws pixels

    def loss(self, batch):
        images = data.to_images(self.pixels[batch.examples()])
        output = self.forward(images)
        loss = mse = F.mse_loss(output.images.float(), images)
        for name, term in output.quantized.losses.items():
            loss = loss + {"codebook": 1.0, "commitment": self.recipe.beta}[name] * term
        self.latents, self.codes = output.latents.detach().float(), output.quantized.codes
        self.totals["mse"] += mse.detach() / 4 * len(images)  # on the [0, 1] scale
        self.totals["codes"] += torch.bincount(self.codes.flatten(), minlength=self.recipe.model.num_codes)
        return loss

    def after_step(self, batch):
        if self.model.quantizer.ema:
            latents, codes = (distributed.all_gather(part, batch) for part in (self.latents, self.codes))
            vectors = rearrange(latents, "b d h w -> (b h w) d")
            knobs = self.recipe.ema_decay, self.recipe.revive_below
            revived = self.model.quantizer.ema_step(vectors, codes.flatten(), *knobs, batch.generator)
            self.totals["revived"] += revived / distributed.world_size()  # every process counts the same ones

    def metrics(self):
        counts, mse = self.totals["codes"], (self.totals["mse"] / self.totals["pictures"]).item()
        used = {"codes": int((counts > 0).sum()), "perplexity": perplexity(counts.float() / counts.sum())}
        return {"mse": mse, **used, "revived": round(self.totals["revived"].item())}

    def evaluate(self, dataset):
        return evaluation.evaluate_vqvae(self.model, dataset)


class TransformerStage(Stage):
    """Cross-entropy of the next token: 49 codes and the end token, given the class. On a pair (codes, labels).

    With ``drop_class``, a share of the sequences starts with the end token in place of the class: "any class" (Ho and
    Salimans, arXiv 2207.12598). That takes no new token, since no sequence starts with the end token otherwise.
    """

    model_class = Transformer
    dtype = torch.float16  # half the size for the same figures

    def __init__(self, recipe: TransformerRecipe, pair, device):
        super().__init__(recipe, Transformer(recipe.model), device, len(pair[0]), ("nats_per_code",))
        self.tokens = recipe.model.vocabulary.to_sequences(*pair).to(device)

    @staticmethod
    def examples(recipe, dataset, vqvae, progress):
        return encode_pixels(vqvae, dataset.pixels, progress=progress), dataset.labels

    def hidden(self):
        return list(self.model.blocks.parameters())

    def loss(self, batch):
        tokens = self.tokens[batch.examples()]  # a copy
        if self.recipe.drop_class:
            dropped = batch.happens(self.recipe.drop_class).to(tokens.device)
            tokens[:, 0] = torch.where(dropped, self.recipe.model.vocabulary.end, tokens[:, 0])
        logits = self.forward(tokens[:, :-1])
        nats = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        of_codes = nats.detach().reshape(len(tokens), -1)[:, :-1]  # the end token is fully predictable: leave it out
        self.totals["nats_per_code"] += of_codes.mean(1).sum()
        return nats.mean()

    def evaluate(self, pair):
        return evaluation.evaluate_transformer(self.model, *pair)


class DecoderStage(Stage):
    """A decoder against a discriminator, by turns (see `adversarial`). On a tokenizer, its codes, and their pixels.

    The decoder starts as the tokenizer's own. Encoder and codebook are in no optimizer's hands.
    """

    dtype = torch.float16

    def __init__(self, recipe: DecoderRecipe, examples, device):
        vqvae, codes, pixels = examples
        like = FabricDecoder.like if recipe.fabrics else copy.deepcopy
        decoder = like(vqvae.decoder).float().requires_grad_(True)
        super().__init__(recipe, decoder, device, len(pixels), ("mse", "fooled"))
        config = dataclasses.replace(recipe.discriminator, code_dim=vqvae.config.code_dim)
        discriminator = Discriminator(config)
        self.modules["discriminator"] = discriminator.to(device, memory_format=torch.channels_last)
        self.codebook = vqvae.quantizer.codebook.detach().float().to(device)
        self.codes, self.pixels = codes.to(device), pixels.to(device)

    @classmethod
    def classes(cls, recipe):
        return (FabricDecoder if recipe.fabrics else Decoder), VQVAEConfig

    @staticmethod
    def examples(recipe, dataset, vqvae, progress):
        return vqvae, encode_pixels(vqvae, dataset.pixels, progress=progress), dataset.pixels

    def optimizers(self):
        """The discriminator's, and the decoder's: a step of the one, then a step of the other."""
        networks = self.modules["discriminator"], self.model
        return [[torch.optim.AdamW(n.parameters(), weight_decay=0.0, betas=self.recipe.betas)] for n in networks]

    def inputs(self, batch):
        """The pictures, and the vectors of their codes: (B, 1, 28, 28) in [-1, 1], (B, D, 7, 7)."""
        index = batch.examples()
        return data.to_images(self.pixels[index]), rearrange(self.codebook[self.codes[index]], "b h w d -> b d h w")

    def losses(self, batch):
        recipe, (images, latents) = self.recipe, self.inputs(batch)
        drawn = other = self.forward(latents, *self.noise(batch))
        if recipe.fabrics:
            other = self.forward(latents, *self.noise(batch))

        def judge(pictures):
            return self.forward(pictures, latents, module="discriminator")

        yield adversarial.discriminator_loss(judge(images), judge(drawn.detach()))

        with torch.no_grad():
            real = judge(images)
        verdict = judge(drawn)
        matching = adversarial.matching_loss(real, verdict, judge(other) if recipe.fabrics else None)
        mse = adversarial.squared_error(images, drawn.float(), other.float())
        self.totals["mse"] += mse.detach() / 4 * len(images)  # [0, 1] scale; with fabrics it is the mean drawing's
        self.totals["fooled"] += (verdict.logits.detach() > 0).float().mean((1, 2)).sum()
        yield recipe.adversarial * adversarial.adversarial_loss(verdict) + recipe.matching * matching + recipe.mse * mse

    def noise(self, batch):
        """What the decoder sees beside the latents: nothing, or a random number per cell, for the whole batch."""
        if not self.recipe.fabrics:
            return ()
        drawn = torch.randn(len(batch.index), 1, GRID, GRID, generator=batch.generator, device="cpu")
        return (drawn[batch.mine].to(self.device),)

    def evaluate(self, examples):
        return evaluation.evaluate_decoder(self.model, *examples, checkpoints.load_classifier("critic"))


class ClassifierStage(Stage):
    """Cross-entropy of the class, on a `Dataset`; half of the pictures, at random, are mirrored."""

    model_class = Classifier
    dtype = torch.float16

    def __init__(self, recipe: ClassifierRecipe, dataset: data.Dataset, device):
        super().__init__(recipe, Classifier(recipe.model), device, len(dataset), ("accuracy",))
        self.pixels, self.labels = dataset.pixels.to(device), dataset.labels.to(device)

    def loss(self, batch):
        images, labels = data.to_images(self.pixels[batch.examples()]), self.labels[batch.examples()]
        mirrored = batch.happens(0.5).to(images.device)[:, None, None, None]
        logits = self.forward(torch.where(mirrored, images.flip(-1), images))
        self.totals["accuracy"] += (logits.argmax(1) == labels).sum()
        return F.cross_entropy(logits.float(), labels)

    def evaluate(self, dataset):
        return {"accuracy": accuracy(self.model, dataset), "pictures": len(dataset)}


def train_vqvae(recipe: VQVAERecipe, train, validation=None, test=None, *, path=None, device=None, progress=True):
    """Train a VQ-VAE and return it, in eval mode, with its history and figures in ``vqvae.info``.

    train, validation, test: `data.Dataset`. validation is scored after each epoch, test once, at the end.
    path: where to save the result, with checkpoints beside it; None saves nothing. A finished run of the same recipe on
    the same data that stands there already is loaded instead. device: `pick_device` by default.
    One at a time in a process: it seeds PyTorch's global generators, which threads share.
    Raises ValueError if an argument is of another kind or a data set is empty, and whatever `fit` raises.
    """
    check_kinds(recipe=(recipe, VQVAERecipe))
    return _train(VQVAEStage, recipe, (train, validation, test), path, device, progress)


def train_transformer(
    recipe: TransformerRecipe, vqvae: VQVAE, train, validation=None, test=None, *, path=None, device=None, progress=True
):
    """Train a Transformer on the codes of ``vqvae`` and return it, in eval mode, as `train_vqvae` does.

    The number of codes is the tokenizer's. What is saved, scored and returned are the weights rounded to float16.
    """
    check_kinds(recipe=(recipe, TransformerRecipe), vqvae=(vqvae, VQVAE))
    model = dataclasses.replace(recipe.model, num_codes=vqvae.config.num_codes)
    recipe = dataclasses.replace(recipe, model=model)
    return _train(TransformerStage, recipe, (train, validation, test), path, device, progress, vqvae)


def train_decoder(
    recipe: DecoderRecipe, vqvae: VQVAE, train, validation=None, test=None, *, path=None, device=None, progress=True
):
    """Train another decoder for the codes of ``vqvae`` and return it, in eval mode, as `train_transformer` does.

    The new one starts as ``vqvae.decoder``, which must be a plain `Decoder`, and ``vqvae`` stays as it is.
    `Pair.drawn_by` draws with it. validation and test, if given, need two pictures, for their Fréchet distance.
    """
    check_kinds(recipe=(recipe, DecoderRecipe), vqvae=(vqvae, VQVAE))
    remedy = "Take a VQ-VAE with its own decoder, as checkpoints.load_vqvae gives it"
    check_choice("the tokenizer's decoder", type(vqvae.decoder).__name__, ("Decoder",), remedy)
    for name, dataset in (("validation", validation), ("test", test)):
        if isinstance(dataset, data.Dataset):
            check_whole(f"the number of pictures in {name}", len(dataset), 2)
    return _train(DecoderStage, recipe, (train, validation, test), path, device, progress, vqvae)


def train_classifier(
    recipe: ClassifierRecipe, train, validation=None, test=None, *, path=None, device=None, progress=True
):
    """Train a `Classifier` and return it, in eval mode, as `train_vqvae` does; its weights are rounded to float16."""
    check_kinds(recipe=(recipe, ClassifierRecipe))
    return _train(ClassifierStage, recipe, (train, validation, test), path, device, progress)


def _train(stage_class, recipe, datasets, path, device, progress, vqvae=None):
    """Load the finished run that stands at ``path``; or train, round, score and save."""
    for name, dataset in zip(("train", "validation", "test"), datasets, strict=True):
        if dataset is not None or name == "train":
            check_kinds(**{name: (dataset, data.Dataset)})
            check_whole(f"the number of pictures in {name}", len(dataset), 1)
    device, path = device or devices.pick_device(), path and files.expand(path)
    with devices.own_state(device), resume.only_run(path):
        return _train_alone(stage_class, recipe, datasets, path, device, progress, vqvae)


def _train_alone(stage_class, recipe, datasets, path, device, progress, vqvae):
    train = datasets[0]
    info = {"recipe": recipe.as_json(), "data": f"{len(train)} pictures, SHA-256 {data.fingerprint(train)[:16]}"}
    if vqvae is not None:
        info["tokenizer"] = checkpoints.tokenizer_id(vqvae)
        info["data"] += f", tokenizer {info['tokenizer'][:16]}"
        if issubclass(stage_class, DecoderStage):  # where it starts matters, too
            info["data"] += f", decoder {checkpoints.tokenizer_id(vqvae, parts='decoder.')[:16]}"
    if path and path.is_file():
        model = checkpoints.load_model(path, *stage_class.classes(recipe), device, vqvae)
        if all(model.info.get(key) == info[key] for key in info):
            resume.checkpoint_of(path).unlink(missing_ok=True)  # stays behind if a run is killed at its very end
            distributed.say(f"{path} is a finished run of this recipe on this data. Move it away to train again.")
            return model
    if path:
        files.check_writable(path)
    if vqvae is not None:
        vqvae = vqvae.to(device)
    shown = progress and distributed.rank() == 0
    train, validation, test = [d and stage_class.examples(recipe, d, vqvae, shown) for d in datasets]
    torch.manual_seed(recipe.seed)
    stage = stage_class(recipe, train, device)
    info["history"] = loop.fit(stage, validation, path, info["data"], progress)
    model = stage.model.to(memory_format=torch.contiguous_format)
    if stage.dtype:
        model.to(stage.dtype).float()
    if test is not None:
        info["test"] = stage.evaluate(test)
    model.info = info
    if path:
        resume.save_result(path, model, stage.dtype)
    return model
