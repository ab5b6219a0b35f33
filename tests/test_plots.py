"""Figures show what they were given, on one fixed scale, and can be read on a white page and on a dark one."""

import functools
import inspect
import io

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from vqlib.notebook import plots


def test_original_defect_8_pictures_are_not_rescaled_one_by_one():
    dim = torch.full((2, 1, 28, 28), -0.5)
    dim[:, :, 10:18, 10:18] = 0.0  # nothing white in it: a plot that stretches each picture would make it white
    figure = plots.picture_rows([dim, dim], ["a", "b"])
    for axis in figure.axes:
        assert axis.images[0].get_clim() == (-1, 1)
    image = figure.axes[0].images[0]
    assert image.to_rgba(np.float64(0.0), bytes=True)[0] in (127, 128)


def test_tile_puts_pictures_row_by_row_in_a_frame():
    images = torch.arange(3.0).div(4).reshape(3, 1, 1, 1).expand(3, 1, 28, 28)
    grid = plots.tile(images, columns=2)
    assert grid.shape == (60, 60)
    assert (grid[1:29, 1:29] == 0).all() and (grid[1:29, 31:59] == 0.25).all() and (grid[31:59, 1:29] == 0.5).all()
    assert (grid[30:, 30:] == 1).all() and (grid[0] == 1).all()


def rand(*shape):
    """Numbers that float16 and bfloat16 can hold as well."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)).mul(64).round() / 64


PICTURES = 2 * rand(10, 1, 28, 28) - 1
CASES = {
    "picture_rows": ([PICTURES[:2], PICTURES[2:4]], ["a", "b"], 0.55, ["T = 1", "T = 2"]),
    "captioned": (PICTURES[:7], ["a dark slim dress", *"bcdefg"], 4),
    "class_grid": (PICTURES.repeat(2, 1, 1, 1), 2),
    "histogram_of_pixels": (torch.arange(32, dtype=torch.uint8).reshape(2, 4, 4),),
    "curves": ({"a": (rand(9), rand(9)), "b": (rand(9), rand(9))}, "x", "y", "log", {"c": rand(1)[0], "d": rand(2)[1]}),
    "bars": ({"a": rand(5), "b": rand(5)}, "x", "y", list("pqrst")),
    "voronoi": (rand(20, 2), {"codes": rand(3, 2), "others": rand(4, 2), "more": rand(5, 2)}),
    "token_map": (PICTURES[:2], torch.arange(98).reshape(2, 7, 7) % 64),
    "palette": (2 * rand(20, 1, 4, 4) - 1,),
    "heat_maps": ([rand(7, 7)] * 4, list("abcd"), "nats", rand(1)[0], "viridis", 2.6, ".1f", (3, 3)),
    "class_code_map": (rand(10, 64),),
    "receptive_field": (rand(28, 28), (3, 3)),
    "distributions": ([rand(64)] * 4, [f"T = {T}" for T in range(4)]),
    "seeds": ({"plain": {key: rand(2) for key in "abc"}}, {key: key for key in "abc"}),
    "clouds": ({"a": (rand(9, 2), rand(8, 2)), "b": (rand(7, 2), rand(9, 2))},),
    "game": (
        2 * rand(9, 2) - 1,
        {"a": 2 * rand(5, 2) - 1, "b": 2 * rand(4, 2) - 1},
        {"a": rand(6, 6), "b": rand(6, 6)},
    ),
    "plane": ({"a": rand(2), "b": rand(2) / 2, "c": rand(2) * 2}, ["a", "b"], "x", "y", {"level": rand(1)[0]}),
    "trade": ([{"temperature": x, "guidance": 1, "agreement": x, "coverage": x} for x in rand(3)],),
}


def drawn(name, *arguments):
    return getattr(plots, name)(*(arguments or CASES[name]))


def pixels(figure):
    stream = io.BytesIO()
    figure.savefig(stream)
    return plt.imread(io.BytesIO(stream.getvalue()))


KINDS = {
    "bfloat16 with a gradient": lambda x: x.bfloat16().requires_grad_(),
    "float64, transposed": lambda x: x.double().mT.contiguous().mT if x.ndim > 1 else x.double(),
    "NumPy, float16, flipped": lambda x: np.flip(np.flip(x.half().numpy()).copy()),
    "lists of expanded float16": lambda x: list(x.half()[None].expand(2, *x.shape)[1]) if x.ndim else x.item(),
    "cuda": lambda x: x.cuda(),
}


def made(value, kind):
    """All tensors of floats in these arguments as this kind."""
    if isinstance(value, torch.Tensor):
        return kind(value) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: made(part, kind) for key, part in value.items()}
    return type(value)(made(part, kind) for part in value) if isinstance(value, list | tuple) else value


@functools.cache
def usual(name):
    return pixels(drawn(name))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_numbers_of_every_kind_give_the_same_figure(name, kind):
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    assert np.array_equal(pixels(drawn(name, *made(CASES[name], KINDS[kind]))), usual(name))


@pytest.mark.parametrize("kind", [lambda x: x.tolist(), lambda x: x.flip(1).numpy()[:, ::-1], lambda x: x.float()])
def test_whole_numbers_too(kind):
    pixels, codes = CASES["histogram_of_pixels"][0], CASES["token_map"][1]
    heights, others = (
        [bar.get_height() for bar in drawn("histogram_of_pixels", x).axes[0].patches] for x in (kind(pixels), pixels)
    )
    assert heights == others and sum(heights) == 1
    texts = drawn("token_map", PICTURES[:2], kind(codes)).axes[1].texts
    assert [text.get_text() for text in texts] == [str(code) for code in codes[1].flatten().tolist()]


def luminance(colour):
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(a, b):
    """As the accessibility guidelines of the web (WCAG 2) define it."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


