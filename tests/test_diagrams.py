"""Diagrams say what the models are, and all that stands in them can be read, on a white page and on a dark one."""

import inspect

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.text import Annotation, Text
from test_plots import contrast, pixels

from vqlib import captions
from vqlib.notebook import diagrams
from vqlib.notebook.plots import GREY, WIDTH
from vqlib.tokens import Vocabulary
from vqlib.transformer import TransformerConfig
from vqlib.vqvae import GRID, VQVAEConfig

TOKENS = torch.tensor([70, *(7 * t % 64 for t in range(49)), 74])
SPOKEN = Vocabulary(num_words=captions.NUM_WORDS)
STREAM = torch.cat([captions.text_tokens(["boot, dark and upside-down"], SPOKEN)[0], TOKENS[1:-1]])
UNCOND, COND = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
CASES = {
    **{f"two_stages of {here}": ("two_stages", here) for here in diagrams.PLACES},
    **{name: (name,) for name in ("vqvae", "straight_through", "transformer", "cached_and_not")},
    "inputs_and_targets": ("inputs_and_targets", TOKENS),
    "stream": ("stream", STREAM),
    "guidance": ("guidance", UNCOND, COND),
}


def drawn(case):
    name, *arguments = CASES[case]
    return getattr(diagrams, name)(*arguments)


def texts(figure):
    """All that are drawn: matplotlib also has labels of ticks beyond the end of an axis."""
    beyond = set()
    for axis in figure.axes:
        low, high = axis.get_ylim()
        beyond |= {label for label in axis.get_yticklabels() if not low <= label.get_position()[1] <= high}
    found = (text for text in figure.findobj(Text) if text not in beyond)
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def words(figure):
    return " ".join(text.get_text() for text in texts(figure))


def shapes(figure, facecolor):
    """The boxes of a colour, as their outlines in tenths of an inch."""
    patches = [patch for patch in figure.axes[0].patches if np.allclose(patch.get_facecolor(), to_rgba(facecolor))]
    return [patch.get_path().get_extents() for patch in patches]


@pytest.mark.parametrize("case", CASES)
def test_no_text_touches_another_or_a_line_or_leaves_its_box_or_the_figure(case):
    figure = drawn(case)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    placed = [(text, text.get_window_extent(renderer)) for text in texts(figure)]
    assert len(placed) >= 10
    for i, (text, extent) in enumerate(placed):
        assert 0 <= extent.x0 and extent.x1 <= figure.bbox.x1 and 0 <= extent.y0 and extent.y1 <= figure.bbox.y1, text
        assert not [other for other, box in placed[:i] if extent.overlaps(box)], text
    if case.startswith("guidance"):
        return
    axis = figure.axes[0]
    arrows = [Path([text.xyann, text.xy]) for text in axis.texts if isinstance(text, Annotation)]
    lines = [path.transformed(axis.transData) for path in [*arrows, *(line.get_path() for line in axis.lines)]]
    boxes = [patch.get_window_extent(renderer) for patch in axis.patches]
    for text, extent in placed:
        assert not [line for line in lines if line.intersects_bbox(extent, filled=False)], text
        x, y = (extent.x0 + extent.x1) / 2, (extent.y0 + extent.y1) / 2
        for box in boxes:
            if box.contains(x, y):
                assert box.x0 <= extent.x0 and extent.x1 <= box.x1 and box.y0 <= extent.y0 and extent.y1 <= box.y1, text


@pytest.mark.parametrize("case", CASES)
def test_a_diagram_is_transparent_and_its_text_can_be_read_on_every_page(case):
    figure = drawn(case)
    assert isinstance(figure, Figure) and not plt.get_fignums()
    assert figure.get_figwidth() == WIDTH and pixels(figure)[:, 0, 3].max() == 0
    assert pixels(figure)[..., 3].min() == 0 < pixels(figure)[..., 3].max()
    for text in texts(figure):
        assert text.get_fontsize() * 100 / 72 >= 9, text
        colour = to_hex(text.get_color())
        under = [c for c, ink in diagrams.INK.items() if to_hex(ink) == colour]
        assert colour == GREY or min(contrast(text.get_color(), fill) for fill in under) > 4.5, text


