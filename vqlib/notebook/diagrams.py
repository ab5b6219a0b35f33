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
from vqlib.notebook.plots import COLOURS, GREY, WIDTH, _figure, styled
from vqlib.pair import load_pair

LEARNED, GRADIENT, HERE, END, CODE, START = COLOURS[:6]
INK = {LEARNED: "white", CODE: "black", START: "black", END: "black", HERE: "black"}  # what can be read on each
SMALL, NORMAL = 8, 9.5  # font sizes
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
    "tokens": [(36, 1, 10, 11.5), (10, 16.5, 23.5, 7.5)],
    "transformer": [(34, 16.5, 39, 7.5)],
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
    _legend(axis, 41.5, {"what this notebook is about": HERE, "has learned weights": LEARNED, "a code, one of 64": CODE})
    return figure
