"""Training both stages, and the classifiers that judge samples, from a notebook or from the command line:

python -m vqlib.training all                      # both stages by the recipe of the shipped weights, into runs/
python -m vqlib.training all --recipe original    # by the original recipe, into runs/original/
python -m vqlib.training all --holdout            # for choosing: train on 55,000, score the 5,000 held out
python -m vqlib.training classifiers              # the judge and the critic
torchrun --nproc-per-node 2 -m vqlib.training all    # in two processes
"""

from vqlib.training.devices import has_bf16, pick_device
from vqlib.training.loop import Batch, fit
from vqlib.training.recipes import BEST_TRANSFORMER, BEST_VQVAE, ORIGINAL_TRANSFORMER, ORIGINAL_VQVAE, RECIPES

# isort: split
from vqlib.training.recipes import CRITIC, JUDGE, SCORE, learning_rate

# isort: split
from vqlib.training.recipes import ClassifierRecipe, Recipe, TransformerRecipe, VQVAERecipe
from vqlib.training.stages import ClassifierStage, Stage, TransformerStage, VQVAEStage

# isort: split
from vqlib.training.stages import train_classifier, train_transformer, train_vqvae
