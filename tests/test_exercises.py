"""The exercises: a right answer is called right, a wrong one gets the hint that fits, and the solutions are right."""

import heapq
import json
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vqlib.notebook import exercises

ROOT = Path(__file__).parent.parent
NAMES = ["01_data", "02_vqvae", "03_tokens", "04_transformer", "05_sampling", "06_quality", "07_crisp", "08_dalle"]


def straight(z, q):
    return z + (q - z).detach()


def step(count, total, vectors, codes, decay):
    chosen = F.one_hot(codes, len(count)).float()
    count, total = decay * count + (1 - decay) * chosen.sum(0), decay * total + (1 - decay) * chosen.T @ vectors
    return count, total, total / count[:, None]


def step_of_means(count, total, vectors, codes, decay):
    means = torch.stack([vectors[codes == k].mean(0).nan_to_num() if k < 2 else torch.zeros(2) for k in range(4)])
    count = step(count, total, vectors, codes, decay)[0]
    total = decay * total + (1 - decay) * means
    return count, total, total / count[:, None]


def naive_means(count, total, vectors, codes, decay):
    chosen = F.one_hot(codes, len(count)).float()
    total = decay * total + (1 - decay) * chosen.T @ vectors / chosen.sum(0)[:, None]  # 0 / 0 where none chose
    count = decay * count + (1 - decay) * chosen.sum(0)
    return count, total, total / count[:, None]


def only_the_chosen(count, total, vectors, codes, decay):
    new, some = step(count, total, vectors, codes, decay), torch.bincount(codes, minlength=len(count)) > 0
    count, total = torch.where(some, new[0], count), torch.where(some[:, None], new[1], total)
    return count, total, total / count[:, None]


def tried_on_a_table(train, test, how):
    table = torch.zeros(64, 64)
    if how == "once":
        table[train[..., :-1].flatten(), train[..., 1:].flatten()] += 1
    else:
        pairs = train[..., :-1].flatten(), train[..., 1:].flatten()
        table.index_put_(pairs, torch.ones(len(pairs[0])), accumulate=True)
    table += 1
    table = table / table.sum(1, keepdim=how == "once")
    return -table[test[..., :-1], test[..., 1:]].log().mean()


def nats(train, test, add=1.0, dim=1, base=math.e, first=1):
    def pairs(codes):
        flat = codes.flatten(1) if not first else codes
        return flat[..., :-1].flatten(), flat[..., 1:].flatten()

    table = torch.full((64, 64), add)
    for left, right in zip(*(part.tolist() for part in pairs(train)), strict=True):
        table[left, right] += 1
    table = table / table.sum(dim, keepdim=True)
    return -table[pairs(test)].log().mean().item() / math.log(base)


def attend(q, k, v, keys, values, scale=0.5, late=False):
    seen = keys, values
    keys, values = torch.cat([keys, k[None]]), torch.cat([values, v[None]])
    look, get = seen if late and len(seen[0]) else (keys, values)
    return (look @ q / len(q) ** scale).softmax(0) @ get, keys, values


def append_late(q, k, v, keys, values):
    output = (keys @ q / len(q) ** 0.5).softmax(0) @ values
    return output, torch.cat([keys, k[None]]), torch.cat([values, v[None]])


def nucleus(shares, p, before=True):
    ordered, order = shares.sort(descending=True)
    kept = ordered.cumsum(0) - (ordered if before else 0) < p
    return torch.zeros(len(shares), dtype=torch.bool).scatter(0, order, kept)


def tempered(logits, T):
    return (logits / T).softmax(-1) if T else F.one_hot(logits.argmax(), 64).float()


def huffman(shares):
    """Lengths by joining the two rarest groups, with a heap."""
    groups, lengths = [(share, i, [i]) for i, share in enumerate(shares)], [0] * len(shares)
    heapq.heapify(groups)
    while len(groups) > 1:
        (a, i, first), (b, _, second) = heapq.heappop(groups), heapq.heappop(groups)
        for member in first + second:
            lengths[member] += 1
        heapq.heappush(groups, (a + b, i, first + second))
    return lengths


