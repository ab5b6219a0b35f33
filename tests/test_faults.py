"""What goes wrong on real machines: killed, interrupted, full, short of memory, files that are not what they say."""

import dataclasses
import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import killed_worker
import pytest
import torch
from conftest import (
    CLASSIFIER_TINY,
    EMA_TINY,
    STEPS,
    TINY,
    TRANSFORMER_TINY,
    VQVAE_TINY,
    forked,
    run,
    same_weights,
    stop_at,
    without_seconds,
)

import vqlib.__main__ as generate
from vqlib import checkpoints, commands, data, sampling
from vqlib.training import VQVAEStage, devices, loop, resume, stages, train_transformer
from vqlib.training import __main__ as command
from vqlib.transformer import RMSNorm, Transformer, TransformerConfig
from vqlib.vqvae import VQVAEConfig

posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX systems")
proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")


# --- killed, interrupted ---------------------------------------------------------------------------------------------


@posix
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ema", "transformer", "classifier"])
def test_killed_twenty_times_in_a_row_a_run_ends_as_if_it_had_not_been(tmp_path, name):
    """252 steps, saved every second one: twenty kills within twelve steps each cannot reach the end."""
    recipe, chance = dataclasses.replace(TINY[name], epochs=42), random.Random(0)
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    for _ in range(20):
        place, count = chance.choice(list(killed_worker.PLACES)), chance.randint(1, 6)
        process = forked(killed_worker.killed_at_place, recipe, killed, place, count)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, f"{place}, time {count}"
    for path in (whole, killed):
        process = forked(killed_worker.train, recipe, path)
        process.join(120)
        assert process.exitcode == 0
    kind = {"ema": "VQVAE", "transformer": "Transformer", "classifier": "Classifier"}[name]
    (weights, info), (others, other) = checkpoints.read(whole, kind), checkpoints.read(killed, kind)
    assert weights.keys() == others.keys() and all(torch.equal(t, others[key]) for key, t in weights.items())
    assert info["history"]["steps"] == other["history"]["steps"]
    # Files that were in part on the disk when their process died are left behind; the run's own end with it.
    assert set(tmp_path.glob("*.safetensors")) == {whole, killed}


@posix
def test_ctrl_c_ends_the_step_saves_a_checkpoint_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    """The real command, and the signal that a terminal sends."""
    arguments = ["vqvae", "--mini", "--device", "cpu", "--batch-size", "8"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vqlib.training", *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    begun = process.stderr.read(1)  # of the bar
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "VQVAE" in begun + errors
    resume = tmp_path / "runs" / "mini" / "vqvae.resume.safetensors"
    step = checkpoints.read(resume, "training state")[1]["step"]
    stopped = re.search(r"at step (\d+).*of step (\d+)", said)
    assert step >= 1 and stopped.groups() == (str(step), str(step)) and str(resume) in said  # no step is lost
    steps = []
    stop_at(monkeypatch, step + 1, lambda: signal.raise_signal(signal.SIGINT), steps)
    with pytest.raises(KeyboardInterrupt):
        command.main(arguments)
    assert steps == [step] and f"step {step} ({resume})" in capsys.readouterr().out


@pytest.mark.parametrize("step", [4, 12])
def test_a_run_that_ctrl_c_ended_goes_on_to_the_same_end(some, tmp_path, monkeypatch, step):
    """Between two checkpoints, or in the last step of all."""
    before, steps = signal.getsignal(signal.SIGINT), []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, step, lambda: signal.raise_signal(signal.SIGINT), steps)
        run(EMA_TINY, some, tmp_path / "m.safetensors")
    assert steps[-1] == step - 1 and signal.getsignal(signal.SIGINT) is before
    assert checkpoints.read(tmp_path / "m.resume.safetensors", "training state")[1]["step"] == step
    resumed, whole = run(EMA_TINY, some, tmp_path / "m.safetensors"), run(EMA_TINY, some)
    assert same_weights(resumed, whole) and without_seconds(resumed) == without_seconds(whole)


def test_a_second_ctrl_c_breaks_the_step_off(some, tmp_path, monkeypatch):
    def pressed_twice(stage, batch):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the step went on")

    monkeypatch.setattr(VQVAEStage, "loss", pressed_twice)
    with pytest.raises(KeyboardInterrupt):
        run(EMA_TINY, some, tmp_path / "m.safetensors")
    assert os.listdir(tmp_path) == []


def pressed(function, after=False):
    """The function, with Ctrl-C pressed before or after its first call."""
    calls = []

    def pressing(*arguments, **options):
        calls.append(1)
        result = function(*arguments, **options) if after else None
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return result if after else function(*arguments, **options)

    return pressing


