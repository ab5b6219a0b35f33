"""The code editor: change the codes of a test picture one by one, and see what the model thinks of it."""

import base64
import uuid

import torch
import torch.nn.functional as F

from vqlib.data import CLASS_NAMES
from vqlib.notebook.panels import base
from vqlib.notebook.panels.base import Panel, W, slider
from vqlib.notebook.panels.drawing import CELL, MARK, Sheet, sprite
from vqlib.pair import seeded
from vqlib.sampling import code_log_probs, sample
from vqlib.tokens import CODES_PER_IMAGE
from vqlib.vqvae import GRID


def variants(vqvae, codes, cell, candidates):
    """An image for each code that may stand in a cell: codes (7, 7), cell in 0…48, (n,) codes -> (n, 1, 28, 28)."""
    changed = codes.flatten().repeat(len(candidates), 1)
    changed[:, cell] = candidates
    return vqvae.decode(changed.reshape(-1, GRID, GRID).to(vqvae.quantizer.codebook.device)).cpu()


def crop(images, cell, around=0):
    """A cell's 4×4 pixels and ``around`` more on each side, black beyond the rim: (n, 1, 28, 28) -> (n, 1, h, h)."""
    padded = F.pad(images, (around,) * 4, value=-1.0)
    row, column, side = *divmod(cell, GRID), CELL + 2 * around
    return padded[..., CELL * row : CELL * row + side, CELL * column : CELL * column + side]


def draw_surprise(surprise, codes, cell, top, unit=32):
    """How unexpected each code is, as PNG: (7, 7) nats ≥ 0 on a scale up to ``top``, and (7, 7) codes."""
    sheet, (row, column) = Sheet(GRID * unit, GRID * unit + 22), divmod(cell, GRID)
    sheet.text(4, 4, f"surprise: {surprise.sum():.0f} nats; yellow: {top:.1f} or more", size=10)
    sheet.numbers(0, 22, surprise, top, unit, codes.flatten())
    sheet.box(unit * column, 22 + unit * row, unit, unit)
    return sheet.png()


