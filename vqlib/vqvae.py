"""The first stage: a VQ-VAE that turns a 28×28 picture into 7×7 codes out of K = 64, and back (notebook 02).

van den Oord, Vinyals, Kavukcuoglu, "Neural Discrete Representation Learning" (arXiv 1711.00937).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vqlib import data

GRID = 7  # codes a side: two stride-2 convolutions take 28 to 14 to 7


@dataclass(frozen=True)
class VQVAEConfig:
    num_codes: int = 64       # K, the size of the codebook
    code_dim: int = 16        # D, the dimensions of a code
    channels: int = 64        # width at 7×7; half of it at 14×14
    residual_blocks: int = 2  # in the encoder, and again in the decoder
    ema: bool = False         # False: the codebook learns by gradient (eq. 3); True: by moving averages (appendix A.1)

    def __post_init__(self):
        for name, least in (("num_codes", 1), ("code_dim", 1), ("channels", 2), ("residual_blocks", 0)):
            data.check_whole(name, getattr(self, name), least)


class ResidualBlock(nn.Module):
    """x + conv1×1(relu(conv3×3(relu(x)))): the block of the VQ-VAE paper, section 4.1."""

    def __init__(self, channels):
        super().__init__()
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x + self.conv1(F.relu(self.conv3(F.relu(x))))


class Encoder(nn.Sequential):
    """(B, 1, 28, 28) images in [-1, 1] -> (B, D, 7, 7) latents. No BatchNorm: a picture's codes are its own."""

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
            ResidualBlock(c // 2),  # at 14×14, where detail is: it buys more than width at 7×7
            nn.ReLU(),
            nn.ConvTranspose2d(c // 2, 1, 4, stride=2, padding=1),  # 14 -> 28
            nn.Tanh(),
        )


class Quantized(NamedTuple):
    latents: torch.Tensor        # (B, D, 7, 7), each vector replaced by its code; gradients pass straight through
    codes: torch.Tensor          # (B, 7, 7) int64 in 0…K-1
    codebook_loss: torch.Tensor  # (), moves the codes towards the encoder's vectors
    commitment_loss: torch.Tensor  # (), moves the encoder's vectors towards their codes


class VectorQuantizer(nn.Module):
    """Replace each latent vector by the nearest of K codes (eq. 1 and 2).

    `forward` never changes the codebook. It learns in one of two ways: by the gradient of ``codebook_loss``, or
    (``ema=True``) when a training loop calls `ema_update`.
    """

    def __init__(self, config):
        super().__init__()
        K, D = config.num_codes, config.code_dim
        self.codebook = nn.Parameter(torch.empty(K, D).uniform_(-1 / K, 1 / K), requires_grad=not config.ema)
        self.register_buffer("ema_count", torch.ones(K))               # N_i of appendix A.1
        self.register_buffer("ema_sum", self.codebook.detach().clone())  # m_i

    def nearest(self, vectors):
        """Index of the nearest code: (..., D) float -> (...) int64. Ties go to the lower index."""
        distances = self.codebook.pow(2).sum(1) - 2 * vectors @ self.codebook.T  # |v|² is the same for all codes
        return distances.argmin(-1)

    def forward(self, latents):
        """(B, D, 7, 7) float latents -> `Quantized`."""
        with torch.autocast(latents.device.type, enabled=False):  # distances are differences of near-equal numbers
            z = rearrange(latents, "b d h w -> b h w d").to(self.codebook.dtype)
            codes = self.nearest(z)
            q = F.embedding(codes, self.codebook)  # indexing would do, but its gradient sums in no fixed order
            codebook_loss = F.mse_loss(q, z.detach())
            commitment_loss = F.mse_loss(z, q.detach())
            q = z + (q - z).detach()  # straight-through: the value of q, the gradient of z
        return Quantized(rearrange(q, "b h w d -> b d h w"), codes, codebook_loss, commitment_loss)

    def lookup(self, codes):
        """(B, 7, 7) int64 codes -> (B, D, 7, 7) code vectors."""
        return rearrange(self.codebook[codes], "b h w d -> b d h w")

    @torch.no_grad()
    def init_from(self, vectors, generator=None):
        """Start the codebook at the k-means centres of ``vectors`` (N, D): no code begins where no data is."""
        centres, assigned = kmeans(vectors, len(self.codebook), generator=generator)
        self.codebook.copy_(centres)
        self.ema_count.copy_(torch.bincount(assigned, minlength=len(centres)))
        self.ema_count.mul_(len(self.ema_count) / self.ema_count.sum()).clamp_(min=1e-3)
        self.ema_sum.copy_(centres * self.ema_count[:, None])

    @torch.no_grad()
    def ema_update(self, vectors, codes, decay=0.99, revive_below=0.0, generator=None):
        """One step of appendix A.1: each code moves towards the mean of the vectors that chose it.

        vectors: (N, D) float, what the encoder gave. codes: (N,) int64, which code each chose.
        decay: γ of the paper. revive_below: a code whose moving share of the vectors falls below this fraction of an
        even share (1/K) is dead, and restarts at a random vector of the batch; 0 lets it lie.
        Returns how many codes were revived, as a () int64 tensor. Raises ValueError, and changes nothing, where shapes,
        dtypes or the two numbers are not these.
        """
        data.check_number("decay", decay, 0, 1)
        data.check_number("revive_below", revive_below, 0)
        if not all(isinstance(given, torch.Tensor) for given in (vectors, codes)) or codes.dtype != torch.int64 \
                or codes.ndim != 1 or not len(codes) or vectors.dtype != self.codebook.dtype \
                or vectors.shape != (len(codes), self.codebook.shape[1]):
            raise ValueError(f"ema_update takes (N, {self.codebook.shape[1]}) {self.codebook.dtype} vectors and their "
                             f"(N,) int64 codes, got {data.describe(vectors)} and {data.describe(codes)}")
        K = len(self.codebook)
        chosen = F.one_hot(codes, K).to(vectors.dtype)                          # (N, K)
        self.ema_count.lerp_(chosen.sum(0) * (K / len(codes)), 1 - decay)       # 1 = an even share
        self.ema_sum.lerp_(chosen.T @ vectors * (K / len(codes)), 1 - decay)
        dead = self.ema_count < revive_below
        picks = torch.randint(len(vectors), (K,), generator=generator).to(vectors.device)
        self.ema_count.copy_(torch.where(dead, torch.ones_like(self.ema_count), self.ema_count))
        self.ema_sum.copy_(torch.where(dead[:, None], vectors[picks], self.ema_sum))
        alive = self.ema_count > 1e-5  # below, sum / count is rounding: such a code stays where it is
        self.codebook.copy_(torch.where(alive[:, None], self.ema_sum / self.ema_count[:, None], self.codebook))
        return dead.sum()


class VQVAEOutput(NamedTuple):
    images: torch.Tensor     # (B, 1, 28, 28) reconstructions in [-1, 1]
    latents: torch.Tensor    # (B, D, 7, 7) what the encoder gave, before quantization
    quantized: Quantized


class VQVAE(nn.Module):
    """Encoder, quantizer and decoder. Every layer treats each picture alone, so codes do not depend on the batch."""

    def __init__(self, config=None):
        super().__init__()
        self.config = config or VQVAEConfig()
        self.encoder = Encoder(self.config)
        self.quantizer = VectorQuantizer(self.config)
        self.decoder = Decoder(self.config)

    def forward(self, images):
        """(B, 1, 28, 28) float images in [-1, 1] -> `VQVAEOutput`. Changes nothing in the model, in any mode."""
        latents = self.encoder(images)
        quantized = self.quantizer(latents)
        return VQVAEOutput(self.decoder(quantized.latents), latents, quantized)

    @torch.no_grad()
    def encode(self, images):
        """(B, 1, 28, 28) float images in [-1, 1] -> (B, 7, 7) int64 codes in 0…K-1.

        Raises ValueError for another shape, dtype or range.
        """
        self._check_images(images)
        return self.quantizer.nearest(rearrange(self.encoder(images), "b d h w -> b h w d"))

    @torch.no_grad()
    def decode(self, codes):
        """(B, 7, 7) int64 codes in 0…K-1 -> (B, 1, 28, 28) float images in [-1, 1].

        Raises ValueError for another shape or dtype, or where a token that is no code is among them.
        """
        check_codes(codes, self.config.num_codes)
        return self.decoder(self.quantizer.lookup(codes))

    def _check_images(self, images):
        if not isinstance(images, torch.Tensor) or images.ndim != 4 or images.shape[1:] != (1, 28, 28):
            raise ValueError(f"images must be (B, 1, 28, 28), got {data.describe(images)}; "
                             f"data.to_images(pixels) makes them from (B, 28, 28) pixels")
        if images.dtype != self.quantizer.codebook.dtype:
            raise ValueError(f"images must be {self.quantizer.codebook.dtype} like the model, got {images.dtype}; "
                             f"data.to_images(pixels) makes float32 from uint8 pixels")
        if len(images) and not (images.min() >= -1.001 and images.max() <= 1.001):  # NaN fails this too
            raise ValueError(f"images must lie in [-1, 1], got {images.min():.3g} … {images.max():.3g}; "
                             f"data.to_images(pixels) scales them")


def check_codes(codes, num_codes=64):
    """Raise ValueError unless ``codes`` is (B, 7, 7) int64 in 0…num_codes-1."""
    if not isinstance(codes, torch.Tensor) or codes.dtype != torch.int64 or codes.ndim != 3 \
            or codes.shape[1:] != (GRID, GRID):
        raise ValueError(f"codes must be a (B, 7, 7) int64 tensor, got {data.describe(codes)}")
    if codes.numel() and not (codes.min() >= 0 and codes.max() < num_codes):
        raise ValueError(f"codes must lie in 0…{num_codes - 1}, got {codes.min()} … {codes.max()}: class and end "
                         f"tokens (64 and up) are no codes; tokens.from_sequences(tokens) takes them off a sequence")


@torch.no_grad()
def kmeans(points, k, iterations=20, generator=None):
    """Lloyd's algorithm. (N, D) float points -> centres (k, D), and (N,) int64: each point's centre.

    Starts at k of the points, drawn at random (some may be equal); a centre without points moves to a random point.
    Raises ValueError where there are fewer points than k, or where they are not finite.
    """
    if not isinstance(points, torch.Tensor) or points.ndim != 2 or not points.is_floating_point():
        raise ValueError(f"k-means takes (N, D) float points, got {data.describe(points)}")
    if not points.isfinite().all():
        raise ValueError("k-means takes finite points; among these are NaN or infinite values")
    data.check_whole("k", k, 1)
    if len(points) < k:
        raise ValueError(f"k-means needs at least k = {k} points, got {len(points)}")
    centres = points[torch.randperm(len(points), generator=generator)[:k].to(points.device)]
    for _ in range(iterations):  # |p - c|², without |p|², which is the same for all centres c
        assigned = (centres.pow(2).sum(1) - 2 * points @ centres.T).argmin(1)
        count = torch.bincount(assigned, minlength=k)
        total = torch.zeros_like(centres).index_add_(0, assigned, points)
        empty = points[torch.randint(len(points), (k,), generator=generator).to(points.device)]
        centres = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], empty)
    return centres, (centres.pow(2).sum(1) - 2 * points @ centres.T).argmin(1)
