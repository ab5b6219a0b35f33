"""The quantizer's walk: a codebook in the plane learns step by step, and one sees which codes die."""

from typing import NamedTuple

import matplotlib
import torch

from vqlib.checks import check_whole
from vqlib.notebook.panels import base
from vqlib.notebook.panels.base import LABEL, Panel, W, slider
from vqlib.notebook.panels.drawing import Sheet
from vqlib.pair import seeded
from vqlib.vqvae import VectorQuantizer, VQVAEConfig

STARTS = ("to one side", "random points", "k-means")


class Walk(NamedTuple):
    codebooks: torch.Tensor  # (steps + 1, K, D): before the first step, and after each
    revived: torch.Tensor  # (steps + 1,) int64: how many codes were restarted up to there


def quantizer_walk(points, K=8, start="to one side", decay=0.9, revive_below=0.0, steps=60, seed=0):
    """A quantizer's moving-average steps on points (N, D): a `Walk`.

    Raises ValueError if start is none of `STARTS`, or if there are more codes than points.
    """
    check_whole("K", K, 1, len(points))
    if start not in STARTS:
        raise ValueError(f"start must be one of {STARTS}, got {start!r}")
    D, generator = points.shape[1], seeded(seed)
    with torch.random.fork_rng(devices=[]):  # the start that it draws is replaced below
        quantizer = VectorQuantizer(VQVAEConfig(num_codes=K, code_dim=D, quantizer="ema"))
    if start == "k-means":
        quantizer.init_from(points, generator)
    else:
        begin = points[torch.randperm(len(points), generator=generator)[:K]]
        if start == "to one side":
            begin = points.amax(0) + 0.3 * torch.randn(K, D, generator=generator)
        quantizer.codebook.copy_(begin)
        quantizer.ema_sum.copy_(begin)
    codebooks, revived = [quantizer.codebook.clone()], [torch.tensor(0)]
    for _ in range(steps):
        more = quantizer.ema_update(points, quantizer.nearest(points), decay, revive_below, generator)
        codebooks.append(quantizer.codebook.clone())
        revived.append(revived[-1] + more)
    return Walk(torch.stack(codebooks), torch.stack(revived))


def draw_walk(points, walk, step, size=380):
    """One step of a `Walk` in the plane as PNG: points (N, 2) and ground in the colour of their nearest code.

    The codes are crosses, black if a point uses them and white if they are dead.
    """
    low, high = points.amin(0), torch.maximum(points.amax(0), walk.codebooks.amax((0, 1)))
    low, span = low - 0.2, (high - low).max().item() + 0.4
    codes, unit, sheet = walk.codebooks[step], size / span, Sheet(size, size + 24)

    def place(positions):
        """Positions in the plane to pixels of the page, with y upwards."""
        x, y = ((positions - low) * unit).unbind(-1)
        return zip(x.tolist(), (size + 24 - y).tolist(), strict=True)

    axis = (torch.arange(size // 2) + 0.5) * 2 / unit
    ground = torch.stack(torch.meshgrid(axis.flip(0), axis, indexing="ij")[::-1], -1) + low  # (y, x, 2)
    colours = torch.from_numpy(matplotlib.colormaps["tab20"](range(len(codes)), bytes=True)[:, :3].copy())
    near = torch.cdist(ground.reshape(-1, 2), codes).argmin(1).reshape(ground.shape[:2])
    sheet.picture(0, 24, (255 - (255 - colours[near].float()) * 0.4).to(torch.uint8), 2)
    mine = torch.cdist(points, codes).argmin(1)
    for (x, y), code in zip(place(points), mine.tolist(), strict=True):
        sheet.box(x - 1.5, y - 1.5, 3, 3, None, 0, tuple(colours[code].tolist()))
    used = torch.bincount(mine, minlength=len(codes)) > 0
    for (x, y), alive in zip(place(codes), used.tolist(), strict=True):
        fill, edge = ("black", "white") if alive else ("white", "black")
        sheet.text(x, y, "✖", fill, 18, "mm", edge)
    count = f"{int(used.sum())} of {len(codes)} codes used (black), the others dead (white)"
    sheet.text(8, 5, f"step {step}: {count}; {int(walk.revived[step])} restarts", size=9)
    return sheet.png()


class QuantizerWalk(Panel):
    """A codebook in the plane, step by step: which codes find points, which die, and what revives them.

    points: (N, 2) float. K, seed: where the number of codes and the seed begin.
    """

    STEPS = 120

    def _build(self, points, K=8, seed=0):
        self.points = points
        play = self._play_controls("step", self.STEPS // 2, self.STEPS, 200)
        self.start = W.Dropdown(description="codes start", options=STARTS, style=LABEL, layout={"width": "300px"})
        self.revive = slider("revive below", 0.0, 0.0, 0.5, 0.05)
        self.K = slider("K, codes", K, 2, max(16, K))
        self.decay = slider("decay", 0.9, 0.5, 0.99, 0.01)
        new_seed = self._seed_controls(seed)
        self._on_move(self._walk, self.start, self.revive, self.K, self.decay, self.seed)
        self._on_move(self._draw, self.step)
        self.controls.children = [*play, self.start, self.revive, *new_seed, base.more(self.K, self.decay)]
        return self._walk()

    def _walk(self):
        knobs = {"start": self.start.value, "decay": self.decay.value, "revive_below": self.revive.value}
        self.walk = quantizer_walk(self.points, self.K.value, steps=self.STEPS, seed=self.seed.value, **knobs)
        return self._draw()

    def _draw(self):
        self._show(draw_walk(self.points, self.walk, self.step.value))
        if self.step.value == 0:
            return "before the first step: what revival and decay do shows from step 1 on"
        return "points and ground have the colour of their nearest code"

    def _grey(self):
        self.revive.disabled = self.decay.disabled = self.step.value == 0
