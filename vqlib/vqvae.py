"""The first stage: a VQ-VAE turns a 28×28 picture into 7×7 codes out of K = 64, and back (notebook 02).

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
    code_dim: int = 16  # D, the dimensions of a code
    channels: int = 64  # width at 7×7; half of it at 14×14
    residual_blocks: int = 2  # in the encoder, and again in the decoder
    quantizer: str = "gradient"  # how the codebook learns: by "gradient" (eq. 3), or as moving averages, "ema" (A.1)

    def __post_init__(self):
        for name, least in (("num_codes", 1), ("code_dim", 1), ("channels", 2), ("residual_blocks", 0)):
            checks.check_whole(name, getattr(self, name), least)
        checks.check_choice("quantizer", self.quantizer, ("gradient", "ema"))


class ResidualBlock(nn.Module):
    """x + conv1×1(relu(conv3×3(relu(x)))): the block of the VQ-VAE paper, section 4.1."""

    def __init__(self, channels):
        super().__init__()
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x + self.conv1(F.relu(self.conv3(F.relu(x))))


class Encoder(nn.Sequential):
    """(B, 1, 28, 28) images in [-1, 1] -> (B, D, 7, 7) latents. Without BatchNorm: a picture's codes are its own."""

    def __init__(self, config):
        c = config.channels
        super().__init__(
            nn.Conv2d(1, c // 2, 4, stride=2, padding=1),  # 28 -> 14
            nn.ReLU(),
            nn.Conv2d(c // 2, c, 4, stride=2, padding=1),  # 14 -> 7
            *[ResidualBlock(c) for _ in range(config.residual_blocks)],
            nn.ReLU(),
            nn.Conv2d(c, config.code_dim, 1),
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


class Quantized(NamedTuple):
    latents: torch.Tensor  # (B, D, 7, 7), each vector replaced by its code; gradients pass straight through
    codes: torch.Tensor  # (B, 7, 7) int64 in 0…K-1
    losses: dict[str, torch.Tensor]  # what quantizing adds to the loss: a () tensor for each term, not yet weighted


class VectorQuantizer(nn.Module):
    """Replace each latent vector by the nearest of K codes (eq. 1 and 2).

    `forward` never changes the codebook. With ``quantizer="gradient"`` the codebook learns through the loss term
    "codebook"; with "ema" a training loop calls `ema_update` after each step.
    """

    def __init__(self, config):
        super().__init__()
        K, D = config.num_codes, config.code_dim
        self.ema = config.quantizer == "ema"
        self.codebook = nn.Parameter(torch.empty(K, D).uniform_(-1 / K, 1 / K), requires_grad=not self.ema)
        self.register_buffer("ema_count", torch.ones(K))  # N_i of appendix A.1
        self.register_buffer("ema_sum", self.codebook.detach().clone())  # m_i

    def nearest(self, vectors):
        """The codes nearest to vectors: (..., D) float -> (...) int64."""
        return nearest(vectors, self.codebook)

    def forward(self, latents):
        """(B, D, 7, 7) float latents -> `Quantized`."""
        with torch.autocast(latents.device.type, enabled=False):  # distances are differences of near-equal numbers
            z = rearrange(latents, "b d h w -> b h w d").to(self.codebook.dtype)
            codes = self.nearest(z)
            q = F.embedding(codes, self.codebook)  # indexing would do, but its gradient sums in no fixed order
            losses = {} if self.ema else {"codebook": F.mse_loss(q, z.detach())}  # moves the codes towards z
            losses["commitment"] = F.mse_loss(z, q.detach())  # moves z towards its code
            q = z + (q - z).detach()  # straight-through: the value of q, the gradient of z
        return Quantized(rearrange(q, "b h w d -> b d h w"), codes, losses)

    def lookup(self, codes):
        """(B, 7, 7) int64 codes -> (B, D, 7, 7) code vectors."""
        return rearrange(self.codebook[codes], "b h w d -> b d h w")

    @torch.no_grad()
    def init_from(self, vectors, generator=None):
        """Start the codebook at the k-means centres of ``vectors``, so that each code begins where there is data.

        vectors: (N, D) float, N ≥ K. Raises ValueError if they are something else.
        """
        K, D = self.codebook.shape
        checks.check_tensor("vectors", vectors, ("N", D), float)
        checks.check_whole("the number of vectors", len(vectors), K)
        centres, assigned = kmeans(vectors, K, generator=generator)
        self.codebook.copy_(centres)
        self.ema_count.copy_(torch.bincount(assigned, minlength=K))
        self.ema_count.mul_(K / self.ema_count.sum()).clamp_(min=1e-3)
        self.ema_sum.copy_(centres * self.ema_count[:, None])

    def ema_update(self, vectors, codes, decay=0.99, revive_below=0.0, generator=None):
        """One step of appendix A.1: each code moves towards the mean of the vectors that chose it.

        vectors: (N, D) float, the encoder's output, N ≥ 1. codes: (N,) int64, the code that each of them chose.
        decay: γ in the paper, in [0, 1]. revive_below: a code whose moving share of the vectors falls below this
        fraction of an even share (1/K) is dead, and restarts at a random vector of the batch; 0 revives none.
        Returns the number of revived codes, () int64. Raises ValueError, before anything changes, for other arguments.
        """
        K, D = self.codebook.shape
        checks.check_number("decay", decay, 0, 1)
        checks.check_number("revive_below", revive_below, 0)
        checks.check_tensor("codes", codes, ("N",), torch.int64, 0, K - 1)
        checks.check_whole("the number of codes", len(codes), 1)
        checks.check_tensor("vectors", vectors, (len(codes), D), self.codebook.dtype)
        return self._ema_step(vectors, codes, decay, revive_below, generator)

    @torch.no_grad()
    def _ema_step(self, vectors, codes, decay, revive_below, generator):
        K = len(self.codebook)
        chosen = F.one_hot(codes, K).to(vectors.dtype)  # (N, K)
        self.ema_count.lerp_(chosen.sum(0) * (K / len(codes)), 1 - decay)  # 1 = an even share
        self.ema_sum.lerp_(chosen.T @ vectors * (K / len(codes)), 1 - decay)
        dead = self.ema_count < revive_below
        picks = torch.randint(len(vectors), (K,), generator=generator).to(vectors.device)
        self.ema_count.copy_(torch.where(dead, torch.ones_like(self.ema_count), self.ema_count))
        self.ema_sum.copy_(torch.where(dead[:, None], vectors[picks], self.ema_sum))
        alive = self.ema_count > 1e-5  # below that, sum / count is mere rounding: leave the code where it is
        self.codebook.copy_(torch.where(alive[:, None], self.ema_sum / self.ema_count[:, None], self.codebook))
        return dead.sum()


class VQVAEOutput(NamedTuple):
    images: torch.Tensor  # (B, 1, 28, 28) reconstructions in [-1, 1]
    latents: torch.Tensor  # (B, D, 7, 7), the encoder's output, before quantization
    quantized: Quantized


class VQVAE(nn.Module):
    """Encoder, quantizer and decoder. Every layer treats each picture alone, so codes do not depend on the batch."""

    def __init__(self, config: VQVAEConfig | None = None):
        super().__init__()
        self.config = config or VQVAEConfig()
        self.encoder = Encoder(self.config)
        self.quantizer = VectorQuantizer(self.config)
        self.decoder = Decoder(self.config)

    def forward(self, images: torch.Tensor) -> VQVAEOutput:
        """(B, 1, 28, 28) float images in [-1, 1] -> `VQVAEOutput`. Changes nothing in the model, in any mode."""
        latents = self.encoder(images)
        quantized = self.quantizer(latents)
        return VQVAEOutput(self.decoder(quantized.latents), latents, quantized)

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1, 28, 28) images in [-1, 1], in the model's dtype -> (B, 7, 7) int64 codes in 0…K-1.

        Raises ValueError for another shape, dtype or range.
        """
        remedy = "data.to_images(pixels) makes them from (B, 28, 28) uint8 pixels"
        checks.check_tensor("images", images, ("B", 1, 28, 28), self.quantizer.codebook.dtype, -1, 1, remedy)
        return self.quantizer.nearest(rearrange(self.encoder(images), "b d h w -> b h w d"))

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """(B, 7, 7) int64 codes in 0…K-1 -> (B, 1, 28, 28) images in [-1, 1].

        Raises ValueError for another shape or dtype, or if a token that is not a code is among them.
        """
        checks.check_codes(codes, self.config.num_codes)
        return self.decoder(self.quantizer.lookup(codes))


@torch.no_grad()
def kmeans(points, k, iterations=20, generator=None):
    """Lloyd's algorithm: (N, D) float points, N ≥ k -> centres (k, D), and each point's centre (N,) int64.

    Starts at k of the points, drawn at random. A centre that loses all its points moves to a random one.
    """
    centres = points[torch.randperm(len(points), generator=generator)[:k].to(points.device)]
    for _ in range(iterations):
        assigned = nearest(points, centres)
        count = torch.bincount(assigned, minlength=k)
        total = torch.zeros_like(centres).index_add_(0, assigned, points)
        empty = points[torch.randint(len(points), (k,), generator=generator).to(points.device)]
        centres = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], empty)
    return centres, nearest(points, centres)


def nearest(vectors, centres):
    """Index of the nearest of K centres: (..., D), (K, D) float -> (...) int64. Ties go to the lower index."""
    distances = centres.pow(2).sum(1) - 2 * vectors @ centres.T  # without |v|², which is the same for all centres
    return distances.argmin(-1)
