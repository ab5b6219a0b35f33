"""The front door: a `Pair`, `load_pair`, and the command line ``python -m vqlib generate``."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CAPTION_TINY, environment, lively_transformer, run, same_weights, seeded, tokenizer
from einops import rearrange
from PIL import Image

import vqlib
from vqlib import captions, checkpoints, data, sampling
from vqlib.__main__ import main
from vqlib.pair import Pair
from vqlib.vqvae import VQVAE, VQVAEConfig


@pytest.fixture
def decoded(monkeypatch):
    """A list of all codes that a VQ-VAE is asked to decode."""
    codes, decode = [], VQVAE.decode
    monkeypatch.setattr(VQVAE, "decode", lambda model, given: codes.append(given) or decode(model, given))
    return codes


@pytest.fixture
def asked(monkeypatch):
    """A list of all labels of which `sampling.sample` is asked for pictures; they all come out the same."""
    labels = []

    def sample(transformer, given, **knobs):
        labels.append(given)
        return torch.zeros(len(given), 7, 7, dtype=torch.int64)

    monkeypatch.setattr(sampling, "sample", sample)
    return labels


@pytest.fixture
def captioned(vqvae):
    """A pair that writes for captions, in float64."""
    return Pair(vqvae, lively_transformer(num_words=captions.NUM_WORDS))


def save(pair, folder):
    name = "captions" if pair.transformer.config.num_words else "transformer"
    checkpoints.save_model(folder / "vqvae.safetensors", pair.vqvae)
    tokenizer = checkpoints.tokenizer_id(pair.vqvae)
    checkpoints.save_model(folder / f"{name}.safetensors", pair.transformer, tokenizer=tokenizer)
    return folder


def is_images(images, n):
    right = isinstance(images, torch.Tensor) and images.shape == (n, 1, 28, 28) and images.dtype == torch.float32
    return right and images.device.type == "cpu" and not images.requires_grad and images.abs().max() <= 1


# --- generate --------------------------------------------------------------------------------------------------------


def test_generating_is_sampling_and_decoding(pair):
    images = pair.generate("Ankle boot", n=8, temperature=0.8, seed=0)
    codes = sampling.sample(pair.transformer, torch.tensor([9] * 8), temperature=0.8, generator=seeded(0))
    assert is_images(images, 8) and torch.equal(images, pair.vqvae.decode(codes).float())
    assert len(images.unique(dim=0)) == 8
    assert torch.equal(pair.generate("Ankle boot"), images)  # these are the defaults
    assert not torch.equal(pair.generate("Ankle boot", seed=1), images)


@pytest.mark.parametrize(
    "knobs", [{"temperature": 0}, {"top_k": 3}, {"top_p": 0.5}, {"guidance": 2.0, "temperature": 1.5}], ids=str
)
def test_the_knobs_are_those_of_sample(pair, decoded, knobs):
    pair.generate([3, "Bag"], n=2, seed=5, **knobs)
    expected = sampling.sample(pair.transformer, torch.tensor([3, 3, 8, 8]), generator=seeded(5), **knobs)
    assert torch.equal(decoded[0], expected)


@pytest.mark.parametrize(
    "classes, labels",
    [
        ("Ankle boot", [9]),
        (" ankle BOOT ", [9]),
        ("t-shirt/top", [0]),
        ("7", [7]),
        (7, [7]),
        (0, [0]),
        (np.int64(3), [3]),
        (torch.tensor(4), [4]),
        (["Bag", 1, np.uint8(2), torch.tensor(3)], [8, 1, 2, 3]),
        (("Dress", "Dress"), [3, 3]),
        (range(3), [0, 1, 2]),
        ((name for name in ("Coat", "Shirt")), [4, 6]),
        (data.CLASS_NAMES, range(10)),
        (torch.tensor([5, 0]), [5, 0]),
        (np.array([5, 0]), [5, 0]),
    ],
    ids=repr,
)
def test_a_class_is_a_name_or_a_number_and_classes_are_any_sequence(pair, asked, classes, labels):
    assert is_images(pair.generate(classes, n=2), 2 * len(labels))
    assert asked[0].dtype == torch.int64 and asked[0].tolist() == [[64 + label] for label in labels for _ in range(2)]


def test_none_is_any_class(pair, decoded):
    assert is_images(pair.generate(None, n=3), 3)
    expected = sampling.sample(pair.transformer, torch.full((3, 1), 74), generator=seeded(0))
    assert torch.equal(decoded[0], expected)


def test_no_classes_give_no_pictures(pair):
    assert pair.generate([]).shape == pair.complete(torch.zeros(0, 1, 28, 28), "Bag").shape == (0, 1, 28, 28)


WRONG = ["Boot", "", 10, -1, 2.0, True, b"Bag", ["Bag", "Boot"], [None], [["Bag"]], torch.tensor(10)]
WRONG += [torch.tensor([[1, 2]]), np.float32(2), np.array([True])]


@pytest.mark.parametrize("classes", WRONG, ids=repr)
def test_what_is_no_class_is_refused_with_a_list_of_the_classes(pair, images, classes):
    listed = "T-shirt/top.*Trouser.*Pullover.*Dress.*Coat.*Sandal.*Shirt.*Sneaker.*Bag.*Ankle boot"
    for use in (pair.generate, lambda wrong: pair.complete(images, wrong), lambda c: pair.log_likelihood(images, c)):
        with pytest.raises(ValueError, match=f"class.*{listed}"):
            use(classes)


@pytest.mark.parametrize(
    "name, value",
    [
        ("n", 0),
        ("n", 2.5),
        ("n", True),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", None),
        ("temperature", -1),
        ("top_k", 0),
        ("top_p", 2),
        ("guidance", None),
        ("rows", 8),
        ("rows", -1),
    ],
)
def test_numbers_are_checked(pair, images, name, value):
    if name != "rows":
        with pytest.raises(ValueError, match=name):
            pair.generate("Bag", **{name: value})
    with pytest.raises(ValueError, match=name):
        pair.complete(images, "Bag", **{name: value})


# --- complete, reconstruct, score ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 3, 7])
def test_a_completion_keeps_the_upper_rows(pair, images, decoded, rows):
    classes, knobs = [4, "Bag", 6], {"temperature": 1.0, "top_k": 9, "guidance": 2.0}
    completed = pair.complete(images[:3], classes, rows=rows, n=2, seed=1, **knobs)
    assert is_images(completed, 6)
    prefix = pair.vqvae.encode(images[:3]).flatten(1)[[0, 0, 1, 1, 2, 2], : 7 * rows]
    assert torch.equal(decoded[0].flatten(1)[:, : 7 * rows], prefix)
    labels = torch.tensor([4, 4, 8, 8, 6, 6])
    expected = sampling.sample(pair.transformer, labels, prefix=prefix, generator=seeded(1), **knobs)
    assert torch.equal(decoded[0], expected)
    assert rows == 7 or not torch.equal(completed[0], completed[1])


def test_three_rows_are_kept_and_one_class_serves_all(pair, images):
    completed = pair.complete(images, "Coat")
    assert is_images(completed, 24)
    assert torch.equal(completed, pair.complete(images, [4] * 24, rows=3, n=1, temperature=0.8, seed=0))


def test_all_rows_kept_is_the_reconstruction(pair, images):
    expected = pair.vqvae(images).images.float()
    assert (pair.reconstruct(images) - expected).abs().max() < 1e-6 and is_images(pair.reconstruct(images), 24)
    assert torch.equal(pair.complete(images, 1, rows=7), pair.reconstruct(images))


def test_log_likelihood_is_that_of_the_codes(pair, images):
    labels = torch.arange(24) % 10
    nats = pair.log_likelihood(images, labels)
    tokens = torch.cat([64 + labels[:, None], pair.vqvae.encode(images).flatten(1)], 1)
    log_probs = pair.transformer(tokens[:, :-1])[..., :64].log_softmax(-1)
    expected = torch.stack([log_probs[:, t, :].gather(1, tokens[:, t + 1, None])[:, 0] for t in range(49)]).sum(0)
    assert nats.shape == (24,) and not nats.requires_grad and (nats - expected).abs().max() < 1e-9
    assert torch.equal(pair.log_likelihood(images[:3], "Ankle boot"), pair.log_likelihood(images[:3], [9, 9, 9]))


def test_images_of_any_float_type_will_do(pair, images):
    codes = pair.vqvae.encode(images)
    assert torch.equal(pair.encode(images.float()), codes) and torch.equal(pair.encode(images), codes)
    half = Pair(pair.vqvae.float(), pair.transformer.float())
    assert torch.equal(half.encode(images.half()), pair.vqvae.encode(images.half().float()))


@pytest.mark.parametrize("wrong", [torch.zeros(2, 28, 28), torch.full((1, 1, 28, 28), 255.0), [1], None])
def test_what_are_no_images_is_refused(pair, wrong, test):
    uses = (pair.encode, pair.reconstruct, lambda x: pair.complete(x, "Bag"), lambda x: pair.log_likelihood(x, "Bag"))
    for use in uses:
        for images in (wrong, test.pixels[:2, None]):
            with pytest.raises(ValueError, match="images must .*to_images"):
                use(images)


def test_classes_and_images_must_match(pair, images):
    for use in (pair.complete, pair.log_likelihood):
        with pytest.raises(ValueError):
            use(images, [1, 2])


def test_codes_that_are_none_are_not_decoded(pair):
    with pytest.raises(ValueError, match="codes"):
        pair.decode(torch.full((1, 7, 7), 64))


@pytest.mark.parametrize("K", [32, 256])
def test_other_codebooks_do_all_of_this(images, decoded, K):
    torch.manual_seed(0)
    vqvae = VQVAE(VQVAEConfig(channels=8, num_codes=K)).double().eval()
    vqvae.quantizer.init_from(rearrange(vqvae.encoder(images), "b d h w -> (b h w) d"), seeded())
    pair = Pair(vqvae, lively_transformer(num_codes=K))
    assert is_images(pair.generate("Bag", n=4, guidance=2.0), 4) and is_images(pair.generate(None, n=2), 2)
    assert is_images(pair.complete(images[:2], ["Bag", 3], n=2), 4) and is_images(pair.reconstruct(images), 24)
    assert K / 2 < max(codes.max() for codes in decoded) < K
    assert pair.log_likelihood(images, [1] * 24).isfinite().all()


def test_a_pair_unpacks_the_tokenizer_first(pair):
    vqvae, transformer = pair
    assert vqvae is pair.vqvae and transformer is pair.transformer


# --- for captions ----------------------------------------------------------------------------------------------------

DRESS, BAG = "a bright slim dress", "bag, upside-down"


def starts(pair, *texts):
    return captions.text_tokens(texts, pair.transformer.config.vocabulary)


@pytest.mark.parametrize(
    "given, texts",
    [(DRESS, [DRESS]), ([DRESS, BAG], [DRESS, BAG]), ((text for text in (BAG,)), [BAG]), ("Boot", ["boot"]), ([], [])],
    ids=["one", "several", "any sequence", "capital", "none"],
)
def test_a_caption_is_drawn_from_its_tokens(captioned, decoded, given, texts):
    images = captioned.generate(given, n=2, seed=3, guidance=2.0, top_k=20)
    assert is_images(images, 2 * len(texts)) if texts else images.shape == (0, 1, 28, 28)
    tokens = starts(captioned, *texts).repeat_interleave(2, 0)
    expected = sampling.sample(captioned.transformer, tokens, generator=seeded(3), guidance=2.0, top_k=20)
    assert torch.equal(decoded[0], expected)


def test_none_is_any_caption(captioned, decoded):
    assert is_images(captioned.generate(None, n=3), 3)
    expected = sampling.sample(captioned.transformer, torch.full((3, 8), 74), generator=seeded(0))
    assert torch.equal(decoded[0], expected)


def test_a_caption_is_completed_and_scored(captioned, images, decoded):
    codes = captioned.encode(images[:2])
    assert is_images(captioned.complete(images[:2], [DRESS, BAG], rows=3, n=2, seed=1), 4)
    prefix, tokens = codes.flatten(1)[:, :21].repeat_interleave(2, 0), starts(captioned, DRESS, DRESS, BAG, BAG)
    expected = sampling.sample(captioned.transformer, tokens, prefix=prefix, generator=seeded(1))
    assert torch.equal(decoded[0], expected)
    assert is_images(captioned.complete(images[:2], DRESS), 2) and is_images(captioned.complete(images[:2]), 2)
    nats = captioned.log_likelihood(images[:2], [DRESS, BAG])
    expected = sampling.log_likelihood(captioned.transformer, codes, starts(captioned, DRESS, BAG))
    assert torch.equal(nats, expected) and not nats.requires_grad
    of_both = captioned.log_likelihood(images[:2], DRESS)
    assert torch.equal(of_both, captioned.log_likelihood(images[:2], [DRESS, DRESS]))
    for use in (captioned.complete, captioned.log_likelihood):
        with pytest.raises(ValueError, match="classes|labels"):
            use(images, [DRESS, BAG])


@pytest.mark.parametrize("wrong", ["a blue dress", "Ankle boot", "", 3, [3], [DRESS, None], torch.tensor(3)], ids=repr)
def test_what_is_no_caption_is_refused_with_a_list_of_the_words(captioned, images, wrong):
    pair = captioned
    for use in (pair.generate, lambda c: pair.complete(images, c), lambda c: pair.log_likelihood(images, c)):
        with pytest.raises(ValueError, match="caption.*dark.*slim.*upside-down.*trouser"):
            use(wrong)


def test_a_pair_for_captions_is_one_of_its_own(pair, captioned, tmp_path):
    save(pair, tmp_path)
    with pytest.raises(FileNotFoundError, match="captions.safetensors"):
        vqlib.load_pair(tmp_path, captions=True)
    save(captioned, tmp_path)
    loaded = vqlib.load_pair(tmp_path, captions=True)
    assert Path(loaded.transformer.info["path"]).name == "captions.safetensors"
    assert same_weights(loaded.transformer, captioned.transformer.float())
    expected = Pair(pair.vqvae.float(), captioned.transformer).generate(DRESS, n=2)
    assert torch.equal(loaded.generate(DRESS, n=2), expected)
    assert same_weights(vqlib.load_pair(tmp_path).transformer, pair.transformer.float())


def test_there_are_two_kinds_of_transformers_to_load():
    with pytest.raises(ValueError, match="name.*transformer.*captions"):
        checkpoints.load_transformer(name="words")


def test_a_captioned_model_of_another_tokenizer_is_refused(captioned, tmp_path):
    save(captioned, tmp_path)
    checkpoints.save_model(tmp_path / "vqvae.safetensors", tokenizer())
    with pytest.raises(ValueError, match="another tokenizer.*training captions"):
        vqlib.load_pair(tmp_path, captions=True)


def test_a_trained_run_is_a_pair_that_knows_guidance(some, tmp_path):
    checkpoints.save_model(tmp_path / "vqvae.safetensors", tokenizer())
    run(CAPTION_TINY, some, tmp_path / "captions.safetensors")
    pair = vqlib.load_pair(tmp_path, captions=True)
    assert is_images(pair.generate(DRESS, n=2, guidance=2.0), 2) and is_images(pair.generate(None, n=2), 2)


# --- PNG -------------------------------------------------------------------------------------------------------------


def shown(path, zoom=4):
    """The pictures of a PNG, row by row: (N, 28, 28) uint8. Each pixel must be zoom × zoom."""
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.mode == "L"
        whole = torch.tensor(np.array(picture))
    small = whole[::zoom, ::zoom]
    assert torch.equal(small.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1), whole)
    return rearrange(small, "(r h) (c w) -> (r c) h w", h=28, w=28)


@pytest.mark.parametrize("n, options, size", [(10, {}, 16), (3, {}, 3), (1, {}, 1), (5, {"columns": 2, "zoom": 1}, 6)])
def test_a_png_holds_the_pixels(pair, test, tmp_path, n, options, size):
    path = tmp_path / "new" / "folder" / "pictures"  # whatever its name
    pair.save_png(path, data.to_images(test.pixels[:n]), **options)
    pixels = shown(path, options.get("zoom", 4))
    assert len(pixels) == size and torch.equal(pixels[:n], test.pixels[:n]) and not pixels[n:].any()


def test_a_path_may_begin_with_the_home_directory(pair, images, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    pair.save_png("~/pictures.png", images)
    assert torch.equal(shown(tmp_path / "pictures.png"), data.to_pixels(images))
    save(pair, tmp_path / "mine")
    assert same_weights(vqlib.load_pair("~/mine").transformer, pair.transformer.float())


@pytest.mark.parametrize("wrong", [torch.zeros(0, 1, 28, 28), torch.zeros(2, 28, 28), torch.zeros(2, 3, 28, 28)])
def test_what_can_not_be_shown_is_not_written(tmp_path, wrong):
    with pytest.raises(ValueError, match="images"):
        Pair.save_png(tmp_path / "pictures.png", wrong)
    assert not list(tmp_path.iterdir())


# --- load_pair -------------------------------------------------------------------------------------------------------


def test_the_shipped_pair_is_found():
    pair = vqlib.load_pair()
    assert isinstance(pair, vqlib.Pair) and not pair.vqvae.training and not pair.transformer.training
    paths = [Path(model.info["path"]) for model in pair]
    assert paths == [checkpoints.SHIPPED / f"{name}.safetensors" for name in ("vqvae", "transformer")]
    assert torch.equal(pair.generate("Bag", n=1), pair.generate(8, n=1))


def test_the_readers_own_pair_comes_first_and_a_folder_before_it(pair, images, tmp_path):
    own = save(pair, checkpoints.runs_folder())
    other = Pair(pair.vqvae, lively_transformer(qk_norm=True))
    folder = save(other, tmp_path / "other")
    for loaded, expected, place in (
        (vqlib.load_pair(), pair, own),
        (vqlib.load_pair(folder), other, folder),
        (vqlib.load_pair(str(folder), device="cpu"), other, folder),
    ):
        assert [Path(model.info["path"]).parent for model in loaded] == [place] * 2
        assert all(same_weights(a, b.float()) for a, b in zip(loaded, expected, strict=True))
    assert Path(vqlib.load_pair(shipped=True).vqvae.info["path"]).parent == checkpoints.SHIPPED


def test_a_loaded_pair_draws_what_it_drew(pair, tmp_path):
    loaded = vqlib.load_pair(save(Pair(pair.vqvae.float(), pair.transformer.float()), tmp_path))
    assert torch.equal(loaded.generate(["Bag", 1], n=2), pair.generate(["Bag", 1], n=2))


def test_two_that_do_not_belong_together_are_refused(pair):
    runs = checkpoints.runs_folder()
    checkpoints.save_model(runs / "vqvae.safetensors", pair.vqvae)  # the Transformer would be the shipped one
    with pytest.raises(ValueError, match="another tokenizer.*load_pair"):
        vqlib.load_pair()
    with pytest.raises(FileNotFoundError, match="transformer.safetensors"):
        vqlib.load_pair(runs)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        vqlib.load_pair(tmp_path / "nowhere")


# --- the command line ------------------------------------------------------------------------------------------------


COMMAND = ["generate", "Ankle boot", "--n", "3", "--temperature", "0.8", "--seed", "4", "--out", "boots.png"]


def check_boots(folder, printed):
    expected = vqlib.load_pair().generate("Ankle boot", 3, temperature=0.8, seed=4)
    assert torch.equal(shown(folder / "boots.png"), data.to_pixels(expected))
    assert "3 pictures" in printed and str(folder / "boots.png") in printed


def test_from_the_command_line_the_pictures_are_those_of_generate(pair, tmp_path, monkeypatch, capsys):
    save(pair, checkpoints.runs_folder())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vqlib", *COMMAND])
    monkeypatch.delitem(sys.modules, "vqlib.__main__")
    runpy.run_module("vqlib", run_name="__main__")
    check_boots(tmp_path, capsys.readouterr().out)


@pytest.mark.slow
def test_a_process_of_its_own_draws_with_the_shipped_pair(tmp_path):
    command = [sys.executable, "-m", "vqlib", *COMMAND]
    run = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    check_boots(tmp_path, run.stdout)
    wrong = [*command[:4], "Hat", *command[5:]]
    run = subprocess.run(wrong, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert run.returncode == 1 and "Ankle boot" in run.stderr and "Traceback" not in run.stderr


def test_every_option_is_passed_on(pair, tmp_path, monkeypatch):
    save(pair, tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    knobs = {"temperature": 0.5, "top_k": 9, "top_p": 0.9, "guidance": 2.0, "seed": 4}
    options = [word for name, value in knobs.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    main(["generate", "bag", "7", "--n", "3", *options, "--run", "~/run", "--out", "~/new/out.png"])
    expected = vqlib.load_pair(tmp_path / "run").generate(["Bag", 7], 3, **knobs)
    with Image.open(tmp_path / "new" / "out.png") as picture:
        assert picture.size == (3 * 28 * 4, 2 * 28 * 4)  # a row per class
    assert torch.equal(shown(tmp_path / "new" / "out.png"), data.to_pixels(expected))


def test_the_command_draws_with_the_decoder_asked_for(tmp_path):
    main(["generate", "Shirt", "--n", "2", "--decoder", "crisp", "--out", str(tmp_path / "out.png")])
    expected = vqlib.load_pair(decoder="crisp", shipped=True).generate("Shirt", 2)
    assert torch.equal(shown(tmp_path / "out.png"), data.to_pixels(expected))


@pytest.mark.parametrize("texts", [["Boot"], [DRESS, "bag", BAG]], ids=["a word", "several"])
def test_the_command_draws_for_captions(captioned, tmp_path, texts):
    save(captioned, checkpoints.runs_folder())
    main(["generate", *texts, "--n", "2", "--guidance", "2", "--out", str(tmp_path / "out.png")])
    expected = vqlib.load_pair(captions=True).generate(texts, 2, guidance=2.0)
    assert torch.equal(shown(tmp_path / "out.png"), data.to_pixels(expected))


def test_without_options_it_is_eight_of_the_readers_own(pair, tmp_path, monkeypatch, capsys):
    save(pair, checkpoints.runs_folder())
    monkeypatch.chdir(tmp_path)
    main(["generate", "Dress"])
    assert torch.equal(shown("generated.png"), data.to_pixels(vqlib.load_pair().generate("Dress")))
    assert "8 pictures" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["Hat"], (*data.CLASS_NAMES, *captions.WORDS)),
        (["a blue dress"], (*data.CLASS_NAMES, *captions.WORDS)),
        (["a", "bright", "dress"], ("'a bright slim dress'", "quotes")),
        (["Bag", "boot"], ("'boot'", "Ankle boot", "quotes")),
        (["Ankle boot", "a dark boot"], ("'Ankle boot'", "'a dark boot'")),
        (["Bag", "--n", "0"], ["n must"]),
        (["Bag", "--temperature", "nan"], ["temperature must"]),
        (["Bag", "--run", "nowhere"], ["nowhere"]),
        (["Bag", "--out", "file/x.png"], ["file"]),
    ],
)
def test_what_can_not_be_done_ends_in_words(pair, tmp_path, monkeypatch, arguments, words):
    save(pair, checkpoints.runs_folder())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        main(["generate", *arguments])
    assert str(stopped.value).startswith("error: ") and all(word in str(stopped.value) for word in words)
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("arguments", [[], ["draw"], ["generate"], ["generate", "Bag", "--n", "many"]])
def test_another_command_shows_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and "usage: vqlib" in capsys.readouterr().err


def test_a_pair_says_in_a_line_which_weights_it_has():
    shown = repr(vqlib.load_pair(shipped=True))
    assert "\n" not in shown and shown.count("shipped weights") == 2


@pytest.mark.parametrize("images", [torch.zeros(1, 28, 28), torch.zeros(1, 1, 28, 28, dtype=torch.uint8), [0], "a.png"])
def test_save_png_refuses_what_are_no_images(images, tmp_path):
    with pytest.raises(ValueError, match="images"):
        Pair.save_png(tmp_path / "x.png", images)
