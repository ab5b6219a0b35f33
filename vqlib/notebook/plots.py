"""The figures of the notebooks. Each function returns a matplotlib `Figure`.

Pictures are always drawn with black = -1 and white = +1. Rescaling each one to its own range would hide errors of
brightness. The colours (Okabe and Ito's; the maps viridis, cividis and gray) are safe for colour-blind readers.

Figures are transparent, since the page below may be white or nearly black. So text and frames have a grey that can be
read on both, and of Okabe and Ito's eight colours black and yellow, which each vanish on one of them, are left out.
"""

import functools
import textwrap

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange
from matplotlib.patches import Ellipse, Rectangle

from vqlib.data import CLASS_NAMES

GREY = "#797979"  # its contrast is 4.35 on white as well as on JupyterLab's dark ground, #111111
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", GREY)
WIDTH = 7.4  # inches: a page shrinks a figure that is much wider, and its small text with it
STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
    "grid.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.titlesize": 9,
    "font.size": 9.5,  # an exponent of a logarithmic scale is drawn at 0.7 of this, and even that should be 9 pixels
    "figure.dpi": 100,
    "legend.frameon": False,
}
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1, 1)}  # a legend to the right of the axes
ABOVE = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 4}


def styled(draw):
    """A function that draws a figure, in our style.

    Matplotlib makes ticks only when it draws, so we ask for them while the style still holds.
    """

    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
                axis.get_major_ticks(1), axis.get_minor_ticks(1)
        return figure

    return drawn


def _figure(width, height, rows=1, columns=1, **options):
    """A figure that pyplot forgets, so that a notebook shows it once: as the value of the cell."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options)
    plt.close(figure)
    return figure, axes


def _array(values):
    """Numbers as an array: from a tensor of any dtype and device, with or without a gradient, or a list of such."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray([_array(value) for value in values]) if isinstance(values, list | tuple) else np.asarray(values)


def _show(axis, picture, title=None, **options):
    axis.imshow(_array(picture), interpolation="nearest", **({"cmap": "gray", "vmin": -1, "vmax": 1} | options))
    axis.set(xticks=[], yticks=[], title=title)
    axis.grid(False)
    axis.spines[:].set_visible(False)


def _frame(axis, x, y, width, height, colour, line="-"):
    """A frame around whole pixels of a picture: (x, y) is the upper left one."""
    axis.add_patch(
        Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=1.5, linestyle=line)
    )


def _levels(axis, levels):
    for i, (name, y) in enumerate((levels or {}).items()):
        axis.axhline(_array(y), linestyle="--", linewidth=1, color=COLOURS[(i + 3) % len(COLOURS)], label=name)


def tile(images, columns):
    """(N, 1, H, W) images to one array (rows · (H + 2), columns · (W + 2)), row by row, each in a thin white frame."""
    images, missing = _array(images), -len(images) % columns
    framed = np.pad(images, ((0, missing), (0, 0), (1, 1), (1, 1)), constant_values=1.0)
    return rearrange(framed, "(r c) 1 h w -> (r h) (c w)", c=columns)


@styled
def picture_rows(rows, titles, scale=0.55, columns=()):
    """Rows of pictures with a title at the left of each row.

    rows: a list of (N, 1, 28, 28) float images in [-1, 1], with the same N. columns: N headings, or none.
    """
    scale = min(scale, (WIDTH - 1.5) / len(rows[0]))
    figure, axes = _figure(len(rows[0]) * scale + 1.5, len(rows) * (scale + 0.06), len(rows))
    for axis, row, title in zip(axes[:, 0], rows, titles, strict=True):
        _show(axis, tile(row, len(rows[0])))
        axis.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
    for i, heading in enumerate(columns):
        axes[0, 0].text(30 * i + 15, -3, heading, ha="center", va="bottom", fontsize=8)
    return figure


