"""Saving and loading, without executing anything: safetensors files that describe themselves in their header.

A file's header holds what it is (``kind``), the model's configuration, a SHA-256 over all of it, and, as JSON: the
recipe, the training history, the test figures. A Transformer's header also holds the identity of the tokenizer whose
codes it learned (`tokenizer_id`); `load_transformer` refuses a pair that does not match.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize

import vqlib
from vqlib.classifier import Classifier, ClassifierConfig
from vqlib.data import check_kinds
from vqlib.transformer import Transformer, TransformerConfig
from vqlib.vqvae import VQVAE, VQVAEConfig

SHIPPED = Path(__file__).parent / "weights"
_FAST_RUNS = None  # the temporary folder of this process, see runs_folder


def runs_folder():
    """Where training writes and `load_vqvae` looks first: one place, whatever the working directory.

    ``VQLIB_RUNS`` names it; else ``runs/`` beside the package in a checkout, ``~/.vqlib/runs`` for an installed
    package. With ``VQLIB_FAST=1`` (the tests' small numbers) it is a temporary folder, so that nothing of a
    reader's is read or written.
    """
    global _FAST_RUNS
    if vqlib.fast():
        _FAST_RUNS = _FAST_RUNS or tempfile.TemporaryDirectory(prefix="vqlib-fast-")
        return Path(_FAST_RUNS.name)
    if os.environ.get("VQLIB_RUNS"):
        return Path(os.environ["VQLIB_RUNS"]).expanduser()
    checkout = Path(__file__).parent.parent
    return checkout / "runs" if (checkout / "pyproject.toml").is_file() else Path.home() / ".vqlib" / "runs"


def keep_on_drive():
    """In Colab: keep runs on Google Drive, so that they outlive the machine. Asks for leave to mount it.

    Raises RuntimeError elsewhere.
    """
    try:
        from google.colab import drive
    except ImportError as error:
        raise RuntimeError("there is a Google Drive to mount only in Colab. Elsewhere set VQLIB_RUNS to a folder that "
                           "lasts") from error
    drive.mount("/content/drive")
    os.environ["VQLIB_RUNS"] = "/content/drive/MyDrive/vqvae-from-scratch/runs"
    print(f"runs are kept in {runs_folder()}")


# --- files -----------------------------------------------------------------------------------------------------------

def save(path, kind, tensors, **info):
    """Write ``tensors`` (name -> tensor) and ``info`` (anything JSON holds) to a safetensors file, all or nothing.

    The new file is complete and on the disk before it takes the old one's place: a failed or killed save leaves the
    previous file as it was. Raises OSError, naming the remedy, where the folder can't be written.
    """
    path = Path(path)
    tensors = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format)  # a copy: tied weights share memory
               for name, t in sorted(tensors.items())}
    text = json.dumps(info, default=lambda number: number.item())  # numpy's numbers
    header = {"kind": kind, "sha256": _digest(tensors, kind + text), "info": text}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(serialize(tensors, header))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise type(error)(f"cannot save {path}: {error}. What stood there before is untouched. Make the folder "
                          f"writable or free some space, or set VQLIB_RUNS to another folder") from error
    finally:
        with contextlib.suppress(OSError):  # where it can't even be looked up, the error above says why
            temporary.unlink()


def check_writable(path):
    """Raise OSError, naming the remedy, where `save` could not write: before an hour of training, not after it."""
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file, such as {Path(path) / 'model.safetensors'}")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=Path(path).parent):
            pass
    except OSError as error:
        raise type(error)(f"cannot write into {Path(path).parent}: {error}. Make the folder writable, or set "
                          f"VQLIB_RUNS to another folder") from error


def read(path, kind):
    """Read a file that `save` wrote: (tensors, info). Nothing in it is executed.

    Raises FileNotFoundError, or ValueError where the file is damaged, altered, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}. {_remedy(path, kind)}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if header.get("kind", kind) == kind:
            info, digest = json.loads(header["info"]), _digest(tensors, header["kind"] + header["info"])
    except Exception as error:  # whatever a damaged or hostile file raises in any of these
        raise ValueError(f"{path} is damaged or no weight file of this project ({error}). "
                         f"{_remedy(path, kind)}") from error
    if header["kind"] != kind:
        raise ValueError(f"{path} holds {header['kind']!r}, expected {kind!r}. Give the path of another file, or load "
                         f"this one as what it is")
    if header.get("sha256") != digest:
        raise ValueError(f"{path} is damaged: its content doesn't have the SHA-256 that its header states. "
                         f"{_remedy(path, kind)}")
    return tensors, info


