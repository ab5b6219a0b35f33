"""Words for pictures, and captions and codes in one stream, as in DALL·E 1 (notebook 08).

The words are computed from the pixels, by rules, so a picture that was drawn for a caption can be held against it. A
sequence is 8 text tokens and then the 49 codes:

    a bright slim dress and four padding tokens, 49 codes row by row

Ramesh et al., "Zero-Shot Text-to-Image Generation" (arXiv 2102.12092), section 2.2.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from vqlib.data import Dataset
from vqlib.tokens import Vocabulary

BRIGHTNESS = ("dark", "grey", "bright")
SIZE = ("slim", "medium", "wide")
TURNED = ("upright", "upside-down")  # nobody says "upright": a caption that says nothing means it
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
KINDS = (BRIGHTNESS, SIZE, TURNED, CLASSES)  # facts, (N, 4) int64, hold an index into each, or -1 if nothing is said
WORDS = (*BRIGHTNESS, *SIZE, TURNED[1], *CLASSES, "a", "an", "and", ",")
TEXT = 8  # text tokens in a sequence
NUM_WORDS = len(WORDS) + TEXT  # the words, and a padding token for each position, as in the paper

# A third of each class is dark, grey and bright, and a third slim, medium and wide. Per class (a row) the lowest
# brightness, 0…255, of a grey and a bright piece; then the fewest pixels of a medium and a wide one. See `limits`.
_ROWS = [133, 185, 405, 444], [161, 192, 239, 261], [134, 189, 452, 504], [152, 194, 277, 334], [167, 196, 426, 472]
_ROWS += [120, 145, 162, 223], [118, 176, 431, 488], [136, 162, 205, 239], [160, 186, 382, 456], [168, 188, 313, 365]
LIMITS = torch.tensor(_ROWS, device="cpu").reshape(10, 2, 2)

# What class c never occurs with in training is NEVER[c % 7]. So this list, which was written down before the first
# training, decides: no dark t-shirt, no slim trouser, no upside-down pullover. `withheld` can take more from it.
NEVER = ("dark", "slim", "upside-down", "bright", "wide", "grey", "medium")


def measure(pixels: torch.Tensor) -> torch.Tensor:
    """Brightness and size of each piece: (N, 28, 28) uint8 -> (N, 2) float32, mean pixel 0…255 and number of pixels.

    The piece is what is lighter than a tenth of white.
    """
    piece = pixels > 25
    size = piece.sum((1, 2)).float()
    return torch.stack([(pixels * piece).sum((1, 2)) / size.clamp(min=1), size], 1)


def limits(dataset: Dataset) -> torch.Tensor:
    """What `LIMITS` holds, from a training set: (10 classes, brightness and size, 2 limits) int64."""
    measured = measure(dataset.pixels)
    thirds = measured.new_tensor([1 / 3, 2 / 3])
    rows = [measured[dataset.labels == c].quantile(thirds, 0).T.round() for c in range(len(CLASSES))]
    return torch.stack(rows).long()


def facts_of(pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What the rules say of upright pictures: (N, 28, 28) uint8, (N,) int64 -> (N, 4) int64, see `KINDS`."""
    thirds = (measure(pixels)[..., None] >= LIMITS[labels]).sum(-1)  # how many of its two limits each reaches
    return torch.stack([*thirds.T, torch.zeros_like(labels), labels], 1)


def withheld(facts: torch.Tensor, words: int = 1) -> torch.Tensor:
    """Whether facts hold a combination that is kept from training: (N, 4) int64 -> (N,) bool.

    words: how many of `NEVER` a class goes without, 0…4. With 4 some of each kind is still left.
    """
    never = torch.zeros_like(facts[:, 0], dtype=torch.bool)
    for c in range(len(CLASSES)):
        for word in [NEVER[(c + i) % len(NEVER)] for i in range(words)]:
            kind, value = fact_of(word)
            never |= (facts[:, 3] == c) & (facts[:, kind] == value)
    return never


def fact_of(word):
    """The kind of fact that a word states, an index into `KINDS`, and its value; None if it states none."""
    return next(((k, values.index(word)) for k, values in enumerate(KINDS) if word in values), None)


