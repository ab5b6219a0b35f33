"""The stages of notebook 08: what training sees, and never sees; the losses that it steps on; the command line."""

import dataclasses
import math
import os
import re

import pytest
import torch
from conftest import (
    CAPTION_TINY,
    CONTRASTIVE_TINY,
    DVAE_TINY,
    STEPS,
    TINY,
    TRANSFORMER_TINY,
    VQVAE_TINY,
    pictures,
    run,
    tokenizer,
)

import vqlib
from vqlib import captions, checkpoints, data, dvae, evaluation
from vqlib.captions import BRIGHTNESS, NEVER, SIZE, WORDS
from vqlib.contrastive import WORDS_ONLY, ContrastivePair, best_of, info_nce
from vqlib.sampling import log_likelihood
from vqlib.tokens import encode_pixels
from vqlib.training import Batch, dalle, distributed, recipes, train_captions, train_contrastive, train_dvae
from vqlib.training import __main__ as command
from vqlib.transformer import Transformer
from vqlib.vqvae import VQVAE, VQVAEConfig

VOCABULARY = CAPTION_TINY.model.vocabulary
STAGES = {"captions": dalle.CaptionStage, "contrastive": dalle.ContrastiveStage}


def stage_of(name, n=90, **changes):
    """The stage of this tiny recipe, on so many pictures."""
    recipe, stage_class = dataclasses.replace(TINY[name], **changes), STAGES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return stage_class(recipe, stage_class.examples(recipe, pictures(n), tokenizer(), False), "cpu")


# --- combinations that are kept from training ------------------------------------------------------------------------


def forbidden(shown, label, words):
    """Whether one of the words that this class never occurs with is among those shown."""
    return bool({NEVER[(label + i) % 7] for i in range(words)} & set(shown))


def slow_examples(dataset, words, turned=3):
    """One by one: the pictures that training may see, then those upside down; and those that it may not."""
    facts = captions.facts_of(dataset.pixels, dataset.labels).tolist()
    ways = [(i, False) for i in range(len(dataset))] + [(i, True) for i in range(0, len(dataset), turned)]
    kept, away = [], []
    for i, over in ways:
        brightness, size, _, label = facts[i]
        shown = [BRIGHTNESS[brightness], SIZE[size]] + ["upside-down"] * over
        pixels = dataset.pixels[i].flip(0) if over else dataset.pixels[i]
        (away if forbidden(shown, label, words) else kept).append(pixels)
    return torch.stack(kept), torch.stack(away)


@pytest.mark.parametrize("withheld", [1, 2, 4])
def test_stages_hold_no_picture_of_a_combination_that_is_withheld(withheld):
    kept, away = slow_examples(pictures(300), withheld)
    assert len(away) > 0.15 * len(kept)
    stage = stage_of("captions", 300, withheld=withheld)
    assert torch.equal(stage.codes, encode_pixels(tokenizer(), kept).flatten(1)) and stage.size == len(kept)
    pair = stage_of("contrastive", 300, withheld=withheld)
    assert torch.equal(pair.pixels, kept) and pair.size == len(kept)
    for held in (stage, pair):
        assert len(held.facts) == len(kept) and not captions.withheld(held.facts, withheld).any()


@pytest.fixture
def seen(monkeypatch):
    """What is fed to the models: all tokens, and all images."""
    tokens, images = [], []

    def noting(forward):
        def noted(model, *inputs):
            tokens.append(inputs[-1].clone())
            images.extend(inputs[:-1])
            return forward(model, *inputs)

        return noted

    for kind in (Transformer, ContrastivePair):
        monkeypatch.setattr(kind, "forward", noting(kind.forward))
    return tokens, images


