"""What each choice of the crisp decoder buys: one pass over 55,000 training pictures, one seed, on the shipped codes.

    python tests/benchmarks/decoders.py                        # half an hour on two cores
    python tests/benchmarks/decoders.py --only crisp --pictures 2000     # a fast try

Scored on the 5,000 held-out pictures. No variant trains on them, but the shipped tokenizer, Transformer and critic
have; the test set is never touched. The recipe was chosen by the Fréchet distance on the critic's features, never the
judge's, and by the sharpness. As one variant learns from the critic, a third classifier, of another seed, measures
too. Samples are 5,000 of the shipped Transformer. Each run is kept in the runs folder, so a script that was killed
goes on where it was.
"""

import argparse
import copy
import dataclasses
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

import vqlib
from vqlib import checkpoints, data, evaluation, scorecard, training
from vqlib.adversarial import draw
from vqlib.classifier import classify
from vqlib.tokens import encode_pixels
from vqlib.training import CRISP, CRITIC, DecoderStage, stages
from vqlib.vqvae import Decoder

OUT = checkpoints.SHIPPED / "decoders.json"


class GradientPenalty(DecoderStage):
    """R1 (arXiv 1801.04406): the verdict on real pictures should change little with their pixels."""

    def losses(self, batch):
        (images, latents), losses = self.inputs(batch), super().losses(batch)
        images.requires_grad_()
        verdict = self.forward(images, latents, module="discriminator").logits.mean((1, 2)).sum()
        (slope,) = torch.autograd.grad(verdict, images, create_graph=True)
        yield next(losses) + slope.pow(2).sum((1, 2, 3)).mean() / 2
        yield from losses


class Perceptual(DecoderStage):
    """No discriminator: the distance of the critic's features, in place of LPIPS (arXiv 1801.03924), and the MSE."""

    def __init__(self, recipe, examples, device):
        super().__init__(recipe, examples, device)
        self.critic = checkpoints.load_classifier("critic", shipped=True, device=device)

    def losses(self, batch):
        (images, latents), losses = self.inputs(batch), super().losses(batch)
        yield next(losses)
        drawn, loss = self.forward(latents).float(), 0.0
        for layer in self.critic.body[:11]:  # up to the third ReLU
            images, drawn = layer(images), layer(drawn)
            if isinstance(layer, nn.ReLU):
                loss = loss + F.l1_loss(drawn, images)
        yield next(losses) + loss


class BlindToCodes(DecoderStage):
    """The discriminator sees the picture alone."""

    def forward(self, *inputs, module="model"):
        if module == "discriminator":
            inputs = inputs[0], torch.zeros_like(inputs[1])
        return super().forward(*inputs, module=module)


class FromNothing(DecoderStage):
    """The decoder starts untrained."""

    def initialise(self):
        self.model.load_state_dict(Decoder(self.model.config).state_dict())


class WholeTokenizer(DecoderStage):
    """Encoder and codebook learn too: other codes, which would need a Transformer of their own."""

    def __init__(self, recipe, examples, device):
        super().__init__(recipe, examples, device)
        vqvae = copy.deepcopy(examples[0])
        self.modules["encoder"], self.modules["quantizer"] = self.encoder, self.quantizer = (
            vqvae.encoder,
            vqvae.quantizer,
        )

    def optimizers(self):
        discriminator, (decoder,) = super().optimizers()
        decoder.add_param_group({"params": list(self.encoder.parameters())})
        return [discriminator, [decoder]]

    def inputs(self, batch):
        images = data.to_images(self.pixels[batch.examples()])
        self.latents = self.encoder(images)
        self.quantized = self.quantizer(self.latents)
        return images, self.quantized.latents

    def forward(self, *inputs, module="model"):
        inputs = (inputs[0], inputs[1].detach()) if module == "discriminator" else inputs
        return super().forward(*inputs, module=module)

    def losses(self, batch):
        losses = super().losses(batch)
        yield next(losses)
        yield next(losses) + self.recipe.mse * self.quantized.losses["commitment"]

    def after_step(self, batch):
        vectors = rearrange(self.latents.detach(), "b d h w -> (b h w) d")
        self.quantizer.ema_step(vectors, self.quantized.codes.flatten(), 0.99, 0.33, batch.generator)

    @torch.no_grad()
    def evaluate(self, examples):
        vqvae, _, pixels = examples
        vqvae = copy.deepcopy(vqvae)
        vqvae.encoder, vqvae.quantizer = self.encoder, self.quantizer
        return super().evaluate((vqvae, encode_pixels(vqvae, pixels), pixels))