def write_captions(facts: torch.Tensor, generator: torch.Generator | None = None) -> list[str]:
    """A caption for each row of facts, (N, 4) int64, in one of two forms: "a slim dress", "dress, dark and slim".

    Brightness and size are left out a quarter of the time each, and what is -1 always. Without a generator everything
    else is said, in the first form: "a dark slim dress".
    """
    dice = torch.ones(len(facts), 4, device="cpu")
    if generator is not None:
        dice = torch.rand(len(facts), 4, generator=generator, dtype=torch.float32, device="cpu")
    captions = []
    for (brightness, size, turned, label), (a, b, order, form) in zip(facts.tolist(), dice.tolist(), strict=True):
        words = [BRIGHTNESS[brightness]] * (a > 1 / 4 and brightness >= 0) + [SIZE[size]] * (b > 1 / 4 and size >= 0)
        words = (words if order > 1 / 2 else words[::-1]) + [TURNED[1]] * (turned == 1)
        name = [CLASSES[label]] * (label >= 0)
        if words and name and form < 1 / 3:
            captions.append(f"{CLASSES[label]}, {' and '.join(words)}")
        else:
            captions.append(" ".join(["an" if words[:1] == [TURNED[1]] else "a", *words, *name]))
    return captions


def split(caption: str) -> list[str]:
    """The words of a caption. Raises ValueError if it isn't one, or has none, too many, or a word that isn't known."""
    words = caption.lower().replace(",", " , ").split() if isinstance(caption, str) else []
    if not 1 <= len(words) <= TEXT or not set(words) <= set(WORDS):
        known = f"of these words: {' '.join(WORDS)}"
        raise ValueError(f"a caption must have 1 to {TEXT} {known}; got {caption!r}. Try 'a bright slim dress'")
    return words


def read_captions(captions: Sequence[str]) -> torch.Tensor:
    """The facts that captions state, the way back from `write_captions`: (N, 4) int64.

    -1 stands for what isn't said, or is said in two ways; but a caption that doesn't say "upside-down" means upright.
    Raises ValueError as `split` does.
    """
    facts = []
    for caption in captions:
        said = [{fact[1] for word in split(caption) if (fact := fact_of(word)) and fact[0] == k} for k in range(4)]
        said[2] = said[2] or {0}
        facts.append([values.pop() if len(values) == 1 else -1 for values in said])
    return torch.tensor(facts, dtype=torch.int64, device="cpu").reshape(-1, 4)


def text_tokens(captions: Sequence[str], vocabulary: Vocabulary) -> torch.Tensor:
    """Captions as tokens, which stand after codes, classes and end: a list of N -> (N, 8) int64.

    A short one is filled up with padding tokens, one for each position, that are learned like words (section 2.2).
    """
    rows = []
    for words in map(split, captions):
        rows.append([*map(WORDS.index, words), *range(len(WORDS) + len(words), NUM_WORDS)])
    return vocabulary.end + 1 + torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(-1, TEXT)


def stream_loss(logits: torch.Tensor, tokens: torch.Tensor, vocabulary: Vocabulary) -> tuple[torch.Tensor, ...]:
    """The next-token losses of text and of codes, two () tensors in nats, to be weighted 1/8 and 7/8 (section 2.2).

    logits: (B, 56, V), of all tokens but the last. tokens: (B, 57) int64. Where a caption has been dropped, and the end
    token stands in its place, there is nothing to learn about text. Codes are no candidates where text is due, nor
    words where codes are due.
    """
    words, codes = logits[:, : TEXT - 1, vocabulary.end + 1 :], logits[:, TEXT - 1 :, : vocabulary.num_codes]
    due = (tokens[:, 1:TEXT] - vocabulary.end - 1).flatten()  # -1 where the caption was dropped
    text = F.cross_entropy(words.float().flatten(0, 1), due, ignore_index=-1, reduction="sum")
    text = text / (due >= 0).sum().clamp(min=1)
    return text, F.cross_entropy(codes.float().flatten(0, 1), tokens[:, TEXT:].flatten())
