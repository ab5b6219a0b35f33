"""What looks at a reader's answers to the exercises of the notebooks, and gives a hint where one is wrong.

Each checker takes the reader's function, tries it, and prints "Right.", or what went wrong first. It never raises, so
a notebook runs to its end whatever stands in it. One answer to each is in notebooks/solutions.
"""

import functools
import math

import torch
import torch.nn.functional as F

from vqlib.tokens import CODES_PER_IMAGE, NUM_CODES, to_sequences


class Hint(Exception):
    """What a wrong answer should hear."""


def checker(check):
    """Makes of a function that raises `Hint` at the first mistake one that prints."""

    @functools.wraps(check)
    def tried(answer):
        answered = []

        def ask(*arguments):
            given = answer(*(a.clone() if isinstance(a, torch.Tensor) and a.is_leaf and not a.requires_grad else a
                             for a in arguments))  # the reader may change what is given
            if given is None or given is ...:
                _hint_unless(not answered, f"It answered, but not for all that it was asked: it returned {given}.")
                raise NotImplementedError
            answered.append(given)
            return given

        try:
            check(ask)
        except NotImplementedError:
            print("No answer yet: the function returns nothing. Write it above, and run the cell again.")
        except Hint as hint:
            print(f"Not yet. {hint}")
        except Exception as error:
            print(f"Not yet. It stopped with {type(error).__name__}: {error}")
        else:
            print("Right.")

    return tried


def _hint_unless(fine, hint):
    if not fine:
        raise Hint(hint)


def _tensor(given, like, what):
    """``given`` in the dtype of ``like``, if it is a tensor of that shape."""
    _hint_unless(isinstance(given, torch.Tensor), f"{what} should be a tensor, got {type(given).__name__}.")
    _hint_unless(given.shape == like.shape, f"{what} should have the shape {tuple(like.shape)}, got "
                                            f"{tuple(given.shape)}.")
    return given.to(like.dtype)


def _close(a, b, tolerance=1e-5):
    return bool((a - b).abs().max() <= tolerance)  # False where there is a NaN


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- notebook 1 ------------------------------------------------------------------------------------------------------


