"""Checkers for the exercises of the notebooks: each tries an answer, and gives a hint if something is wrong.

A checker takes the reader's function and prints "Right.", or a hint about the first mistake that it finds. It never
raises, so that a notebook always runs to its end. One solution to each exercise is in notebooks/solutions.
"""

import contextlib
import functools
import math

import torch
import torch.nn.functional as F

from vqlib import captions, dvae
from vqlib.evaluation import frechet_distance
from vqlib.tokens import Vocabulary

VOCABULARY = Vocabulary()  # of the original recipe: 64 codes, 10 classes
K = VOCABULARY.num_codes
ALL = []  # the checkers, in the order of the notebooks


class Hint(Exception):
    """What the author of a wrong answer should read."""


def checker(check):
    """Turn a checking function that raises `Hint` into one that prints the verdict."""

    @functools.wraps(check)
    def tried(answer):
        answered = []

        def ask(*arguments):
            given = answer(*map(_copy, arguments))
            if given is None or given is ...:
                _hint(answered, f"Your function works for some arguments, but for others it returns {given}.")
                raise NotImplementedError
            answered.append(given)
            return given

        try:
            with _usual_settings():
                check(ask)
            print("Right.")
        except NotImplementedError:
            print("No answer yet: your function returns nothing. Write it above, then run this cell again.")
        except Hint as hint:
            print(f"Not yet. {hint}")
        except Exception as error:
            print(f"Not yet. Your function stopped with {type(error).__name__}: {error}")

    ALL.append(tried)
    return tried


@contextlib.contextmanager
def _usual_settings():
    """Whatever the notebook has set, answers are tried in float32, on the CPU and with gradients."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)


def _copy(argument):
    """A copy, since the reader's function may overwrite it; but gradients must reach the tensor itself."""
    plain = isinstance(argument, torch.Tensor) and not argument.requires_grad
    return argument.clone() if plain else argument


def _hint(wrong, hint):
    if wrong:
        raise Hint(hint)


def _converted(given):
    """An answer on the CPU; an array, or a list of numbers, as a tensor."""
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        return torch.as_tensor(given, device="cpu")
    return given


def _tensor(given, like, what):
    """``given`` in the dtype of ``like``, if it is of that shape."""
    given, kind = _converted(given), type(given).__name__
    _hint(not isinstance(given, torch.Tensor), f"{what} should be a tensor, and yours is of type {kind}.")
    coarse = given.dtype in (torch.float16, torch.bfloat16)
    _hint(coarse, f"{what} is in {given.dtype}, which is too coarse to compare. Stay in float32.")
    shapes = tuple(like.shape), tuple(given.shape)
    _hint(shapes[0] != shapes[1], f"{what} should have the shape {shapes[0]}, and yours has {shapes[1]}.")
    return given.to(like.dtype)


def _number(given):
    return float(given.detach() if isinstance(given, torch.Tensor) else given)


def _parts(given, *names):
    wrong = not isinstance(given, tuple | list) or len(given) != len(names)
    _hint(wrong, f"Your function should return {len(names)} things: {', '.join(names)}.")
    return given


