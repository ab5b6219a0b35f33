"""The same codes, drawn crisply: a decoder that is trained against a discriminator (notebook 07).

With the mean squared error alone a decoder draws the average of all pictures that have the same codes, and an average
is blurred. Here a second network, the discriminator, learns to tell what the decoder draws from the pictures
themselves, and the decoder learns from its objections. Encoder and codebook stay as they are, so the codes do, too.

Goodfellow et al., "Generative Adversarial Networks" (arXiv 1406.2661); the recipe around it follows VQGAN: Esser,
Rombach and Ommer, "Taming Transformers for High-Resolution Image Synthesis" (arXiv 2012.09841).
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from vqlib import checks
from vqlib.vqvae import GRID, Decoder


@dataclass(frozen=True)
class DiscriminatorConfig:
    code_dim: int = 16  # D of the codebook whose vectors it sees
    channels: int = 96  # width at 7×7; half of it at 14×14

    def __post_init__(self):
        checks.check_whole("code_dim", self.code_dim, 1)
        checks.check_whole("channels", self.channels, 2)


class Verdict(NamedTuple):
    logits: torch.Tensor  # (B, 7, 7) float32, one per cell: above 0, it takes the picture for a real one there
    features: list[torch.Tensor]  # what its three layers see: (B, c/2, 14, 14), (B, c, 7, 7), (B, c, 7, 7)


class Discriminator(nn.Module):
    """Is this a picture of the data set, or has a decoder drawn it? (B, 1, 28, 28), (B, D, 7, 7) -> `Verdict`.

    It sees the codes' vectors beside the picture, so that it can object to a picture that doesn't go with them. With
    matching and the squared error beside it that hardly matters, since those tie a drawing to its picture anyway. It
    judges each cell for itself, from 18×18 pixels around it: a discriminator that sees all of the picture needs only
    one sign that betrays a drawing, and has nothing to say about the rest (PatchGAN, arXiv 1611.07004).
    """

    def __init__(self, config: DiscriminatorConfig | None = None):
        super().__init__()
        self.config = config or DiscriminatorConfig()
        c = self.config.channels
        self.fine = nn.Conv2d(1, c // 2, 4, stride=2, padding=1)  # 28 -> 14; sees 4×4 pixels
        self.coarse = nn.Conv2d(c // 2, c, 4, stride=2, padding=1)  # 14 -> 7; 10×10
        self.joint = nn.Conv2d(c + self.config.code_dim, c, 3, padding=1)  # picture and codes together; 18×18
        self.verdict = nn.Conv2d(c, 1, 1)

    def forward(self, images, latents):
        fine = F.leaky_relu(self.fine(images), 0.2)
        coarse = F.leaky_relu(self.coarse(fine), 0.2)
        joint = F.leaky_relu(self.joint(torch.cat([coarse, latents], 1)), 0.2)
        return Verdict(self.verdict(joint)[:, 0].float(), [fine, coarse, joint])


def discriminator_loss(real: Verdict, drawn: Verdict) -> torch.Tensor:
    """Cross-entropy of "real or drawn?", a () tensor: -log σ(real) - log(1 - σ(drawn)), averaged over the cells."""
    return F.softplus(-real.logits).mean() + F.softplus(drawn.logits).mean()


def adversarial_loss(drawn: Verdict) -> torch.Tensor:
    """-log σ(drawn), a () tensor: small when the discriminator takes the drawing for real.

    This is the non-saturating form. log(1 - σ(drawn)), which the decoder is really after, has next to no gradient as
    long as every drawing is found out, and so just when there is most to learn (1406.2661, section 3).
    """
    return F.softplus(-drawn.logits).mean()


def matching_loss(real: Verdict, drawn: Verdict, other: Verdict | None = None) -> torch.Tensor:
    """How far the drawing's features are from the real picture's: mean |r - a|, a () tensor (arXiv 1512.09300).

    The discriminator has learned to see what gives a drawing away. So its features say where to go, not only that
    something is wrong. With the verdict on another drawing of the same codes this is (|r - a| + |r - b| - |a - b|) / 2:
    it pays for two drawings to differ as much as either differs from the picture (the energy score of Gneiting and
    Raftery, 2007, of each number by itself; with one drawing twice it is the first form).
    """
    other, terms = other or drawn, []
    for r, a, b in zip(real.features, drawn.features, other.features, strict=True):
        terms.append(((r - a).float().abs() + (r - b).float().abs() - (a - b).float().abs()).mean() / 2)
    return sum(terms) / len(terms)


def squared_error(images, drawn, other=None) -> torch.Tensor:
    """The mean squared error of a drawing, a () tensor; or of the mean of all drawings of these codes, from two.

    If a and b are drawn independently, the mean of (x - a)(x - b) is the squared distance from x to the mean drawing: a
    drawing may be as far from the mean as it likes, without being pulled back into the blur.
    """
    return ((images - drawn) * (images - (drawn if other is None else other))).mean()


class FabricDecoder(Decoder):
    """A decoder that sees a random number in each cell beside the code's vector, and draws another fabric for another.

    (B, D, 7, 7) latents, and (B, 1, 7, 7) noise from N(0, 1) -> (B, 1, 28, 28) images in [-1, 1]. Without noise
    it draws all pictures with the same, which belongs to the weights.
    """

    def __init__(self, config):
        super().__init__(dataclasses.replace(config, code_dim=config.code_dim + 1))
        self.config = config
        self.register_buffer("usual", torch.randn(1, 1, GRID, GRID))

    @classmethod
    def like(cls, decoder):
        """A new one that starts with the weights of a plain decoder, and with random ones for the noise."""
        new, state = cls(decoder.config), decoder.state_dict()
        state["0.weight"] = torch.cat([state["0.weight"], new[0].weight[:, decoder.config.code_dim :].detach()], 1)
        new.load_state_dict({**state, "usual": new.usual})
        return new

    def forward(self, latents, noise=None):
        noise = self.usual if noise is None else noise
        return super().forward(torch.cat([latents, noise.expand(len(latents), 1, GRID, GRID)], 1))


@torch.no_grad()
def draw(decoder, latents, generator=None):
    """One drawing of each of (B, D, 7, 7) latents; a `FabricDecoder` gets noise of the generator."""
    if not isinstance(decoder, FabricDecoder):
        return decoder(latents)
    noise = torch.randn(len(latents), 1, GRID, GRID, generator=generator, device="cpu")
    return decoder(latents, noise.to(latents))
