"""The second stage: a decoder-only Transformer that predicts the next token (notebook 04).

Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762), with the norm in front of each sub-layer
(Xiong et al., arXiv 2002.04745) and GELU, as in GPT-2.
"""

import contextlib
import threading
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from vqlib import checks
from vqlib.tokens import Vocabulary
from vqlib.vqvae import widened

_LOCK, _USERS = threading.Lock(), {}  # module that is in training mode -> how many `eval_mode` blocks are using it


@dataclass(frozen=True)
class TransformerConfig:
    num_codes: int = 64  # K of the tokenizer
    num_classes: int = 10
    num_words: int = 0  # tokens for captions, see `captions`
    d_model: int = 256
    n_heads: int = 8
    n_layers: int = 8
    context: int = 152  # the most tokens it takes (3 · 51 - 1, three pictures). Training feeds 50: class, 49 codes
    dropout: float = 0.1
    qk_norm: bool = False  # True: normalise queries and keys, so that no attention logit runs away
    tied: bool = False  # True: one matrix both embeds tokens and scores them (Press and Wolf, arXiv 1608.05859)

    def __post_init__(self):
        for name in ("num_codes", "num_classes", "d_model", "n_heads", "n_layers", "context"):
            checks.check_whole(name, getattr(self, name), 1)
        checks.check_whole("num_words", self.num_words, 0)
        checks.check_number("dropout", self.dropout, 0, 1)
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model must be a multiple of n_heads, got {self.d_model} and {self.n_heads}")

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.num_codes, self.num_classes, self.num_words)


class Cache:
    """Keys and values of the tokens seen so far, so that a new token costs the work of one token.

    Room for ``capacity`` tokens is allocated at once: keys and values are (layers, B, heads, capacity, head dimension).
    They lie side by side in ``pairs``, (layers, B, 2, heads, capacity, head dimension), so that one copy writes both.
    """

    def __init__(self, config, batch_size, capacity, device=None, dtype=None):
        shape = (config.n_layers, batch_size, 2, config.n_heads, capacity, config.d_model // config.n_heads)
        self.batch_size, self.capacity = batch_size, capacity
        self.pairs = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0  # tokens stored so far

    keys = property(lambda self: self.pairs[:, :, 0])
    values = property(lambda self: self.pairs[:, :, 1])

    def append(self, layer, keys, values):
        """Store one layer's new keys and values, (B, heads, S, head dimension), and return all that it has.

        `Transformer.forward` moves ``length`` on after the last layer, since all layers store the same tokens.
        """
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class RMSNorm(nn.RMSNorm):
    """x / √(mean x² + ε) · weight, in the dtype of x, even if autocast makes x bf16 and leaves the weight float32."""

    def forward(self, x):
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), rms_eps(self.weight.dtype))


def rms_eps(dtype):
    """RMSNorm's ε: float32's or float64's. PyTorch's default is that of x's dtype, and 0.008 in bf16 would shrink x."""
    return min(torch.finfo(kind).eps for kind in (dtype, torch.float32))


class CausalSelfAttention(nn.Module):
    """softmax(QKᵀ/√d + mask) V in ``n_heads`` heads; no token sees a later one (section 3.2).

    With ``qk_norm``, each head's queries and keys are first scaled to length √d and multiplied by learned gains (after
    arXiv 2010.04245).
    """

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.n_heads, self.dropout = layer, config.n_heads, config.dropout
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)
        size = config.d_model // config.n_heads
        self.norm_q, self.norm_k = (RMSNorm(size) if config.qk_norm else nn.Identity() for _ in range(2))

    def queries_keys_values(self, x):
        """(B, S, d_model) -> three times (B, heads, S, d), where d = d_model / heads."""
        q, k, v = rearrange(self.qkv(x), "b s (three h d) -> three b h s d", three=3, h=self.n_heads)
        return self.norm_q(q), self.norm_k(k), v

    def forward(self, x, cache=None):
        S = x.shape[1]
        q, k, v = self.queries_keys_values(x)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        dropout = self.dropout if self.training else 0.0
        if S == k.shape[2]:  # nothing was cached before these tokens: the usual triangle, which has a fast kernel
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        else:  # S new queries follow k.shape[2] - S cached tokens, which all of them may see
            mask = causal_mask(S, k.shape[2], x.device) if S > 1 else None  # a single query may see everything
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out(rearrange(y, "b h s d -> b s (h d)"))

    def attention_weights(self, x):
        """The softmax itself, to look at: (B, S, d_model) -> (B, heads, S, S), rows that sum to 1."""
        q, k, _ = self.queries_keys_values(x)
        scores = widened(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5)
        return scores.masked_fill(~causal_mask(x.shape[1], x.shape[1], x.device), -torch.inf).softmax(-1)


