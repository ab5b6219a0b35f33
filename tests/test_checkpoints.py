"""Weight files: what comes back, what is refused, what a failed save leaves, and which file is loaded."""

import copy
import dataclasses
import errno
import hashlib
import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.utils.prune
from conftest import ROOT, defaults, same_weights, seeded

from vqlib import checkpoints, data, files, load_pair, scorecard, training
from vqlib.classifier import Classifier, ClassifierConfig
from vqlib.training import __main__ as command
from vqlib.transformer import Transformer, TransformerConfig
from vqlib.vqvae import VQVAE, VQVAEConfig

SMALL = TransformerConfig(d_model=16, n_heads=2, n_layers=1)
OF_0_1 = Path(__file__).parent / "files_of_0_1"


@pytest.fixture
def tensors():
    weight, half = torch.randn(3, 5, generator=seeded()), torch.randn(6, generator=seeded(1)).half()
    return {"weight": weight, "count": torch.arange(4), "step": torch.tensor(7.0), "half": half}


@pytest.fixture
def file(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    checkpoints.save(path, "thing", tensors, history=[1, 2, 3], note="abc")
    return path


def same(tensors, others):
    return tensors.keys() == others.keys() and all(
        t.dtype == others[name].dtype and torch.equal(t, others[name]) for name, t in tensors.items()
    )


def a_vqvae(seed=0, **config):
    torch.manual_seed(seed)
    return VQVAE(VQVAEConfig(channels=4, **config))


def save_transformer(folder, vqvae, **info):
    path, tokenizer = folder / "transformer.safetensors", checkpoints.tokenizer_id(vqvae)
    checkpoints.save_model(path, Transformer(SMALL), tokenizer=tokenizer, **info)
    return path


def a_pair(folder, seed=0):
    """Save a VQ-VAE and a Transformer that learned its codes in a folder."""
    vqvae = a_vqvae(seed)
    checkpoints.save_model(folder / "vqvae.safetensors", vqvae, note=f"pair {seed}")
    save_transformer(folder, vqvae, note=f"pair {seed}")
    return vqvae


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder that stands for the shipped weights, with a pair in it."""
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path / "shipped")
    a_pair(tmp_path / "shipped")
    return tmp_path / "shipped"


# --- there and back --------------------------------------------------------------------------------------------------


def test_tensors_and_info_come_back_as_they_were(tmp_path, tensors):
    info = {"recipe": {"name": "best", "betas": [0.9, 0.95]}, "history": [1, 2.5, None, "β · 28×28"], "done": True}
    checkpoints.save(tmp_path / "new" / "a.safetensors", "thing", tensors, **info)
    read, read_info = checkpoints.read(tmp_path / "new" / "a.safetensors", "thing")
    assert same(tensors, read) and read_info == info
    assert os.listdir(tmp_path / "new") == ["a.safetensors"]


def test_tensors_of_any_layout_come_back(tmp_path):
    wide = torch.arange(96.0).reshape(2, 3, 4, 4)
    given = {"a": wide.to(memory_format=torch.channels_last), "b": wide.transpose(0, 3), "c": wide[:, 1]}
    given |= {"d": torch.ones(1).expand(5), "e": torch.nn.Parameter(wide), "f": torch.zeros(0, 3), "g": wide}
    checkpoints.save(tmp_path / "a", "thing", given)
    assert same(given, checkpoints.read(tmp_path / "a", "thing")[0])


def test_what_is_read_is_a_copy(file, tensors):
    read, _ = checkpoints.read(file, "thing")
    with open(file, "r+b") as same_place:
        same_place.write(bytes(file.stat().st_size))
    assert same(tensors, read)


@pytest.mark.parametrize("config", [{}, {"num_codes": 16, "code_dim": 3, "residual_blocks": 1, "quantizer": "ema"}])
def test_a_vqvae_comes_back_in_eval_mode_with_its_header(tmp_path, config):
    model, path = a_vqvae(**config).train(), tmp_path / "v.safetensors"
    checkpoints.save_model(path, model, recipe={"name": "x"}, test={"mse": 0.005})
    loaded = checkpoints.load_vqvae(path)
    assert loaded.config == model.config and not any(m.training for m in loaded.modules())
    assert same(model.state_dict(), loaded.state_dict())
    assert loaded.info["recipe"] == {"name": "x"} and loaded.info["test"]["mse"] == 0.005
    assert loaded.info["path"] == str(path) and loaded.info["format"] == 2
    assert loaded.quantizer.codebook.requires_grad is ("quantizer" not in config)
    checkpoints.save_model(tmp_path / "again", loaded, **loaded.info)  # a model's own header can be passed on
    assert checkpoints.load_vqvae(tmp_path / "again").info == loaded.info | {"path": str(tmp_path / "again")}


@pytest.mark.parametrize("config", [{}, {"tied": True, "qk_norm": True, "num_codes": 32}])
def test_half_precision_on_disk_is_float32_in_memory(tmp_path, config):
    vqvae, model = a_vqvae(), Transformer(TransformerConfig(d_model=16, n_heads=2, n_layers=2, **config))
    checkpoints.save_model(tmp_path / "t", model, torch.float16, tokenizer=checkpoints.tokenizer_id(vqvae))
    on_disk, _ = checkpoints.read(tmp_path / "t", "Transformer")
    assert {t.dtype for t in on_disk.values()} == {torch.float16}
    loaded = checkpoints.load_transformer(tmp_path / "t", vqvae=vqvae)
    assert same(loaded.state_dict(), copy.deepcopy(model).half().float().state_dict())
    assert (loaded.head.weight is loaded.token_embedding.weight) is ("tied" in config)
    assert not any(m.training for m in loaded.modules())


WRAPPED = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "parallel": torch.nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled and parallel": lambda model: torch.compile(torch.nn.DataParallel(model), backend="eager"),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_a_wrapped_model_is_saved_as_what_it_is(tmp_path, how):
    model = a_vqvae()
    checkpoints.save_model(tmp_path / "v", WRAPPED[how](model))
    assert same_weights(checkpoints.load_vqvae(tmp_path / "v"), model)


def normed(model):
    torch.nn.utils.parametrizations.weight_norm(model.blocks[0].mlp[0])


def quantized(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a newer PyTorch wants another package for it
        torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, inplace=True)


def compiled_in_part(model):
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")


def pruned(model):
    torch.nn.utils.prune.l1_unstructured(model.head, "weight", 0.5)


def deepened(model):
    model.blocks.append(model.blocks[0])


@pytest.mark.parametrize("change", [normed, quantized, compiled_in_part, pruned, deepened])
def test_a_model_that_was_changed_is_refused_at_the_save(tmp_path, change):
    model, path = Transformer(SMALL), tmp_path / "t"
    checkpoints.save_model(path, model)
    before = path.read_bytes()
    change(model)
    with pytest.raises(ValueError, match="(?s)model.*Save it before"):
        checkpoints.save_model(path, model)
    assert path.read_bytes() == before


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    model = a_vqvae()
    model.quantizer.codebook.data[3, 4] = 1e5
    checkpoints.save_model(tmp_path / "v", model)
    with pytest.raises(ValueError, match="quantizer.codebook"):  # float16 ends at 65,504
        checkpoints.save_model(tmp_path / "v", model, torch.float16)
    with pytest.raises(ValueError, match="model"):
        checkpoints.save_model(tmp_path / "v", torch.nn.Linear(2, 2))
    assert same_weights(checkpoints.load_vqvae(tmp_path / "v"), model)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, "meta"])
def test_the_readers_defaults_change_nothing(tmp_path, default):
    a_pair(tmp_path)
    usual = load_pair(tmp_path)
    with defaults(default):
        pair = load_pair(tmp_path)
        checkpoints.save_model(tmp_path / "again", pair.vqvae)
    for model, other in zip((*pair, checkpoints.load_vqvae(tmp_path / "again")), (*usual, usual.vqvae), strict=True):
        assert same(model.state_dict(), other.state_dict())
        assert {(p.dtype, p.device.type) for p in model.state_dict().values()} == {(torch.float32, "cpu")}


def test_the_tokenizer_id_is_a_hash_of_encoder_and_codebook():
    vqvae, digest = a_vqvae(), hashlib.sha256()
    parts = {f"encoder.{name}": p for name, p in vqvae.encoder.named_parameters()}
    for name, p in sorted((parts | {"quantizer.codebook": vqvae.quantizer.codebook}).items()):
        digest.update(f"{name} torch.float32 {tuple(p.shape)};".encode() + p.detach().numpy().tobytes())
    identity = checkpoints.tokenizer_id(vqvae)
    assert identity == digest.hexdigest()
    vqvae.quantizer.ema_count += 1  # matters in training only
    vqvae.decoder[0].weight.data += 1  # another decoder may draw the same codes
    vqvae = vqvae.double().eval().to(memory_format=torch.channels_last)
    assert identity == checkpoints.tokenizer_id(vqvae)
    vqvae.quantizer.codebook.data[5, 3] += 1e-6
    assert len({identity, checkpoints.tokenizer_id(vqvae), checkpoints.tokenizer_id(a_vqvae(1))}) == 3


# --- damaged files ---------------------------------------------------------------------------------------------------


def read_or_refuse(path, content):
    """What is read of a file with this content; None for a ValueError that names the file and what to do."""
    path.write_bytes(content)
    try:
        return checkpoints.read(path, "thing")
    except ValueError as error:
        assert str(path) in str(error) and ("train again" in str(error) or "another path" in str(error))
        return None


def test_a_truncated_file_is_refused_wherever_it_was_cut(file):
    content = file.read_bytes()
    for length in {*range(0, len(content), 7), len(content) - 1, 8, 7}:
        assert read_or_refuse(file, content[:length]) is None, length
    assert read_or_refuse(file, content + b"\0") is None
    assert read_or_refuse(file, content) is not None


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF])
def test_a_flipped_byte_is_refused_wherever_it_is(file, flip):
    content = file.read_bytes()
    for at in range(0, len(content), 2 if flip in (0x01, 0xFF) else 5):
        damaged = content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :]
        assert read_or_refuse(file, damaged) is None, f"byte {at} of {len(content)}"


NOT_WEIGHTS = {
    "empty": b"",
    "zeros": bytes(100),
    "html": b"<!DOCTYPE html><html></html>",
    "ones": b"\xff" * 64,
    "huge header": (10**18).to_bytes(8, "little") + b"{}",
    "no tensors": (2).to_bytes(8, "little") + b"{}",
    "null": (4).to_bytes(8, "little") + b"null",
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
}


@pytest.mark.parametrize("content", NOT_WEIGHTS)
def test_what_is_not_a_weight_file_is_refused(file, content):
    assert read_or_refuse(file, NOT_WEIGHTS[content]) is None


@pytest.mark.parametrize("old, new", [(b"abc", b"abd"), (b"[1, 2, 3]", b"[1, 2, 4]"), (b"weight", b"wEight")])
def test_an_edited_header_is_refused(file, old, new):
    content = file.read_bytes()
    assert content.count(old) == 1
    assert read_or_refuse(file, content.replace(old, new)) is None


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.mark.parametrize("write", ["pickle", "torch"])
def test_a_pickle_executes_nothing_and_is_refused(tmp_path, write):
    path, marker = tmp_path / "vqvae.safetensors", tmp_path / "executed"
    evil = Evil(str(marker))
    if write == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save({"model": evil}, path)
    for load in (checkpoints.load_vqvae, checkpoints.load_transformer, lambda p: checkpoints.read(p, "thing")):
        with pytest.raises(ValueError, match="vqvae.safetensors"):
            load(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(evil)).close()
    assert marker.exists()  # it would have been executed


def test_a_damaged_shipped_file_has_its_own_remedy(shipped):
    (shipped / "vqvae.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="vqvae.safetensors.*git checkout"):
        checkpoints.load_vqvae()


# --- the wrong file --------------------------------------------------------------------------------------------------


def test_a_folder_is_no_weight_file(tmp_path):
    a_pair(tmp_path / "mine")
    with pytest.raises(IsADirectoryError, match="mine.*folder.*transformer.safetensors, vqvae.safetensors"):
        checkpoints.load_vqvae(tmp_path / "mine")
    with pytest.raises(IsADirectoryError, match="mine.*folder"):
        files.check_writable(tmp_path / "mine")


def test_a_run_of_version_0_1_is_named_by_its_old_name(tmp_path):
    (tmp_path / "ancestor").mkdir()
    a_pair(tmp_path / "ancestor")
    with pytest.raises(FileNotFoundError, match="original.*ancestor.vqvae.safetensors"):
        checkpoints.load_vqvae(tmp_path / "original" / "vqvae.safetensors")


def test_a_missing_file_is_named_by_its_full_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "nowhere.safetensors")):
        checkpoints.load_vqvae("nowhere.safetensors")


def test_no_message_advises_deleting_what_was_not_read(tmp_path, monkeypatch):
    a_pair(tmp_path)

    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    mixed_up, vqvae = tmp_path / "transformer.safetensors", tmp_path / "vqvae.safetensors"
    messages = []
    for path, kind in ((tmp_path, "VQVAE"), (tmp_path / "no", "VQVAE"), (tmp_path / "no", "training state")):
        with pytest.raises(OSError) as told:
            checkpoints.read(path, kind)
        messages.append(str(told.value))
    with pytest.raises(ValueError) as told:
        checkpoints.load_vqvae(mixed_up)
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(PermissionError) as denial:
        checkpoints.load_vqvae(vqvae)
    assert not [text for text in (*messages, str(told.value), str(denial.value)) if "elete" in text]
    for path in (ROOT / "vqlib").rglob("*.py"):  # nor any other
        assert "elete it" not in (text := path.read_text(encoding="utf-8")) and "Delete" not in text, path


def test_another_kind_of_file_is_refused(tmp_path):
    a_pair(tmp_path)
    with pytest.raises(ValueError, match="transformer.safetensors.*Transformer.*VQVAE"):
        checkpoints.load_vqvae(tmp_path / "transformer.safetensors")
    with pytest.raises(ValueError, match="vqvae.safetensors.*VQVAE.*Transformer"):
        checkpoints.load_transformer(tmp_path / "vqvae.safetensors", vqvae=a_vqvae())
    with pytest.raises(ValueError, match="name"):
        checkpoints.load_classifier("jury")


OTHERS = [{"channels": 8}, {"num_codes": 32}, {"residual_blocks": 3}, {"wings": 2}, {"quantizer": "magic"}, None]


@pytest.mark.parametrize("config", OTHERS)
def test_weights_of_another_configuration_are_refused(tmp_path, config):
    info = {} if config is None else {"config": {"num_codes": 64, "code_dim": 16, "channels": 4} | config}
    checkpoints.save(tmp_path / "v", "VQVAE", a_vqvae().state_dict(), **info)
    with pytest.raises(ValueError, match="(?s)v does not fit its configuration"):
        checkpoints.load_vqvae(tmp_path / "v")


def test_weights_that_no_model_has_are_refused(tmp_path):
    state, config = a_vqvae().state_dict(), {"channels": 4}
    codebook = state.pop("quantizer.codebook")
    for wrong in (None, codebook[:8], codebook * torch.inf, codebook.to(torch.complex64), codebook.long()):
        tensors = state if wrong is None else state | {"quantizer.codebook": wrong}
        try:
            checkpoints.save(tmp_path / "v", "VQVAE", tensors, config=config)
        except KeyError:  # an older safetensors can't write complex numbers, nor read them
            continue
        with pytest.raises(ValueError, match="(?s)v does not fit its configuration"):
            checkpoints.load_vqvae(tmp_path / "v")


# --- a pair that belongs together ------------------------------------------------------------------------------------


def test_a_transformer_of_another_tokenizer_is_refused(tmp_path):
    a_pair(tmp_path)
    path = tmp_path / "transformer.safetensors"
    assert checkpoints.load_transformer(path, vqvae=a_vqvae(0)).info["note"] == "pair 0"
    with pytest.raises(ValueError, match=f"{path}.*another tokenizer.*load_pair.*vqlib.training"):
        checkpoints.load_transformer(path, vqvae=a_vqvae(1))
    checkpoints.save_model(path, Transformer(SMALL))  # says nothing of its tokenizer
    with pytest.raises(ValueError, match="another tokenizer"):
        checkpoints.load_transformer(path, vqvae=a_vqvae(0))
    with pytest.raises(ValueError, match="vqvae"):
        checkpoints.load_transformer(vqvae="vqvae.safetensors")


def test_another_decoder_for_the_same_codes_still_fits(tmp_path):
    vqvae = a_pair(tmp_path)
    for p in vqvae.decoder.parameters():
        p.data.mul_(2)
    assert checkpoints.load_transformer(tmp_path / "transformer.safetensors", vqvae=vqvae).info["note"] == "pair 0"


# --- saves that fail -------------------------------------------------------------------------------------------------


def no_space(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(*arguments):
    raise KeyboardInterrupt


class Full:
    """A file on a disk that is full in the middle of a write."""

    def __init__(self, path, mode):
        self.file = open(path, mode)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        no_space()


FAILURES = [(os, "fsync", no_space), (os, "replace", no_space), (files, "open", Full), (os, "fsync", interrupted)]


@pytest.mark.parametrize("module, name, failing", FAILURES)
def test_a_failed_save_leaves_the_previous_file_and_nothing_else(file, tensors, monkeypatch, module, name, failing):
    before = file.read_bytes()
    monkeypatch.setattr(module, name, failing, raising=False)
    with pytest.raises((OSError, KeyboardInterrupt)) as failed:
        checkpoints.save(file, "thing", {"weight": tensors["weight"] + 1})
    if failing is not interrupted:
        assert str(file) in str(failed.value) and "VQLIB_RUNS" in str(failed.value)
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path, tensors):
    (tmp_path / "file").write_text("not a folder")
    for path in (tmp_path / "file" / "a.safetensors", tmp_path / "file" / "deeper" / "a.safetensors"):
        for fail in (lambda p: checkpoints.save(p, "thing", tensors), files.check_writable):
            with pytest.raises(OSError, match="file.*VQLIB_RUNS"):
                fail(path)
    assert (tmp_path / "file").read_text() == "not a folder"
    files.check_writable(tmp_path / "new" / "a.safetensors")
    assert os.listdir(tmp_path / "new") == []


KILLED = """
import os, sys, torch
from vqlib import checkpoints, files
at, path = sys.argv[1:]
class Dying:
    def __init__(self, path, mode): self.file = open(path, mode)
    def __enter__(self): return self
    def __exit__(self, *exception): pass
    def write(self, content):
        self.file.write(content[:len(content) // 2])
        self.file.flush()
        os._exit(9)
if at == "write":
    files.open = Dying
else:
    setattr(os, at, lambda *arguments: os._exit(9))
checkpoints.save(path, "thing", {"weight": torch.ones(50)})
"""


@pytest.mark.parametrize("at", ["write", "replace"])
def test_a_killed_save_leaves_the_previous_file(file, tensors, at):
    before = file.read_bytes()
    killed = subprocess.run([sys.executable, "-c", KILLED, at, str(file)], cwd=ROOT)
    assert killed.returncode == 9 and file.read_bytes() == before
    assert len(os.listdir(file.parent)) == 2  # the unfinished file lies beside it
    checkpoints.save(file, "thing", tensors, note="next")  # and is in nobody's way
    assert checkpoints.read(file, "thing")[1] == {"note": "next"}


# --- which file is loaded --------------------------------------------------------------------------------------------


def test_the_runs_folder_has_one_place_whatever_the_working_directory(tmp_path, monkeypatch):
    assert checkpoints.runs_folder() == tmp_path / "runs"
    monkeypatch.delenv("VQLIB_RUNS")
    here = checkpoints.runs_folder()
    monkeypatch.chdir(tmp_path)
    assert checkpoints.runs_folder() == here and here.is_absolute()
    assert here in (Path(checkpoints.__file__).parent.parent / "runs", Path.home() / ".vqlib" / "runs")


def test_an_installed_package_keeps_its_runs_in_the_readers_home(tmp_path, monkeypatch):
    monkeypatch.delenv("VQLIB_RUNS")
    monkeypatch.setattr(checkpoints, "__file__", str(tmp_path / "site-packages" / "vqlib" / "checkpoints.py"))
    assert checkpoints.runs_folder() == Path.home() / ".vqlib" / "runs"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what Python does for a user without a home
    assert checkpoints.runs_folder().is_absolute()
    assert checkpoints.load_vqvae().info["path"].startswith(str(checkpoints.SHIPPED))


def test_a_tilde_is_the_home_directory_in_every_path(tmp_path, tensors, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: str(path).replace("~", str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    checkpoints.save("~/a", "thing", tensors)
    assert same(tensors, checkpoints.read("~/a", "thing")[0])
    vqvae = a_vqvae()
    checkpoints.save_model("~/vqvae.safetensors", vqvae)
    save_transformer(tmp_path, vqvae)
    checkpoints.save_model("~/judge.safetensors", Classifier(ClassifierConfig(channels=1, features=4)))
    assert checkpoints.load_vqvae("~/vqvae.safetensors").info["path"] == str(tmp_path / "vqvae.safetensors")
    assert checkpoints.load_transformer("~/transformer.safetensors", vqvae=vqvae)
    assert checkpoints.load_classifier(path="~/judge.safetensors")
    files.check_writable("~/new/b")
    monkeypatch.setenv("VQLIB_RUNS", "~/elsewhere")
    assert checkpoints.runs_folder() == tmp_path / "elsewhere"
    assert "~" not in os.listdir(tmp_path) and "new" in os.listdir(tmp_path)


def test_fast_mode_never_touches_the_readers_runs(tmp_path, monkeypatch):
    a_pair(tmp_path / "runs")
    monkeypatch.setenv("VQLIB_FAST", "1")
    folder = checkpoints.runs_folder()
    assert folder == checkpoints.runs_folder() and folder.is_dir() and folder != tmp_path / "runs"
    monkeypatch.delenv("VQLIB_RUNS")
    assert checkpoints.runs_folder() == folder


def test_the_readers_own_run_comes_before_the_shipped_weights(tmp_path, shipped):
    assert checkpoints.load_vqvae().info["path"] == str(shipped / "vqvae.safetensors")
    assert checkpoints.load_transformer().info["path"] == str(shipped / "transformer.safetensors")
    a_pair(tmp_path / "runs", seed=1)
    assert checkpoints.load_vqvae().info["note"] == checkpoints.load_transformer().info["note"] == "pair 1"
    assert checkpoints.load_vqvae().info["path"] == str(tmp_path / "runs" / "vqvae.safetensors")
    assert checkpoints.load_vqvae(shipped=True).info["note"] == "pair 0"
    assert checkpoints.load_transformer(shipped=True).info["note"] == "pair 0"
    assert checkpoints.load_vqvae(shipped / "vqvae.safetensors").info["note"] == "pair 0"


def test_half_a_pair_of_ones_own_is_refused_with_the_other_half_named(tmp_path, shipped):
    own = tmp_path / "runs"
    checkpoints.save_model(own / "vqvae.safetensors", a_vqvae(seed=1))
    with pytest.raises(ValueError, match=f"{shipped}.*another tokenizer than {own / 'vqvae.safetensors'}"):
        checkpoints.load_transformer()
    assert checkpoints.load_transformer(shipped=True).info["note"] == "pair 0"
    save_transformer(own, a_vqvae(seed=1), note="own")  # what training does next
    assert checkpoints.load_transformer().info["note"] == "own"
    (own / "vqvae.safetensors").unlink()
    with pytest.raises(ValueError, match=f"{own}.*another tokenizer than {shipped}"):
        checkpoints.load_transformer()


def test_describe_says_whose_weights_these_are(tmp_path, shipped):
    model = checkpoints.load_vqvae()
    assert "shipped" in checkpoints.describe(model)  # though it states no recipe
    checkpoints.save_model(tmp_path / "runs" / "vqvae.safetensors", model, recipe={"name": "mine"})
    words = checkpoints.describe(checkpoints.load_vqvae())
    assert "'mine'" in words and str(tmp_path / "runs") in words
    assert "memory" in checkpoints.describe(a_vqvae()) and "memory" in checkpoints.describe(None)


@pytest.mark.parametrize(
    "info", [{}, {"recipe": None}, {"recipe": "mine"}, {"recipe": {}, "history": None, "test": None}]
)
def test_a_header_need_not_state_more_than_the_configuration(tmp_path, info, capsys):
    vqvae = a_vqvae()
    checkpoints.save_model(tmp_path / "vqvae.safetensors", vqvae, **info)
    save_transformer(tmp_path, vqvae, **info)
    checkpoints.save_model(tmp_path / "judge", Classifier(ClassifierConfig(channels=1, features=4)), **info)
    judge, pair = checkpoints.load_classifier(path=tmp_path / "judge"), load_pair(tmp_path)
    for model in (*pair, judge):
        assert "'unknown'" in checkpoints.describe(model)
        command.report(model)
    assert repr(pair) and "vqvae.safetensors" in capsys.readouterr().out
    some = data.load_mini("test").subset(torch.arange(40))
    rows = command.compare(
        {"vqvae": pair.vqvae, "transformer": pair.transformer, "judge": judge}, pair.vqvae, some, some
    )
    assert [row[1] for row in rows[1:]] == ["nan", "nan", "nan%"]
    figures = scorecard.score_pair(
        pair, Unimpressed(judge, some, some), 10, {"free": (1.0, 1.0), "led": (1.0, 2.0)}, 10
    )
    assert set(figures["samples"]) == {"free"}


class Unimpressed(scorecard.Referee):
    def accuracy_score(self, images, labels):  # which would train a classifier
        return {}


# --- files of version 0.1 (written by files_of_0_1/make.py) ----------------------------------------------------------


def header_of(path):
    """Its "info", read by hand."""
    content = path.read_bytes()
    return json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["info"])


def test_files_of_0_1_load_with_todays_header():
    vqvae, transformer = load_pair(OF_0_1)
    judge = checkpoints.load_classifier(path=OF_0_1 / "judge.safetensors")
    assert vqvae.config == VQVAEConfig(code_dim=2, channels=2, residual_blocks=0, quantizer="ema")
    assert transformer.config == TransformerConfig(d_model=4, n_heads=2, n_layers=1, context=50)
    assert judge.config == ClassifierConfig(channels=1, features=4)
    for model, name in ((vqvae, "vqvae"), (transformer, "transformer"), (judge, "judge")):
        stored, _ = checkpoints.read(OF_0_1 / f"{name}.safetensors", type(model).__name__)
        assert same({key: t.float() if t.is_floating_point() else t for key, t in stored.items()}, model.state_dict())
        today = {key: value for key, value in vars(model.config).items() if key != "num_words"}  # that came later
        assert model.info["config"] == today == model.info["recipe"]["model"]
        assert model.info["history"] == header_of(OF_0_1 / f"{name}.safetensors")["history"]
    assert [m.info["recipe"]["name"] for m in (vqvae, transformer, judge)] == ["original", "original", "judge"]
    assert checkpoints._upgrade({"config": {"ema": False}})["config"] == {"quantizer": "gradient"}


def test_a_transformer_of_0_1_is_known_by_its_tokenizers_new_id():
    old = header_of(OF_0_1 / "transformer.safetensors")
    vqvae, transformer = load_pair(OF_0_1)
    new = checkpoints.tokenizer_id(vqvae)
    assert transformer.info["tokenizer"] == new != old["tokenizer"]
    assert transformer.info["data"] == old["data"].replace(old["tokenizer"][:16], new[:16]) != old["data"]
    vqvae.decoder[0].weight.data += 1  # the old id was taken over the decoder too, so another one can't be recognised
    with pytest.raises(ValueError, match="another tokenizer"):
        checkpoints.load_transformer(OF_0_1 / "transformer.safetensors", vqvae=vqvae)


def test_training_recognises_finished_runs_of_0_1(test, tmp_path, capsys):
    some, files = test.subset(torch.arange(20)), ("vqvae", "transformer", "judge")
    for name in files:
        (tmp_path / f"{name}.safetensors").write_bytes((OF_0_1 / f"{name}.safetensors").read_bytes())

    def train(stage, recipe, name, *tokenizer, **model):
        quick = {"epochs": 1, "batch_size": 10, "mixed_precision": False, "model": type(recipe.model)(**model)}
        path, recipe = tmp_path / f"{name}.safetensors", dataclasses.replace(recipe, **quick)
        return stage(recipe, *tokenizer, some, path=path, device="cpu", progress=False)

    sizes = {"code_dim": 2, "channels": 2, "residual_blocks": 0, "quantizer": "ema"}
    vqvae = train(training.train_vqvae, training.ORIGINAL_VQVAE, "vqvae", **sizes)
    sizes = {"d_model": 4, "n_heads": 2, "n_layers": 1, "context": 50}
    train(training.train_transformer, training.ORIGINAL_TRANSFORMER, "transformer", vqvae, **sizes)
    train(training.train_classifier, training.JUDGE, "judge", channels=1, features=4)
    for name in files:
        assert (tmp_path / f"{name}.safetensors").read_bytes() == (OF_0_1 / f"{name}.safetensors").read_bytes()
    assert capsys.readouterr().out.count("finished run") == 3


def test_a_transformer_of_0_1_may_be_saved_again_without_its_tokenizer(tmp_path):
    """Its header then states the old id in a new file."""
    folder = Path(__file__).parent / "files_of_0_1"
    vqvae = checkpoints.load_vqvae(folder / "vqvae.safetensors")
    old = checkpoints.load_model(folder / "transformer.safetensors", Transformer, TransformerConfig)
    checkpoints.save_model(tmp_path / "t.safetensors", old, **old.info)
    again = checkpoints.load_transformer(tmp_path / "t.safetensors", vqvae=vqvae)
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in old.state_dict().items())
