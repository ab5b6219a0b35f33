"""The public functions under whatever a reader has set: other defaults, precisions, layouts, wrappers and threads."""

import ast
import contextlib
import copy
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, environment, lively_transformer, run, same_weights, seeded, tokenizer, without_seconds
from torch import nn
from torch.utils._pytree import tree_leaves

import vqlib
from vqlib import baselines, checks, data, evaluation, sampling, stepper, tokens
from vqlib.classifier import Classifier, ClassifierConfig, accuracy, classify, rerank
from vqlib.pair import Pair, class_numbers
from vqlib.transformer import eval_mode
from vqlib.vqvae import kmeans

LABELS = torch.tensor([0, 3, 9, 3, 7, 1, 5])
VOCABULARY = tokens.Vocabulary()


def models(dtype=torch.float32):
    """A small pair whose codes and logits are lively, and a classifier, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Classifier(ClassifierConfig(channels=4, features=16))
    return Pair(tokenizer().to(dtype), lively_transformer(qk_norm=True).to(dtype)), classifier.eval().to(dtype)


def inputs():
    """One of each kind of tensor that a public function takes."""
    pixels = data.load_mini("test").pixels[:210:30]
    codes = torch.randint(64, (7, 7, 7), generator=seeded())
    return {
        "pixels": pixels,
        "images": data.to_images(pixels),
        "labels": LABELS,
        "codes": codes,
        "tokens": VOCABULARY.to_sequences(codes, LABELS),
        "prefix": codes.flatten(1)[:, :21],
        "vectors": torch.randn(200, 16, generator=seeded(1)),
        "features": torch.rand(60, 4, generator=seeded(2)),
        "frequencies": torch.rand(64, generator=seeded(3)).softmax(0),
        "noise": sampling.gumbel_noise(7, generator=seeded()).float(),
    }


def written(transformer, given, **knobs):
    with eval_mode(transformer):
        start, noise = given["tokens"][:, :1], given["noise"].to(transformer.token_embedding.weight)
        return list(sampling.write(transformer, start, noise, given["prefix"], **knobs))


def written_parallel(transformer, given, **knobs):
    with eval_mode(transformer):
        start, noise = given["tokens"][:, :1], given["noise"].to(transformer.token_embedding.weight)
        return list(sampling.write_parallel(transformer, start, noise, given["codes"].flatten(1), **knobs))[-1]


def hooked(transformer):
    """A copy that the fast path leaves alone."""
    transformer = copy.deepcopy(transformer)
    transformer.head.register_forward_hook(lambda *arguments: None)
    return transformer


def saved(pair, images):
    with tempfile.TemporaryDirectory() as folder:
        pair.save_png(Path(folder, "x.png"), images)
        return data.load_picture(Path(folder, "x.png"))


def changed(quantizer, change):
    """The state of a copy of it after ``change``, which uses a generator."""
    quantizer = copy.deepcopy(quantizer)
    change(quantizer, seeded())
    return list(quantizer.state_dict().values())


def counted(codes, labels):
    histogram = baselines.Histogram.fit(codes, labels, by_position=False)
    return [histogram.log_probs, histogram.nats_per_code(codes, labels), histogram.sample(labels, seeded())]


KNOBS = {"top_k": 20, "top_p": 0.9, "guidance": 2.0}
USES = {  # name -> a function of (pair, classifier, inputs)
    "load": lambda p, c, x: [data.load("test", mini=True).pixels, data.load("train", mini=True).labels],
    "split_validation": lambda p, c, x: [part.labels for part in data.split_validation(data.load_mini("test"), 9)],
    "fingerprint": lambda p, c, x: data.fingerprint(data.Dataset(x["pixels"], x["labels"], "")),
    "subset": lambda p, c, x: data.Dataset(x["pixels"], x["labels"], "").subset(torch.arange(3, device="cpu")).pixels,
    "to_images": lambda p, c, x: data.to_images(x["pixels"]),
    "to_pixels": lambda p, c, x: data.to_pixels(x["images"]),
    "load_picture": lambda p, c, x: [data.load_picture(x["pixels"][0]), data.load_picture(x["images"][0, 0].abs())],
    "forward": lambda p, c, x: p.vqvae(x["images"].to(p.vqvae.quantizer.codebook)),
    "encode": lambda p, c, x: p.vqvae.encode(x["images"].to(p.vqvae.quantizer.codebook)),
    "decode": lambda p, c, x: p.vqvae.decode(x["codes"]),
    "nearest": lambda p, c, x: p.vqvae.quantizer.nearest(x["vectors"]),
    "kmeans": lambda p, c, x: kmeans(x["vectors"], 9, generator=seeded()),
    "init_from": lambda p, c, x: changed(p.vqvae.quantizer, lambda q, g: q.init_from(x["vectors"], g)),
    "ema_update": lambda p, c, x: changed(
        p.vqvae.quantizer,
        lambda q, g: q.ema_update(
            x["vectors"].to(q.codebook), q.nearest(x["vectors"]), revive_below=1.0, decay=0.5, generator=g
        ),
    ),
    "to_sequences": lambda p, c, x: VOCABULARY.to_sequences(x["codes"], x["labels"]),
    "from_sequences": lambda p, c, x: VOCABULARY.from_sequences(x["tokens"]),
    "encode_pixels": lambda p, c, x: tokens.encode_pixels(p.vqvae, x["pixels"], 3),
    "usage": lambda p, c, x: tokens.usage(x["codes"]),
    "perplexity": lambda p, c, x: tokens.perplexity(x["frequencies"]),
    "logits": lambda p, c, x: p.transformer(x["tokens"]),
    "attention_maps": lambda p, c, x: p.transformer.attention_maps(x["tokens"]),
    "gumbel_noise": lambda p, c, x: sampling.gumbel_noise(2, generator=seeded()),
    "filter_logits": lambda p, c, x: sampling.filter_logits(x["vectors"], 0.8, 9, 0.7),
    "write": lambda p, c, x: written(p.transformer, x, **KNOBS),
    "sample": lambda p, c, x: sampling.sample(p.transformer, x["labels"], generator=seeded()),
    "sample, knobs": lambda p, c, x: sampling.sample(p.transformer, x["labels"], generator=seeded(), **KNOBS),
    "sample, prefix": lambda p, c, x: sampling.sample(
        p.transformer, x["tokens"][:, :1], prefix=x["prefix"], generator=seeded()
    ),
    "sample, plain": lambda p, c, x: sampling.sample(hooked(p.transformer), x["labels"], generator=seeded(), **KNOBS),
    "write_parallel": lambda p, c, x: written_parallel(p.transformer, x, **KNOBS),
    "sample_parallel": lambda p, c, x: sampling.sample_parallel(
        p.transformer, x["labels"], guess=x["codes"], prefix=x["prefix"], generator=seeded(), **KNOBS
    ),
    "code_log_probs": lambda p, c, x: sampling.code_log_probs(p.transformer, x["codes"], x["labels"]),
    "log_likelihood": lambda p, c, x: sampling.log_likelihood(p.transformer, x["codes"], x["labels"]),
    "generate": lambda p, c, x: p.generate(["Bag", 3], n=2, **KNOBS),
    "generate, any class": lambda p, c, x: p.generate(None, n=2),
    "complete": lambda p, c, x: p.complete(x["images"], "Coat", n=2),
    "pair.encode": lambda p, c, x: p.encode(x["images"]),
    "pair.decode": lambda p, c, x: p.decode(x["codes"]),
    "reconstruct": lambda p, c, x: p.reconstruct(x["images"]),
    "pair.log_likelihood": lambda p, c, x: p.log_likelihood(x["images"], x["labels"]),
    "save_png": lambda p, c, x: saved(p, x["images"]),
    "class_numbers": lambda p, c, x: class_numbers(["Bag", 1]),
    "mse": lambda p, c, x: evaluation.mse(x["images"], x["images"].flip(0)),
    "evaluation.reconstruct": lambda p, c, x: evaluation.reconstruct(p.vqvae, x["codes"]),
    "evaluate_vqvae": lambda p, c, x: evaluation.evaluate_vqvae(p.vqvae, data.Dataset(x["pixels"], x["labels"], "")),
    "evaluate_transformer": lambda p, c, x: evaluation.evaluate_transformer(p.transformer, x["codes"], x["labels"]),
    "nearest_neighbours": lambda p, c, x: evaluation.nearest_neighbours(x["images"], x["pixels"].flip(0)),
    "frechet_distance": lambda p, c, x: evaluation.frechet_distance(x["features"], x["features"][:30]),
    "coverage": lambda p, c, x: evaluation.coverage(x["features"][:20], x["features"][20:]),
    "agreement": lambda p, c, x: evaluation.agreement(x["features"][:7], x["labels"] % 4).nan_to_num(-1),
    "bayes_classes": lambda p, c, x: evaluation.bayes_classes(p.transformer, x["codes"]),
    "classify": lambda p, c, x: classify(c, x["images"]),
    "accuracy": lambda p, c, x: accuracy(c, data.Dataset(x["pixels"], x["labels"], "")),
    "rerank": lambda p, c, x: rerank(c, x["images"], 3, 4),
    "thumbnails": lambda p, c, x: baselines.thumbnails(x["images"]),
    "nearest_patches": lambda p, c, x: baselines.nearest_patches(x["images"], x["vectors"]),
    "Histogram": lambda p, c, x: counted(x["codes"], x["labels"]),
}


@pytest.fixture(scope="module")
def expected():
    """What each of them gives when nothing is set: the name -> the leaves, tensors and numbers."""
    given = *models(), inputs()
    return {name: tree_leaves(use(*given)) for name, use in USES.items()}


def assert_same(found, wanted):
    """Bit for bit."""
    found = tree_leaves(found)
    assert len(found) == len(wanted)
    for got, want in zip(found, wanted, strict=True):
        assert type(got) is type(want)
        if isinstance(want, torch.Tensor):
            assert (got.dtype, got.device) == (want.dtype, want.device) and torch.equal(got, want)
        else:
            assert got == want


def assert_near(found, wanted):
    for got, want in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
        if isinstance(want, str):
            assert got == want
        else:
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


# --- defaults, modes -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def default_device(name):
    """The device on which new tensors are made. "meta" stands in for a GPU: there are no numbers on it."""
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SETTINGS = {
    "default device": lambda: default_device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "deterministic": deterministic,
    "inference mode": torch.inference_mode,
}


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_whatever_is_set_the_results_are_the_same(expected, setting, name):
    given = *models(), inputs()
    with SETTINGS[setting]():
        found = USES[name](*given)
    assert_same(found, expected[name])


def test_a_pair_is_loaded_and_used_whatever_the_defaults():
    def used():
        pair = vqlib.load_pair(shipped=True)
        image = data.load_picture(data.load("test", mini=True).pixels[0])
        return [pair.generate("Bag", n=2), pair.log_likelihood(image, "Bag"), pair.complete(image, "Bag")]

    wanted = used()
    with default_device("meta"), default_dtype(torch.float64):
        found = used()
    assert_same(found, wanted)
    with torch.inference_mode():
        pair = vqlib.load_pair(shipped=True)
    assert not any(p.is_inference() for model in pair for p in model.parameters())  # or they couldn't be trained


@pytest.mark.parametrize("name", USES)
def test_no_result_is_an_inference_tensor(expected, name):
    """Those can't be used with gradients."""
    assert not any(leaf.is_inference() for leaf in expected[name] if isinstance(leaf, torch.Tensor))


