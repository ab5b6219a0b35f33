"""Writing pictures: sampling codes from the Transformer, and scoring codes by it (notebook 05).

Sampling is Gumbel-max (Gumbel 1954; Maddison, Tarlow, Minka, arXiv 1411.0030): ``argmax(logits + T · noise)`` with
Gumbel noise is a draw from ``softmax(logits / T)``. All the randomness is in the noise, which is drawn before the first
token and belongs to the picture: moving a knob changes what the knob does and nothing else.
"""

import math

import torch

from vqlib.data import check_whole, describe, is_number
from vqlib.tokens import CODES_PER_IMAGE, END_TOKEN, NUM_CODES, check_labels, to_sequences
from vqlib.transformer import eval_mode
from vqlib.vqvae import GRID


def gumbel_noise(n, generator=None):
    """Noise for ``n`` pictures: (n, 49, 64) float64 on the CPU, drawn picture by picture.

    So the first pictures of a large batch are those of a small one, on every device.
    """
    check_whole("n", n, 0)
    if generator is not None and not (isinstance(generator, torch.Generator) and generator.device.type == "cpu"):
        got = f"one on {generator.device}" if hasattr(generator, "device") else describe(generator)
        raise ValueError(f"generator must be a CPU torch.Generator, so that a seed means the same pictures on every "
                         f"device; got {got}. Use torch.Generator().manual_seed(seed)")
    noise = torch.empty(n, CODES_PER_IMAGE, NUM_CODES, dtype=torch.float64)
    for picture in noise:
        picture.copy_(torch.rand(picture.shape, dtype=torch.float64, generator=generator))
    tiny = torch.finfo(torch.float64).tiny
    return -(-noise.clamp_(min=tiny).log()).log()


def filter_logits(logits, temperature, top_k=None, top_p=1.0):
    """Set to -inf all codes that top-k or top-p rule out. (..., 64) logits -> (..., 64) logits.

    top_k: keep the k likeliest codes. top_p: keep the smallest set of likeliest codes whose probability at this
    temperature, among what top-k kept, reaches p (nucleus sampling, Holtzman et al., arXiv 1904.09751).
    The likeliest code always stays. At temperature 0 nothing is ruled out: greedy takes the likeliest anyway.
    Raises ValueError where top_k or top_p is out of range.
    """
    _check_knobs(temperature, top_k, top_p, guidance=1.0)
    if temperature == 0:
        return logits  # greedy: the likeliest code wins whatever else is kept
    if top_k is not None and top_k < logits.shape[-1]:
        kept = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, logits.topk(top_k).indices, True)
        logits = logits.masked_fill(~kept, -torch.inf)
    if top_p < 1:
        probs, order = (logits / temperature).softmax(-1).sort(descending=True, stable=True)
        before = probs.cumsum(-1) - probs  # probability of all codes likelier than this one
        before[..., 0] = 0
        rejected = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, order, before >= top_p)
        logits = logits.masked_fill(rejected, -torch.inf)
    return logits


@torch.no_grad()
def sample(transformer, labels, temperature=0.8, top_k=None, top_p=1.0, generator=None, prefix=None, guidance=1.0,
           n=None, use_cache=True, stepper=None, on_choice=None):
    """Write one picture a label, all at the same time, code by code.

    transformer: a `Transformer`, used in eval mode whatever mode it is in.
    labels: (N,) int64 in 0…9; or None for ``n`` pictures of any class.
    temperature: ≥ 0. 1 samples the model as it is, below 1 prefers likely codes, 0 always takes the likeliest.
    top_k: keep the k likeliest codes at each step, 1 or more; None keeps all.
    top_p: in (0, 1], keep the likeliest codes that together reach this probability; 1 keeps all.
    generator: a CPU `torch.Generator`; the same seed gives the same noise, whatever the batch size or device. (In
        float32, rounding can tip a choice: rarely, and then the picture goes on differently.)
    prefix: (N, P) int64 codes in 0…63, P ≤ 49, with which each picture begins (row by row): picture completion.
    guidance: w ≥ 0 of logits = uncond + w · (cond - uncond), where uncond are those of "any class" (classifier-free
        guidance, Ho and Salimans, arXiv 2207.12598). 1 is off and costs nothing; above 1 the class shows more, at
        twice the work.
    n: how many pictures, where labels is None.
    use_cache: False recomputes the whole sequence at each step: the same pictures, up to such rounding, slower.
    stepper: ``transformer.stepper()``, made once where many calls follow each other and the weights stay as they are;
        None makes one for this call (0.03 s on a CPU).
    on_choice: called after each choice as on_choice(t, logits, chosen): place 0…48, the model's own (N, 64) logits for
        the class asked for (no guidance, no temperature, nothing ruled out), and the (N,) int64 codes taken.

    Returns (N, 7, 7) int64 codes in 0…63: the class and end tokens are never candidates.
    Raises ValueError where an argument is outside what stands here.
    """
    if not hasattr(transformer, "head"):  # a tokenizer, or the labels, in its place
        raise ValueError(f"transformer must be a Transformer, got {describe(transformer)}")
    _check_knobs(temperature, top_k, top_p, guidance)
    if stepper is not None and stepper.model is not transformer:
        raise ValueError("the stepper holds the weights of another Transformer: use transformer.stepper()")
    start, guided = _start_tokens(transformer, labels, n, guidance)
    device, N = transformer.head.weight.device, len(start)
    start = start.to(device)[:, None]
    codes = torch.zeros(N, CODES_PER_IMAGE, dtype=torch.int64, device=device)
    P = 0
    if prefix is not None:
        _check_prefix(prefix, N)
        P = prefix.shape[1]
        codes[:, :P] = prefix
    if N == 0:
        return codes.reshape(0, GRID, GRID)
    noise = gumbel_noise(N, generator).to(device, transformer.head.weight.dtype)
    with eval_mode(transformer), torch.inference_mode():
        if guided:  # the lower half of the batch writes the same codes after "any class"
            start = torch.cat([start, torch.full_like(start, END_TOKEN)])
        rows = len(start) // N
        cache = transformer.new_cache(len(start), CODES_PER_IMAGE) if use_cache else None
        step = stepper or (transformer.stepper(len(start)) if use_cache else None)
        seen = torch.cat([start, codes[:, :P].repeat(rows, 1)], dim=1)
        for t in range(P, CODES_PER_IMAGE):
            if use_cache and t > P:
                logits = step(seen[:, -1], cache)
            else:
                logits = transformer(seen, cache)[:, -1]
            logits = logits[:, :NUM_CODES]  # only codes stand at code positions
            own = logits[:N]
            if guided:
                cond, uncond = logits.chunk(2)
                logits = uncond + guidance * (cond - uncond)
            logits = filter_logits(logits, temperature, top_k, top_p)
            codes[:, t] = (logits + temperature * noise[:, t]).argmax(-1)
            if on_choice is not None:
                on_choice(t, own, codes[:, t])
            seen = torch.cat([seen, codes[:, t:t + 1].repeat(rows, 1)], dim=1)
    return codes.reshape(N, GRID, GRID)


