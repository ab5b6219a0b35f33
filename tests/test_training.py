"""Training: recipes, stages, the loop, resuming, devices, and the command line."""

import dataclasses
import inspect
import math
import os
import re
import shutil
import signal
import warnings
from functools import partial
from pathlib import Path

import conftest
import killed_worker
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    CLASSIFIER_TINY,
    DECODER_TINY,
    EMA_TINY,
    QUICK,
    STEPS,
    TINY,
    TRANSFORMER_TINY,
    VQVAE_TINY,
    defaults,
    forked,
    lively_transformer,
    run,
    same_weights,
    stop_at,
    tokenizer,
    visible,
    without_seconds,
)
from torch import nn

import vqlib
from vqlib import baselines, checkpoints, data, evaluation, sampling, training
from vqlib.tokens import encode_pixels
from vqlib.training import (
    Batch,
    Recipe,
    Stage,
    TransformerStage,
    VQVAEStage,
    devices,
    distributed,
    learning_rate,
    loop,
    recipes,
    stages,
    train_classifier,
    train_transformer,
    train_vqvae,
)
from vqlib.training import __main__ as command
from vqlib.transformer import Transformer
from vqlib.vqvae import VQVAE, VQVAEConfig

VERSION_0_1 = Path(__file__).parent / "files_of_0_1"
posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")


@pytest.fixture
def often(monkeypatch):
    """Log and save every two steps, so that a run of twelve has many checkpoints to go on from."""
    monkeypatch.setattr(loop, "fit", partial(loop.fit, log_every=2, save_every=2))


def interrupt():
    raise KeyboardInterrupt


