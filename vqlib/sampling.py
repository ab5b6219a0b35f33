"""Writing pictures: sampling codes from the Transformer, and scoring codes by it (notebook 05).

Sampling is Gumbel-max (Gumbel 1954; Maddison, Tarlow, Minka, arXiv 1411.0030): ``argmax(logits + T · noise)`` with
Gumbel noise is a draw from ``softmax(logits / T)``. All the randomness is in the noise, which is drawn before the first
token. With the same seed a picture keeps its noise when you turn a knob (temperature, top-k, top-p, guidance), so what
you see change comes from that knob and not from new dice.
"""

import torch

from vqlib import checks
from vqlib.stepper import one_token_step
from vqlib.tokens import CODES_PER_IMAGE
from vqlib.transformer import Transformer, eval_mode
from vqlib.vqvae import GRID, widened


def gumbel_noise(n: int, num_codes: int = 64, generator: torch.Generator | None = None) -> torch.Tensor:
    """Noise for ``n`` pictures, -log(-log u) of a uniform u: (n, 49, K) float64 on the CPU.

    The noise of picture i depends on the seed and on i, not on ``n``.
    """
    uniform = torch.rand(n, CODES_PER_IMAGE, num_codes, dtype=torch.float64, generator=generator, device="cpu")
    return -(-uniform.clamp(min=torch.finfo(torch.float64).tiny).log()).log()  # rand can give 0, whose log is -inf


def filter_logits(logits, temperature, top_k=None, top_p=1.0):
    """Set to -inf all codes that top-k or top-p rule out: (..., K) logits -> (..., K) logits, float32 or wider.

    top_k: keep the k likeliest codes. top_p: of those, keep the smallest set of likeliest codes whose probability at
    this temperature reaches p (nucleus sampling, Holtzman et al., arXiv 1904.09751). The likeliest code always stays.
    """
    logits = widened(logits)  # summed in half precision, probabilities would reach p too soon or too late
    if temperature == 0:
        return logits  # greedy: the likeliest code wins whatever else is kept
    if top_k is not None and top_k < logits.shape[-1]:
        kept = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, logits.topk(top_k).indices, True)
        logits = logits.masked_fill(~kept, -torch.inf)
    if top_p < 1:
        probs, order = (logits / temperature).softmax(-1).sort(descending=True, stable=True)
        before = probs.cumsum(-1) - probs  # the probability of all codes that are likelier than this one
        rejected = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, order, before >= top_p)
        logits = logits.masked_fill(rejected, -torch.inf)
    return logits


def choose(logits, noise, temperature, top_k, top_p, guidance):
    """From logits to codes: (N, ..., V), (N, ..., K) noise -> logits before guidance (N, ..., K), codes (N, ...).

    With guidance there are 2N rows of logits: first those with the class, then those without it.
    """
    logits = cond = widened(logits[..., : noise.shape[-1]])  # class and end tokens are never candidates
    if guidance != 1:
        cond, uncond = logits.chunk(2)
        logits = uncond + guidance * (cond - uncond)
    logits = filter_logits(logits, temperature, top_k, top_p)
    return cond, (logits + temperature * noise).argmax(-1)


