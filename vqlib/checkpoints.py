"""Saving and loading weights: safetensors files, of which nothing is executed.

A file's header states its kind, a SHA-256 over all of it and, as JSON, the model's configuration, recipe, history and
test figures; in a Transformer's file also whose codes it learned (`tokenizer_id`).
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path

import safetensors.torch
import torch

import vqlib
from vqlib import checks
from vqlib.adversarial import FabricDecoder
from vqlib.classifier import Classifier, ClassifierConfig
from vqlib.contrastive import ContrastiveConfig, ContrastivePair
from vqlib.files import expand, replace_file
from vqlib.transformer import Transformer, TransformerConfig
from vqlib.vqvae import VQVAE, Decoder, VQVAEConfig

DECODERS = {"crisp": Decoder, "fabrics": FabricDecoder}  # those that have files of their own
SHIPPED = Path(__file__).parent / "weights"
RESTORE = "Restore it with `git checkout vqlib/weights`, or install the package again"
_FAST_RUNS = None  # the temporary folder of this process, see runs_folder


def runs_folder() -> Path:
    """Where training writes and loading looks first: one place, whatever the working directory.

    ``VQLIB_RUNS`` names it. Otherwise it is ``runs/`` beside the package in a checkout, and ``~/.vqlib/runs`` for an
    installed package. With ``VQLIB_FAST=1`` it is a temporary folder, so that tests leave a reader's runs alone.
    """
    global _FAST_RUNS
    if vqlib.fast():
        _FAST_RUNS = _FAST_RUNS or tempfile.TemporaryDirectory(prefix="vqlib-fast-")
        return Path(_FAST_RUNS.name)
    if named := os.environ.get("VQLIB_RUNS"):
        return expand(named)
    checkout, home = Path(__file__).parent.parent, Path(os.path.expanduser("~"))
    homeless = not home.is_absolute()  # not every user has a home directory
    return checkout / "runs" if homeless or (checkout / "pyproject.toml").is_file() else home / ".vqlib" / "runs"


def named(path) -> Path:
    """The absolute path of what a reader names to be loaded: from where they stand, else in the runs folder.

    So "mini" is the run of this name, wherever it is asked for.
    """
    here, run = expand(path), runs_folder() / os.path.expanduser(path)
    return run if os.path.exists(run) and not os.path.exists(here) else here


def save(path, kind, tensors, /, **info):
    """Write ``tensors`` (name -> tensor) and ``info`` (anything that JSON holds) to a safetensors file.

    All or nothing, and with the errors, as `files.replace_file` does it.
    """
    tensors = {name: t.detach().cpu().clone().contiguous() for name, t in sorted(tensors.items())}  # none share memory
    text = json.dumps(info, default=lambda number: number.item())  # NumPy's numbers
    header = {"kind": kind, "sha256": _digest(tensors, kind + text), "info": text}
    replace_file(path, safetensors.torch.save(tensors, header))


def read(path, kind):
    """Read a file that `save` wrote: (tensors, info). OSError if not there, ValueError if damaged or another kind."""
    path = expand(path)
    if path.is_dir():
        found = ", ".join(sorted(file.name for file in path.glob("*.safetensors"))) or "none"
        raise IsADirectoryError(f"{path} is a folder. Give the path of a file; the weight files in it: {found}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}. {_remedy(path)}")
    content = path.read_bytes()
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        found, info = header["kind"], json.loads(header["info"])
        if header["sha256"] != _digest(tensors, found + header["info"]):
            raise ValueError("its SHA-256 is not the one its header states")
    except Exception as error:  # whatever a damaged or hostile file raises in any of these
        raise ValueError(f"{path} is damaged or no weight file of vqlib ({error}). {_remedy(path)}") from error
    if found != kind:
        raise ValueError(f"{path} holds {found!r}, expected {kind!r}. Give another path, or load it as what it is")
    return tensors, info


def _remedy(path):
    if path.parent == SHIPPED:
        return RESTORE
    if path.stem in DECODERS and not path.is_file():
        return "Train one (`python -m vqlib.training decoders`, or training.train_decoder), or leave decoder out"
    if path.stem in ("captions", "contrastive", "dvae") and not path.is_file():
        return f"Train it (`python -m vqlib.training {path.stem}`), or load the shipped one (shipped=True)"
    old = Path(*("ancestor" if part == "original" else part for part in path.parts))
    if old != path and old.exists():
        return f"Version 0.1 called this run {old}, which is there: name that"
    first = "Give another path; or move it away and train again" if path.is_file() else "Check the path, or train first"
    runs = {str(file.parent.relative_to(runs_folder())) for file in runs_folder().rglob("vqvae.safetensors")} - {"."}
    there = f". The runs in {runs_folder()}, which can be named so: {', '.join(sorted(runs))}" if runs else ""
    return f"{first} (`python -m vqlib.training --help`), or load the shipped weights (shipped=True){there}"


def _digest(tensors, text=""):
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokenizer_id(vqvae: VQVAE, parts=("encoder.", "quantizer.codebook")) -> str:
    """A SHA-256 over encoder and codebook, as float32: they alone decide a picture's codes, whoever draws them."""
    return _digest({name: p.float() for name, p in vqvae.named_parameters() if name.startswith(parts)})


