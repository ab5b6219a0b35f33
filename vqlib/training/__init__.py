"""Training: both stages, further decoders, what notebook 08 adds, and classifiers: ``python -m vqlib.training``."""

from vqlib.training.dalle import train_captions, train_contrastive, train_dvae
from vqlib.training.devices import bf16_gain, pick_device
from vqlib.training.loop import Batch, fit, learning_rate
from vqlib.training.recipes import BEST_TRANSFORMER, BEST_VQVAE, ORIGINAL_TRANSFORMER, ORIGINAL_VQVAE, RECIPES

# isort: split
from vqlib.training.recipes import CAPTIONS, CONTRASTIVE, CRISP, CRITIC, DECODERS, DVAE, FABRICS, JUDGE, SCORE

# isort: split
from vqlib.training.recipes import (
    CaptionRecipe,
    ClassifierRecipe,
    ContrastiveRecipe,
    DecoderRecipe,
    DVAERecipe,
    Recipe,
    TransformerRecipe,
    VQVAERecipe,
)
from vqlib.training.stages import ClassifierStage, DecoderStage, Stage, TransformerStage, VQVAEStage

# isort: split
from vqlib.training.stages import train_classifier, train_decoder, train_transformer, train_vqvae