def causal_mask(queries, keys, device=None):
    """(queries, keys) bool, True where a query may look at a key.

    The queries are the last of the tokens: the last query sees every key, the one before it all but the last key…
    """
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config, layer):
        super().__init__()
        d = config.d_model
        self.norm1 = nn.LayerNorm(d)
        self.attention = CausalSelfAttention(config, layer)
        self.norm2 = nn.LayerNorm(d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(approximate="tanh"), nn.Linear(4 * d, d))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, cache=None):
        x = x + self.dropout(self.attention(self.norm1(x), cache))
        return x + self.dropout(self.mlp(self.norm2(x)))


class Transformer(nn.Module):
    """Tokens in; out come, for each position, the logits of the next token."""

    def __init__(self, config: TransformerConfig | None = None):
        super().__init__()
        self.config = config = config or TransformerConfig()
        self.token_embedding = nn.Embedding(config.vocabulary.size, config.d_model)
        self.position_embedding = nn.Embedding(config.context, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocabulary.size, bias=False)
        if config.tied:
            self.head.weight = self.token_embedding.weight
        self.apply(self._init)

    def _init(self, module):
        """Small normal weights, and smaller ones where a layer's output is added to x (GPT-2, section 2.3).

        There are 2 · n_layers such layers: divided by the root of that, their sum doesn't grow with the depth. `apply`
        comes to a Block after its layers, so that this replaces what they got.
        """
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Block):
            for layer in (module.attention.out, module.mlp[-1]):
                nn.init.normal_(layer.weight, std=0.02 / (2 * self.config.n_layers) ** 0.5)

    def forward(self, tokens: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """(B, S) int64 tokens -> (B, S, V) logits, V = 64 codes + 10 classes + 1 end token. Row t is about token t + 1.

        cache: if given, the tokens continue those that it holds, and it grows by S. Raises ValueError for another
        shape or dtype, or if there is no room; IndexError (on a GPU, CUDA's assertion) for a token out of range.
        """
        x = self.embed(tokens, cache)
        for block in self.blocks:
            x = block(x, cache)
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.head(self.norm(x))

    def embed(self, tokens, cache=None):
        """(B, S) int64 tokens -> (B, S, d_model): what each token is, plus where it stands."""
        positions = self._positions(tokens, cache)
        return self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))

    def _positions(self, tokens, cache):
        """Where these tokens stand in their sequences: (S,) int64. Refuses tokens that don't fit."""
        checks.check_tensor("tokens", tokens, ("B" if cache is None else cache.batch_size, "S"), torch.int64)
        start = 0 if cache is None else cache.length
        room = self.config.context if cache is None else min(self.config.context, cache.capacity)
        end = start + tokens.shape[1]
        if end > room:
            raise ValueError(f"{end} tokens do not fit: there is room for {room}")
        return torch.arange(start, end, device=tokens.device)

    @torch.no_grad()
    def attention_maps(self, tokens: torch.Tensor) -> torch.Tensor:
        """Where each head looks, in eval mode: (B, S) int64 tokens -> (layers, B, heads, S, S), rows that sum to 1."""
        with eval_mode(self):
            x, maps = self.embed(tokens), []
            for block in self.blocks:
                maps.append(block.attention.attention_weights(block.norm1(x)))
                x = block(x)
            return torch.stack(maps)

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        """An empty `Cache` on this model's device, with room for ``capacity`` tokens."""
        weight = self.token_embedding.weight
        return Cache(self.config, batch_size, capacity, weight.device, weight.dtype)


@contextlib.contextmanager
def eval_mode(model):
    """Put the model in eval mode inside the ``with`` block, and each of its modules back into its own afterwards.

    Threads may use one model together: the last that leaves restores the modes. A model that is in eval mode already
    is not written to. What no lock can give is a thread that trains a model while another one samples from it: each
    thread then needs a copy of its own.
    """
    with _LOCK:
        used = [module for module in model.modules() if module.training or module in _USERS]
        for module in used:
            _USERS[module] = _USERS.get(module, 0) + 1
            module.training = False
    try:
        yield
    finally:
        with _LOCK:
            for module in used:
                _USERS[module] -= 1
                if not _USERS[module]:
                    del _USERS[module]
                    module.training = True
