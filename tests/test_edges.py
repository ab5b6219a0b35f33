"""Public functions at the edges: whatever a reader gives them, they return what their docstring says, or raise it.

The values are drawn by hypothesis: right ones, wrong shapes, wrong dtypes, numbers out of range, NaN, and things that
are no tensors at all.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import lively_transformer, seeded
from hypothesis import given
from hypothesis import strategies as st

from vqlib import checkpoints, data, evaluation, sampling, tokens, training
from vqlib.baselines import Histogram
from vqlib.classifier import Classifier, ClassifierConfig, classify, rerank
from vqlib.pair import Pair
from vqlib.tokens import Vocabulary
from vqlib.transformer import Transformer, TransformerConfig
from vqlib.vqvae import VQVAE, VectorQuantizer, VQVAEConfig

TRANSFORMER = lively_transformer().float()
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    TOKENIZER = VQVAE(VQVAEConfig(channels=4)).eval()
    CRITIC = Classifier(ClassifierConfig(channels=2, features=4)).eval()
PAIR = Pair(TOKENIZER, TRANSFORMER)
NO_TENSORS = st.sampled_from([None, True, 3, -1, 2.5, math.nan, "seven", [1, 2], (), {}, b"x", np.float32(2), object])
LARGE = st.integers(-(2**62), 2**62)
NUMBERS = st.one_of(st.floats(), st.integers(-3, 80), LARGE, NO_TENSORS, st.just(torch.tensor(2)), st.just(np.int64(3)))
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
    """What it returns; None if it raised one of these errors, with words."""
    try:
        return function(*arguments, **options)
    except errors as error:
        assert len(str(error)) > 20, error
        return None


def is_whole(value, low, high=math.inf):
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and low <= value <= high


def is_right(tensor, shape, dtype, low, high):
    """Whether it is what a docstring asks for; -1 in the shape stands for any length."""
    right = isinstance(tensor, torch.Tensor) and tensor.dtype == dtype and tensor.ndim == len(shape)
    right = right and all(want in (-1, size) for size, want in zip(tensor.shape, shape, strict=True))
    return right and (not tensor.numel() or bool((tensor >= low).all() and (tensor <= high).all()))


def is_codes(codes, n, K=64):
    return is_right(codes, (n, 7, 7), torch.int64, 0, K - 1)


# --- sampling --------------------------------------------------------------------------------------------------------


KNOBS = {"temperature": NUMBERS, "top_k": st.one_of(st.none(), NUMBERS), "top_p": NUMBERS, "guidance": NUMBERS}
SOME_KNOBS = st.sets(st.sampled_from(sorted(KNOBS)), max_size=2).flatmap(
    lambda names: st.fixed_dictionaries({name: KNOBS[name] for name in sorted(names)})
)
STARTS = tensors((None, 2), torch.int64, 0, 74)


@given(
    labels=st.one_of(LABELS, STARTS),
    prefix=st.one_of(st.none(), tensors((2, None), torch.int64, 0, 63)),
    guess=st.one_of(st.none(), CODES),
    knobs=SOME_KNOBS,
)
def test_sample(labels, prefix, guess, knobs):
    codes = outcome(sampling.sample, TRANSFORMER, labels, prefix=prefix, generator=seeded(), **knobs)
    options = {"guess": guess, "prefix": prefix, "generator": seeded(), **knobs}
    parallel = outcome(sampling.sample_parallel, TRANSFORMER, labels, **options)
    fits = codes is not None and (guess is None or is_codes(guess, len(labels)))
    assert is_codes(parallel, len(labels)) if fits else parallel is None
    if codes is not None:
        assert is_codes(codes, len(labels))
        assert prefix is None or torch.equal(codes.flatten(1)[:, : prefix.shape[1]], prefix)
    elif not knobs and prefix is None:
        assert not is_right(labels, (-1,), torch.int64, 0, 9)
        assert not is_right(labels, (-1, -1), torch.int64, 0, 74) or not 1 <= labels.shape[1] <= 104


CLASSES = st.one_of(NUMBERS, st.sampled_from(data.CLASS_NAMES), st.text(max_size=3), LABELS)


@given(
    classes=st.one_of(CLASSES, st.lists(CLASSES, max_size=3)),
    n=st.one_of(st.just(1), NUMBERS),
    seed=st.one_of(st.just(0), NUMBERS),
    knobs=SOME_KNOBS,
)
def test_generate(classes, n, seed, knobs):
    n = min(n, 2) if is_whole(n, 1) else n  # the reader would wait
    images = outcome(PAIR.generate, classes, n, seed=seed, **knobs)
    if images is not None:
        assert is_right(images, (-1, 1, 28, 28), torch.float32, -1, 1) and len(images) % n == 0
    elif not knobs and is_whole(n, 1) and is_whole(seed, 0, 2**63 - 1):
        assert classes is not None and not is_whole(classes, 0, 9) and classes not in data.CLASS_NAMES


@given(images=IMAGES, rows=NUMBERS, n=st.sampled_from([1, 2, 0, None]))
def test_complete(images, rows, n):
    completed = outcome(PAIR.complete, images, "Bag", rows=rows, n=n)
    right = is_right(images, (-1, 1, 28, 28), torch.float32, -1, 1) and is_whole(rows, 0, 7) and n
    assert (completed is not None) or not right
    assert completed is None or is_right(completed, (len(images) * n, 1, 28, 28), torch.float32, -1, 1)


@given(codes=CODES, labels=LABELS)
def test_log_likelihood(codes, labels):
    nats = outcome(sampling.log_likelihood, TRANSFORMER, codes, labels)
    if nats is not None:
        assert nats.shape == labels.shape and (nats <= 0).all() and nats.isfinite().all()
    else:
        right = is_codes(codes, -1) and is_right(labels, (-1,), torch.int64, 0, 9)
        assert not right or len(codes) != len(labels)


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


@given(K=st.integers(1, 300), num_classes=st.integers(1, 12), draw=st.data())
def test_sequences(K, num_classes, draw):
    vocabulary, end = Vocabulary(K, num_classes), K + num_classes
    codes = draw.draw(tensors((None, 7, 7), torch.int64, 0, K - 1))
    labels = draw.draw(tensors((None,), torch.int64, 0, num_classes - 1))
    sequences = outcome(vocabulary.to_sequences, codes, labels)
    right = is_codes(codes, -1, K) and is_right(labels, (-1,), torch.int64, 0, num_classes - 1)
    assert (sequences is not None) == bool(right and len(codes) == len(labels))
    if sequences is not None:
        assert is_right(sequences, (len(codes), 51), torch.int64, 0, end) and (sequences[:, -1] == end).all()
        back, classes = vocabulary.from_sequences(sequences)
        assert torch.equal(back, codes) and torch.equal(classes, labels)


@given(K=st.sampled_from([32, 64, 256]), draw=st.data())
def test_from_sequences(K, draw):
    vocabulary = Vocabulary(K)
    sequences = draw.draw(tensors((None, 51), torch.int64, 0, K + 10))
    if draw.draw(st.booleans()) and is_right(sequences, (-1, 51), torch.int64, 0, K + 10):  # most of it is right
        sequences[:, 1:-1] %= K
        sequences[:, -1] = K + 10
    back = outcome(vocabulary.from_sequences, sequences)
    assert back is None or torch.equal(vocabulary.to_sequences(*back), sequences)


@given(pixels=PIXELS, batch_size=NUMBERS)
def test_encode_pixels(pixels, batch_size):
    codes = outcome(tokens.encode_pixels, TOKENIZER, pixels, batch_size)
    assert codes is None or is_codes(codes, len(pixels))


@given(codes=CODES)
def test_usage_and_perplexity(codes):
    frequencies = outcome(tokens.usage, codes)
    right = isinstance(codes, torch.Tensor) and codes.dtype == torch.int64 and codes.numel()
    assert (frequencies is not None) == bool(right and 0 <= codes.min() <= codes.max() <= 63)
    if frequencies is not None:
        assert frequencies.shape == (64,) and frequencies.sum().item() == pytest.approx(1)
        assert 1 - 1e-5 <= tokens.perplexity(frequencies) <= 64 + 1e-3


@given(codes=CODES, labels=LABELS)
def test_histogram(codes, labels):
    histogram = outcome(Histogram.fit, codes, labels)
    if histogram is not None:
        assert torch.allclose(histogram.log_probs.exp().sum(-1), torch.ones(10, 49))
        drawn = histogram.sample(labels)
        assert is_codes(drawn, len(labels))
        assert not len(labels) or 0 <= histogram.nats_per_code(codes, labels) < math.inf


@given(index=tensors((2, None), torch.int64, 0, 74))
def test_transformer(index):
    logits = outcome(TRANSFORMER, index, errors=(ValueError, IndexError))
    assert logits is None or logits.shape == (*index.shape, 75)


@given(vectors=tensors((None, 4), torch.float32, -2, 2))
def test_init_from(vectors):
    quantizer = VectorQuantizer(VQVAEConfig(num_codes=2, code_dim=4))
    before = quantizer.codebook.detach().clone()
    right = isinstance(vectors, torch.Tensor) and vectors.is_floating_point() and vectors.ndim == 2
    right = right and vectors.shape[1] == 4 and len(vectors) >= 2 and bool(vectors.isfinite().all())
    outcome(quantizer.init_from, vectors)
    assert torch.equal(quantizer.codebook, before) != right and quantizer.codebook.isfinite().all()


UPDATE = {
    "vectors": tensors((2, 4), torch.float32, -2, 2),
    "codes": tensors((2,), torch.int64, 0, 7),
    "decay": st.one_of(st.just(0.9), NUMBERS),
    "revive_below": st.one_of(st.just(0.1), NUMBERS),
}


@given(st.fixed_dictionaries(UPDATE))
def test_ema_update(arguments):
    quantizer = VectorQuantizer(VQVAEConfig(num_codes=8, code_dim=4, quantizer="ema"))
    before = quantizer.codebook.detach().clone()
    revived = outcome(quantizer.ema_update, **arguments)
    if revived is None:
        assert torch.equal(quantizer.codebook, before)  # refused before anything was changed
    else:
        assert 0 <= revived <= 8 and quantizer.codebook.isfinite().all()


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
def test_classify(images):
    found = outcome(classify, CRITIC, images)
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


WHOLE = data.load_mini("test")


@given(n=NUMBERS, seed=NUMBERS)
def test_split_validation(n, seed):
    parts = outcome(data.split_validation, WHOLE, n, seed)
    if parts is not None:
        assert [len(part) for part in parts] == [len(WHOLE) - n, n]


FIELDS = {field.name: NUMBERS for field in dataclasses.fields(training.Recipe)}
FIELDS |= {"name": st.just("x"), "betas": st.tuples(NUMBERS, NUMBERS)}
FIELDS |= {"schedule": st.sampled_from(["cosine", "linear", 3])}


@given(name=st.sampled_from(sorted(FIELDS)), values=st.data())
def test_recipes(name, values):
    """A recipe that is accepted gives finite rates; an unknown schedule is not taken for a constant one."""
    recipe = outcome(dataclasses.replace, training.ORIGINAL_VQVAE, **{name: values.draw(FIELDS[name])})
    if recipe is not None:
        rates = [training.learning_rate(recipe, step, 10) for step in (0, 5, 20)]
        assert all(math.isfinite(rate) and rate >= 0 for rate in rates)
        assert recipe.schedule in ("constant", "drop", "cosine") and recipe.epochs >= 1 and recipe.batch_size >= 1


@given(
    name=st.sampled_from(["d_model", "n_heads", "n_layers", "context", "num_codes", "num_classes", "dropout"]),
    value=NUMBERS,
)
def test_transformer_configurations(name, value):
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 80:
        return  # the reader would wait
    config = outcome(TransformerConfig, **{"d_model": 8, "n_heads": 2, "n_layers": 1, name: value})
    if config is not None:
        model = Transformer(config)
        if config.context >= 3:
            vocabulary = config.num_codes + config.num_classes + 1
            assert model(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, vocabulary)


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