def _remedy(path, kind=None):
    if path.parent == SHIPPED:
        return "Restore it with `git checkout vqlib/weights`, or install the package again."
    if kind == "training state":
        return "Delete it to start this run afresh."
    first = "Delete it and train again" if path.exists() else "Check the path; train first"
    return f"{first} (`python -m vqlib.training --help`), or load the shipped weights (shipped=True)."


def _digest(tensors, text=""):
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokenizer_id(vqvae):
    """A SHA-256 over a VQ-VAE's parameters: codes of one tokenizer mean nothing to another."""
    return _digest(dict(vqvae.named_parameters()))


# --- models ----------------------------------------------------------------------------------------------------------

def save_model(path, model, dtype=None, **info):
    """Save a `VQVAE` or `Transformer` with what a reader may want to know of it (recipe, history, test figures…).

    dtype: store floating-point tensors in this type, e.g. torch.float16 for half the size.
    """
    tensors = {name: t.to(dtype) if dtype and t.is_floating_point() else t for name, t in model.state_dict().items()}
    save(path, type(model).__name__, tensors, config=dataclasses.asdict(model.config), **info)


def load_model(path, cls, config_cls, device="cpu"):
    """Load a model that `save_model` wrote, in eval mode and float32, with the header in ``model.info``.

    Raises ValueError where the file is damaged, doesn't fit the configuration it states, or holds values that are no
    finite numbers.
    """
    tensors, info = read(path, cls.__name__)
    try:
        model = _build(cls, config_cls, info["config"], tensors)
    except Exception as error:  # whatever a configuration that fits no model raises
        raise ValueError(f"{path} does not fit its configuration ({error}). {_remedy(Path(path))}") from error
    model.info = {**info, "path": str(path)}
    return model.eval().to(device)


