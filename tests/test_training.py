import dataclasses
import math
import os
import re
import signal
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import lively_transformer

from vqlib import checkpoints, data, evaluation, tokens, training
from vqlib.classifier import ClassifierConfig
from vqlib.tokens import encode_pixels, to_sequences
from vqlib.training import (
    ClassifierRecipe,
    TransformerRecipe,
    VQVAERecipe,
    learning_rate,
    train_classifier,
    train_transformer,
    train_vqvae,
)
from vqlib.transformer import Transformer, TransformerConfig
from vqlib.vqvae import VQVAE, VQVAEConfig

# Six steps an epoch, two epochs; every random thing that a recipe can do happens in them.
VQVAE_TINY = VQVAERecipe(name="tiny", epochs=2, batch_size=16, learning_rate=1e-3, mixed_precision=False,
                         model=VQVAEConfig(channels=8))
EMA_TINY = dataclasses.replace(VQVAE_TINY, model=VQVAEConfig(channels=8, ema=True), kmeans_init=True, ema_decay=0.8,
                               revive_below=0.33, schedule="cosine", warmup_steps=3, mixed_precision=True)
TRANSFORMER_TINY = TransformerRecipe(name="tiny", epochs=2, batch_size=16, learning_rate=1e-3, schedule="cosine",
                                     weight_decay=0.1, mixed_precision=False, drop_class=0.3,
                                     model=TransformerConfig(d_model=16, n_heads=2, n_layers=1))
CLASSIFIER_TINY = ClassifierRecipe(name="tiny", epochs=2, batch_size=16, learning_rate=1e-3, schedule="cosine",
                                   mixed_precision=False, model=ClassifierConfig(channels=4, features=16))
STEPS = 12


def run(recipe, dataset, path=None, **options):
    if isinstance(recipe, VQVAERecipe):
        return train_vqvae(recipe, dataset, path=path, device="cpu", progress=False, **options)
    if isinstance(recipe, ClassifierRecipe):
        return train_classifier(recipe, dataset, path=path, device="cpu", progress=False, **options)
    return train_transformer(recipe, tokenizer(), dataset, path=path, device="cpu", progress=False, **options)


def tokenizer():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vqvae = VQVAE(VQVAEConfig(channels=8)).eval()
    latents = vqvae.encoder(data.to_images(data.load_sample("train").pixels[:50])).detach()
    vqvae.quantizer.init_from(latents.movedim(1, -1).flatten(0, 2), torch.Generator().manual_seed(0))
    return vqvae


def same_weights(model, other):
    state = other.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def without_seconds(model):
    return {key: value for key, value in model.info["history"].items() if key != "seconds"}


@pytest.fixture(scope="module")
def some(train):
    """90 pictures: the last of six batches of 16 has only 10."""
    return train.subset(torch.arange(90))


@pytest.fixture
def often(monkeypatch):
    """Log and save every two steps, so that a run of twelve has many checkpoints to go on from."""
    monkeypatch.setattr(training, "fit", partial(training.fit, log_every=2, save_every=2))


def stop_at(monkeypatch, step, action, seen=None):
    """Do `action` in training step `step` (from 1), once. seen: a list to note the steps in."""
    seen = [] if seen is None else seen
    original = training._seed

    def seed(number, at):
        generator = original(number, at)
        seen.append(at)
        if at + 1 == step and seen.count(at) == 1:
            action()
        return generator

    monkeypatch.setattr(training, "_seed", seed)


def interrupt():
    raise KeyboardInterrupt


# --- recipes ---------------------------------------------------------------------------------------------------------


def test_the_seed_recipes_are_the_seeds():
    vqvae, transformer = training.RECIPES["ancestor"]
    assert vqvae == training.ANCESTOR_VQVAE and transformer == training.ANCESTOR_TRANSFORMER
    assert (vqvae.model.num_codes, vqvae.model.code_dim, vqvae.beta) == (64, 16, 0.25)
    assert (vqvae.epochs, vqvae.batch_size, vqvae.weight_decay, vqvae.betas) == (10, 64, 0, (0.9, 0.999))
    assert not (vqvae.model.ema or vqvae.kmeans_init or vqvae.revive_below)
    rates = [learning_rate(vqvae, epoch * 938 + 5, 938) for epoch in range(10)]
    assert rates == pytest.approx([1e-3] * 5 + [3e-4] * 5)
    config = transformer.model
    assert (config.d_model, config.n_heads, config.n_layers, config.context) == (256, 8, 8, 152)
    assert config.dropout == 0.1 and config.vocabulary_size == 75
    assert (transformer.epochs, transformer.batch_size) == (1, 128) and math.ceil(60_000 / 128) == 469
    assert {learning_rate(transformer, step, 469) for step in range(469)} == {3e-4}
    assert transformer.weight_decay == 0 and transformer.betas == (0.9, 0.999)


