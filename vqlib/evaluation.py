"""Measuring: reconstruction error, codebook use, likelihood, samples. Used by training, the scorecard and notebooks.

Errors of pictures are on the [0, 1] scale, whatever the networks' [-1, 1]: an MSE here is a quarter of the MSE there.
"""

import math
import numbers

import torch
import torch.nn.functional as F
from einops import rearrange

from vqlib.data import check_whole, describe, to_images
from vqlib.sampling import code_log_probs, log_likelihood
from vqlib.tokens import CODES_PER_IMAGE, GRID, encode_pixels, perplexity, usage


def mse(images, others):
    """Mean squared error on the [0, 1] scale of two (B, 1, 28, 28) batches in [-1, 1]: a float."""
    return (images - others).div(2).pow(2).mean().item()


def psnr(mean_squared_error):
    """Peak signal-to-noise ratio in dB, of an MSE ≥ 0 on the [0, 1] scale; infinite where that is 0."""
    if not (isinstance(mean_squared_error, numbers.Real) and mean_squared_error >= 0):
        raise ValueError(f"a mean squared error is a number ≥ 0, got {mean_squared_error!r}")
    return -10 * math.log10(mean_squared_error) if mean_squared_error > 0 else math.inf


def reconstruct(vqvae, codes, batch_size=500):
    """Decode many pictures: (N, 7, 7) int64 -> (N, 1, 28, 28) float32 on the CPU."""
    device = next(vqvae.parameters()).device
    return torch.cat([vqvae.decode(part.to(device)).cpu() for part in codes.split(batch_size)])


def evaluate_vqvae(vqvae, dataset):
    """Figures of a tokenizer over a whole `Dataset`, each picture reconstructed from its codes.

    Returns a dict: mse ([0, 1] scale), psnr (dB), codes_used (of K), perplexity, pictures.
    """
    codes = encode_pixels(vqvae, dataset.pixels)
    error = mse(reconstruct(vqvae, codes), to_images(dataset.pixels))
    frequencies = usage(codes, vqvae.config.num_codes)
    return {"mse": error, "psnr": psnr(error), "codes_used": int((frequencies > 0).sum()),
            "perplexity": perplexity(frequencies), "pictures": len(dataset)}


def evaluate_transformer(transformer, codes, labels, batch_size=500):
    """Figures of a Transformer over all pictures, (N, 7, 7) and (N,) int64.

    Returns a dict: nats_per_code, bits_per_picture (49 codes given the class), nats_by_position (7×7 list), pictures.
    """
    log_probs = torch.cat([code_log_probs(transformer, c, y).cpu()
                           for c, y in zip(codes.split(batch_size), labels.split(batch_size), strict=True)])
    nats = -log_probs.double().mean().item()
    by_position = -log_probs.double().mean(0).reshape(GRID, GRID)
    return {"nats_per_code": nats, "bits_per_picture": nats * CODES_PER_IMAGE / math.log(2),
            "nats_by_position": [[round(x, 4) for x in row] for row in by_position.tolist()], "pictures": len(codes)}


def nearest_neighbours(images, pixels, batch_size=5000):
    """The training picture nearest to each image, by squared distance of pixels.

    images: (B, 1, 28, 28) float in [-1, 1]; pixels: (N, 28, 28) uint8. Returns index (B,) int64 into pixels, and the
    MSE on the [0, 1] scale (B,) float32.
    """
    query = (images.flatten(1) + 1) / 2
    best, index = torch.full((len(images),), torch.inf), torch.zeros(len(images), dtype=torch.int64)
    for i in range(0, len(pixels), batch_size):
        distance = torch.cdist(query, pixels[i:i + batch_size].flatten(1) / 255).pow(2) / query.shape[1]
        near, at = distance.min(1)
        index = torch.where(near < best, at + i, index)
        best = torch.minimum(near, best)
    return index, best


# --- samples: fidelity, diversity, and what the Transformer knows of classes (notebook 05) ---------------------------


