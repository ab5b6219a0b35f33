"""Diagrams of the models and of what flows through them, as matplotlib figures that the notebooks show.

The same thing looks the same in all of them. A blue box has weights that are learned; a rounded outline is an operation
without weights; orange are codes. An arrow carries values forward, and a dashed one carries gradients back. Green is
where to look.
"""

import functools

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch

from vqlib import captions, data
from vqlib.checks import check_choice
from vqlib.notebook.plots import COLOURS, GREY, WIDTH, _array, _figure, styled
from vqlib.pair import load_pair
from vqlib.tokens import Vocabulary

LEARNED, GRADIENT, HERE, END, CODE, START = COLOURS[:6]
INK = {LEARNED: "white", CODE: "black", START: "black", END: "black"}  # what can be read on each
KEPT = HERE, 0.25  # a paler green
SMALL, NORMAL = 8, 9.5  # font sizes
CELLS = {"Shirt": (5, START), "end": (4.3, END), "…": (2.4, "none")}  # tokens that are not codes: width, colour


class _Drawing:
    """A figure as wide as all are, in tenths of an inch, with (0, 0) at the upper left.

    Whatever is drawn around a point (x, y) is returned as (x, y, width, height), so that `flow` can connect it.
    """

    def __init__(self, height):
        self.figure, axes = _figure(WIDTH, height / 10)
        self.figure.set_layout_engine("none")
        self.axis = axes[0, 0]
        self.axis.set(position=(0, 0, 1, 1), xlim=(0, 10 * WIDTH), ylim=(height, 0))
        self.axis.axis("off")

    def text(self, x, y, text, size=SMALL, colour=GREY, **options):
        self.axis.text(x, y, text, size=size, color=colour, **{"ha": "center", "va": "center"} | options)

    def box(self, x, y, width, height, text="", fill="none", edge=None, rounding=0, **options):
        style = f"round,pad=0,rounding_size={rounding}" if rounding else "square,pad=0"
        colours = {"facecolor": fill, "edgecolor": edge or (GREY if fill == "none" else fill)}
        corner, size = (x - width / 2, y - height / 2), options.pop("size", NORMAL)
        self.axis.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, **colours, **options))
        self.text(x, y, text, size, INK.get(fill, GREY))
        return x, y, width, height

    def labelled(self, place, label):
        x, y, _, height = place
        self.text(x, y + height / 2 + 1.5, label)
        return place

    def learned(self, x, y, text, width=11, **options):
        return self.box(x, y, width, 5, text, LEARNED, **options)

    def operation(self, x, y, text, width=9, height=5):
        return self.box(x, y, width, height, text, rounding=1.4)

    def loss(self, x, y, text, width):
        return self.box(x, y, width, 5, text, edge=GRADIENT, rounding=1.4)

    def image(self, x, y, image, label=""):
        extent = x - 3.5, x + 3.5, y + 3.5, y - 3.5
        self.axis.imshow(image, "gray", vmin=-1, vmax=1, extent=extent, aspect="auto", interpolation="nearest")
        return self.labelled(self.box(x, y, 7, 7), label)

    def codes(self, x, y, codes, label=""):
        """A grid of orange cells, the stronger the larger the code."""
        return self.image(x, y, 1 - (0.2 + 0.8 * codes[..., None] / 63) * (1 - np.array(to_rgb(CODE))), label)

    def tokens(self, left, y, texts, label="", fill=CODE, like=None):
        """A row that begins at ``left``; like: a row that has the same widths."""
        cells, x = [CELLS.get(text, (3.3, CODE)) for text in like or texts], left
        for text, (width, colour) in zip(texts, cells, strict=True):
            fill_it, frame = fill if fill == "none" else colour, "none" if text == "…" else None
            self.box(x + width / 2, y, width - 0.3, 3, text, fill_it, frame, size=SMALL)
            x += width
        return self.labelled(self.box((left + x) / 2, y, x - left, 3, edge="none"), label)

    def arrow(self, *points, back=False):
        """An arrow through these points; back: it carries gradients."""
        line = {"color": GRADIENT, "linestyle": (0, (3, 2))} if back else {"color": GREY}
        self.axis.plot(*zip(*points[:-1], strict=True), **line, linewidth=1.3)
        head = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "linewidth": 1.3, "mutation_scale": 9}
        self.axis.annotate("", points[-1], points[-2], arrowprops=head | line)

    def flow(self, *boxes, shift=0, back=False):
        """Arrows from each box to the next, which stands in the same row or column, moved sideways by ``shift``."""
        for start, end in zip(np.array(boxes), np.array(boxes[1:]), strict=False):
            ahead = np.sign(end[:2] - start[:2])
            aside = shift * abs(ahead[::-1])
            start, end = (box[:2] + side * ahead * (box[2:] / 2 + 0.3) + aside for box, side in ((start, 1), (end, -1)))
            self.arrow(start, end, back=back)

    def line(self, start, end, width=1):
        self.axis.plot(*zip(start, end, strict=True), color=GREY, linewidth=width)

    def legend(self, y, meanings, x=9):
        """What the colours mean, {text: colour}, in a row."""
        for text, colour in meanings.items():
            self.box(x, y, 1.6, 1.6, "", colour)
            self.text(x + 1.6, y, text, ha="left")
            x += 6 + 0.6 * len(text)


