"""Diagrams of the models and of what flows through them, as matplotlib figures that the notebooks show.

The same thing looks the same in all of them. A blue box has weights that are learned; a rounded outline is an operation
without weights; orange are whole numbers: codes and tokens. An arrow carries values forward, and a dashed one carries
gradients back. Green is where to look.
"""

import functools

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch

from vqlib import data
from vqlib.checks import check_choice
from vqlib.notebook.plots import COLOURS, GREY, WIDTH, _array, _figure, styled
from vqlib.pair import load_pair

LEARNED, GRADIENT, HERE, END, CODE, START = COLOURS[:6]
INK = {LEARNED: "white", CODE: "black", START: "black", END: "black", HERE: "black"}  # what can be read on each
SMALL, NORMAL = 8, 9.5  # font sizes
KEPT = (HERE, 0.25)
SEQUENCE = [START, CODE, CODE, None, CODE, END]  # the colours of a shortened sequence
SHIRT = data.CLASS_NAMES.index("Shirt")


def _canvas(height):
    """Axes of a tenth of an inch per unit, with (0, 0) at the upper left, on a figure as wide as all are."""
    figure, axes = _figure(WIDTH, height / 10)
    figure.set_layout_engine("none")
    axes[0, 0].set(position=(0, 0, 1, 1), xlim=(0, 10 * WIDTH), ylim=(height, 0))
    axes[0, 0].axis("off")
    return figure, axes[0, 0]


def _text(axis, x, y, text, size=SMALL, colour=GREY, **options):
    axis.text(x, y, text, size=size, color=colour, **({"ha": "center", "va": "center"} | options))


def _box(axis, x, y, width, height, text="", fill="none", edge=None, rounding=0, size=NORMAL, **options):
    """A box around (x, y)."""
    style = f"round,pad=0,rounding_size={rounding}" if rounding else "square,pad=0"
    edge = edge or (GREY if fill == "none" else fill)
    corner = x - width / 2, y - height / 2
    patch = FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=fill, edgecolor=edge, **options)
    axis.add_patch(patch)
    _text(axis, x, y, text, size, INK.get(fill, GREY))


def _operation(axis, x, y, width, height, text):
    _box(axis, x, y, width, height, text, rounding=1.4)


def _loss(axis, x, y, width, height, text):
    _box(axis, x, y, width, height, text, edge=GRADIENT, rounding=1.4)


def _arrow(axis, *points, back=False):
    """An arrow through these points; back: it carries gradients."""
    line = {"color": GRADIENT, "linestyle": (0, (3, 2))} if back else {"color": GREY}
    axis.plot(*zip(*points[:-1], strict=True), **line, linewidth=1.3)
    head = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "linewidth": 1.3, "mutation_scale": 9}
    axis.annotate("", points[-1], points[-2], arrowprops=head | line)


def _tokens(axis, x, y, texts, widths, height=3, fills=()):
    """A row of tokens that begins at x."""
    for i, (text, width) in enumerate(zip(texts, widths, strict=True)):
        fill = "none" if text == "…" else fills[i] if fills else CODE
        _box(axis, x + width / 2, y, width - 0.3, height, text, fill, "none" if text == "…" else None, size=SMALL)
        x += width


def _image(axis, x, y, image, size=7):
    """A picture, or the shades of codes, in a frame around (x, y)."""
    left, top = x - size / 2, y - size / 2
    extent = left, left + size, top + size, top
    axis.imshow(image, cmap="gray", vmin=-1, vmax=1, extent=extent, aspect="auto", interpolation="nearest")
    _box(axis, x, y, size, size)


def _codes(axis, x, y, codes, size=7):
    """Codes, (7, 7), as a grid of orange cells: the larger the number the stronger."""
    _image(axis, x, y, 1 - (0.2 + 0.8 * codes[..., None] / 63) * (1 - np.array(to_rgb(CODE))), size)


def _place(axis, x, y, width, height):
    """The reader's place, behind what is there."""
    for options in ({"fill": HERE, "alpha": 0.12}, {"edge": HERE}):
        _box(axis, x, y, width, height, rounding=1.5, zorder=0, linewidth=2, **options)


