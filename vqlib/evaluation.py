"""Measuring: reconstruction error, codebook use, likelihood, and the quality of samples (notebook 06).

Errors of pictures are on the [0, 1] scale: an MSE here is a quarter of the networks', which see [-1, 1]. Arguments of
another shape, dtype or range are a ValueError.
"""

import math

import torch

from vqlib.adversarial import draw
from vqlib.captions import facts_of
from vqlib.checks import check_codes, check_images, check_labels, check_number, check_scale, check_tensor, check_whole
from vqlib.classifier import classify
from vqlib.data import Dataset, to_images, to_pixels
from vqlib.sampling import code_log_probs, log_likelihood
from vqlib.tokens import CODES_PER_IMAGE, encode_pixels, perplexity, usage
from vqlib.transformer import Transformer
from vqlib.vqvae import GRID, VQVAE


def mse(images: torch.Tensor, others: torch.Tensor) -> float:
    """The mean squared error, on the [0, 1] scale, between two (B, 1, 28, 28) float batches in [-1, 1]."""
    check_tensor("images", images, ("B", 1, 28, 28), float)
    check_tensor("others", others, images.shape, float)
    check_scale("others", others)  # those of the data set, usually: an untrained decoder may well draw nothing dark
    return (images.float() - others.float()).div(2).pow(2).mean().item()


def sharpness(images: torch.Tensor) -> float:
    """How much neighbouring pixels differ: the mean of |difference|, across and down, of (B, 1, 28, 28) in [0, 1]."""
    check_images("images", images)
    check_whole("the number of images", len(images), 1)
    x = (images.float() + 1) / 2
    return ((x[..., 1:] - x[..., :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()).item() / 2


def psnr(mean_squared_error: float) -> float:
    """The peak signal-to-noise ratio in dB of an MSE ≥ 0 on the [0, 1] scale; infinite if that is 0."""
    check_number("mean_squared_error", mean_squared_error, 0)
    return -10 * math.log10(mean_squared_error) if mean_squared_error > 0 else math.inf


def reconstruct(vqvae: VQVAE, codes: torch.Tensor, batch_size=500) -> torch.Tensor:
    """Decode many pictures: (N, 7, 7) int64 codes -> (N, 1, 28, 28) float32 images on the CPU."""
    device = vqvae.quantizer.codebook.device
    return torch.cat([vqvae.decode(part.to(device)).float().cpu() for part in codes.split(batch_size)])


def evaluate_vqvae(vqvae: VQVAE, dataset: Dataset) -> dict:
    """A tokenizer's mse ([0, 1] scale), psnr (dB), codes_used (of K) and perplexity over N ≥ 1 pictures."""
    codes = encode_pixels(vqvae, dataset.pixels)
    frequencies = usage(codes, vqvae.config.num_codes)
    error = mse(reconstruct(vqvae, codes), to_images(dataset.pixels))
    figures = {"mse": error, "psnr": psnr(error), "codes_used": int((frequencies > 0).sum())}
    return figures | {"perplexity": perplexity(frequencies), "pictures": len(dataset)}


def evaluate_decoder(decoder, vqvae: VQVAE, codes: torch.Tensor, pixels: torch.Tensor, critic, batch_size=500) -> dict:
    """How a decoder draws the (N, 7, 7) int64 codes that ``vqvae`` makes of (N, 28, 28) uint8 pixels, N ≥ 2.

    Returns mse ([0, 1] scale), fid (`frechet_distance` of the critic's features), sharpness (as a share of the
    pictures' own) and pictures. A `FabricDecoder` draws each picture once, with noise of seed 0.
    """
    quantizer, weight = vqvae.quantizer, next(decoder.parameters())
    generator, images, parts = torch.Generator().manual_seed(0), to_images(pixels).cpu(), []
    for part in codes.split(batch_size):
        latents = quantizer.lookup(part.to(quantizer.codebook.device)).to(weight)
        parts.append(draw(decoder, latents, generator).float().cpu())
    drawn = torch.cat(parts)
    fid = frechet_distance(*(classify(critic, pictures)[1] for pictures in (drawn, images)))
    figures = {"mse": mse(drawn, images), "fid": fid, "sharpness": sharpness(drawn) / sharpness(images)}
    return figures | {"pictures": len(images)}


def code_nats(transformer, codes, start, batch_size=500) -> torch.Tensor:
    """-log p(code | start, codes before it), many at a time, as `sampling.code_log_probs`: (N, 49) float64, N ≥ 1."""
    parts = zip(codes.split(batch_size), start.split(batch_size), strict=True)
    return -torch.cat([code_log_probs(transformer, *part).cpu() for part in parts]).double()


def evaluate_transformer(transformer: Transformer, codes: torch.Tensor, labels: torch.Tensor, batch_size=500) -> dict:
    """How well a Transformer predicts (N, 7, 7) int64 codes, N ≥ 1, given (N,) int64 labels.

    Returns nats_per_code, bits_per_picture (49 codes), nats_by_position (a 7×7 list) and pictures. Raises ValueError
    if codes or labels are not of the model's vocabulary.
    """
    vocabulary = transformer.config.vocabulary
    check_codes(codes, vocabulary.num_codes)
    check_whole("the number of codes", len(codes), 1)
    check_labels(labels, vocabulary.num_classes, len(codes))
    nats = code_nats(transformer, codes, labels, batch_size)  # (N, 49)
    mean, by_position = nats.mean().item(), nats.mean(0).reshape(GRID, GRID).tolist()
    figures = {"nats_per_code": mean, "bits_per_picture": mean * CODES_PER_IMAGE / math.log(2)}
    return figures | {"nats_by_position": [[round(x, 4) for x in row] for row in by_position], "pictures": len(codes)}


def nearest_neighbours(images: torch.Tensor, pixels: torch.Tensor, batch_size=500):
    """The training picture nearest to each image: (B,) int64 indices into ``pixels``, and (B,) float32 MSE in [0, 1].

    images: (B, 1, 28, 28) float in [-1, 1]. pixels: (N, 28, 28) uint8.
    """
    check_images("images", images)
    check_tensor("pixels", pixels, ("N", 28, 28), torch.uint8)
    queries, points = (images.flatten(1).float() + 1) / 2, pixels.flatten(1).float() / 255
    nearest = [torch.cdist(part, points).min(1) for part in queries.split(batch_size)]
    distance, index = (torch.cat(parts) for parts in zip(*nearest, strict=True))
    return index, distance.pow(2) / queries.shape[1]


def frechet_distance(features: torch.Tensor, others: torch.Tensor) -> float:
    """The Fréchet distance between two sets of features, each taken for a Gaussian (Heusel et al., arXiv 1706.08500).

    |μ₁ - μ₂|² + tr(C₁ + C₂ - 2 (C₁C₂)^½), of (N, D) and (M, D) float features, N and M ≥ 2. Only figures of the same
    features and the same numbers of pictures can be compared.
    """
    check_tensor("features", features, ("N", "D"), float)
    check_tensor("others", others, ("M", features.shape[1]), float)
    check_whole("the number of pictures in each set", min(len(features), len(others)), 2)
    a, b = features.double(), others.double()
    c, d = (x.T @ x / (len(x) - 1) for x in (a - a.mean(0), b - b.mean(0)))
    values, vectors = torch.linalg.eigh(c)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T  # C₁^½; C₁C₂ and C₁^½ C₂ C₁^½ have the same eigenvalues
    cross = torch.linalg.eigvalsh(root @ d @ root).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).pow(2).sum() + c.trace() + d.trace() - 2 * cross).item()