@functools.cache
@torch.random.fork_rng(devices=[])  # a model that is made draws random numbers, and the notebook's are its own
def _example():
    """A test shirt, its copy and a new shirt, (28, 28) each; the codes of the first and of the last, (7, 7) each."""
    mini, pair = data.load_mini("test"), load_pair(shipped=True)
    image = data.to_images(mini.pixels[mini.labels == data.CLASS_NAMES.index("Shirt")][:1])
    new = pair.generate("Shirt", 1)
    pictures = [picture[0, 0].numpy() for picture in (image, pair.reconstruct(image), new)]
    return *pictures, *(pair.encode(picture)[0].numpy() for picture in (image, new))


PLACES = {  # where the parts lie that a notebook is about: x, y, width and height of each
    "data": [(15, 6.7, 10, 11.4)],
    "vqvae": [(41, 6.7, 40, 11.4)],
    "tokens": [(41, 6.7, 10, 11.4), (21.75, 20, 23.5, 8)],
    "transformer": [(53.5, 20, 39, 8)],
    "sampling": [(41.5, 33.2, 63, 11.4)],
    "quality": [(67, 33.2, 10, 11.4), (15, 6.7, 10, 11.4)],
    "crisp": [(60, 6.7, 26, 11.4), (60, 33.2, 26, 11.4)],
    "dalle": [(41, 6.7, 40, 11.4), (13.5, 19.5, 6, 5), (15, 33.2, 10, 11.4), (67, 33.2, 10, 11.4)],
}


@styled
def two_stages(here):
    """The whole path: a VQ-VAE learns to copy, a Transformer learns to write the codes, and the two write a picture.

    here: the parts to mark, "data", "vqvae", "tokens", "transformer", "sampling", "quality", "crisp" or "dalle". All
    pictures are real: a test shirt, its copy, and the first new shirt that the shipped models draw. Raises ValueError
    for another name.
    """
    check_choice("here", here, PLACES)
    picture, copy, new, codes, new_codes = _example()
    draw = _Drawing(43)
    for place in PLACES[here]:
        draw.box(*place, fill=HERE, alpha=0.12, rounding=1.5, zorder=0)
        draw.box(*place, edge=HERE, linewidth=2, rounding=1.5, zorder=0)
    for y, text in ((5.5, "learn\nto copy"), (19.5, "learn\nto write"), (32, "write")):
        draw.text(1, y, text, NORMAL, ha="left", weight="bold")
    draw.flow(
        draw.image(15, 5.5, picture, "picture"),
        draw.learned(28, 5.5, "encoder"),
        draw.codes(41, 5.5, codes, "49 codes"),
        draw.learned(54, 5.5, "decoder"),
        draw.image(67, 5.5, copy, "copy"),
    )
    draw.arrow((41, 12.7), (41, 14.6), (21.75, 14.6), (21.75, 17.4))
    draw.text(31, 13.5, "row by row, after the class")
    first, second, last = codes.flatten()[[0, 1, 48]].astype(str)
    rest = [first, second, "…", last, "end"]
    draw.flow(
        draw.tokens(11, 19.5, ["Shirt", *rest], "51 tokens"),
        draw.learned(41, 19.5, "Transformer"),
        draw.tokens(52, 19.5, rest, "after each token, the next"),
    )
    draw.flow(
        draw.tokens(12.5, 32, ["Shirt"], "class"),
        draw.learned(28, 32, "Transformer"),
        draw.codes(41, 32, new_codes, "49 new codes"),
        draw.learned(54, 32, "decoder"),
        draw.image(67, 32, new, "new picture"),
    )
    draw.legend(41.5, {"what this notebook is about": HERE, "has learned weights": LEARNED, "a code, one of 64": CODE})
    return draw.figure