@pytest.mark.parametrize(
    "owner, name, after, kept",
    [
        (data, "load", False, None),  # of pictures
        (checkpoints, "load_vqvae", False, ["vqvae.safetensors"]),  # of weights, between the stages
        (command, "report", True, ["vqvae.safetensors"]),
        (stages, "encode_pixels", False, ["vqvae.safetensors"]),
        (stages.VQVAEStage, "evaluate", False, ["vqvae.resume.safetensors"]),  # of the test set, after the last step
        (resume, "save_result", False, ["vqvae.resume.safetensors"]),
        (command, "compare", False, ["transformer.safetensors", "vqvae.safetensors"]),
    ],
)
def test_ctrl_c_outside_the_steps_ends_in_words_too_and_what_was_finished_is_saved(
    monkeypatch, tmp_path, capsys, owner, name, after, kept
):
    recipes = [dataclasses.replace(recipe, epochs=1, batch_size=500) for recipe in (EMA_TINY, TRANSFORMER_TINY)]
    monkeypatch.setattr(command.recipes, "RECIPES", {"best": recipes})

    def train():
        with commands.in_words(command.STOPPED):
            command.main(["all", "--mini", "--device", "cpu"])

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(owner, name, pressed(getattr(owner, name), after))
        train()
    assert ended.value.code == 130 and capsys.readouterr().err.endswith(f"\n{command.STOPPED}\n")
    folder = tmp_path / "runs" / "mini"
    assert not folder.exists() if kept is None else sorted(os.listdir(folder)) == kept
    train()
    assert sorted(os.listdir(folder)) == ["transformer.safetensors", "vqvae.safetensors"]