@checker
def thumbnail_levels(answer):
    """answer(side) -> how many grey levels each of side² cells may have, for at most 294 bits in all."""
    for side, right in ((7, 64), (14, 2), (10, 7), (28, 1)):
        given, bits = answer(side), 294 / side ** 2
        if given == right:
            continue
        given = float(given) if float(given) % 1 else int(given)
        if abs(given / bits - 1) < 1e-4:
            raise Hint(f"{given:.2f} are the bits of a cell; b bits name 2**b levels.")
        if given == 2 ** (294 // side ** 2):
            raise Hint(f"The bits of a cell need not be whole: {right} levels in {side}×{side} cells are "
                       f"{side ** 2 * math.log2(right):.0f} bits.")
        if given == right - 1:
            raise Hint(f"For {side}×{side} cells {right} levels fit exactly: a result just below was rounded down. "
                       f"2 ** bits doesn't lose it, exp and log do.")
        if given == right + 1:
            raise Hint(f"{given} levels in {side}×{side} cells are {side ** 2 * math.log2(given):.0f} bits: over the "
                       f"budget. Round down.")
        if abs(given / 2 ** bits - 1) < 1e-4:
            raise Hint(f"{given:.2f} levels: there are only whole ones.")
        raise Hint(f"For {side}×{side} cells you say {given}. A cell has 294 / {side ** 2} = {bits:.2f} bits; how many "
                   f"levels do they name?")


@checker
def huffman_lengths(answer):
    """answer(shares) -> for each share (floats that sum to 1) how many bits its name has, in Huffman's code."""
    cases = ([0.25] * 4, [0.5, 0.25, 0.125, 0.125], [0.4, 0.3, 0.2, 0.1], [0.9, 0.05, 0.03, 0.02],
             torch.softmax(1.5 * _random(64), 0).tolist())
    for shares in cases:
        lengths = list(answer(list(shares)))
        shown = "64 shares" if len(shares) == 64 else f"the shares {shares}"
        _hint_unless(len(lengths) == len(shares), f"For {shown}: one length for each, please; got {len(lengths)}.")
        lengths = [float(length) for length in lengths]
        _hint_unless(all(length == int(length) and length >= 1 for length in lengths),
                     f"For {shown}: a name has a whole number of bits, at least 1; got {lengths[:4]}…")
        _hint_unless(sum(2 ** -length for length in lengths) <= 1 + 1e-9,
                     f"For {shown}: there are no names so short of which none begins another (the sum of 2^-length is "
                     f"{sum(2 ** -length for length in lengths):.2f}; it may be 1 at most).")
        right = _huffman(shares)
        mean, best = (sum(s * n for s, n in zip(shares, of, strict=True)) for of in (lengths, right))
        _hint_unless(mean <= best + 1e-9 or sorted(lengths) != sorted(right), f"For {shown}: the right lengths, in "
                                                                              f"another order than the shares.")
        _hint_unless(mean <= best + 1e-9, f"For {shown}: {mean:.3f} bits on average, where {best:.3f} would do. Join "
                                          f"the two *rarest* groups again and again: each join makes their names a bit "
                                          f"longer.")


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


# --- notebook 2 ------------------------------------------------------------------------------------------------------


@checker
def straight_through(answer):
    """answer(z, q) -> a tensor with the value of q, whose gradient goes to z as it is, and not to q."""
    z, q, upstream = (_random(5, 16, seed=seed) for seed in range(3))
    kept = z.clone(), q.clone()
    z.requires_grad_(), q.requires_grad_()
    given = _tensor(answer(z, q), q, "The answer")
    _hint_unless(all(map(torch.equal, (z, q), kept)), "It overwrites what it was given, which the loss still needs: "
                                                      "make a new tensor.")
    _hint_unless(_close(given, q.detach()), "It should have the value of q" + (", and has that of z." if _close(
        given.detach(), z.detach()) else "."))
    _hint_unless(given.requires_grad, "It has q's value, but no gradient goes through it at all: too much is detached.")
    to_z, to_q = torch.autograd.grad(given, (z, q), upstream, allow_unused=True)
    _hint_unless(to_z is not None and to_z.abs().sum() > 0, "It has q's value, but no gradient reaches z.")
    _hint_unless(_close(to_z, upstream), "A gradient reaches z, but not the one that arrives: it should pass as it is.")
    _hint_unless(to_q is None or to_q.abs().sum() == 0, "The gradient reaches q as well: detach what must be a "
                                                        "constant.")


@checker
def moving_average_step(answer):
    """answer(count, total, vectors, codes, decay) -> (count, total, codebook) after one step of appendix A.1."""
    vectors, codes = _random(30, 2), torch.arange(30) % 3
    codes[codes == 2] = 0  # codes 2 and 3 are chosen by none
    count, total, decay = torch.tensor([4.0, 9.0, 2.0, 1.0]), _random(4, 2, seed=1), 0.9
    kept = count.clone(), total.clone()
    try:
        given = answer(count, total, vectors, codes, decay)
    except RuntimeError as error:
        _hint_unless("size of tensor" not in str(error), f"It stopped with: {error}. A code that no vector chose "
                                                         f"counts 0, and has its place: bincount takes minlength.")
        raise
    _hint_unless(isinstance(given, tuple | list) and len(given) == 3, "Return three things: count, total, codebook.")
    chosen = torch.stack([(codes == k).sum() for k in range(4)]).float()
    sums = torch.stack([vectors[codes == k].sum(0) for k in range(4)])
    right = decay * kept[0] + (1 - decay) * chosen, decay * kept[1] + (1 - decay) * sums
    new_count, new_total = _tensor(given[0], right[0], "count"), _tensor(given[1], right[1], "total")
    codebook = _tensor(given[2], right[1], "The codebook")
    _hint_unless(not _close(new_count, (1 - decay) * kept[0] + decay * chosen), "decay is the share of the *old* "
                                                                                 "average that is kept.")
    _hint_unless(not _close(new_count, decay * kept[0] + (1 - decay) * (chosen > 0)), "count[codes] += … adds once "
                 "where a code occurs often: use bincount, or index_add_.")
    undecayed = torch.where(chosen > 0, right[0], kept[0])
    _hint_unless(not _close(new_count, undecayed), "Codes that no vector chose decay, too.")
    _hint_unless(_close(new_count, right[0]), "count: decay times the old one, plus (1 - decay) times how many vectors "
                                              "chose each code.")
    means = decay * kept[1] + (1 - decay) * sums / chosen[:, None]  # 0 / 0 where none chose
    with_zeros = decay * kept[1] + (1 - decay) * (sums / chosen[:, None]).nan_to_num()
    _hint_unless(not _close(new_total.nan_to_num(), means.nan_to_num()) and not _close(new_total, with_zeros),
                 "total averages the *sums* of the vectors, not their means.")
    _hint_unless(_close(new_total, right[1]), "total: decay times the old one, plus (1 - decay) times the sum of the "
                                              "vectors that chose each code.")
    _hint_unless(_close(codebook, right[1] / right[0][:, None], 1e-3), "count and total are right. A code is total / "
                                                                       "count.")


# --- notebook 3 ------------------------------------------------------------------------------------------------------


@checker
def codes_of(answer):
    """answer(sequence) -> (label, codes): of (51,) tokens, an int in 0…9 and the (7, 7) codes."""
    codes = torch.randint(NUM_CODES, (3, 7, 7), generator=torch.Generator().manual_seed(0))
    for one, label in zip(codes, (0, 6, 9), strict=True):
        given = answer(to_sequences(one[None], torch.tensor([label]))[0])
        _hint_unless(isinstance(given, tuple | list) and len(given) == 2, "Return two things: the label, the codes.")
        _hint_unless(not (isinstance(given[0], torch.Tensor) and given[0].numel() > 1), "The label first, then the "
                                                                                       "codes.")
        _hint_unless(int(given[0]) != NUM_CODES + label, f"{int(given[0])} is the start token; the label is less by "
                                                         f"64.")
        _hint_unless(int(given[0]) == label, f"The label should be {label}, got {int(given[0])}.")
        if isinstance(given[1], torch.Tensor) and given[1].numel() == CODES_PER_IMAGE:
            flat = given[1].flatten()
            _hint_unless(not torch.equal(flat[:-1], one.flatten()[1:]), "Off by one: your first code is the picture's "
                                                                        "second. The codes are sequence[1:50].")
            _hint_unless(flat.max() < NUM_CODES, f"Token {int(flat.max())} is no code. The codes are "
                                                 f"sequence[1:50].")
        given = _tensor(given[1], one, "The codes")
        _hint_unless(not torch.equal(given, one.T), "Rows and columns are exchanged: the picture is written row by "
                                                    "row.")
        _hint_unless(torch.equal(given, one), "Those aren't the picture's codes.")


@checker
def left_neighbour_nats(answer):
    """answer(train_codes, test_codes) -> mean nats of the codes in columns 1…6, guessed from the code to the left."""
    generator = torch.Generator().manual_seed(0)
    start = NUM_CODES * torch.rand(60, 7, 1, generator=generator) ** 3
    codes = (start + torch.randint(6, (60, 7, 7), generator=generator).cumsum(-1)).long().clamp(max=NUM_CODES - 1)
    learn, score = codes[:50], codes[50:]
    given = float(answer(learn, score))
    right = _left_nats(learn, score, "right")
    _hint_unless(math.isfinite(given), "A pair that training never saw made it infinite: add one to each count.")
    if abs(given - right) <= 1e-3:
        return
    _hint_unless(given >= 0, "-ln p is never negative: is the sign wrong?")
    for how, hint in (
            ("pairs once", "table[left, next] += 1 counts a pair that occurs often only once: use bincount, or "
                           "index_put_ with accumulate=True."),
            ("no keepdim", "table / table.sum(1) divides columns by the sums of rows: add keepdim=True."),
            ("transposed", "The table is normalised the wrong way: for each *left* code the 64 probabilities of the "
                           "next must sum to 1."),
            ("one sum", "That is -ln p of the *pair*. Of the next code, given the left one: divide each row by its own "
                        "sum."),
            ("above", "That is the code *above*: the left one is a column before, in the last dimension."),
            ("column 0 too", "A row's first code has no left neighbour in its row: count columns 1 to 6 only."),
            ("column 0 too, in learning", "A row's first code has no left neighbour in its row: take columns 1 to 6 "
                                          "only where you count the training pairs, too."),
            ("bits", "Those are bits. Nats use the natural logarithm."),
            ("no one added", "Add one to each count.")):
        _hint_unless(abs(given - _left_nats(learn, score, how)) > 1e-3, hint)
    raise Hint(f"On a small test set you get {given:.3f} nats; it should be {right:.3f}. Count the pairs (left, next) "
               f"in a 64×64 table, add one, divide each row by its sum, and take the mean of -ln p.")


def _left_nats(learn, score, how):
    """As it should be, or wrong in one way."""

    def pairs(codes, as_a_line):
        if how == "above":
            codes = codes.mT
        if as_a_line:
            codes = codes.flatten(1)
        return codes[..., :-1].flatten(), codes[..., 1:].flatten()

    left, right = pairs(learn, how.startswith("column 0 too"))
    table = torch.zeros(NUM_CODES, NUM_CODES)
    table.index_put_((left, right), torch.ones(len(left)), accumulate=how != "pairs once")
    table += how != "no one added"
    total = table.sum(0 if how == "transposed" else 1, keepdim=how != "no keepdim")
    total = table.sum() if how == "one sum" else total
    left, right = pairs(score, how == "column 0 too")
    nats = -(table / total)[left, right].log().mean().item()
    return nats / math.log(2) if how == "bits" else nats


# --- notebook 4 ------------------------------------------------------------------------------------------------------


@checker
def may_look(answer):
    """answer(T) -> (T, T) bool: True where the token of the row may look at the token of the column."""
    for T in (5, 2, 1):
        right = torch.ones(T, T, dtype=torch.bool).tril()
        given = answer(T)
        _hint_unless(not isinstance(given, torch.Tensor) or given.dtype == torch.bool, "True and False, please "
                     "(dtype=torch.bool). A mask of numbers is *added* to the scores: ones and zeros mask nothing.")
        given = _tensor(given, right, "The answer")
        _hint_unless(not torch.equal(given, ~right), "That is True where it may *not* look: turn it round.")
        _hint_unless(T == 1 or not given.all(), "Everything may look at everything: nothing is masked.")
        _hint_unless(given.diagonal().all(), "A token may look at itself, too.")
        _hint_unless(T == 1 or not torch.equal(given, right.T), "That way round, tokens look into the future: the row "
                                                                "asks, the column is looked at.")
        _hint_unless(torch.equal(given, right), f"For T = {T} it should be\n{right.int()}\nand is\n{given.int()}")


@checker
def attend_one_more(answer):
    """answer(q, k, v, keys, values) -> (output, keys, values): one token's attention, with a cache.

    q, k, v: (d,) of the new token. keys, values: (t, d) of those before it, t ≥ 0.
    """
    T = 6
    for d in (16, 9):
        q, k, v = (2 * _random(T, d, seed=seed) for seed in range(3))
        scores = (q @ k.T / d ** 0.5).masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf)
        right = scores.softmax(-1) @ v
        for t in (0, 5, 1, 2, 3, 4):  # the last early: of two tokens, several mistakes look alike
            given = answer(q[t], k[t], v[t], k[:t], v[:t])
            _hint_unless(isinstance(given, tuple | list) and len(given) == 3, "Return three things: output, keys, "
                                                                              "values.")
            output = _tensor(given[0], right[t], "The output")
            _hint_unless(all(torch.equal(torch.as_tensor(part), all_of[:t + 1]) for part, all_of in
                             zip(given[1:], (k, v), strict=True)),
                         f"keys and values: those that were there, then the new token's. They should have the shape "
                         f"({t + 1}, {d}), got {tuple(given[1].shape)} and {tuple(given[2].shape)}.")
            _hint_unless(t or output.abs().sum() > 0, "The first token has itself to look at: append before you look.")
            _hint_unless(t == 0 or not _close(output, v[0]), "It looks at the first token only: "
                         "scaled_dot_product_attention with is_causal=True takes the one query for the first of a "
                         "sequence. Leave it out.")
            if _close(output, right[t]):
                continue
            for hint, wrong in (
                    ("Divide the scores by √d.", (q[t] @ k[:t + 1].T).softmax(-1) @ v[:t + 1]),
                    ("The new token looks at itself, too: append before you look.",
                     (q[t] @ k[:t].T / d ** 0.5).softmax(-1) @ v[:t]),
                    ("√d, not d.", (q[t] @ k[:t + 1].T / d).softmax(-1) @ v[:t + 1]),
                    ("d is the length of q: here 9, and not always 16.",
                     (q[t] @ k[:t + 1].T / 4).softmax(-1) @ v[:t + 1])):
                _hint_unless(not _close(output, wrong), hint)
            raise Hint(f"Token {t} should get what it gets in the whole sequence: softmax(q·keys / √d) @ values.")


