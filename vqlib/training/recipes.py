"""Recipes: everything that a training run depends on besides the data, as named, frozen configurations."""

import dataclasses
from dataclasses import dataclass, field

from vqlib import captions, checks
from vqlib.adversarial import DiscriminatorConfig
from vqlib.classifier import ClassifierConfig
from vqlib.contrastive import ContrastiveConfig
from vqlib.transformer import TransformerConfig
from vqlib.vqvae import VQVAEConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str
    epochs: int
    batch_size: int
    learning_rate: float
    schedule: str = "constant"  # "constant"; "drop": × drop_factor from drop_epoch on; "cosine": down to zero
    drop_epoch: int = 0
    drop_factor: float = 1.0
    warmup_steps: int = 0  # the rate rises linearly over these
    weight_decay: float = 0.0  # decoupled (AdamW, arXiv 1711.05101), on matrices only
    betas: tuple[float, float] = (0.9, 0.999)
    optimizer: str = "adamw"  # "muon": Muon for the matrices between a model's first and last layer, AdamW for the rest
    mixed_precision: bool = True  # bf16 autocast where a short measurement finds it faster, else float32
    seed: int = 0

    def __post_init__(self):
        for name, least in (("epochs", 1), ("batch_size", 1), ("drop_epoch", 0), ("warmup_steps", 0), ("seed", 0)):
            checks.check_whole(name, getattr(self, name), least)
        for name in ("learning_rate", "drop_factor", "weight_decay"):
            checks.check_number(name, getattr(self, name), 0)
        for beta in self.betas:
            checks.check_number("each of betas", beta, 0, 1)
        checks.check_choice("schedule", self.schedule, ("constant", "drop", "cosine"))
        checks.check_choice("optimizer", self.optimizer, ("adamw", "muon"))

    def as_json(self):
        """A dict as a file's header gives it back."""
        fields = {**dataclasses.asdict(self), "betas": list(self.betas)}
        if self.optimizer == "adamw":  # left out, as in files from before there was a choice
            del fields["optimizer"]
        if fields.get("model", {}).get("num_words") == 0:
            del fields["model"]["num_words"]
        return fields


@dataclass(frozen=True, kw_only=True)
class VQVAERecipe(Recipe):
    model: VQVAEConfig = field(default_factory=VQVAEConfig)
    beta: float = 0.25  # weight of the commitment loss
    kmeans_init: bool = False  # start the codebook at k-means centres of the untrained encoder's vectors
    ema_decay: float = 0.99  # these two only matter with quantizer="ema"
    revive_below: float = 0.0  # a code that is used less than this fraction of an even share restarts; 0: never

    def __post_init__(self):
        super().__post_init__()
        if self.model.quantizer == "gumbel":
            raise ValueError("the model's quantizer must be 'gradient' or 'ema': a discrete VAE has a DVAERecipe")


@dataclass(frozen=True, kw_only=True)
class TransformerRecipe(Recipe):
    model: TransformerConfig = field(default_factory=TransformerConfig)
    drop_class: float = 0.0  # share of sequences that start with "any class" in place of their own: for guidance

    def __post_init__(self):
        super().__post_init__()
        checks.check_whole("the model's num_words", self.model.num_words, 0, 0, "Captions have a CaptionRecipe")


@dataclass(frozen=True, kw_only=True)
class DecoderRecipe(Recipe):
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    fabrics: bool = False  # whether the decoder sees noise, and draws several fabrics for the same codes
    adversarial: float = 1.0  # weights of the decoder's three losses, see `adversarial`
    matching: float = 4.0
    mse: float = 10.0

    def __post_init__(self):
        super().__post_init__()
        for name in ("adversarial", "matching", "mse"):
            checks.check_number(name, getattr(self, name), 0)
        words = "A decoder and its discriminator are trained by plain AdamW"
        checks.check_choice("optimizer", self.optimizer, ("adamw",), words)
        checks.check_choice("weight_decay", self.weight_decay, (0,), words)


@dataclass(frozen=True, kw_only=True)
class CaptionRecipe(Recipe):
    model: TransformerConfig = field(default_factory=lambda: TransformerConfig(num_words=captions.NUM_WORDS))
    drop_caption: float = 0.1  # share of sequences without their caption: for guidance
    text_weight: float = 1 / 8  # of the text's loss; that of the codes' is the rest of 1
    withheld: int = 1  # how many words each class never occurs with, see `captions.withheld`
    turned: int = 3  # one in so many pictures is also shown upside down

    def __post_init__(self):
        super().__post_init__()
        checks.check_whole("the model's num_words", self.model.num_words, captions.NUM_WORDS, captions.NUM_WORDS)
        checks.check_whole("withheld", self.withheld, 0, 4)
        checks.check_whole("turned", self.turned, 1)
        for name in ("drop_caption", "text_weight"):
            checks.check_number(name, getattr(self, name), 0, 1)