def _legend(axis, y, meanings, x=11):
    """What the colours mean, {text: colour}, in a row that begins at (x, y)."""
    for text, colour in meanings.items():
        _box(axis, x, y, 1.6, 1.6, "", colour)
        _text(axis, x + 1.6, y, text, ha="left")
        x += 6 + 0.6 * len(text)


@functools.cache
def _example():
    """A shirt from the mini set, its codes, the copy made of them, and a new shirt with its codes."""
    mini, pair = data.load_mini("test"), load_pair(shipped=True)
    image = data.to_images(mini.pixels[mini.labels == SHIRT][:1])
    new = pair.generate("Shirt", 1)
    pictures = [picture[0, 0].numpy() for picture in (image, pair.reconstruct(image), new)]
    return *pictures, *(pair.encode(picture)[0].numpy() for picture in (image, new))


# Where each notebook's parts lie in `two_stages`: (left, top, width, height) of each.
PLACES = {
    "data": [(10, 1, 10, 11.5)],
    "vqvae": [(21, 1, 40, 11.5)],
    "tokens": [(36, 1, 10, 11.5), (10, 16, 23.5, 8)],
    "transformer": [(34, 16, 39, 8)],
    "sampling": [(10, 27.5, 63, 11.5)],
    "quality": [(62, 27.5, 10, 11.5), (10, 1, 10, 11.5)],
}


@styled
def two_stages(here):
    """The whole path: a VQ-VAE learns to copy, a Transformer learns to write the codes, and the two write a picture.

    here: the parts to mark, "data", "vqvae", "tokens", "transformer", "sampling" or "quality". The pictures are real:
    a test shirt, its copy, and the first new shirt that the shipped models draw. Raises ValueError for another name.
    """
    check_choice("here", here, PLACES)
    picture, copy, new, codes, new_codes = _example()
    figure, axis = _canvas(43)
    for left, top, width, height in PLACES[here]:
        _place(axis, left + width / 2, top + height / 2, width, height)
    for y, text in ((5.5, "learn\nto copy"), (19.5, "learn\nto write"), (32, "write")):
        _text(axis, 1, y, text, NORMAL, ha="left", weight="bold")

    _image(axis, 15, 5.5, picture)
    _box(axis, 28, 5.5, 11, 5, "encoder", LEARNED)
    _codes(axis, 41, 5.5, codes)
    _box(axis, 54, 5.5, 11, 5, "decoder", LEARNED)
    _image(axis, 67, 5.5, copy)

    some = codes.flatten()[[0, 1, 48]].astype(str)
    _arrow(axis, (41, 12.7), (41, 14.6), (22, 14.6), (22, 17.4))
    _text(axis, 31, 13.5, "row by row, after the class")
    _tokens(axis, 11, 19.5, ["Shirt", *some[:2], "…", some[2], "end"], [5, 3.3, 3.3, 2.5, 3.3, 4.3], fills=SEQUENCE)
    _arrow(axis, (33, 19.5), (35.2, 19.5))
    _box(axis, 41, 19.5, 11, 5, "Transformer", LEARNED)
    _arrow(axis, (47, 19.5), (51.5, 19.5))
    _tokens(axis, 52, 19.5, [*some[:2], "…", some[2], "end"], [3.3, 3.3, 2.5, 3.3, 4.3], fills=SEQUENCE[1:])

    _tokens(axis, 12.2, 32, ["Shirt"], [6], fills=[START])
    _box(axis, 28, 32, 11, 5, "Transformer", LEARNED)
    _codes(axis, 41, 32, new_codes)
    _box(axis, 54, 32, 11, 5, "decoder", LEARNED)
    _image(axis, 67, 32, new)
    for x, end in ((19, 22), (34, 37), (45, 48), (60, 63)):
        _arrow(axis, (x, 5.5), (end, 5.5))
        _arrow(axis, (x, 32), (end, 32))
    for y, names in ((10.7, ("picture", "49 codes", "copy")), (37.2, ("class", "49 new codes", "new picture"))):
        for x, name in zip((15, 41, 67), names, strict=True):
            _text(axis, x, y, name)
    _text(axis, 22, 22.5, "51 tokens")
    _text(axis, 60.5, 22.5, "after each token, the next")
    meanings = {"what this notebook is about": HERE, "has learned weights": LEARNED, "a code, one of 64": CODE}
    _legend(axis, 41.5, meanings)
    return figure