@styled
def vqvae():
    """The VQ-VAE for one picture: encoder, quantizer, codebook and decoder, the shapes between them, and the losses.

    From the picture to its codes it goes to the right, from the codes to the copy back to the left. A dashed arrow
    leads from a loss to what it moves.
    """
    picture, copy, _, codes, _ = _example()
    draw = _Drawing(34)
    original, encoder = draw.image(8, 6.2, picture), draw.learned(23, 6.2, "encoder")
    z, nearest = draw.box(39, 6.2, 7, 5, "z\n16×7×7"), draw.operation(54, 6.2, "nearest")
    look_up, q = draw.operation(54, 27.8, "look up"), draw.box(39, 27.8, 7, 5, "q\n16×7×7")
    decoder, reconstruction = draw.learned(23, 27.8, "decoder"), draw.image(8, 27.8, copy)
    codebook = draw.learned(54, 17, "codebook\n64×16", 9.5)
    draw.codes(68.5, 17, codes)
    draw.flow(original, encoder, z, nearest)
    draw.arrow((58.8, 6.2), (68.5, 6.2), (68.5, 13.2))
    draw.arrow((68.5, 20.8), (68.5, 27.8), (58.8, 27.8))
    draw.flow(look_up, q, decoder, reconstruction)
    draw.flow(codebook, nearest)
    draw.flow(codebook, look_up)

    difference = draw.loss(23, 17, "reconstruction\n(copy − picture)²", 14)
    distance = draw.loss(39, 17, "(z − q)²", 8)
    draw.arrow((8, 10), (8, 16), (15.7, 16))
    draw.arrow((8, 24), (8, 18), (15.7, 18))
    draw.flow(z, distance, shift=-1)
    draw.flow(q, distance)
    draw.flow(distance, z, shift=1, back=True)
    for moved in (encoder, decoder):
        draw.flow(difference, moved, back=True)
    draw.flow(distance, codebook, back=True)
    draw.text(41, 11.6, "commitment, β", ha="left")
    draw.text(46, 21.8, "codebook loss or\nmoving averages")
    draw.text(64, 17, "codes\n7×7", ha="right")
    draw.text(8, 1.3, "picture, 1×28×28")
    draw.text(8, 32.7, "copy, 1×28×28")
    return draw.figure


@styled
def straight_through():
    """How a gradient passes the quantizer: what goes forward and, dashed, what comes back.

    Choosing the nearest code has no gradient. So the gradient that arrives at q is handed to z as it is.
    """
    draw = _Drawing(26)
    encoder, decoder = draw.learned(6, 9, "encoder", 10), draw.learned(54, 9, "decoder", 10)
    z, q, nearest = draw.box(18, 9, 5, 5, "z"), draw.box(42, 9, 5, 5, "q"), draw.operation(30, 9, "nearest", 10)
    loss = draw.loss(68, 9, "loss", 9)
    draw.flow(encoder, z, nearest, q, decoder, loss, shift=-1.2)
    draw.flow(loss, decoder, q, nearest, shift=1.3, back=True)
    draw.flow(z, encoder, shift=1.3, back=True)
    draw.axis.plot(37.3, 10.3, "x", color=GRADIENT, markersize=11, markeredgewidth=3)
    draw.text(30, 13.6, "a choice: no gradient gets through")
    draw.arrow((42, 11.8), (42, 17.4), (18, 17.4), (18, 11.8), back=True)
    draw.text(30, 19, "instead, z gets the gradient of q")
    draw.text(30, 23.5, "q = z + (q - z).detach()", NORMAL, family="monospace")
    draw.text(48, 23.5, "forward it is q, backward it is z", ha="left")
    draw.arrow((17, 2), (21, 2))
    draw.text(22, 2, "forward: values", ha="left")
    draw.arrow((44, 2), (40, 2), back=True)
    draw.text(45, 2, "backward: gradients", ha="left")
    return draw.figure


