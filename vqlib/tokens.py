"""Pictures as sentences: 49 codes become a sequence of 51 tokens from a vocabulary of 75 (notebook 03).

    class start token (64 + class), 49 codes row by row, end token (74)

There is one aligned sequence per picture, so that no code of a held-out picture is ever trained on.
"""

import math
from dataclasses import dataclass

import torch
from tqdm import trange

from vqlib import checks
from vqlib.data import to_images
from vqlib.vqvae import GRID, VQVAE, widened

CODES_PER_IMAGE = GRID * GRID  # 49
SEQUENCE_LENGTH = CODES_PER_IMAGE + 2  # 51


@dataclass(frozen=True)
class Vocabulary:
    """Which token means what: first K codes, then a start token for each class, the end token, and words if any."""

    num_codes: int = 64  # K
    num_classes: int = 10
    num_words: int = 0  # those of captions, see `captions`

    @property
    def end(self) -> int:
        """The end token. At the start of a sequence it stands for "any class", since no picture begins with it."""
        return self.num_codes + self.num_classes

    @property
    def size(self) -> int:
        return self.end + 1 + self.num_words

    def to_sequences(self, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Codes and their classes to sequences: (B, 7, 7) int64, (B,) int64 -> (B, 51) int64 tokens.

        They lie on the device of the codes. Raises ValueError if codes or labels are out of range, or don't match.
        """
        checks.check_codes(codes, self.num_codes)
        checks.check_labels(labels, self.num_classes, len(codes))
        start = self.num_codes + labels.to(codes.device)[:, None]
        end = torch.full_like(start, self.end)
        return torch.cat([start, codes.flatten(1), end], dim=1)

    def from_sequences(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The way back: (B, 51) int64 tokens -> codes (B, 7, 7) int64 and labels (B,) int64.

        Raises ValueError unless each is a start token, 49 codes and the end token: nothing is clamped to make it fit.
        """
        checks.check_sequences(tokens, self.num_codes, self.end)
        return tokens[:, 1:-1].reshape(-1, GRID, GRID), tokens[:, 0] - self.num_codes


@torch.no_grad()
def encode_pixels(vqvae: VQVAE, pixels: torch.Tensor, batch_size: int = 500, progress: bool = False) -> torch.Tensor:
    """The codes of many pictures: (N, 28, 28) uint8 -> (N, 7, 7) int64 on the CPU, ``batch_size`` at a time."""
    checks.check_whole("batch_size", batch_size, 1)
    checks.check_tensor("pixels", pixels, ("N", 28, 28), torch.uint8)
    codebook, codes = vqvae.quantizer.codebook, torch.empty(len(pixels), GRID, GRID, dtype=torch.int64, device="cpu")
    for i in trange(0, len(pixels), batch_size, desc="encoding", disable=not progress):
        images = to_images(pixels[i : i + batch_size].to(codebook.device))
        codes[i : i + batch_size] = vqvae.encode(images.to(codebook.dtype)).cpu()
    return codes


def usage(codes: torch.Tensor, num_codes: int = 64) -> torch.Tensor:
    """How often each code occurs: (...) int64 codes, at least one -> (K,) float32 frequencies that sum to 1."""
    checks.check_tensor("codes", codes, ("...",), torch.int64, 0, num_codes - 1)
    checks.check_whole("the number of codes", codes.numel(), 1)
    count = torch.bincount(codes.flatten(), minlength=num_codes).float()
    return count / count.sum()


def perplexity(frequencies: torch.Tensor) -> float:
    """exp(entropy) of a distribution over codes, in 1…K: how many equally frequent codes it is worth.

    Take it over a whole data set: over one batch the figure depends on the batch's size.
    """
    p = widened(frequencies[frequencies > 0])
    return math.exp(-(p * p.log()).sum().item())
