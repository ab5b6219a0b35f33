"""What needs no network: pictures in 294 bits without learning (notebook 01), codes drawn by counting (notebook 03).

49 codes out of 64 take 49 · 6 = 294 bits. `thumbnails` and `nearest_patches` spend as many on a picture: theirs is the
error that a VQ-VAE has to beat. `Histogram` draws each code by itself: a Transformer has to beat its likelihood.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange

from vqlib.checks import check_codes, check_labels
from vqlib.tokens import CODES_PER_IMAGE, Vocabulary
from vqlib.vqvae import GRID, widened


def thumbnails(images: torch.Tensor, levels: int = 64) -> torch.Tensor:
    """Shrink to 7×7 grey values of ``levels`` levels, and enlarge again: (B, 1, 28, 28) in [-1, 1] -> the same."""
    small = F.avg_pool2d(widened(images), 4)
    small = ((small + 1) / 2 * (levels - 1)).round() / (levels - 1) * 2 - 1
    return F.interpolate(small, scale_factor=4, mode="bilinear")


def patches(images: torch.Tensor) -> torch.Tensor:
    """Cut pictures into 7×7 patches of 4×4 pixels: (B, 1, 28, 28) -> (B · 49, 16)."""
    return rearrange(images, "b 1 (h p) (w q) -> (b h w) (p q)", p=4, q=4)


def from_patches(values: torch.Tensor) -> torch.Tensor:
    """Put patches back together: (B · 49, 16) -> (B, 1, 28, 28)."""
    return rearrange(values, "(b h w) (p q) -> b 1 (h p) (w q)", h=GRID, w=GRID, p=4, q=4)


def nearest_patches(images: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Replace each 4×4 patch by the nearest of K: (B, 1, 28, 28), (K, 16) -> (B, 1, 28, 28)."""
    return from_patches(codebook[torch.cdist(widened(patches(images)), widened(codebook)).argmin(1)])


@dataclass(frozen=True)
class Histogram:
    """A naive generator that draws each position by itself, from how often each code stood there in training.

    log_probs: (num_classes, 49, K) float32, log p(code | class, position), constant along whatever it ignores. It and
    what is drawn lie on the CPU.
    """

    log_probs: torch.Tensor

    @classmethod
    def fit(cls, codes, labels, by_class=True, by_position=True, vocabulary=Vocabulary()):  # noqa: B008, it is frozen
        """Count how often each code occurs: codes (N, 7, 7) int64, labels (N,) int64.

        One is added to every count, so that nothing is impossible. ``by_class`` and ``by_position`` say whether classes
        and positions are counted apart. Raises ValueError if codes or labels don't fit each other or the vocabulary.
        """
        check_codes(codes, vocabulary.num_codes)
        check_labels(labels, vocabulary.num_classes, len(codes))
        shape = vocabulary.num_classes, CODES_PER_IMAGE, vocabulary.num_codes
        count, positions = torch.zeros(shape, dtype=torch.float32, device="cpu"), torch.arange(shape[1], device="cpu")
        place = (labels.cpu()[:, None], positions, codes.cpu().flatten(1))  # broadcast to (N, 49)
        count.index_put_(place, count.new_ones(()), accumulate=True)
        ignored = [dim for dim, apart in ((0, by_class), (1, by_position)) if not apart]
        count = count.sum(ignored, keepdim=True).expand_as(count) if ignored else count  # sum([]) would be over all
        return cls((count + 1).div((count + 1).sum(-1, keepdim=True)).log())

    def nats_per_code(self, codes: torch.Tensor, labels: torch.Tensor) -> float:
        """The mean of -log p(code | class, position) in nats, over (N, 7, 7) codes with (N,) labels."""
        check_codes(codes, self.log_probs.shape[-1])
        check_labels(labels, len(self.log_probs), len(codes))
        return -self.log_probs[labels.cpu()].gather(-1, codes.cpu().flatten(1)[..., None]).mean().item()

    def sample(self, labels: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw one picture per label: (N,) int64 -> (N, 7, 7) int64 codes."""
        check_labels(labels, len(self.log_probs))
        probs = self.log_probs[labels.cpu()].exp().flatten(0, 1)  # (N · 49, K)
        return torch.multinomial(probs, 1, generator=generator).reshape(-1, GRID, GRID)
