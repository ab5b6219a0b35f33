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

import pytest
import torch
from test_training import CLASSIFIER_TINY, EMA_TINY, TRANSFORMER_TINY, VQVAE_TINY, run, same_weights, without_seconds

from vqlib import checkpoints, sampling, training
from vqlib.transformer import RMSNorm, Transformer, TransformerConfig

TESTS = Path(__file__).parent
posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX systems")


def python(code, *arguments, **options):
    """Start a Python that runs this code in the tests' folder."""
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=TESTS, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


@pytest.fixture(scope="module")
def some(train):
    return train.subset(torch.arange(90))


# --- killed, interrupted ---------------------------------------------------------------------------------------------


@posix
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ema", "transformer", "classifier"])
def test_killed_twenty_times_in_a_row_a_run_ends_as_if_it_had_not_been(tmp_path, name):
    done = subprocess.run([sys.executable, "killed_worker.py", name, str(tmp_path)], cwd=TESTS, capture_output=True,
                          text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("killed when") == 20
    kind = {"ema": "VQVAE", "transformer": "Transformer", "classifier": "Classifier"}[name]
    (whole, whole_info), (killed, killed_info) = (checkpoints.read(tmp_path / f"{run}.safetensors", kind)
                                                  for run in ("whole", "killed"))
    assert all(torch.equal(tensor, killed[key]) for key, tensor in whole.items())
    assert whole_info["history"]["steps"] == killed_info["history"]["steps"]
    # Files that were in part on the disk when their process died are left behind; the run's own end with it.
    assert {p.name for p in tmp_path.glob("*.safetensors")} == {"whole.safetensors", "killed.safetensors"}


INTERRUPTED = """
import sys, torch, dataclasses, functools
import test_training as t
torch.set_num_threads(1)
some = t.data.load_sample("train").subset(torch.arange(90))
class Bar(t.training.tqdm):
    def update(self, n=1):
        super().update(n)
        print("step", self.n, flush=True)
t.training.tqdm = Bar
t.training.train_vqvae(dataclasses.replace(t.EMA_TINY, epochs=int(sys.argv[2])), some, path=sys.argv[1], device="cpu")
"""


@posix
def test_ctrl_c_ends_the_step_saves_a_checkpoint_and_says_so(some, tmp_path):
    path, resume = tmp_path / "m.safetensors", tmp_path / "m.resume.safetensors"
    process = python(INTERRUPTED, path, 10_000)
    for line in process.stdout:
        if line.startswith("step 8"):
            break
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors
    assert re.search(r"The last checkpoint, .*m.resume.safetensors, is of step \d+: the same command goes on", said)
    step = checkpoints.read(resume, "training state")[1]["step"]
    assert step >= 8 and f"Stopped at step {step}." in said  # no step is lost
    process = python(INTERRUPTED, path, 10_000)
    assert process.stdout.readline().startswith(f"going on from step {step} ")
    assert int(process.stdout.readline().split()[1]) == step + 1
    process.kill()
    process.communicate()


def test_a_run_that_ctrl_c_ended_goes_on_to_the_same_end(some, tmp_path, monkeypatch):
    """Between two checkpoints, at the end of the step in which it was pressed."""
    loss, calls = training.VQVAEStage.loss, []

    def pressed(stage, batch, autocast):
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return loss(stage, batch, autocast)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(training.VQVAEStage, "loss", pressed)
        with pytest.raises(KeyboardInterrupt):
            run(EMA_TINY, some, tmp_path / "m.safetensors")
    assert len(calls) == 4 and signal.getsignal(signal.SIGINT) is before
    assert checkpoints.read(tmp_path / "m.resume.safetensors", "training state")[1]["step"] == 4
    resumed, whole = run(EMA_TINY, some, tmp_path / "m.safetensors"), run(EMA_TINY, some)
    assert same_weights(resumed, whole) and without_seconds(resumed) == without_seconds(whole)


def test_a_second_ctrl_c_breaks_the_step_off(some, tmp_path, monkeypatch):
    def pressed_twice(stage, batch, autocast):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the step went on")

    monkeypatch.setattr(training.VQVAEStage, "loss", pressed_twice)
    with pytest.raises(KeyboardInterrupt):
        run(EMA_TINY, some, tmp_path / "m.safetensors")
    assert os.listdir(tmp_path) == []


# --- full disks, short memory ----------------------------------------------------------------------------------------

FULL = """
import resource, sys, torch
import test_training as t
torch.set_num_threads(int(sys.argv[2]))
some = t.data.load_sample("train").subset(torch.arange(90))
t.training.fit = t.partial(t.training.fit, log_every=2, save_every=2)
save, calls = t.checkpoints.save, []
def filling(*arguments, **info):
    calls.append(1)
    if len(calls) == 3:  # from now on the system lets no file grow beyond 10 kB: the write breaks off
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    save(*arguments, **info)
t.checkpoints.save = filling
t.run(t.EMA_TINY, some, sys.argv[1])
"""


@posix
def test_a_disk_that_is_full_in_the_middle_of_a_save_loses_nothing(some, tmp_path):
    path = tmp_path / "m.safetensors"
    process = python(FULL, path, torch.get_num_threads())
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and os.strerror(errno.EFBIG) in errors
    assert "cannot save" in errors and "What stood there before is untouched" in errors and "VQLIB_RUNS" in errors
    assert os.listdir(tmp_path) == ["m.resume.safetensors"]  # no half-written file stays
    assert checkpoints.read(tmp_path / "m.resume.safetensors", "training state")[1]["step"] == 4
    assert same_weights(run(EMA_TINY, some, path), run(EMA_TINY, some))


SHORT = """
import dataclasses, resource, sys, torch
import test_training as t
torch.set_num_threads(1)
some = t.data.load_sample("train").subset(torch.arange(1600))
torch.ones(10) @ torch.ones(10)
room = 300_000_000 + int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (room, room))
t.run(dataclasses.replace(t.VQVAE_TINY, batch_size=1600, model=t.VQVAEConfig(channels=256)), some, sys.argv[1])
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_too_little_memory_suggests_a_smaller_batch(tmp_path):
    process = python(SHORT, tmp_path / "m.safetensors")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "MemoryError: out of memory at step 1, with 1600 examples in a batch" in errors, errors[-2000:]
    assert "--batch-size 800" in errors


@pytest.mark.parametrize("error, told", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True), (MemoryError(), True),
    (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True), (RuntimeError("shapes differ"), False)])
def test_which_errors_are_about_memory(some, monkeypatch, error, told):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(training.VQVAEStage, "loss", fail)
    with pytest.raises(MemoryError if told else RuntimeError, match="--batch-size 8" if told else "shapes differ"):
        run(VQVAE_TINY, some)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_a_hundred_thousand_samples_in_batches_hold_memory_flat():
    model, pages = Transformer(TransformerConfig(d_model=32, n_heads=2, n_layers=1, dropout=0.0)).eval(), []
    for i in range(100):
        codes = sampling.sample(model, torch.arange(1000) % 10, generator=torch.Generator().manual_seed(i))
        assert codes.shape == (1000, 7, 7)
        pages.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
    floors = [min(pages[at:at + 30]) for at in (10, 70)]  # MiB; the allocator gives and takes batches in between
    assert floors[1] - floors[0] < 15, pages  # a leak of a quarter of a MiB a batch is too much
    assert max(pages[10:]) - floors[0] < 200, pages  # the noise of one batch is 24 MiB, of all together 2,400


# --- files that are not what they say --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(some, tmp_path_factory):
    """One of each kind of weight file, small, and a checkpoint of a run that was interrupted, with what reads it."""
    folder = tmp_path_factory.mktemp("files")
    vqvae = run(dataclasses.replace(VQVAE_TINY, epochs=1), some, folder / "vqvae.safetensors")
    transformer = dataclasses.replace(TRANSFORMER_TINY, epochs=1)
    training.train_transformer(transformer, vqvae, some, path=folder / "transformer.safetensors", progress=False)
    run(dataclasses.replace(CLASSIFIER_TINY, epochs=1), some, folder / "judge.safetensors")
    stage = training.VQVAEStage(EMA_TINY, some, "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.VQVAEStage, "after_step", lambda stage, batch: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            training.fit(stage, EMA_TINY, 90, folder / "run.safetensors", progress=False)
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
    return {
        "cut": lambda: content[:at],
        "changed": lambda: content[:at] + noise + content[at + n:],
        "changed in the header": lambda: content[:at % 4000] + noise + content[at % 4000 + n:],
        "inserted": lambda: content[:at] + noise + content[at:],
        "lost": lambda: content[:at] + content[at + n:],
        "a hole": lambda: content[:at] + bytes(min(4096, len(content) - at)) + content[at + 4096:],
        "repeated": lambda: content[:at] + content,
    }[chance.choice(["cut", "changed", "changed in the header", "inserted", "lost", "a hole", "repeated"])]()


@pytest.mark.parametrize("name", ["vqvae.safetensors", "transformer.safetensors", "judge.safetensors",
                                  "run.resume.safetensors"])
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
        with pytest.raises(ValueError, match="(?s)(damaged|no weight file|expected).*") as error:
            load(path)
        assert name in str(error.value) and "Delete it" in str(error.value) or "holds" in str(error.value)
        refused += 1
    assert refused > 950


HOSTILE = {
    "too wide": {"d_model": 10**9}, "too deep": {"n_layers": 10**8}, "negative": {"n_layers": -1},
    "no heads": {"n_heads": 0}, "words": {"d_model": "256"}, "a fraction": {"n_heads": 2.5},
    "nothing": {"context": None}, "a list": {"vocabulary_size": [75]}, "too few": {"context": 10},
    "one layer more": {"n_layers": 2}, "another field": {"wings": 2}, "dropout": {"dropout": 7.5},
}


@pytest.mark.parametrize("change", HOSTILE)
def test_a_file_made_to_harm_takes_no_memory_and_is_refused(tmp_path, change):
    """Well-formed, with the right SHA-256, and a configuration that its tensors don't bear out."""
    model = Transformer(TransformerConfig(d_model=16, n_heads=2, n_layers=1))
    config = {**dataclasses.asdict(model.config), **HOSTILE[change]}
    checkpoints.save(tmp_path / "t.safetensors", "Transformer", model.state_dict(), config=config)
    started = time.perf_counter()
    with pytest.raises(ValueError, match="(?s)t.safetensors does not fit its configuration.*Delete it"):
        checkpoints.load_model(tmp_path / "t.safetensors", Transformer, TransformerConfig)
    assert time.perf_counter() - started < 20  # it didn't begin to build it


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, bad):
    model = Transformer(TransformerConfig(d_model=16, n_heads=2, n_layers=1))
    model.head.weight.data[3, 4] = bad
    checkpoints.save_model(tmp_path / "t.safetensors", model)
    with pytest.raises(ValueError, match="head.weight holds values that are no finite numbers"):
        checkpoints.load_model(tmp_path / "t.safetensors", Transformer, TransformerConfig)