@styled
def vqvae():
    """The VQ-VAE for one picture: encoder, quantizer, codebook and decoder, the shapes between them, and the losses.

    From the picture to its codes it goes to the right, from the codes to the copy back to the left. A dashed arrow
    leads from a loss to what it moves.
    """
    picture, copy, _, codes, _ = _example()
    figure, axis = _canvas(35)
    for y, image, name, side in ((6.5, picture, "picture", -1), (28, copy, "copy", 1)):
        _image(axis, 8, y, image)
        _text(axis, 8, y + 5 * side, f"{name}, 1×28×28")
    _codes(axis, 68.5, 17.2, codes)
    _text(axis, 64, 17.2, "codes\n7×7", ha="right")
    _box(axis, 23, 6.5, 11, 5, "encoder", LEARNED)
    _box(axis, 39, 6.5, 7, 5, "z\n16×7×7")
    _operation(axis, 54, 6.5, 9, 5, "nearest")
    _box(axis, 54, 17.2, 9.5, 5, "codebook\n64×16", LEARNED)
    _operation(axis, 54, 28, 9, 5, "look up")
    _box(axis, 39, 28, 7, 5, "q\n16×7×7")
    _box(axis, 23, 28, 11, 5, "decoder", LEARNED)
    for start, end in ((11.8, 17.2), (28.8, 35.2), (42.8, 49.2)):
        _arrow(axis, (start, 6.5), (end, 6.5))
        _arrow(axis, (end, 28), (start, 28))
    _arrow(axis, (58.8, 6.5), (68.5, 6.5), (68.5, 13.4))
    _arrow(axis, (68.5, 21), (68.5, 28), (58.8, 28))
    _arrow(axis, (54, 14.4), (54, 9.3))
    _arrow(axis, (54, 20), (54, 25.2))

    _loss(axis, 23, 17.2, 14, 5, "reconstruction\n(copy − picture)²")
    _loss(axis, 39, 17.2, 8, 5, "(z − q)²")
    _arrow(axis, (8, 10.3), (8, 16.2), (15.7, 16.2))
    _arrow(axis, (8, 24.2), (8, 18.2), (15.7, 18.2))
    _arrow(axis, (38, 9.3), (38, 14.4))
    _arrow(axis, (39, 25.2), (39, 20))
    for start, end in (
        ((23, 14.4), (23, 9.3)),
        ((23, 20), (23, 25.2)),
        ((40, 14.4), (40, 9.3)),
        ((43.3, 17.2), (49, 17.2)),
    ):
        _arrow(axis, start, end, back=True)
    _text(axis, 41, 11.8, "commitment, β", ha="left")
    _text(axis, 46, 22, "codebook loss or\nmoving averages", ha="center")
    return figure