def test_ctrl_c_says_once_where_a_run_stopped(monkeypatch, capsys):
    stop_at(monkeypatch, 2, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as ended, commands.in_words(command.STOPPED):
        command.main(["vqvae", "--mini", "--device", "cpu", "--batch-size", "100"])
    said = capsys.readouterr()
    assert ended.value.code == 130 and "Stopped at step 2" in said.out and "Stopped" not in said.err


@pytest.mark.parametrize("name", ["load_pair", "check_writable"])
def test_ctrl_c_while_generating_leaves_no_picture(monkeypatch, tmp_path, capsys, name):
    monkeypatch.setattr(generate, name, pressed(getattr(generate, name)))
    with pytest.raises(SystemExit) as ended:
        generate.main(["generate", "Bag", "--out", str(tmp_path / "bag.png")])
    assert ended.value.code == 130 and "no picture" in capsys.readouterr().err and os.listdir(tmp_path) == []


@posix
def test_ctrl_c_ends_the_scorecard_in_words(tmp_path):
    """The real command, as soon as it has begun to measure."""
    arguments = [sys.executable, "-u", "-m", "vqlib.scorecard", "--mini"]
    process = subprocess.Popen(arguments, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline().startswith("ours:")
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "topped" in said + errors and "Traceback" not in errors
    assert not (tmp_path / "runs").exists() or os.listdir(tmp_path / "runs") == []


# --- full disks, short memory ----------------------------------------------------------------------------------------


@posix
def test_a_disk_that_is_full_in_the_middle_of_a_save_loses_nothing(some, tmp_path, tmp_path_factory):
    path, said = tmp_path / "m.safetensors", tmp_path_factory.mktemp("said") / "error.txt"
    process = forked(killed_worker.on_a_full_disk, EMA_TINY, path, torch.get_num_threads(), said)
    process.join(60)
    assert os.strerror(errno.EFBIG) in said.read_text() and "VQLIB_RUNS" in said.read_text()
    assert os.listdir(tmp_path) == ["m.resume.safetensors"]  # no half-written file stays
    assert checkpoints.read(tmp_path / "m.resume.safetensors", "training state")[1]["step"] == 4
    assert same_weights(run(EMA_TINY, some, path), run(EMA_TINY, some))


@posix
def test_a_disk_that_is_full_when_the_result_is_saved_loses_nothing(some, tmp_path, tmp_path_factory):
    path, said = tmp_path / "m.safetensors", tmp_path_factory.mktemp("said") / "error.txt"
    run(VQVAE_TINY, some, path)
    before = path.read_bytes()
    process = forked(killed_worker.on_a_full_disk, EMA_TINY, path, torch.get_num_threads(), said, 7)
    process.join(60)
    assert os.strerror(errno.EFBIG) in said.read_text() and str(tmp_path) in said.read_text()
    assert sorted(os.listdir(tmp_path)) == ["m.resume.safetensors", "m.safetensors"] and path.read_bytes() == before
    assert checkpoints.read(tmp_path / "m.resume.safetensors", "training state")[1]["step"] == STEPS
    assert same_weights(run(EMA_TINY, some, path), run(EMA_TINY, some))
    assert (tmp_path / "m.1.safetensors").read_bytes() == before


@proc
def test_a_checkpoint_is_not_mapped_by_the_run_that_goes_on_from_it(some, tmp_path, monkeypatch):
    """Windows refuses to replace a file that is."""
    path, maps = tmp_path / "m.safetensors", []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 3, lambda: signal.raise_signal(signal.SIGINT))
        run(EMA_TINY, some, path)
    stop_at(monkeypatch, 4, lambda: maps.append(Path("/proc/self/maps").read_text()))
    finished = run(EMA_TINY, some, path), run(EMA_TINY, some, path)
    maps.append(Path("/proc/self/maps").read_text())
    assert len(maps) == 2 and not [text for text in maps if str(tmp_path) in text] and same_weights(*finished)


@proc
def test_too_little_memory_suggests_a_smaller_batch(tmp_path):
    recipe, said = dataclasses.replace(VQVAE_TINY, batch_size=1600, model=VQVAEConfig(channels=256)), tmp_path / "said"
    forked(killed_worker.short_of_memory, recipe, tmp_path / "m.safetensors", said).join(120)
    assert re.search("memory at step 1, with 1600.*--batch-size 800", said.read_text())


@pytest.mark.parametrize(
    "error, told",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_which_errors_are_about_memory(some, monkeypatch, error, told):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(VQVAEStage, "loss", fail)
    with pytest.raises(MemoryError if told else RuntimeError, match="--batch-size 8" if told else "shapes differ"):
        run(VQVAE_TINY, some)


@pytest.mark.slow
@proc
def test_a_hundred_thousand_samples_in_batches_hold_memory_flat():
    model, pages = Transformer(TransformerConfig(d_model=32, n_heads=2, n_layers=1, dropout=0.0)).eval(), []
    for i in range(100):
        codes = sampling.sample(model, torch.arange(1000) % 10, generator=torch.Generator().manual_seed(i))
        assert codes.shape == (1000, 7, 7)
        pages.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
    floors = [min(pages[at : at + 30]) for at in (10, 70)]  # MiB; the allocator gives and takes batches in between
    assert floors[1] - floors[0] < 15, pages  # a leak of a quarter of a MiB a batch is too much
    assert max(pages[10:]) - floors[0] < 200, pages  # the noise of one batch is 24 MiB, of all together 2,400


# --- files that are not what they say --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(some, tmp_path_factory):
    """One of each kind of weight file, small, and a checkpoint of a run that was interrupted, with what reads it."""
    folder = tmp_path_factory.mktemp("files")
    vqvae = run(dataclasses.replace(VQVAE_TINY, epochs=1), some, folder / "vqvae.safetensors")
    transformer = dataclasses.replace(TRANSFORMER_TINY, epochs=1)
    train_transformer(transformer, vqvae, some, path=folder / "transformer.safetensors", progress=False)
    run(dataclasses.replace(CLASSIFIER_TINY, epochs=1), some, folder / "judge.safetensors")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 1, lambda: signal.raise_signal(signal.SIGINT))
        run(EMA_TINY, some, folder / "run.safetensors")
    return {
        "vqvae.safetensors": checkpoints.load_vqvae,
        "transformer.safetensors": lambda path: checkpoints.load_transformer(path, vqvae=vqvae),
        "judge.safetensors": lambda path: checkpoints.load_classifier(path=path),
        "run.resume.safetensors": lambda path: checkpoints.read(path, "training state"),
    }, folder


def damage(content, chance):
    """One of the things that disks, networks and people do to a file."""
    at, n = chance.randrange(len(content)), chance.choice([1, 1, 1, 4, 512])
    noise = bytes(chance.randrange(256) for _ in range(n))
    kinds = {
        "cut": lambda: content[:at],
        "changed": lambda: content[:at] + noise + content[at + n :],
        "changed in the header": lambda: content[: at % 4000] + noise + content[at % 4000 + n :],
        "inserted": lambda: content[:at] + noise + content[at:],
        "lost": lambda: content[:at] + content[at + n :],
        "a hole": lambda: content[:at] + bytes(min(4096, len(content) - at)) + content[at + 4096 :],
        "repeated": lambda: content[:at] + content,
    }
    return kinds[chance.choice(list(kinds))]()


@pytest.mark.parametrize(
    "name", ["vqvae.safetensors", "transformer.safetensors", "judge.safetensors", "run.resume.safetensors"]
)
def test_a_thousand_damaged_files_are_refused_in_words_or_read_right(files, tmp_path, name):
    load, content = files[0][name], (files[1] / name).read_bytes()
    chance, path = random.Random(name), tmp_path / name
    refused = 0
    for _ in range(1000):
        damaged = damage(content, chance)
        path.write_bytes(damaged)
        if damaged == content:  # a byte changed to itself, a hole where there were zeros
            load(path)
            continue
        with pytest.raises(ValueError, match=name):
            load(path)
        refused += 1
    assert refused > 950


HOSTILE = {
    "too wide": {"d_model": 10**9},
    "too many codes": {"num_codes": 10**9},
    "too deep": {"n_layers": 10**8},
    "negative": {"n_layers": -1},
    "no heads": {"n_heads": 0},
    "words": {"d_model": "256"},
    "a fraction": {"n_heads": 2.5},
    "nothing": {"context": None},
    "a list": {"num_codes": [64]},
    "too few": {"context": 10},
    "one layer more": {"n_layers": 2},
    "another field": {"wings": 2},
    "dropout": {"dropout": 7.5},
    "a list, in version 0.1": {"vocabulary_size": [75]},
}


@pytest.mark.parametrize("change", HOSTILE)
def test_a_file_made_to_harm_takes_no_memory_and_is_refused(tmp_path, change):
    """Well-formed, with the right SHA-256, and a configuration that its tensors don't bear out."""
    model = Transformer(TransformerConfig(d_model=16, n_heads=2, n_layers=1))
    info = {"config": {**dataclasses.asdict(model.config), **HOSTILE[change]}}
    if "vocabulary_size" not in info["config"]:
        info["format"] = 2
    checkpoints.save(tmp_path / "t.safetensors", "Transformer", model.state_dict(), **info)
    started = time.perf_counter()
    with pytest.raises(ValueError, match="t.safetensors.*configuration"):
        checkpoints.load_model(tmp_path / "t.safetensors", Transformer, TransformerConfig)
    assert time.perf_counter() - started < 20  # it didn't begin to build it


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path, bad):
    model = Transformer(TransformerConfig(d_model=16, n_heads=2, n_layers=1))
    model.head.weight.data[3, 4] = bad
    with pytest.raises(ValueError, match="head.weight"):
        checkpoints.save_model(tmp_path / "t.safetensors", model)
    config = dataclasses.asdict(model.config)
    checkpoints.save(tmp_path / "t.safetensors", "Transformer", model.state_dict(), config=config, format=2)
    with pytest.raises(ValueError, match="head.weight"):
        checkpoints.load_model(tmp_path / "t.safetensors", Transformer, TransformerConfig)