@styled
def transformer():
    """The Transformer from tokens to logits with the shapes between its parts, and below it one of its blocks opened.

    In the block, the residual stream is the thick line: attention and MLP read from it and add to it.
    """
    draw = _Drawing(44)
    row = ["Shirt", *_example()[3].flatten()[:2].astype(str), "…"]
    draw.flow(draw.tokens(1, 5, [0, 1, 2, "…"], "positions", "none", row), draw.learned(23, 5, "position\nembedding"))
    tokens, embedding = draw.tokens(1, 12, row, "tokens (B, S)"), draw.learned(23, 12, "token\nembedding")
    for i in (2, 1, 0):
        blocks = draw.learned(43 + 0.8 * i, 12 - 0.8 * i, "" if i else "8 blocks", 9, edge=START, linewidth=0.8)
    add, norm = draw.operation(33, 12, "+", 2.8, 2.8), draw.learned(54.5, 12, "norm", 5.5)
    draw.flow(tokens, embedding, add, blocks)
    draw.arrow((49.3, 12), (51.5, 12))
    draw.flow(norm, draw.learned(63, 12, "head", 5.5), draw.box(70.8, 12, 5, 5, "logits"))
    draw.arrow((28.8, 5), (33, 5), (33, 10.4))
    for x, size in ((38, 256), (54.5, 256), (69.8, 75)):
        draw.text(x, 6.5, f"(B, S, {size})")

    draw.box(37, 32.5, 72, 21, rounding=1.5)
    draw.line((38.5, 14.6), (5, 21.9), 0.7)
    draw.line((47.5, 14.6), (69, 21.9), 0.7)
    halves = ("attention\n8 heads", "between tokens, looking back"), ("MLP\n256→1024→256", "within each token")
    for left, (name, what) in zip((6, 39), halves, strict=True):
        layer = draw.labelled(draw.learned(left + 18.5, 27.5, name, 13), what)
        draw.flow(draw.learned(left + 6, 27.5, "norm", 6), layer)
        draw.arrow((left, 37.5), (left, 27.5), (left + 2.7, 27.5))
        draw.arrow((left + 25.3, 27.5), (left + 28, 27.5), (left + 28, 35.8))
        draw.operation(left + 28, 37.5, "+", 2.8, 2.8)
    for start, end in ((2.5, 32.6), (35.4, 65.6), (68.4, 70.5)):
        draw.line((start, 37.5), (end, 37.5), 3)
    draw.arrow((69, 37.5), (72.3, 37.5))
    draw.text(4, 40.8, "residual stream x, (B, S, 256)", ha="left")
    draw.text(71, 40.8, "one of the 8 blocks", ha="right")
    return draw.figure


