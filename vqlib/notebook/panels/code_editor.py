"""The code editor: change the codes of a test picture one by one, and see what the model thinks of it."""

import torch
import torch.nn.functional as F

from vqlib.data import CLASS_NAMES
from vqlib.notebook.panels import base
from vqlib.notebook.panels.base import Panel, slider
from vqlib.notebook.panels.drawing import CELL, Sheet, sprite
from vqlib.notebook.panels.frontend import Grid, W
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


def draw_surprise(surprise, codes, cell, top, unit=28):
    """How unexpected each code is, as PNG: (7, 7) nats ≥ 0 on a scale up to ``top``, and (7, 7) codes."""
    sheet, (row, column) = Sheet(GRID * unit, GRID * unit + 22), divmod(cell, GRID)
    sheet.text(4, 4, f"surprise: {surprise.sum():.0f} nats; yellow {top:.1f}", size=10)
    sheet.numbers(0, 22, surprise, top, unit, codes.flatten())
    sheet.box(unit * column, 22 + unit * row, unit, unit)
    return sheet.png()


class CodeEditor(Panel):
    """Change the codes of a test picture one by one: choose a cell in the picture, then a code in the palette.

    pair: a `Pair`, by default what `load_pair` finds. number: which of the embedded test pictures to begin with.
    """

    UNIT = 28  # pixels on the page for each cell
    beside = "600px"  # the picture, the palette and the surprise

    def _build(self, pair=None, number=4):
        self._set_pair(pair)
        self._test_pictures(number)
        self.K, last = self.pair.vqvae.config.num_codes, len(self.tests) - 1
        self.seed, self.quiet = 0, False
        self.cell = slider("cell", 24, 0, CODES_PER_IMAGE - 1)
        self.code = slider("its code", 0, 0, self.K - 1)
        self.other = slider("second picture", (number + 10) % (last + 1), 0, last)
        self.resample = base.button("resample from here on", "random", "Sample the cells after the marked one, T = 0.8")
        self.graft = base.button("graft its lower rows", "level-down", "Take the rows below the marked cell from it")
        self.reset = base.button("reset", "undo", "Back to the test picture's own codes")
        self.second = W.Image(format="png", layout={"width": "56px", "height": "56px"})
        apart = {"margin": "0 8px 8px 0"}
        self.cells = Grid(name="cell", count=CODES_PER_IMAGE, columns=GRID, unit=self.UNIT, layout=apart)
        self.palette = Grid(name="code", count=self.K, columns=8, unit=24, layout=apart)
        for grid, its_slider in ((self.cells, self.cell), (self.palette, self.code)):
            W.link((its_slider, "value"), (grid, "index"))
        self._on_move(self._open, self.number)
        self._on_move(self._select, self.cell)
        self._on_move(self._put, self.code)
        self._on_move(self._show_second, self.other)
        self._on_click(self.resample, self._resample)
        self._on_click(self.graft, self._graft)
        self._on_click(self.reset, self._open)
        self.graft.layout.margin = "2px"
        graft = base.row(self.second, self.graft, margin="0 0 0 106px")
        self.controls.children = [self.number, self.cell, self.code, self.resample, self.reset, self.other, graft]
        self.pictures.children = [self.cells, self.palette, self.image]
        self._show_second()
        return self._open()

    def _encode(self, number):
        return self.pair.encode(self._image(number))[0].cpu()

    def _open(self):
        self.labels = self.tests.labels[self.number.value : self.number.value + 1]
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
        self.seed += 1
        prefix = self.codes.flatten()[None, : self.cell.value + 1]
        self.codes = sample(self.pair.transformer, self.labels, prefix=prefix, generator=seeded(self.seed))[0].cpu()
        return self._select()

    def _graft(self):
        below = self.cell.value // GRID + 1
        self.codes = torch.cat([self.codes[:below], self._encode(self.other.value)[below:]])
        return self._select()

    def _draw(self):
        cell, code, surprise = self.cell.value, self.code.value, self._surprise(self.codes)
        self._show(draw_surprise(surprise, self.codes, cell, self.top, self.UNIT))
        candidates = variants(self.pair.vqvae, self.codes, cell, torch.arange(self.K))
        self.cells.png = sprite(candidates[code : code + 1], 1, self.UNIT // CELL)
        self.palette.png = sprite(crop(candidates, cell), 8, self.palette.unit // CELL)
        changed = int((self.codes != self.original).sum())
        now = f"log-likelihood {-surprise.sum():.1f} nats, before {-self.before:.1f}"
        return f"{CLASS_NAMES[int(self.labels)]}, {changed} code{'s' * (changed != 1)} changed: {now}"

    def _grey(self):
        self.resample.disabled = self.cell.value == CODES_PER_IMAGE - 1  # nothing comes after it
        self.graft.disabled = self.cell.value // GRID == GRID - 1  # there is no row below
        self.reset.disabled = torch.equal(self.codes, self.original)

    def _stills(self):
        return [self.cells.png, self.palette.png, self.image.value]