@dataclass(frozen=True, kw_only=True)
class ContrastiveRecipe(Recipe):
    model: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    withheld: int = 1  # as in `CaptionRecipe`
    turned: int = 3

    def __post_init__(self):
        super().__post_init__()
        checks.check_whole("withheld", self.withheld, 0, 4)
        checks.check_whole("turned", self.turned, 1)


@dataclass(frozen=True, kw_only=True)
class DVAERecipe(Recipe):
    model: VQVAEConfig = field(default_factory=lambda: VQVAEConfig(quantizer="gumbel", code_dim=64))
    kl: float = 1.0  # the final weight of the KL, see `dvae`; 1 is that of the evidence lower bound

    def __post_init__(self):
        super().__post_init__()
        checks.check_number("kl", self.kl, 0)
        checks.check_choice("the model's quantizer", self.model.quantizer, ("gumbel",))


@dataclass(frozen=True, kw_only=True)
class ClassifierRecipe(Recipe):
    model: ClassifierConfig = field(default_factory=ClassifierConfig)


# The recipe of the document that this project grew from: the paper's loss, Adam, a drop of the rate half way.
ORIGINAL_VQVAE = VQVAERecipe(
    name="original", epochs=10, batch_size=64, learning_rate=1e-3, schedule="drop", drop_epoch=5, drop_factor=0.3
)
ORIGINAL_TRANSFORMER = TransformerRecipe(name="original", epochs=1, batch_size=128, learning_rate=3e-4)

# The recipe of the shipped weights, chosen on 5,000 pictures held out of the training set.
COSINE = {"schedule": "cosine", "warmup_steps": 200}
MOVING = {"model": VQVAEConfig(quantizer="ema"), "beta": 1.0, "kmeans_init": True, "revive_below": 0.33}
BEST_VQVAE = VQVAERecipe(name="best", epochs=10, batch_size=64, learning_rate=3e-3, **COSINE, **MOVING)
GUIDED = {"model": TransformerConfig(dropout=0.0, qk_norm=True, tied=True), "drop_class": 0.1}
MUON = {"optimizer": "muon", "batch_size": 64, "learning_rate": 3e-3, "weight_decay": 0.1, "betas": (0.9, 0.95)}
MUON |= {"schedule": "cosine", "warmup_steps": 100}
BEST_TRANSFORMER = TransformerRecipe(name="best", epochs=2, **MUON, **GUIDED)
RECIPES = {"original": (ORIGINAL_VQVAE, ORIGINAL_TRANSFORMER), "best": (BEST_VQVAE, BEST_TRANSFORMER)}

# Further decoders for the codes of a tokenizer, chosen on the same 5,000 by the critic's FID and by sharpness.
CRISP = DecoderRecipe(
    name="crisp",
    epochs=2,
    batch_size=32,
    learning_rate=1e-3,
    betas=(0.5, 0.99),  # a shorter memory: what was right against the discriminator of a while ago no longer is
    **COSINE,
)
FABRICS = dataclasses.replace(CRISP, name="fabrics", fabrics=True)
DECODERS = {recipe.name: recipe for recipe in (CRISP, FABRICS)}

# Captions and codes in one stream, in a smaller Transformer; and the pair that chooses among what it draws.
STREAM = TransformerConfig(
    num_words=captions.NUM_WORDS, d_model=192, n_heads=6, n_layers=6, context=57, dropout=0.0, qk_norm=True, tied=True
)
CAPTIONS = CaptionRecipe(name="captions", epochs=3, **MUON, model=STREAM)
CONTRASTIVE = ContrastiveRecipe(name="contrastive", epochs=6, batch_size=128, learning_rate=4e-3, **COSINE)

# The tokenizer of DALL·E 1 itself, with as many codes.
DVAE = DVAERecipe(name="dvae", epochs=10, batch_size=64, learning_rate=6e-3, betas=(0.9, 0.99), **COSINE)

# The judge measures, the critic chooses; SCORE trains a classifier on 10,000 samples, for their accuracy score.
JUDGE = ClassifierRecipe(
    name="judge", epochs=8, batch_size=128, learning_rate=2e-3, schedule="cosine", warmup_steps=100, weight_decay=0.05
)
CRITIC = dataclasses.replace(JUDGE, name="critic", seed=1)
SCORE = dataclasses.replace(JUDGE, name="score", epochs=10)