def test_schedules():
    recipe = dataclasses.replace(VQVAE_TINY, learning_rate=2.0, epochs=4)

    def rates(**changes):
        return [learning_rate(dataclasses.replace(recipe, **changes), step, 10) for step in range(40)]

    assert rates() == [2.0] * 40
    assert rates(schedule="drop", drop_epoch=3, drop_factor=0.1) == pytest.approx([2.0] * 30 + [0.2] * 10)
    cosine = rates(schedule="cosine")
    assert cosine[0] == 2 and cosine[20] == pytest.approx(1) and cosine[39] < 0.01
    assert cosine == sorted(cosine, reverse=True)
    assert rates(warmup_steps=8)[:10] == pytest.approx([0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2, 2])


def test_the_rate_of_the_schedule_is_the_rate_of_the_optimizer(some):
    still = run(dataclasses.replace(VQVAE_TINY, learning_rate=0.0), some)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert same_weights(still, VQVAE(VQVAE_TINY.model))
    dropped = dataclasses.replace(VQVAE_TINY, schedule="drop", drop_epoch=1, drop_factor=0.0)
    assert same_weights(run(dropped, some), run(dataclasses.replace(VQVAE_TINY, epochs=1), some))


# --- one step, by hand -----------------------------------------------------------------------------------------------


def first_batch(size):
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:16]