@styled
def captioned(images, texts, columns=6):
    """Pictures in a grid, each above its caption: (N, 1, 28, 28) float images in [-1, 1], N texts."""
    rows, width = -(-len(images) // columns), WIDTH / columns
    figure, axes = _figure(WIDTH, rows * (min(width, 1.0) + 0.4), rows, columns)
    for axis in axes.flat[len(images) :]:
        axis.axis("off")
    for axis, image, text in zip(axes.flat, images, texts, strict=False):
        _show(axis, image[0])
        axis.set_xlabel(textwrap.fill(text, int(13 * width)), fontsize=8)
    return figure


@styled
def class_grid(images, each, scale=0.5):
    """One named row per class: (10 · each, 1, 28, 28) images in [-1, 1], sorted by class."""
    return picture_rows(rearrange(_array(images), "(c n) 1 h w -> c n 1 h w", n=each), CLASS_NAMES, scale)


@styled
def histogram_of_pixels(pixels):
    """How often each grey level occurs in (N, 28, 28) uint8 pixels, on a logarithmic scale."""
    figure, axes = _figure(6, 2.2)
    count = np.bincount(_array(pixels).astype(np.uint8, copy=False).ravel(), minlength=256)
    axes[0, 0].bar(np.arange(256), count / count.sum(), width=1.0)
    axes[0, 0].set(yscale="log", xlabel="grey level (0 black, 255 white)", ylabel="share of pixels")
    return figure


@styled
def curves(series, x_label, y_label, x_scale="linear", levels=None):
    """Named lines, {name: (x, y)}, and named dashed horizontal lines, levels={name: y}."""
    figure, axes = _figure(6.4, 2.8)
    for name, (x, y) in series.items():
        axes[0, 0].plot(_array(x), _array(y), label=name)
    _levels(axes[0, 0], levels)
    axes[0, 0].set(xlabel=x_label, ylabel=y_label, xscale=x_scale)
    if len(series) + len(levels or {}) > 1:
        axes[0, 0].legend(**BESIDE)
    return figure


@styled
def bars(series, x_label, y_label, names=None):
    """Named groups of bars, {name: (K,) values}. names: what the K places are called, in place of numbers."""
    figure, axes = _figure(6.4, 3.0 if names else 2.4)
    width = 0.85 / len(series)
    for i, (name, values) in enumerate(series.items()):
        middle = np.arange(len(values)) + (i - (len(series) - 1) / 2) * width
        axes[0, 0].bar(middle, _array(values), width, label=name)
    axes[0, 0].set(xlabel=x_label, ylabel=y_label)
    if names:
        axes[0, 0].set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    if len(series) > 1:
        axes[0, 0].legend(**ABOVE)
    return figure


@styled
def voronoi(points, codebooks):
    """Points (N, 2) in the colour of their nearest code, once for each codebook of {name: (K, 2)}."""
    width, points = min(2.7, WIDTH / len(codebooks)), _array(points)
    figure, axes = _figure(width * len(codebooks), 2.8, 1, len(codebooks), sharex=True, sharey=True)
    for axis, (name, codebook) in zip(axes[0], codebooks.items(), strict=True):
        codebook = _array(codebook)
        nearest = ((points[:, None] - codebook) ** 2).sum(-1).argmin(1)
        used = np.bincount(nearest, minlength=len(codebook)) > 0
        axis.scatter(*points.T, c=matplotlib.colormaps["tab20"](nearest % 20), s=4, linewidths=0)
        for some, label, fill in ((used, "used", "black"), (~used, "dead", "white")):
            axis.scatter(*codebook[some].T, c=fill, marker="X", s=60, linewidths=1.5, edgecolors=GREY, label=label)
        axis.set(title=f"{name}\n{int(used.sum())} of {len(codebook)} codes used", aspect="equal")
    axes[0, -1].legend(**BESIDE)
    return figure


@styled
def token_map(images, codes, scale=2.6):
    """Images (N, 1, 28, 28), with the code of each cell, (N, 7, 7) int64, written over it."""
    scale = min(scale, WIDTH / len(images))
    figure, axes = _figure(scale * len(images), scale, 1, len(images))
    label = {"boxstyle": "square,pad=0.08", "facecolor": COLOURS[0], "alpha": 0.75, "linewidth": 0}
    for axis, image, grid in zip(axes[0], images, codes, strict=True):
        _show(axis, image[0])
        for edge in range(4, 28, 4):
            axis.axhline(edge - 0.5, color="grey", linewidth=0.4)
            axis.axvline(edge - 0.5, color="grey", linewidth=0.4)
        for (row, column), code in np.ndenumerate(_array(grid).astype(int)):
            x, y = 4 * column + 1.5, 4 * row + 1.5
            axis.text(x, y, code, ha="center", va="center", fontsize=7, color="white", bbox=label)
    return figure


@styled
def palette(patches, columns=16):
    """Small pictures in a grid, each with its number: (K, 1, h, w) in [-1, 1]."""
    rows = -(-len(patches) // columns)
    figure, axes = _figure(columns * min(0.42, WIDTH / columns), rows * 0.55, rows, columns)
    for i, axis in enumerate(axes.flat):
        axis.axis("off")
        if i < len(patches):
            _show(axis, patches[i][0])
            axis.set_title(i, fontsize=7, pad=1)
    return figure


@styled
def heat_maps(maps, titles, label, v_max=None, cmap="viridis", scale=1.9, number_format=None, cell=None):
    """A list of 2-D maps side by side on one scale of colour, from 0 to v_max (the largest value, if None).

    label: of the colour bar. number_format: to write each value into its cell. cell: a (row, column) to frame.
    """
    scale = min(scale, (WIDTH - 0.6) / len(maps))
    figure, axes = _figure(scale * len(maps) + 0.6, scale + 0.3, 1, len(maps))
    maps = [_array(values) for values in maps]
    top = _array(v_max) if v_max is not None else max(values.max() for values in maps)
    for axis, values, title in zip(axes[0], maps, titles, strict=True):
        _show(axis, values, title, cmap=cmap, vmin=0, vmax=top)
        if cell is not None:
            _frame(axis, cell[1], cell[0], 1, 1, COLOURS[4])
        for (row, column), value in np.ndenumerate(values) if number_format else ():
            colour = "white" if value <= 0.45 * top else "black"
            axis.text(column, row, format(value, number_format), ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(axes[0, 0].images[0], ax=axes[0].tolist(), label=label, shrink=0.8)
    return figure


@styled
def class_code_map(frequencies):
    """How often each class uses each code: (10, K), where each row sums to 1."""
    figure, axes = _figure(7.5, 2.4)
    frequencies = _array(frequencies)
    image = axes[0, 0].imshow(frequencies, cmap="viridis", aspect="auto", interpolation="nearest")
    ticks = range(0, frequencies.shape[1], max(1, frequencies.shape[1] // 8))
    axes[0, 0].set(yticks=range(10), yticklabels=CLASS_NAMES, xlabel="code", xticks=ticks)
    axes[0, 0].grid(False)
    figure.colorbar(image, label="share of the class's codes")
    return figure


@styled
def receptive_field(influence, cell):
    """Which pixels the latent of a cell (row, column) depends on: (28, 28) magnitudes of its gradient.

    A solid frame marks the cell's own 4×4 pixels, a dashed one everything that has any influence.
    """
    figure, axes = _figure(3.4, 2.8)
    influence = _array(influence)
    _show(axes[0, 0], influence, cmap="viridis", vmin=0, vmax=influence.max())
    (top, left), (bottom, right) = np.argwhere(influence).min(0), np.argwhere(influence).max(0) + 1
    _frame(axes[0, 0], 4 * cell[1], 4 * cell[0], 4, 4, "white")
    _frame(axes[0, 0], left, top, right - left, bottom - top, "white", "--")
    figure.colorbar(axes[0, 0].images[0], label="influence")
    return figure


@styled
def distributions(probabilities, titles, x_label="code"):
    """Bar charts of several distributions side by side, on one scale: a list of (K,) probabilities."""
    width = min(2.3, WIDTH / len(probabilities))
    figure, axes = _figure(width * len(probabilities), 2.0, 1, len(probabilities), sharey=True)
    for axis, values, title in zip(axes[0], probabilities, titles, strict=True):
        axis.bar(np.arange(len(values)), _array(values), width=1.0)
        axis.set(title=title, xlabel=x_label)
    axes[0, 0].set_ylabel("probability")
    return figure


@styled
def seeds(variants, labels, scales=None):
    """Results of training with several seeds: a row per variant, a dot per seed, a line at their mean.

    variants: {variant: {key: [values]}}. labels: {key: axis label}. scales: {key: a factor for the values}.
    """
    figure, axes = _figure(min(WIDTH, 3.2 * len(labels) + 1.6), 0.26 * len(variants) + 0.8, 1, len(labels), sharey=True)
    for axis, (key, label) in zip(axes[0], labels.items(), strict=True):
        for y, results in enumerate(variants.values()):
            values = _array(results[key]) * (scales or {}).get(key, 1)
            axis.plot(values, np.full(len(values), y), "o", color=COLOURS[0], alpha=0.7, markersize=5)
            axis.plot([values.mean()] * 2, [y - 0.35, y + 0.35], color=COLOURS[1], linewidth=2)
        axis.set(xlabel=label, yticks=range(len(variants)), yticklabels=list(variants))
    axes[0, 0].invert_yaxis()
    return figure


@styled
def clouds(pairs, names=("real", "samples")):
    """Two clouds of points beside each other, {title: ((N, 2), (M, 2))}: each with its mean, and as a Gaussian.

    The ellipse has the axes of the cloud's covariance, two standard deviations long on each side of the mean.
    """
    width = min(2.6, WIDTH / len(pairs))
    figure, axes = _figure(width * len(pairs), width + 0.2, 1, len(pairs), sharex=True, sharey=True)
    for axis, (title, both) in zip(axes[0], pairs.items(), strict=True):
        for points, name, colour in zip(both, names, COLOURS, strict=False):
            points = _array(points).astype(float)
            axis.scatter(*points.T, color=colour, s=3 + 200 / len(points), alpha=0.4, linewidths=0)
            mean, (variances, directions) = points.mean(0), np.linalg.eigh(np.cov(points.T))
            width, height = 4 * np.sqrt(variances.clip(min=0))
            angle = np.degrees(np.arctan2(directions[1, 0], directions[0, 0]))
            ellipse = Ellipse(mean, width, height, angle=angle, fill=False, edgecolor=colour, linewidth=2)
            axis.add_patch(ellipse)
            axis.plot(*mean, marker="X", color=colour, markersize=8, linestyle="none", label=name)
        axis.set(title=title, aspect="equal")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled
def trade(points):
    """Agreement against coverage as the knobs turn: a list of {"temperature", "guidance", "agreement", "coverage"}.

    One line follows the temperature without guidance; another, for each temperature, follows the guidance.
    """
    figure, axes = _figure(6.4, 3.4)
    points = [{name: float(_array(value)) for name, value in point.items()} for point in points]
    lines = {("no guidance, by temperature", "temperature", "T"): [p for p in points if p["guidance"] == 1]}
    for temperature in sorted({point["temperature"] for point in points if point["guidance"] != 1}):
        key = f"T = {temperature:g}, by guidance", "guidance", "w"
        lines[key] = [p for p in points if p["temperature"] == temperature]
    for (name, knob, letter), line in lines.items():
        line = sorted(line, key=lambda point: point[knob])
        axes[0, 0].plot([p["coverage"] for p in line], [p["agreement"] for p in line], marker="o", label=name)
        for point in line:
            if knob == "temperature" or point[knob] != 1:  # guidance 1 is labelled with its temperature already
                text, at = f"{letter} {point[knob]:g}", (point["coverage"], point["agreement"])
                axes[0, 0].annotate(text, at, xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes[0, 0].set(
        xlabel="coverage: share of real pictures with a sample near them", ylabel="agreement with the class asked for"
    )
    axes[0, 0].legend()
    return figure


@styled
def game(real, drawn, verdicts=None):
    """The toy game of notebook 07: what is drawn for each code, beside the real pictures, which have one pixel.

    real (N, 2) and drawn {title: (M, 2)}: points (code, pixel) from -1 to 1. verdicts: {title: (R, R)}, what the
    discriminator says of every pixel (row, from -1 up) for every code (column), from 0, drawn, to 1, real.
    """
    verdicts, real = verdicts or {}, _array(real)
    width = min(2.5, (WIDTH - 0.9 * bool(verdicts)) / len(drawn))
    figure, axes = _figure(width * len(drawn) + 0.9 * bool(verdicts), width + 0.4, 1, len(drawn), sharey=True)
    for axis, (title, points) in zip(axes[0], drawn.items(), strict=True):
        if title in verdicts:
            shades = {"cmap": "cividis", "vmin": 0, "vmax": 1, "origin": "lower", "extent": (-1, 1, -1, 1)}
            shown = axis.imshow(_array(verdicts[title]), interpolation="nearest", **shades)
        axis.scatter(*real.T, s=5, linewidths=0, color="white" if title in verdicts else GREY)
        axis.scatter(*_array(points).T, s=7, linewidths=0, color=COLOURS[1])
        axis.set(title=title, xlabel="code", xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=(-1, 0, 1))
        axis.grid(False)
    axes[0, 0].set(ylabel="pixel", yticks=(-1, 0, 1))
    if verdicts:
        figure.colorbar(shown, ax=axes[0].tolist(), label="verdict: drawn 0, real 1", shrink=0.8)
    return figure


@styled
def plane(points, line, x_label, y_label, levels=None):
    """Named points, {name: (x, y)}, those in ``line`` joined in its order; levels={name: x} are vertical lines."""
    figure, axes = _figure(6.8, 3.6)
    points = {name: [float(_array(value)) for value in point] for name, point in points.items()}
    axes[0, 0].plot(*zip(*(points[name] for name in line), strict=True), color=COLOURS[0])
    for name, point in points.items():
        axes[0, 0].plot(*point, "o", color=COLOURS[0 if name in line else 1])
        axes[0, 0].annotate(name, point, xytext=(5, 4), textcoords="offset points", fontsize=8)
    for i, (name, x) in enumerate((levels or {}).items()):
        axes[0, 0].axvline(_array(x), linestyle="--", linewidth=1, color=COLOURS[i + 2], label=name)
    axes[0, 0].set(xlabel=x_label, ylabel=y_label)
    if levels:
        axes[0, 0].legend(**ABOVE)
    return figure
