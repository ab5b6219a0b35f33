"""The first stage that DALL·E 1 itself has: a discrete VAE, which learns to choose by choosing softly (notebook 08).

The encoder gives K logits per cell in place of a vector. In training the cell gets a mixture of all K codebook vectors,
whose weights are drawn by the Gumbel-softmax: they can be differentiated, and as the temperature falls they turn into a
choice of one. In use the likeliest code wins. Nothing has to be passed straight through, and no codebook to be moved.

Ramesh et al., "Zero-Shot Text-to-Image Generation" (arXiv 2102.12092), section 2.1 and appendix A; the relaxation is
from Jang, Gu, Poole (arXiv 1611.01144) and Maddison, Mnih, Teh (arXiv 1611.00712).
"""

import math

import torch
from einops import rearrange
from torch import nn

from vqlib.vqvae import Decoder, Quantized, widened


def gumbel_noise(shape, generator=None):
    """-log(-log u) of uniform u, float32 on the CPU: what turns an argmax into a draw (see `sampling`)."""
    uniform = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
    return -(-uniform.clamp(min=torch.finfo(torch.float32).tiny).log()).log()


def gumbel_softmax(logits, noise, temperature):
    """Weights that add up to 1 and lean on one code: (..., K) logits and Gumbel noise -> (..., K), τ = temperature > 0.

    argmax(logits + noise) is a draw from softmax(logits), by Gumbel-max. This is the same with a softmax in place of
    the argmax: as τ → 0 it becomes the one-hot vector of that draw, and as τ grows an even mixture.
    """
    return ((logits + noise) / temperature).softmax(-1)


def kl_to_uniform(logits):
    """KL(q ‖ uniform) of each cell's q = softmax(logits), in nats: (..., K) -> (...), from 0 to ln K.

    ln K less the entropy of q: what a cell pays for being sure of its code.
    """
    log_q = logits.log_softmax(-1)
    return (log_q.exp() * log_q).sum(-1) + math.log(logits.shape[-1])


def squeeze_pixels(images):
    """[-1, 1] -> [0.1, 0.9]: logit(x), which the likelihood needs, is infinite at 0 and 1 (A.3, with ε = 0.1)."""
    return 0.5 + 0.4 * images


def expand_pixels(x):
    """The way back from [0.1, 0.9], where what a network draws may lie outside: -> [-1, 1]."""
    return ((x - 0.5) / 0.4).clamp(-1, 1)


def logit_laplace(x, mu, ln_b):
    """-ln p(x) of the logit-Laplace distribution, in nats, for each x in (0, 1) (section A.3).

    p(x) = exp(-|logit x - μ| / b) / (2b x (1 - x)): a Laplace distribution of logit x, so that no x outside (0, 1) gets
    a share of the probability, as it does with a Gaussian. A smaller b says that the network is surer of this pixel.
    """
    return (x.logit() - mu).abs() * (-ln_b).exp() + ln_b + (2 * x * (1 - x)).log()


def temperature_at(done):
    """The Gumbel-softmax's τ when a share ``done`` of the training is over: from 1 down to 1/2, at three quarters.

    The paper goes down to 1/16, over 150,000 steps. In a training as short as ours 1/2 gives the better codes.
    """
    return 0.5 ** min(1.0, done / 0.75)


def kl_weight_at(done, weight):
    """The KL's weight: it rises over the first tenth of the training, since it would keep all codes alike at first."""
    return weight * min(1.0, done / 0.1)


class GumbelQuantizer(nn.Module):
    """The quantizer of a `VQVAE` with ``quantizer="gumbel"``. What it is given are logits, (B, K, 7, 7)."""

    ema = False

    def __init__(self, config):
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(config.num_codes, config.code_dim))

    def nearest(self, logits):
        """The likeliest codes: (..., K) -> (...) int64."""
        return widened(logits).argmax(-1)

    def lookup(self, codes):
        """(B, 7, 7) int64 codes -> (B, D, 7, 7) float, their vectors."""
        return rearrange(self.codebook[codes], "b h w d -> b d h w")

    def forward(self, logits):
        """The hard choice, as in use: (B, K, 7, 7) -> `Quantized`, with the KL in nats per cell as its loss."""
        logits = rearrange(logits, "b k h w -> b h w k")
        codes = self.nearest(logits)
        return Quantized(self.lookup(codes), codes, {"kl": kl_to_uniform(logits.float()).mean()})

    def relaxed(self, logits, noise, temperature):
        """The soft choice, for training: (B, K, 7, 7), noise (B, 7, 7, K) -> (B, D, 7, 7), mixtures of the codebook."""
        weights = gumbel_softmax(rearrange(logits, "b k h w -> b h w k"), noise, temperature)
        return rearrange(weights @ self.codebook, "b h w d -> b d h w")


class LaplaceDecoder(Decoder):
    """(B, D, 7, 7) -> μ and ln b of each pixel's logit-Laplace (`parameters_of`); called, the pictures at their μ."""

    def __init__(self, config):
        super().__init__(config)
        self[-2] = nn.ConvTranspose2d(config.channels // 2, 2, 4, stride=2, padding=1)
        self[-1] = nn.Identity()  # in place of the tanh

    def parameters_of(self, latents):
        mu, ln_b = super().forward(latents).chunk(2, 1)
        return mu, ln_b

    def forward(self, latents):
        """-> (B, 1, 28, 28) images in [-1, 1]."""
        mu, _ = self.parameters_of(latents)
        return expand_pixels(mu.sigmoid())