def interrupted(recipe, dataset, path, step, **options):
    """Begin a run that Ctrl-C breaks off at the beginning of this step."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, step, interrupt)
        run(recipe, dataset, path, **options)


# --- recipes ---------------------------------------------------------------------------------------------------------


def test_the_original_recipes_are_the_seeds():
    vqvae, transformer = training.RECIPES["original"]
    assert vqvae == training.ORIGINAL_VQVAE and transformer == training.ORIGINAL_TRANSFORMER
    assert (vqvae.model.num_codes, vqvae.model.code_dim, vqvae.beta) == (64, 16, 0.25)
    assert (vqvae.epochs, vqvae.batch_size, vqvae.weight_decay, vqvae.betas) == (10, 64, 0, (0.9, 0.999))
    assert vqvae.model.quantizer == "gradient" and not (vqvae.kmeans_init or vqvae.revive_below)
    rates = [learning_rate(vqvae, epoch * 938 + 5, 938) for epoch in range(10)]
    assert rates == pytest.approx([1e-3] * 5 + [3e-4] * 5)
    config = transformer.model
    assert (config.d_model, config.n_heads, config.n_layers, config.context) == (256, 8, 8, 152)
    assert config.dropout == 0.1 and config.vocabulary.size == 75
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


def test_a_step_of_the_original_vqvae_is_adam_on_the_papers_loss(some):
    trained = run(dataclasses.replace(VQVAE_TINY, epochs=1), some.subset(torch.arange(16)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VQVAE(VQVAE_TINY.model).to(memory_format=torch.channels_last)
    images = data.to_images(some.pixels[:16][first_batch(16)])
    z = model.encoder(images).movedim(1, -1)
    e = model.quantizer.codebook[torch.cdist(z.flatten(0, 2), model.quantizer.codebook).argmin(1).reshape(16, 7, 7)]
    reconstruction = model.decoder((z + (e - z).detach()).movedim(-1, 1))
    loss = ((reconstruction - images) ** 2).mean() + ((e - z.detach()) ** 2).mean()
    loss = loss + 0.25 * ((z - e.detach()) ** 2).mean()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss.backward()
    optimizer.step()
    (row,) = trained.info["history"]["steps"]
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, tensor in trained.state_dict().items():
        assert (tensor - model.state_dict()[name]).abs().max() < 1e-5, name  # a step is 1e-3


def test_a_step_of_the_original_transformer_is_adam_on_the_cross_entropy(some):
    config = dataclasses.replace(TRANSFORMER_TINY.model, dropout=0.0)
    recipe = training.TransformerRecipe(**{**QUICK, "epochs": 1, "learning_rate": 1e-2}, model=config)
    some = some.subset(torch.arange(16))
    trained = run(recipe, some)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Transformer(recipe.model)
    codes = encode_pixels(tokenizer(), some.pixels).flatten(1)
    sequences = torch.cat([64 + some.labels[:, None], codes, torch.full((16, 1), 74)], 1)[first_batch(16)]
    log_p = model(sequences[:, :-1]).log_softmax(-1)  # 50 inputs, 50 targets: 49 codes and the end
    nats = -log_p.gather(-1, sequences[:, 1:, None])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    nats.mean().backward()
    optimizer.step()
    (row,) = trained.info["history"]["steps"]
    assert row["loss"] == pytest.approx(nats.mean().item(), rel=1e-5)
    assert row["nats_per_code"] == pytest.approx(nats[:, :49].mean().item(), 1e-5)
    for name, tensor in trained.state_dict().items():
        assert (tensor - model.state_dict()[name]).abs().max() < 1e-3, name  # a step is 1e-2; float16 rounds
    assert (trained.position_embedding.weight - model.position_embedding.weight)[50:].abs().max() < 1e-4


def test_weight_decay_acts_on_matrices_only(some):
    recipe = dataclasses.replace(TRANSFORMER_TINY, epochs=1, schedule="constant")
    with_decay, without = (
        run(dataclasses.replace(recipe, weight_decay=w), some.subset(torch.arange(16))) for w in (100.0, 0.0)
    )
    for (name, decayed), plain in zip(with_decay.named_parameters(), without.parameters(), strict=True):
        changed = (decayed - plain).abs().max() > 1e-3 * plain.abs().max()
        assert changed == (plain.ndim > 1), name


# --- stages of one's own ---------------------------------------------------------------------------------------------

PLAIN = Recipe(**{**QUICK, "learning_rate": 0.1})


def test_a_stage_needs_no_more_than_a_loss(tmp_path, often, monkeypatch):
    """Fit y = 3x - 1; a run of it that was interrupted goes on, too."""
    x = torch.linspace(-1, 1, 90)[:, None]

    class Line(Stage):
        def loss(self, batch):
            return F.mse_loss(self.forward(x[batch.examples()]), 3 * x[batch.examples()] - 1)

    def line(**changes):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Line(dataclasses.replace(PLAIN, epochs=20), nn.Linear(1, 1), "cpu", size=90)

    stage = line()
    history = loop.fit(stage, validation=x, progress=False)
    assert (stage.model.weight - 3).abs() < 0.05 and (stage.model.bias + 1).abs() < 0.05
    assert history["steps"][-1]["loss"] < 1e-2 and all(set(row) == {"step", "loss"} for row in history["steps"])
    assert history["epochs"] == [{"epoch": n} for n in range(1, 21)] and not stage.model.training
    resumed, path = line(), tmp_path / "line.safetensors"
    stop_at(monkeypatch, 50, interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop.fit(resumed, path=path, progress=False)
    loop.fit(resumed := line(), path=path, progress=False)
    assert same_weights(resumed.model, stage.model)


class Duel(Stage):
    """A toy GAN on points of the plane: a critic and a generator that take turns, each with an optimizer of its own."""

    def __init__(self, between_turns=lambda: None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.real, generator, self.critic = torch.randn(90, 2) + 3, nn.Linear(2, 2), nn.Linear(2, 1)
        super().__init__(PLAIN, generator, "cpu", 90, ("gap", "examples"))
        self.modules["critic"] = self.critic
        self.between_turns, self.seen = between_turns, []

    def optimizers(self):
        critics = torch.optim.SGD(self.critic.parameters(), lr=1.0, momentum=0.9)
        return [[critics], [torch.optim.Adam(self.model.parameters())]]

    def losses(self, batch):
        real, noise = self.real[batch.examples()], torch.randn(len(batch.examples()), 2, generator=batch.generator)
        self.seen.append((real, noise))
        fake = self.forward(noise)
        yield F.softplus(-self.critic(real)).mean() + F.softplus(self.critic(fake.detach())).mean()
        self.between_turns()
        self.totals["gap"] += (real - fake).detach().norm(dim=1).sum()
        self.totals["examples"] += len(real)
        yield F.softplus(-self.critic(fake)).mean()

    def metrics(self):
        return {"gap": (self.totals["gap"] / self.totals["examples"]).item()}


def fit_duel(path=None, **options):
    stage = Duel(**options)
    return stage, loop.fit(stage, path=path, progress=False)


def test_two_optimizers_take_turns(often):
    """The generator's loss comes from the critic that has just learned, and each optimizer moves its own model only."""
    stage, history = fit_duel()
    hand = Duel()
    generator, critic = hand.model, hand.critic
    adam, momentum = torch.optim.Adam(generator.parameters(), lr=0.1), [torch.zeros(1, 2), torch.zeros(1)]
    for real, noise in stage.seen:
        loss = -F.logsigmoid(critic(real)).mean() - F.logsigmoid(-critic(generator(noise).detach())).mean()
        gradients = torch.autograd.grad(loss, [*critic.parameters()])
        for p, m, gradient in zip(critic.parameters(), momentum, gradients, strict=True):
            m.mul_(0.9).add_(gradient)
            p.data -= 0.1 * m
        loss = -F.logsigmoid(critic(generator(noise))).mean()
        generator.zero_grad()
        loss.backward()
        adam.step()
    assert len(stage.seen) == STEPS and history["steps"][-1]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    for model, own in ((stage.model, generator), (stage.critic, critic)):
        for p, q in zip(model.parameters(), own.parameters(), strict=True):
            assert torch.allclose(p, q, atol=1e-5)


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_run_with_two_optimizers_resumes_from_any_step(tmp_path, often, monkeypatch, step):
    """Also if it was interrupted between the two turns of a step."""
    whole, history = fit_duel()
    turns = []

    def between_turns():
        turns.append(1)
        if len(turns) == step:
            interrupt()

    with pytest.raises(KeyboardInterrupt):
        fit_duel(tmp_path / "turns.safetensors", between_turns=between_turns)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, step, interrupt)
        fit_duel(tmp_path / "steps.safetensors")
    for name in ("turns", "steps"):
        assert (tmp_path / f"{name}.resume.safetensors").exists() == (step > 2)
        resumed, same = fit_duel(tmp_path / f"{name}.safetensors")
        assert len(resumed.seen) == STEPS - (step - 1) // 2 * 2
        assert same_weights(resumed.model, whole.model) and same_weights(resumed.critic, whole.critic)
        assert same["steps"] == history["steps"]


def test_a_stage_gives_a_loss_for_each_optimizer(monkeypatch):
    monkeypatch.setattr(Duel, "losses", Stage.losses)
    monkeypatch.setattr(Duel, "loss", lambda stage, batch: stage.critic(stage.real).mean(), raising=False)
    with pytest.raises(ValueError):
        fit_duel()


# --- what is recorded ------------------------------------------------------------------------------------------------


def test_original_defect_7_codes_used_and_perplexity_are_recorded(some):
    config = VQVAEConfig(channels=8, quantizer="ema")
    still = {"epochs": 1, "learning_rate": 0.0, "kmeans_init": True, "ema_decay": 1.0}  # the model that it begins with
    model = run(dataclasses.replace(VQVAE_TINY, **still, model=config), some, validation=some)
    (row,), (epoch,) = model.info["history"]["steps"], model.info["history"]["epochs"]
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
    assert loaded.info["test"] == model.info["test"] == figures