@torch.no_grad()
def code_log_probs(transformer, codes, labels):
    """log p(code | class, codes before it) over the 64 codes: (B, 7, 7), (B,) int64 -> (B, 49) float, nats, ≤ 0."""
    tokens = to_sequences(codes, labels).to(transformer.head.weight.device)
    with eval_mode(transformer):
        logits = transformer(tokens[:, :-2])[..., :NUM_CODES]  # inputs: class and 48 codes; targets: 49 codes
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype).log_softmax(-1).gather(-1, tokens[:, 1:-1, None])[..., 0]


def log_likelihood(transformer, codes, labels):
    """log p(49 codes | class), without the end token: (B, 7, 7), (B,) int64 -> (B,) float, nats, ≤ 0.

    Divide by -49 for nats per code, by -ln 2 for bits per picture.
    """
    return code_log_probs(transformer, codes, labels).sum(1)


def _start_tokens(transformer, labels, n, guidance):
    """The first token of each picture (N,), and whether guidance has work to do."""
    if labels is None:
        if not (isinstance(n, int) and not isinstance(n, bool) and n >= 0):
            raise ValueError(f"labels=None writes pictures of any class: say how many, e.g. n=8; got n={n!r}")
        if guidance != 1:
            raise ValueError(f"guidance strengthens a class, so it needs labels; got labels=None and "
                             f"guidance={guidance!r}")
    else:
        check_labels(labels)
        if n is not None and n != len(labels):
            raise ValueError(f"n is for labels=None; got {len(labels)} labels and n={n!r}")
    if labels is not None and guidance == 1:
        return NUM_CODES + labels, False
    recipe = getattr(transformer, "info", {}).get("recipe", {})
    if recipe and not recipe.get("drop_class"):
        raise ValueError("this Transformer never saw \"any class\": its recipe has drop_class 0. Use guidance=1 and "
                         "labels, or load or train one with drop_class=0.1")
    return (torch.full((n,), END_TOKEN), False) if labels is None else (NUM_CODES + labels, True)


def _check_knobs(temperature, top_k, top_p, guidance):
    if not (is_number(temperature) and math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be a finite number ≥ 0 (0 is greedy, 1 the model as it is), "
                         f"got {temperature!r}")
    if top_k is not None and not (isinstance(top_k, int) and not isinstance(top_k, bool) and top_k >= 1):
        raise ValueError(f"top_k must be a whole number ≥ 1, or None to keep all codes; got {top_k!r}")
    if not (is_number(top_p) and 0 < top_p <= 1):
        raise ValueError(f"top_p must be in (0, 1], 1 keeps all codes; got {top_p!r}")
    if not (is_number(guidance) and math.isfinite(guidance) and guidance >= 0):
        raise ValueError(f"guidance must be a finite number ≥ 0 (1 is off), got {guidance!r}")


def _check_prefix(prefix, n):
    if not isinstance(prefix, torch.Tensor) or prefix.dtype != torch.int64 or prefix.ndim != 2 or len(prefix) != n:
        raise ValueError(f"prefix must be a ({n}, P) int64 tensor, a row a label, e.g. codes.flatten(1)[:, :21] "
                         f"for the upper three rows; got {describe(prefix)}")
    if prefix.shape[1] > CODES_PER_IMAGE:
        raise ValueError(f"prefix must have at most {CODES_PER_IMAGE} codes a picture, got {prefix.shape[1]}")
    if prefix.numel() and not (prefix.min() >= 0 and prefix.max() < NUM_CODES):
        raise ValueError(f"prefix must hold codes 0…{NUM_CODES - 1} only, got {prefix.min()} … {prefix.max()}")