@styled
def inputs_and_targets(tokens):
    """What the Transformer reads and what it should answer, for one sequence: (51,) int64 tokens, all of them.

    Under each input stands its target, which is the token that comes next: the next input, as the thin lines show.
    """
    tokens = _array(tokens)
    draw = _Drawing(52)
    for t in range(50):
        x, y = 10.5 + 6.5 * (t % 10), 4 + 9.7 * (t // 10)
        draw.text(x, y - 2.3, t)
        draw.box(x, y, 5, 2.6, tokens[t], CODE if t else START, size=SMALL)
        draw.box(x, y + 3.8, 5, 2.6, tokens[t + 1], CODE if t < 49 else END, size=SMALL)
        if t % 10 < 9:
            draw.line((x + 2.5, y + 2.5), (x + 4, y + 1.3))
        else:
            for name, below in (("t", -2.3), ("input", 0), ("target", 3.8)):
                draw.text(1, y + below, name, ha="left", weight="bold")
    draw.legend(50, {"start token: the class": START, "code": CODE, "end token": END})
    draw.text(71.5, 50, "each target is the next input", ha="right")
    return draw.figure


@styled
def stream(tokens):
    """What the Transformer reads and what it should answer, for a caption and codes in one stream: (57,) int64 tokens.

    As in `inputs_and_targets`, but text tokens are shown as the words that they stand for. A frame without colour is a
    padding token.
    """
    tokens = _array(tokens).tolist()
    first = Vocabulary(num_words=captions.NUM_WORDS).end + 1  # the token of the first word
    names = [*captions.WORDS, *(f"pad {i}" for i in range(captions.TEXT))]
    draw = _Drawing(66)

    def cell(x, y, token):
        word = token - first
        fill = CODE if word < 0 else START if word < len(captions.WORDS) else "none"
        draw.box(x, y, 7.6, 2.6, names[word] if word >= 0 else token, fill, size=SMALL)

    for t in range(len(tokens) - 1):
        x, y = 11.2 + 8.2 * (t % 8), 4 + 8.7 * (t // 8)
        draw.text(x, y - 2.3, t)
        cell(x, y, tokens[t])
        cell(x, y + 3.2, tokens[t + 1])
        if t % 8 == 7:
            for name, below in (("t", -2.3), ("input", 0), ("target", 3.2)):
                draw.text(1, y + below, name, ha="left", weight="bold")
    draw.legend(64, {"word": START, "padding": "none", "code": CODE})
    draw.text(72.4, 64, "each target is the next input", ha="right")
    return draw.figure


@styled
def cached_and_not():
    """What is computed for token 5, when tokens 0 to 4 are known already: without a cache and with one.

    Each row is a token, with its query, key and value, and then with the weights that it gives to the tokens so far.
    """
    draw = _Drawing(34)
    for left, title, first_row in ((1, "without a cache", 0), (38, "with a cache", 5)):
        draw.text(left + 17, 2, title, NORMAL, weight="bold")
        for x, name in ((8, "query"), (12.5, "key"), (17, "value"), (26.5, "weights")):
            draw.text(left + x, 5.3, name)
        for row in range(6):
            y, new = 8.3 + 3.3 * row, row >= first_row
            draw.text(left, y, f"token {row}", ha="left")
            for x in (8, 12.5, 17) if new else (12.5, 17):
                draw.box(left + x, y, 4, 2.7, fill=HERE if new else KEPT)
            for column in range(row + 1 if new else 0):
                draw.box(left + 21 + 2.4 * column, y, 2.1, 2.7, fill=HERE)
        computed = f"computed: {3 * (6 - first_row)} vectors, {sum(range(first_row + 1, 7))} weights"
        draw.text(left + 17, 28.7, computed)
    draw.legend(32, {"computed for token 5": HERE, "kept from before": KEPT})
    return draw.figure


@styled
def guidance(uncond, cond):
    """The next code without the class, with it, and guided: softmax(uncond + w · (cond - uncond)) for w = 0, 1, 2.

    uncond, cond: (K,) float logits. Shown are the 12 codes that are likeliest anywhere, sorted by their probability
    with the class. The outline repeats the distribution without the class, w = 0.
    """
    uncond, cond = _array(uncond), _array(cond)
    probabilities = [torch.from_numpy(uncond + w * (cond - uncond)).softmax(-1).numpy() for w in range(3)]
    shown = np.argsort(-np.max(probabilities, 0))[:12]
    shown = shown[np.argsort(-cond[shown])]
    figure, axes = _figure(WIDTH, 2.3, 1, 3, sharey=True)
    for w, (axis, meaning) in enumerate(zip(axes[0], ("any class", "the class", "guided"), strict=True)):
        axis.bar(range(len(shown)), probabilities[w][shown], color=CODE)
        axis.bar(range(len(shown)), probabilities[0][shown], color="none", edgecolor=GREY, label="w = 0")
        axis.set(title=f"w = {w}: {meaning}", xlabel="code", xticks=range(len(shown)))
        axis.set_xticklabels(shown, fontsize=7)
        axis.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel("probability")
    axes[0, -1].legend(loc="best")  # wherever no bar is
    return figure
