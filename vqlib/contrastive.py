"""Choosing by text: two encoders that learn which caption goes with which picture (notebook 08).

DALL·E 1 draws 512 pictures for a caption and shows the few that CLIP finds to fit it best. This is CLIP in miniature:
of a batch of pictures and captions, each picture must find its own caption, and each caption its own picture.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020); the loss is
InfoNCE (van den Oord, Li, Vinyals, arXiv 1807.03748).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from vqlib import captions, checks
from vqlib.tokens import Vocabulary
from vqlib.transformer import eval_mode

WORDS_ONLY = Vocabulary(0, 0, captions.NUM_WORDS)  # a vocabulary without codes and classes: word i is token i + 1


@dataclass(frozen=True)
class ContrastiveConfig:
    channels: int = 32  # at 14×14; twice as many at 7×7
    features: int = 64  # the dimensions in which picture and caption meet

    def __post_init__(self):
        checks.check_whole("channels", self.channels, 1)
        checks.check_whole("features", self.features, 1)


class ContrastivePair(nn.Module):
    """(B, 1, 28, 28) images in [-1, 1], (B, 8) int64 text tokens -> features of both, (B, F), each of length 1."""

    def __init__(self, config: ContrastiveConfig | None = None):
        super().__init__()
        self.config = config or ContrastiveConfig()
        c, features = self.config.channels, self.config.features
        self.picture = nn.Sequential(
            nn.Conv2d(1, c, 4, stride=2, padding=1),  # 28 -> 14
            nn.GELU(),
            nn.Conv2d(c, 2 * c, 4, stride=2, padding=1),  # 14 -> 7
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(2 * c * 7 * 7, features),
        )
        self.text = nn.EmbeddingBag(WORDS_ONLY.size, features, mode="sum")  # a bag of words: their order doesn't count
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())  # learned; CLIP also keeps it below 100

    def forward(self, images, tokens):
        return F.normalize(self.picture(images), dim=1), F.normalize(self.text(tokens), dim=1)


def info_nce(pictures: torch.Tensor, texts: torch.Tensor, scale) -> torch.Tensor:
    """The contrastive loss of (B, F) features of which row i belongs to row i, a () tensor in nats.

    Cross-entropy of "which of the B captions belongs to this picture?", and the other way round, averaged.
    """
    logits = scale * pictures.float() @ texts.float().T  # (B pictures, B captions)
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


@torch.no_grad()
def similarity(model: ContrastivePair, images: torch.Tensor, texts: Sequence[str], batch_size=500) -> torch.Tensor:
    """How well each picture fits its caption: (N, 1, 28, 28) images in [-1, 1], N captions -> (N,) float32 in [-1, 1].

    Raises ValueError for other images, or a caption that isn't one.
    """
    checks.check_images("images", images)
    checks.check_choice("the number of captions", len(texts), (len(images),), "There is one per picture")
    tokens, weight = captions.text_tokens(texts, WORDS_ONLY), model.text.weight
    with eval_mode(model):
        pairs = zip(images.split(batch_size), tokens.split(batch_size), strict=True)
        features = [model(x.to(weight), t.to(weight.device)) for x, t in pairs]
    return torch.cat([(picture * text).sum(1) for picture, text in features]).float().cpu()


def best_of(model: ContrastivePair, images: torch.Tensor, caption: str, keep: int = 1) -> torch.Tensor:
    """Which of (N, 1, 28, 28) candidates fit a caption best: (keep,) int64 indices, best first. N ≥ keep."""
    checks.check_whole("keep", keep, 1, len(images))
    return similarity(model, images, [caption] * len(images)).topk(keep).indices