def test_training_learns(train):
    some = train.subset(torch.arange(400))
    for recipe in (VQVAE_TINY, EMA_TINY):
        steps = run(dataclasses.replace(recipe, epochs=4, learning_rate=3e-3), some).info["history"]["steps"]
        assert steps[-1]["mse"] < 0.4 * steps[0]["mse"]
    recipe = dataclasses.replace(TRANSFORMER_TINY, epochs=4, learning_rate=5e-3)
    steps = run(recipe, some).info["history"]["steps"]
    assert steps[-1]["nats_per_code"] < math.log(64) - 0.3 and steps[-1]["loss"] < steps[0]["loss"] - 0.3


@pytest.mark.parametrize("K", [32, 256])
def test_the_number_of_codes_reaches_both_stages_and_their_files(some, test, tmp_path, monkeypatch, K):
    test, paths = test.subset(torch.arange(40)), [tmp_path / f"{name}.safetensors" for name in ("vqvae", "transformer")]
    config = dataclasses.replace(EMA_TINY.model, num_codes=K)
    vqvae = run(dataclasses.replace(EMA_TINY, model=config), some, paths[0], validation=test, test=test)
    assert vqvae.config.num_codes == K and vqvae.quantizer.codebook.shape == (K, 16)
    assert K // 4 < vqvae.info["test"]["codes_used"] <= K and vqvae.info["test"]["perplexity"] <= K

    options = {"path": paths[1], "validation": test, "test": test, "device": "cpu", "progress": False}
    transformer = train_transformer(TRANSFORMER_TINY, vqvae, some, **options)  # whose recipe says 64, the default
    assert transformer.config.num_codes == transformer.info["recipe"]["model"]["num_codes"] == K
    assert transformer.head.weight.shape == (K + 11, 16)
    assert 0.5 * math.log(K) < transformer.info["test"]["nats_per_code"] < 1.1 * math.log(K)
    codes = sampling.sample(transformer, torch.arange(20) % 10, generator=torch.Generator().manual_seed(0))
    assert K // 2 < codes.max() < K and codes.min() >= 0

    pair = vqlib.load_pair(tmp_path)
    assert same_weights(pair.vqvae, vqvae) and same_weights(pair.transformer, transformer)
    assert pair.generate("Bag", n=2).shape == (2, 1, 28, 28)
    monkeypatch.setattr(loop, "fit", None)  # both are finished: nothing is trained again
    assert same_weights(train_transformer(TRANSFORMER_TINY, pair.vqvae, some, **options), transformer)


# --- interrupted and resumed -----------------------------------------------------------------------------------------

uninterrupted = {}


@pytest.mark.parametrize("step", [1, 3, 7, 12])
@pytest.mark.parametrize("name", TINY)
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(some, tmp_path, often, name, step):
    recipe, path, validation = TINY[name], tmp_path / "m.safetensors", some.subset(torch.arange(20))
    if name not in uninterrupted:
        uninterrupted[name] = run(recipe, some, validation=validation)
    interrupted(recipe, some, path, step, validation=validation)
    assert os.listdir(tmp_path) == (["m.resume.safetensors"] if step > 2 else [])
    resumed = run(recipe, some, path, validation=validation)
    assert same_weights(resumed, uninterrupted[name])
    assert without_seconds(resumed) == without_seconds(uninterrupted[name])
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_a_run_can_be_interrupted_again_and_again(some, tmp_path, often):
    path = tmp_path / "m.safetensors"
    for step in (2, 4, 6, 6, 9):
        interrupted(EMA_TINY, some, path, step)
    assert same_weights(run(EMA_TINY, some, path), run(EMA_TINY, some))


@posix
def test_a_killed_run_ends_where_the_uninterrupted_one_does(some, tmp_path, often):
    path = tmp_path / "m.safetensors"
    killed = forked(killed_worker.killed_at_step, EMA_TINY, path, torch.get_num_threads(), 10)
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL and visible(tmp_path) == ["m.resume.safetensors"]
    assert checkpoints.read(tmp_path / "m.resume.safetensors", "training state")[1]["step"] == 8
    resumed, whole = run(EMA_TINY, some, path), run(EMA_TINY, some)
    assert same_weights(resumed, whole) and without_seconds(resumed) == without_seconds(whole)


def test_ctrl_c_says_where_it_stopped_and_the_run_does_only_what_is_left(some, tmp_path, often, monkeypatch, capsys):
    path, resume, steps = tmp_path / "m.safetensors", tmp_path / "m.resume.safetensors", []
    interrupted(VQVAE_TINY, some, path, 1)
    assert "step 0. No checkpoint" in capsys.readouterr().out
    interrupted(VQVAE_TINY, some, path, 8)
    assert re.search(f"step 7.*{re.escape(str(resume))}.* step 6", capsys.readouterr().out)
    stop_at(monkeypatch, None, None, steps)
    train_vqvae(VQVAE_TINY, some, path=path, device="cpu")
    assert steps == [6, 7, 8, 9, 10, 11]  # from 0
    assert re.search(f"step 6.*{re.escape(str(resume))}", capsys.readouterr().out)


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused_and_kept(some, tmp_path, often):
    path, resume = tmp_path / "m.safetensors", tmp_path / "m.resume.safetensors"
    interrupted(VQVAE_TINY, some, path, 5)
    before = resume.read_bytes()
    for change, n, differs in (
        ({"learning_rate": 2e-3}, 90, "recipe: learning_rate 0.001 there, 0.002 here"),
        ({"model": VQVAEConfig(channels=4)}, 90, "recipe: model channels 8 there, 4 here"),
        ({}, 80, "data"),
    ):
        with pytest.raises(ValueError, match=rf"m.resume.safetensors.*{differs}.*Move it away.*VQLIB_RUNS"):
            run(dataclasses.replace(VQVAE_TINY, **change), some.subset(torch.arange(n)), path)
        assert resume.read_bytes() == before
    tensors, info = checkpoints.read(resume, "training state")
    tensors["totals.right"] = tensors.pop("totals.mse")  # as version 0.1 called the accuracy
    checkpoints.save(resume, "training state", tensors, **info)
    with pytest.raises(ValueError, match="m.resume.safetensors.*version.*only one of them has 'right'.*Move it away"):
        run(VQVAE_TINY, some, path)
    resume.write_bytes(before[:-50])
    with pytest.raises(ValueError, match="m.resume.safetensors.*damaged"):
        run(VQVAE_TINY, some, path)
    assert resume.read_bytes() == before[:-50]