def test_a_training_state_with_other_tensors_is_refused(some, tmp_path):
    identity = {"recipe": training._plain(VQVAE_TINY), "data": "", "size": 90}
    for n, info in enumerate(({"identity": identity}, {"identity": identity, "step": 3, "history": {}}, {},
                              {"identity": None}, {"identity": []})):
        path = tmp_path / f"{n}.resume.safetensors"
        checkpoints.save(path, "training state", {"model.wings": torch.zeros(2)}, **info)
        with pytest.raises(ValueError, match="no checkpoint of this model|checkpoint of another run"):
            training.fit(training.VQVAEStage(VQVAE_TINY, some, "cpu"), VQVAE_TINY, 90, tmp_path / f"{n}.safetensors")


# --- an Apple GPU ----------------------------------------------------------------------------------------------------


@pytest.fixture
def apple(monkeypatch):
    """PyTorch says that there is an Apple GPU; here, where there is none, whatever is asked of it fails."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    training._difference_from_cpu.cache_clear()


def test_an_apple_gpu_that_lacks_something_gives_way_to_the_cpu_in_words(apple):
    if sys.platform == "darwin":
        pytest.skip("this machine may have one")
    with pytest.warns(UserWarning, match="an Apple GPU .mps., but it does not do.*Going on with the CPU"):
        assert training.pick_device() == "cpu"


@pytest.mark.parametrize("difference, device", [(1e-5, "mps"), (0.2, "cpu")])
def test_an_apple_gpu_is_used_where_it_computes_the_same(apple, monkeypatch, difference, device):
    monkeypatch.setattr(training, "_difference_from_cpu", lambda device: difference)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert training.pick_device() == device


def test_a_device_is_compared_by_losses_gradients_and_samples():
    assert training._difference_from_cpu.__wrapped__("cpu") == 0


@pytest.mark.parametrize("kind", [RMSNorm, torch.nn.GELU, torch.nn.ConvTranspose2d])
def test_a_device_that_computes_something_else_is_noticed(monkeypatch, kind):
    """Here the "device" is a CPU on which one kind of layer is a little off."""
    forward, calls = kind.forward, []

    def off(layer, *arguments):
        calls.append(1)
        return forward(layer, *arguments) * (1.05 if len(calls) > half else 1)

    half = 10 ** 9
    monkeypatch.setattr(kind, "forward", off)
    training._difference_from_cpu.__wrapped__("cpu")
    half, _ = len(calls) // 2, calls.clear()
    assert training._difference_from_cpu.__wrapped__("cpu:0") > 1e-3
