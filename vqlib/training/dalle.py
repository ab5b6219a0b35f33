"""The stages of notebook 08: the discrete VAE, captions and codes in one stream, and the pair that chooses by text."""

import dataclasses
import math

import torch
from einops import rearrange

from vqlib import captions, data, dvae
from vqlib.checks import check_kinds
from vqlib.contrastive import WORDS_ONLY, ContrastivePair, info_nce
from vqlib.evaluation import code_nats
from vqlib.tokens import encode_pixels
from vqlib.training import distributed
from vqlib.training.recipes import CaptionRecipe, ContrastiveRecipe, DVAERecipe
from vqlib.training.stages import Stage, VQVAEStage, _train
from vqlib.transformer import Transformer
from vqlib.vqvae import GRID, VQVAE

CHOICES = math.prod(map(len, captions.KINDS))  # so many whole captions there are, 180


class DVAEStage(VQVAEStage):
    """-ln p(picture | soft codes) + weight · KL(codes ‖ uniform), both in nats per pixel (`dvae`), on a `Dataset`."""

    def initialise(self):
        alone(self)

    def loss(self, batch):
        images, model = data.to_images(self.pixels[batch.examples()]), self.model
        K = self.recipe.model.num_codes
        noise = dvae.gumbel_noise((len(images), GRID, GRID, K), batch.generator).to(images)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = model.encoder(images).float()
            latents = model.quantizer.relaxed(logits, noise, dvae.temperature_at(batch.done))
            mu, ln_b = (x.float() for x in model.decoder.parameters_of(latents))
        nats = dvae.logit_laplace(dvae.squeeze_pixels(images), mu, ln_b).mean()
        logits = rearrange(logits, "b k h w -> b h w k")
        kl = dvae.kl_to_uniform(logits).sum((1, 2)).mean()  # per picture
        self.totals["mse"] += (dvae.expand_pixels(mu.detach().sigmoid()) - images).pow(2).mean() / 4 * len(images)
        self.totals["codes"] += torch.bincount(logits.argmax(-1).flatten(), minlength=K)
        return nats + dvae.kl_weight_at(batch.done, self.recipe.kl) * kl / images[0].numel()


class CaptionStage(Stage):
    """Text and codes in one stream: 1/8 of the loss is the text's, 7/8 the codes'. On (codes, facts) of a `Dataset`.

    Each picture gets a new caption each time. With ``drop_caption``, a share gets none: the end token stands in all of
    its places. Pictures whose facts are withheld are taken out here, before the Transformer sees them. The
    tokenizer, which knows no words, has learned from all upright pictures.
    """

    model_class = Transformer
    dtype = torch.float16

    def __init__(self, recipe: CaptionRecipe, examples, device):
        codes, facts = (part[~captions.withheld(examples[1], recipe.withheld)] for part in examples)
        super().__init__(recipe, Transformer(recipe.model), device, len(codes), ("nats_per_code", "nats_per_word"))
        self.codes, self.facts = codes.flatten(1).to(device), facts

    @staticmethod
    def examples(recipe, dataset, vqvae, progress):
        pixels, facts = described(dataset, recipe.turned)
        return encode_pixels(vqvae, pixels, progress=progress), facts

    def initialise(self):
        alone(self)

    def hidden(self):
        return list(self.model.blocks.parameters())

    def loss(self, batch):
        vocabulary, index = self.recipe.model.vocabulary, batch.examples()
        texts = captions.write_captions(self.facts[index.cpu()], batch.generator)
        text = captions.text_tokens(texts, vocabulary).to(self.device)
        text[batch.happens(self.recipe.drop_caption)] = vocabulary.end
        tokens = torch.cat([text, self.codes[index]], dim=1)
        of_text, of_codes = captions.stream_loss(self.forward(tokens[:, :-1]), tokens, vocabulary)
        self.totals["nats_per_word"] += of_text.detach() * len(tokens)
        self.totals["nats_per_code"] += of_codes.detach() * len(tokens)
        return self.recipe.text_weight * of_text + (1 - self.recipe.text_weight) * of_codes

    def evaluate(self, examples):
        """Nats per code given the whole caption, of combinations that training sees and of those it doesn't."""
        codes, facts = examples
        unseen, figures = captions.withheld(facts, self.recipe.withheld), {}
        for name, which in (("nats_per_code", ~unseen), ("nats_per_code_unseen", unseen)):
            if which.any():
                start = captions.text_tokens(captions.write_captions(facts[which]), self.recipe.model.vocabulary)
                figures[name] = code_nats(self.model, codes[which], start).mean().item()
        return figures | {"pictures": len(codes)}