# --- finished --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [EMA_TINY, TRANSFORMER_TINY], ids=["vqvae", "transformer"])
def test_a_finished_run_is_loaded_not_trained_again(some, tmp_path, monkeypatch, capsys, recipe):
    path, resume = tmp_path / "m.safetensors", tmp_path / "m.resume.safetensors"
    first = run(recipe, some, path)
    written = path.read_bytes()
    resume.touch()  # as a run leaves it that is killed just before its end
    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", None)
        again = run(recipe, some, path)
    assert str(path) in capsys.readouterr().out and not resume.exists()
    assert same_weights(first, again) and again.info["history"] == first.info["history"]
    assert path.read_bytes() == written
    for i, (other, n) in enumerate(((dataclasses.replace(recipe, seed=1), 90), (recipe, 80))):  # trained, and both kept
        assert not same_weights(run(other, some.subset(torch.arange(n)), path), first)
        assert f"m.{i + 1}.safetensors" in capsys.readouterr().out
    assert (tmp_path / "m.1.safetensors").read_bytes() == written
    assert {p.name for p in tmp_path.glob("m*")} == {"m.safetensors", "m.1.safetensors", "m.2.safetensors"}


def test_a_transformer_of_another_tokenizer_is_trained_again(some, tmp_path):
    path = tmp_path / "transformer.safetensors"
    first = run(TRANSFORMER_TINY, some, path)
    other = run(VQVAE_TINY, some)
    second = train_transformer(TRANSFORMER_TINY, other, some, path=path, progress=False)
    assert not same_weights(first, second) and (tmp_path / "transformer.1.safetensors").is_file()
    assert checkpoints.load_transformer(path, vqvae=other).info["tokenizer"] == checkpoints.tokenizer_id(other)


# --- what a reader has set for all of PyTorch -------------------------------------------------------------------------


@pytest.mark.parametrize("default", [torch.float64, "meta", None])
@pytest.mark.parametrize("name", TINY)
def test_the_readers_defaults_change_nothing(some, tmp_path, often, monkeypatch, name, default):
    """Another default dtype, another default device, or gradients turned off: to the same bits, resumed too."""
    validation, path, vqvae = some.subset(torch.arange(20)), tmp_path / "m.safetensors", tokenizer()
    monkeypatch.setattr(conftest, "tokenizer", lambda: vqvae)
    usual = run(TINY[name], some, validation=validation)
    with defaults(default) if default else torch.no_grad():
        before = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
        interrupted(TINY[name], some, path, 7, validation=validation)
        model = run(TINY[name], some, path, validation=validation)
        assert (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()) == before
    assert {p.dtype for p in model.parameters()} == {torch.float32} and same_weights(model, usual)
    assert without_seconds(model) == without_seconds(usual)


@pytest.mark.parametrize("name", TINY)
def test_every_stage_can_be_trained_with_deterministic_algorithms(some, tmp_path, often, name):
    torch.use_deterministic_algorithms(True)
    try:
        interrupted(TINY[name], some, tmp_path / "m.safetensors", 7)
        model = run(TINY[name], some, tmp_path / "m.safetensors", test=some)
    finally:
        torch.use_deterministic_algorithms(False)
    assert same_weights(model, run(TINY[name], some)) and model.info["test"]