def with_any_class(tokens, S, vocabulary):
    """Add a second half to the batch, for guidance: the same codes, but after "any class" in the start's S places."""
    tokens = torch.cat([tokens, tokens])
    tokens[len(tokens) // 2 :, :S] = vocabulary.end  # training sometimes puts it in the class's place
    return tokens


@torch.no_grad()
def write(transformer, start, noise, prefix=None, *, temperature=0.8, top_k=None, top_p=1.0, guidance=1.0):
    """The sampling loop: write all N pictures together, one position at a time.

    start: (N, S) int64 tokens. noise: (N, 49, K) float; best in float32, whatever the model is in. prefix: (N, P) int64
    codes that are given. All lie on the model's device. The other arguments are those of `sample`. The model must be in
    eval mode.
    Yields for each position P…48 the logits conditioned on the start, before guidance and filter, (N, K) in float32 or
    wider, for anyone who wants to look at them, and the codes chosen, (N,).
    """
    vocabulary, S = transformer.config.vocabulary, start.shape[1]
    new = start if prefix is None else torch.cat([start, prefix], dim=1)  # tokens that the cache hasn't seen
    P = new.shape[1] - S
    if guidance != 1:
        new = with_any_class(new, S, vocabulary)
    cache = transformer.new_cache(len(new), S + CODES_PER_IMAGE - 1)  # the last code is never fed back
    step = one_token_step(transformer, len(new))  # the same as transformer(new[:, None], cache)[:, -1], but faster
    for t in range(P, CODES_PER_IMAGE):
        logits = transformer(new, cache)[:, -1] if t == P else step(new, cache)
        cond, chosen = choose(logits, noise[:, t], temperature, top_k, top_p, guidance)
        yield cond, chosen
        new = chosen if guidance == 1 else chosen.repeat(2)


@torch.no_grad()
def write_parallel(
    transformer, start, noise, guess, prefix=None, *, temperature=0.8, top_k=None, top_p=1.0, guidance=1.0
):
    """The pictures of `write` in fewer passes: guess all the codes, then correct all of them at once, again and again.

    Because the noise is drawn beforehand, each code follows from the codes before it. One pass of the Transformer reads
    the whole guess and says for each position what `write` would choose after the codes that stand before it. Where
    those are right, the answer is right too. So every pass corrects at least the first wrong code, and usually several.
    When a pass changes nothing, the picture is a fixed point, and only the picture of `write` is one. This is Jacobi
    iteration (Song, Meng, Liao, Ermon, arXiv 2002.03629; predictive sampling: Wiggers, Hoogeboom, arXiv 2002.09928).

    guess: (N, 49) int64 codes to start from. The other arguments are those of `write`.
    Yields all (N, 49) codes after each pass. There are at most 49 - P passes for a prefix of P codes.
    """
    S, P = start.shape[1], 0 if prefix is None else prefix.shape[1]
    codes = guess if prefix is None else torch.cat([prefix, guess[:, P:]], dim=1)
    moving = torch.arange(len(start), device=start.device)  # the pictures that may still change
    for _ in range(P, CODES_PER_IMAGE):
        tokens = torch.cat([start, codes[:, :-1]], dim=1)[moving]  # the last code is never fed back
        if guidance != 1:
            tokens = with_any_class(tokens, S, transformer.config.vocabulary)
        logits = transformer(tokens)[:, S - 1 + P :]  # row t is about token t + 1
        _, chosen = choose(logits, noise[moving, P:], temperature, top_k, top_p, guidance)
        changed = (chosen != codes[moving, P:]).any(1)
        codes = codes.clone()  # what was yielded before stays as it was
        codes[moving, P:] = chosen
        yield codes
        moving = moving[changed]  # a picture in which nothing has changed is finished and leaves the batch
        if len(moving) == 0:
            return


@torch.no_grad()
def sample(
    transformer: Transformer,
    labels: torch.Tensor,
    *,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float = 1.0,
    guidance: float = 1.0,
    prefix: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Sample one picture per label, in parallel, one code at a time.

    transformer: used in eval mode, whatever mode it is in. Threads may share it, but not while one of them trains it.
    labels: (N,) int64 classes (`pair.class_numbers` makes them from names); or any (N, S) int64 tokens to start from,
        for models that were trained with another start than a class, such as `captions.text_tokens`. Token K + c is
        class c, and ``vocabulary.end`` any class: guidance puts it in the place of all S.
    temperature: ≥ 0. At 1 the model is sampled as it is, below 1 likely codes are preferred, at 0 the likeliest wins.
    top_k: keep the k likeliest codes at each step, k ≥ 1; None keeps all.
    top_p: in [1e-6, 1]: keep the likeliest codes that together reach this probability; 1 keeps all.
    guidance: w ≥ 0 in logits = uncond + w · (cond - uncond), where uncond are those for "any class" (classifier-free
        guidance, Ho and Salimans, arXiv 2207.12598). 1 is off; above 1 pictures follow their class more closely. Any
        value but 1 doubles the work.
    prefix: (N, P) int64 codes, P ≤ 49, with which each picture begins, in reading order; the rest is completed.
    generator: a CPU generator, of its own for each thread; None is PyTorch's global one, from which all threads draw.
        The same seed gives the same noise, whatever the batch size or device. (In float32 rounding can tip a choice:
        that is rare, and from there on the picture goes its own way.)

    Returns (N, 7, 7) int64 codes in 0…K-1. Raises ValueError if an argument is not as described.
    """
    knobs = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
    start, noise, codes, P = prepared(transformer, labels, prefix, generator, **knobs)
    with eval_mode(transformer):
        for t, (_, chosen) in enumerate(write(transformer, start, noise, codes[:, :P], **knobs), start=P):
            codes[:, t] = chosen
    return codes.reshape(-1, GRID, GRID)


def sample_parallel(transformer, labels, *, guess=None, prefix=None, generator=None, **knobs):
    """The pictures that `sample` gives for the same arguments and seed, in fewer passes: see `write_parallel`.

    The passes are fewer, but together more work: each reads whole pictures where a step of `sample` reads one token. It
    can pay where a pass takes about as long for 49 tokens as for one. On a CPU it is slower than `sample`.

    guess: (N, 7, 7) int64 codes to start from; None is all zeros. It changes the number of passes, not the pictures.
        The codes that a `baselines.Histogram` of the training set draws from the same noise save a picture some passes:
        (log_probs[labels] + T · noise).argmax(-1).reshape(-1, 7, 7), the noise drawn again from the same seed.
    The other arguments are those of `sample`. In float64 the codes are equal to its codes, but for ties. In float32 the
    two round differently, which can tip a choice; `tests/benchmarks/passes.py` counts how often.

    Returns (N, 7, 7) int64 codes in 0…K-1. Raises ValueError if an argument is not as described.
    """
    knobs = {"temperature": 0.8, "top_k": None, "top_p": 1.0, "guidance": 1.0} | knobs
    start, noise, codes, P = prepared(transformer, labels, prefix, generator, guess, **knobs)
    with eval_mode(transformer):
        for corrected in write_parallel(transformer, start, noise, codes, codes[:, :P], **knobs):
            codes = corrected
    return codes.reshape(-1, GRID, GRID)


@torch.no_grad()
def code_log_probs(transformer: Transformer, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log p(code | start, codes before it), among the K codes: (B, 7, 7) int64 -> (B, 49) float, nats, ≤ 0.

    labels: (B,) int64 classes, or (B, S) int64 tokens to start from, as in `sample`.
    """
    vocabulary = transformer.config.vocabulary
    checks.check_codes(codes, vocabulary.num_codes)
    start = start_tokens(transformer, labels, guidance=1, count=len(codes))
    codes, S = codes.flatten(1).to(start.device), start.shape[1]
    with eval_mode(transformer):  # in: the start and 48 codes; out: 49 codes
        logits = transformer(torch.cat([start, codes[:, :-1]], dim=1))[:, S - 1 :, : vocabulary.num_codes]
    return widened(logits).log_softmax(-1).gather(-1, codes[..., None])[..., 0]


def log_likelihood(transformer: Transformer, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log p(49 codes | start), without the end token: (B, 7, 7), (B,) or (B, S) int64 -> (B,) float, nats, ≤ 0.

    Divide by -49 for nats per code, by -ln 2 for bits per picture.
    """
    return code_log_probs(transformer, codes, labels).sum(1)


def prepared(transformer, labels, prefix, generator, guess=None, **knobs):
    """Check what `sample` is given. Returns start, noise, codes to start from, (N, 49) with prefix and guess, and P."""
    checks.check_knobs(**knobs, generator=generator)
    start = start_tokens(transformer, labels, knobs["guidance"])
    N, highest = len(start), transformer.config.vocabulary.num_codes - 1
    codes, P = torch.zeros(N, CODES_PER_IMAGE, dtype=torch.int64, device=start.device), 0
    if guess is not None:
        checks.check_tensor("guess", guess, (N, GRID, GRID), torch.int64, 0, highest, "None starts from zeros")
        codes.copy_(guess.flatten(1))
    if prefix is not None:
        remedy = "It has a row per label, such as codes.flatten(1)[:, :21] for the upper three rows"
        checks.check_tensor("prefix", prefix, (N, "P"), torch.int64, 0, highest, remedy)
        P = prefix.shape[1]
        checks.check_whole("the length of prefix", P, 0, CODES_PER_IMAGE)
        codes[:, :P] = prefix
    return start, noise_for(transformer, N, generator), codes, P


def noise_for(transformer, n, generator=None):
    """`gumbel_noise` as `write` takes it: on the model's device, in float32 or, if the model is wider, in its dtype."""
    weight = transformer.token_embedding.weight
    noise = gumbel_noise(n, transformer.config.vocabulary.num_codes, generator)
    return noise.to(weight.device, torch.promote_types(weight.dtype, torch.float32))


def start_tokens(transformer, labels, guidance, count="N"):
    """What each sequence begins with: (N, S) int64 on the model's device."""
    if not hasattr(transformer, "token_embedding"):  # arguments may be swapped
        raise ValueError(f"transformer must be a Transformer, got {checks.describe(transformer)}")
    vocabulary, start = transformer.config.vocabulary, labels
    if isinstance(labels, torch.Tensor) and labels.ndim == 2:
        checks.check_tensor("labels", labels, (count, "S"), torch.int64, 0, vocabulary.size - 1)
        checks.check_whole("the start's length", labels.shape[1], 1, transformer.config.context - CODES_PER_IMAGE + 1)
    else:
        if vocabulary.num_words:
            remedy = "Start from captions.text_tokens(captions, vocabulary), or take load_pair() for classes"
            raise ValueError(f"labels must be tokens to start from: this Transformer has learned no classes. {remedy}")
        checks.check_labels(labels, vocabulary.num_classes, count)
        start = vocabulary.num_codes + labels[:, None]
    recipe = getattr(transformer, "info", {}).get("recipe", {})  # loaded and trained models carry theirs
    dropped = recipe.get("drop_class") or recipe.get("drop_caption")
    if recipe and not dropped and (guidance != 1 or (start == vocabulary.end).any()):
        remedy = "Use guidance=1 and labels, or load or train one with drop_class=0.1 (or drop_caption)"
        need = 'guidance other than 1, or a start with the end token, needs a Transformer that learned "any class"'
        raise ValueError(f"{need}. {remedy}")
    return start.to(transformer.token_embedding.weight.device)
