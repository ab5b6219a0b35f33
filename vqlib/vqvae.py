"""The first stage: a VQ-VAE turns a 28×28 picture into 7×7 codes out of K = 64, and back (notebook 02).

The encoder turns a picture into 7×7 vectors of D numbers, its latents. The quantizer replaces each by the nearest of K
learned vectors, which together are the codebook. A code is the number of such a vector, 0…K-1: so a picture becomes 49
whole numbers, which the second stage can predict like words. The decoder draws the vectors that the codes stand for.

van den Oord, Vinyals, Kavukcuoglu, "Neural Discrete Representation Learning" (arXiv 1711.00937).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vqlib import checks

GRID = 7  # codes per side: two convolutions of stride 2 take 28 to 14 to 7


@dataclass(frozen=True)
class VQVAEConfig:
    num_codes: int = 64  # K, the size of the codebook
    code_dim: int = 16  # D, the dimensions of a codebook vector
    channels: int = 64  # width at 7×7; half of it at 14×14
    residual_blocks: int = 2  # in the encoder, and again in the decoder
    # How codes are chosen and learned: the nearest, by "gradient" (eq. 3) or as moving averages, "ema" (A.1); or the
    # likeliest, by "gumbel", as in DALL·E 1 (`dvae`).
    quantizer: str = "gradient"

    def __post_init__(self):
        for name, least in (("num_codes", 1), ("code_dim", 1), ("channels", 2), ("residual_blocks", 0)):
            checks.check_whole(name, getattr(self, name), least)
        checks.check_choice("quantizer", self.quantizer, ("gradient", "ema", "gumbel"))

    @property
    def latent_dim(self) -> int:
        """What the encoder gives per cell: a vector, or with "gumbel" a logit for each code."""
        return self.num_codes if self.quantizer == "gumbel" else self.code_dim


class ResidualBlock(nn.Module):
    """x + conv1×1(relu(conv3×3(relu(x)))): the block of the VQ-VAE paper, section 4.1."""

    def __init__(self, channels):
        super().__init__()
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x + self.conv1(F.relu(self.conv3(F.relu(x))))


class Encoder(nn.Sequential):
    """(B, 1, 28, 28) images in [-1, 1] -> (B, D, 7, 7) latents, or with "gumbel" (B, K, 7, 7) logits.

    There is no BatchNorm, so a picture's codes do not depend on the rest of its batch.
    """

    def __init__(self, config):
        c = config.channels
        super().__init__(
            nn.Conv2d(1, c // 2, 4, stride=2, padding=1),  # 28 -> 14
            nn.ReLU(),
            nn.Conv2d(c // 2, c, 4, stride=2, padding=1),  # 14 -> 7
            *[ResidualBlock(c) for _ in range(config.residual_blocks)],
            nn.ReLU(),
            nn.Conv2d(c, config.latent_dim, 1),
        )


class Decoder(nn.Sequential):
    """(B, D, 7, 7) quantized latents -> (B, 1, 28, 28) images in [-1, 1]."""

    def __init__(self, config):
        c = config.channels
        super().__init__(
            nn.Conv2d(config.code_dim, c, 3, padding=1),
            *[ResidualBlock(c) for _ in range(config.residual_blocks)],
            nn.ReLU(),
            nn.ConvTranspose2d(c, c // 2, 4, stride=2, padding=1),  # 7 -> 14
            ResidualBlock(c // 2),  # the details are drawn at 14×14: a block here helps more than width at 7×7
            nn.ReLU(),
            nn.ConvTranspose2d(c // 2, 1, 4, stride=2, padding=1),  # 14 -> 28
            nn.Tanh(),
        )
        self.config = config


class Quantized(NamedTuple):
    latents: torch.Tensor  # (B, D, 7, 7), each vector replaced by the nearest of the codebook
    codes: torch.Tensor  # (B, 7, 7) int64 in 0…K-1, which ones those are
    losses: dict[str, torch.Tensor]  # what quantizing adds to the loss: a () tensor per term, not yet weighted


class VectorQuantizer(nn.Module):
    """Replace each latent vector by the nearest of the K vectors of the codebook (eq. 1 and 2).

    `forward` never changes the codebook. With ``quantizer="gradient"`` it learns through the loss term "codebook"; with
    "ema" a training loop calls `ema_update` after each step.
    """

    def __init__(self, config):
        super().__init__()
        K, D = config.num_codes, config.code_dim
        self.ema = config.quantizer == "ema"
        self.codebook = nn.Parameter(torch.empty(K, D).uniform_(-1 / K, 1 / K), requires_grad=not self.ema)
        self.register_buffer("ema_count", torch.ones(K))  # N_i in A.1: how often each is chosen; 1 is an even share
        self.register_buffer(
            "ema_sum", self.codebook.detach().clone()
        )  # m_i: the sum of what chose it; codebook = m_i / N_i

    def nearest(self, vectors):
        """The codes of the nearest codebook vectors: (..., D) float -> (...) int64."""
        codebook = widened(self.codebook)
        return nearest_index(vectors.to(codebook.dtype), codebook)

    def forward(self, latents):
        """(B, D, 7, 7) float latents -> `Quantized`."""
        with torch.autocast(latents.device.type, enabled=False):
            codebook = widened(self.codebook)
            z = rearrange(latents, "b d h w -> b h w d").to(codebook.dtype)
            codes = self.nearest(z)
            q = F.embedding(codes, codebook)  # codebook[codes], with its gradient summed in a fixed order
            losses = {}
            if not self.ema:  # moves the codebook towards z: the decoder's gradient never reaches it, see below
                losses["codebook"] = F.mse_loss(q, z.detach())
            losses["commitment"] = F.mse_loss(z, q.detach())  # keeps z near q, or it would drift ever further away
            # Choosing the nearest has no gradient. So the decoder gets the value of q, and its gradient goes to z as if
            # nothing had been replaced: straight through. That is a good approximation while z and q are close.
            q = z + (q - z).detach()
        return Quantized(rearrange(q, "b h w d -> b d h w").to(self.codebook.dtype), codes, losses)

    def lookup(self, codes):
        """(B, 7, 7) int64 codes -> (B, D, 7, 7) float, their vectors."""
        return rearrange(self.codebook[codes], "b h w d -> b d h w")

    @torch.no_grad()
    def init_from(self, vectors, generator=None):
        """Start the codebook at the k-means centres of ``vectors``, so that it begins where there is data.

        vectors: (N, D) float, N ≥ K. Raises ValueError if they are something else.
        """
        K, D = self.codebook.shape
        checks.check_tensor("vectors", vectors, ("N", D), float)
        checks.check_whole(f"the number of vectors for {K} codes", len(vectors), K)
        centres, assigned = kmeans(vectors, K, generator=generator)
        count = torch.bincount(assigned, minlength=K).to(centres.dtype)
        count = (count * (K / count.sum())).clamp(min=1e-3)
        self.codebook.copy_(centres)
        self.ema_count.copy_(count)
        self.ema_sum.copy_(centres * count[:, None])

    def ema_update(self, vectors, codes, decay=0.99, revive_below=0.0, generator=None):
        """One step of appendix A.1: each codebook vector moves towards the mean of the latents that chose it.

        vectors: (N, D) float, the encoder's output, N ≥ 1. codes: (N,) int64, what each of them chose.
        decay: γ in the paper, in [0, 1]. revive_below: a code whose moving-average share falls below this fraction of
        an even share (1/K) is dead, and restarts at a random vector of the batch; 0 revives none.
        Returns the number of revived codes, () int64. Raises ValueError, before anything changes, for other arguments.
        """
        K, D = self.codebook.shape
        checks.check_number("decay", decay, 0, 1)
        checks.check_number("revive_below", revive_below, 0)
        checks.check_tensor("codes", codes, ("N",), torch.int64, 0, K - 1)
        checks.check_whole("the number of codes", len(codes), 1)
        remedy = "Averages in half precision lose their small steps. Train in float32, with autocast if need be"
        checks.check_choice("the codebook's dtype", self.codebook.dtype, (torch.float32, torch.float64), remedy)
        checks.check_tensor("vectors", vectors, (len(codes), D), self.codebook.dtype)
        with torch.autocast(vectors.device.type, enabled=False):
            return self.ema_step(vectors, codes, decay, revive_below, generator)

    @torch.no_grad()
    def ema_step(self, vectors, codes, decay, revive_below, generator):
        """`ema_update` without its checks: the arithmetic alone."""
        K = len(self.codebook)
        chosen = F.one_hot(codes, K).to(vectors.dtype)  # (N, K)
        self.ema_count.lerp_(chosen.sum(0) * (K / len(codes)), 1 - decay)
        self.ema_sum.lerp_(chosen.T @ vectors * (K / len(codes)), 1 - decay)
        dead = self.ema_count < revive_below
        picks = torch.randint(len(vectors), (K,), generator=generator, device="cpu")  # as many, whoever is dead
        picks = picks.to(vectors.device)
        self.ema_count.copy_(torch.where(dead, torch.ones_like(self.ema_count), self.ema_count))
        self.ema_sum.copy_(torch.where(dead[:, None], vectors[picks], self.ema_sum))
        alive = self.ema_count > 1e-5  # below that, count and sum are rounding errors: leave it where it is
        self.codebook.copy_(torch.where(alive[:, None], self.ema_sum / self.ema_count[:, None], self.codebook))
        return dead.sum()


class VQVAEOutput(NamedTuple):
    images: torch.Tensor  # (B, 1, 28, 28) reconstructions in [-1, 1]
    latents: torch.Tensor  # (B, D, 7, 7), the encoder's output, before quantization
    quantized: Quantized


class VQVAE(nn.Module):
    """Encoder, quantizer and decoder."""

    def __init__(self, config: VQVAEConfig | None = None):
        super().__init__()
        self.config = config or VQVAEConfig()
        kinds = VectorQuantizer, Decoder
        if self.config.quantizer == "gumbel":
            from vqlib.dvae import GumbelQuantizer, LaplaceDecoder  # here, because it builds on this module

            kinds = GumbelQuantizer, LaplaceDecoder
        self.encoder = Encoder(self.config)
        self.quantizer, self.decoder = (kind(self.config) for kind in kinds)

    def forward(self, images: torch.Tensor) -> VQVAEOutput:
        """(B, 1, 28, 28) float images in [-1, 1] -> `VQVAEOutput`. Changes nothing in the model, in any mode."""
        latents = self.encoder(images)
        quantized = self.quantizer(latents)
        return VQVAEOutput(self.decoder(quantized.latents), latents, quantized)

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1, 28, 28) images in [-1, 1], in the model's dtype -> (B, 7, 7) int64 codes in 0…K-1.

        Raises ValueError for another shape, dtype or range. Warns if the images seem to be in [0, 1].
        """
        checks.check_images("images", images, self.quantizer.codebook.dtype)
        return self.quantizer.nearest(rearrange(self.encoder(images), "b d h w -> b h w d"))

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """(B, 7, 7) int64 codes in 0…K-1 -> (B, 1, 28, 28) images in [-1, 1], in the model's dtype.

        Raises ValueError for another shape, dtype or range.
        """
        checks.check_codes(codes, self.config.num_codes)
        return self.decoder(self.quantizer.lookup(codes))