def test_a_training_state_with_other_tensors_is_refused(some, tmp_path):
    identity = {"recipe": VQVAE_TINY.as_json(), "data": "", "size": 90}
    begun = {"identity": identity, "step": 3, "history": {}}
    for n, info in enumerate((begun, {"identity": identity}, {"identity": None}, {"identity": []}, {})):
        path = tmp_path / f"{n}.safetensors"
        tensors = {"model.wings": torch.zeros(2)}
        checkpoints.save(path.with_suffix(".resume.safetensors"), "training state", tensors, **info)
        with pytest.raises(ValueError, match=f"{n}.resume.safetensors"):
            loop.fit(VQVAEStage(VQVAE_TINY, some, "cpu"), path=path)


# --- an Apple GPU ----------------------------------------------------------------------------------------------------


@pytest.fixture
def apple(monkeypatch):
    """PyTorch says that there is an Apple GPU; here, where there is none, whatever is asked of it fails."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    devices.pick_device.cache_clear()
    yield
    devices.pick_device.cache_clear()


def test_an_apple_gpu_that_lacks_something_gives_way_to_the_cpu_in_words(apple):
    if sys.platform == "darwin":
        pytest.skip("this machine may have one")
    with pytest.warns(UserWarning, match="mps.*CPU"):
        assert devices.pick_device() == "cpu"


@pytest.mark.parametrize("difference, device", [(1e-5, "mps"), (0.2, "cpu")])
def test_an_apple_gpu_is_used_where_it_computes_the_same(apple, monkeypatch, difference, device):
    monkeypatch.setattr(devices, "results_on", lambda device: torch.tensor([1, 1 + difference * (device == "mps")]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert devices.pick_device() == device


def test_a_device_is_compared_by_losses_gradients_and_samples():
    torch.manual_seed(1)
    before, results = torch.get_rng_state(), devices.results_on("cpu")
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(results, devices.results_on("cpu"))
    assert results.isfinite().all() and (results[1:197] == results[1:197].round()).all()  # 4 · 49 codes
    assert (results[197:] != 0).float().mean() > 0.5


@pytest.mark.parametrize("kind", [RMSNorm, torch.nn.GELU, torch.nn.ConvTranspose2d])
def test_a_device_that_computes_something_else_is_noticed(monkeypatch, kind):
    """Here the "device" is a CPU on which one kind of layer is a little off."""
    forward, results = kind.forward, devices.results_on("cpu")
    monkeypatch.setattr(kind, "forward", lambda layer, *arguments: forward(layer, *arguments) * 1.05)
    assert (devices.results_on("cpu:0") - results).abs().max() > 1e-3