def test_grey_can_be_read_at_the_readers_place():
    for page in ("#ffffff", "#111111"):
        ground = [0.12 * over + 0.88 * below for over, below in zip(to_rgb(diagrams.HERE), to_rgb(page), strict=True)]
        assert contrast(GREY, ground) > 3.6  # as on JupyterLab's dark cells


def test_every_diagram_has_a_case():
    functions = inspect.getmembers(diagrams, inspect.isfunction)
    public = {name for name, function in functions if function.__module__ == diagrams.__name__ and name[0] != "_"}
    assert public == {name for name, *_ in CASES.values()}


def test_the_readers_place_is_marked_and_no_other_is_known():
    marks = {}
    for here, places in diagrams.PLACES.items():
        found = shapes(diagrams.two_stages(here), (*to_rgb(diagrams.HERE), 0.12))
        assert [(e.width, e.height) for e in found] == [pytest.approx(place[2:]) for place in places]
        marks[here] = str(found)
    assert len(set(marks.values())) == 8
    for wrong in ("codes", "", None):
        with pytest.raises(ValueError, match="here must be one of"):
            diagrams.two_stages(wrong)


def test_two_stages_shows_the_codes_of_the_pictures_it_shows():
    picture, copy, new, codes, new_codes = diagrams._example()
    assert ((copy - picture) ** 2).mean() < 0.02 < ((new - picture) ** 2).mean()
    images = [image.get_array() for image in diagrams.two_stages("data").axes[0].images]
    assert [image.shape for image in images] == [(28, 28), (7, 7, 3), (28, 28), (7, 7, 3), (28, 28)]
    for shades, grid in ((images[1], codes), (images[3], new_codes)):
        blue = np.asarray(shades)[..., 2]  # orange has none
        assert np.array_equal(np.argsort(-blue, axis=None, kind="stable"), np.argsort(grid, axis=None, kind="stable"))
    for code in codes.flatten()[[0, 1, 48]]:
        assert str(code) in words(diagrams.two_stages("tokens")).split()


def test_two_stages_leaves_random_numbers_alone():
    diagrams._example.cache_clear()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    diagrams.two_stages("data")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_shapes_are_those_of_the_default_models():
    first, second = VQVAEConfig(), TransformerConfig()
    said = words(diagrams.vqvae())
    assert said.count(f"{first.code_dim}×{GRID}×{GRID}") == 2 and f"{first.num_codes}×{first.code_dim}" in said
    assert said.count("1×28×28") == 2
    said, d = words(diagrams.transformer()), second.d_model
    for part in (f"(B, S, {d})", f"(B, S, {second.vocabulary.size})", f"{d}→{4 * d}→{d}"):
        assert part in said
    assert f"{second.n_layers} blocks" in said and f"{second.n_heads} heads" in said
    assert said.count("embedding") == 2 and said.count("norm") == 3 and said.count("+") == 3


def test_the_gradient_goes_around_the_choice():
    figure = diagrams.straight_through()
    axis = figure.axes[0]
    at = {text.get_text(): text.get_position() for text in texts(figure)}
    cross = next(line for line in axis.lines if line.get_marker() == "x")
    assert at["nearest"][0] < cross.get_xdata()[0] < at["q"][0]
    around = [line for line in axis.lines if line.get_linestyle() == "--" and len(line.get_xdata()) == 3]
    assert len(around) == 1 and around[0].get_xdata()[0] == at["q"][0] and around[0].get_xdata()[-1] == at["z"][0]
    assert min(around[0].get_ydata()[1:]) > at["nearest"][1] + 2.5  # y goes down