def test_what_was_done_in_inference_mode_poisons_nothing():
    pair, classifier = models()
    with torch.inference_mode():
        for use in USES.values():
            use(pair, classifier, inputs())
    before = copy.deepcopy(pair.transformer)
    for use in USES.values():
        use(pair, classifier, inputs())
    given = inputs()
    loss = F.cross_entropy(
        pair.transformer.train()(given["tokens"][:, :-1]).flatten(0, 1), given["tokens"][:, 1:].flatten()
    )
    output = pair.vqvae(given["images"])
    loss = loss + output.images.square().mean() + sum(output.quantized.losses.values())
    (loss + classifier(given["images"]).square().mean()).backward()
    for model in (*pair, classifier):
        torch.optim.SGD(model.parameters(), 0.1).step()
    fresh = copy.deepcopy(pair.transformer)  # nothing is kept for a copy
    codes, anew = (sampling.sample(model, LABELS, generator=seeded()) for model in (pair.transformer, fresh))
    assert torch.equal(codes, anew) and not same_weights(before, pair.transformer)


def test_logits_that_are_kept_can_be_learned_from():
    pair, _ = models()
    scale = nn.Parameter(torch.ones(64))
    logits = torch.stack([cond for cond, _ in written(pair.transformer, inputs())])
    (logits * scale).square().sum().backward()
    assert scale.grad.abs().min() > 0