@styled
def straight_through():
    """How a gradient passes the quantizer: what goes forward and, dashed, what comes back.

    Choosing the nearest code has no gradient. So the gradient that arrives at q is handed to z as it is.
    """
    figure, axis = _canvas(27)
    _arrow(axis, (17, 2), (21, 2))
    _text(axis, 22, 2, "forward: values", ha="left")
    _arrow(axis, (44, 2), (40, 2), back=True)
    _text(axis, 45, 2, "backward: gradients", ha="left")
    _box(axis, 6, 9, 10, 6, "encoder", LEARNED)
    _box(axis, 18, 9, 5, 6, "z")
    _operation(axis, 30, 9, 10, 6, "nearest")
    _box(axis, 42, 9, 5, 6, "q")
    _box(axis, 54, 9, 10, 6, "decoder", LEARNED)
    _loss(axis, 68, 9, 9, 6, "loss")
    for start, end in ((11.3, 15.2), (20.8, 24.7), (35.3, 39.2), (44.8, 48.7), (59.3, 63.2)):
        _arrow(axis, (start, 7.7), (end, 7.7))
        if start != 20.8:
            _arrow(axis, (end, 10.5), (start, 10.5), back=True)
    axis.plot(37.3, 10.5, "x", color=GRADIENT, markersize=11, markeredgewidth=3)
    _text(axis, 30, 14, "a choice: no gradient gets through")
    _arrow(axis, (42, 12.3), (42, 18), (18, 18), (18, 12.3), back=True)
    _text(axis, 30, 19.7, "instead, z gets the gradient of q")
    _text(axis, 30, 24, "q = z + (q - z).detach()", NORMAL, family="monospace")
    _text(axis, 48, 24, "forward it is q, backward it is z", ha="left")
    return figure


@styled
def transformer():
    """The Transformer from tokens to logits with the shapes between its parts, and below it one of its blocks opened.

    In the block, the residual stream is the thick line: attention and MLP read from it and add to it.
    """
    figure, axis = _canvas(45)
    _tokens(axis, 1, 12, ["Shirt", *_example()[3].flatten()[:2], "…"], [5, 3.3, 3.3, 2], fills=SEQUENCE)
    _tokens(axis, 1, 5, [0, 1, 2, "…"], [5, 3.3, 3.3, 2], fills=["none"] * 3)
    _text(axis, 7, 1.8, "positions")
    _text(axis, 7, 15, "tokens (B, S)")
    _box(axis, 23, 5, 11, 5, "position\nembedding", LEARNED)
    _box(axis, 23, 12, 11, 5, "token\nembedding", LEARNED)
    _operation(axis, 33, 12, 2.8, 2.8, "+")
    for i in (2, 1, 0):
        _box(axis, 43 + 0.8 * i, 12 - 0.8 * i, 9, 5, "" if i else "8 blocks", LEARNED, START, linewidth=0.8)
    _box(axis, 54.5, 12, 5.5, 5, "norm", LEARNED)
    _box(axis, 63, 12, 5.5, 5, "head", LEARNED)
    _box(axis, 70.8, 12, 5, 5, "logits")
    for start, end in ((15.2, 17.3), (28.8, 31.3), (34.7, 38.3), (49.3, 51.5), (57.5, 60), (66, 68)):
        _arrow(axis, (start, 12), (end, 12))
    _arrow(axis, (15.2, 5), (17.3, 5))
    _arrow(axis, (28.8, 5), (33, 5), (33, 10.4))
    for x, shape in ((38, "256"), (54.5, "256"), (69.8, "75")):
        _text(axis, x, 6.5, f"(B, S, {shape})")

    _box(axis, 37, 33, 72, 21, rounding=1.5)
    for start, end in ((38.5, 5), (47.5, 69)):
        axis.plot((start, end), (14.6, 22.4), color=GREY, linewidth=0.7)
    for start, end in ((2.5, 32.6), (35.4, 65.6), (68.4, 70.5)):
        axis.plot((start, end), (38, 38), color=GREY, linewidth=3)
    _arrow(axis, (69, 38), (72.3, 38))
    for left, name, what in (
        (6, "attention\n8 heads", "between tokens, looking back"),
        (39, "MLP\n256→1024→256", "within each token"),
    ):
        _arrow(axis, (left, 38), (left, 28), (left + 2.7, 28))
        _box(axis, left + 6, 28, 6, 5, "norm", LEARNED)
        _arrow(axis, (left + 9.2, 28), (left + 11.7, 28))
        _box(axis, left + 18.5, 28, 13, 5, name, LEARNED)
        _text(axis, left + 18.3, 32, what)
        _arrow(axis, (left + 25.3, 28), (left + 28, 28), (left + 28, 36.4))
        _operation(axis, left + 28, 38, 2.8, 2.8, "+")
    _text(axis, 4, 41.3, "residual stream x, (B, S, 256)", ha="left")
    _text(axis, 71, 41.3, "one of the 8 blocks", ha="right")
    return figure


