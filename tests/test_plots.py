"""Figures show what they were given, on one fixed scale."""

import inspect
import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

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


PICTURES = torch.zeros(10, 1, 28, 28)
CASES = {
    "picture_rows": ([PICTURES], ["row"]),
    "class_grid": (PICTURES.repeat(2, 1, 1, 1), 2),
    "histogram_of_pixels": (torch.zeros(2, 28, 28, dtype=torch.uint8),),
    "curves": ({"a": ([1, 2], [3, 4])}, "x", "y"),
    "histories": ({"a": [{"step": 1, "mse": 0.1}, {"step": 2, "mse": 0.2}]}, ("mse",), ("MSE",), ("log",)),
    "bars": ({"a": torch.rand(5), "b": torch.rand(5)}, "x", "y"),
    "voronoi": (torch.randn(20, 2), {"codes": torch.randn(3, 2)}),
    "token_map": (PICTURES[:1], torch.zeros(1, 7, 7, dtype=torch.int64)),
    "palette": (torch.zeros(5, 1, 4, 4),),
    "heat_maps": ([torch.rand(7, 7)], ["map"], "nats"),
    "class_code_map": (torch.rand(10, 64),),
    "receptive_field": (torch.rand(28, 28), (3, 3)),
    "distributions": ([torch.rand(64)], ["T = 1"]),
    "seeds": ({"plain": {"mse": [0.2, 0.3]}}, {"mse": "MSE"}),
    "trade": ([{"temperature": 1.0, "guidance": 1.0, "agreement": 0.9, "coverage": 0.8}],),
}


def test_levels_are_drawn_and_named():
    curves = plots.curves({"a": ([1, 2], [3, 4])}, "x", "y", levels={"chance": 4.16})
    bars = plots.bars({"a": torch.rand(5)}, "x", "y", levels={"even": 0.2})
    for figure, name, at in ((curves, "chance", 4.16), (bars, "even", 0.2)):
        axis = figure.axes[0]
        assert name in [text.get_text() for text in axis.get_legend().get_texts()]
        assert [line.get_ydata()[0] for line in axis.lines if line.get_label() == name] == [at]


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
    assert public - {"tile"} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_each_returns_a_figure_that_pyplot_has_forgotten(name):
    figure = getattr(plots, name)(*CASES[name])
    assert isinstance(figure, Figure) and not plt.get_fignums()
    stream = io.BytesIO()
    figure.savefig(stream)
    assert len(stream.getvalue()) > 1000


def test_bars_are_sorted_and_a_dead_code_is_drawn_as_such():
    figure = plots.bars({"a": [0.1, 0.7, 0.2]}, "x", "y")
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.7, 0.2, 0.1]
    codebook = torch.tensor([[0.0, 0.0], [9.0, 9.0]])
    assert "1 of 2 codes used" in plots.voronoi(torch.zeros(4, 2), {"toy": codebook}).axes[0].get_title()


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
