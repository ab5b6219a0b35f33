"""A small classifier, whose answers and features score what the generator draws (notebook 06).

Two are shipped. The *judge* measures: how often the class asked for is seen, and the 128 features behind the Fréchet
distance and coverage. The *critic*, trained from another seed, chooses among samples (`rerank`). They are two because a
model that did the selecting must not evaluate the result.
"""

from dataclasses import dataclass

import torch
from torch import nn

from vqlib import checks
from vqlib.data import CLASS_NAMES, Dataset, to_images
from vqlib.transformer import eval_mode


@dataclass(frozen=True)
class ClassifierConfig:
    channels: int = 32  # at 28×28; twice as many at 14×14, four times at 7×7
    features: int = 128
    dropout: float = 0.3

    def __post_init__(self):
        checks.check_whole("channels", self.channels, 1)
        checks.check_whole("features", self.features, 1)
        checks.check_number("dropout", self.dropout, 0, 1)


class Classifier(nn.Module):
    """Three convolutions with pooling, then two linear layers: (B, 1, 28, 28) images in [-1, 1] -> (B, 10) logits."""

    def __init__(self, config: ClassifierConfig | None = None):
        super().__init__()
        self.config = config or ClassifierConfig()
        c, features, layers = self.config.channels, self.config.features, []
        for before, after in ((1, c), (c, 2 * c), (2 * c, 4 * c)):  # 28 -> 14 -> 7 -> 3
            convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Flatten(), nn.Dropout(self.config.dropout), nn.Linear(4 * c * 3 * 3, features), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(self.config.dropout), nn.Linear(features, len(CLASS_NAMES)))

    def forward(self, images):
        return self.head(self.body(images))


@torch.no_grad()
def classify(classifier: Classifier, images: torch.Tensor, batch_size=500) -> tuple[torch.Tensor, torch.Tensor]:
    """Ask a classifier, in eval mode, about many pictures: (N, 1, 28, 28) float in [-1, 1], else ValueError.

    Returns log p(class | picture), (N, 10) ≤ 0, and features, (N, 128) ≥ 0, both float32 on the CPU.
    """
    checks.check_images("images", images)
    weight = classifier.body[0].weight
    with eval_mode(classifier):
        features = torch.cat([classifier.body(part.to(weight)) for part in images.split(batch_size)])
        return classifier.head(features).float().log_softmax(-1).cpu(), features.float().cpu()


def accuracy(classifier: Classifier, dataset: Dataset) -> float:
    """The share of a data set's pictures, of which there must be some, whose class the classifier names."""
    checks.check_whole("the number of pictures", len(dataset), 1)
    log_probs, _ = classify(classifier, to_images(dataset.pixels))
    return (log_probs.argmax(1) == dataset.labels).float().mean().item()


def rerank(critic: Classifier, images: torch.Tensor, label: int, keep: int) -> torch.Tensor:
    """The part that CLIP plays in DALL·E 1: of many samples, keep those that the critic finds most like their class.

    images: (N, 1, 28, 28), N ≥ keep, all asked to be of class ``label``. Returns (keep,) int64 indices, best first.
    """
    log_probs, _ = classify(critic, images)
    checks.check_whole("keep", keep, 1, len(images))
    checks.check_whole("label", label, 0, log_probs.shape[1] - 1, checks.LABELS)
    return log_probs[:, label].topk(keep).indices