class ContrastiveStage(Stage):
    """InfoNCE between pictures and their captions. On (pixels, facts), without those whose facts are withheld."""

    model_class = ContrastivePair
    dtype = torch.float16

    def __init__(self, recipe: ContrastiveRecipe, examples, device):
        pixels, facts = (part[~captions.withheld(examples[1], recipe.withheld)] for part in examples)
        super().__init__(recipe, ContrastivePair(recipe.model), device, len(pixels), ("nats",))
        self.pixels, self.facts = pixels.to(device), facts

    @staticmethod
    def examples(recipe, dataset, vqvae, progress):
        return described(dataset, recipe.turned)

    def initialise(self):
        alone(self)

    def loss(self, batch):
        index = batch.examples()
        texts = captions.write_captions(self.facts[index.cpu()], batch.generator)
        features = self.forward(
            data.to_images(self.pixels[index]), captions.text_tokens(texts, WORDS_ONLY).to(self.device)
        )
        loss = info_nce(*features, self.model.log_scale.exp())
        self.totals["nats"] += loss.detach() * len(index)
        return loss

    def evaluate(self, examples):
        """How often a picture's whole caption is the nearest to it of all 180."""
        pixels, facts = examples
        choices = torch.cartesian_prod(*(torch.arange(len(kind)) for kind in captions.KINDS))
        tokens = captions.text_tokens(captions.write_captions(choices), WORDS_ONLY).to(self.device)
        right = 0
        with torch.no_grad():
            for some, said in zip(pixels.split(500), facts.split(500), strict=True):
                pictures, texts = self.model(data.to_images(some.to(self.device)), tokens)
                right += (choices[(pictures @ texts.T).argmax(1).cpu()] == said).all(1).sum().item()
        return {"accuracy": right / len(pixels), "pictures": len(pixels)}


def alone(stage):
    """Refuse to train in several processes: these losses are means over parts of a batch that don't add up."""
    if distributed.world_size() > 1:
        raise ValueError(f"a {type(stage).__name__} trains in one process: leave torchrun out")


def described(dataset, turned):
    """The pictures of a `Dataset`, then one in ``turned`` of them upside down, and the facts of all of them."""
    facts = captions.facts_of(dataset.pixels, dataset.labels)
    over = facts[::turned].clone()
    over[:, 2] = 1
    return torch.cat([dataset.pixels, dataset.pixels[::turned].flip(1)]), torch.cat([facts, over])


def train_dvae(recipe: DVAERecipe, train, validation=None, test=None, *, path=None, device=None, progress=True):
    """Train a discrete VAE, a `VQVAE` with ``quantizer="gumbel"``, and return it as `train_vqvae` does."""
    check_kinds(recipe=(recipe, DVAERecipe))
    return _train(DVAEStage, recipe, (train, validation, test), path, device, progress)


def train_captions(
    recipe: CaptionRecipe, vqvae: VQVAE, train, validation=None, test=None, *, path=None, device=None, progress=True
):
    """Train a Transformer on captions and the codes of ``vqvae``, and return it as `train_transformer` does.

    The captions are about Fashion-MNIST: a dataset must hold its classes.
    """
    check_kinds(recipe=(recipe, CaptionRecipe), vqvae=(vqvae, VQVAE))
    model = dataclasses.replace(recipe.model, num_codes=vqvae.config.num_codes)
    recipe = dataclasses.replace(recipe, model=model)
    return _train(CaptionStage, recipe, (train, validation, test), path, device, progress, vqvae)


def train_contrastive(
    recipe: ContrastiveRecipe, train, validation=None, test=None, *, path=None, device=None, progress=True
):
    """Train a `ContrastivePair` on pictures and captions, and return it as `train_vqvae` does."""
    check_kinds(recipe=(recipe, ContrastiveRecipe))
    return _train(ContrastiveStage, recipe, (train, validation, test), path, device, progress)