@pytest.mark.parametrize("withheld", [1, 2, 4])
@pytest.mark.parametrize("name", STAGES)
def test_no_batch_that_training_sees_shows_or_names_what_is_withheld(seen, name, withheld):
    some = pictures(300)
    run(dataclasses.replace(TINY[name], withheld=withheld, epochs=1, batch_size=50), some)
    kept, away = slow_examples(some, withheld)
    first = (VOCABULARY if name == "captions" else WORDS_ONLY).end + 1
    tokens = torch.cat(seen[0])
    assert len(tokens) == len(kept)
    named = 0
    for row in tokens[:, :8].tolist():
        words = [WORDS[token - first] for token in row if first <= token < first + len(WORDS)]
        label = next((captions.CLASSES.index(word) for word in words if word in captions.CLASSES), None)
        assert label is None or not forbidden(words, label, withheld)
        named += label is not None
    assert named == len(kept) if name == "contrastive" else 0.5 * len(kept) < named < len(kept)
    if name == "captions":
        shown = {bytes(row) for row in tokens[:, 8:].to(torch.uint8).numpy()}
        may, never = ({bytes(row) for row in codes_of(part)} for part in (kept, away))
    else:
        shown = {row.numpy().tobytes() for row in data.to_pixels(torch.cat(seen[1]))}
        may, never = ({row.numpy().tobytes() for row in part} for part in (kept, away))
    assert shown == may and not shown & (never - may) and len(never - may) > 0.9 * len(away)


def codes_of(pixels):
    """(N, 48) uint8: of a training sequence the model is fed all codes but the last."""
    return encode_pixels(tokenizer(), pixels).flatten(1)[:, :-1].to(torch.uint8).numpy()


def test_nothing_withheld_is_every_picture():
    stage = stage_of("contrastive", withheld=0, turned=1)
    assert torch.equal(stage.pixels, torch.cat([pictures().pixels, pictures().pixels.flip(1)]))
    assert stage.facts[:, 2].tolist() == [0] * 90 + [1] * 90


def test_pictures_of_nothing_but_what_is_withheld_are_refused(some):
    facts = captions.facts_of(some.pixels, some.labels)
    dark = some.subset(((facts[:, 3] == 0) & (facts[:, 0] == 0)).nonzero().flatten())  # dark t-shirts
    assert len(dark) >= 1
    for name in STAGES:
        with pytest.raises(ValueError, match="size"):
            run(TINY[name], dark)


# --- one stream ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1 / 8, 1 / 2])
def test_the_loss_is_an_eighth_of_the_texts_and_seven_of_the_codes_or_as_the_recipe_says(seen, weight):
    stage = stage_of("captions", drop_caption=0.0, text_weight=weight)
    stage.model.eval()
    assert CAPTION_TINY.text_weight == recipes.CAPTIONS.text_weight == 1 / 8
    batch = Batch(torch.arange(20), generator=torch.Generator().manual_seed(0))
    loss = stage.loss(batch)
    (inputs,) = seen[0]
    tokens = torch.cat([inputs, stage.codes[:20, -1:]], 1)
    assert torch.equal(tokens[:, 8:], stage.codes[:20])
    text, codes = captions.stream_loss(stage.model(inputs), tokens, VOCABULARY)
    assert loss.item() == pytest.approx(text.item() * weight + codes.item() * (1 - weight), rel=1e-6)
    assert text.item() != pytest.approx(codes.item(), rel=0.01)  # or the weights would not show
    sums = {name: stage.totals[name].item() / 20 for name in ("nats_per_word", "nats_per_code")}
    assert sums == pytest.approx({"nats_per_word": text.item(), "nats_per_code": codes.item()})


def test_a_share_of_the_captions_is_dropped_in_all_eight_places(seen):
    stage = stage_of("captions")
    for seed in range(20):
        stage.loss(Batch(torch.arange(80), generator=torch.Generator().manual_seed(seed)))
    starts = torch.stack(seen[0])[:, :, :8]
    end = starts == VOCABULARY.end
    assert torch.equal(end.any(-1), end.all(-1))
    assert 0.26 < end.all(-1).float().mean() < 0.34 and (end.all(-1).any(0).float().mean() > 0.95)
    assert recipes.CAPTIONS.drop_caption == 0.1
    assert len(starts[:, 0].unique(dim=0)) > 3  # the same picture, in other words each time


def test_each_caption_is_of_its_picture(seen):
    stage = stage_of("captions", drop_caption=0.0)
    index = torch.tensor([5, 70, 3, 81])
    stage.loss(Batch(index, generator=torch.Generator().manual_seed(0)))
    texts = [" ".join(WORDS[t - 75] for t in row if t < 75 + len(WORDS)) for row in seen[0][0][:, :8].tolist()]
    stated = captions.read_captions(texts)
    assert ((stated == stage.facts[index]) | (stated < 0)).all()
    assert torch.equal(seen[0][0][:, 8:], stage.codes[index, :-1])