# --- notebook 5 ------------------------------------------------------------------------------------------------------


@checker
def at_temperature(answer):
    """answer(logits, T) -> (64,) probabilities at temperature T ≥ 0; at 0 all of it on the likeliest."""
    usual = 2 * _random(NUM_CODES)
    close = usual.index_fill(0, usual.argsort()[-2:-1], usual.max() - 1e-4)
    for logits, T in ((usual, 1.0), (usual, 0.5), (usual, 2.0), (usual, 0.0), (close, 0.0), (usual, 0.02)):
        right = (logits / T).softmax(-1) if T else F.one_hot(logits.argmax(), NUM_CODES).float()
        given = _tensor(answer(logits, T), right, "The answer")
        _hint_unless(T or bool(given.isfinite().all()), "At T = 0 there is a division by zero: treat it apart.")
        _hint_unless(bool(given.isfinite().all()), f"At T = {T:g} it overflows: exp of a large number is infinite. "
                                                   f"Take the largest logit away first, or use softmax.")
        _hint_unless(bool((given >= 0).all()), "Some are negative: those are no probabilities (their logarithms?).")
        if _close(given, right):
            continue
        _hint_unless(T or logits is usual, f"The second code is only 0.0001 behind, but at T = 0 the likeliest should "
                                           f"have 1, and has {given.max():.3f}. A very small T is not yet 0.")
        for hint, wrong in (("You multiply by T: then a high temperature sharpens. Divide.", (logits * T).softmax(-1)),
                            ("Divide the *logits*, before the softmax.", logits.softmax(-1) / T if T else right)):
            _hint_unless(T == 0 or not _close(given, wrong), hint)
        _hint_unless(T or not _close(given, logits.softmax(-1)), "At T = 0 all of it should be on the likeliest.")
        raise Hint(f"At T = {T:g} the likeliest code should have {right.max():.3f}, and has {given.max():.3f}.")


