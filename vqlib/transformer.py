"""The second stage: a decoder-only Transformer that predicts the next token (notebook 04).

Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762), with the norm before each sub-layer
(Xiong et al., arXiv 2002.04745) and GELU, as in GPT-2.
"""

import contextlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vqlib.data import check_number, check_whole, describe
from vqlib.tokens import VOCABULARY_SIZE


@dataclass(frozen=True)
class TransformerConfig:
    vocabulary_size: int = VOCABULARY_SIZE
    d_model: int = 256
    n_heads: int = 8
    n_layers: int = 8
    context: int = 152    # the ancestor's 3 · 51 - 1; one picture needs 50 inputs, and only those positions are trained
    dropout: float = 0.1
    qk_norm: bool = False  # True: queries and keys of length √d, times a learned gain, so that no logit runs away
    tied: bool = False     # True: one matrix both reads tokens in and scores them (Press and Wolf, arXiv 1608.05859)

    def __post_init__(self):
        for name in ("vocabulary_size", "d_model", "n_heads", "n_layers", "context"):
            check_whole(name, getattr(self, name), 1)
        check_number("dropout", self.dropout, 0, 1)
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model must be a multiple of n_heads, got {self.d_model} and {self.n_heads}")


class Cache:
    """Keys and values of the tokens seen so far, so that a new token costs one token's work.

    Room for ``length`` tokens is taken at once: keys and values are (layers, B, heads, length, head dimension).
    """

    def __init__(self, config, batch_size, length, device=None, dtype=None):
        shape = (config.n_layers, batch_size, config.n_heads, length, config.d_model // config.n_heads)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0  # tokens stored so far

    def append(self, layer, keys, values):
        """Store (B, heads, T, head dimension) keys and values of one layer; return all that it has."""
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length:end] = keys
        self.values[layer, :, :, self.length:end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class RMSNorm(nn.RMSNorm):
    """x / √(mean x² + ε) · weight, in the dtype of x also where autocast makes x bf16 and leaves the weight float32."""

    def forward(self, x):
        eps = min(torch.finfo(dtype).eps for dtype in (self.weight.dtype, torch.float32))
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), eps)


class CausalSelfAttention(nn.Module):
    """softmax(QKᵀ/√d + mask) V in ``n_heads`` heads; no token sees a later one (section 3.2).

    With ``qk_norm``, each head's queries and keys are first brought to length √d, times learned gains (after Henry et
    al., arXiv 2010.04245, who learn one scale in place of 1/√d).
    """

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.n_heads, self.dropout = layer, config.n_heads, config.dropout
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)
        size = config.d_model // config.n_heads
        self.norm_q, self.norm_k = (RMSNorm(size) if config.qk_norm else nn.Identity() for _ in range(2))

    def queries_keys_values(self, x):
        """(B, T, C) -> three times (B, heads, T, C / heads)."""
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.n_heads)
        return self.norm_q(q), self.norm_k(k), v

    def forward(self, x, cache=None):
        T = x.shape[1]
        q, k, v = self.queries_keys_values(x)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        dropout = self.dropout if self.training else 0.0
        if T == k.shape[2]:  # every query's own keys, nothing before them: the usual lower triangle
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        else:                # T new queries after k.shape[2] - T cached tokens, which all of them may see
            mask = causal_mask(T, k.shape[2], x.device) if T > 1 else None
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out(rearrange(y, "b h t d -> b t (h d)"))

    def weights(self, x):
        """The attention itself, for looking at: (B, T, C) -> (B, heads, T, T) rows that sum to 1."""
        q, k, _ = self.queries_keys_values(x)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        return scores.masked_fill(~causal_mask(x.shape[1], x.shape[1], x.device), -torch.inf).softmax(-1)