@pytest.mark.parametrize("withheld", [1, 3])
def test_what_is_seen_and_what_is_not_are_scored_apart(test, withheld):
    few = test.subset(torch.arange(0, 500, 10))
    model = run(dataclasses.replace(CAPTION_TINY, withheld=withheld), pictures(), test=few)
    figures, (pixels, facts) = model.info["test"], dalle.described(few, 3)
    away = torch.tensor(
        [
            forbidden([BRIGHTNESS[b], SIZE[s]] + ["upside-down"] * turned, label, withheld)
            for b, s, turned, label in facts.tolist()
        ]
    )
    start = captions.text_tokens(captions.write_captions(facts), VOCABULARY)
    nats = -log_likelihood(model, encode_pixels(tokenizer(), pixels), start) / 49
    expected = {"nats_per_code": nats[~away].mean().item(), "nats_per_code_unseen": nats[away].mean().item()}
    assert figures == pytest.approx(expected | {"pictures": 67}, rel=1e-5)


# --- the other two ---------------------------------------------------------------------------------------------------


def test_the_discrete_vae_steps_on_the_evidence_lower_bound(some):
    recipe = dataclasses.replace(DVAE_TINY, kl=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stage = dalle.DVAEStage(recipe, some, "cpu")
    index, done = torch.arange(7), 0.05
    loss = stage.loss(Batch(index, generator=torch.Generator().manual_seed(1), done=done))
    images, model = data.to_images(some.pixels[:7]), stage.model
    noise = dvae.gumbel_noise((7, 7, 7, 16), torch.Generator().manual_seed(1))
    logits = model.encoder(images)
    weights = ((logits.movedim(1, -1) + noise) / dvae.temperature_at(done)).softmax(-1)
    mu, ln_b = model.decoder.parameters_of((weights @ model.quantizer.codebook).movedim(-1, 1))
    laplace = torch.distributions.Laplace(mu, ln_b.exp())
    x = 0.5 + 0.4 * images
    nats = -(laplace.log_prob(x.logit()) - (x * (1 - x)).log())
    q = logits.softmax(1)
    kl = (q * (q * 16).log()).sum()  # of the whole batch
    expected = (nats.sum() + dvae.kl_weight_at(done, 0.5) * kl) / (7 * 784)  # nats per pixel, both of them
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    error = (model.decoder((weights @ model.quantizer.codebook).movedim(-1, 1)) - images).div(2).pow(2).mean()
    assert stage.totals["mse"].item() / 7 == pytest.approx(error.item(), rel=1e-4)
    assert torch.equal(stage.totals["codes"], logits.argmax(1).flatten().bincount(minlength=16))


def test_the_contrastive_loss_is_that_of_pictures_and_their_captions(seen):
    stage = stage_of("contrastive")
    loss = stage.loss(Batch(torch.arange(20), generator=torch.Generator().manual_seed(0)))
    (tokens,), (images,) = (list(part) for part in seen)
    assert torch.equal(images, data.to_images(stage.pixels[:20]))
    texts = [" ".join(WORDS[t - 1] for t in row if t <= len(WORDS)) for row in tokens.tolist()]
    stated = captions.read_captions(texts)
    assert ((stated == stage.facts[:20]) | (stated < 0)).all()
    expected = info_nce(*stage.model(images, tokens), 1 / 0.07)  # the scale that CLIP starts with
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_share_of_pictures_that_find_their_caption(test):
    few = test.subset(torch.arange(0, 500, 2))
    model = run(dataclasses.replace(CONTRASTIVE_TINY, epochs=6, learning_rate=1e-2), pictures(300), test=few)
    pixels, facts = dalle.described(few, 3)
    every = torch.cartesian_prod(*(torch.arange(len(kind)) for kind in captions.KINDS))
    with torch.no_grad():
        words = captions.text_tokens(captions.write_captions(every), WORDS_ONLY)
        features, texts = model(data.to_images(pixels), words)
    nearest = [every[(texts @ feature).argmax()].tolist() for feature in features]
    found = [facts[i].tolist() == caption for i, caption in enumerate(nearest)]
    assert model.info["test"] == {"accuracy": sum(found) / len(found), "pictures": len(found)} and any(found)
    assert dalle.CHOICES == len(every) == 180


@pytest.mark.parametrize(
    "name, figure, ln", [("dvae", "mse", None), ("captions", "nats_per_code", 64), ("captions", "nats_per_word", 25)]
)
def test_training_learns(train, name, figure, ln):
    recipe = dataclasses.replace(TINY[name], epochs=4, learning_rate=5e-3)
    steps = run(recipe, train.subset(torch.arange(400))).info["history"]["steps"]
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.1
    assert steps[-1][figure] < (0.7 * steps[0][figure] if ln is None else math.log(ln) - 0.3)


def test_the_pair_learns_to_choose(train):
    model = run(dataclasses.replace(CONTRASTIVE_TINY, epochs=4, learning_rate=1e-2), train.subset(torch.arange(400)))
    steps = model.info["history"]["steps"]
    assert steps[-1]["nats"] < steps[0]["nats"] - 0.5 and steps[0]["nats"] < math.log(16) + 1.5
    images, labels = data.to_images(train.pixels[1000:1200]), train.labels[1000:1200]
    assert (labels[best_of(model, images, "a trouser", 10)] == 1).float().mean() > 0.5


# --- what is refused -------------------------------------------------------------------------------------------------


def test_arguments_of_another_kind_are_refused_by_name(some):
    for call, name in (
        (lambda: train_dvae(TRANSFORMER_TINY, some), "recipe.*DVAERecipe.*TransformerRecipe"),
        (lambda: train_captions(TRANSFORMER_TINY, tokenizer(), some), "recipe.*CaptionRecipe.*TransformerRecipe"),
        (lambda: train_captions(CAPTION_TINY, some, tokenizer()), "vqvae.*VQVAE.*Dataset"),
        (lambda: train_contrastive(CAPTION_TINY, some), "recipe.*ContrastiveRecipe.*CaptionRecipe"),
        (lambda: train_contrastive(CONTRASTIVE_TINY, some.pixels), "train.*Dataset"),
    ):
        with pytest.raises(ValueError, match=name):
            call()


@pytest.mark.parametrize(
    "recipe, changes",
    [
        (CAPTION_TINY, {"withheld": 5}),
        (CAPTION_TINY, {"turned": 0}),
        (CAPTION_TINY, {"drop_caption": 1.5}),
        (CAPTION_TINY, {"text_weight": -0.1}),
        (CAPTION_TINY, {"model": TRANSFORMER_TINY.model}),
        (TRANSFORMER_TINY, {"model": CAPTION_TINY.model}),
        (CONTRASTIVE_TINY, {"withheld": 5}),
        (CONTRASTIVE_TINY, {"turned": 0}),
        (VQVAE_TINY, {"model": VQVAEConfig(channels=8, quantizer="gumbel")}),
        (DVAE_TINY, {"kl": -1.0}),
        (DVAE_TINY, {"model": VQVAEConfig(channels=8)}),
    ],
    ids=str,
)
def test_a_recipe_that_cannot_be_is_refused(recipe, changes):
    name = {"model": "num_words|quantizer"}.get(next(iter(changes)), next(iter(changes)))
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(recipe, **changes)


def test_they_train_in_one_process(some, monkeypatch):
    for recipe in (DVAE_TINY, CAPTION_TINY, CONTRASTIVE_TINY):
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "world_size", lambda: 2)
            with pytest.raises(ValueError, match="torchrun"):
                run(recipe, some)


