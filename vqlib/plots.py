"""Every figure of the notebooks, as functions that return a matplotlib `Figure`.

Pictures are drawn with black = -1 and white = +1, always: never rescaled one by one, which would hide errors of
brightness. Colours: Okabe and Ito's eight, and the maps viridis, cividis and gray, which colour-blind readers can use.
"""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange

from vqlib.data import CLASS_NAMES

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
         "axes.prop_cycle": matplotlib.cycler(color=COLOURS), "font.size": 9, "figure.dpi": 100,
         "axes.titlesize": 9, "legend.frameon": False}


def _figure(width, height, rows=1, columns=1, **options):
    """A figure that a notebook shows once, where it is the last value of a cell: so pyplot must forget it."""
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained",
                                    **options)
    plt.close(figure)
    return figure, axes


def _array(values):
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _show(axis, picture, title=None, **options):
    axis.imshow(_array(picture), interpolation="nearest", **({"cmap": "gray", "vmin": -1, "vmax": 1} | options))
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    if title is not None:
        axis.set_title(title)


def tile(images, columns):
    """(N, 1, H, W) pictures to one (rows · (H+2), columns · (W+2)) array, row by row, a thin frame between them."""
    images = torch.as_tensor(images).detach().float().cpu()
    missing = -len(images) % columns
    images = torch.cat([images, torch.ones(missing, *images.shape[1:])])
    framed = torch.nn.functional.pad(images, (1, 1, 1, 1), value=1.0)
    return rearrange(framed, "(r c) 1 h w -> (r h) (c w)", c=columns).numpy()


def picture_rows(rows, titles, scale=0.55, columns=()):
    """Rows of pictures, each with its name at the left: a list of (N, 1, 28, 28) in [-1, 1], N the same for all.

    columns: N headings, or none.
    """
    figure, axes = _figure(len(rows[0]) * scale + 1.5, len(rows) * (scale + 0.06), len(rows))
    for axis, row, title in zip(axes[:, 0], rows, titles, strict=True):
        _show(axis, tile(row, len(rows[0])))
        axis.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
    for i, heading in enumerate(columns):
        axes[0, 0].text(30 * i + 15, -3, heading, ha="center", va="bottom", fontsize=8)
    return figure


def class_grid(images, each, scale=0.5):
    """All ten classes, a row a class, named: (10 · each, 1, 28, 28) images in [-1, 1], class by class."""
    return picture_rows(list(images.reshape(10, each, *images.shape[1:])), CLASS_NAMES, scale)


def histogram_of_pixels(pixels):
    """How often each grey level occurs: (N, 28, 28) uint8."""
    figure, axes = _figure(6, 2.2)
    count = np.bincount(pixels.flatten().numpy(), minlength=256) / pixels.numel()
    axes[0, 0].bar(np.arange(256), count, width=1.0)
    axes[0, 0].set(yscale="log", xlabel="grey level (0 black, 255 white)", ylabel="share of pixels")
    return figure


def curves(series, x_label, y_label, x_scale="linear", levels=None):
    """Lines with their names: {name: (x, y)}. levels: {name: y} are drawn as dashed horizontal lines."""
    figure, axes = _figure(6.4, 2.8)
    for name, (x, y) in series.items():
        axes[0, 0].plot(_array(x), _array(y), label=name)
    for i, (name, y) in enumerate((levels or {}).items()):
        axes[0, 0].axhline(y, linestyle="--", linewidth=1, color=COLOURS[(i + 3) % len(COLOURS)], label=name)
    axes[0, 0].set(xlabel=x_label, ylabel=y_label, xscale=x_scale)
    if len(series) + len(levels or {}) > 1:
        axes[0, 0].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def histories(runs, keys, labels, y_scales):
    """Recorded training histories side by side: {name: history["steps"]}, one panel for each key."""
    figure, axes = _figure(3.2 * len(keys), 2.6, 1, len(keys))
    for axis, key, label, y_scale in zip(axes[0], keys, labels, y_scales, strict=True):
        for name, rows in runs.items():
            axis.plot([row["step"] for row in rows], [row[key] for row in rows], label=name, linewidth=1.2)
        axis.set(xlabel="step", title=label, yscale=y_scale)
    axes[0, -1].legend()
    return figure


