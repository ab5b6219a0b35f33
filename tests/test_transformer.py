import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import lively_transformer, seeded

from vqlib.transformer import Cache, Transformer, TransformerConfig, causal_mask


def tokens_of(B=3, S=50, seed=0):
    return torch.randint(75, (B, S), generator=seeded(seed))


@pytest.fixture(params=[False, True], ids=["plain", "qk_norm"])
def transformer(request):
    return lively_transformer(request.param)


# --- causality -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0, 1, 24, 49])
def test_by_gradient_a_row_sees_its_own_and_earlier_tokens_only(transformer, t):
    embedded = []

    def keep(module, inputs, output):
        embedded.append(output)

    transformer.token_embedding.register_forward_hook(keep)
    logits = transformer(tokens_of())
    (gradient,) = torch.autograd.grad(logits[1, t].square().sum(), embedded[0])
    reach = gradient.abs().sum(-1)
    assert (reach[1, : t + 1] > 1e-9).all() and (reach[1, t + 1 :] == 0).all()
    assert (reach[[0, 2]] == 0).all()  # nor another picture's


@pytest.mark.parametrize("t", [0, 1, 24, 49])
def test_changing_a_token_leaves_the_rows_before_it_alone(transformer, t):
    tokens = tokens_of()
    changed = tokens.clone()
    changed[1, t] = (changed[1, t] + 1) % 75
    difference = (transformer(changed) - transformer(tokens)).abs().amax(-1)
    assert difference[1, :t].sum() == 0 and difference[[0, 2]].sum() == 0
    assert (difference[1, t:] > 1e-6).all()


def test_the_same_token_means_something_else_elsewhere(transformer):
    logits = transformer(torch.full((1, 10), 5))
    assert (logits[0, 1:] - logits[0, :-1]).abs().amax(-1).min() > 1e-3


def test_causal_mask_lets_the_last_query_see_all():
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True] * 4]
    assert torch.equal(causal_mask(5, 5), torch.ones(5, 5).tril().bool())


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [[1] * 50, [50], [22] + [1] * 28, [7, 1, 5, 1, 1, 20, 15], [2] * 25])
def test_cached_logits_equal_uncached_ones(transformer, chunks):
    tokens, cache = tokens_of(), transformer.new_cache(3, 50)
    parts = [transformer(part, cache) for part in tokens.split(chunks, dim=1)]
    assert cache.length == 50
    assert (torch.cat(parts, 1) - transformer(tokens)).abs().max() < 1e-10


def test_a_cache_is_filled_as_far_as_it_says(transformer):
    cache = transformer.new_cache(2, 9)
    assert isinstance(cache, Cache) and cache.keys.shape == cache.values.shape == (2, 2, 4, 9, 8)
    assert cache.keys.dtype == torch.float64 and cache.length == 0
    transformer(tokens_of(2, 4), cache)
    assert cache.length == 4
    assert (cache.keys[..., :4, :].abs().amax(-1) > 0).all() and (cache.keys[..., 4:, :] == 0).all()


def test_a_cache_is_for_one_batch_size(transformer):
    with pytest.raises(ValueError, match="tokens"):
        transformer(tokens_of()[:, :4], transformer.new_cache(1, 50))


def test_a_cache_made_without_gradients_works_with_them(transformer):
    with torch.no_grad():
        cache = transformer.new_cache(3, 50)
    logits = transformer(tokens_of()[:, :4], cache)
    assert logits.requires_grad and torch.equal(logits, transformer(tokens_of()[:, :4]))


def test_a_full_cache_refuses_more_tokens(transformer):
    cache = transformer.new_cache(3, 5)
    transformer(tokens_of(S=4), cache)
    with pytest.raises(ValueError, match="tokens.* 5"):
        transformer(tokens_of(S=2), cache)
    assert cache.length == 4 and transformer(tokens_of(S=1), cache).shape == (3, 1, 75)


def test_original_defect_6_the_context_is_what_the_config_says():
    assert TransformerConfig().context == 152
    transformer = Transformer(TransformerConfig(d_model=8, n_heads=2, n_layers=1))
    assert transformer(tokens_of(2, 152)).shape == (2, 152, 75)
    with pytest.raises(ValueError, match="tokens.* 152"):
        transformer(tokens_of(2, 153))
    cache = transformer.new_cache(2, 200)  # a larger cache makes no longer context
    transformer(tokens_of(2, 152), cache)
    with pytest.raises(ValueError, match="tokens.* 152"):
        transformer(tokens_of(2, 1), cache)