def save_model(path, model, /, dtype=None, **info):
    """Save a `VQVAE`, `Transformer` or `Classifier` with what a reader may want to know of it (recipe, history…).

    dtype: store floating-point tensors in this type, e.g. torch.float16 for half the size.
    Raises ValueError for what `load_model` would refuse: no configuration, tensors of another form, or not finite.
    """
    while (inner := getattr(model, "_orig_mod", getattr(model, "module", None))) is not None:
        model = inner  # torch.compile wraps it, as do DataParallel and AveragedModel
    if not dataclasses.is_dataclass(getattr(model, "config", None)):
        raise ValueError(f"model must have a config, as a VQVAE has; got {checks.describe(model)}")
    state = model.state_dict()
    try:
        _check_fit(type(model), model.config, state)
    except Exception as error:  # whatever the tensors of a changed model raise
        remedy = "Save it before it is quantized, pruned, parametrized or compiled in part"
        raise ValueError(f"a model with these tensors could not be loaded again ({error}). {remedy}") from error
    tensors = {name: t.to(dtype) if dtype and t.is_floating_point() else t for name, t in state.items()}
    _check_finite(tensors)
    info |= {"format": 2, "config": dataclasses.asdict(model.config)}
    info.pop("path", None)  # a model's own info says where it was loaded from
    save(path, type(model).__name__, tensors, **info)


def load_model(path, cls, config_cls, device="cpu", vqvae=None):
    """Load a model that `save_model` wrote, in eval mode and float32, with the header in ``model.info``.

    path: as in `named`. vqvae: for a Transformer, the tokenizer it should fit, for `_upgrade`.
    Raises what `read` does, and ValueError if the weights are not finite or don't fit the configuration stated.
    """
    path = named(path)
    tensors, info = read(path, cls.__name__)
    try:
        info = _upgrade(info, vqvae)
        config = config_cls(**info["config"])
        _check_fit(cls, config, tensors)
        _check_finite(tensors)
        with torch.device("cpu"), torch.inference_mode(False):  # whatever the reader has set, it can be trained
            model = cls(config).float()
            model.load_state_dict(tensors)
    except (AttributeError, ImportError) as error:  # the file is not to blame
        remedy = "If a cell or an import was stopped before its end, restart the kernel, or Python"
        raise RuntimeError(f"PyTorch doesn't work as it should here ({error}). {remedy}") from error
    except Exception as error:  # whatever a configuration that fits no model raises
        raise ValueError(f"{path} does not fit its configuration ({error}). {_remedy(path)}") from error
    odd = [name for name in ("recipe", "history", "test") if not isinstance(info.get(name), dict)]  # of a file by hand
    model.info = {name: value for name, value in info.items() if name not in odd} | {"path": str(path)}
    return model.eval().to(device)


def _check_fit(cls, config, tensors):
    """Raise an error unless these are, by name and shape, the tensors of such a model. It allocates nothing."""
    if max(getattr(config, name, 0) for name in ("n_layers", "residual_blocks")) > len(tensors):
        raise ValueError("it states more layers than there are tensors")
    with torch.device("meta"):
        cls(config).load_state_dict(tensors, assign=True)


def _upgrade(info, vqvae=None):
    """Bring the header of a file of version 0.1 up to date; its tokenizer's id was taken over all parameters."""
    if "format" in info:
        return info
    recipe = info.get("recipe", {})
    for config in (info["config"], recipe.get("model", {})):
        if "ema" in config:
            config["quantizer"] = "ema" if config.pop("ema") else "gradient"
        if "vocabulary_size" in config:  # the codes, ten classes and the end token
            config |= {"num_codes": config.pop("vocabulary_size") - 11, "num_classes": 10}
    if recipe.get("name") == "ancestor":
        recipe["name"] = "original"
    if vqvae is not None and info.get("tokenizer") == (old := tokenizer_id(vqvae, parts="")):
        new = tokenizer_id(vqvae)
        info |= {"tokenizer": new, "data": info.get("data", "").replace(old[:16], new[:16])}
    return info