def bars(series, x_label, y_label, sort=True, level=None):
    """Bars side by side: {name: (K,) values}; sorted, each on its own, from large to small unless told otherwise.

    level: (name, y) of a dashed line.
    """
    figure, axes = _figure(6.4, 2.4)
    width = 0.85 / len(series)
    for i, (name, values) in enumerate(series.items()):
        values = np.sort(_array(values))[::-1] if sort else _array(values)
        axes[0, 0].bar(np.arange(len(values)) + (i - (len(series) - 1) / 2) * width, values, width, label=name)
    axes[0, 0].set(xlabel=x_label, ylabel=y_label)
    if level is not None:
        axes[0, 0].axhline(level[1], linestyle="--", color=COLOURS[1], label=level[0])
    if len(series) > 1 or level is not None:
        axes[0, 0].legend()
    return figure


def voronoi(points, codebook, title=None, frames=None):
    """2-D points coloured by their nearest code, codes as crosses: (N, 2), (K, 2)
    or {name: codebook} as ``frames``."""
    frames = frames or {title: codebook}
    figure, axes = _figure(2.7 * len(frames), 2.8, 1, len(frames), sharex=True, sharey=True)
    points = torch.as_tensor(points)
    for axis, (name, codes) in zip(axes[0], frames.items(), strict=True):
        nearest = torch.cdist(points, codes).argmin(1)
        used = torch.bincount(nearest, minlength=len(codes)) > 0
        colours = [matplotlib.colormaps["tab20"](int(i) % 20) for i in nearest]
        axis.scatter(*_array(points.T), c=colours, s=4, linewidths=0)
        axis.scatter(*_array(codes[used].T), c="black", marker="X", s=45, edgecolors="white", label="used")
        axis.scatter(*_array(codes[~used].T), c="white", marker="X", s=45, edgecolors="black", label="dead")
        axis.set(title=f"{name}\n{int(used.sum())} of {len(codes)} codes used", aspect="equal")
    axes[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def token_map(images, codes, scale=2.6):
    """Pictures with the codes of their 7×7 cells written over them: (N, 1, 28, 28), (N, 7, 7)."""
    figure, axes = _figure(scale * len(images), scale, 1, len(images))
    for axis, image, grid in zip(axes[0], images, codes.tolist(), strict=True):
        _show(axis, image[0].cpu())
        for edge in range(4, 28, 4):
            axis.axhline(edge - 0.5, color="grey", linewidth=0.4)
            axis.axvline(edge - 0.5, color="grey", linewidth=0.4)
        for row, line in enumerate(grid):
            for column, code in enumerate(line):
                axis.text(4 * column + 1.5, 4 * row + 1.5, code, ha="center", va="center", fontsize=7, color="white",
                          bbox={"boxstyle": "square,pad=0.08", "facecolor": "#0072B2", "alpha": 0.75, "linewidth": 0})
    return figure


def palette(patches, columns=16, titles=None):
    """Small pictures in a grid, each with its number: (K, 1, h, w) in [-1, 1]."""
    rows = -(-len(patches) // columns)
    figure, axes = _figure(columns * 0.42, rows * 0.55, rows, columns)
    for i, axis in enumerate(axes.flat):
        axis.axis("off")
        if i < len(patches):
            _show(axis, patches[i, 0].cpu())
            axis.set_title(titles[i] if titles else i, fontsize=6, pad=1)
    return figure


def heat_maps(maps, titles, label, v_max=None, cmap="viridis", scale=1.9, number_format=None, cell=None):
    """7×7 (or any) maps side by side, on one colour scale: a list of 2-D arrays. cell: a (row, column) to frame."""
    figure, axes = _figure(scale * len(maps) + 0.6, scale + 0.3, 1, len(maps))
    top = v_max if v_max is not None else max(float(_array(m).max()) for m in maps)
    for axis, values, title in zip(axes[0], maps, titles, strict=True):
        values = _array(values)
        _show(axis, values, title, cmap=cmap, vmin=0, vmax=top)
        if cell is not None:
            axis.add_patch(matplotlib.patches.Rectangle((cell[1] - 0.5, cell[0] - 0.5), 1, 1, fill=False,
                                                        edgecolor=COLOURS[4], linewidth=1.5))
        if number_format:
            for (row, column), value in np.ndenumerate(values):
                axis.text(column, row, format(value, number_format), ha="center", va="center", fontsize=6,
                          color="white" if value < 0.6 * top else "black")
    figure.colorbar(axes[0, 0].images[0], ax=axes[0].tolist(), label=label, shrink=0.8)
    return figure


def class_code_map(frequencies):
    """How often each class uses each code: (10, 64), rows that sum to 1."""
    figure, axes = _figure(7.5, 2.4)
    image = axes[0, 0].imshow(_array(frequencies), cmap="viridis", aspect="auto", interpolation="nearest")
    axes[0, 0].set(yticks=range(10), yticklabels=CLASS_NAMES, xlabel="code", xticks=range(0, 64, 8))
    axes[0, 0].grid(False)
    figure.colorbar(image, label="share of the class's codes")
    return figure


def receptive_field(influence, cell):
    """Which pixels one cell's latent depends on: (28, 28) gradient magnitudes, and the cell's (row, column).

    Framed: the cell's own 4×4 pixels, and (dashed) all that have any influence.
    """
    figure, axes = _figure(3.4, 2.8)
    _show(axes[0, 0], influence, cmap="viridis", vmin=0, vmax=float(influence.max()))
    top, left = np.argwhere(_array(influence)).min(0)
    bottom, right = np.argwhere(_array(influence)).max(0) + 1
    row, column = 4 * cell[0], 4 * cell[1]
    for x, y, width, height, line in ((column, row, 4, 4, "-"), (left, top, right - left, bottom - top, "--")):
        axes[0, 0].add_patch(matplotlib.patches.Rectangle((x - 0.5, y - 0.5), width, height, fill=False,
                                                          edgecolor="white", linewidth=1.5, linestyle=line))
    figure.colorbar(axes[0, 0].images[0], label="influence")
    return figure


def distributions(probabilities, titles, x_label="code", y_label="probability"):
    """Bar charts of a few distributions over the same codes, one above the other's scale: a list of (64,)."""
    figure, axes = _figure(2.3 * len(probabilities), 2.0, 1, len(probabilities), sharey=True)
    for axis, values, title in zip(axes[0], probabilities, titles, strict=True):
        axis.bar(np.arange(len(values)), _array(values), width=1.0)
        axis.set(title=title, xlabel=x_label)
    axes[0, 0].set_ylabel(y_label)
    return figure


def seeds(variants, labels, scales=None):
    """Variants as rows, a dot for each seed, a line at their mean: {variant: {key: [values]}}, {key: axis label}.

    scales: {key: factor} by which values are multiplied.
    """
    figure, axes = _figure(3.2 * len(labels) + 1.6, 0.26 * len(variants) + 0.8, 1, len(labels), sharey=True)
    for axis, (key, label) in zip(axes[0], labels.items(), strict=True):
        for y, results in enumerate(variants.values()):
            values = np.asarray(results[key]) * (scales or {}).get(key, 1)
            axis.plot(values, np.full(len(values), y), "o", color=COLOURS[0], alpha=0.7, markersize=5)
            axis.plot([values.mean()] * 2, [y - 0.35, y + 0.35], color=COLOURS[1], linewidth=2)
        axis.set(xlabel=label, yticks=range(len(variants)), yticklabels=list(variants))
    axes[0, 0].invert_yaxis()
    return figure


def trade(points):
    """Agreement against coverage as the knobs turn: a list of {"temperature", "guidance", "agreement", "coverage"}."""
    figure, axes = _figure(6.4, 3.4)
    lines = {("no guidance, by temperature", "temperature"): [point for point in points if point["guidance"] == 1]}
    for temperature in sorted({point["temperature"] for point in points if point["guidance"] != 1}):
        lines[f"T = {temperature:g}, by guidance", "guidance"] = [p for p in points if p["temperature"] == temperature]
    for (name, knob), line in lines.items():
        line = sorted(line, key=lambda point: point[knob])
        x, y = ([point[key] for point in line] for key in ("coverage", "agreement"))
        axes[0, 0].plot(x, y, marker="o", label=name)
        for point, at in zip(line, zip(x, y, strict=True), strict=True):
            if knob == "guidance" and point[knob] == 1:
                continue  # where the lines meet: the temperature stands there already
            axes[0, 0].annotate(f"{'T' if knob == 'temperature' else 'w'} {point[knob]:g}", at, xytext=(4, 4),
                                textcoords="offset points", fontsize=7)
    axes[0, 0].set(xlabel="coverage: share of real pictures with a sample near them",
                   ylabel="agreement with the class asked for")
    axes[0, 0].legend()
    return figure