def coverage(real: torch.Tensor, samples: torch.Tensor, k=5) -> float:
    """The share of real pictures that have a sample in their neighbourhood (Naeem et al., arXiv 2002.09797, eq. 4).

    The neighbourhood of a picture reaches to its k-th nearest real picture. real (N, D), samples (M, D) float features.
    Coverage grows with M: compare equal numbers.
    """
    check_tensor("real", real, ("N", "D"), float)
    check_tensor("samples", samples, ("M", real.shape[1]), float)
    check_whole("k", k, 1, len(real) - 1)
    check_whole("the number of samples", len(samples), 1)
    real, samples = real.float(), samples.float()
    reach = torch.cat([torch.cdist(part, real).kthvalue(k + 1).values for part in real.split(2000)])  # itself is first
    nearest = torch.cat([torch.cdist(part, samples).min(1).values for part in real.split(2000)])
    return (nearest <= reach).float().mean().item()


def agreement(log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How often a classifier sees the class asked for: (N, C), (N,) int64 -> (C,) float32 shares, NaN if not asked."""
    check_labels(labels, log_probs.shape[1], len(log_probs))
    right = (log_probs.argmax(1) == labels).float()
    return torch.stack([right[labels == label].mean() for label in range(log_probs.shape[1])])


def facts_found(images: torch.Tensor, facts: torch.Tensor, judge) -> torch.Tensor:
    """What is seen in pictures that were drawn for a caption: (N, 1, 28, 28) in [-1, 1], (N, 4) int64 -> (N, 4) int64.

    facts: what was asked for, see `captions.KINDS`; -1 asks for nothing. A picture that should be upside down is turned
    back first. Then the judge names the class, and brightness and size go by the limits of the class asked for, if any.
    The picture counts as the right way round if the judge is surer of its class so than the other way round.
    """
    turned = facts[:, 2] == 1
    back = torch.where(turned[:, None, None, None], images.flip(2), images)
    as_asked, other_way = (classify(judge, way)[0] for way in (back, back.flip(2)))
    seen = as_asked.argmax(1)
    found = facts_of(to_pixels(back), torch.where(facts[:, 3] < 0, seen, facts[:, 3]))
    surer = as_asked.amax(1) >= other_way.amax(1)  # of any class, or a picture of another class would count as turned
    found[:, 2], found[:, 3] = torch.where(surer, turned, ~turned), seen
    return found


def as_asked(images: torch.Tensor, facts: torch.Tensor, judge) -> torch.Tensor:
    """Whether pictures are what their captions ask for, kind by kind: as `facts_found`, -> (N, 4) bool."""
    return (facts_found(images, facts, judge) == facts) | (facts < 0)


def bayes_classes(transformer: Transformer, codes: torch.Tensor, batch_size=500) -> torch.Tensor:
    """The Transformer as a classifier, by Bayes' rule: argmax of log p(codes | class), all classes equally likely.

    (N, 7, 7) int64 codes -> (N,) int64 classes.
    """
    classes, guesses = torch.arange(transformer.config.num_classes, device=codes.device), []
    for part in codes.split(batch_size):
        scores = [log_likelihood(transformer, part, label.expand(len(part))).cpu() for label in classes]
        guesses.append(torch.stack(scores).argmax(0))
    return torch.cat(guesses)
