"""The fast path behind `sampling.sample`: one new token per sequence, with the same logits as the plain cached forward.

With 8 rows on a CPU a step mostly waits: for the weights to arrive from memory, and for the calls around its small
products. So each matrix is laid out once the way its product reads it, and the layers are written out flat.
"""

import functools
import itertools
import timeit
import weakref

import torch
import torch.nn.functional as F
from torch import nn

from vqlib.transformer import Block, Cache, CausalSelfAttention, RMSNorm, Transformer, TransformerConfig, rms_eps

FEW = 128  # rows: up to here mostly reading the weights takes a step's time, beyond mostly the arithmetic
KINDS = [Transformer, Block, CausalSelfAttention, RMSNorm, Cache]
KINDS += [nn.Linear, nn.LayerNorm, nn.Embedding, nn.GELU, nn.Sequential, nn.Dropout, nn.Identity]
_KEPT = weakref.WeakKeyDictionary()  # Transformer -> {few rows or not: (a copy of its weights, `Stepper`)}


def one_token_step(transformer, rows):
    """A function of (B,) tokens and a `Cache`: what ``transformer(tokens[:, None], cache)[:, -1]`` gives in eval mode.

    The laid-out weights are kept with the model, and laid out anew when they have changed. A model that isn't exactly
    what `Transformer` builds, or that has hooks, is called as it is.
    """
    if not (rows and is_plain(transformer)):
        return lambda tokens, cache: transformer(tokens[:, None], cache)[:, -1]
    kept, few, now = _KEPT.setdefault(transformer, {}), rows <= FEW, [p.detach() for p in transformer.parameters()]
    if few not in kept or not _equal(kept[few][0], now):
        kept[few] = [p.clone() for p in now], Stepper(transformer, few)
    return kept[few][1]


def is_plain(transformer):
    """Whether each module is what `Transformer` built, without hooks, and computes in the dtype of its weights."""
    if type(transformer) is not Transformer or nn.modules.module._has_any_global_hook() or _methods() != METHODS:
        return False
    kind = transformer.token_embedding.weight.device.type
    for module in transformer.modules():
        if module._forward_hooks or module._forward_pre_hooks or any(map(callable, vars(module).values())):
            return False  # the last: a method was replaced
    usual = kind in ("cpu", "cuda") and not torch.is_autocast_enabled(kind)
    return usual and _parts(transformer) == _built(transformer.config)


def _methods():
    """The code of all methods of these classes: other code, if a reader has put a method of their own in one."""
    return [getattr(method, "__code__", method) for kind in KINDS for method in vars(kind).values() if callable(method)]


METHODS = _methods()


def _parts(model):
    parts = []
    for name, module in model.named_modules():
        if type(module) is not nn.Dropout:  # in eval mode it does nothing
            own = [vars(module).get(attribute) for attribute in ("layer", "n_heads")]
            parts.append((name, type(module), module.extra_repr(), list(module._parameters), own))
    return parts


@functools.cache
def _built(config: TransformerConfig):
    with torch.device("meta"):  # shapes only
        return _parts(Transformer(config))


def _equal(weights, others):
    """Whether nothing has changed, not even through ``.data``. It takes 3 ms on a CPU."""
    kinds, other_kinds = ([(w.dtype, w.device) for w in of] for of in (weights, others))
    return kinds == other_kinds and all(map(torch.equal, weights, others))


class Stepper:
    """Copies of a Transformer's weights, laid out for one-token steps. It gives no gradients."""

    def __init__(self, transformer, few):
        self.heads, self.norm, self.head = transformer.config.n_heads, normed(transformer.norm), transformer.head
        self.tokens, self.positions = transformer.token_embedding, transformer.position_embedding
        self.layers, blocks = [], transformer.blocks
        linears = [(b.attention.qkv, b.attention.out, b.mlp[0], b.mlp[2]) for b in blocks]
        matrices, gain = laid_out(list(itertools.chain(*linears)), few), None
        for n, block in enumerate(blocks):
            if transformer.config.qk_norm:
                gains = [norm.weight.detach() for norm in (block.attention.norm_q, block.attention.norm_k)]
                gain = torch.stack(gains)[:, None]
            self.layers.append((normed(block.norm1), normed(block.norm2), gain, *matrices[4 * n : 4 * n + 4]))

    @torch.no_grad()
    def __call__(self, tokens, cache):
        B, t = len(tokens), cache.length
        x = self.tokens(tokens) + self.positions.weight[t]
        for (norm1, norm2, gain, qkv, out, up, down), pairs in zip(self.layers, cache.pairs, strict=True):
            y = qkv(norm1(x)).view(B, 3, self.heads, -1)
            if gain is not None:  # queries and keys at once, in place
                qk = y[:, :2]
                torch.mul(torch.rms_norm(qk, gain.shape[-1:], None, rms_eps(qk.dtype)), gain, out=qk)
            pairs[:, :, :, t] = y[:, 1:]  # into the cache: keys and values at once
            keys, values = pairs[:, :, :, : t + 1].unbind(1)
            y = F.scaled_dot_product_attention(y[:, 0, :, None], keys, values)
            x = x + out(y.view(B, -1))
            x = x + down(F.gelu(up(norm2(x)), approximate="tanh"))
        cache.length = t + 1
        return self.head(self.norm(x))


def normed(norm):
    """What the LayerNorm does, without the call of a module around it, which takes as long as the norm itself."""
    knobs = norm.normalized_shape, norm.weight.detach().clone(), norm.bias.detach().clone(), norm.eps
    return lambda x: torch.layer_norm(x, *knobs)


def laid_out(linears, few):
    """What each of the linear layers does, as a function of (B, in) rows, in the layout that is fastest here.

    Weights that are float16 numbers anyway, as all that we ship are, can be read as such: half the bytes, and the same
    products and float32 sums. PyTorch has this for CPUs with FBGEMM (x86).
    """
    transposed = [addmm(linear) for linear in linears]
    if not all(map(fits_float16, linears)):
        return transposed
    packed, rows = [float16(linear) for linear in linears], 8 if few else 2 * FEW
    # With few rows half the bytes win by far where reading them takes the time (0.57 against 1.63 ms on an AMD Zen 5),
    # and lose where widening them to float32 takes longer (1.43 against 1.19 on an Intel Xeon). No flag of a processor
    # tells, so a few passes over all weights do. The two round differently, hence only a clear win changes the layout.
    clearly_faster = seconds(packed, linears, rows) < 0.9 * seconds(transposed, linears, rows)
    return packed if clearly_faster else transposed


def addmm(linear):
    weight, bias = linear.weight.detach().t().contiguous(), linear.bias.detach().clone()
    return lambda x: torch.addmm(bias, x, weight)


def float16(linear):
    packed = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach(), linear.bias.detach())
    return lambda x: torch.ops.quantized.linear_dynamic_fp16.default(x, packed)


def fits_float16(linear):
    """Whether the weights are float32 on a CPU with FBGEMM, and none changes when it is rounded to float16."""
    weight = linear.weight.detach()
    single = weight.device.type == "cpu" and weight.dtype == torch.float32
    fbgemm = torch.backends.quantized.engine in ("x86", "fbgemm")
    return fbgemm and single and torch.equal(weight.half().float(), weight)


def seconds(layers, linears, rows):
    """How long the fastest of a few passes of that many rows through the layers takes."""
    inputs = [linear.weight.new_ones(rows, linear.in_features) for linear in linears]
    return min(timeit.repeat(lambda: [layer(x) for layer, x in zip(layers, inputs, strict=True)], number=1, repeat=4))
