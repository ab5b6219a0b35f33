"""Where things stand: two processes in one folder, full disks, places that can't be written, paths, no home."""

import contextlib
import dataclasses
import errno
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch
from conftest import (
    EMA_TINY,
    TRANSFORMER_TINY,
    VQVAE_TINY,
    forked,
    pictures,
    run,
    same_weights,
    seeded,
    stop_at,
    tokenizer,
)

import vqlib.__main__ as generate
from vqlib import Pair, checkpoints, data, files, load_pair, records, scorecard, sources
from vqlib.training import loop, stages
from vqlib.transformer import Transformer

posix = pytest.mark.skipif(os.name != "posix", reason="users, signals and limits of POSIX systems")


def in_child(function, *arguments):
    """Call the function in a process of its own, and return what it returns; an error there is an error here."""
    here, there = Pipe()
    process = forked(reporting, there, function, arguments)
    there.close()
    try:
        answer, error = here.recv()
    finally:
        process.join(60)
    assert not error, error
    return answer


def reporting(connection, function, arguments):
    try:
        connection.send((function(*arguments), None))
    except BaseException:
        connection.send((None, traceback.format_exc()))
    os._exit(0)  # who became another user can't tidy up


def refusal(kind, function, *arguments, **options):
    """The words of the error of this kind that the call ends with."""
    with pytest.raises(kind) as refused:
        function(*arguments, **options)
    return str(refused.value)


# --- two at once -----------------------------------------------------------------------------------------------------


def wait_for(path):
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.01)


def pausing(recipe, path, gate):
    """A run that says when it is at its fifth step, and waits there until it may go on."""

    def pause():
        (gate / "there").touch()
        wait_for(gate / "go")

    stop_at(pytest.MonkeyPatch(), 5, pause)
    run(recipe, pictures(), path)


def test_of_two_trainings_in_one_folder_the_second_is_refused_and_nothing_is_lost(some, tmp_path, tmp_path_factory):
    path, gate = tmp_path / "m.safetensors", tmp_path_factory.mktemp("gate")
    first = forked(pausing, EMA_TINY, path, gate)
    wait_for(gate / "there")
    for recipe in (EMA_TINY, VQVAE_TINY):  # the same command twice, or another recipe
        words = refusal(BlockingIOError, run, recipe, some, path)
        assert str(path) in words and "another process" in words and "VQLIB_RUNS" in words
    with pytest.raises(BlockingIOError):  # a stage of one's own has no `train_` function around it
        loop.fit(stages.VQVAEStage(VQVAE_TINY, some, "cpu"), path=path, progress=False)
    assert run(VQVAE_TINY, some, tmp_path / "other.safetensors")  # in the same folder, but another file
    (gate / "go").touch()
    first.join(60)
    assert first.exitcode == 0 and sorted(os.listdir(tmp_path)) == ["m.safetensors", "other.safetensors"]
    assert same_weights(checkpoints.load_vqvae(path), run(EMA_TINY, some))


@pytest.mark.parametrize(
    "command, file",
    [
        (["vqlib.training", "vqvae", "--mini"], "mini/vqvae.safetensors"),
        (["vqlib.scorecard", "--mini"], "scorecard-mini.json"),
    ],
)
def test_a_command_that_comes_second_says_so(tmp_path, command, file):
    path = tmp_path / "runs" / file
    with files.only_writer(path):
        second = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=120)
    assert second.returncode == 1 and second.stderr.startswith(f"error: another process is at work on {path}")
    assert os.listdir(path.parent) == []