@pytest.mark.parametrize("name", TINY)
def test_training_runs_with_deterministic_algorithms(some, name):
    with deterministic():
        model = run(TINY[name], some)
    other = run(TINY[name], some)
    assert same_weights(model, other) and without_seconds(model) == without_seconds(other)


# --- half precision --------------------------------------------------------------------------------------------------

HALVES = [torch.float16, torch.bfloat16]
IN_THE_DTYPE_OF_THE_MODEL = {"forward", "decode", "logits", "init_from"}
REFUSED_IN_HALF = {"ema_update"}


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("dtype", HALVES)
def test_models_in_half_precision_give_what_is_documented(expected, dtype, name):
    if name in REFUSED_IN_HALF:
        with pytest.raises(ValueError, match="dtype.*half"):
            USES[name](*models(dtype), inputs())
        return
    for got, want in zip(tree_leaves(USES[name](*models(dtype), inputs())), expected[name], strict=True):
        assert type(got) is type(want)
        if isinstance(want, torch.Tensor):
            usual = got.dtype == want.dtype and got.device == want.device and got.shape == want.shape
            assert usual or (name in IN_THE_DTYPE_OF_THE_MODEL and got.dtype == dtype)
            assert not got.isnan().any()


@pytest.mark.parametrize("dtype", HALVES)
def test_tensors_in_half_precision_are_measured_in_float32(dtype):
    pair, classifier = models()
    given = inputs()
    halves = given | {name: x.to(dtype) for name, x in given.items() if x.is_floating_point()}
    floats = halves | {name: x.float() for name, x in halves.items() if x.is_floating_point()}
    names = ["kmeans", "perplexity", "filter_logits", "mse", "nearest_neighbours", "frechet_distance", "coverage"]
    names += ["agreement", "classify", "thumbnails", "pair.encode", "nearest"]
    for name in names:
        assert_same(USES[name](pair, classifier, halves), tree_leaves(USES[name](pair, classifier, floats)))


