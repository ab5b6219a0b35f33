"""Completion: keep the upper rows of a test picture, and let the Transformer write the rest."""

import torch

from vqlib.data import CLASS_NAMES, SIZE
from vqlib.notebook.panels import base
from vqlib.notebook.panels.base import Panel, slider
from vqlib.notebook.panels.drawing import CELL, FAINT, MARK, gallery
from vqlib.pair import seeded
from vqlib.sampling import sample
from vqlib.vqvae import GRID


def draw_completions(images, rows, names, columns=5, zoom=4):
    """Named images as PNG; a line shows how many rows of each were given."""
    sheet, places = gallery(images, columns, zoom, foot=22)
    for (x, y), name in zip(places, names, strict=True):
        sheet.text(x + SIZE * zoom / 2, y + SIZE * zoom + 3, name, FAINT, 10, "ma")
        if name not in ("original", "its copy") and 0 < rows < GRID:
            sheet.box(x, y + rows * CELL * zoom - 1, SIZE * zoom, 2, MARK, 1)
    return sheet.png()


class Completion(Panel):
    """Keep the upper rows of a test picture, and let the Transformer write the rest, ``n`` times.

    pair: a `Pair`, by default what `load_pair` finds. number, rows, seed: where the picture (one of the embedded test
    set), the number of rows and the seed begin.
    """

    def _build(self, pair=None, number=4, rows=3, n=8, seed=0):
        self._set_pair(pair)
        self._test_pictures(number)
        self.n = n
        self.rows, self.temperature = slider("rows to keep", rows, 0, GRID), base.temperature_slider()
        seed_controls = self._seed_controls(seed)
        decoder = self._decoder_switch()
        self._on_move(self._write, self.number, self.rows, self.temperature, self.seed)
        self._on_move(self._draw, decoder)
        self.controls.children = [self.number, self.rows, *seed_controls, decoder, base.more(self.temperature)]
        return self._write()

    def _write(self):
        """The codes of `Pair.complete`, kept for the other decoder."""
        self.original, label = self._image(self.number.value), int(self.tests.labels[self.number.value])
        own = self.pair.encode(self.original)
        given = own.flatten(1)[:, : GRID * self.rows.value].expand(self.n, -1)
        knobs = {"temperature": self.temperature.value, "generator": seeded(self.seed.value)}
        written = sample(self.pair.transformer, torch.full((self.n,), label), prefix=given, **knobs)
        self.codes, self.label = torch.cat([own, written]), label
        return self._draw()

    def _draw(self):
        images, rows = torch.cat([self.original, self._drawn().decode(self.codes)]), self.rows.value
        self._show(draw_completions(images, rows, ["original", "its copy", *(str(i + 1) for i in range(self.n))]))
        return f"{CLASS_NAMES[self.label]}: the upper {rows} of 7 rows are the picture's own"

    def _grey(self):
        self.temperature.disabled = self.rows.value == GRID  # there is nothing left to write
        self._grey_seed(self.rows.value == GRID or self.temperature.value == 0)