# --- attention, looked at --------------------------------------------------------------------------------------------


def test_attention_maps_are_distributions_over_the_past(transformer):
    maps = transformer.attention_maps(tokens_of())
    assert maps.shape == (2, 3, 4, 50, 50)
    assert (maps.sum(-1) - 1).abs().max() < 1e-12 and maps.min() >= 0
    assert (maps.triu(1) == 0).all() and (maps[..., 1:, 0] > 0).all()
    assert maps[..., 49, :].max() > 0.1  # far from uniform, or the next test would say little


def test_the_model_by_hand_from_its_attention_maps_is_the_model(transformer):
    tokens = tokens_of()
    maps = transformer.attention_maps(tokens)
    x = transformer.token_embedding.weight[tokens] + transformer.position_embedding.weight[:50]
    for block, attention in zip(transformer.blocks, maps, strict=True):
        normed = F.layer_norm(x, (32,), block.norm1.weight, block.norm1.bias)
        value = (normed @ block.attention.qkv.weight[64:].T + block.attention.qkv.bias[64:]).reshape(3, 50, 4, 8)
        heads = torch.stack([attention[:, h] @ value[:, :, h] for h in range(4)], dim=2)
        x = x + block.attention.out(heads.reshape(3, 50, 32))
        x = x + block.mlp(F.layer_norm(x, (32,), block.norm2.weight, block.norm2.bias))
    logits = F.layer_norm(x, (32,), transformer.norm.weight, transformer.norm.bias) @ transformer.head.weight.T
    assert (logits - transformer(tokens)).abs().max() < 1e-10


def test_attention_maps_are_without_dropout_whatever_the_mode():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(d_model=32, n_heads=4, n_layers=2, dropout=0.5)).eval()
    expected = model.attention_maps(tokens_of())
    assert torch.equal(model.train().attention_maps(tokens_of()), expected) and model.training


def test_queries_are_compared_with_keys_over_the_root_of_the_dimension():
    transformer = lively_transformer()
    tokens, block = tokens_of(), transformer.blocks[0]
    normed = block.norm1(transformer.embed(tokens))
    query, key, _ = block.attention.qkv(normed).reshape(3, 50, 3, 4, 8).unbind(2)
    scores = torch.stack([query[1, 30, 2] @ key[1, s, 2] for s in range(31)]) / 8**0.5
    assert (block.attention.attention_weights(normed)[1, 2, 30, :31] - scores.softmax(0)).abs().max() < 1e-12


def test_with_qk_norm_queries_and_keys_have_the_length_of_the_root_of_their_dimension():
    plain, normed = (lively_transformer(qk_norm).blocks[0].attention for qk_norm in (False, True))
    x = torch.randn(2, 9, 32, dtype=torch.float64, generator=seeded()) * 100
    for ours, theirs in zip(normed.queries_keys_values(x)[:2], plain.queries_keys_values(x)[:2], strict=True):
        assert ours.shape == (2, 4, 9, 8) and (ours.norm(dim=-1) - 8**0.5).abs().max() < 1e-6
        assert (ours - theirs * 8**0.5 / theirs.norm(dim=-1, keepdim=True)).abs().max() < 1e-6
    assert torch.equal(normed.queries_keys_values(x)[2], plain.queries_keys_values(x)[2])  # values are left alone


# --- size, modes, bad input ------------------------------------------------------------------------------------------


def test_the_default_has_the_size_of_the_original():
    config = TransformerConfig()
    assert (config.d_model, config.n_heads, config.n_layers, config.dropout) == (256, 8, 8, 0.1)
    d = 256
    block = 2 * 2 * d + (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d)
    assert sum(p.numel() for p in Transformer().parameters()) == 6_395_904 == (75 + 152 + 2 + 75) * d + 8 * block


@pytest.mark.parametrize("num_codes, num_classes, size", [(64, 10, 75), (32, 10, 43), (256, 10, 267), (8, 3, 12)])
def test_the_vocabulary_follows_from_codes_and_classes(num_codes, num_classes, size):
    model = lively_transformer(num_codes=num_codes, num_classes=num_classes)
    assert (model.config.vocabulary.num_codes, model.config.vocabulary.num_classes) == (num_codes, num_classes)
    assert model.token_embedding.num_embeddings == model.head.out_features == model.config.vocabulary.size == size
    assert model(torch.tensor([[0, size - 1]])).shape == (1, 2, size)
    with pytest.raises(IndexError):
        model(torch.tensor([[0, size]]))