def frechet_distance(features, others):
    """Fréchet distance of two sets of features, each taken as one Gaussian (Heusel et al., arXiv 1706.08500): a float.

    |μ₁ - μ₂|² + tr(C₁ + C₂ - 2 (C₁C₂)^½), of (N, D) and (M, D) float. Comparable only between figures of the same
    features and the same numbers of pictures.
    """
    _check_features(features, others)
    a, b = features.double(), others.double()
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance takes at least 2 pictures, got {len(a)} and {len(b)}")
    c, d = (x.T @ x / (len(x) - 1) for x in (a - a.mean(0), b - b.mean(0)))
    values, vectors = torch.linalg.eigh(c)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T          # C₁^½; C₁C₂ and C₁^½ C₂ C₁^½ share eigenvalues
    cross = torch.linalg.eigvalsh(root @ d @ root).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).pow(2).sum() + c.trace() + d.trace() - 2 * cross).item()


def coverage(real, samples, k=5):
    """Share of real pictures that have a sample among their near ones (Naeem et al., arXiv 2002.09797, eq. 4).

    Near: not farther than the k-th nearest other real picture. real (N, D), samples (M, D) float features; a float in
    [0, 1]. Grows with M: compare equal numbers.
    """
    _check_features(real, samples)
    check_whole("k", k, 1, len(real) - 1)
    if not len(samples):
        return 0.0
    near = [torch.cdist(part, real).kthvalue(k + 1).values for part in real.split(2000)]  # itself is the first
    least = [torch.cdist(part, samples).min(1).values for part in real.split(2000)]
    return (torch.cat(least) <= torch.cat(near)).float().mean().item()


def _check_features(features, others):
    for given in (features, others):
        if not isinstance(given, torch.Tensor) or given.ndim != 2 or not given.is_floating_point():
            raise ValueError(f"features must be (N, D) float, got {describe(given)}")
        if not given.isfinite().all():
            raise ValueError("features must be finite: among these are NaN or infinite values")
    if features.shape[1] != others.shape[1]:
        raise ValueError(f"features must be of one kind, got {features.shape[1]} and {others.shape[1]} numbers each")


def agreement(log_probs, labels):
    """How often a classifier sees the class that was asked for: (N, 10), (N,) -> a (10,) float32 share by class."""
    right = (log_probs.argmax(1) == labels).float()
    return torch.stack([right[labels == label].mean() for label in range(10)])


def bayes_classes(transformer, codes, batch_size=500):
    """Which class explains a picture's codes best: argmax of log p(codes | class), all classes equally likely before.

    (N, 7, 7) int64 -> (N,) int64. The Transformer as a classifier, by Bayes' rule.
    """
    scores = [torch.cat([log_likelihood(transformer, part, torch.full((len(part),), label)).cpu()
                         for part in codes.split(batch_size)]) for label in range(10)]
    return torch.stack(scores, 1).argmax(1)


# --- what 294 bits buy without learning (notebook 01) ----------------------------------------------------------------


def thumbnails(images, levels=64):
    """The picture as 7×7 grey values of 6 bits, enlarged smoothly: 294 bits, like 49 codes of 64.

    (B, 1, 28, 28) float in [-1, 1] -> the same shape and range.
    """
    small = F.avg_pool2d(images, 4)
    small = ((small + 1) / 2 * (levels - 1)).round() / (levels - 1) * 2 - 1
    return F.interpolate(small, scale_factor=4, mode="bilinear")


def patches(images):
    """Cut pictures into 7×7 patches of 4×4 pixels: (B, 1, 28, 28) -> (B · 49, 16)."""
    return rearrange(images, "b 1 (h p) (w q) -> (b h w) (p q)", p=4, q=4)


def from_patches(values):
    """Put patches together again: (B · 49, 16) -> (B, 1, 28, 28)."""
    return rearrange(values, "(b h w) (p q) -> b 1 (h p) (w q)", h=GRID, w=GRID, p=4, q=4)


def nearest_patches(images, codebook):
    """Replace each 4×4 patch by the nearest of 64: again 294 bits. (B, 1, 28, 28), (64, 16) -> (B, 1, 28, 28)."""
    return from_patches(codebook[torch.cdist(patches(images), codebook).argmin(1)])
