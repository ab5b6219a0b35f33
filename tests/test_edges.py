"""Public functions at the edges: whatever a reader gives them, they return what their docstring says, or raise it.

The values are drawn by hypothesis: right ones, wrong shapes, wrong dtypes, numbers out of range, NaN, and things that
are no tensors at all.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import lively_transformer
from hypothesis import given
from hypothesis import strategies as st

from vqlib import checkpoints, data, evaluation, sampling, tokens, training
from vqlib.classifier import Classifier, ClassifierConfig, judge, rerank
from vqlib.transformer import Transformer, TransformerConfig
from vqlib.vqvae import VQVAE, VectorQuantizer, VQVAEConfig, kmeans

TRANSFORMER = lively_transformer().float()
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    TOKENIZER = VQVAE(VQVAEConfig(channels=4)).eval()
    CRITIC = Classifier(ClassifierConfig(channels=2, features=4)).eval()
NO_TENSORS = st.sampled_from([None, True, 3, -1, 2.5, math.nan, "seven", [1, 2], (), {}, b"x", np.float32(2), object])
NUMBERS = st.one_of(st.floats(), st.integers(-3, 80), st.integers(), NO_TENSORS, st.just(torch.tensor(2)),
                    st.just(np.int64(3)))
DTYPES = [torch.int64, torch.float32, torch.uint8, torch.float64, torch.int32, torch.bool, torch.float16]


@st.composite
def tensors(draw, shape, dtype, low, high):
    """A tensor of this shape, dtype and range, or one that differs in any of them, or no tensor.

    shape: None stands for any length.
    """
    if draw(st.integers(0, 5)) == 0:
        return draw(NO_TENSORS)
    sizes = [draw(st.integers(0, 3)) if size is None else size for size in shape]
    wrong = draw(st.sampled_from(["", "", "", "shape", "dtype", "value"]))
    if wrong == "shape":
        sizes = draw(st.lists(st.sampled_from([0, 1, 2, 7, 28, 49, 64]), max_size=4))
        sizes = sizes if math.prod(sizes) < 10**5 else [7]
    chosen = draw(st.sampled_from(DTYPES)) if wrong == "dtype" else dtype
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    values = torch.rand(sizes, generator=generator, dtype=torch.float64) * (high - low) + low
    values = values.clamp(0, 1) if chosen == torch.bool else values.clamp(0, 255) if chosen == torch.uint8 else values
    tensor = values.round().to(chosen) if not chosen.is_floating_point else values.to(chosen)
    if wrong == "value" and tensor.numel():
        bad = [low - 1, high + 1, 10**6] + ([math.nan, math.inf] if chosen.is_floating_point else [])
        if chosen not in (torch.uint8, torch.bool):
            tensor.flatten()[draw(st.integers(0, tensor.numel() - 1))] = draw(st.sampled_from(bad))
    return tensor


CODES, LABELS = tensors((None, 7, 7), torch.int64, 0, 63), tensors((None,), torch.int64, 0, 9)
IMAGES, PIXELS = tensors((None, 1, 28, 28), torch.float32, -1, 1), tensors((None, 28, 28), torch.uint8, 0, 255)


def outcome(function, *arguments, errors=(ValueError,), **options):
    """What it returns; None where it raised one of these errors, with words."""
    try:
        return function(*arguments, **options)
    except errors as error:
        assert len(str(error)) > 20, error
        return None


def is_codes(codes, n=None):
    return codes.dtype == torch.int64 and codes.shape[1:] == (7, 7) and (n is None or len(codes) == n) and (
        not codes.numel() or 0 <= codes.min() <= codes.max() <= 63)


def is_right(tensor, shape, dtype, low, high):
    """Whether it is what a docstring asks for; -1 in the shape stands for any length."""
    return (isinstance(tensor, torch.Tensor) and tensor.dtype == dtype and tensor.ndim == len(shape)
            and all(want in (-1, size) for size, want in zip(tensor.shape, shape, strict=True))
            and (not tensor.numel() or bool((tensor >= low).all() and (tensor <= high).all())))


# --- sampling --------------------------------------------------------------------------------------------------------


@given(labels=LABELS, temperature=NUMBERS, top_k=NUMBERS, top_p=NUMBERS, guidance=NUMBERS, n=NUMBERS,
       prefix=st.one_of(st.none(), tensors((2, None), torch.int64, 0, 63)),
       which=st.sets(st.sampled_from(["temperature", "top_k", "top_p", "guidance", "n", "prefix"]), max_size=2))
def test_sample(labels, temperature, top_k, top_p, guidance, n, prefix, which):
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance, "prefix": prefix, "n": n}
    given = {name: given[name] for name in which}
    if isinstance(given.get("n"), int) and given["n"] > 3 and labels is None:
        given["n"] = 3  # the reader would wait
    codes = outcome(sampling.sample, TRANSFORMER, labels, generator=torch.Generator().manual_seed(0), **given)
    if codes is not None:
        assert is_codes(codes, len(labels) if labels is not None else given["n"])
    elif not which:
        assert not is_right(labels, (-1,), torch.int64, 0, 9)


@given(generator=NO_TENSORS, n=NUMBERS)
def test_noise(generator, n):
    n = min(n, 3) if isinstance(n, int) else n
    noise = outcome(sampling.gumbel_noise, n, generator)
    assert noise is None or (noise.shape == (n, 49, 64) and noise.isfinite().all())


@given(logits=tensors((None, 64), torch.float32, -5, 5), temperature=NUMBERS, top_k=NUMBERS, top_p=NUMBERS)
def test_filter(logits, temperature, top_k, top_p):
    if not (isinstance(logits, torch.Tensor) and logits.is_floating_point() and logits.ndim and logits.shape[-1]):
        return
    kept = outcome(sampling.filter_logits, logits, temperature, top_k, top_p)
    if kept is not None:
        assert kept.shape == logits.shape and ((kept == logits) | (kept == -torch.inf) | logits.isnan()).all()
        if logits.isfinite().all():
            assert kept.argmax(-1).equal(logits.argmax(-1))  # the likeliest always stays


@given(codes=CODES, labels=LABELS)
def test_log_likelihood(codes, labels):
    nats = outcome(sampling.log_likelihood, TRANSFORMER, codes, labels)
    if nats is not None:
        assert nats.shape == labels.shape and (nats <= 0).all() and nats.isfinite().all()


# --- pictures, codes, tokens -----------------------------------------------------------------------------------------


@given(images=IMAGES)
def test_encode(images):
    codes = outcome(TOKENIZER.encode, images)
    assert (codes is not None) == is_right(images, (-1, 1, 28, 28), torch.float32, -1.001, 1.001)
    assert codes is None or is_codes(codes, len(images))


@given(codes=CODES)
def test_decode(codes):
    images = outcome(TOKENIZER.decode, codes)
    assert (images is not None) == is_right(codes, (-1, 7, 7), torch.int64, 0, 63)
    assert images is None or is_right(images, (len(codes), 1, 28, 28), torch.float32, -1, 1)


@given(pixels=PIXELS)
def test_to_images_and_back(pixels):
    images = outcome(data.to_images, pixels)
    if images is not None:
        assert images.dtype == torch.float32 and images.shape[-3:] == (1, 28, 28)
        assert torch.equal(data.to_pixels(images), pixels)


@given(images=IMAGES)
def test_to_pixels(images):
    pixels = outcome(data.to_pixels, images)
    assert pixels is None or (pixels.dtype == torch.uint8 and pixels.shape == (*images.shape[:-3], 28, 28))


@given(codes=CODES, labels=LABELS)
def test_sequences(codes, labels):
    sequences = outcome(tokens.to_sequences, codes, labels)
    if sequences is not None:
        back, classes = tokens.from_sequences(sequences)
        assert torch.equal(back, codes) and torch.equal(classes, labels)


@given(sequences=tensors((None, 51), torch.int64, 0, 74))
def test_from_sequences(sequences):
    back = outcome(tokens.from_sequences, sequences)
    assert back is None or torch.equal(tokens.to_sequences(*back), sequences)


@given(pixels=PIXELS, batch_size=NUMBERS)
def test_encode_pixels(pixels, batch_size):
    codes = outcome(tokens.encode_pixels, TOKENIZER, pixels, batch_size)
    assert codes is None or is_codes(codes, len(pixels))


@given(codes=CODES)
def test_usage_and_perplexity(codes):
    frequencies = outcome(tokens.usage, codes)
    right = isinstance(codes, torch.Tensor) and codes.dtype == torch.int64 and codes.numel() and \
        0 <= codes.min() <= codes.max() <= 63
    assert (frequencies is not None) == bool(right)
    if frequencies is not None:
        assert frequencies.shape == (64,) and frequencies.sum().item() == pytest.approx(1)
        assert 1 - 1e-5 <= tokens.perplexity(frequencies) <= 64 + 1e-3


@given(codes=CODES, labels=LABELS)
def test_histogram(codes, labels):
    histogram = outcome(tokens.Histogram.fit, codes, labels)
    if histogram is not None:
        assert torch.allclose(histogram.log_probs.exp().sum(-1), torch.ones(10, 49))
        drawn = histogram.sample(labels)
        assert is_codes(drawn, len(labels))
        assert not len(labels) or 0 <= histogram.nats_per_code(codes, labels) < math.inf


@given(index=tensors((2, None), torch.int64, 0, 74))
def test_transformer(index):
    logits = outcome(TRANSFORMER, index, errors=(ValueError, IndexError))
    assert logits is None or logits.shape == (*index.shape, 75)


@given(points=tensors((None, 3), torch.float32, -2, 2), k=NUMBERS)
def test_kmeans(points, k):
    found = outcome(kmeans, points, k)
    if found is not None:
        centres, assigned = found
        assert centres.shape == (k, points.shape[1]) and assigned.shape == (len(points),)
        assert not len(assigned) or 0 <= assigned.min() <= assigned.max() < k


@given(vectors=tensors((None, 4), torch.float32, -2, 2), codes=tensors((None,), torch.int64, 0, 7), decay=NUMBERS,
       revive_below=NUMBERS)
def test_ema_update(vectors, codes, decay, revive_below):
    quantizer = VectorQuantizer(VQVAEConfig(num_codes=8, code_dim=4, ema=True))
    before = quantizer.codebook.detach().clone()
    finite = isinstance(vectors, torch.Tensor) and bool(vectors.isfinite().all())
    errors = (ValueError, RuntimeError)  # a code that is none: what F.one_hot raises
    revived = outcome(quantizer.ema_update, vectors, codes, decay, revive_below, errors=errors)
    if revived is None:
        assert torch.equal(quantizer.codebook, before)  # refused before anything was changed
    else:
        assert 0 <= revived <= 8 and (quantizer.codebook.isfinite().all() or not finite)


# --- measuring -------------------------------------------------------------------------------------------------------

FEATURES = tensors((None, 4), torch.float32, 0, 2)


@given(features=FEATURES, others=FEATURES)
def test_frechet_distance(features, others):
    distance = outcome(evaluation.frechet_distance, features, others)
    assert distance is None or (math.isfinite(distance) and distance > -1e-3)


@given(real=FEATURES, samples=FEATURES, k=NUMBERS)
def test_coverage(real, samples, k):
    share = outcome(evaluation.coverage, real, samples, k)
    assert share is None or 0 <= share <= 1


@given(images=IMAGES, label=NUMBERS, keep=NUMBERS)
def test_rerank(images, label, keep):
    best = outcome(rerank, CRITIC, images, label, keep)
    assert best is None or (best.shape == (keep,) and best.dtype == torch.int64 and len(set(best.tolist())) == keep)


@given(images=IMAGES)
def test_judge(images):
    found = outcome(judge, CRITIC, images)
    if found is not None:
        log_probs, features = found
        assert log_probs.shape == (len(images), 10) and (log_probs <= 0).all() and (features >= 0).all()


@given(value=NUMBERS)
def test_psnr(value):
    decibels = outcome(evaluation.psnr, value)
    assert decibels is None or not math.isnan(decibels)


# --- data, recipes, files --------------------------------------------------------------------------------------------


@given(split=NO_TENSORS)
def test_load_another_split(split):
    assert outcome(data.load, split) is None


@given(n=NUMBERS, seed=NUMBERS)
def test_split_validation(n, seed):
    whole = data.load_sample("test")
    parts = outcome(data.split_validation, whole, n, seed)
    if parts is not None:
        assert [len(part) for part in parts] == [len(whole) - n, n]


FIELDS = {**{field.name: NUMBERS for field in dataclasses.fields(training.Recipe)},
          "name": st.just("x"), "betas": st.tuples(NUMBERS, NUMBERS),
          "schedule": st.sampled_from(["cosine", "linear", 3])}


@given(name=st.sampled_from(sorted(FIELDS)), values=st.data())
def test_recipes(name, values):
    """A recipe that is accepted gives finite rates; an unknown schedule is no constant one."""
    recipe = outcome(dataclasses.replace, training.ANCESTOR_VQVAE, **{name: values.draw(FIELDS[name])})
    if recipe is not None:
        rates = [training.learning_rate(recipe, step, 10) for step in (0, 5, 20)]
        assert all(math.isfinite(rate) and rate >= 0 for rate in rates)
        assert recipe.schedule in ("constant", "drop", "cosine") and recipe.epochs >= 1 and recipe.batch_size >= 1


@given(name=st.sampled_from(["d_model", "n_heads", "n_layers", "context", "dropout"]), value=NUMBERS)
def test_transformer_configurations(name, value):
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 80:
        return  # the reader would wait
    config = outcome(TransformerConfig, **{"d_model": 8, "n_heads": 2, "n_layers": 1, name: value})
    if config is not None:
        model = Transformer(config)
        if config.context >= 3:
            assert model(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 75)


@given(name=st.sampled_from(["num_codes", "code_dim", "channels", "residual_blocks"]), value=NUMBERS)
def test_vqvae_configurations(name, value):
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 80:
        return
    config = outcome(VQVAEConfig, **{"channels": 4, "residual_blocks": 1, name: value})
    if config is not None:
        assert VQVAE(config)(torch.zeros(1, 1, 28, 28)).images.shape == (1, 1, 28, 28)


@pytest.mark.parametrize("path", ["", "\0", ".", "nowhere/else", "a" * 5000, b"bytes", 7, None])
def test_paths_that_lead_nowhere(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if not path:
        assert checkpoints.load_vqvae(path).info["path"].endswith("vqvae.safetensors")  # none given: the shipped one
    else:
        with pytest.raises((FileNotFoundError, ValueError, TypeError, OSError)):
            checkpoints.load_vqvae(path)