def _check_finite(tensors):
    if strange := [name for name, t in tensors.items() if t.is_complex() or not t.isfinite().all()]:
        raise ValueError(f"{strange[0]} holds values that are not finite real numbers")


def load_vqvae(path=None, *, shipped=False, device="cpu") -> VQVAE:
    """The first stage: the file given, else the reader's own run if there is one, else the shipped weights.

    In eval mode; ``vqvae.info["path"]`` says which file it came from. Raises what `load_model` does.
    """
    return load_model(path or find("vqvae", shipped), VQVAE, VQVAEConfig, device)


def load_transformer(path=None, *, name="transformer", shipped=False, vqvae=None, device="cpu") -> Transformer:
    """The second stage, looked for as in `load_vqvae`, in eval mode.

    name: "transformer", which writes for a class, or "captions", which writes for a caption.
    vqvae: the tokenizer it must fit, by default the one that `load_vqvae` gives with the same ``shipped``.
    Raises what `load_model` does, and ValueError if the two don't match.
    """
    checks.check_choice("name", name, ("transformer", "captions"))
    tokenizer = vqvae if vqvae is not None else load_vqvae(shipped=shipped)
    checks.check_kinds(vqvae=(tokenizer, VQVAE))
    transformer = load_model(path or find(name, shipped), Transformer, TransformerConfig, device, tokenizer)
    check_tokenizer(transformer, tokenizer, name)
    return transformer


def load_decoder(name="crisp", path=None, *, shipped=False, vqvae=None, device="cpu") -> Decoder:
    """Another decoder for the codes of a tokenizer (`adversarial`), looked for as in `load_vqvae`, in eval mode.

    name: "crisp", or "fabrics", a `FabricDecoder`. The rest, and what it raises, are as in `load_transformer`.
    """
    checks.check_choice("name", name, tuple(DECODERS))
    tokenizer = vqvae if vqvae is not None else load_vqvae(shipped=shipped)
    checks.check_kinds(vqvae=(tokenizer, VQVAE))
    decoder = load_model(path or find(name, shipped), DECODERS[name], VQVAEConfig, device)
    check_tokenizer(decoder, tokenizer, "decoders")
    return decoder


def check_tokenizer(model, tokenizer, stage):
    """Raise ValueError unless the model learned the codes of this tokenizer. stage: the command that trains such."""
    ids = tokenizer_id(tokenizer), tokenizer_id(tokenizer, parts="")  # the second: of version 0.1
    if model.info.get("tokenizer") not in ids:
        at, it = (getattr(m, "info", {}).get("path", "memory") for m in (tokenizer, model))
        remedy = f"Load a pair (vqlib.load_pair), or train one on these codes (`python -m vqlib.training {stage}`)"
        words = f"the {type(model).__name__} in {it} learned the codes of another tokenizer than {at}"
        raise ValueError(f"{words}. {remedy}")


def load_classifier(name="judge", path=None, *, shipped=False, device="cpu") -> Classifier:
    """A classifier: the "judge", which measures, or the "critic", which chooses. Looked for as in `load_vqvae`."""
    checks.check_choice("name", name, ("judge", "critic"))
    return load_model(path or find(name, shipped), Classifier, ClassifierConfig, device)


def load_dvae(path=None, *, shipped=False, device="cpu") -> VQVAE:
    """The discrete VAE of notebook 08, looked for as in `load_vqvae`, in eval mode."""
    return load_model(path or find("dvae", shipped), VQVAE, VQVAEConfig, device)


def load_contrastive(path=None, *, shipped=False, device="cpu") -> ContrastivePair:
    """The pair that says how well a picture fits a caption, looked for as in `load_vqvae`, in eval mode."""
    return load_model(path or find("contrastive", shipped), ContrastivePair, ContrastiveConfig, device)


def find(name, shipped=False):
    """The file from which these weights are loaded: the reader's own if there is one, else what is shipped."""
    own = runs_folder() / f"{name}.safetensors"
    return own if os.path.isfile(own) and not shipped else SHIPPED / f"{name}.safetensors"


def describe(model) -> str:
    """Say which weights these are, for a notebook to print."""
    info = getattr(model, "info", {})
    path, recipe = info.get("path", "weights in memory"), info.get("recipe", {}).get("name", "unknown")
    return f"{'shipped weights' if Path(path).parent == SHIPPED else path}, recipe {recipe!r}"