@checker
def nucleus(answer):
    """answer(probabilities, p) -> (64,) bool: the smallest set of likeliest codes that reaches p together."""
    logits = 2 * _random(NUM_CODES)
    many = logits.softmax(-1)
    for shares, p in ((torch.tensor([0.1, 0.5, 0.3, 0.06, 0.04]), 0.7),
                      (torch.tensor([0.25, 0.5, 0.125, 0.125]), 0.75), (torch.tensor([0.25, 0.25, 0.5]), 0.75),
                      (many, 0.9), (many, 0.05), (many, 0.99)):
        ordered = shares.sort(descending=True).values
        size = int((ordered.cumsum(0) - ordered < p).sum())
        given = answer(shares, p)
        _hint_unless(not (isinstance(given, torch.Tensor) and given.is_floating_point()), "True and False, please: "
                                                                                          "which codes stay.")
        given = _tensor(given, shares > 0, "The answer")
        shown = f"{[round(s, 3) for s in shares.tolist()]}" if len(shares) < 9 else f"{len(shares)} codes"
        _hint_unless(given.any(), f"For p = {p:g} and {shown} no code is left to draw from: the likeliest always "
                                  f"stays.")
        kept = shares[given].sort(descending=True).values
        _hint_unless(len(kept) != size or torch.equal(kept, ordered[:size]), f"For p = {p:g} and {shown} that is the "
                     f"right number of codes, but they aren't the likeliest: map them back to where they stood.")
        _hint_unless(kept.sum() >= p - 1e-6, f"For p = {p:g} and {shown} you keep {kept.sum():.2f}, less than p: "
                                             f"the code that crosses p belongs to the set.")
        _hint_unless(len(kept) <= size, f"For p = {p:g} and {shown} you keep {len(kept)} codes, where {size} reach p. "
                                        f"(Of codes that are equally likely, as many as it takes.)")


ALL = (thumbnail_levels, huffman_lengths, straight_through, moving_average_step, codes_of, left_neighbour_nats,
       may_look, attend_one_more, at_temperature, nucleus)
