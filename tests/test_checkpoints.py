import copy
import dataclasses
import errno
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vqlib import checkpoints
from vqlib.transformer import Transformer, TransformerConfig
from vqlib.vqvae import VQVAE, VQVAEConfig

SMALL = TransformerConfig(d_model=16, n_heads=2, n_layers=1)


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {"weight": torch.randn(3, 5, generator=generator), "count": torch.arange(4), "step": torch.tensor(7.0),
            "half": torch.randn(6, generator=generator).half()}


def same(tensors, others):
    return list(tensors) == list(others) and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        for a, b in zip(tensors.values(), others.values(), strict=True))


def a_vqvae(seed=0, **config):
    torch.manual_seed(seed)
    return VQVAE(VQVAEConfig(channels=4, **config))


def a_pair(folder, seed=0):
    """A VQ-VAE and a Transformer that learned its codes, saved in a folder."""
    vqvae = a_vqvae(seed)
    checkpoints.save_model(folder / "vqvae.safetensors", vqvae, note=f"pair {seed}")
    save_transformer(folder, vqvae, note=f"pair {seed}")
    return vqvae


def save_transformer(folder, vqvae, **info):
    checkpoints.save_model(folder / "transformer.safetensors", Transformer(SMALL),
                           tokenizer=checkpoints.tokenizer_id(vqvae), **info)


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
    assert same(dict(sorted(tensors.items())), dict(sorted(read.items()))) and read_info == info
    assert os.listdir(tmp_path / "new") == ["a.safetensors"]


def test_tensors_of_any_layout_come_back(tmp_path, tensors):
    wide = torch.arange(96.0).reshape(2, 3, 4, 4)
    given = {"a": wide.to(memory_format=torch.channels_last), "b": wide.transpose(0, 3), "c": wide[:, 1],
             "d": torch.ones(1).expand(5), "e": torch.nn.Parameter(wide), "f": torch.zeros(0, 3)}
    checkpoints.save(tmp_path / "a", "thing", given)
    assert same(given, checkpoints.read(tmp_path / "a", "thing")[0])


@pytest.mark.parametrize("config", [VQVAEConfig(channels=4), VQVAEConfig(num_codes=16, code_dim=3, channels=6,
                                                                         residual_blocks=1, ema=True)])
def test_a_vqvae_comes_back_in_eval_mode_with_its_header(tmp_path, config):
    model = VQVAE(config).train()
    path = tmp_path / "v.safetensors"
    checkpoints.save_model(path, model, recipe={"name": "x"}, test={"mse": 0.005})
    loaded = checkpoints.load_vqvae(path)
    assert loaded.config == config and not any(m.training for m in loaded.modules())
    assert same(model.state_dict(), loaded.state_dict())
    assert loaded.info["recipe"] == {"name": "x"} and loaded.info["test"]["mse"] == 0.005
    assert loaded.info["path"] == str(path) and loaded.quantizer.codebook.requires_grad is not config.ema


def test_half_precision_on_disk_is_float32_in_memory(tmp_path):
    vqvae, model = a_pair(tmp_path), Transformer(SMALL)
    checkpoints.save_model(tmp_path / "t", model, torch.float16, tokenizer=checkpoints.tokenizer_id(vqvae))
    on_disk, _ = checkpoints.read(tmp_path / "t", "Transformer")
    assert {t.dtype for t in on_disk.values()} == {torch.float16}
    loaded = checkpoints.load_transformer(tmp_path / "t", vqvae=vqvae)
    assert {t.dtype for t in loaded.state_dict().values()} == {torch.float32}
    assert same(loaded.state_dict(), copy.deepcopy(model).half().float().state_dict())
    assert not any(m.training for m in loaded.modules())


def test_the_tokenizer_id_is_a_hash_of_what_makes_codes():
    vqvae = a_vqvae()
    identity = checkpoints.tokenizer_id(vqvae)
    assert re.fullmatch("[0-9a-f]{64}", identity) and identity == checkpoints.tokenizer_id(a_vqvae())
    assert identity == checkpoints.tokenizer_id(vqvae.to(memory_format=torch.channels_last))
    vqvae.quantizer.ema_count += 1  # of training only
    assert identity == checkpoints.tokenizer_id(vqvae.eval())
    changed = [a_vqvae(seed=1), a_vqvae()]
    changed[1].quantizer.codebook.data[5, 3] += 1e-6
    assert len({identity, *map(checkpoints.tokenizer_id, changed)}) == 3