def test_a_lock_may_be_nested_and_is_lifted_by_errors(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(KeyboardInterrupt), files.only_writer(path):
        with files.only_writer(path):
            pass
        assert "another process" in in_child(refusal, BlockingIOError, entering, path)
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    in_child(entering, path)


def entering(path):
    with files.only_writer(path):
        pass


# --- full disks ------------------------------------------------------------------------------------------------------


def on_a_full_disk(function, *arguments):
    """What the call says if the system lets no file grow beyond 2 kB."""
    import resource  # POSIX only

    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    return refusal(OSError, function, *arguments)


def score_again(path):
    """The scorecard's command, with the shipped card in the place of an hour of measuring."""
    scorecard.score = lambda *arguments: records.load_scorecard()
    with contextlib.redirect_stdout(io.StringIO()):  # pytest's own is a file, too
        scorecard.main(["--mini", "--out", str(path)])


def save_transformer(path):
    checkpoints.save_model(path, Transformer(TRANSFORMER_TINY.model))


def replace(path):
    files.replace_file(path, bytes(5000))


def save_png(path):
    Pair.save_png(path, torch.rand(8, 1, 28, 28, generator=seeded()) * 2 - 1)


@posix
@pytest.mark.parametrize("write", [replace, save_transformer, score_again, save_png])
def test_a_full_disk_leaves_the_old_file_and_no_debris(tmp_path, write):
    path = tmp_path / "file"
    for before in (None, b"the old one"):
        if before:
            path.write_bytes(before)
        words = in_child(on_a_full_disk, write, path)
        assert str(path) in words and os.strerror(errno.EFBIG) in words and "free some space" in words
        assert os.listdir(tmp_path) == ["file"] * bool(before) and (not before or path.read_bytes() == before)


@posix
def test_a_download_onto_a_full_disk_says_where(tmp_path):
    words = in_child(downloading_onto_a_full_disk, tmp_path)
    assert os.strerror(errno.EFBIG) in words and str(tmp_path / "cache") in words and "XDG_CACHE_HOME" in words
    assert os.listdir(tmp_path / "cache" / "vqlib" / "data") == []


def downloading_onto_a_full_disk(folder):
    import resource

    import torchvision

    class Downloading:  # torchvision's class writes what it fetches
        def __init__(self, root, download):
            Path(root, "train-images-idx3-ubyte.gz").write_bytes(bytes(5000))

    torchvision.datasets.KMNIST = Downloading
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    return refusal(RuntimeError, data.load, "test", name="KMNIST")


# --- places that can't be written ------------------------------------------------------------------------------------


@pytest.fixture
def stand():
    """A folder that other users can look into but not write to, as tmp_path's parents are not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        (Path(folder) / "pyproject.toml").touch()
        shutil.copytree(checkpoints.SHIPPED, Path(folder) / "shipped")  # the real ones may lie where nobody else looks
        shutil.copy(data.MINI_FILE, Path(folder) / "shipped")
        (Path(folder) / "open").mkdir()
        os.chmod(Path(folder) / "open", 0o777)
        yield Path(folder)


def as_somebody(folder, home, checkout):
    """From now on this process is a user without rights, who is in no list of users and stands in ``folder``.

    The package seems to lie there, as a checkout or installed.
    """
    with tempfile.TemporaryDirectory() as scratch:  # import what this user may not be able to read
        run(VQVAE_TINY, pictures(), Path(scratch, "m.safetensors"))
        load_pair(shipped=True).save_png(Path(scratch, "bag.png"), load_pair(shipped=True).generate("Bag", n=1))
    for name in ("VQLIB_RUNS", "VQLIB_DATA", "VQLIB_FAST", "XDG_CACHE_HOME", "HOME"):
        os.environ.pop(name, None)
    if home:
        os.environ["HOME"] = home
    checkpoints.__file__ = str(folder / ("vqlib" if checkout else "site-packages/vqlib") / "checkpoints.py")
    checkpoints.SHIPPED, data.MINI_FILE = folder / "shipped", folder / "shipped" / data.MINI_FILE.name
    sources.SYSTEM_FOLDER = Path("/nowhere")
    files.tempfile.tempdir = str(folder / "open")
    os.chdir(folder)
    os.chmod(folder, 0o555)
    if os.getuid() == 0:  # whom no permissions bind
        os.setuid(54321)


def reading_works():
    pair = load_pair()
    assert pair.vqvae.info["path"].startswith(str(checkpoints.SHIPPED))
    assert pair.generate("Bag", n=1).shape == (1, 1, 28, 28)
    assert checkpoints.load_classifier() and records.load_scorecard() and records.load_original_record()
    with pytest.warns(data.MiniWarning):
        return data.load("test", download=False).subset(slice(0, 90))


def in_a_read_only_checkout(folder):
    as_somebody(folder, None, checkout=True)
    some = reading_works()
    assert checkpoints.runs_folder() == folder / "runs"
    loop.fit = stages.encode_pixels = generate.load_pair = None  # no work before the refusal
    vqvae = tokenizer()
    path = checkpoints.runs_folder() / "m.safetensors"
    for train in (
        lambda: run(VQVAE_TINY, some, path),
        lambda: stages.train_transformer(TRANSFORMER_TINY, vqvae, some, path=path),
    ):
        words = refusal(PermissionError, train)
        assert str(path) in words and "VQLIB_RUNS" in words
    words = refusal(SystemExit, generate.main, ["generate", "Bag"])
    assert str(folder / "generated.png") in words and "--out" in words


@posix
def test_a_read_only_checkout_can_be_used_and_what_writes_says_so_at_once(stand):
    in_child(in_a_read_only_checkout, stand)


def without_a_home(folder, home):
    as_somebody(folder, home, checkout=False)
    some = reading_works()
    assert checkpoints.runs_folder().is_absolute()
    assert run(VQVAE_TINY, some) and run(VQVAE_TINY, some, "open/m.safetensors")  # from where one stands
    assert os.listdir("open") == ["m.safetensors"]
    words = refusal(RuntimeError, data.load, "test", mini=False)
    assert "XDG_CACHE_HOME" in words
    if not home:
        for path in ("~/m.safetensors", "~"):
            assert "home" in refusal(OSError, run, VQVAE_TINY, some, path)
    assert sorted(os.listdir(".")) == ["open", "pyproject.toml", "shipped"]  # and no folder that is named ~


@posix
@pytest.mark.parametrize("home", [None, "/nonexistent", "/root"])
def test_without_a_home_directory_everything_works_that_needs_none(stand, home):
    in_child(without_a_home, stand, home)


@posix
def test_a_finished_run_can_be_read_from_a_folder_that_cannot_be_written(some, stand):
    path = stand / "runs" / "m.safetensors"
    run(TRANSFORMER_TINY, some, path)
    in_child(reading_a_finished_run, stand, path)


def reading_a_finished_run(folder, path):
    os.chmod(path.parent, 0o555)
    as_somebody(folder, None, checkout=True)
    loop.fit = stages.encode_pixels = None
    assert run(TRANSFORMER_TINY, pictures(), path).info["path"] == str(path)
    other = dataclasses.replace(TRANSFORMER_TINY, seed=1)
    assert "VQLIB_RUNS" in refusal(PermissionError, run, other, pictures(), path)


# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(some, tmp_path, monkeypatch):
    """Two runs in the runs folder, whose VQLIB_RUNS is relative; one stands in another place."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VQLIB_RUNS", "kept")
    vqvae, second = (dataclasses.replace(recipe, epochs=1) for recipe in (VQVAE_TINY, TRANSFORMER_TINY))
    for name in ("mini", "original/mini"):
        first = run(vqvae, some, f"kept/{name}/vqvae.safetensors")
        stages.train_transformer(second, first, some, path=f"kept/{name}/transformer.safetensors", progress=False)
    return tmp_path / "kept"