@pytest.mark.parametrize("dtype", HALVES)
def test_distances_of_a_half_model_are_taken_in_float32(dtype):
    """`encode` and `forward` choose the nearest of the codebook's own numbers, as `cdist` in float64 does."""
    quantizer = models(dtype)[0].vqvae.quantizer
    latents = torch.randn(30, 16, 7, 7, generator=seeded()).to(dtype) * 0.1
    vectors = latents.movedim(1, -1)
    distances = torch.cdist(vectors.flatten(0, 2).double(), quantizer.codebook.double())
    nearest = distances.argmin(1).reshape(30, 7, 7)
    quantized = quantizer(latents)
    assert (quantizer.nearest(vectors) == nearest).float().mean() > 0.9999
    assert torch.equal(quantized.codes, quantizer.nearest(vectors))
    assert torch.equal(quantized.latents, quantizer.lookup(quantized.codes))  # q itself, not z + (q - z) rounded
    loss = distances.min(1).values.square().sum() / latents.numel()
    torch.testing.assert_close(quantized.losses["commitment"].double(), loss, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", HALVES)
def test_top_p_keeps_at_least_p_of_logits_in_half_precision(dtype):
    logits = (torch.randn(2000, 64, generator=seeded()) * 2).to(dtype)
    kept = sampling.filter_logits(logits, 1.0, top_p=0.95).isfinite()
    share = torch.where(kept, logits.double().softmax(-1), 0).sum(-1)
    assert share.min() > 0.95 - 1e-6


@pytest.mark.parametrize("dtype", HALVES)
def test_noise_is_not_rounded_with_the_model(dtype):
    """At equal logits the noise alone decides. Rounded, its two largest numbers would now and then be the same."""
    transformer, noise = models(dtype)[0].transformer, sampling.gumbel_noise(200, generator=seeded())
    transformer.head.weight.data.zero_()
    codes = sampling.sample(transformer, torch.arange(200) % 10, temperature=1.0, generator=seeded())
    assert torch.equal(codes.flatten(1), noise.argmax(-1)) and not torch.equal(
        codes.flatten(1), noise.to(dtype).argmax(-1)
    )


# --- layouts ---------------------------------------------------------------------------------------------------------


def transposed(x):
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def sliced(x):
    return torch.stack([x, x.flip(0)], -1)[..., 0]


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def expanded(x):
    return x[:1].expand_as(x)


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("layout", [transposed, sliced, channels_last, expanded])
def test_memory_layouts_make_no_difference(layout, name):
    """In float64, where the order of a sum hardly shows."""
    given = {key: layout(x) for key, x in inputs().items()}
    packed = {key: x.contiguous() for key, x in given.items()}
    assert_near(*(USES[name](*models(torch.float64), x) for x in (given, packed)))


# --- compiled, exported, quantized -----------------------------------------------------------------------------------


def compiled(model):
    torch._dynamo.reset()
    return torch.compile(model, backend="aot_eager")


@pytest.mark.slow
def test_compiled_models_are_used_like_others(expected):
    pair, classifier = models()
    given, pair = inputs(), Pair(*(compiled(model) for model in pair))
    names = ["forward", "encode", "decode", "logits", "attention_maps", "sample", "sample, prefix", "log_likelihood"]
    names += ["generate", "complete", "reconstruct", "evaluate_vqvae", "evaluate_transformer", "classify"]
    names += ["sample_parallel"]
    for name in names:
        assert_near(USES[name](pair, compiled(classifier) if name == "classify" else classifier, given), expected[name])
    assert stepper.is_plain(lively_transformer())  # the compiler leaves no trace that would make others slow
    pair.transformer.train()
    sampling.sample(pair.transformer, LABELS)
    assert pair.transformer.training and all(module.training for module in pair.transformer.modules())


@pytest.mark.slow
def test_models_can_be_exported(expected):
    (vqvae, transformer), classifier = models()
    given = inputs()
    latents = vqvae.quantizer.lookup(given["codes"]).detach()
    for model, argument in ((transformer, given["tokens"]), (vqvae, given["images"]), (vqvae.decoder, latents)):
        exported = torch.export.export(model, (argument,)).module()
        assert_near(exported(argument), model(argument))
    assert_near(
        torch.export.export(classifier, (given["images"],)).module()(given["images"]), classifier(given["images"])
    )


def test_quantized_models_are_used_like_others(expected):
    (vqvae, transformer), classifier = models()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch moves this to another package
        quantize = torch.ao.quantization.quantize_dynamic
        transformer, classifier = (quantize(model, {nn.Linear}) for model in (transformer, classifier))
    names = [
        "logits",
        "attention_maps",
        "sample",
        "sample, knobs",
        "sample_parallel",
        "log_likelihood",
        "generate",
        "complete",
        "classify",
    ]
    for name in [*names, "accuracy", "rerank", "evaluate_transformer", "bayes_classes"]:
        found = tree_leaves(USES[name](Pair(vqvae, transformer), classifier, inputs()))
        for got, want in zip(found, expected[name], strict=True):
            assert type(got) is type(want) and (not isinstance(want, torch.Tensor) or got.shape == want.shape)


# --- modes and threads -----------------------------------------------------------------------------------------------


def flags(model):
    return [module.training for module in model.modules()]


def partly_training():
    """A Transformer of which some modules train and some don't, the root among the former."""
    transformer = models()[0].transformer.train()
    transformer.blocks[0].eval()
    transformer.blocks[1].mlp.eval()
    return transformer


@pytest.mark.parametrize("root", [True, False])
def test_every_module_gets_its_own_mode_back(root):
    transformer, codes = partly_training(), inputs()["codes"]
    transformer.training = root
    before = flags(transformer)
    for use in (
        lambda: sampling.sample(transformer, LABELS),
        lambda: sampling.sample_parallel(transformer, LABELS),
        lambda: sampling.log_likelihood(transformer, codes, LABELS),
        lambda: transformer.attention_maps(codes.flatten(1)),
        lambda: evaluation.evaluate_transformer(transformer, codes, LABELS),
    ):
        use()
        assert flags(transformer) == before
    with pytest.raises(RuntimeError, match="mine"), eval_mode(transformer):
        with eval_mode(transformer):
            assert not any(flags(transformer))
        assert not any(flags(transformer))
        raise RuntimeError("mine")
    assert flags(transformer) == before


def test_a_classifier_gets_its_modes_back():
    classifier = models()[1].train()
    classifier.body[1].eval()  # frozen statistics
    before = flags(classifier)
    classify(classifier, inputs()["images"])
    assert flags(classifier) == before


def test_a_model_in_eval_mode_is_not_written_to(monkeypatch):
    transformer, written = models()[0].transformer, []
    monkeypatch.setattr(nn.Module, "__setattr__", lambda module, name, value: written.append(name))
    with eval_mode(transformer):
        pass
    assert not written


def in_threads(function, n):
    """``[function(0), …, function(n - 1)]``, each in a thread of its own, all begun together."""
    results, barrier = [None] * n, threading.Barrier(n)

    def work(i):
        barrier.wait()
        try:
            results[i] = function(i)
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.mark.parametrize("plain", [True, False])
def test_threads_that_share_a_model_disturb_nothing(plain):
    """With a hook each step is the plain forward's, with dropout if another thread put the mode back too early."""
    transformer = hooked(partly_training()) if plain else partly_training()
    before = flags(transformer)

    def draw(i):
        return sampling.sample(transformer, LABELS[: 1 + i], generator=seeded(i))

    alone = [draw(i) for i in range(6)]
    together = in_threads(draw, 6)
    assert all(torch.equal(got, want) for got, want in zip(together, alone, strict=True))
    assert flags(transformer) == before


def test_the_last_thread_that_leaves_restores_the_modes():
    transformer, first_left, second_came = partly_training(), threading.Event(), threading.Event()
    before = flags(transformer)

    def use(i):
        if i == 0:
            with eval_mode(transformer):
                second_came.wait(30)
            first_left.set()
            return True
        with eval_mode(transformer):
            second_came.set()
            first_left.wait(30)
            return not any(flags(transformer))

    assert in_threads(use, 2) == [True, True] and flags(transformer) == before


# --- the fast path ---------------------------------------------------------------------------------------------------


def louder(module, x):
    return 2 * F.linear(x, module.weight, module.bias)


@pytest.mark.parametrize("patched, method", [(nn.Linear, louder), (nn.GELU, lambda module, x: F.relu(x))])
def test_a_method_replaced_in_a_class_is_called(monkeypatch, patched, method):
    transformer = lively_transformer()
    before = sampling.sample(transformer, LABELS, generator=seeded())
    monkeypatch.setattr(patched, "forward", method)
    after = sampling.sample(transformer, LABELS, generator=seeded())
    transformer.register_forward_hook(lambda *arguments: None)  # plain, whatever the fast path makes of it
    assert torch.equal(after, sampling.sample(transformer, LABELS, generator=seeded())) and not torch.equal(
        after, before
    )
    monkeypatch.undo()
    assert stepper.is_plain(lively_transformer())


# --- words -----------------------------------------------------------------------------------------------------------

NO_LABELS = ["Shirt", ["Shirt", "Bag"], np.array([1, 2, 3]), [1, 2, 3], 3]
TAKES_LABELS = {
    "sample": lambda labels: sampling.sample(lively_transformer(), labels),
    "sample_parallel": lambda labels: sampling.sample_parallel(lively_transformer(), labels),
    "log_likelihood": lambda labels: sampling.log_likelihood(lively_transformer(), inputs()["codes"], labels),
    "to_sequences": lambda labels: VOCABULARY.to_sequences(inputs()["codes"], labels),
    "evaluate_transformer": lambda labels: evaluation.evaluate_transformer(
        lively_transformer(), inputs()["codes"], labels
    ),
    "Histogram.fit": lambda labels: baselines.Histogram.fit(inputs()["codes"], labels),
    "Histogram.sample": lambda labels: baselines.Histogram.fit(inputs()["codes"], LABELS).sample(labels),
    "Histogram.nats_per_code": lambda labels: baselines.Histogram.fit(inputs()["codes"], LABELS).nats_per_code(
        inputs()["codes"], labels
    ),
    "agreement": lambda labels: evaluation.agreement(torch.zeros(7, 10), labels),
    "Dataset": lambda labels: data.Dataset(inputs()["pixels"], labels, ""),
}


@pytest.mark.parametrize("labels", NO_LABELS, ids=repr)
@pytest.mark.parametrize("name", TAKES_LABELS)
def test_where_labels_are_wanted_the_error_says_how_names_become_labels(name, labels):
    with pytest.raises(ValueError, match="labels must .*class_numbers"):
        TAKES_LABELS[name](labels)


def test_the_label_to_rerank_by_is_a_number():
    with pytest.raises(ValueError, match="label must .*class_numbers"):
        rerank(models()[1], inputs()["images"], "Shirt", 3)


@pytest.mark.parametrize("K", [32, 128])
def test_a_pair_put_together_by_hand_must_agree_on_the_codes(K):
    pair, images = Pair(models()[0].vqvae, lively_transformer(num_codes=K)), inputs()["images"]
    uses = lambda: pair.generate("Bag", 1), lambda: pair.complete(images, "Bag"), lambda: pair.log_likelihood(images, 3)
    for use in uses:
        with pytest.raises(ValueError, match=f"64 codes.*{K}"):
            use()


def test_nothing_is_checked_by_assert():
    """`python -O` leaves assert statements out."""
    for path in Path(vqlib.__file__).parent.rglob("*.py"):
        assert not [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Assert)], path


