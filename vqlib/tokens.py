"""Pictures as sentences: 49 codes become a sequence of 51 tokens from a vocabulary of 75 (notebook 03).

    class start token (64 + class), 49 codes row by row, end token (74)

Aligned sequences, one a picture, divided by picture: no code of a validation picture is ever trained on.
"""

import math
from dataclasses import dataclass

import torch
from tqdm.auto import trange

from vqlib.data import check_whole, describe, to_images
from vqlib.vqvae import GRID, check_codes

NUM_CODES = 64                      # tokens 0…63 are the codes of the VQ-VAE
NUM_CLASSES = 10                    # tokens 64…73 start a picture of class token - 64
END_TOKEN = NUM_CODES + NUM_CLASSES # token 74 ends it
VOCABULARY_SIZE = END_TOKEN + 1     # 75
CODES_PER_IMAGE = GRID * GRID       # 49
SEQUENCE_LENGTH = CODES_PER_IMAGE + 2  # 51


def check_labels(labels):
    """Raise ValueError unless ``labels`` is a (B,) int64 tensor in 0…9."""
    if not isinstance(labels, torch.Tensor) or labels.dtype != torch.int64 or labels.ndim != 1:
        raise ValueError(f"labels must be a (B,) int64 tensor such as torch.tensor([0, 6, 9]), got {describe(labels)}")
    if len(labels) and not (labels.min() >= 0 and labels.max() < NUM_CLASSES):
        raise ValueError(f"labels must lie in 0…9, got {labels.min()} … {labels.max()}; "
                         f"data.CLASS_NAMES says which number is which class")


def to_sequences(codes, labels):
    """Codes and their classes to sequences: (B, 7, 7) int64, (B,) int64 -> (B, 51) int64 tokens in 0…74.

    On the device of the codes.
    """
    check_codes(codes, NUM_CODES)
    check_labels(labels)
    if len(codes) != len(labels):
        raise ValueError(f"there must be one label a picture, got {len(codes)} pictures and {len(labels)} labels")
    start = NUM_CODES + labels.to(codes.device)[:, None]
    end = torch.full_like(start, END_TOKEN)
    return torch.cat([start, codes.flatten(1), end], dim=1)


def from_sequences(tokens):
    """The way back: (B, 51) int64 tokens -> codes (B, 7, 7) int64 and labels (B,) int64.

    Raises ValueError where a sequence isn't start, 49 codes, end: nothing is clamped or dropped to make it fit.
    """
    if not isinstance(tokens, torch.Tensor) or tokens.dtype != torch.int64 or tokens.ndim != 2 \
            or tokens.shape[1] != SEQUENCE_LENGTH:
        raise ValueError(f"tokens must be a (B, {SEQUENCE_LENGTH}) int64 tensor, got {describe(tokens)}")
    start, codes, end = tokens[:, 0], tokens[:, 1:-1], tokens[:, -1]
    for name, part, low, high in (("a start token (64…73) at position 0", start, NUM_CODES, END_TOKEN - 1),
                                  ("codes (0…63) at positions 1…49", codes, 0, NUM_CODES - 1),
                                  ("the end token (74) at position 50", end, END_TOKEN, END_TOKEN)):
        wrong = (part < low) | (part > high)
        if wrong.any():
            raise ValueError(f"expected {name}, found token {part[wrong][0].item()}")
    return codes.reshape(-1, GRID, GRID), start - NUM_CODES


@torch.no_grad()
def encode_pixels(vqvae, pixels, batch_size=500, progress=False):
    """The codes of many pictures: (N, 28, 28) uint8 -> (N, 7, 7) int64 on the CPU, ``batch_size`` at a time."""
    check_whole("batch_size", batch_size, 1)
    if not isinstance(pixels, torch.Tensor) or pixels.ndim != 3:
        raise ValueError(f"pixels must be (N, 28, 28) uint8, got {describe(pixels)}")
    device = next(vqvae.parameters()).device
    codes = torch.empty(len(pixels), GRID, GRID, dtype=torch.int64)
    for i in trange(0, len(pixels), batch_size, desc="encoding", disable=not progress):
        codes[i:i + batch_size] = vqvae.encode(to_images(pixels[i:i + batch_size].to(device))).cpu()
    return codes


def usage(codes, num_codes=NUM_CODES):
    """How often each code occurs: (...) int64 codes, at least one, -> (K,) float32 frequencies that sum to 1."""
    if not isinstance(codes, torch.Tensor) or codes.dtype != torch.int64 or not codes.numel() \
            or codes.min() < 0 or codes.max() >= num_codes:
        raise ValueError(f"codes must be at least one int64 in 0…{num_codes - 1}, got {describe(codes)}")
    count = torch.bincount(codes.flatten(), minlength=num_codes).float()
    return count / count.sum()


def perplexity(frequencies):
    """exp(entropy) of a distribution over codes, a float in 1…64: how many equally frequent codes it is worth.

    Over a whole data set: over one batch the figure depends on the batch's size.
    """
    p = frequencies[frequencies > 0]
    return math.exp(-(p * p.log()).sum().item())


@dataclass(frozen=True)
class Histogram:
    """A naive generator: every position drawn alone, from how often each code stood there in training.

    log_probs: (10, 49, 64) float32, log p(code | class, position), constant along what it ignores.
    """

    log_probs: torch.Tensor

    @classmethod
    def fit(cls, codes, labels, by_class=True, by_position=True):
        """Count (with one added to every count, so that nothing is impossible). codes (N, 7, 7), labels (N,)."""
        to_sequences(codes, labels)  # checks them
        place = labels[:, None] * CODES_PER_IMAGE + torch.arange(CODES_PER_IMAGE)               # (N, 49)
        shape = (NUM_CLASSES, CODES_PER_IMAGE, NUM_CODES)
        count = torch.bincount((place * NUM_CODES + codes.flatten(1)).flatten(), minlength=math.prod(shape))
        count = count.reshape(shape).float()
        if not by_class:
            count = count.sum(0, keepdim=True)
        if not by_position:
            count = count.sum(1, keepdim=True)
        return cls((count + 1).div((count + 1).sum(-1, keepdim=True)).log()
                   .expand(NUM_CLASSES, CODES_PER_IMAGE, NUM_CODES))

    def nats_per_code(self, codes, labels):
        """Mean of -log p(code | class, position) over pictures and positions, in nats."""
        log_probs = self.log_probs[labels].gather(-1, codes.flatten(1)[..., None])
        return -log_probs.mean().item()

    def sample(self, labels, generator=None):
        """(N,) int64 labels -> (N, 7, 7) int64 codes."""
        probs = self.log_probs[labels].exp().flatten(0, 1)
        return torch.multinomial(probs, 1, generator=generator).reshape(-1, GRID, GRID)