def test_a_step_of_the_seeds_vqvae_is_adam_on_the_papers_loss(some):
    trained = run(dataclasses.replace(VQVAE_TINY, epochs=1), some.subset(torch.arange(16)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VQVAE(VQVAE_TINY.model).to(memory_format=torch.channels_last)
    images = data.to_images(some.pixels[:16][first_batch(16)])
    z = model.encoder(images).movedim(1, -1)
    e = model.quantizer.codebook[torch.cdist(z.flatten(0, 2), model.quantizer.codebook).argmin(1).reshape(16, 7, 7)]
    reconstruction = model.decoder((z + (e - z).detach()).movedim(-1, 1))
    loss = ((reconstruction - images) ** 2).mean() + ((e - z.detach()) ** 2).mean() \
        + 0.25 * ((z - e.detach()) ** 2).mean()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss.backward()
    optimizer.step()
    row, = trained.info["history"]["steps"]
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, tensor in trained.state_dict().items():
        assert (tensor - model.state_dict()[name]).abs().max() < 1e-5, name  # a step is 1e-3


def test_a_step_of_the_seeds_transformer_is_adam_on_the_cross_entropy(some):
    recipe = TransformerRecipe(name="t", epochs=1, batch_size=16, learning_rate=1e-2, mixed_precision=False,
                               model=dataclasses.replace(TRANSFORMER_TINY.model, dropout=0.0))
    some = some.subset(torch.arange(16))
    trained = run(recipe, some)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Transformer(recipe.model)
    sequences = to_sequences(encode_pixels(tokenizer(), some.pixels), some.labels)[first_batch(16)]
    log_p = model(sequences[:, :-1]).log_softmax(-1)  # 50 inputs, 50 targets: 49 codes and the end
    loss = -log_p.gather(-1, sequences[:, 1:, None]).mean()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss.backward()
    optimizer.step()
    row, = trained.info["history"]["steps"]
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert row["nats_per_code"] == pytest.approx(-log_p.gather(-1, sequences[:, 1:, None])[:, :49].mean().item(), 1e-5)
    for name, tensor in trained.state_dict().items():
        assert (tensor - model.state_dict()[name]).abs().max() < 1e-3, name  # a step is 1e-2; float16 rounds
    assert (trained.position_embedding.weight - model.position_embedding.weight)[50:].abs().max() < 1e-4


def test_weight_decay_acts_on_matrices_only(some):
    recipe = dataclasses.replace(TRANSFORMER_TINY, epochs=1, schedule="constant", learning_rate=1e-3)
    with_decay, without = (run(dataclasses.replace(recipe, weight_decay=w), some.subset(torch.arange(16)))
                           for w in (100.0, 0.0))
    for (name, decayed), plain in zip(with_decay.named_parameters(), without.parameters(), strict=True):
        changed = (decayed - plain).abs().max() > 1e-3 * plain.abs().max()
        assert changed == (plain.ndim > 1), name


# --- what is recorded ------------------------------------------------------------------------------------------------


def test_ancestor_defect_7_codes_used_and_perplexity_are_recorded(some):
    recipe = dataclasses.replace(VQVAE_TINY, epochs=1, learning_rate=0.0, model=VQVAEConfig(channels=8, ema=True),
                                 kmeans_init=True, ema_decay=1.0)  # nothing moves: the model at the end is the model
    model = run(recipe, some, validation=some)
    row, = model.info["history"]["steps"]
    epoch, = model.info["history"]["epochs"]
    figures = evaluation.evaluate_vqvae(model, some)
    assert figures["codes_used"] > 20
    assert row["codes"] == epoch["codes_used"] == figures["codes_used"]
    assert row["perplexity"] == pytest.approx(figures["perplexity"], rel=1e-4)
    assert epoch["perplexity"] == pytest.approx(figures["perplexity"], rel=1e-6)
    assert row["mse"] == pytest.approx(figures["mse"], rel=1e-4)
    assert epoch["mse"] == pytest.approx(figures["mse"], rel=1e-6)


def test_the_history_has_a_row_every_few_steps_and_one_an_epoch(some, often):
    model = run(EMA_TINY, some, validation=some.subset(torch.arange(20)))
    history = model.info["history"]
    assert [row["step"] for row in history["steps"]] == [2, 4, 6, 8, 10, 12]
    assert all(set(row) == {"step", "loss", "mse", "codes", "perplexity", "revived"} for row in history["steps"])
    assert sum(row["revived"] for row in history["steps"]) > 0  # else revival is not in the tests of resuming
    assert [row["epoch"] for row in history["epochs"]] == [1, 2] and history["seconds"] > 0
    assert history["epochs"][1] == {"epoch": 2, **evaluation.evaluate_vqvae(model, some.subset(torch.arange(20)))}


def test_a_run_says_what_it_was_and_how_it_did(some, test, tmp_path):
    test = test.subset(torch.arange(40))
    vqvae = run(VQVAE_TINY, some, tmp_path / "v.safetensors", test=test)
    loaded = checkpoints.load_vqvae(tmp_path / "v.safetensors")
    assert same_weights(vqvae, loaded) and not loaded.training and not vqvae.training
    assert loaded.info["recipe"]["name"] == "tiny" and loaded.info["recipe"]["beta"] == 0.25
    assert "90 pictures" in loaded.info["data"] and data.fingerprint(some)[:16] in loaded.info["data"]
    assert loaded.info["test"] == evaluation.evaluate_vqvae(loaded, test) == vqvae.info["test"]
    assert loaded.info["path"] == vqvae.info["path"] == str(tmp_path / "v.safetensors")
    assert os.listdir(tmp_path) == ["v.safetensors"]  # the checkpoints of a finished run are gone


def test_a_transformer_is_rounded_before_it_is_scored_saved_and_returned(some, test, tmp_path):
    test, path = test.subset(torch.arange(40)), tmp_path / "t.safetensors"
    model = run(TRANSFORMER_TINY, some, path, test=test)
    assert {t.dtype for t in checkpoints.read(path, "Transformer")[0].values()} == {torch.float16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    loaded = checkpoints.load_transformer(path, vqvae=tokenizer())
    assert same_weights(model, loaded) and loaded.info["tokenizer"] == checkpoints.tokenizer_id(tokenizer())
    figures = evaluation.evaluate_transformer(loaded, encode_pixels(tokenizer(), test.pixels), test.labels)
    assert {k: loaded.info["test"][k] for k in figures} == figures
    unrounded = loaded.info["test"]["nats_per_code_before_rounding"]
    assert unrounded != figures["nats_per_code"] and unrounded == pytest.approx(figures["nats_per_code"], abs=1e-3)


def test_training_learns(train):
    some = train.subset(torch.arange(400))
    for recipe in (VQVAE_TINY, EMA_TINY):
        steps = run(dataclasses.replace(recipe, epochs=4, learning_rate=3e-3), some).info["history"]["steps"]
        assert steps[-1]["mse"] < 0.4 * steps[0]["mse"]
    recipe = dataclasses.replace(TRANSFORMER_TINY, epochs=4, learning_rate=5e-3)
    steps = run(recipe, some).info["history"]["steps"]
    assert steps[-1]["nats_per_code"] < math.log(64) - 0.3 and steps[-1]["loss"] < steps[0]["loss"] - 0.3


# --- interrupted and resumed -----------------------------------------------------------------------------------------

RECIPES = {"vqvae": VQVAE_TINY, "ema": EMA_TINY, "transformer": TRANSFORMER_TINY, "classifier": CLASSIFIER_TINY}
uninterrupted = {}


@pytest.mark.parametrize("step", [1, 2, 3, 6, 7, 12])
@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(some, tmp_path, often, monkeypatch, name, step):
    recipe, validation = RECIPES[name], some.subset(torch.arange(20))
    if name not in uninterrupted:
        uninterrupted[name] = run(recipe, some, validation=validation)
    stop_at(monkeypatch, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, some, tmp_path / "m.safetensors", validation=validation)
    assert os.listdir(tmp_path) == (["m.resume.safetensors"] if step > 2 else [])
    resumed = run(recipe, some, tmp_path / "m.safetensors", validation=validation)
    assert same_weights(resumed, uninterrupted[name])
    assert without_seconds(resumed) == without_seconds(uninterrupted[name])
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_a_run_can_be_interrupted_again_and_again(some, tmp_path, often, monkeypatch):
    for step in (4, 5, 9):
        stop_at(monkeypatch, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(EMA_TINY, some, tmp_path / "m.safetensors")
    assert same_weights(run(EMA_TINY, some, tmp_path / "m.safetensors"), run(EMA_TINY, some))


def test_a_resumed_run_does_only_what_is_left(some, tmp_path, often, monkeypatch):
    stop_at(monkeypatch, 8, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(VQVAE_TINY, some, tmp_path / "m.safetensors")
    steps = []
    stop_at(monkeypatch, None, None, steps)
    run(VQVAE_TINY, some, tmp_path / "m.safetensors")
    assert steps == [6, 7, 8, 9, 10, 11]  # from 0


KILLED = """
import sys, torch
torch.set_num_threads(int(sys.argv[2]))
sys.path.insert(0, "tests")
import test_training as t
train = t.data.load_sample("train").subset(torch.arange(90))
t.training.fit = t.partial(t.training.fit, log_every=2, save_every=2)
stop = lambda: t.os.kill(t.os.getpid(), t.signal.SIGKILL)
t.stop_at(t.pytest.MonkeyPatch(), 10, stop)
t.run(t.EMA_TINY, train, sys.argv[1])
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_run_ends_where_the_uninterrupted_one_does(some, tmp_path, often):
    path = tmp_path / "m.safetensors"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), str(torch.get_num_threads())],
                            cwd=Path(__file__).parent.parent)
    assert killed.returncode == -signal.SIGKILL and os.listdir(tmp_path) == ["m.resume.safetensors"]
    assert checkpoints.read(tmp_path / "m.resume.safetensors", "training state")[1]["step"] == 8
    resumed, whole = run(EMA_TINY, some, path), run(EMA_TINY, some)
    assert same_weights(resumed, whole) and without_seconds(resumed) == without_seconds(whole)


@pytest.mark.parametrize("recipe, n, differs", [
    (dataclasses.replace(VQVAE_TINY, learning_rate=2e-3), 90, "recipe"),
    (dataclasses.replace(VQVAE_TINY, model=VQVAEConfig(channels=4)), 90, "recipe"), (VQVAE_TINY, 80, "data"),
])
def test_a_checkpoint_of_another_run_is_refused_and_kept(some, tmp_path, often, monkeypatch, recipe, n, differs):
    stop_at(monkeypatch, 5, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(VQVAE_TINY, some, tmp_path / "m.safetensors")
    before = (tmp_path / "m.resume.safetensors").read_bytes()
    with pytest.raises(ValueError, match=f"m.resume.safetensors is the checkpoint of another run .different {differs}.*"
                                         "Delete it to start afresh.*VQLIB_RUNS"):
        run(recipe, some.subset(torch.arange(n)), tmp_path / "m.safetensors")
    assert (tmp_path / "m.resume.safetensors").read_bytes() == before


def test_a_damaged_checkpoint_is_refused(some, tmp_path, often, monkeypatch):
    stop_at(monkeypatch, 5, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(VQVAE_TINY, some, tmp_path / "m.safetensors")
    resume = tmp_path / "m.resume.safetensors"
    resume.write_bytes(resume.read_bytes()[:-50])
    with pytest.raises(ValueError, match="m.resume.safetensors is damaged.*Delete it"):
        run(VQVAE_TINY, some, tmp_path / "m.safetensors")


@pytest.mark.parametrize("step, said", [(1, "No checkpoint was written"), (
    7, "The last checkpoint, .*m.resume.safetensors, is of step 6: the same command goes on from there"), (
    8, "The last checkpoint, .*m.resume.safetensors, is of step 6: the same command goes on from there")])
def test_ctrl_c_says_where_it_stopped_and_how_to_go_on(some, tmp_path, often, monkeypatch, capsys, step, said):
    stop_at(monkeypatch, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(VQVAE_TINY, some, tmp_path / "m.safetensors")
    assert re.search(f"Stopped at step {step - 1}. {said}", capsys.readouterr().out)


def test_a_run_that_goes_on_says_from_where(some, tmp_path, often, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 7, interrupt)
        run(VQVAE_TINY, some, tmp_path / "m.safetensors")
    train_vqvae(VQVAE_TINY, some, path=tmp_path / "m.safetensors", device="cpu")
    assert f"going on from step 6 ({tmp_path / 'm.resume.safetensors'})" in capsys.readouterr().out


def test_a_save_that_fails_loses_no_checkpoint(some, tmp_path, often, monkeypatch):
    save, calls = checkpoints.save, []

    def failing(*arguments, **info):
        calls.append(1)
        if len(calls) == 3:
            raise OSError("cannot save: No space left on device")
        save(*arguments, **info)

    monkeypatch.setattr(checkpoints, "save", failing)
    with pytest.raises(OSError, match="No space left"):
        run(VQVAE_TINY, some, tmp_path / "m.safetensors")
    assert checkpoints.read(tmp_path / "m.resume.safetensors", "training state")[1]["step"] == 4
    assert same_weights(run(VQVAE_TINY, some, tmp_path / "m.safetensors"), run(VQVAE_TINY, some))


# --- finished --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [EMA_TINY, TRANSFORMER_TINY], ids=["vqvae", "transformer"])
def test_a_finished_run_is_loaded_not_trained_again(some, tmp_path, monkeypatch, capsys, recipe):
    path = tmp_path / "m.safetensors"
    first = run(recipe, some, path)
    written = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", None)
        again = run(recipe, some, path)
    assert "finished run of this recipe on this data" in capsys.readouterr().out
    assert same_weights(first, again) and again.info["history"] == first.info["history"]
    assert path.read_bytes() == written
    for i, (other, n) in enumerate(((dataclasses.replace(recipe, seed=1), 90), (recipe, 80))):  # trained, and both kept
        assert not same_weights(run(other, some.subset(torch.arange(n)), path), first)
        assert f"is kept as m.{i + 1}.safetensors" in capsys.readouterr().out
    assert (tmp_path / "m.1.safetensors").read_bytes() == written
    assert {p.name for p in tmp_path.glob("m*")} == {"m.safetensors", "m.1.safetensors", "m.2.safetensors"}


def test_a_transformer_of_another_tokenizer_is_trained_again(some, tmp_path):
    path = tmp_path / "transformer.safetensors"
    first = run(TRANSFORMER_TINY, some, path)
    other = run(VQVAE_TINY, some)
    second = train_transformer(TRANSFORMER_TINY, other, some, path=path, progress=False)
    assert not same_weights(first, second)
    assert checkpoints.load_transformer(path, vqvae=other).info["tokenizer"] == checkpoints.tokenizer_id(other)


# --- seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_seed_means_the_same_weights_and_the_readers_randomness_is_untouched(some, name):
    recipe = dataclasses.replace(RECIPES[name], epochs=1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = run(recipe, some)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same_weights(first, run(recipe, some))
    assert not same_weights(first, run(dataclasses.replace(recipe, seed=1), some))


@pytest.mark.parametrize("epochs", [1, 2])
def test_every_epoch_shows_each_picture_once_in_another_order(some, monkeypatch, epochs):
    seen, original = [], training.VQVAEStage.loss

    def loss(stage, batch, autocast):
        seen.append(batch.examples().tolist())
        return original(stage, batch, autocast)

    monkeypatch.setattr(training.VQVAEStage, "loss", loss)
    run(dataclasses.replace(VQVAE_TINY, epochs=epochs), some)
    assert [len(batch) for batch in seen] == [16, 16, 16, 16, 16, 10] * epochs
    orders = [sum(seen[6 * e:6 * e + 6], []) for e in range(epochs)]
    assert all(sorted(order) == list(range(90)) for order in orders)
    assert len({tuple(order) for order in orders}) == epochs and list(range(90)) not in orders


# --- mishaps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoint(some, tmp_path, often, monkeypatch, bad):
    original, calls = training.VQVAEStage.loss, []

    def loss(stage, batch, autocast):
        calls.append(1)
        return original(stage, batch, autocast) * (bad if len(calls) > 5 else 1)

    monkeypatch.setattr(training.VQVAEStage, "loss", loss)
    with pytest.raises(FloatingPointError, match=f"the loss became {bad} at step 6.*lower learning rate than 0.001"):
        run(VQVAE_TINY, some, tmp_path / "m.safetensors")
    kept, info = checkpoints.read(tmp_path / "m.resume.safetensors", "training state")
    assert info["step"] == 4 and all(t.isfinite().all() for t in kept.values())


def test_a_folder_that_cannot_be_written_is_found_out_before_the_first_step(some, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(training.VQVAEStage, "loss", None)
    with pytest.raises(OSError, match="cannot write into .*file: .*VQLIB_RUNS"):
        run(VQVAE_TINY, some, tmp_path / "file" / "m.safetensors")


def test_qk_norm_under_autocast_warns_of_nothing_and_does_what_float32_does():
    model, tokens = lively_transformer(qk_norm=True).float(), torch.arange(50)[None]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = model(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            q, k, v = model.blocks[0].attention.queries_keys_values(model.embed(tokens))
            assert q.dtype == k.dtype == v.dtype == torch.bfloat16
            assert (model(tokens) - exact).norm() < 0.05 * exact.norm()


def test_the_device_is_one_that_is_there():
    assert training.pick_device() in ("cuda", "mps", "cpu")
    assert torch.zeros(2, device=training.pick_device()).sum() == 0
    assert isinstance(training.has_bf16("cpu"), bool)


def test_mixed_precision_is_used_only_where_it_is_real(some, monkeypatch):
    recipe = dataclasses.replace(VQVAE_TINY, epochs=1)
    for real in (True, False):
        monkeypatch.setattr(training, "has_bf16", lambda device, real=real: real)
        mixed = run(dataclasses.replace(recipe, mixed_precision=True), some)
        assert mixed.info["history"]["bf16"] is real and {p.dtype for p in mixed.parameters()} == {torch.float32}
        assert same_weights(mixed, run(recipe, some)) is not real


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    """The command line with a tiny recipe, and a record of which splits it loaded and what each stage was given."""
    recipes = (dataclasses.replace(EMA_TINY, epochs=1, batch_size=400),
               dataclasses.replace(TRANSFORMER_TINY, epochs=1, batch_size=400))
    monkeypatch.setattr(training, "RECIPES", {"best": recipes, "other": (
        dataclasses.replace(recipes[0], seed=1), dataclasses.replace(recipes[1], seed=1))})
    loaded, given, load = [], {}, data.load

    def spy_load(split, **options):
        loaded.append(split)
        return load(split, **(options | {"sample": True}))

    def spy(name, function, at):
        def spying(*arguments):
            given[name] = arguments[at:at + 3]
            return function(*arguments)
        return spying

    monkeypatch.setattr(data, "load", spy_load)
    monkeypatch.setattr(training, "train_vqvae", spy("vqvae", train_vqvae, 1))
    monkeypatch.setattr(training, "train_transformer", spy("transformer", train_transformer, 2))
    return loaded, given


def test_the_command_line_trains_both_stages_into_the_runs_folder(tiny, tmp_path, capsys):
    training.main(["all", "--device", "cpu"])
    assert sorted(os.listdir(tmp_path / "runs")) == ["transformer.safetensors", "vqvae.safetensors"]
    vqvae, transformer = checkpoints.load_vqvae(), checkpoints.load_transformer()  # which belong together
    assert vqvae.info["path"] == str(tmp_path / "runs" / "vqvae.safetensors")
    assert vqvae.info["test"]["pictures"] == transformer.info["test"]["pictures"] == 500
    assert "2000 pictures" in vqvae.info["data"]
    said = capsys.readouterr().out
    assert f"tokenizer: {tmp_path / 'runs' / 'vqvae.safetensors'}" in said
    assert f"mse {vqvae.info['test']['mse']:.5g}" in said
    training.main(["all", "--device", "cpu", "--recipe", "other"])  # in a folder of its own: ours stays
    own = tmp_path / "runs" / "other" / "vqvae.safetensors"
    assert checkpoints.load_vqvae(own).info["recipe"]["seed"] == 1
    assert same_weights(checkpoints.load_vqvae(), vqvae) and same_weights(checkpoints.load_transformer(), transformer)


def test_ancestor_defect_5_held_out_pictures_are_never_trained_on_and_the_test_set_is_untouched(tiny, tmp_path, capsys):
    training.main(["all", "--holdout", "--device", "cpu"])
    loaded, given = tiny
    assert loaded == ["train"]
    assert sorted(os.listdir(tmp_path / "runs" / "holdout")) == ["transformer.safetensors", "vqvae.safetensors"]
    held_out = set()
    for name in ("vqvae", "transformer"):
        part, validation, test = given[name]
        assert test is None and (len(part), len(validation)) == (2000 - 166, 166)
        pictures = {p.numpy().tobytes() for p in validation.pixels}
        assert len(pictures) == 166 and not pictures & {p.numpy().tobytes() for p in part.pixels}
        held_out |= pictures
    assert len(held_out) == 166  # both stages hold out the same pictures
    info = checkpoints.load_vqvae(tmp_path / "runs" / "holdout" / "vqvae.safetensors").info
    assert "test" not in info and info["history"]["epochs"][0]["pictures"] == 166
    assert "validation: epoch 1, mse" in capsys.readouterr().out


def test_one_stage_can_be_trained_alone(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path / "shipped")
    checkpoints.save_model(tmp_path / "shipped" / "vqvae.safetensors", tokenizer())
    training.main(["transformer", "--device", "cpu"])  # on the shipped tokenizer: there is no other
    assert checkpoints.load_transformer().info["tokenizer"] == checkpoints.tokenizer_id(tokenizer())
    assert os.listdir(tmp_path / "runs") == ["transformer.safetensors"]


def test_held_out_pictures_need_a_tokenizer_that_never_saw_them(tiny, tmp_path, capsys):
    with pytest.raises(SystemExit):
        training.main(["transformer", "--holdout", "--device", "cpu"])
    assert "train the stage vqvae first" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_a_device_that_is_not_there_is_refused_in_words(tiny, capsys):
    for device in ("gpu", "cuda:99", "meta:x"):
        with pytest.raises(SystemExit):
            training.main(["all", "--device", device])
        assert f"no device '{device}' here" in capsys.readouterr().err


def test_where_no_data_can_be_had_the_command_line_names_its_own_option(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("VQLIB_DATA", str(tmp_path))
    with pytest.raises(SystemExit):
        training.main(["all", "--device", "cpu"])
    said = capsys.readouterr().err
    assert "Unset VQLIB_DATA" in said and said.strip().endswith("Or take the embedded sample: --sample.")
    with pytest.raises(SystemExit):
        training.main(["all", "--device", "cpu", "--sample", "--data", "MNIST"])
    assert "no sample of MNIST" in capsys.readouterr().err


def test_the_command_line_trains_the_two_judges(monkeypatch, tmp_path, capsys):
    for name in ("JUDGE", "CRITIC"):
        recipe = dataclasses.replace(getattr(training, name), epochs=1, batch_size=400, model=CLASSIFIER_TINY.model)
        monkeypatch.setattr(training, name, recipe)
    training.main(["classifiers", "--sample", "--device", "cpu"])
    folder = tmp_path / "runs" / "sample"
    judge, critic = (checkpoints.load_classifier(name, folder / f"{name}.safetensors") for name in ("judge", "critic"))
    assert sorted(os.listdir(folder)) == ["critic.safetensors", "judge.safetensors"]
    assert not same_weights(judge, critic) and judge.info["test"]["pictures"] == 500
    assert f"accuracy {judge.info['test']['accuracy']:.5g}" in capsys.readouterr().out
    training.main(["classifiers", "--sample", "--device", "cpu"])
    assert capsys.readouterr().out.count("is a finished run of this recipe on this data: loaded") == 2
    assert same_weights(checkpoints.load_classifier("judge", folder / "judge.safetensors"), judge)


def test_a_try_on_the_sample_leaves_what_is_used_from_then_on_alone(tiny, tmp_path):
    training.main(["all", "--sample", "--device", "cpu"])
    assert os.listdir(tmp_path / "runs") == ["sample"]
    assert checkpoints.load_vqvae().info["path"] == str(checkpoints.SHIPPED / "vqvae.safetensors")
    training.main(["all", "--sample", "--holdout", "--device", "cpu"])
    assert sorted(os.listdir(tmp_path / "runs" / "holdout" / "sample")) == ["transformer.safetensors",
                                                                            "vqvae.safetensors"]


def test_another_data_set_is_trained_in_a_folder_of_its_own(tiny, tmp_path, monkeypatch, capsys):
    names = []

    def load(split, sample, name):
        names.append(name)
        return data.load_sample(split)

    monkeypatch.setattr(data, "load", load)
    with pytest.raises(SystemExit):
        training.main(["transformer", "--data", "MNIST", "--device", "cpu"])
    assert "train the stage vqvae first" in capsys.readouterr().err and not (tmp_path / "runs").exists()
    training.main(["all", "--data", "MNIST", "--device", "cpu"])
    assert set(names) == {"MNIST"}
    assert sorted(os.listdir(tmp_path / "runs" / "MNIST")) == ["transformer.safetensors", "vqvae.safetensors"]
    assert checkpoints.load_vqvae().info["path"] == str(checkpoints.SHIPPED / "vqvae.safetensors")  # clothes


def test_a_pictures_source_of_ones_own(tmp_path):
    """The README's own data: any (N, 28, 28) uint8 pixels with labels in 0…9."""
    generator = torch.Generator().manual_seed(0)
    own = data.Dataset(torch.randint(0, 256, (64, 28, 28), dtype=torch.uint8, generator=generator),
                       torch.arange(64) % 10, "mine")
    vqvae = run(dataclasses.replace(EMA_TINY, epochs=1), own)
    transformer = train_transformer(dataclasses.replace(TRANSFORMER_TINY, epochs=1), vqvae, own, progress=False)
    assert transformer.info["tokenizer"] == checkpoints.tokenizer_id(vqvae)


@pytest.mark.parametrize("arguments, why", [
    ([], "required: stage"), (["everything"], "invalid choice: 'everything'"),
    (["all", "--recipe", "none"], "invalid choice: 'none'"),
    (["all", "--device", "cpu", "--batch-size", "0"], "--batch-size must be 1 or more, got 0"),
    (["classifiers", "--device", "cpu", "--recipe", "other"], "the classifiers have one recipe: leave --recipe out")])
def test_the_command_line_refuses_what_it_does_not_know(tiny, arguments, why, capsys):
    with pytest.raises(SystemExit):
        training.main(arguments)
    said = capsys.readouterr().err
    assert "vqlib.training: error" in said and why in said and tiny[0] == []


def test_ancestor_defect_5_a_training_sequence_is_one_picture(some):
    stage = training.TransformerStage(TRANSFORMER_TINY, (encode_pixels(tokenizer(), some.pixels), some.labels), "cpu")
    codes, labels = tokens.from_sequences(stage.tokens)  # raises where a row is no whole, aligned picture
    assert stage.tokens.shape == (90, 51) and torch.equal(labels, some.labels)
    assert torch.equal(codes, encode_pixels(tokenizer(), some.pixels))
    seen = []
    stage.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    stage.loss(training.Batch(torch.tensor([3, 5])), torch.autocast("cpu", enabled=False))
    assert torch.equal(seen[0][:, 1:], stage.tokens[[3, 5], 1:50])


def test_a_share_of_the_sequences_begins_with_any_class(some):
    pair = (encode_pixels(tokenizer(), some.pixels), some.labels)
    stage = training.TransformerStage(TRANSFORMER_TINY, pair, "cpu")
    whole, seen = stage.tokens.clone(), []
    stage.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    for _ in range(20):
        stage.loss(training.Batch(torch.arange(90)), torch.autocast("cpu", enabled=False))
    firsts = torch.stack([batch[:, 0] for batch in seen])
    any_class = firsts == 74
    assert 0.25 < any_class.float().mean() < 0.35 and (any_class.any(0).float().mean() > 0.95)
    assert torch.equal(firsts[~any_class], (64 + some.labels).expand(20, 90)[~any_class])
    assert all(torch.equal(batch[:, 1:], whole[:, 1:50]) for batch in seen) and torch.equal(stage.tokens, whole)
    never = training.TransformerStage(dataclasses.replace(TRANSFORMER_TINY, drop_class=0.0), pair, "cpu")
    never.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    never.loss(training.Batch(torch.arange(90)), torch.autocast("cpu", enabled=False))
    assert torch.equal(seen[-1], whole[:, :50])


def test_cross_entropy_is_over_the_whole_vocabulary(some):
    recipe = dataclasses.replace(TRANSFORMER_TINY, drop_class=0.0)
    stage = training.TransformerStage(recipe, (encode_pixels(tokenizer(), some.pixels), some.labels), "cpu")
    stage.model.eval()
    loss = stage.loss(training.Batch(torch.arange(4)), torch.autocast("cpu", enabled=False))
    logits = stage.model(stage.tokens[:4, :50])
    assert loss.item() == pytest.approx(F.cross_entropy(logits.flatten(0, 1), stage.tokens[:4, 1:].flatten()).item())


# --- arguments in each other's place ---------------------------------------------------------------------------------


def test_arguments_in_each_others_place_are_refused_by_name(some, tmp_path):
    for call, said in (
            (lambda: train_vqvae(some, VQVAE_TINY), "recipe must be a VQVAERecipe, got Dataset"),
            (lambda: train_vqvae(TRANSFORMER_TINY, some), "recipe must be a VQVAERecipe, got TransformerRecipe"),
            (lambda: training.train_classifier(VQVAE_TINY, some), "recipe must be a ClassifierRecipe, got VQVAERecipe"),
            (lambda: train_transformer(TRANSFORMER_TINY, some, tokenizer()), "vqvae must be a VQVAE, got Dataset"),
            (lambda: train_transformer(TRANSFORMER_TINY, tokenizer(), some.pixels), "train must be a Dataset, got ")):
        with pytest.raises(ValueError, match=said):
            call()
    with pytest.raises(IsADirectoryError, match=f"{tmp_path} is a folder: name a file, such as .*model.safetensors"):
        run(VQVAE_TINY, some, tmp_path)