def halves(shares):
    """Shannon and Fano's code, which isn't always the shortest."""
    lengths = [0] * len(shares)

    def split(group):
        if len(group) == 1:
            return
        total = sum(shares[i] for i in group)
        cut = min(range(1, len(group)), key=lambda c: abs(2 * sum(shares[i] for i in group[:c]) - total))
        for part in (group[:cut], group[cut:]):
            for i in part:
                lengths[i] += 1
            split(part)

    split(sorted(range(len(shares)), key=lambda i: -shares[i]))
    return lengths


def joining_the_largest(shares):
    groups, lengths = [(share, [i]) for i, share in enumerate(shares)], [0] * len(shares)
    while len(groups) > 1:
        groups.sort(reverse=True)
        (a, first), (b, second), *groups = groups
        for i in first + second:
            lengths[i] += 1
        groups.append((a + b, first + second))
    return lengths


def step_by(count, total, vectors, codes, decay, count_codes):
    new = step(count, total, vectors, codes, decay)
    count = decay * count + (1 - decay) * count_codes(codes, len(count))
    return count, new[1], new[1] / count[:, None]


def counted_once(codes, K):
    count = torch.zeros(K)
    count[codes] += 1
    return count


def overwrites(z, q):
    with torch.no_grad():
        z.copy_(q)
    return z


def attend_by_library(q, k, v, keys, values, **options):
    keys, values = torch.cat([keys, k[None]]), torch.cat([values, v[None]])
    return F.scaled_dot_product_attention(q[None], keys, values, **options)[0], keys, values


def pairs_nats(learn, score, how):
    """Pairs of (left, next), counted with a loop."""
    table = torch.ones(64, 64)
    if how == "above":
        learn, score = learn.transpose(1, 2), score.transpose(1, 2)
    for one in learn.flatten(1).tolist():
        for i in range(48):
            if how == "wraps" or i % 7 < 6:
                table[one[i], one[i + 1]] += 1
    table /= table.sum() if how == "joint" else table.sum(1, keepdim=True)
    return -table[score[..., :-1], score[..., 1:]].log().mean()


def nucleus_to(shares, p):
    """One too many where a sum hits p."""
    order = shares.argsort(descending=True)
    kept = torch.zeros(len(shares), dtype=torch.bool)
    kept[order[: (shares[order].cumsum(0) <= p).sum() + 1]] = True
    return kept


def nucleus_with_ties(shares, p):
    return shares >= shares[nucleus(shares, p)].min()


def by_feature(a, b, spread=torch.std, together=torch.sum):
    return together((a.mean(0) - b.mean(0)) ** 2 + (spread(a, 0) - spread(b, 0)) ** 2)


def whole_frechet(a, b):
    """By the eigenvalues of the product itself, which are real but come as complex numbers."""
    c, d = a.double().T.cov().reshape(a.shape[1], -1), b.double().T.cov().reshape(a.shape[1], -1)
    roots = torch.linalg.eigvals(c @ d).real.clamp(min=0).sqrt()
    return (a.mean(0) - b.mean(0)).square().sum() + c.trace() + d.trace() - 2 * roots.sum()


def reach(real, k):
    return torch.cdist(real, real).sort(dim=1).values[:, k]


def precise(real, samples, k):
    """With loops."""
    hits = [any((s - r).norm() <= far for r, far in zip(real, reach(real, k), strict=True)) for s in samples]
    return sum(hits) / len(hits)


def of_the_nearest(real, samples, k):
    distance, nearest = torch.cdist(samples, real).min(1)
    return (distance <= reach(real, k)[nearest]).float().mean()


def reach_among_samples(real, samples, k):
    far = torch.cdist(real, samples).sort(dim=1).values[:, k - 1]
    return (torch.cdist(samples, real) <= far).any(1).float().mean()


def losses(real, drawn, decoder=lambda drawn: F.binary_cross_entropy_with_logits(drawn, torch.ones_like(drawn))):
    """By the cross-entropy of labels."""
    labels = torch.cat([torch.ones_like(real), torch.zeros_like(drawn)])
    return 2 * F.binary_cross_entropy_with_logits(torch.cat([real, drawn]), labels), decoder(drawn)