@styled
def inputs_and_targets(tokens):
    """What the Transformer reads and what it should answer, for one sequence: (51,) int64 tokens, all of them.

    Under each input stands its target, which is the token that comes next: the next input, as the thin lines show.
    """
    tokens = _array(tokens)
    figure, axis = _canvas(52)
    for t in range(50):
        x, y = 10.5 + 6.5 * (t % 10), 4 + 9.7 * (t // 10)
        _text(axis, x, y - 2.3, t)
        for token, at, below in ((tokens[t], t, 0), (tokens[t + 1], t + 1, 3.8)):
            _box(axis, x, y + below, 5, 2.6, token, {0: START, 50: END}.get(at, CODE), size=SMALL)
        if t % 10 < 9:
            axis.plot((x + 2.5, x + 4), (y + 2.5, y + 1.3), color=GREY, linewidth=1)
        else:
            for name, above in (("t", 2.3), ("input", 0), ("target", -3.8)):
                _text(axis, 1, y - above, name, ha="left", weight="bold")
    _legend(axis, 50, {"start token: the class": START, "code": CODE, "end token": END}, x=9)
    _text(axis, 71.5, 50, "each target is the next input", ha="right")
    return figure


@styled
def cached_and_not():
    """What is computed for token 5, when tokens 0 to 4 are known already: without a cache and with one.

    Each row is a token, with its query, key and value, and then with the weights that it gives to the tokens so far.
    """
    figure, axis = _canvas(34)
    for left, title, first_row in ((1, "without a cache", 0), (38, "with a cache", 5)):
        _text(axis, left + 17, 2, title, NORMAL, weight="bold")
        for x, name in ((8, "query"), (12.5, "key"), (17, "value"), (26.5, "weights")):
            _text(axis, left + x, 5.3, name)
        for row in range(6):
            y, new = 8.3 + 3.3 * row, row >= first_row
            _text(axis, left, y, f"token {row}", ha="left")
            for x in (8, 12.5, 17) if new else (12.5, 17):
                _box(axis, left + x, y, 4, 2.7, fill=HERE if new else KEPT)
            for column in range(row + 1 if new else 0):
                _box(axis, left + 21 + 2.4 * column, y, 2.1, 2.7, fill=HERE)
        computed = f"computed: {3 * (6 - first_row)} vectors, {sum(range(first_row + 1, 7))} weights"
        _text(axis, left + 17, 28.7, computed)
    _legend(axis, 32, {"computed for token 5": HERE, "kept from before": KEPT}, x=9)
    return figure


@styled
def guidance(uncond, cond, weights=(0, 1, 2)):
    """The next code without the class, with it, and guided: softmax(uncond + w · (cond - uncond)) for each weight w.

    uncond, cond: (K,) float logits. Shown are the 12 codes that are likeliest anywhere, sorted by their probability
    with the class. The outline repeats the distribution without the class, w = 0.
    """
    uncond, cond = _array(uncond), _array(cond)

    def probabilities(w):
        logits = uncond + w * (cond - uncond)
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    shown = np.argsort(-np.max([probabilities(w) for w in (0, 1, *weights)], 0))[:12]
    shown = shown[np.argsort(-cond[shown])]
    figure, axes = _figure(WIDTH, 2.3, 1, len(weights), sharey=True)
    for axis, w in zip(axes[0], weights, strict=True):
        axis.bar(range(len(shown)), probabilities(w)[shown], 0.8, color=CODE)
        axis.bar(range(len(shown)), probabilities(0)[shown], 0.8, color="none", edgecolor=GREY, label="w = 0")
        meaning = "any class" if w == 0 else "the class" if w == 1 else "guided" if w > 1 else "in between"
        axis.set(title=f"w = {w:g}: {meaning}", xlabel="code", xticks=range(len(shown)))
        axis.set_xticklabels(shown, fontsize=7)
        axis.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel("probability")
    axes[0, -1].legend(loc="upper right")
    return figure