@torch.no_grad()
def kmeans(points, k, iterations=20, generator=None):
    """Lloyd's algorithm: (N, D) float points, N ≥ k -> centres (k, D), and each point's centre (N,) int64.

    Starts at k of the points, drawn at random. A centre that loses all its points moves to a random point. The centres
    are float32, even if the points are in half precision, or else what the points are.
    """
    points = widened(points)
    centres = points[torch.randperm(len(points), generator=generator, device="cpu")[:k].to(points.device)]
    for _ in range(iterations):
        assigned = nearest_index(points, centres)
        count = torch.bincount(assigned, minlength=k)
        total = torch.zeros_like(centres).index_add_(0, assigned, points)
        picks = torch.randint(len(points), (k,), generator=generator, device="cpu")
        replacements = points[picks.to(points.device)]
        centres = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], replacements)
    return centres, nearest_index(points, centres)


def nearest_index(vectors, centres):
    """Index of the nearest of K centres: (..., D), (K, D) float -> (...) int64. Ties go to the lower index."""
    with torch.autocast(vectors.device.type, enabled=False):  # in half precision, rounding would choose
        distances = centres.pow(2).sum(1) - 2 * vectors @ centres.T  # |v - c|² less |v|², which is the same for all c
    return distances.argmin(-1)


def widened(x):
    """x in float32, or as it is if that is wider: of sums and comparisons in half precision, rounding decides."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