def test_a_run_can_be_named_by_its_path_or_by_its_name_in_the_runs_folder(runs, monkeypatch):
    assert checkpoints.runs_folder() == runs
    assert load_pair("kept/mini").vqvae.info["path"] == str(runs / "mini" / "vqvae.safetensors")
    monkeypatch.setenv("VQLIB_RUNS", str(runs))
    monkeypatch.chdir(runs.parent / "elsewhere")
    for name in ("mini", "original/mini"):
        assert [m.info["path"] for m in load_pair(name)] == [
            str(runs / name / f"{stage}.safetensors") for stage in ("vqvae", "transformer")
        ]
        assert scorecard.parse(["--run", name]).out == runs / name / "scorecard.json"
    generate.main(["generate", "Bag", "--n", "1", "--run", "original/mini", "--out", "new/bag.png"])
    assert (runs.parent / "elsewhere" / "new" / "bag.png").is_file()
    shutil.copytree(runs / "mini", "mini")  # what stands here comes first
    assert load_pair("mini").vqvae.info["path"] == str(runs.parent / "elsewhere" / "mini" / "vqvae.safetensors")


def test_a_run_that_is_not_there_is_named_in_full_with_those_that_are(runs, monkeypatch):
    monkeypatch.setenv("VQLIB_RUNS", str(runs))
    monkeypatch.chdir(runs.parent / "elsewhere")
    tried = str(runs.parent / "elsewhere" / "kept" / "mini" / "vqvae.safetensors")
    for ask in (lambda: load_pair("kept/mini"), lambda: scorecard.main(["--mini", "--run", "kept/mini"])):
        words = refusal(FileNotFoundError, ask)
        assert tried in words and f"runs in {runs}" in words and words.endswith("mini, original/mini")
    words = refusal(SystemExit, generate.main, ["generate", "Bag", "--run", "kept/mini"])
    assert words.startswith("error: ") and tried in words


def test_data_is_looked_for_from_where_one_stands_and_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "SYSTEM_FOLDER", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert sources.download_folder() == tmp_path / "cache" / "vqlib" / "data"
    for raw in (tmp_path / "data" / "FashionMNIST" / "raw", tmp_path / "mine"):
        raw.mkdir(parents=True)
        for file in sources.SHA256:
            (raw / file).write_bytes(b"damaged")
    assert str(tmp_path / "data" / "FashionMNIST" / "raw") in refusal(ValueError, data.load, "test")
    assert str(tmp_path / "mine") in refusal(ValueError, data.load, "test", "mine")
    monkeypatch.setenv("VQLIB_DATA", "nowhere")
    assert str(tmp_path / "nowhere") in refusal(FileNotFoundError, data.load, "test")


@posix
def test_a_link_is_written_through_a_device_written_to_and_a_mode_kept(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    files.replace_file(tmp_path / "link", b"first")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"first"
    os.chmod(tmp_path / "target", 0o664)
    files.replace_file(tmp_path / "link", b"second")
    assert (tmp_path / "target").read_bytes() == b"second" and (tmp_path / "target").stat().st_mode & 0o777 == 0o664
    files.replace_file("/dev/null", b"third")
    assert not Path("/dev/null").is_file()


@posix
def test_another_users_run_is_left_alone(stand):
    shared = stand / "open" / "m.safetensors"
    with files.only_writer(shared):
        os.chmod(stand / "open" / f".{shared.name}.lock", 0o644)
        assert "another process" in in_child(refused_as_somebody, stand, shared)
        assert (stand / "open" / f".{shared.name}.lock").exists()


def refused_as_somebody(folder, path):
    as_somebody(folder, None, checkout=True)

    def write():
        with files.only_writer(path):
            pass

    return refusal(BlockingIOError, write)