def test_a_captioned_model_of_another_tokenizer_is_trained_again(some, tmp_path):
    path = tmp_path / "captions.safetensors"
    run(CAPTION_TINY, some, path)
    vqvae = tokenizer()
    vqvae.quantizer.codebook.data[0] += 1
    again = train_captions(CAPTION_TINY, vqvae, some, path=path, progress=False)
    assert (tmp_path / "captions.1.safetensors").is_file()
    assert again.info["tokenizer"] == checkpoints.tokenizer_id(vqvae)


def test_the_share_that_is_done_grows_over_the_whole_run(some, monkeypatch):
    """On it depend the temperature and the KL's weight."""
    done, loss = [], dalle.DVAEStage.loss
    monkeypatch.setattr(dalle.DVAEStage, "loss", lambda stage, batch: done.append(batch.done) or loss(stage, batch))
    run(DVAE_TINY, some)
    assert done == pytest.approx([step / STEPS for step in range(STEPS)])


def test_with_turned_1_every_picture_is_also_seen_upside_down():
    both = torch.cat([pictures().pixels, pictures().pixels.flip(1)])
    stage = stage_of("captions", withheld=0, turned=1)
    assert torch.equal(stage.codes, encode_pixels(tokenizer(), both).flatten(1))


def test_the_number_of_codes_is_the_tokenizers(some):
    with torch.random.fork_rng(devices=[]):
        vqvae = VQVAE(VQVAEConfig(channels=8, num_codes=32)).eval()
    model = train_captions(CAPTION_TINY, vqvae, some, progress=False, device="cpu")
    assert model.config.num_codes == 32 == model.info["recipe"]["model"]["num_codes"]