class Mosaic:
    """A picture cut into square buttons, each of which sets a slider to its number.

    A button can't hold a picture. So each shows its own part of one, which is the background of all of them.
    """

    def __init__(self, name, count, columns, unit, slider):
        self.unit, self.columns, self.rule = unit, columns, f".vq{uuid.uuid4().hex[:8]}"  # two panels may share a page
        side = {"width": f"{unit}px", "height": f"{unit}px", "min_width": "0", "padding": "0", "margin": "0"}
        self.buttons = [W.Button(tooltip=f"{name} {i}", layout=side) for i in range(count)]
        rules = [f"{self.rule}:focus {{box-shadow: inset 0 0 0 2px #56B4E9 !important}}{self.rule} {{border: 0; "]
        rules.append(
            f"border-radius: 0; box-shadow: inset 0 0 0 0.5px #80808060; background-size: {columns * unit}px; "
        )
        rules.append("image-rendering: pixelated}")
        for i, button in enumerate(self.buttons):
            y, x = divmod(i, columns)
            rules.append(f"{self.rule}-{i} {{background-position: -{x * unit}px -{y * unit}px}}")
            button.add_class(self.rule[1:]).add_class(f"{self.rule[1:]}-{i}")
            button.on_click(lambda button, i=i: setattr(slider, "value", i))
        layout = {"width": f"{columns * unit}px", "margin": "0 16px 8px 0", "grid_gap": "0"}
        layout["grid_template_columns"] = f"repeat({columns}, {unit}px)"
        grid = W.GridBox(self.buttons, layout=layout)
        self.style = W.HTML()
        self.widget = W.VBox([W.HTML(f"click a {name}<style>{''.join(rules)}</style>"), grid, self.style])

    def show(self, images, marked):
        """images: a part (n, 1, h, h) for each button, or the whole (1, 1, h, h). marked: the number of a button."""
        png = sprite(images, self.columns if len(images) > 1 else 1, self.unit // CELL)
        url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        mark = f"{self.rule}-{marked} {{outline: 3px solid {MARK} !important; outline-offset: -3px}}"
        self.style.value = f"<style>{self.rule} {{background-image: url({url})}}{mark}</style>"


class CodeEditor(Panel):
    """Change the codes of a test picture one by one, by mouse (two grids of buttons) or by keyboard (two sliders).

    pair: a `Pair`, by default what `load_pair` finds. number: which of the embedded test pictures to begin with.
    """

    UNIT = 32  # pixels on the page for each cell

    def _build(self, pair=None, number=4):
        self._set_pair(pair)
        self._test_pictures(number)
        self.K, last = self.pair.vqvae.config.num_codes, len(self.pictures) - 1
        self.seed, self.quiet = 0, False
        self.cell = slider("cell", 24, 0, CODES_PER_IMAGE - 1)
        self.code = slider("its code", 0, 0, self.K - 1)
        self.other = slider("second picture", (number + 10) % (last + 1), 0, last)
        self.resample = base.button("resample from here on", "random", "Sample the cells after the marked one, T = 0.8")
        self.graft = base.button("graft its lower rows", "level-down", "Take the rows below the marked cell from it")
        self.reset = base.button("reset", "undo", "Back to the test picture's own codes")
        self.second = W.Image(format="png", layout={"width": "56px", "height": "56px"})
        self.cells = Mosaic("cell", CODES_PER_IMAGE, GRID, self.UNIT, self.cell)
        self.palette = Mosaic("code", self.K, 8, 28, self.code)
        self._on_move(self._open, self.number)
        self._on_move(self._select, self.cell)
        self._on_move(self._put, self.code)
        self._on_move(self._show_second, self.other)
        self._on_click(self.resample, self._resample)
        self._on_click(self.graft, self._graft)
        self._on_click(self.reset, self._open)
        grids = base.row(self.cells.widget, self.palette.widget, self.image)
        actions = base.row(self.resample, self.reset), base.row(self.other, self.second, self.graft)
        self.widget.children = [self.number, base.row(self.cell, self.code), grids, *actions, self.status]
        self._show_second()
        return self._open()

    def _encode(self, number):
        return self.pair.encode(self._image(number))[0].cpu()

    def _open(self):
        self.labels = self.pictures.labels[self.number.value : self.number.value + 1]
        self.codes = self.original = self._encode(self.number.value)
        surprise = self._surprise(self.codes)
        self.top, self.before = surprise.max(), surprise.sum()
        return self._select()

    def _surprise(self, codes):
        return -code_log_probs(self.pair.transformer, codes[None], self.labels)[0].reshape(GRID, GRID).cpu()

    def _select(self):
        self.quiet = True  # the slider follows what is already so: its observer has nothing to do
        self.code.value = int(self.codes.flatten()[self.cell.value])
        self.quiet = False
        return self._draw()

    def _put(self):
        if self.quiet:
            return None
        codes = self.codes.flatten().clone()
        codes[self.cell.value] = self.code.value
        self.codes = codes.reshape(GRID, GRID)
        return self._draw()

    def _show_second(self):
        self.second.value = sprite(self._image(self.other.value), 1, 2)

    def _resample(self):
        if self.cell.value == CODES_PER_IMAGE - 1:
            return "nothing comes after the last cell: mark another one, then resample"
        self.seed += 1
        prefix = self.codes.flatten()[None, : self.cell.value + 1]
        self.codes = sample(self.pair.transformer, self.labels, prefix=prefix, generator=seeded(self.seed))[0].cpu()
        return self._select()

    def _graft(self):
        below = self.cell.value // GRID + 1
        if below == GRID:
            return "there is no row below the last one: mark a cell further up, then graft"
        self.codes = torch.cat([self.codes[:below], self._encode(self.other.value)[below:]])
        return self._select()

    def _draw(self):
        cell, code, surprise = self.cell.value, self.code.value, self._surprise(self.codes)
        self._show(draw_surprise(surprise, self.codes, cell, self.top, self.UNIT))
        candidates = variants(self.pair.vqvae, self.codes, cell, torch.arange(self.K))
        self.cells.show(candidates[code : code + 1], cell)
        self.palette.show(crop(candidates, cell), code)
        changed = int((self.codes != self.original).sum())
        now = f"log-likelihood {-surprise.sum():.1f} nats, before {-self.before:.1f}"
        return f"{CLASS_NAMES[int(self.labels)]}, {changed} code{'s' * (changed != 1)} changed: {now}"