def of_both(change):
    """The right losses, the discriminator's changed."""

    def answer(real, drawn):
        discriminators, decoders = losses(real, drawn)
        return change(discriminators, real, drawn), decoders

    return answer


def spread_of(drawings):
    n = len(drawings)
    return (drawings[:, None] - drawings).abs().sum((0, 1)).mean() / (n * (n - 1))


def energy(picture, drawings, pairs=lambda n: n * (n - 1), half=0.5, size=abs, together=lambda x: sum(x) / len(x)):
    """With loops."""
    scores = []
    for pixel, drawn in zip(picture.tolist(), drawings.T.tolist(), strict=True):
        far = sum(size(pixel - a) for a in drawn) / len(drawn)
        scores.append(far - half * sum(size(a - b) for a in drawn for b in drawn) / pairs(len(drawn)))
    return together(scores)


def streamed(logits, tokens, text_weight=1 / 8, first_word=75, num_codes=64, counted=None):
    """Target by target."""
    text, codes = [], []
    for row, sequence in zip(logits, tokens.tolist(), strict=True):
        for t, target in enumerate(sequence[1:]):
            if t >= 7:
                codes.append(-row[t, :num_codes].log_softmax(0)[target])
            elif target >= first_word:
                text.append(-row[t, first_word:].log_softmax(0)[target - first_word])
    return text_weight * sum(text) / (counted or len(text)) + (1 - text_weight) * sum(codes) / len(codes)


def all_together(logits, tokens):
    logits = logits.clone()
    logits[:, :7, :75], logits[:, 7:, 64:] = -torch.inf, -torch.inf
    targets = tokens[:, 1:].masked_fill(tokens[:, 1:] == 74, -100)
    return F.cross_entropy(logits.mT, targets)


def soft(logits, noise, temperature):
    odds = ((logits.double() + noise.double()) / temperature).exp()
    return (odds / odds.sum(-1, keepdim=True)).float()


def paired(pictures, texts, scale, sides=(0.5, 0.5), sign=-1, own=lambda i, B: i):
    """Pair by pair."""
    total, B = 0.0, len(pictures)
    for side, weight in zip(((pictures, texts), (texts, pictures)), sides, strict=True):
        for i, row in enumerate(side[0]):
            scores = torch.stack([scale * row @ other for other in side[1]])
            total += weight * sign * scores.log_softmax(0)[own(i, B)].item() / B
    return total