ALONE = {"matching": 0.0, "adversarial": 0.0}
VARIANTS = {  # name: (changes to the recipe, stage)
    "crisp": ({}, DecoderStage),
    "matching alone": ({"adversarial": 0.0}, DecoderStage),
    "adversarial alone": ({"matching": 0.0}, DecoderStage),
    "neither": (ALONE, DecoderStage),
    "no MSE": ({"mse": 0.0}, DecoderStage),
    "adversarial alone, no MSE": ({"matching": 0.0, "mse": 0.0}, DecoderStage),
    "critic's features, no discriminator": (ALONE, Perceptual),
    "with R1": ({}, GradientPenalty),
    "discriminator blind to the codes": ({}, BlindToCodes),
    "decoder from nothing": ({}, FromNothing),
    "whole tokenizer": ({}, WholeTokenizer),
    "fabrics": ({"fabrics": True}, DecoderStage),
}
# The plane of MSE and Fréchet distance in notebook 07: both losses of the discriminator times one weight.
PLANE = {f"weight {w:g}": ({"adversarial": w, "matching": 4 * w}, DecoderStage) for w in (0.03, 0.1, 0.3, 3, 10)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=VARIANTS | PLANE, default=list(VARIANTS | PLANE))
    parser.add_argument("--pictures", type=int, default=55_000, help="how many pictures each variant sees, once")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    pair, (train, held_out) = vqlib.load_pair(shipped=True), data.split_validation(data.load("train"))
    train, folder = train.subset(slice(0, options.pictures)), checkpoints.runs_folder() / "decoders"
    third = dataclasses.replace(CRITIC, name="third", seed=2)
    third = training.train_classifier(third, train, path=folder / "third.safetensors")
    codes = encode_pixels(pair.vqvae, held_out.pixels)
    samples = {T: scorecard.write(pair, len(held_out), T, 1.0)[0] for T in (0.8, 1.0)}
    rows = {"soft": figures(pair.vqvae.decoder, pair.vqvae, codes, samples, held_out, third)}
    for name in options.only:
        changes, stage = VARIANTS.get(name) or PLANE[name]
        recipe = dataclasses.replace(CRISP, name=name, epochs=1, **changes)
        path = folder / f"{'-'.join(name.replace(',', '').split())}.safetensors"
        decoder = stages._train(stage, recipe, (train, held_out, None), path, None, True, pair.vqvae)
        if stage is WholeTokenizer:  # its codes are its own, and so is what was measured with them
            rows[name] = decoder.info["history"]["epochs"][-1]
        else:
            rows[name] = figures(decoder, pair.vqvae, codes, samples, held_out, third)
        print(name, rows[name], flush=True)
    kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    options.out.write_text(json.dumps(kept | rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@torch.no_grad()
def figures(decoder, vqvae, codes, samples, held_out, third):
    """Of the copies of the held-out pictures, and the critic's Fréchet distance of samples at T = 0.8 and 1."""
    critic, images = checkpoints.load_classifier("critic", shipped=True), data.to_images(held_out.pixels)
    row = evaluation.evaluate_decoder(decoder, vqvae, codes, held_out.pixels, critic)
    row["fid_third"] = evaluation.evaluate_decoder(decoder, vqvae, codes, held_out.pixels, third)["fid"]
    real = classify(critic, images)[1]
    for T, sampled in samples.items():
        parts = [
            draw(decoder, vqvae.quantizer.lookup(part), torch.Generator().manual_seed(1)) for part in sampled.split(500)
        ]
        row[f"fid_samples_{T:g}"] = evaluation.frechet_distance(classify(critic, torch.cat(parts))[1], real)
    return row


if __name__ == "__main__":
    main()