# --- damaged files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path, tensors):
    path = tmp_path / "a.safetensors"
    checkpoints.save(path, "thing", tensors, history=[1, 2, 3], note="abc")
    return path


def read_or_refuse(path, content):
    """Whether the content is read as a whole file; a ValueError that names the file and the remedy is a refusal."""
    path.write_bytes(content)
    try:
        return checkpoints.read(path, "thing")
    except ValueError as error:
        assert str(path) in str(error) and ("train again" in str(error) or "expected 'thing'" in str(error))
        return None


def test_a_truncated_file_is_refused_wherever_it_was_cut(file):
    content = file.read_bytes()
    for length in {*range(0, len(content), 7), len(content) - 1, 8, 7}:
        assert read_or_refuse(file, content[:length]) is None, length
    assert read_or_refuse(file, content + b"\0") is None
    assert read_or_refuse(file, content) is not None


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF])
def test_a_flipped_byte_is_refused_wherever_it_is(file, tensors, flip):
    content = file.read_bytes()
    assert len(content) < 1500
    for at in range(0, len(content), 2 if flip in (0x01, 0xFF) else 5):
        damaged = content[:at] + bytes([content[at] ^ flip]) + content[at + 1:]
        assert read_or_refuse(file, damaged) is None, f"byte {at} of {len(content)}"


@pytest.mark.parametrize("content", [
    b"", b"\0" * 100, b"<!DOCTYPE html><html></html>", b"\xff" * 64, (10**18).to_bytes(8, "little") + b"{}",
    (2).to_bytes(8, "little") + b"{}", (4).to_bytes(8, "little") + b"null",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
], ids=["empty", "zeros", "html", "ones", "huge header", "no tensors", "null", "git-lfs pointer"])
def test_what_is_no_weight_file_is_refused(file, content):
    assert read_or_refuse(file, content) is None


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


@pytest.mark.parametrize("write", [lambda path, thing: path.write_bytes(pickle.dumps(thing)),
                                   lambda path, thing: torch.save({"model": thing}, path)], ids=["pickle", "torch"])
def test_a_pickle_executes_nothing_and_is_refused(tmp_path, write):
    path, marker = tmp_path / "vqvae.safetensors", tmp_path / "executed"
    write(path, Evil(str(marker)))
    for load in (checkpoints.load_vqvae, checkpoints.load_transformer, lambda p: checkpoints.read(p, "thing")):
        with pytest.raises(ValueError, match="vqvae.safetensors is damaged or no weight file"):
            load(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(str(marker)))).close()
    assert marker.exists()  # it would have