def _close(a, b, tolerance=1e-5):
    return bool((a - b).abs().max() <= tolerance)  # False if there is a NaN


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- notebook 1
@checker
def thumbnail_levels(answer):
    """answer(side) -> how many grey levels each of side² cells may have, if all cells together may cost 294 bits."""
    for side, right in ((7, 64), (14, 2), (10, 7), (28, 1)):
        cells, given = side**2, _number(answer(side))
        bits, where = 294 / cells, f"With {side}×{side} cells"
        if given == right:
            continue
        _hint(abs(given / bits - 1) < 1e-4, f"{where}, you give the bits per cell. b bits can name 2**b levels.")
        whole = (
            f"The bits per cell need not be whole. {where}, {right} levels cost {cells * math.log2(right):.0f} bits."
        )
        _hint(given == 2 ** (294 // cells), whole)
        _hint(given == right - 1, f"{where}, {right} levels fit exactly. exp and log round it off, 2 ** bits doesn't.")
        _hint(given == right + 1, f"{where}, {given:g} levels would cost more than 294 bits. Round down.")
        _hint(abs(given / 2**bits - 1) < 1e-4, f"{where}, {given:.2f} is not a whole number of levels.")
        raise Hint(f"{where} you say {given:g}. A cell has 294 / {cells} = {bits:.2f} bits: how many levels is that?")


@checker
def huffman_lengths(answer):
    """answer(shares) -> how many bits Huffman's code spends on the name of each share (floats that sum to 1)."""
    few = ([0.25] * 4, [0.5, 0.25, 0.125, 0.125], [0.4, 0.3, 0.2, 0.1], [0.9, 0.05, 0.03, 0.02])
    for shares in (*few, torch.softmax(1.5 * _random(64), 0).tolist()):
        lengths = [_number(length) for length in answer(list(shares))]
        where = f"For {'64 shares' if len(shares) == 64 else f'the shares {shares}'}"
        n, kraft, right = len(lengths), sum(2**-length for length in lengths), _huffman(shares)
        _hint(n != len(shares), f"{where} there should be one length per share, and you return {n}.")
        proper = all(length.is_integer() and length >= 1 for length in lengths)
        _hint(not proper, f"{where} you return {lengths[:4]}…, but a name has a whole number of bits, at least one.")
        _hint(kraft > 1 + 1e-9, f"{where} the names are too short: one would have to be a prefix of another.")
        mean, best = (sum(s * n for s, n in zip(shares, of, strict=True)) for of in (lengths, right))
        if mean > best + 1e-9:
            swapped = sorted(lengths) == sorted(right)
            _hint(swapped, f"{where} the lengths are right, but they stand in another order than the shares.")
            better = "Always join the two *rarest* groups: each join makes their names one bit longer."
            raise Hint(f"{where} you spend {mean:.3f} bits on average, and {best:.3f} would do. {better}")


def _huffman(shares):
    groups = [(share, [i]) for i, share in enumerate(shares)]
    lengths = [0] * len(shares)
    while len(groups) > 1:
        groups.sort(key=lambda group: group[0])
        (a, first), (b, second), *groups = groups
        for i in first + second:
            lengths[i] += 1
        groups.append((a + b, first + second))
    return lengths


# --- notebook 2
@checker
def straight_through(answer):
    """answer(z, q) -> a tensor with the value of q, whose gradient goes to z unchanged, and not to q."""
    z, q, upstream = (_random(5, 16, seed=seed) for seed in range(3))
    kept = z.clone(), q.clone()
    z.requires_grad_(), q.requires_grad_()
    given = _tensor(answer(z, q), q, "The answer")
    changed = not (torch.equal(z, kept[0]) and torch.equal(q, kept[1]))
    _hint(changed, "Your function overwrites z or q, which the loss still needs. Make a new tensor instead.")
    _hint(_close(given, z.detach()), "The answer has the value of z, and should have that of q.")
    _hint(not _close(given, q.detach()), "The answer should have the value of q.")
    _hint(not given.requires_grad, "The value is right, but no gradient passes through at all: you detach too much.")
    to_z, to_q = torch.autograd.grad(given, (z, q), upstream, allow_unused=True)
    _hint(to_z is None or not to_z.any(), "The value is right, but no gradient reaches z.")
    _hint(not _close(to_z, upstream), "A gradient reaches z, but it should be the incoming one, unchanged.")
    _hint(to_q is not None and to_q.any(), "The gradient reaches q as well. Detach what should count as a constant.")


@checker
def moving_average_step(answer):
    """answer(count, total, vectors, codes, decay) -> (count, total, codebook) after one step of appendix A.1."""
    vectors, codes = _random(30, 2), torch.arange(30) % 3
    codes[codes == 2] = 0  # no vector chooses code 2 or 3
    count, total, decay = torch.tensor([4.0, 9.0, 2.0, 1.0]), _random(4, 2, seed=1), 0.9
    try:
        given = _parts(answer(count, total, vectors, codes, decay), "count", "total", "codebook")
    except RuntimeError as error:
        short = "size of tensor" in str(error)
        _hint(short, "A code that no vector chose still has its place, with count 0: bincount takes minlength=.")
        raise
    new_count, new_total = _tensor(given[0], count, "count"), _tensor(given[1], total, "total")
    codebook, keep, add = _tensor(given[2], total, "The codebook"), decay, 1 - decay
    chosen = F.one_hot(codes, 4).float()  # (30, 4)
    often, sums, some = chosen.sum(0), chosen.T @ vectors, chosen.sum(0) > 0
    right_count, right_total = keep * count + add * often, keep * total + add * sums
    _hint(_close(new_count, add * count + keep * often), "decay is the share of the *old* average that stays.")
    once = "count[codes] += 1 adds only once, however often a code occurs. Use bincount or index_add_."
    _hint(_close(new_count, keep * count + add * some), once)
    _hint(_close(new_count, right_count.where(some, count)), "Codes that no vector chose should decay, too.")
    _hint(not _close(new_count, right_count), "count should be decay · old + (1 - decay) · how many chose each code.")
    means = (keep * total + add * sums / often[:, None])[some]
    _hint(_close(new_total[some], means), "total should average the *sums* of each code's vectors, not their means.")
    _hint(not _close(new_total, right_total), "total should be decay · old + (1 - decay) · the sum of the vectors.")
    _hint(not _close(codebook, right_total / right_count[:, None], 1e-3), "Almost: each code is total / count.")


# --- notebook 3
@checker
def codes_of(answer):
    """answer(sequence) -> (label, codes): for (51,) tokens, an int in 0…9 and the (7, 7) codes."""
    codes = torch.randint(K, (3, 7, 7), generator=torch.Generator().manual_seed(0))
    for one, label in zip(codes, (0, 6, 9), strict=True):
        sequence = VOCABULARY.to_sequences(one[None], torch.tensor([label]))[0]
        first, given = map(_converted, _parts(answer(sequence), "the label", "the codes"))
        _hint(isinstance(first, torch.Tensor) and first.numel() > 1, "Return the label first, then the codes.")
        _hint(int(first) == K + label, f"{K + label} is the start token of class {label}: subtract {K}.")
        _hint(int(first) != label, f"The label should be {label}, and yours is {int(first)}.")
        if isinstance(given, torch.Tensor) and given.numel() == one.numel():
            flat, place = given.flatten(), "The codes are sequence[1:50]."
            _hint(torch.equal(flat[:-1], one.flatten()[1:]), f"Off by one: you begin with the second code. {place}")
            _hint(flat.max() >= K, f"Token {int(flat.max())} is not a code. {place}")
        given = _tensor(given, one, "The grid of codes")
        _hint(torch.equal(given, one.T), "Rows and columns are swapped: the codes stand in the sequence row by row.")
        _hint(not torch.equal(given, one), "These are not the codes of the picture.")


@checker
def left_neighbour_nats(answer):
    """answer(train_codes, test_codes) -> mean nats of the codes in columns 1…6, predicted from the code to the left."""
    generator = torch.Generator().manual_seed(0)
    start = K * torch.rand(60, 7, 1, generator=generator) ** 3
    codes = (start + torch.randint(6, (60, 7, 7), generator=generator).cumsum(-1)).long().clamp(max=K - 1)
    learn, score = codes[:50], codes[50:]
    given, right = _number(answer(learn, score)), _left_nats(learn, score)
    if abs(given - right) <= 1e-3:
        return
    _hint(not math.isfinite(given), "A pair that training never saw is infinitely surprising: add one to each count.")
    _hint(given < 0, "-ln p is never negative. Is the sign wrong?")
    rows = "The first code of a row has no left neighbour."
    hints = {
        "pairs once": "table[left, next] += 1 counts frequent pairs once: use bincount or index_put_(accumulate=True).",
        "no keepdim": "table / table.sum(1) divides each column by the sum of a row: add keepdim=True.",
        "transposed": "The table is normalized the wrong way: for each *left* code, the 64 shares should sum to 1.",
        "one sum": "You score the *pair*. For the next code, given the left one, divide each row by its own sum.",
        "above": "You predict from the code *above*. The left neighbour is one column before, in the last dimension.",
        "wraps": f"{rows} Predict columns 1 to 6 only.",
        "wraps in training": f"{rows} In training, too, count columns 1 to 6 only.",
        "bits": "You return bits. For nats, use the natural logarithm.",
        "no one added": "Add one to each count, so that no pair is impossible.",
    }
    for how, hint in hints.items():
        _hint(abs(given - _left_nats(learn, score, how)) <= 1e-3, hint)
    steps = "Count the pairs (left, next) in a 64×64 table, add one, divide each row by its sum, and average -ln p."
    raise Hint(f"On a small test set you get {given:.3f} nats, and it should be {right:.3f}. {steps}")


def _left_nats(learn, score, how=""):
    """The right figure, or what one gets by going wrong in the way called ``how``."""

    def pairs(codes, wraps):
        codes = codes.mT if how == "above" else codes
        codes = codes.flatten(1) if wraps else codes
        return codes[..., :-1].flatten(), codes[..., 1:].flatten()

    left, right = pairs(learn, how.startswith("wraps"))
    table = torch.zeros(K, K).index_put_((left, right), torch.ones(len(left)), accumulate=how != "pairs once")
    table += how != "no one added"
    total = table.sum(0 if how == "transposed" else 1, keepdim=how != "no keepdim")
    total = table.sum() if how == "one sum" else total
    nats = -(table / total)[pairs(score, how == "wraps")].log().mean().item()
    return nats / math.log(2) if how == "bits" else nats


# --- notebook 4
@checker
def may_look(answer):
    """answer(S) -> (S, S) bool: True where the token of the row may look at the token of the column."""
    for S in (5, 2, 1):
        right, given = torch.ones(S, S, dtype=torch.bool).tril(), _converted(answer(S))
        numbers = isinstance(given, torch.Tensor) and given.dtype != torch.bool
        _hint(numbers, "Return True and False (dtype=torch.bool). Numbers would be *added* to the scores.")
        given = _tensor(given, right, "The mask")
        _hint(torch.equal(given, ~right), "Your mask is True where a token may *not* look. Turn it round.")
        _hint(S > 1 and given.all(), "With this mask every token sees every other: nothing is masked.")
        _hint(not given.diagonal().all(), "A token may look at itself, too.")
        _hint(S > 1 and torch.equal(given, right.T), "These tokens look into the future: it is the row that looks.")
        wrong = not torch.equal(given, right)
        _hint(wrong, f"For S = {S} the mask should be\n{right.int()}\nand yours is\n{given.int()}")


@checker
def attend_one_more(answer):
    """answer(q, k, v, keys, values) -> (output, keys, values): attention of one more token, with a cache.

    q, k, v: (d,) float, of the new token. keys, values: (t, d) float, of the t ≥ 0 tokens before it.
    """
    S = 6
    for d in (16, 9):
        q, k, v = (2 * _random(S, d, seed=seed) for seed in range(3))
        scores = (q @ k.T / d**0.5).masked_fill(torch.ones(S, S, dtype=torch.bool).triu(1), -torch.inf)
        right = scores.softmax(-1) @ v
        for t in (0, 5, 1, 2, 3, 4):  # 5 comes early, since several mistakes look alike while there are few tokens
            output, *cache = _parts(answer(q[t], k[t], v[t], k[:t], v[:t]), "output", "keys", "values")
            output, cached, got = _tensor(output, right[t], "The output"), k[: t + 1], v[: t + 1]
            for part, whole, name in zip(cache, (cached, got), ("keys", "values"), strict=True):
                part = _tensor(part, whole, f"{name}, with the new token appended,")
                _hint(not torch.equal(part, whole), f"{name} should be the old ones, and then the new token's.")
            _hint(t == 0 and not output.any(), "The first token has only itself to look at: append before you look.")
            _hint(t and _close(output, v[0]), "You see only token 0: with is_causal=True, one query is the first.")
            if _close(output, right[t]):
                continue
            scores, own = cached @ q[t], "A token looks at itself, too: append before you look."
            _hint(_close(output, scores.softmax(-1) @ got), "You forgot to divide the scores by √d.")
            _hint(_close(output, (scores[:t] / d**0.5).softmax(-1) @ v[:t]), own)
            _hint(_close(output, (scores / d).softmax(-1) @ got), "Divide the scores by √d, not d.")
            _hint(_close(output, (scores / 4).softmax(-1) @ got), "d is the length of q: here 9, and not always 16.")
            raise Hint(f"The output of token {t} should be softmax(keys·q / √d) @ values, as in the whole sequence.")


# --- notebook 5
@checker
def at_temperature(answer):
    """answer(logits, T) -> (64,) probabilities at temperature T ≥ 0; at T = 0 the likeliest code has them all."""
    usual = 2 * _random(K)
    close = usual.index_fill(0, usual.argsort()[-2:-1], usual.max() - 1e-4)
    for logits, T in ((usual, 1.0), (usual, 0.5), (usual, 2.0), (usual, 0.0), (close, 0.0), (usual, 0.02)):
        right = (logits / T).softmax(-1) if T else F.one_hot(logits.argmax(), K).float()
        given = _tensor(answer(logits, T), right, "The answer")
        finite, best, wanted = bool(given.isfinite().all()), given.max(), right.max()
        _hint(not finite and T == 0, "At T = 0 you divide by zero. That case needs a line of its own.")
        _hint(not finite, f"At T = {T:g}, exp overflows. Subtract the largest logit first, or use softmax.")
        _hint((given < 0).any(), "Some of your probabilities are negative. Did you return their logarithms?")
        if _close(given, right):
            continue
        _hint(logits is close, "The second code is only 0.0001 behind, but at T = 0 it gets nothing. A tiny T isn't 0.")
        _hint(T == 0, "At T = 0 the likeliest code should have all the probability.")
        _hint(_close(given, (logits * T).softmax(-1)), "You multiply by T, so a high T sharpens. Divide instead.")
        _hint(_close(given, logits.softmax(-1) / T), "Divide the *logits* by T, before the softmax.")
        raise Hint(f"At T = {T:g} the likeliest code should have {wanted:.3f}, and yours has {best:.3f}.")


@checker
def nucleus(answer):
    """answer(probabilities, p) -> (n,) bool: the smallest set of likeliest codes that together reach p."""
    few = ([0.1, 0.5, 0.3, 0.06, 0.04], 0.7), ([0.25, 0.5, 0.125, 0.125], 0.75), ([0.25, 0.25, 0.5], 0.75)
    many = (2 * _random(K)).softmax(-1).tolist()
    for shares, p in (*few, (many, 0.9), (many, 0.05), (many, 0.99)):
        where, shares = f"For p = {p:g} and {shares if len(shares) < 9 else '64 codes'}", torch.tensor(shares)
        ordered = shares.sort(descending=True).values
        size = int((ordered.cumsum(0) - ordered < p).sum())
        given = _converted(answer(shares, p))
        numbers = isinstance(given, torch.Tensor) and given.is_floating_point()
        _hint(numbers, "Return True and False, which say for each code whether it stays.")
        given = _tensor(given, shares > 0, "The answer")
        kept = shares[given].sort(descending=True).values
        n, total = len(kept), kept.sum()
        _hint(n == 0, f"{where} you leave no code to draw from. The likeliest always stays.")
        other = n == size and not torch.equal(kept, ordered[:size])
        _hint(other, f"{where} you keep the right number of codes, but not the likeliest. Undo the sorting.")
        _hint(total < p - 1e-6, f"{where} you keep {total:.2f}, less than p. The code that crosses p stays, too.")
        _hint(n > size, f"{where} you keep {n} codes, and {size} would reach p. Of equal ones, keep just enough.")


# --- notebook 6
@checker
def independent_frechet(answer):
    """answer(features, others) -> the Fréchet distance of (N, D) and (M, D) features, each taken by itself."""
    for D in (1, 6):
        features, others = _random(50, D), 0.5 * _random(40, D, seed=1) + torch.linspace(1, 2, D)
        given, right = _number(answer(features, others)), _by_feature(features, others)
        if abs(given - right) <= 1e-3:
            continue
        hints = {
            "variances": "You compare variances. In the formula stand standard deviations, their square roots.",
            "spreads": "You compare the spreads only. The gap of the means counts, too.",
            "means": "You compare the means only. The gap of the standard deviations counts, too.",
            "by N": "You divide by N in the variance. Divide by N - 1, as the notebook does.",
            "averaged": "You average over the features. Add them up.",
            "root": "You return the root. The Fréchet distance of this notebook, like FID, is a squared one.",
            "one spread": "You take one standard deviation for all features together. Each has its own: dim=0.",
            "not squared": "Square the gaps before you add them up.",
        }
        for how, hint in hints.items():
            _hint(abs(given - _by_feature(features, others, how)) <= 1e-3, hint)
        whole = abs(given - frechet_distance(features, others)) <= 1e-3
        _hint(whole, "This is the whole distance. Leave out how the features vary together: all covariances are 0.")
        steps = "Per feature: the squared gap of the means, plus the squared gap of the standard deviations."
        raise Hint(f"With {D} features you get {given:.3f}, and it should be {right:.3f}. {steps}")


def _by_feature(features, others, how=""):
    """The right figure, or what one gets by going wrong in the way called ``how``."""
    power, dim = 2 if how == "variances" else 1, None if how == "one spread" else 0
    spreads = [x.std(dim, correction=how != "by N") ** power for x in (features, others)]
    means = features.mean(0) - others.mean(0)
    gaps = {"means": means, "spreads": (spreads[0] - spreads[1]).expand_as(means)}
    parts = [gaps[how]] if how in gaps else gaps.values()
    total = sum((gap.abs() if how == "not squared" else gap.square()).sum().item() for gap in parts)
    return {"averaged": total / features.shape[1], "root": total**0.5}.get(how, total)


@checker
def precision(answer):
    """answer(real, samples, k) -> the share of samples in the neighbourhood of a real picture: (N, D), (M, D), int."""
    for N, M, k in ((60, 50, 3), (50, 80, 1), (40, 60, 7)):
        real, samples = _random(N, 3), 1.5 * _random(M, 3, seed=1)
        given, right = _number(answer(real, samples, k)), _precision(real, samples, k)
        if abs(given - right) <= 1e-4:
            continue
        _hint(not 0 <= given <= 1, f"You return {given:.4g}, and a share lies between 0 and 1.")
        hints = {
            "turned": "This is coverage, the share of *real* pictures with a sample near. Here, count the samples.",
            "itself": "Each picture is its own nearest, at distance 0. So the k-th nearest *other* is the (k + 1)-th.",
            "nearest": "You ask the nearest real picture only. Another may have a wider neighbourhood: any will do.",
            "of samples": "Your neighbourhoods reach to the k-th nearest *sample*. Measure them among real pictures.",
        }
        for how, hint in hints.items():
            _hint(abs(given - _precision(real, samples, k, how)) <= 1e-4, hint)
        steps = "Compare each distance with the reach of *its* real picture, then take any() over those."
        raise Hint(f"With k = {k} you get {given:.3f}, and it should be {right:.3f}. {steps}")


def _precision(real, samples, k, how=""):
    """The right figure, or what one gets by going wrong in the way called ``how``."""
    centres = samples if how == "of samples" else real
    reach = torch.cdist(real, centres).kthvalue(k + (how not in ("itself", "of samples")), dim=1).values
    distances = torch.cdist(samples, real)  # (M, N)
    near = distances <= reach
    if how == "nearest":
        near = near.gather(1, distances.argmin(1, keepdim=True))
    return near.any(0 if how == "turned" else 1).float().mean().item()


# --- notebook 7
@checker
def game_losses(answer):
    """answer(real, drawn) -> (the discriminator's loss, the decoder's): of (B, 7, 7) logits, each a number."""
    for scale in (1.0, 3.0, 200.0):  # the last: where the logarithm of a sigmoid would be infinite
        real, drawn = scale * _random(4, 7, 7) + 1, scale * _random(4, 7, 7, seed=1) - 1
        given = [_number(loss) for loss in _parts(answer(real, drawn), "discriminator's loss", "decoder's loss")]
        judges, draws = F.softplus(-real).mean().item(), F.softplus(drawn).mean().item()
        right = judges + draws, F.softplus(-drawn).mean().item()
        if all(abs(a - b) <= 1e-4 * max(1, b) for a, b in zip(given, right, strict=True)):
            continue
        _hint(not all(map(math.isfinite, given)), "log(sigmoid(-200)) is -inf. F.softplus(-x) is -log σ(x) for any x.")
        _hint(math.isclose(given[0], right[1], rel_tol=1e-4), "Return the discriminator's loss first.")
        _hint_about_the_discriminator(given[0], judges, draws, real.numel())
        _hint(math.isclose(given[1], -draws, rel_tol=1e-4), "This is log(1 - σ), the form that saturates. Use -log σ.")
        hint = "The decoder's loss should be small if its drawings pass for real. Yours is small if they don't."
        _hint(math.isclose(given[1], draws, rel_tol=1e-4), hint)
        raise Hint(
            f"The decoder's loss should be {right[1]:.3f}, and yours is {given[1]:.3f}: -log σ(drawn), on average."
        )


def _hint_about_the_discriminator(given, real, drawn, cells):
    if math.isclose(given, real + drawn, rel_tol=1e-4):
        return
    hints = {
        real: "Only real pictures count in your discriminator's loss. Drawn ones should, too.",
        drawn: "Only drawn pictures count in your discriminator's loss. Real ones should, too.",
        (real + drawn) / 2: "You halve the discriminator's loss. In this notebook it is the sum of both parts.",
        (real + drawn) * cells: "You add up over the cells. Take the mean.",
        -real - drawn: "The sign of the discriminator's loss is wrong: log-probabilities are negative.",
    }
    for value, hint in hints.items():
        _hint(math.isclose(given, value, rel_tol=1e-4), hint)
    right = real + drawn
    raise Hint(
        f"The discriminator's loss should be {right:.3f}, and yours is {given:.3f}: -log σ(real) - log(1 - σ(drawn))."
    )


@checker
def energy_score(answer):
    """answer(picture, drawings) -> mean |x - a| less half the mean |a - b| of two different ones: (P,), (n, P)."""
    for n, P in ((2, 30), (5, 20), (3, 1)):
        picture, drawings = _random(P), 0.5 * _random(n, P, seed=1) + 0.2
        given, right = _number(answer(picture, drawings)), _energy(picture, drawings)
        if abs(given - right) <= 1e-4:
            continue
        hints = {
            "itself": "A drawing is at distance 0 from itself. There are n(n - 1) pairs of *different* ones: not n².",
            "whole": "Take off *half* the distance between two drawings.",
            "no spread": "Nothing here pays for a difference between drawings: take off half their mean distance.",
            "spread twice": "The spread should lower the score: subtract it.",
            "squared": "You square the differences. Take their absolute values.",
            "of the mean": "You compare the picture with the *mean* of the drawings. Compare it with each of them.",
            "summed": "You add up over the pixels. Take the mean.",
        }
        for how, hint in hints.items():
            _hint(abs(given - _energy(picture, drawings, how)) <= 1e-4, hint)
        raise Hint(f"With {n} drawings of {P} pixels you get {given:.4f}, and it should be {right:.4f}.")


def _energy(picture, drawings, how=""):
    """The right figure, or what one gets by going wrong in the way called ``how``."""
    n, size = len(drawings), torch.square if how == "squared" else torch.abs
    centre = drawings.mean(0, keepdim=True) if how == "of the mean" else drawings
    together = torch.sum if how == "summed" else torch.mean
    far = together(size(picture - centre).mean(0))
    spread = together(size(drawings[:, None] - drawings).sum((0, 1)) / (n * n if how == "itself" else n * (n - 1)))
    return (far - {"whole": 1, "no spread": 0, "spread twice": -0.5}.get(how, 0.5) * spread).item()


# --- notebook 8
@checker
def two_weights(answer):
    """answer(logits, tokens) -> 1/8 of the text's loss, and 7/8 of the codes': (B, 56, 104) logits, (B, 57) int64."""
    vocabulary = Vocabulary(num_words=captions.NUM_WORDS)
    text = captions.text_tokens(["a dark boot", "a bright slim dress", "bag", "shirt, wide and grey"], vocabulary)
    codes = torch.randint(K, (4, 49), generator=torch.Generator().manual_seed(0))
    for dropped in (0, 2):
        logits, tokens = 2 * _random(4, 56, vocabulary.size), torch.cat([text, codes], 1)
        tokens[:dropped, : captions.TEXT] = vocabulary.end
        given, right = _number(answer(logits, tokens)), _two_weights(logits, tokens)
        if abs(given - right) <= 1e-4:
            continue
        hints = {
            "swapped": "The weights are swapped: text counts 1/8, and the codes 7/8.",
            "unweighted": "You add the two losses as they are. Text counts 1/8, and the codes 7/8.",
            "uncut": "Only words and padding can follow in the text, and only codes later: cut the other logits away.",
            "together": "You average over all positions together. That differs once captions are dropped: average text"
            " and codes each by themselves.",
            "diluted": "A dropped caption has no loss, so leave its positions out of the mean, too.",
            "dropped": "You count token 74 among what may follow. It fills dropped captions, which have no loss.",
            "summed": "You add up over the positions. Take the mean.",
        }
        for how, hint in hints.items():
            _hint(math.isclose(given, _two_weights(logits, tokens, how), rel_tol=1e-4), hint)
        batch = f"{dropped or 'none'} of four captions dropped"
        steps = "After 7 of the 56 positions text should follow, and after 49 a code."
        raise Hint(f"With {batch} you get {given:.3f}, and it should be {right:.3f}. {steps}")


def _two_weights(logits, tokens, how=""):
    """The right figure, or what one gets by going wrong in the way called ``how``."""
    rows, end, uncut = captions.TEXT - 1, VOCABULARY.end, how == "uncut"
    first = 0 if uncut else end if how == "dropped" else end + 1
    said = tokens[:, 1 : rows + 1] > end
    due = (tokens[:, 1 : rows + 1] - first).clamp(min=0)
    text = F.cross_entropy(logits[:, :rows, first:].mT, due, reduction="none")
    codes = F.cross_entropy(logits[:, rows:, : None if uncut else K].mT, tokens[:, rows + 1 :], reduction="none")
    if how == "together":
        return torch.cat([text[said], codes.flatten()]).mean().item()
    if how == "summed":
        return (text[said].sum() / 8 + 7 * codes.sum() / 8).item()
    of_text = text.mean() if how == "dropped" else (text * said).mean() if how == "diluted" else text[said].mean()
    weights = {"swapped": (7 / 8, 1 / 8), "unweighted": (1, 1)}.get(how, (1 / 8, 7 / 8))
    return (weights[0] * of_text + weights[1] * codes.mean()).item()


@checker
def soft_draw(answer):
    """answer(logits, noise, temperature) -> the Gumbel-softmax's weights: (..., K) logits and noise, a float > 0."""
    for shape, temperature in (((5, 8), 0.5), ((2, 3, 64), 2.0), ((5, 8), 1 / 16)):
        logits, noise = 2 * _random(*shape), dvae.gumbel_noise(shape, torch.Generator().manual_seed(0))
        right = dvae.gumbel_softmax(logits, noise, temperature)
        given = _tensor(answer(logits, noise, temperature), right, "The answer")
        if _close(given, right):
            continue
        hard = F.one_hot((logits + noise).argmax(-1), shape[-1])
        _hint(
            _close(given, hard), "This is the hard draw, which has no gradient. Put a softmax in place of the argmax."
        )
        _hint(_close(given, (logits / temperature).softmax(-1)), "You leave out the noise, so nothing is drawn.")
        late = "You divide the logits only. Divide their sum with the noise, or at a low temperature nothing is drawn."
        _hint(_close(given, (logits / temperature + noise).softmax(-1)), late)
        early = "You divide the noise only, so that at a low temperature the logits no longer count."
        _hint(_close(given, (logits + noise / temperature).softmax(-1)), early)
        _hint(_close(given, ((logits + noise) * temperature).softmax(-1)), "You multiply by the temperature. Divide.")
        _hint(
            _close(given, ((logits + noise) / temperature).log_softmax(-1)), "Return the weights, not their logarithms."
        )
        _hint(
            _close(given, ((logits + noise) / temperature).softmax(0)),
            "The weights of each *cell* add up to 1: dim=-1.",
        )
        _hint(
            _close(given, ((logits - noise) / temperature).softmax(-1)), "Add the noise: the other tail isn't Gumbel's."
        )
        wrong = (given.sum(-1) - 1).abs().max() > 1e-4
        _hint(wrong, "Your weights don't add up to 1 in each cell.")
        raise Hint(
            f"At temperature {temperature:g} the largest weight should be {right.max():.3f}, not {given.max():.3f}."
        )


@checker
def matching_pairs(answer):
    """answer(pictures, texts, scale) -> InfoNCE in nats: (B, F) features of length 1, row i of both a pair; a float."""
    for B, scale in ((4, 3.0), (7, 10.0), (3, 100.0)):
        pictures, texts = (F.normalize(_random(B, 5, seed=seed), dim=1) for seed in (0, 1))
        given, right = _number(answer(pictures, texts, scale)), _matching(pictures, texts, scale)
        if abs(given - right) <= 1e-4 * max(1, right):
            continue
        _hint(not math.isfinite(given), "exp overflows. F.cross_entropy takes the logits themselves.")
        hints = {
            "captions": "You ask each picture for its caption. Ask each caption for its picture, too, and average.",
            "pictures": "You ask each caption for its picture. Ask each picture for its caption, too, and average.",
            "added": "You add the two directions. Average them.",
            "summed": "You add up over the batch. Take the mean.",
            "unscaled": "You leave out the scale. Multiply the similarities by it.",
            "divided": "You divide by the scale. It is one over a temperature: multiply.",
            "sign": "The sign is wrong: the loss is -log of a probability, and never below 0.",
            "reversed": "Row i belongs to row i: the targets are 0, 1, 2, …",
        }
        for how, hint in hints.items():
            _hint(abs(given - _matching(pictures, texts, scale, how)) <= 1e-4 * max(1, abs(given)), hint)
        steps = "Cross-entropy of scale · pictures @ texts.T, by rows and by columns, averaged."
        raise Hint(f"With {B} pairs you get {given:.3f}, and it should be {right:.3f}. {steps}")


def _matching(pictures, texts, scale, how=""):
    """The right figure, or what one gets by going wrong in the way called ``how``."""
    scale, own = {"unscaled": 1, "divided": 1 / scale}.get(how, scale), torch.arange(len(pictures))
    own = own.flip(0) if how == "reversed" else own
    logits, together = scale * pictures @ texts.T, "sum" if how == "summed" else "mean"
    both = [F.cross_entropy(side, own, reduction=together).item() for side in (logits, logits.T)]
    wrong = {"captions": both[0], "pictures": both[1], "added": sum(both), "sign": -sum(both) / 2}
    return wrong.get(how, sum(both) / 2)