def causal_mask(queries, keys, device=None):
    """(queries, keys) bool, True where a query may look: the last query sees all keys, each one before it one less."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config, layer):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.d_model)
        self.attention = CausalSelfAttention(config, layer)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.mlp = nn.Sequential(nn.Linear(config.d_model, 4 * config.d_model), nn.GELU(approximate="tanh"),
                                 nn.Linear(4 * config.d_model, config.d_model))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, cache=None):
        x = x + self.dropout(self.attention(self.norm1(x), cache))
        return x + self.dropout(self.mlp(self.norm2(x)))


class Transformer(nn.Module):
    """Tokens in, for each position the logits of the next token out."""

    def __init__(self, config=None):
        super().__init__()
        self.config = config = config or TransformerConfig()
        self.token_embedding = nn.Embedding(config.vocabulary_size, config.d_model)
        self.position_embedding = nn.Embedding(config.context, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocabulary_size, bias=False)
        if config.tied:
            self.head.weight = self.token_embedding.weight
        self.apply(self._init)

    def _init(self, module):
        """Small normal weights, smaller where a layer writes into the residual stream (GPT-2, section 2.3)."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Block):
            for layer in (module.attention.out, module.mlp[-1]):
                nn.init.normal_(layer.weight, std=0.02 / (2 * self.config.n_layers) ** 0.5)

    def forward(self, tokens, cache=None):
        """(B, T) int64 tokens in 0…74 -> (B, T, 75) logits: row t is about token t + 1, and sees tokens 0…t.

        cache: a `Cache`; the tokens then continue those it holds, and it grows by T.
        Raises ValueError where tokens are of another shape or dtype, or don't fit the context or the cache; IndexError
        (on a GPU, CUDA's assertion) where one is not in 0…74.
        """
        x = self.embed(tokens, cache)
        for block in self.blocks:
            x = block(x, cache)
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.head(self.norm(x))

    def embed(self, tokens, cache=None):
        """(B, T) int64 tokens -> (B, T, d_model): what a token is, plus where it stands."""
        if not isinstance(tokens, torch.Tensor) or tokens.ndim != 2 or tokens.dtype != torch.int64:
            raise ValueError(f"tokens must be (B, T) int64, got {describe(tokens)}")
        start = cache.length if cache is not None else 0
        end, room = start + tokens.shape[1], self.config.context
        if cache is not None:
            room = min(room, cache.keys.shape[3])
            if len(tokens) != cache.keys.shape[1]:
                raise ValueError(f"the cache was made for {cache.keys.shape[1]} sequences, got {len(tokens)}")
        if end > room:
            raise ValueError(f"{end} tokens do not fit: there is room for {room}; a picture needs 50")
        positions = torch.arange(start, end, device=tokens.device)
        return self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))

    @torch.no_grad()
    def attention_maps(self, tokens):
        """Where each head looks: (B, T) int64 tokens -> (layers, B, heads, T, T) weights, each row a distribution.

        In eval mode, whatever mode the model is in.
        """
        with eval_mode(self):
            x, maps = self.embed(tokens), []
            for block in self.blocks:
                maps.append(block.attention.weights(block.norm1(x)))
                x = block(x)
            return torch.stack(maps)

    def new_cache(self, batch_size, length):
        """An empty `Cache` on this model's device, with room for ``length`` tokens."""
        weight = self.head.weight
        return Cache(self.config, batch_size, length, weight.device, weight.dtype)

    def stepper(self, rows=8):
        """A `Stepper`: the fast way to feed one token at a time, laid out for about so many sequences."""
        return Stepper(self, rows)


@contextlib.contextmanager
def eval_mode(model):
    """Within it the model is in eval mode; afterwards in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class Stepper:
    """What ``transformer(tokens[:, None], cache)`` does in eval mode, faster where there are few rows.

    With 8 rows on a CPU a step waits for the weights to arrive from memory and for the calls around its small products.
    So each matrix is laid out once as its product reads it, and the layers are written out flat. Holds copies of the
    weights, and gives no gradients: make it after training, and anew where they change.
    """

    def __init__(self, transformer, rows=8):
        if transformer.training:
            raise ValueError("a Stepper has no dropout: call transformer.eval() first")
        self.model = transformer
        self.layers = []
        for block in transformer.blocks:
            attention, gain = block.attention, None
            if transformer.config.qk_norm:
                gains = torch.stack([attention.norm_q.weight, attention.norm_k.weight]).detach()
                gain = gains[:, None, None] * gains.shape[1] ** 0.5
            qkv, out, up, down = (_for_few_rows(linear, rows)
                                  for linear in (attention.qkv, attention.out, block.mlp[0], block.mlp[2]))
            self.layers.append((block.norm1, qkv, gain, out, block.norm2, up, down))

    @torch.no_grad()
    def __call__(self, tokens, cache):
        """(B,) int64 tokens, one after those in the `Cache` -> (B, 75) logits of the next; the cache grows by one."""
        model, heads, B, t = self.model, self.model.config.n_heads, len(tokens), cache.length
        x = model.embed(tokens[:, None], cache)[:, 0]
        for layer, (norm1, qkv, gain, out, norm2, up, down) in enumerate(self.layers):
            y = qkv(norm1(x)).view(B, 3, heads, 1, -1)
            q, k, v = y.unbind(1)
            if gain is not None:  # RMSNorm is length √d; of both at once
                q, k = (F.normalize(y[:, :2], dim=-1) * gain).unbind(1)
            y = F.scaled_dot_product_attention(q, *cache.append(layer, k, v))
            x = x + out(y.view(B, -1))
            x = x + down(F.gelu(up(norm2(x)), approximate="tanh"))
        cache.length = t + 1
        return model.head(model.norm(x))


def _for_few_rows(linear, rows):
    """What the linear layer does, as a function of (B, in) rows, with its weights laid out for few of them.

    Weights that are float16 numbers anyway, as all that we ship are, can be read as such: half the bytes, and the same
    products and float32 sums. PyTorch has this for CPUs with FBGEMM (x86).
    """
    weight, bias = linear.weight.detach(), linear.bias.detach()
    few = rows <= 128  # with more, the arithmetic takes the time, and float32's is faster
    if (few and weight.device.type == "cpu" and weight.dtype == torch.float32 and
            torch.backends.quantized.engine in ("x86", "fbgemm") and torch.equal(weight.half().float(), weight)):
        packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        return lambda x: torch.ops.quantized.linear_dynamic_fp16(x, packed)
    weight = weight.t().contiguous()
    return lambda x: torch.addmm(bias, x, weight)