def test_a_damaged_shipped_file_has_its_own_remedy(shipped):
    (shipped / "vqvae.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="git checkout vqlib/weights"):
        checkpoints.load_vqvae()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors. Check the path; train first .*vqlib.training"):
        checkpoints.load_vqvae(tmp_path / "nowhere.safetensors")


# --- the wrong file --------------------------------------------------------------------------------------------------


def test_another_kind_of_file_is_refused(tmp_path):
    a_pair(tmp_path)
    with pytest.raises(ValueError, match="transformer.safetensors holds 'Transformer', expected 'VQVAE'"):
        checkpoints.load_vqvae(tmp_path / "transformer.safetensors")
    with pytest.raises(ValueError, match="vqvae.safetensors holds 'VQVAE', expected 'Transformer'"):
        checkpoints.load_transformer(tmp_path / "vqvae.safetensors", vqvae=a_vqvae())


@pytest.mark.parametrize("config", [{"channels": 8}, {"num_codes": 32}, {"residual_blocks": 3}, {"wings": 2},
                                    {"code_dim": 8}])
def test_weights_of_another_configuration_are_refused(tmp_path, config):
    stated = {"num_codes": 64, "code_dim": 16, "channels": 4, "residual_blocks": 2, "ema": False} | config
    checkpoints.save(tmp_path / "v", "VQVAE", a_vqvae().state_dict(), config=stated)
    with pytest.raises(ValueError, match="(?s)v does not fit its configuration.*train again"):
        checkpoints.load_vqvae(tmp_path / "v")


def test_a_missing_configuration_or_tensor_is_refused(tmp_path):
    checkpoints.save(tmp_path / "v", "VQVAE", a_vqvae().state_dict())
    with pytest.raises(ValueError, match="does not fit its configuration"):
        checkpoints.load_vqvae(tmp_path / "v")
    state = a_vqvae().state_dict()
    del state["quantizer.codebook"]
    checkpoints.save(tmp_path / "v", "VQVAE", state, config={"channels": 4})
    with pytest.raises(ValueError, match="(?s)does not fit its configuration.*quantizer.codebook"):
        checkpoints.load_vqvae(tmp_path / "v")


def test_weights_that_no_model_of_ours_has_are_refused(tmp_path):
    state = a_vqvae().state_dict()
    many = {f"part {i}": torch.zeros(0) for i in range(20_000)}
    imaginary = {name: t.to(torch.complex64) if name == "quantizer.codebook" else t for name, t in state.items()}
    for tensors, why in ((many, "there are 20,000 tensors"), (imaginary, "quantizer.codebook holds complex numbers")):
        try:
            checkpoints.save(tmp_path / "v", "VQVAE", tensors, config=dataclasses.asdict(a_vqvae().config))
        except KeyError:
            pytest.skip("this safetensors can't write complex numbers, nor read them")
        with pytest.raises(ValueError, match=f"does not fit its configuration .{why}"):
            checkpoints.load_vqvae(tmp_path / "v")


def test_a_mixed_up_file_is_not_to_be_deleted(tmp_path):
    a_pair(tmp_path)
    with pytest.raises(ValueError, match="holds 'Transformer', expected 'VQVAE'. Give the path of another") as told:
        checkpoints.load_vqvae(tmp_path / "transformer.safetensors")
    assert "elete" not in str(told.value)


def test_a_transformer_whose_tokenizer_is_not_beside_it_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("VQLIB_RUNS", str(tmp_path))
    a_pair(tmp_path)
    with pytest.raises(ValueError, match="Name its own as well: load_transformer.path, vqvae=load_vqvae"):
        (tmp_path / "mine").mkdir()
        a_pair(tmp_path / "mine", 1)
        checkpoints.load_transformer(tmp_path / "mine" / "transformer.safetensors")
    (tmp_path / "vqvae.safetensors").unlink()
    with pytest.raises(ValueError, match=f"put {tmp_path / 'vqvae.safetensors'} back"):
        checkpoints.load_transformer()
    with pytest.raises(ValueError, match="vqvae must be a VQVAE, got str 'vqvae.safetensors'"):
        checkpoints.load_transformer(vqvae="vqvae.safetensors")


def test_a_transformer_of_another_tokenizer_is_refused_in_words(tmp_path):
    a_pair(tmp_path)
    path = tmp_path / "transformer.safetensors"
    assert checkpoints.load_transformer(path, vqvae=a_vqvae(0)).info["note"] == "pair 0"
    with pytest.raises(ValueError, match=f"{path} learned the codes of another tokenizer than the VQ-VAE given.*"
                                         "python -m vqlib.training transformer.*shipped=True"):
        checkpoints.load_transformer(path, vqvae=a_vqvae(1))
    checkpoints.save_model(path, Transformer(SMALL))  # says nothing of its tokenizer
    with pytest.raises(ValueError, match="another tokenizer"):
        checkpoints.load_transformer(path, vqvae=a_vqvae(0))


# --- saves that fail -------------------------------------------------------------------------------------------------


def no_space(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failed_save_leaves_the_previous_file_and_nothing_else(file, tensors, monkeypatch, function):
    before = file.read_bytes()
    monkeypatch.setattr(os, function, no_space)
    with pytest.raises(OSError, match=f"cannot save {file}: .*No space left.*untouched.*VQLIB_RUNS"):
        checkpoints.save(file, "thing", {"weight": tensors["weight"] + 1})
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]


def test_a_save_that_fails_while_writing_leaves_the_previous_file_and_nothing_else(file, tensors, monkeypatch):
    before = file.read_bytes()

    class Full:
        def __init__(self, path, mode):
            self.file = open(path, mode)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.file.close()

        def write(self, content):
            self.file.write(content[:len(content) // 2])
            no_space()

    monkeypatch.setattr(checkpoints, "open", Full, raising=False)
    with pytest.raises(OSError, match="cannot save.*No space left"):
        checkpoints.save(file, "thing", tensors)
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]


def test_an_interrupted_save_leaves_the_previous_file_and_nothing_else(file, tensors, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    before = file.read_bytes()
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(file, "thing", tensors)
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path, tensors):
    (tmp_path / "file").write_text("no folder")
    for path in (tmp_path / "file" / "a.safetensors", tmp_path / "file" / "deeper" / "a.safetensors"):
        with pytest.raises(OSError, match=f"cannot save {path}: .*Make the folder writable.*VQLIB_RUNS"):
            checkpoints.save(path, "thing", tensors)
    assert (tmp_path / "file").read_text() == "no folder"


def test_a_read_only_folder_is_an_error_that_says_so(file, tensors, monkeypatch):
    def denied(path, mode):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    before = file.read_bytes()
    monkeypatch.setattr(checkpoints, "open", denied, raising=False)
    with pytest.raises(PermissionError, match="cannot save.*Permission denied.*untouched"):
        checkpoints.save(file, "thing", tensors)
    assert file.read_bytes() == before


KILLED = """
import os, sys, torch
from vqlib import checkpoints
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
    checkpoints.open = Dying
else:
    setattr(os, at, lambda *arguments: os._exit(9))
checkpoints.save(path, "thing", {"weight": torch.ones(50)})
"""


@pytest.mark.parametrize("at", ["write", "replace"])
def test_a_killed_save_leaves_the_previous_file(file, tensors, at):
    before = file.read_bytes()
    killed = subprocess.run([sys.executable, "-c", KILLED, at, str(file)], cwd=Path(__file__).parent.parent)
    assert killed.returncode == 9 and file.read_bytes() == before
    assert checkpoints.read(file, "thing")[1]["note"] == "abc"
    assert len(os.listdir(file.parent)) == 2  # it was killed while writing: the unfinished file lies beside it
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
    monkeypatch.setenv("VQLIB_RUNS", "~/elsewhere")
    assert checkpoints.runs_folder() == Path.home() / "elsewhere"


def test_an_installed_package_keeps_its_runs_in_the_readers_home(tmp_path, monkeypatch):
    monkeypatch.delenv("VQLIB_RUNS")
    monkeypatch.setattr(checkpoints, "__file__", str(tmp_path / "site-packages" / "vqlib" / "checkpoints.py"))
    assert checkpoints.runs_folder() == Path.home() / ".vqlib" / "runs"


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


def test_an_own_tokenizer_without_an_own_transformer_names_the_command(tmp_path, shipped):
    own = tmp_path / "runs" / "vqvae.safetensors"
    checkpoints.save_model(own, a_vqvae(seed=1))
    with pytest.raises(ValueError, match=f"{shipped}.*another tokenizer than {own}.*"
                                         "python -m vqlib.training transformer.*shipped=True"):
        checkpoints.load_transformer()
    assert checkpoints.load_transformer(shipped=True).info["note"] == "pair 0"
    save_transformer(tmp_path / "runs", a_vqvae(seed=1), note="own")  # what the command does
    assert checkpoints.load_transformer().info["note"] == "own"


def test_an_own_transformer_of_a_deleted_tokenizer_is_refused(tmp_path, shipped):
    a_pair(tmp_path / "runs", seed=1)
    (tmp_path / "runs" / "vqvae.safetensors").unlink()
    with pytest.raises(ValueError, match=f"{tmp_path / 'runs'}.*another tokenizer than {shipped}"):
        checkpoints.load_transformer()
