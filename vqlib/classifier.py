"""The judges: a small classifier whose answers and features score what the generator writes (notebook 05).

Two are shipped. ``judge`` measures: agreement with the asked class, and the 128 features of the Fréchet distance and of
coverage. ``critic``, trained from another seed, chooses among samples (`rerank`): who chooses must not also measure.
"""

from dataclasses import dataclass

import torch
from torch import nn

from vqlib.data import check_number, check_whole, describe, to_images
from vqlib.tokens import NUM_CLASSES
from vqlib.transformer import eval_mode


@dataclass(frozen=True)
class ClassifierConfig:
    channels: int = 32      # at 28×28; twice that at 14×14, four times at 7×7
    features: int = 128
    dropout: float = 0.3

    def __post_init__(self):
        check_whole("channels", self.channels, 1)
        check_whole("features", self.features, 1)
        check_number("dropout", self.dropout, 0, 1)


class Classifier(nn.Module):
    """Three convolutions with pooling, then two linear layers: (B, 1, 28, 28) images in [-1, 1] -> (B, 10) logits."""

    def __init__(self, config=None):
        super().__init__()
        self.config = config or ClassifierConfig()
        c, layers = self.config.channels, []
        for before, after in ((1, c), (c, 2 * c), (2 * c, 4 * c)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            if after < 4 * c:
                layers.append(nn.MaxPool2d(2))  # 28 -> 14 -> 7
        self.body = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(self.config.dropout),
                                  nn.Linear(4 * c * 3 * 3, self.config.features), nn.ReLU())  # 7 -> 3
        self.head = nn.Sequential(nn.Dropout(self.config.dropout), nn.Linear(self.config.features, NUM_CLASSES))

    def forward(self, images):
        return self.head(self.body(images))


@torch.no_grad()
def judge(classifier, images, batch_size=500):
    """What a classifier makes of many pictures, in eval mode whatever mode it is in.

    images: (N, 1, 28, 28) float in [-1, 1]. Returns log p(class | picture) (N, 10), ≤ 0, and features (N, 128), ≥ 0,
    both float32 on the CPU.
    """
    if not isinstance(images, torch.Tensor) or images.shape[1:] != (1, 28, 28) or not images.is_floating_point():
        raise ValueError(f"images must be (N, 1, 28, 28) float in [-1, 1], got {describe(images)}")
    if not images.isfinite().all():
        raise ValueError("images must lie in [-1, 1]; among these are NaN or infinite values")
    weight = next(classifier.parameters())
    with eval_mode(classifier):
        features = torch.cat([classifier.body(part.to(weight)) for part in images.split(batch_size)])
        return classifier.head(features).float().log_softmax(-1).cpu(), features.float().cpu()


def accuracy(classifier, dataset):
    """Share of a `Dataset`'s pictures whose class the classifier names: a float in [0, 1]."""
    log_probs, _ = judge(classifier, to_images(dataset.pixels))
    return (log_probs.argmax(1) == dataset.labels).float().mean().item()


def rerank(critic, images, label, keep):
    """The step that DALL·E leaves to CLIP: of many samples, those which the critic finds most like their class.

    images: (N, 1, 28, 28) in [-1, 1], all asked to be class ``label``. Returns (keep,) int64 indices, best first.
    """
    log_probs, _ = judge(critic, images)
    check_whole("keep", keep, 1, len(images))
    check_whole("label", label, 0, NUM_CLASSES - 1)
    return log_probs[:, label].topk(keep).indices