@pytest.mark.parametrize("kind", [torch.Tensor.tolist, torch.Tensor.numpy, lambda tokens: tokens.repeat(2)[::1][51:]])
def test_all_51_tokens_stand_in_it_and_each_target_is_the_next_input(kind):
    figure = diagrams.inputs_and_targets(kind(TOKENS))
    rows = {}
    for text in texts(figure):
        if text.get_text().isdigit():
            x, y = text.get_position()
            rows.setdefault(round(y, 3), []).append((x, int(text.get_text())))
    rows = [[number for _, number in sorted(row)] for _, row in sorted(rows.items())]
    positions, inputs, targets = (sum(rows[i::3], []) for i in range(3))
    assert positions == list(range(50))
    assert inputs == TOKENS[:-1].tolist() and targets == TOKENS[1:].tolist()
    assert [len(shapes(figure, colour)) for colour in (diagrams.START, diagrams.END)] == [2, 2]  # and in the legend


def test_text_stands_in_the_stream_as_words_and_each_target_is_the_next_input():
    figure = diagrams.stream(STREAM)
    said = ["boot", ",", "dark", "and", "upside-down", "pad 5", "pad 6", "pad 7", *map(str, STREAM[8:].tolist())]
    rows = {}
    for text in texts(figure):
        x, y = text.get_position()
        if text.get_text() in {*said, *map(str, range(56))} and x > 8 and y < 62:
            rows.setdefault(round(y, 3), []).append((x, text.get_text()))
    rows = [[word for _, word in sorted(row)] for _, row in sorted(rows.items())]
    positions, inputs, targets = (sum(rows[i::3], []) for i in range(3))
    assert positions == list(map(str, range(56)))
    assert inputs == said[:-1] and targets == said[1:]
    assert len(shapes(figure, diagrams.START)) == 5 + 4 + 1  # inputs, targets, legend


def test_with_a_cache_one_row_is_computed_and_keys_and_values_are_kept():
    figure = diagrams.cached_and_not()
    new, kept = (shapes(figure, colour) for colour in (diagrams.HERE, diagrams.KEPT))
    new, kept = ([box for box in boxes if box.y1 < 30] for boxes in (new, kept))  # without the legend
    right = [box for box in new if box.x0 > 37]
    assert (len(new) - len(right), len(right), len(kept)) == (18 + 21, 3 + 6, 5 * 2)
    assert "18 vectors, 21 weights" in words(figure) and "3 vectors, 6 weights" in words(figure)


def test_guidance_draws_the_twelve_likeliest_codes_and_says_which_panel_is_which():
    figure = diagrams.guidance(UNCOND, COND)
    assert [axis.get_title() for axis in figure.axes] == ["w = 0: any class", "w = 1: the class", "w = 2: guided"]
    shown = [int(label.get_text()) for label in figure.axes[0].get_xticklabels()]
    assert shown == sorted(shown, key=lambda code: -COND[code]) and len(set(shown)) == 12
    for axis, w in zip(figure.axes, (0, 1, 2), strict=True):
        bars, outlines = axis.containers
        for container, weight in ((bars, w), (outlines, 0)):
            expected = (UNCOND + weight * (COND - UNCOND)).softmax(-1)
            assert [bar.get_height() for bar in container] == pytest.approx(expected[shown].tolist(), rel=1e-5)
        assert expected.max().item() == pytest.approx(max(bar.get_height() for bar in outlines))


def test_guidance_takes_logits_of_every_kind_and_size():
    usual = pixels(diagrams.guidance(UNCOND.bfloat16(), COND.bfloat16()))
    for kind in (lambda x: x.bfloat16().requires_grad_(), lambda x: x.bfloat16().float().tolist()):
        assert np.array_equal(pixels(diagrams.guidance(kind(UNCOND), kind(COND))), usual)
    large = diagrams.guidance(1e4 * UNCOND[:5], 1e4 * COND[:5])
    assert all(np.isfinite(bar.get_height()) for axis in large.axes for bar in axis.patches)
    assert [len(axis.containers[0]) for axis in large.axes] == [5, 5, 5]