def _build(cls, config_cls, config, tensors):
    """The model of this configuration with these weights; nothing is allocated that the weights wouldn't fill."""
    if len(tensors) > 10_000:
        raise ValueError(f"there are {len(tensors):,} tensors")
    widest = max(size for tensor in tensors.values() for size in (1, *tensor.shape))
    numbered = {int(part) for name in tensors for part in name.split(".") if part.isdecimal()}  # as in blocks.7.norm1
    for name, value in config.items():
        most = max(numbered, default=-1) + 1 if name in ("n_layers", "residual_blocks") else widest
        if isinstance(value, int) and not 0 <= value <= most:
            raise ValueError(f"{name} is {value}, which no tensor here bears out")
    with torch.device("meta"):  # shapes only
        expected = {name: tuple(t.shape) for name, t in cls(config_cls(**config)).state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        raise ValueError(f"{wrong[0]} is {found.get(wrong[0], 'missing')}, expected {expected.get(wrong[0], 'none')}")
    if strange := [name for name, t in tensors.items() if t.is_complex()]:
        raise ValueError(f"{strange[0]} holds complex numbers")
    model = cls(config_cls(**config))
    model.load_state_dict(tensors)
    if strange := [name for name, t in model.state_dict().items() if not t.isfinite().all()]:
        raise ValueError(f"{strange[0]} holds values that are no finite numbers")
    return model


def load_vqvae(path=None, *, shipped=False, device="cpu"):
    """The first stage: the file given, else the reader's own run if there is one, else the shipped weights.

    Returns a `VQVAE` in eval mode. ``vqvae.info["path"]`` says which file it came from.
    """
    return load_model(path or _choose("vqvae", shipped), VQVAE, VQVAEConfig, device)


def load_transformer(path=None, *, shipped=False, vqvae=None, device="cpu"):
    """The second stage, trained on the codes of the tokenizer that `load_vqvae` returns.

    vqvae: the tokenizer it must fit; default the one that `load_vqvae` gives with the same ``shipped``.
    Returns a `Transformer` in eval mode. Raises ValueError, saying what to train or load, where the two don't match.
    """
    named, tokenizer = path is not None, vqvae if vqvae is not None else load_vqvae(shipped=shipped)
    check_kinds(vqvae=(tokenizer, VQVAE))
    path = Path(path or _choose("transformer", shipped))
    transformer = load_model(path, Transformer, TransformerConfig, device)
    if transformer.info.get("tokenizer") != tokenizer_id(tokenizer):
        at = tokenizer.info["path"] if hasattr(tokenizer, "info") else "the VQ-VAE given"
        remedy = ("Train one on these codes (`python -m vqlib.training transformer`), or load the shipped pair "
                  "(load_vqvae(shipped=True) and load_transformer(shipped=True); for commands, move the runs folder "
                  "away)")
        if named and vqvae is None:
            remedy = "Name its own as well: load_transformer(path, vqvae=load_vqvae(path of its tokenizer))"
        elif vqvae is None and SHIPPED in Path(at).parents:
            remedy = f"Its own is no longer beside it: put {path.with_name('vqvae.safetensors')} back. Or: {remedy}"
        raise ValueError(f"the Transformer in {path} learned the codes of another tokenizer than {at}: its pictures "
                         f"would be noise. {remedy}")
    return transformer


def load_classifier(name="judge", path=None, shipped=False, device="cpu"):
    """A classifier of pictures: the ``judge``, which measures, or the ``critic``, which chooses (see classifier.py).

    Like `load_vqvae`: the file given, else the reader's own run, else the shipped one. A `Classifier` in eval mode.
    """
    if name not in ("judge", "critic"):
        raise ValueError(f"name must be 'judge' or 'critic', got {name!r}")
    return load_model(path or _choose(name, shipped), Classifier, ClassifierConfig, device)


def _choose(name, shipped):
    own = runs_folder() / f"{name}.safetensors"
    return own if own.is_file() and not shipped else SHIPPED / f"{name}.safetensors"


def load_ancestor_record():
    """What the ancestor's recipe gave, run on this package's layers and on aligned sequences; its weights are not kept.

    Returns a dict: "vqvae" and "transformer" (each with recipe, history and test figures), "samples" (10, 8, 28, 28)
    uint8: ten classes, temperature 0.8, seed 0, the first eight.
    """
    tensors, info = read(SHIPPED / "ancestor.safetensors", "ancestor record")
    return {**info, **tensors}


def load_scorecard():
    """The figures of the shipped pair, as `python -m vqlib.scorecard` wrote them: a dict (see scorecard.py)."""
    return _shipped_json("scorecard.json")


def load_ablation(collapse=False):
    """What each trick of stage 1 bought, or what cures a collapse: {variant: {figure: [a value for each seed]}}.

    As `python tests/benchmarks/stage1_ablation.py --only a b c d e f g --summary FILE` wrote it, the second with
    ``--collapse`` in place of ``--only …``.
    """
    return _shipped_json("collapse.json" if collapse else "ablation.json")


def _shipped_json(name):
    try:
        return json.loads((SHIPPED / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{SHIPPED / name} is damaged or missing ({error}). {_remedy(SHIPPED / name)}") from error


def describe(model):
    """Which weights these are, in words, for a notebook to print."""
    name = f"recipe {model.info['recipe']['name']!r}"
    shipped = Path(model.info["path"]).parent == SHIPPED
    return f"shipped weights, {name}" if shipped else f"your own run, {name}, {model.info['path']}"