PAGES = {"white": "#ffffff", "JupyterLab's dark ground": "#111111", "its dark cells": "#212121"}


def test_lines_and_bars_show_on_every_page_and_text_can_be_read():
    """No grey has 4 on white and on #212121: 3.9 on both is the best, so it is chosen for the first two."""
    for page in PAGES.values():
        assert min(contrast(colour, page) for colour in plots.COLOURS[:4]) > 3  # series; dashed levels have the others
        assert min(contrast(colour, page) for colour in plots.COLOURS) > 2.2
    assert [contrast(plots.GREY, page) > least for page, least in zip(PAGES.values(), (4.3, 4.3, 3.6), strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_a_figure_is_transparent_its_text_is_large_enough_and_shows_on_every_page(name):
    figure = drawn(name)
    assert pixels(figure)[:, 0, 3].max() == 0 and figure.get_figwidth() <= 7.5
    grey = to_rgb(plots.GREY)
    for axis in figure.axes:
        assert axis.get_legend() is None or not axis.get_legend().get_frame_on()
        assert axis.patch.get_alpha() == 0 or axis.get_facecolor()[3] == 0
        frames = [*axis.spines.values(), *axis.get_xgridlines(), *axis.get_ygridlines(), *axis.get_xticklines()]
        colours = [frame.get_edgecolor() if hasattr(frame, "get_edgecolor") else frame.get_color() for frame in frames]
        assert {to_rgb(colour) for colour in colours} == {grey}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    for text in texts:
        raised = "^" in text.get_text()
        assert text.get_fontsize() * (0.7 if raised else 1) * 100 / 72 >= 9, text
        over = name in ("token_map", "heat_maps") and any(text in axis.texts for axis in figure.axes)
        assert over or to_rgb(text.get_color()) == grey, text
    assert len(texts) > 1


def test_numbers_can_be_read_over_the_colour_of_their_cell():
    for cmap in ("viridis", "cividis"):
        values = torch.linspace(0, 1, 49).reshape(7, 7)
        axis = plots.heat_maps([values], ["a"], "nats", 1.0, cmap, number_format=".1f").axes[0]
        for text, value in zip(axis.texts, values.flatten().tolist(), strict=True):
            assert contrast(text.get_color(), matplotlib.colormaps[cmap](value)) > 4


def test_levels_are_drawn_and_named():
    axis = plots.curves({"a": ([1, 2], [3, 4])}, "x", "y", levels={"chance": 4.16}).axes[0]
    assert "chance" in [text.get_text() for text in axis.get_legend().get_texts()]
    assert [line.get_ydata()[0] for line in axis.lines if line.get_label() == "chance"] == [4.16]


def test_a_map_of_codes_has_a_column_for_each_of_k_codes():
    for K in (32, 64, 256):
        axis = plots.class_code_map(torch.rand(10, K)).axes[0]
        assert axis.images[0].get_array().shape == (10, K) and list(axis.get_xticks()) == list(range(0, K, K // 8))


def test_heat_maps_frame_the_cell_in_each():
    for axis in plots.heat_maps([torch.rand(7, 7)] * 2, ["a", "b"], "weight", cell=(3, 5)).axes[:2]:
        assert [patch.get_xy() for patch in axis.patches] == [(4.5, 2.5)]


def test_the_receptive_field_frames_the_cell_and_what_it_sees():
    influence = torch.zeros(28, 28)
    influence[5:20, 3:27] = 1.0
    cell, seen = plots.receptive_field(influence, (2, 4)).axes[0].patches
    assert (cell.get_xy(), cell.get_width(), cell.get_height()) == ((15.5, 7.5), 4, 4)
    assert (seen.get_xy(), seen.get_width(), seen.get_height()) == ((2.5, 4.5), 24, 15)


def test_every_figure_function_has_a_case():
    public = {
        n
        for n, f in inspect.getmembers(plots, inspect.isfunction)
        if f.__module__ == plots.__name__ and not n.startswith("_")
    }
    assert public - {"tile", "styled"} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_each_returns_a_figure_that_pyplot_has_forgotten(name):
    figure = drawn(name)
    assert isinstance(figure, Figure) and not plt.get_fignums()
    stream = io.BytesIO()
    figure.savefig(stream)
    assert len(stream.getvalue()) > 1000


def test_bars_are_as_high_as_their_values():
    figure = plots.bars({"a": [0.1, 0.7, 0.2], "b": [0.3, 0.4]}, "x", "y")
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.1, 0.7, 0.2, 0.3, 0.4]


def test_bars_stand_above_their_names():
    axis = plots.bars({"a": [0.1, 0.7], "b": [0.3, 0.4]}, "", "y", ["dark boot", "slim bag"]).axes[0]
    assert [(t.get_text(), t.get_position()[0]) for t in axis.get_xticklabels()] == [("dark boot", 0), ("slim bag", 1)]


def test_a_caption_stands_below_its_picture_and_the_last_row_may_be_short():
    axes = plots.captioned(PICTURES[:5], ["a dark slim dress", "b", "c", "d", "e"], columns=3).axes
    assert [" ".join(axis.get_xlabel().split()) for axis in axes] == ["a dark slim dress", "b", "c", "d", "e", ""]
    for axis, picture in zip(axes, PICTURES[:5], strict=False):
        assert np.array_equal(axis.images[0].get_array(), picture[0].numpy())
    assert not axes[5].images and not axes[5].axison


def test_a_dead_code_is_drawn_as_such():
    codebook = torch.tensor([[0.0, 0.0], [9.0, 9.0]])
    assert "1 of 2 codes used" in plots.voronoi(torch.zeros(4, 2), {"toy": codebook}).axes[0].get_title()


def test_clouds_are_drawn_with_the_mean_and_the_axes_of_their_covariance():
    """A cloud along a line that rises to the right by 30 degrees, and a round one."""
    along = torch.tensor([[3.0, 3**0.5]]) * torch.tensor([[-1.0], [1.0], [-1.0], [1.0]])
    across = torch.tensor([[-1.0, 3**0.5]]) / 4 * torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    round_one = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]) + 5
    axis = plots.clouds({"two": (along + across + 1, round_one)}).axes[0]
    tilted, circle = axis.patches
    sides = sorted([tilted.width, tilted.height])  # each 4 deviations: of ±√12 along, of ±1/2 across; 3 = 4 points - 1
    assert sides == pytest.approx([4 * (4 * 0.25 / 3) ** 0.5, 4 * (4 * 12 / 3) ** 0.5])
    long_axis = tilted.angle if tilted.width > tilted.height else tilted.angle + 90
    assert long_axis % 180 == pytest.approx(30) and tuple(tilted.center) == pytest.approx((1, 1))
    assert circle.width == pytest.approx(circle.height) and tuple(circle.center) == (5, 5)
    assert [tuple(line.get_xydata()[0]) for line in axis.lines] == [pytest.approx((1, 1)), (5, 5)]
    assert [line.get_label() for line in axis.lines] == ["real", "samples"]


def test_the_trade_has_a_line_for_each_knob_and_the_unguided_point_begins_the_guided_line():
    points = [
        {"temperature": t, "guidance": w, "agreement": w / 10, "coverage": t}
        for t, w in ((1.0, 1.0), (0.5, 1.0), (1.0, 3.0), (1.0, 2.0))
    ]
    lines = plots.trade(points).axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["no guidance, by temperature", "T = 1, by guidance"]
    assert [list(line.get_xdata()) for line in lines] == [[0.5, 1.0], [1.0, 1.0, 1.0]]
    assert list(lines[1].get_ydata()) == [0.1, 0.2, 0.3]


def test_seeds_shows_each_seed_and_the_mean():
    figure = plots.seeds({"a": {"mse": [0.1, 0.3]}, "b": {"mse": [0.5]}}, {"mse": "MSE"}, scales={"mse": 10})
    dots_a, mean_a, dots_b, mean_b = figure.axes[0].get_lines()
    assert list(dots_a.get_xdata()) == [1, 3] and list(mean_a.get_xdata()) == [2, 2]
    assert list(dots_b.get_xdata()) == [5] and list(mean_b.get_xdata()) == [5, 5]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_the_game_shows_points_where_they_are_and_the_verdict_from_below():
    verdict = torch.zeros(4, 4)
    verdict[0] = 1.0  # of the pixel -1, whatever the code
    real, drawn = torch.tensor([[0.5, -0.5]]), torch.tensor([[-1.0, 1.0], [0.0, 0.25]])
    first, second, _ = plots.game(real, {"seen": drawn, "unseen": drawn[:1]}, {"seen": verdict}).axes
    assert [axis.get_title() for axis in (first, second)] == ["seen", "unseen"]
    assert [np.asarray(dots.get_offsets()).tolist() for dots in first.collections] == [real.tolist(), drawn.tolist()]
    assert len(second.collections[1].get_offsets()) == 1 and not second.images
    shown = first.images[0]
    assert shown.origin == "lower" and shown.get_array()[0].tolist() == [1] * 4 and shown.get_clim() == (0, 1)


def test_the_plane_joins_the_points_of_the_line_in_its_order_and_names_all():
    points = {"a": (1.0, 2.0), "b": (3.0, 4.0), "c": (5.0, 6.0)}
    axis = plots.plane(points, ["c", "a"], "x", "y", levels={"twice": 7.0}).axes[0]
    line, *dots = axis.get_lines()
    assert line.get_xydata().tolist() == [[5, 6], [1, 2]]
    assert [dot.get_xydata().tolist() for dot in dots[:3]] == [[list(point)] for point in points.values()]
    assert {text.get_text(): tuple(text.xy) for text in axis.texts} == points
    assert dots[3].get_label() == "twice" and dots[3].get_xdata()[0] == 7
