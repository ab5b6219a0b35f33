"""Completion: keep the upper rows of a test picture, and let the Transformer write the rest."""

import torch

from vqlib.data import CLASS_NAMES, SIZE
from vqlib.notebook.panels import base
from vqlib.notebook.panels.base import Panel, slider
from vqlib.notebook.panels.drawing import CELL, FAINT, MARK, gallery
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
        self._on_move(self._update, self.number, self.rows, self.temperature, self.seed)
        self.controls.children = [self.number, self.rows, *seed_controls, base.more(self.temperature)]
        return self._update()

    def _update(self):
        number, rows = self.number.value, self.rows.value
        original, label = self._image(number), int(self.tests.labels[number])
        knobs = {"n": self.n, "temperature": self.temperature.value, "seed": self.seed.value}
        written = self.pair.complete(original, label, rows=rows, **knobs)
        images = torch.cat([original, self.pair.reconstruct(original), written])
        self._show(draw_completions(images, rows, ["original", "its copy", *(str(i + 1) for i in range(self.n))]))
        return f"{CLASS_NAMES[label]}: the upper {rows} of 7 rows are the picture's own"

    def _grey(self):
        self.temperature.disabled = self.rows.value == GRID  # there is nothing left to write
        self._grey_seed(self.rows.value == GRID or self.temperature.value == 0)