def test_an_untrained_model_knows_nothing():
    torch.manual_seed(0)
    logits = Transformer(TransformerConfig(d_model=64, n_heads=4, n_layers=2))(tokens_of())
    assert F.cross_entropy(logits.flatten(0, 1), tokens_of(seed=1).flatten()).item() == pytest.approx(4.317, abs=0.1)


def test_layers_that_write_into_the_residual_stream_start_smaller():
    torch.manual_seed(0)
    block = Transformer(TransformerConfig(d_model=128, n_heads=4, n_layers=8)).blocks[3]
    for layer in (block.attention.qkv, block.mlp[0]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05) and not layer.bias.any()
    for layer in (block.attention.out, block.mlp[2]):  # 16 layers write: a sum of 16 has 4 times the deviation
        assert layer.weight.std().item() == pytest.approx(0.005, rel=0.05) and not layer.bias.any()


def test_dropout_works_in_training_mode_only(transformer):
    tokens = tokens_of()
    assert torch.equal(transformer(tokens), transformer(tokens))
    transformer.train()
    assert not torch.equal(transformer(tokens), transformer(tokens))
    attention = transformer.blocks[0].attention
    x = transformer.token_embedding(tokens)
    assert not torch.equal(attention(x), attention(x))
    assert torch.equal(attention.eval()(x), attention(x))


TOKENS = torch.zeros(2, 5, dtype=torch.int64)


@pytest.mark.parametrize("tokens", [TOKENS.float(), TOKENS[0], TOKENS.int(), TOKENS[..., None], TOKENS.tolist(), None])
def test_other_shapes_and_dtypes_are_refused(transformer, tokens):
    for function in (transformer, transformer.embed, transformer.attention_maps):
        with pytest.raises(ValueError, match="tokens"):
            function(tokens)


@pytest.mark.parametrize("token", [75, -1])
def test_tokens_outside_the_vocabulary_are_refused(transformer, token):
    with pytest.raises(IndexError, match="out of range"):
        transformer(torch.full((1, 3), token))


@pytest.mark.parametrize(
    "name, value",
    [
        ("d_model", 30),  # no multiple of 4 heads
        ("n_heads", 0),
        ("n_layers", 1.0),
        ("context", True),
        ("num_codes", -1),
        ("num_classes", "10"),
        ("dropout", 1.5),
    ],
)
def test_a_configuration_is_checked(name, value):
    with pytest.raises(ValueError, match=name):
        TransformerConfig(**{"d_model": 32, "n_heads": 4, name: value})


# --- one matrix to read and to score ---------------------------------------------------------------------------------


def test_tied_weights_are_one_matrix_wherever_they_go(tmp_path):
    from vqlib import checkpoints, training

    config = TransformerConfig(d_model=16, n_heads=2, n_layers=1, dropout=0.0)
    plain, tied = Transformer(config), Transformer(dataclasses.replace(config, tied=True))
    assert plain.head.weight is not plain.token_embedding.weight
    count = [sum(p.numel() for p in model.parameters()) for model in (plain, tied)]
    assert count[0] - count[1] == 75 * 16
    pair = torch.randint(64, (40, 7, 7), generator=seeded()), torch.arange(40) % 10
    recipe = training.TransformerRecipe(name="t", epochs=2, batch_size=20, learning_rate=1e-2, model=tied.config)
    stage, resumed = (training.TransformerStage(recipe, pair, "cpu") for _ in range(2))
    for s in (stage, resumed):  # the second goes on from the checkpoint of the first
        training.fit(s, path=tmp_path / "t.safetensors", progress=False)
    checkpoints.save_model(tmp_path / "t", stage.model.half().float(), torch.float16)
    loaded = checkpoints.load_model(tmp_path / "t", Transformer, TransformerConfig)
    for model in (stage.model, resumed.model, loaded, loaded.double()):
        assert model.head.weight is model.token_embedding.weight
    tokens = tied.config.vocabulary.to_sequences(*pair)[:3, :50]
    assert torch.equal(loaded(tokens), stage.model.double()(tokens))