# --- seeds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_a_seed_means_the_same_weights_and_the_readers_randomness_is_untouched(some, name):
    recipe = dataclasses.replace(TINY[name], epochs=1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = run(recipe, some)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same_weights(first, run(recipe, some))
    assert not same_weights(first, run(dataclasses.replace(recipe, seed=1), some))


def test_every_epoch_shows_each_picture_once_in_another_order(some, monkeypatch):
    seen, original = [], VQVAEStage.loss

    def loss(stage, batch):
        seen.append(batch.examples().tolist())
        return original(stage, batch)

    monkeypatch.setattr(VQVAEStage, "loss", loss)
    run(VQVAE_TINY, some)
    assert [len(batch) for batch in seen] == [16, 16, 16, 16, 16, 10] * 2
    orders = [sum(seen[6 * e : 6 * e + 6], []) for e in range(2)]
    assert all(sorted(order) == list(range(90)) for order in orders)
    assert orders[0] != orders[1] and list(range(90)) not in orders


# --- mishaps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(some, tmp_path, often, monkeypatch, bad):
    original, calls = VQVAEStage.loss, []

    def loss(stage, batch):
        calls.append(1)
        return original(stage, batch) * (bad if len(calls) > 5 else 1)

    monkeypatch.setattr(VQVAEStage, "loss", loss)
    with pytest.raises(FloatingPointError, match="loss .*step 6.*0.001"):
        run(VQVAE_TINY, some, tmp_path / "m.safetensors")
    kept, info = checkpoints.read(tmp_path / "m.resume.safetensors", "training state")
    assert info["step"] == 4 and all(t.isfinite().all() for t in kept.values())


@pytest.mark.parametrize("pressed", [3, 4])
def test_ctrl_c_between_two_rows_does_not_save_a_loss_that_is_not_finite(some, tmp_path, monkeypatch, pressed):
    """The loss is NaN from the third step on; no row is logged before the sixth."""
    original, calls, path = VQVAEStage.loss, [], tmp_path / "m.safetensors"

    def loss(stage, batch):
        calls.append(1)
        if len(calls) in (2, pressed):
            signal.raise_signal(signal.SIGINT)
        return original(stage, batch) * (float("nan") if len(calls) > 2 else 1)

    monkeypatch.setattr(VQVAEStage, "loss", loss)
    with pytest.raises(KeyboardInterrupt):
        run(VQVAE_TINY, some, path)
    before = (tmp_path / "m.resume.safetensors").read_bytes()
    with pytest.raises((FloatingPointError, KeyboardInterrupt), match=f"loss .*step {pressed}"):
        run(VQVAE_TINY, some, path)  # (an interrupt that nobody expects would end all tests)
    assert (tmp_path / "m.resume.safetensors").read_bytes() == before
    assert checkpoints.read(tmp_path / "m.resume.safetensors", "training state")[1]["step"] == 2


def test_a_folder_that_cannot_be_written_is_found_out_before_the_first_step(some, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(VQVAEStage, "loss", None)
    with pytest.raises(OSError, match="file.*VQLIB_RUNS"):
        run(VQVAE_TINY, some, tmp_path / "file" / "m.safetensors")
    with pytest.raises(IsADirectoryError, match=f"{tmp_path}.*folder"):
        run(VQVAE_TINY, some, tmp_path)


def test_arguments_in_each_others_place_are_refused_by_name(some):
    for call, name in (
        (lambda: train_vqvae(some, VQVAE_TINY), "recipe.*VQVAERecipe.*Dataset"),
        (lambda: train_vqvae(TRANSFORMER_TINY, some), "recipe.*VQVAERecipe.*TransformerRecipe"),
        (lambda: train_classifier(VQVAE_TINY, some), "recipe.*ClassifierRecipe.*VQVAERecipe"),
        (lambda: train_transformer(TRANSFORMER_TINY, some, tokenizer()), "vqvae.*VQVAE.*Dataset"),
        (lambda: train_transformer(TRANSFORMER_TINY, tokenizer(), some.pixels), "train.*Dataset"),
    ):
        with pytest.raises(ValueError, match=name):
            call()


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_an_empty_set_is_refused_by_name_before_anything_is_trained(some, tmp_path, monkeypatch, name):
    sets = {"train": some, "validation": some, "test": some, name: some.subset(torch.arange(0))}
    monkeypatch.setattr(loop, "fit", None)
    for recipe in TINY.values():
        with pytest.raises(ValueError, match=name):
            run(recipe, sets["train"], tmp_path / "m.safetensors", validation=sets["validation"], test=sets["test"])


# --- devices and precision -------------------------------------------------------------------------------------------


def test_the_device_is_one_that_is_there():
    assert training.pick_device() in ("cuda", "mps", "cpu")
    assert torch.zeros(2, device=training.pick_device()).sum() == 0


def test_the_gain_of_bf16_is_measured_where_bf16_is_used():
    assert training.bf16_gain("cpu") > 0
    assert training.bf16_gain("mps") == 0  # never tried there


@pytest.mark.parametrize(("gain", "mixed"), [(3.0, True), (1.1, False), (0.02, False)])
def test_bf16_is_used_if_it_is_clearly_faster_and_the_recipe_allows_it(some, monkeypatch, capsys, gain, mixed):
    monkeypatch.setattr(devices, "bf16_gain", lambda device: gain)
    exact, free = (dataclasses.replace(VQVAE_TINY, epochs=1, mixed_precision=value) for value in (False, True))
    model, words = run(free, some, progress=True), capsys.readouterr().out
    history = model.info["history"]
    assert history["bf16"] is mixed and history["bf16_gain"] == pytest.approx(gain) and f"{gain:.2g} times" in words
    assert words.startswith(f"computing in {'bf16' if mixed else 'float32'}:")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    plain = run(exact, some, progress=True)
    assert plain.info["history"]["bf16"] is False
    assert capsys.readouterr().out.startswith("computing in float32, as the recipe")
    assert same_weights(model, plain) is not mixed


def test_a_run_goes_on_in_the_precision_in_which_it_began(some, tmp_path, often, monkeypatch):
    recipe, path = dataclasses.replace(TRANSFORMER_TINY, mixed_precision=True), tmp_path / "m.safetensors"
    monkeypatch.setattr(devices, "bf16_gain", lambda device: 3.0)
    whole = run(recipe, some)
    interrupted(recipe, some, path, 7)
    monkeypatch.setattr(devices, "bf16_gain", lambda device: 0.5)
    resumed = run(recipe, some, path)
    assert same_weights(resumed, whole) and resumed.info["history"]["bf16"] is True
    assert not same_weights(resumed, run(recipe, some))  # or this test would not notice


def test_qk_norm_under_autocast_warns_of_nothing_and_does_what_float32_does():
    model, tokens = lively_transformer(qk_norm=True).float(), torch.arange(50)[None]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = model(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            q, k, v = model.blocks[0].attention.queries_keys_values(model.embed(tokens))
            assert q.dtype == k.dtype == v.dtype == torch.bfloat16
            assert (model(tokens) - exact).norm() < 0.05 * exact.norm()


# --- what the Transformer is trained on ------------------------------------------------------------------------------


@pytest.fixture
def pair_of(some):
    return encode_pixels(tokenizer(), some.pixels), some.labels


def noted_inputs(stage):
    """A list to which each input of the stage's model is added."""
    seen = []
    stage.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    return seen


def test_original_defect_5_a_training_sequence_is_one_picture(pair_of):
    stage = TransformerStage(TRANSFORMER_TINY, pair_of, "cpu")
    codes, labels = pair_of
    sequences = torch.cat([64 + labels[:, None], codes.flatten(1), torch.full((90, 1), 74)], 1)
    assert torch.equal(stage.tokens, sequences)
    seen = noted_inputs(stage)
    stage.loss(Batch(torch.tensor([3, 5])))
    assert torch.equal(seen[0][:, 1:], sequences[[3, 5], 1:50])


def test_a_share_of_the_sequences_begins_with_any_class(pair_of):
    stage = TransformerStage(TRANSFORMER_TINY, pair_of, "cpu")
    whole, seen = stage.tokens.clone(), noted_inputs(stage)
    for _ in range(20):
        stage.loss(Batch(torch.arange(90)))
    firsts = torch.stack([batch[:, 0] for batch in seen])
    any_class = firsts == 74
    assert 0.25 < any_class.float().mean() < 0.35 and (any_class.any(0).float().mean() > 0.95)
    assert torch.equal(firsts[~any_class], (64 + pair_of[1]).expand(20, 90)[~any_class])
    assert all(torch.equal(batch[:, 1:], whole[:, 1:50]) for batch in seen) and torch.equal(stage.tokens, whole)
    never = TransformerStage(dataclasses.replace(TRANSFORMER_TINY, drop_class=0.0), pair_of, "cpu")
    seen = noted_inputs(never)
    never.loss(Batch(torch.arange(90)))
    assert torch.equal(seen[0], whole[:, :50])


def test_cross_entropy_is_over_the_whole_vocabulary(pair_of):
    stage = TransformerStage(dataclasses.replace(TRANSFORMER_TINY, drop_class=0.0), pair_of, "cpu")
    stage.model.eval()
    loss = stage.loss(Batch(torch.arange(4)))
    logits = stage.model(stage.tokens[:4, :50])
    assert logits.shape[-1] == 75
    assert loss.item() == pytest.approx(F.cross_entropy(logits.flatten(0, 1), stage.tokens[:4, 1:].flatten()).item())


def test_pictures_of_ones_own():
    """The README's own data: any (N, 28, 28) uint8 pixels with labels in 0…9."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (64, 28, 28), dtype=torch.uint8, generator=generator)
    own = data.Dataset(pixels, torch.arange(64) % 10, "mine")
    vqvae = run(dataclasses.replace(EMA_TINY, epochs=1), own)
    transformer = train_transformer(dataclasses.replace(TRANSFORMER_TINY, epochs=1), vqvae, own, progress=False)
    assert transformer.info["tokenizer"] == checkpoints.tokenizer_id(vqvae)


# --- the command line ------------------------------------------------------------------------------------------------

FILES = ["transformer.safetensors", "vqvae.safetensors"]


def main(*arguments):
    command.main([*arguments, "--device", "cpu"])


@pytest.fixture
def tiny(monkeypatch):
    """The command line with tiny recipes and data, and a record of what it loaded and what each stage was given."""
    best = [dataclasses.replace(recipe, epochs=1, batch_size=100) for recipe in (EMA_TINY, TRANSFORMER_TINY)]
    original = [dataclasses.replace(recipe, seed=1) for recipe in best]
    monkeypatch.setattr(recipes, "RECIPES", {"best": best, "original": original})
    loaded, given, load = [], {}, data.load

    def spy_load(split, **options):
        loaded.append((split, options))
        return load(split, mini=True).subset(torch.arange({"train": 240, "test": 60}[split]))

    def spy(name, function):
        def spying(*arguments, **options):
            given[name] = inspect.signature(function).bind(*arguments, **options).arguments
            return function(*arguments, **options)

        monkeypatch.setattr(stages, name, spying)

    monkeypatch.setattr(data, "load", spy_load)
    spy("train_vqvae", train_vqvae)
    spy("train_transformer", train_transformer)
    return loaded, given


def test_the_command_line_trains_both_stages_into_the_runs_folder(tiny, tmp_path, capsys):
    main("all")
    runs = tmp_path / "runs"
    assert sorted(os.listdir(runs)) == FILES
    vqvae, transformer = vqlib.load_pair()
    assert vqvae.info["path"] == str(runs / "vqvae.safetensors") and "240 pictures" in vqvae.info["data"]
    assert vqvae.info["test"]["pictures"] == transformer.info["test"]["pictures"] == 60
    assert tiny[0] == [(split, {"mini": False, "name": "FashionMNIST"}) for split in ("train", "test")]
    said = capsys.readouterr().out
    assert f"tokenizer: {runs / 'vqvae.safetensors'}" in said and f"mse {vqvae.info['test']['mse']:.5g}" in said
    assert "debris" not in said and "shipped pair" not in said
    main("all", "--recipe", "original")  # in a folder of its own, so ours stays
    assert vqlib.load_pair(runs / "original").vqvae.info["recipe"]["seed"] == 1
    assert same_weights(checkpoints.load_vqvae(), vqvae) and same_weights(checkpoints.load_transformer(), transformer)


def test_the_names_of_version_0_1_still_work(tiny, tmp_path):
    main("vqvae", "--recipe", "ancestor", "--sample", "--batch-size", "240")
    assert [options["mini"] for _, options in tiny[0]] == [True, True]
    (path,) = (tmp_path / "runs").rglob("*.safetensors")
    assert path == tmp_path / "runs" / "original" / "mini" / "vqvae.safetensors"
    recipe = checkpoints.load_vqvae(path).info["recipe"]
    assert (recipe["seed"], recipe["batch_size"]) == (1, 240)


@pytest.mark.parametrize(
    "arguments, folder",
    [
        ([], ""),
        (["--recipe", "original"], "original"),
        (["--holdout"], "holdout"),
        (["--mini"], "mini"),
        (["--data", "MNIST"], "MNIST"),
        (["--data", "KMNIST", "--recipe", "ancestor", "--holdout"], "KMNIST/original/holdout"),
        (["--recipe", "ancestor", "--holdout", "--sample"], "original/holdout/mini"),
    ],
)
def test_each_kind_of_run_has_a_folder_of_its_own(tmp_path, capsys, arguments, folder):
    options, runs = command.parse(["all", "--device", "cpu", *arguments]), tmp_path / "runs"
    assert command.folder_of(options) == runs / folder
    if "original" in folder:  # one that version 0.1 began is gone on with, and named
        old = runs / folder.replace("original", "ancestor")
        old.mkdir(parents=True)
        assert capsys.readouterr().out == "" and command.folder_of(options) == old
        assert str(old) in capsys.readouterr().out
        (runs / folder).mkdir(parents=True)
        assert command.folder_of(options) == runs / folder


def test_finished_runs_of_version_0_1_are_known_for_what_they_are(test, tmp_path, monkeypatch, capsys):
    """files_of_0_1/make.py trained them, by these recipes on these pictures."""
    quick = {"epochs": 1, "batch_size": 10, "mixed_precision": False}
    small = VQVAEConfig(code_dim=2, channels=2, residual_blocks=0, quantizer="ema")
    vqvae = dataclasses.replace(training.ORIGINAL_VQVAE, **quick, model=small)
    small = dataclasses.replace(training.ORIGINAL_TRANSFORMER.model, d_model=4, n_heads=2, n_layers=1, context=50)
    transformer = dataclasses.replace(training.ORIGINAL_TRANSFORMER, **quick, model=small)
    small = dataclasses.replace(training.JUDGE.model, channels=1, features=4)
    judge = dataclasses.replace(training.JUDGE, **quick, model=small)
    old = tmp_path / "runs" / "ancestor"
    shutil.copytree(VERSION_0_1, old)
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    twenty = test.subset(torch.arange(20))
    monkeypatch.setattr(loop, "fit", None)
    monkeypatch.setattr(data, "load", lambda split, **options: twenty)
    monkeypatch.setattr(recipes, "RECIPES", {"best": (), "original": (vqvae, transformer)})
    main("all", "--recipe", "original")
    assert run(judge, twenty, old / "judge.safetensors").info["recipe"] == judge.as_json()
    assert str(old / "vqvae.safetensors") in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before


def test_original_defect_5_held_out_pictures_are_never_trained_on_and_the_test_set_is_untouched(tiny, tmp_path, capsys):
    main("all", "--holdout")
    loaded, given = tiny
    assert [split for split, _ in loaded] == ["train"]
    assert sorted(os.listdir(tmp_path / "runs" / "holdout")) == FILES
    held_out = set()
    for arguments in (given["train_vqvae"], given["train_transformer"]):
        part, validation = arguments["train"], arguments["validation"]
        assert arguments.get("test") is None and (len(part), len(validation)) == (220, 20)
        pictures = {p.numpy().tobytes() for p in validation.pixels}
        assert len(pictures) == 20 and not pictures & {p.numpy().tobytes() for p in part.pixels}
        held_out |= pictures
    assert len(held_out) == 20  # both stages hold out the same pictures
    info = checkpoints.load_vqvae(tmp_path / "runs" / "holdout" / "vqvae.safetensors").info
    assert "test" not in info and info["history"]["epochs"][0]["pictures"] == 20
    assert "validation: epoch 1, mse" in capsys.readouterr().out


def test_one_stage_can_be_trained_alone(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path / "shipped")
    checkpoints.save_model(tmp_path / "shipped" / "vqvae.safetensors", tokenizer())
    main("transformer")  # on the shipped tokenizer: there is no other
    assert checkpoints.load_transformer().info["tokenizer"] == checkpoints.tokenizer_id(tokenizer())
    assert os.listdir(tmp_path / "runs") == ["transformer.safetensors"]


@pytest.mark.parametrize("option", ["--mini", "--holdout"])
def test_a_run_ends_with_a_table_beside_what_needs_no_learning(tiny, some, capsys, option):
    main("all", option)
    said, run = capsys.readouterr().out, tiny[1]["train_transformer"]
    train, scored = run["train"], run["validation"] or run["test"]
    vqvae, transformer = vqlib.load_pair(option.strip("-"))
    head, mse, nats = said.splitlines()[-4:][:3] if option == "--mini" else said.splitlines()[-3:]
    assert head.startswith(f"on {len(scored)} ") and len({line.index("  ", 30) for line in (head, mse, nats)}) <= 3
    figures = [m.info["test"] if option == "--mini" else m.info["history"]["epochs"][-1] for m in (vqvae, transformer)]
    images = data.to_images(scored.pixels)
    thumbnails = evaluation.mse(baselines.thumbnails(images), images)
    assert f"{figures[0]['mse']:.4f}" in mse and f"thumbnails {thumbnails:.4f}" in mse
    patches = float(re.search(r"patches ([0-9.]+)", mse)[1])
    assert 0.005 < patches < thumbnails
    codes, others = (encode_pixels(vqvae, part.pixels) for part in (train, scored))
    histogram = baselines.Histogram.fit(codes, train.labels).nats_per_code(others, scored.labels)
    assert f"{figures[1]['nats_per_code']:.3f}" in nats
    assert f"uniform {math.log(64):.3f}" in nats and f"histogram {histogram:.3f}" in nats
    first, last = " ".join(said.splitlines()[:4]), said.splitlines()[-1]
    assert ("debris" in first, "shipped=True" in last) == (option == "--mini",) * 2


@pytest.mark.parametrize("arguments", [["--holdout"], ["--mini"], ["--data", "MNIST"], ["--recipe", "original"]])
def test_a_run_apart_takes_its_own_tokenizer_not_the_shipped_one(tiny, tmp_path, arguments):
    """That one saw the pictures held out, or is of other pictures, or another recipe."""
    with pytest.raises(SystemExit, match="vqvae.safetensors"):
        main("transformer", *arguments)
    assert not (tmp_path / "runs").exists()


def test_a_run_apart_leaves_what_is_used_from_then_on_alone(tiny, tmp_path):
    main("all", "--data", "MNIST")
    assert {options["name"] for _, options in tiny[0]} == {"MNIST"}
    assert os.listdir(tmp_path / "runs") == ["MNIST"] and sorted(os.listdir(tmp_path / "runs" / "MNIST")) == FILES
    assert vqlib.load_pair().vqvae.info["path"] == str(checkpoints.SHIPPED / "vqvae.safetensors")  # clothes


def test_the_command_line_trains_the_two_judges(tiny, tmp_path, monkeypatch, capsys):
    for name in ("JUDGE", "CRITIC"):
        recipe = dataclasses.replace(getattr(recipes, name), epochs=1, batch_size=100, model=CLASSIFIER_TINY.model)
        monkeypatch.setattr(recipes, name, recipe)
    main("classifiers", "--mini")
    folder = tmp_path / "runs" / "mini"
    judge, critic = (checkpoints.load_classifier(name, folder / f"{name}.safetensors") for name in ("judge", "critic"))
    assert sorted(os.listdir(folder)) == ["critic.safetensors", "judge.safetensors"]
    assert not same_weights(judge, critic) and judge.info["test"]["pictures"] == 60
    said = capsys.readouterr().out
    assert f"accuracy {judge.info['test']['accuracy']:.5g}" in said
    assert re.search(f"(?m)^accuracy of the judge +{judge.info['test']['accuracy']:.1%} +chance 10.0%$", said)
    monkeypatch.setattr(loop, "fit", None)
    main("classifiers", "--mini")
    assert same_weights(checkpoints.load_classifier("judge", folder / "judge.safetensors"), judge)


def test_the_command_line_trains_decoders_for_the_readers_codes(tiny, tmp_path, monkeypatch, capsys):
    crisp = dataclasses.replace(DECODER_TINY, name="crisp", epochs=1, batch_size=100, fabrics=False)
    decoders = {"crisp": crisp, "fabrics": dataclasses.replace(crisp, name="fabrics", fabrics=True)}
    monkeypatch.setattr(recipes, "DECODERS", decoders)
    with pytest.raises(SystemExit, match="vqvae first"):
        main("decoders", "--mini")
    main("all", "--mini")
    main("crisp", "--mini")
    folder = tmp_path / "runs" / "mini"
    assert sorted(os.listdir(folder)) == ["crisp.safetensors", *FILES]
    main("decoders", "--mini")
    assert sorted(os.listdir(folder)) == ["crisp.safetensors", "fabrics.safetensors", *FILES]
    pair = vqlib.load_pair("mini", decoder="crisp")
    figures = pair.vqvae.decoder.info["test"]
    assert figures["pictures"] == 60 and figures["mse"] != pair.vqvae.info["test"]["mse"]
    said = capsys.readouterr().out
    assert f"mse {figures['mse']:.5g}" in said and f"soft {pair.vqvae.info['test']['mse']:.4f}" in said
    assert vqlib.load_pair("mini", decoder="fabrics").fabrics(pair.generate("Bag", 2), n=3).shape == (6, 1, 28, 28)


def test_without_data_the_command_line_names_its_own_option(monkeypatch, tmp_path):
    monkeypatch.setenv("VQLIB_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match=r"VQLIB_DATA.*--mini\.$") as refusal:
        main("all")
    assert "mini=True" not in str(refusal.value)


def test_there_is_no_mini_set_of_other_pictures(capsys):
    with pytest.raises(SystemExit):
        main("all", "--mini", "--data", "MNIST")
    assert "no mini set of MNIST" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, why",
    [
        ([], "stage"),
        (["everything"], "'everything'"),
        (["all", "--recipe", "none"], "'none'"),
        (["all", "--device", "gpu"], "'gpu'"),
        (["all", "--device", "cuda:99"], "'cuda:99'"),
        (["all", "--device", "meta:x"], "'meta:x'"),
        (["all", "--device", "cpu", "--batch-size", "0"], "--batch-size"),
        (["classifiers", "--device", "cpu", "--recipe", "original"], "--recipe"),
        (["decoders", "--device", "cpu"], "torchrun"),
    ],
)
def test_the_command_line_refuses_what_it_does_not_know(tiny, arguments, why, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "launched", lambda: "decoders" in arguments)
    with pytest.raises(SystemExit):
        command.main(arguments)
    said = capsys.readouterr().err
    assert "vqlib.training: error" in said and why in said and tiny[0] == []


def test_weights_that_are_not_finite_spare_the_checkpoint(some, tmp_path, often, monkeypatch):
    """The loss of a step may be finite, and its gradient not."""
    original, calls = VQVAEStage.after_step, []

    def after_step(stage, batch):
        calls.append(1)
        if len(calls) == 6:
            stage.model.decoder[0].weight.data[0] = float("nan")
        original(stage, batch)

    monkeypatch.setattr(VQVAEStage, "after_step", after_step)
    with pytest.raises(FloatingPointError, match="decoder.*step 6"):
        run(VQVAE_TINY, some, tmp_path / "m.safetensors")
    kept, info = checkpoints.read(tmp_path / "m.resume.safetensors", "training state")
    assert info["step"] == 4 and all(t.isfinite().all() for t in kept.values())


def test_ctrl_c_in_the_last_evaluation_is_not_swallowed(some, tmp_path, monkeypatch):
    original, calls = VQVAEStage.evaluate, []

    def evaluate(stage, dataset):
        calls.append(1)
        if len(calls) == VQVAE_TINY.epochs:
            signal.raise_signal(signal.SIGINT)
        return original(stage, dataset)

    monkeypatch.setattr(VQVAEStage, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        run(VQVAE_TINY, some, tmp_path / "m.safetensors", validation=some)
    assert os.listdir(tmp_path) == ["m.resume.safetensors"]


def test_a_recipe_that_diverges_says_so(some):
    """Moving averages of NaN vectors must not be what stops it."""
    with pytest.raises(FloatingPointError, match="1000000"):
        run(dataclasses.replace(EMA_TINY, learning_rate=1e6, warmup_steps=0), some)


def test_a_result_that_cannot_be_saved_leaves_the_earlier_one(some, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    run(VQVAE_TINY, some, path)
    before, save = path.read_bytes(), checkpoints.save_model

    def full(*arguments, **info):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints, "save_model", full)
    with pytest.raises(OSError, match="No space"):
        run(dataclasses.replace(VQVAE_TINY, seed=1), some, path)
    assert path.read_bytes() == before
    monkeypatch.setattr(checkpoints, "save_model", save)
    run(dataclasses.replace(VQVAE_TINY, seed=1), some, path)
    assert (tmp_path / "m.1.safetensors").read_bytes() == before and path.read_bytes() != before
