"""Figures that are kept beside the shipped weights, for notebooks and README to show."""

import json

from vqlib import checkpoints


def load_original_record() -> dict:
    """What the original recipe gives on this package's layers. Its weights are not kept.

    Returns "vqvae" and "transformer", each with recipe, history and test figures, and "samples", (10, 8, 28, 28) uint8:
    of each class the first eight of seed 0, at temperature 0.8.
    """
    tensors, info = checkpoints.read(checkpoints.SHIPPED / "original.safetensors", "original record")
    return {**info, **tensors}


def load_scorecard() -> dict:
    """The figures of the shipped pair, as `python -m vqlib.scorecard` wrote them."""
    return _load("scorecard.json")


def load_ablation(collapse=False) -> dict:
    """What each trick of stage 1 buys, or what cures a collapse: {variant: {figure: [a value per seed]}}.

    Written by ``tests/benchmarks/stage1_ablation.py --summary FILE``, with ``--only a b c d e f g`` or ``--collapse``.
    """
    return _load("collapse.json" if collapse else "ablation.json")


def load_decoders() -> dict:
    """What each choice of the crisp decoder buys: {name: {"mse", "fid", "sharpness", …}}, over held-out pictures.

    Written by ``tests/benchmarks/decoders.py --out FILE``; "soft" is the VQ-VAE's own, all others are trained from it.
    """
    return _load("decoders.json")


def load_captions() -> dict:
    """What the captioned model makes of words: "seen" together or not, "guided", "curve", "choose", "tokenizers".

    Written by ``tests/benchmarks/captions.py``, whose functions say what each holds.
    """
    return _load("captions.json")


def load_optimizers() -> dict:
    """How AdamW and Muon train the Transformer in equally many steps: {name: {"validation", "seconds", "steps"}}.

    Written by ``tests/benchmarks/stage2_ablation.py --only QK-norm Muon --shipped --out FILE``; "QK-norm" is AdamW.
    """
    return _load("optimizers.json")


def _load(name):
    path = checkpoints.SHIPPED / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or missing ({error}). {checkpoints.RESTORE}") from error