RIGHT = {
    "thumbnail_levels": lambda side: int(2 ** (294 / side**2)),
    "huffman_lengths": lambda shares: huffman(shares),
    "straight_through": straight,
    "moving_average_step": step,
    "codes_of": lambda sequence: (sequence[0] - 64, sequence[1:50].reshape(7, 7)),
    "left_neighbour_nats": nats,
    "may_look": lambda T: torch.arange(T)[:, None] >= torch.arange(T),
    "attend_one_more": attend,
    "at_temperature": tempered,
    "nucleus": nucleus,
    "independent_frechet": by_feature,
    "precision": lambda real, samples, k: (torch.cdist(samples, real) <= reach(real, k)).any(1).float().mean(),
    "game_losses": losses,
    "energy_score": lambda x, drawings: torch.tensor(energy(x, drawings)),
    "two_weights": streamed,
    "soft_draw": soft,
    "matching_pairs": lambda *a: torch.tensor(paired(*a)),
}
WRONG = [
    ("thumbnail_levels", lambda side: 294 / side**2, "2\\*\\*b"),
    ("thumbnail_levels", lambda side: round(2 ** (294 / side**2)), "Round down"),
    ("thumbnail_levels", lambda side: 2 ** (294 / side**2), "not a whole number"),
    ("thumbnail_levels", lambda side: 2 ** (294 // side**2), "need not be whole"),
    ("thumbnail_levels", lambda side: torch.tensor(2.0) ** (294 / side**2), "not a whole number"),
    ("thumbnail_levels", lambda side: 64, "14×14 cells you say 64"),
    ("huffman_lengths", lambda shares: [1] * len(shares), "too short"),
    ("huffman_lengths", lambda shares: [math.ceil(-math.log2(s)) for s in shares], "rarest"),
    ("huffman_lengths", halves, "rarest"),
    ("huffman_lengths", lambda shares: [-math.log2(s) for s in shares], "whole number of bits"),
    ("huffman_lengths", lambda shares: sorted(huffman(shares)), "another order"),
    ("huffman_lengths", lambda shares: [2], "one length per share"),
    ("thumbnail_levels", lambda side: math.floor(math.exp(294 / side**2 * math.log(2))), "2 \\*\\* bits doesn't"),
    ("huffman_lengths", joining_the_largest, "rarest"),
    ("straight_through", overwrites, "overwrites"),
    ("straight_through", lambda z, q: q, "no gradient reaches z"),
    ("straight_through", lambda z, q: z, "value of z"),
    ("straight_through", lambda z, q: z + (q - z), "no gradient reaches z|reaches q as well"),
    ("straight_through", lambda z, q: z + q - z.detach(), "reaches q as well"),
    ("straight_through", lambda z, q: (z + (q - z)).detach(), "detach too much"),
    ("straight_through", lambda z, q: 2 * z + (q - 2 * z).detach(), "unchanged"),
    ("straight_through", lambda z, q: q[:2], "\\(5, 16\\).*\\(2, 16\\)"),
    ("moving_average_step", lambda c, t, v, k, d: step(c, t, v, k, 1 - d), "\\*old\\* average"),
    ("moving_average_step", step_of_means, "\\*sums\\*"),
    ("moving_average_step", lambda *a: (*step(*a)[:2], step(*a)[1]), "each code is total / count"),
    ("moving_average_step", lambda *a: step(*a)[2], "3 things: count, total, codebook"),
    ("moving_average_step", naive_means, "\\*sums\\*"),
    ("moving_average_step", only_the_chosen, "should decay, too"),
    ("moving_average_step", lambda *a: step_by(*a, counted_once), "index_add_"),
    ("moving_average_step", lambda *a: step_by(*a, lambda codes, K: torch.bincount(codes)), "minlength"),
    ("codes_of", lambda s: (s[0], s[1:50].reshape(7, 7)), "subtract 64"),
    ("codes_of", lambda s: (s[0] - 64, s[2:].reshape(7, 7)), "Off by one"),
    ("codes_of", lambda s: (s[0] - 64, s[:49].reshape(7, 7)), "is not a code"),
    ("codes_of", lambda s: (s[0] - 64, s[1:50].reshape(7, 7).T), "Rows and columns"),
    ("codes_of", lambda s: (s[1:50].reshape(7, 7), s[0] - 64), "label first"),
    ("codes_of", lambda s: (s[0] - 64, s[1:-1]), "\\(7, 7\\).*\\(49,\\)"),
    ("left_neighbour_nats", lambda a, b: nats(a, b, add=0.0), "add one"),
    ("left_neighbour_nats", lambda a, b: nats(a, b, dim=0), "normalized the wrong way"),
    ("left_neighbour_nats", lambda a, b: nats(a, b, base=2), "bits"),
    ("left_neighbour_nats", lambda a, b: nats(a, b, first=0), "Predict columns 1 to 6"),
    ("left_neighbour_nats", lambda a, b: -nats(a, b), "sign"),
    ("left_neighbour_nats", lambda a, b: tried_on_a_table(a, b, "once"), "accumulate=True"),
    ("left_neighbour_nats", lambda a, b: tried_on_a_table(a, b, "no keepdim"), "keepdim=True"),
    ("left_neighbour_nats", lambda a, b: pairs_nats(a, b, "wraps"), "In training, too"),
    ("left_neighbour_nats", lambda a, b: pairs_nats(a, b, "above"), "code \\*above\\*"),
    ("left_neighbour_nats", lambda a, b: pairs_nats(a, b, "joint"), "\\*pair\\*"),
    ("left_neighbour_nats", lambda a, b: 4.16, "you get 4.160 nats"),
    ("may_look", lambda T: torch.ones(T, T, dtype=torch.bool), "nothing is masked"),
    ("may_look", lambda T: torch.ones(T, T, dtype=torch.bool).triu(), "into the future"),
    ("may_look", lambda T: torch.ones(T, T, dtype=torch.bool).tril(-1), "look at itself"),
    ("may_look", lambda T: torch.ones(T, T, dtype=torch.bool).triu(1), "Turn it round"),
    ("may_look", lambda T: torch.full((T, T), -torch.inf).triu(1), "True and False"),
    ("may_look", lambda T: torch.ones(T, T).tril(), "True and False"),
    ("may_look", lambda T: torch.ones(T, T, dtype=torch.bool).tril(1), "the mask should be"),
    ("may_look", lambda T: torch.eye(T, dtype=torch.bool), "the mask should be"),
    ("attend_one_more", lambda *a: attend(*a, scale=0), "forgot.*√d"),
    ("attend_one_more", lambda *a: attend(*a, scale=1), "√d, not d"),
    ("attend_one_more", lambda *a: attend(*a, late=True), "append before you look"),
    ("attend_one_more", append_late, "append before you look"),
    ("attend_one_more", lambda q, k, v, keys, values: (v, keys, values), "keys.*\\(1, 16\\).*\\(0, 16\\)"),
    ("attend_one_more", lambda *a: attend_by_library(*a, is_causal=True), "is_causal=True"),
    ("attend_one_more", lambda *a: attend_by_library(*a, scale=0.25), "not always 16"),
    ("attend_one_more", lambda q, k, v, keys, values: attend(q, k, v, keys, values.flip(0)), "values should be"),
    ("attend_one_more", lambda *a: (attend(*a)[0].flip(0), *attend(*a)[1:]), "output of token 0"),
    ("at_temperature", lambda logits, T: (logits / max(T, 1e-3)).softmax(-1), "tiny T isn't 0"),
    ("at_temperature", lambda logits, T: tempered(logits, T * T), "At T = 0.5 the likeliest code should have"),
    (
        "at_temperature",
        lambda logits, T: (logits / T).exp() / (logits / T).exp().sum() if T else tempered(logits, 0),
        "overflows",
    ),
    ("at_temperature", lambda logits, T: tempered(logits, T).log(), "negative"),
    ("at_temperature", lambda logits, T: (logits * T).softmax(-1), "You multiply by T"),
    ("at_temperature", lambda logits, T: (logits / T).softmax(-1), "divide by zero"),
    ("at_temperature", lambda logits, T: logits.softmax(-1) / (T or 1), "before the softmax"),
    ("nucleus", lambda shares, p: nucleus(shares, p, before=False), "crosses p"),
    ("at_temperature", lambda logits, T: (logits / (T or 1)).softmax(-1), "all the probability"),
    ("at_temperature", lambda logits, T: (logits / T).softmax(-1) if T else None, "for others it returns None"),
    ("nucleus", lambda shares, p: shares * nucleus(shares, p), "True and False"),
    ("nucleus", nucleus_to, "2 would reach p"),
    ("nucleus", nucleus_with_ties, "Of equal ones"),
    ("nucleus", lambda shares, p: shares > 0, "2 would reach p"),
    ("nucleus", lambda shares, p: nucleus(shares, p).sort(descending=True).values, "Undo the sorting"),
    ("nucleus", lambda shares, p: nucleus(shares.flip(0), p), "less than p|not the likeliest"),
    ("independent_frechet", lambda a, b: by_feature(a, b, torch.var), "You compare variances"),
    ("independent_frechet", lambda a, b: (a.mean(0) - b.mean(0)).square().sum(), "means only"),
    ("independent_frechet", lambda a, b: (a.std(0) - b.std(0)).square().sum(), "spreads only"),
    ("independent_frechet", lambda a, b: by_feature(a, b, lambda x, dim: x.std(dim, correction=0)), "N - 1"),
    ("independent_frechet", lambda a, b: by_feature(a, b, together=torch.mean), "average over the features"),
    ("independent_frechet", lambda a, b: by_feature(a, b) ** 0.5, "return the root"),
    ("independent_frechet", lambda a, b: by_feature(a, b, lambda x, dim: x.std()), "for all features together"),
    ("independent_frechet", lambda a, b: ((a.mean(0) - b.mean(0)).abs() + (a.std(0) - b.std(0)).abs()).sum(), "Square"),
    ("independent_frechet", whole_frechet, "the whole distance"),
    ("independent_frechet", lambda a, b: 3.0, "you get 3.000"),
    ("precision", lambda r, s, k: (torch.cdist(s, r) <= reach(r, k)).any(0).float().mean(), "This is coverage"),
    ("precision", lambda r, s, k: (torch.cdist(s, r) <= reach(r, k - 1)).any(1).float().mean(), "its own nearest"),
    ("precision", of_the_nearest, "nearest real picture only"),
    ("precision", reach_among_samples, "k-th nearest \\*sample\\*"),
    ("precision", lambda r, s, k: (torch.cdist(s, r) <= reach(r, k)).any(1).sum(), "between 0 and 1"),
    ("precision", lambda r, s, k: (torch.cdist(r, s) <= reach(r, k)[:, None]).float().mean(), "any\\(\\)"),
    ("precision", lambda r, s, k: precise(s, r, k), "it should be"),
    ("game_losses", lambda r, d: (-r.sigmoid().log().mean() - (1 - d.sigmoid()).log().mean(), losses(r, d)[1]), "-inf"),
    ("game_losses", lambda r, d: losses(r, d)[::-1], "discriminator's loss first"),
    ("game_losses", of_both(lambda loss, r, d: F.softplus(-r).mean()), "Only real pictures"),
    ("game_losses", of_both(lambda loss, r, d: F.softplus(d).mean()), "Only drawn pictures"),
    ("game_losses", of_both(lambda loss, r, d: loss / 2), "You halve"),
    ("game_losses", of_both(lambda loss, r, d: loss * r.numel()), "over the cells"),
    ("game_losses", of_both(lambda loss, r, d: -loss), "The sign"),
    ("game_losses", of_both(lambda loss, r, d: F.softplus(r).mean()), "The discriminator's loss should be"),
    ("game_losses", lambda r, d: losses(r, d, lambda d: -F.softplus(d).mean()), "the form that saturates"),
    ("game_losses", lambda r, d: losses(r, d, lambda d: F.softplus(d).mean()), "if they don't"),
    ("game_losses", lambda r, d: losses(r, d, lambda d: F.softplus(-d).sum()), "The decoder's loss should be"),
    ("energy_score", lambda x, a: energy(x, a, pairs=lambda n: n * n), "n\\(n - 1\\) pairs"),
    ("energy_score", lambda x, a: energy(x, a, half=1), "\\*half\\*"),
    ("energy_score", lambda x, a: energy(x, a, half=0), "Nothing here pays"),
    ("energy_score", lambda x, a: energy(x, a, half=-0.5), "subtract it"),
    ("energy_score", lambda x, a: energy(x, a, size=lambda gap: gap * gap), "You square"),
    ("energy_score", lambda x, a: energy(x, a, together=sum), "over the pixels"),
    ("energy_score", lambda x, a: energy(x, a.mean(0, keepdim=True).expand_as(a)) - 0.5 * spread_of(a), "\\*mean\\*"),
    ("energy_score", lambda x, a: 0.5, "you get 0.5000"),
    ("two_weights", lambda x, t: streamed(x, t, 7 / 8), "swapped"),
    ("two_weights", lambda x, t: 2 * streamed(x, t, 1 / 2), "as they are"),
    ("two_weights", lambda x, t: streamed(x, t, first_word=0, num_codes=104), "cut the other logits away"),
    ("two_weights", all_together, "over all positions together"),
    ("two_weights", lambda x, t: streamed(x, t, counted=28), "out of the mean"),
    ("two_weights", lambda x, t: streamed(x, t, first_word=74), "token 74"),
    ("two_weights", lambda x, t: 28 * streamed(x, t) + 147 * streamed(x, t, 0), "add up over the positions"),
    ("two_weights", lambda x, t: 3.0, "you get 3.000"),
    ("soft_draw", lambda x, g, T: F.one_hot((x + g).argmax(-1), x.shape[-1]).float(), "hard draw"),
    ("soft_draw", lambda x, g, T: soft(x, 0 * g, T), "leave out the noise"),
    ("soft_draw", lambda x, g, T: soft(x, T * g, T), "divide the logits only"),
    ("soft_draw", lambda x, g, T: soft(T * x, g, T), "divide the noise only"),
    ("soft_draw", lambda x, g, T: soft(x, g, 1 / T), "You multiply"),
    ("soft_draw", lambda x, g, T: soft(x, g, T).log(), "not their logarithms"),
    ("soft_draw", lambda x, g, T: ((x + g) / T).softmax(0), "dim=-1"),
    ("soft_draw", lambda x, g, T: soft(x, -g, T), "other tail"),
    ("soft_draw", lambda x, g, T: soft(x, g, T) / 2, "add up to 1"),
    ("soft_draw", lambda x, g, T: soft(x, g, 2 * T), "the largest weight should be"),
    ("matching_pairs", lambda *a: paired(*a, (1, 0)), "Ask each caption"),
    ("matching_pairs", lambda *a: paired(*a, (0, 1)), "Ask each picture"),
    ("matching_pairs", lambda *a: paired(*a, (1, 1)), "Average them"),
    ("matching_pairs", lambda p, t, s: len(p) * paired(p, t, s), "Take the mean"),
    ("matching_pairs", lambda p, t, s: paired(p, t, 1), "leave out the scale"),
    ("matching_pairs", lambda p, t, s: paired(p, t, 1 / s), "divide by the scale"),
    ("matching_pairs", lambda *a: paired(*a, sign=1), "The sign"),
    ("matching_pairs", lambda *a: paired(*a, own=lambda i, B: B - 1 - i), "Row i belongs to row i"),
    ("matching_pairs", lambda p, t, s: (s * s * p @ t.T).exp().sum() / 0, "overflows"),
    ("matching_pairs", lambda p, t, s: 1.5, "you get 1.500"),
]
ALSO_RIGHT = [
    ("thumbnail_levels", lambda side: torch.tensor(2 ** (294 / side**2)).floor()),
    ("thumbnail_levels", lambda side: 2 ** (294 / side**2) // 1),
    ("huffman_lengths", lambda shares: torch.tensor(huffman(shares))),
    ("left_neighbour_nats", lambda a, b: torch.tensor(nats(a, b))),
    ("may_look", lambda T: torch.ones(T, T).tril() > 0),
    ("attend_one_more", attend_by_library),
    ("moving_average_step", lambda *a: (*step(*a)[:2], step(*a)[1] / (step(*a)[0] + 1e-5)[:, None])),
    ("independent_frechet", lambda a, b: by_feature(a.double(), b.double()).item()),
    ("precision", precise),
    ("game_losses", lambda r, d: [-F.logsigmoid(r).mean() - F.logsigmoid(-d).mean(), -F.logsigmoid(d).mean().item()]),
    ("energy_score", energy),
    ("soft_draw", lambda x, g, T: F.softmax(x.div_(T) + g / T, dim=-1)),
    ("matching_pairs", lambda p, t, s: (paired(p, t, s, (1, 0)) + paired(p, t, s, (0, 1))) / 2),
    ("nucleus", lambda shares, p: nucleus(shares.flip(0), p).flip(0)),  # of equally likely ones the others
    ("at_temperature", lambda logits, T: logits.div_(T or 1e-12).softmax(-1)),  # changes what it was given
    ("moving_average_step", lambda c, t, v, k, d: list(step(c.mul_(1), t, v, k, d))),
]


@pytest.mark.parametrize("check", exercises.ALL, ids=lambda check: check.__name__)
def test_the_right_answer_is_right_and_none_yet_is_no_mistake(check, capsys):
    check(RIGHT[check.__name__])
    assert capsys.readouterr().out == "Right.\n"
    for nothing in (lambda *a: None, lambda *a: ...):
        check(nothing)
        assert capsys.readouterr().out.startswith("No answer yet")


def every_part(given, change):
    """What an answer gives, with each of its tensors changed."""
    if isinstance(given, tuple | list):
        return type(given)(every_part(part, change) for part in given)
    return change(given) if isinstance(given, torch.Tensor) else given


KINDS = {
    "float64": lambda x: x.double() if x.is_floating_point() else x,
    "with a gradient": lambda x: x.requires_grad_() if x.is_floating_point() and x.is_leaf else x,
    "NumPy": lambda x: x.numpy(),
    "lists": lambda x: x.tolist(),
    "cuda": lambda x: x.cuda(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", exercises.ALL, ids=lambda check: check.__name__)
def test_a_right_answer_of_any_kind_is_right(check, kind, capsys):
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if check.__name__ == "straight_through" and kind in ("NumPy", "lists"):
        pytest.skip("nothing but a tensor has a gradient")
    check(lambda *a: every_part(RIGHT[check.__name__](*a), KINDS[kind]))
    assert capsys.readouterr().out == "Right.\n"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_coarse_answer_hears_that_it_is_coarse(dtype, capsys):
    exercises.at_temperature(lambda logits, T: tempered(logits, T).to(dtype))
    assert str(dtype) in capsys.readouterr().out


@pytest.mark.parametrize("check", exercises.ALL, ids=lambda check: check.__name__)
def test_settings_of_the_notebook_change_no_verdict(check, capsys):
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        with torch.inference_mode():
            check(RIGHT[check.__name__])
        with torch.no_grad():
            check(RIGHT[check.__name__])
        assert torch.get_default_dtype() == torch.float64 and torch.zeros(1).is_meta
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert capsys.readouterr().out == "Right.\nRight.\n"


@pytest.mark.parametrize(("name", "answer"), ALSO_RIGHT)
def test_other_ways_to_be_right_are_right(name, answer, capsys):
    getattr(exercises, name)(answer)
    assert capsys.readouterr().out == "Right.\n"


@pytest.mark.parametrize(("name", "answer", "hint"), WRONG, ids=[f"{name}-{hint}" for name, _, hint in WRONG])
def test_a_wrong_answer_hears_what_is_wrong_with_it(name, answer, hint, capsys):
    getattr(exercises, name)(answer)
    out = capsys.readouterr().out
    assert out.startswith("Not yet. ") and re.search(hint, out), out
    assert "Right" not in out


@pytest.mark.parametrize("check", exercises.ALL, ids=lambda check: check.__name__)
@pytest.mark.parametrize("nonsense", [lambda *a: 1 / 0, lambda *a: "text", lambda *a: torch.zeros(3), lambda: 0])
def test_nonsense_never_raises_and_is_never_right(check, nonsense, capsys):
    check(nonsense)
    assert capsys.readouterr().out.startswith("Not yet. ")


def test_each_exercise_has_a_wrong_answer_here_and_stands_in_a_notebook_with_its_solution():
    assert {name for name, _, _ in WRONG} == set(RIGHT) == {check.__name__ for check in exercises.ALL}
    for folder in ("notebooks", "notebooks/solutions"):
        text = "".join((ROOT / folder / f"{name}.ipynb").read_text(encoding="utf-8") for name in NAMES)
        assert set(re.findall(r"exercises\.(\w+)\(", text)) == set(RIGHT)


def printed(notebook):
    """All text, whether or not the kernel sent it in one piece."""
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.mark.parametrize("name", NAMES)
def test_in_the_notebook_they_are_open_and_in_the_solutions_right(name, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    asked = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in asked["cells"] if "exercises." in "".join(cell["source"]) and cell["outputs"]]
    assert len(cells) == (3 if name == "08_dalle" else 2)
    assert all("".join(cell["outputs"][0]["text"]).startswith("No answer yet") for cell in cells)
    solved = nbformat.read(ROOT / "notebooks" / "solutions" / f"{name}.ipynb", as_version=4)
    committed = printed(solved)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(solved, timeout=120, kernel_name="python3", resources=resources).execute()
    assert printed(solved).count("Right.\n") == len(cells) and printed(solved) == committed