def test_an_optimized_python_refuses_in_words():
    code = "import torch, vqlib; vqlib.load_pair(shipped=True).decode(torch.full((1, 7, 7), 64))"
    found = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, env=environment())
    assert found.returncode == 1 and "ValueError: codes must be" in found.stderr


# --- pictures on another scale ---------------------------------------------------------------------------------------

TAKES_IMAGES = ["encode", "pair.encode", "reconstruct", "complete", "pair.log_likelihood", "mse", "nearest_neighbours"]
TAKES_IMAGES += ["classify", "rerank", "save_png"]


@pytest.mark.parametrize("name", TAKES_IMAGES)
def test_pictures_in_0_to_1_are_warned_of_where_they_were_given(name):
    given = *models(), inputs()
    given[2]["images"] = given[2]["images"] / 2 + 0.5
    with pytest.warns(checks.ScaleWarning, match=r"(images|others) must .*\* 2 - 1") as warned:
        USES[name](*given)
    assert {Path(warning.filename).name for warning in warned} == {"test_anywhere.py"}


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 1, 28, 28), torch.full((2, 1, 28, 28), -1.0), torch.zeros(0, 1, 28, 28)]
)
def test_dark_grey_and_no_pictures_are_not_warned_of(images):
    models()[0].encode(images)  # a warning would be an error here