def test_muon_trains_the_blocks_alone():
    stage = stage_of("captions")
    assert {id(p) for p in stage.hidden()} == {id(p) for p in stage.model.blocks.parameters()}


@pytest.mark.parametrize("name", ["captions", "contrastive"])
def test_files_are_in_half_precision(name, some, tmp_path):
    run(TINY[name], some, tmp_path / "x.safetensors")
    tensors, _ = checkpoints.read(tmp_path / "x.safetensors", STAGES[name].model_class.__name__)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


# --- the command line ------------------------------------------------------------------------------------------------


def test_the_command_line_trains_all_of_notebook_8(tmp_path, monkeypatch, capsys):
    for name in ("dvae", "captions", "contrastive"):
        recipe = dataclasses.replace(TINY[name], epochs=1, batch_size=100, name=name)
        monkeypatch.setattr(recipes, name.upper(), recipe)
    load = data.load
    monkeypatch.setattr(data, "load", lambda split, **options: load(split, **options).subset(torch.arange(120)))
    folder = tmp_path / "runs" / "mini"
    for stage in ("captions", "dalle"):
        with pytest.raises(SystemExit, match="vqvae first"):
            command.main([stage, "--mini", "--device", "cpu"])
    for stage in ("dvae", "contrastive"):  # which need no tokenizer
        command.main([stage, "--mini", "--device", "cpu"])
    checkpoints.save_model(folder / "vqvae.safetensors", tokenizer())
    assert sorted(os.listdir(folder)) == ["contrastive.safetensors", "dvae.safetensors", "vqvae.safetensors"]
    capsys.readouterr()
    command.main(["dalle", "--mini", "--device", "cpu"])
    said = capsys.readouterr().out
    assert "captions.safetensors" in os.listdir(folder) and said.count("is a finished run") == 2
    model = checkpoints.load_dvae(folder / "dvae.safetensors")
    pair = vqlib.load_pair("mini", captions=True)
    mse, nats = model.info["test"]["mse"], pair.transformer.info["test"]
    chooser = checkpoints.load_contrastive(folder / "contrastive.safetensors").info["test"]["accuracy"]
    assert re.search(rf"(?m)^dvae: MSE.* {mse:.4f} +thumbnails", said)
    unseen = f"{nats['nats_per_code_unseen']:.3f}"
    assert re.search(rf"(?m)^nats per code, given a caption +{nats['nats_per_code']:.3f} .*never seen {unseen}", said)
    assert re.search(rf"(?m)^finds the picture's caption +{chooser:.1%} +chance 0.6%", said)
    assert pair.generate("a bright slim dress", n=2, guidance=2.0).shape == (2, 1, 28, 28)
    few = load("test", mini=True).subset(torch.arange(120))
    assert model.info["test"] == evaluation.evaluate_vqvae(model, few)


@pytest.mark.parametrize("stage", ["dvae", "captions", "contrastive", "dalle"])
@pytest.mark.parametrize("why", ["--data MNIST", "torchrun"])
def test_the_command_line_refuses_other_pictures_and_several_processes(stage, why, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "launched", lambda: why == "torchrun")
    arguments = [stage, "--device", "cpu", *(why.split() if why != "torchrun" else [])]
    with pytest.raises(SystemExit):
        command.parse(arguments)
    assert "vqlib.training: error" in (said := capsys.readouterr().err) and why in said
