"""Training both stages, and the classifiers that judge samples. From the command line: ``python -m vqlib.training``."""

from vqlib.training.devices import bf16_gain, pick_device
from vqlib.training.loop import Batch, fit, learning_rate
from vqlib.training.recipes import BEST_TRANSFORMER, BEST_VQVAE, ORIGINAL_TRANSFORMER, ORIGINAL_VQVAE, RECIPES

# isort: split
from vqlib.training.recipes import CRISP, CRITIC, DECODERS, FABRICS, JUDGE, SCORE

# isort: split
from vqlib.training.recipes import ClassifierRecipe, DecoderRecipe, Recipe, TransformerRecipe, VQVAERecipe
from vqlib.training.stages import ClassifierStage, DecoderStage, Stage, TransformerStage, VQVAEStage

# isort: split
from vqlib.training.stages import train_classifier, train_decoder, train_transformer, train_vqvae
