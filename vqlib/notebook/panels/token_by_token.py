"""Token by token: watch one picture being written, with what the model expects and where it looks."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from vqlib import data
from vqlib.baselines import Histogram
from vqlib.notebook.panels import base
from vqlib.notebook.panels.base import Panel, slider
from vqlib.notebook.panels.code_editor import crop, variants
from vqlib.notebook.panels.drawing import CELL, FAINT, GROUND, MARK, TEXT, Sheet
from vqlib.pair import seeded
from vqlib.sampling import sample
from vqlib.tokens import CODES_PER_IMAGE, Vocabulary, encode_pixels
from vqlib.transformer import eval_mode
from vqlib.vqvae import GRID


def usual_codes(vqvae, dataset):
    """The code that each class has most often in each cell of a `Dataset`: (10, 7, 7) int64."""
    codes, vocabulary = encode_pixels(vqvae, dataset.pixels), Vocabulary(vqvae.config.num_codes)
    histogram = Histogram.fit(codes, dataset.labels, vocabulary=vocabulary)
    return histogram.log_probs.argmax(-1).reshape(-1, GRID, GRID)


class Trace(NamedTuple):
    """How one picture was written. Choice t, in 0…48, is made after t codes."""

    label: int
    codes: torch.Tensor  # (49,) int64
    ranking: torch.Tensor  # (49, K) int64: the codes for each choice, the likeliest first
    probabilities: torch.Tensor  # (49, K) float: of each choice, at the temperature asked for
    entropy: torch.Tensor  # (49,) float, nats: of that distribution
    attention: torch.Tensor  # (layers, heads, 49, 49) float: the weights of choice t on the class and codes 0…t-1
    stages: torch.Tensor  # (50, 7, 7) int64: after t codes, with the class's usual codes in the cells still to come
    pictures: torch.Tensor  # (50, 1, 28, 28): the stages, decoded


@torch.no_grad()
def trace(pair, usual, label, temperature=0.8, seed=0):
    """Sample one picture of class ``label`` and record how it came about: a `Trace`, on the CPU.

    usual: (10, 7, 7) int64 from `usual_codes`.
    """
    transformer, labels = pair.transformer, torch.tensor([label])
    K, vocabulary = transformer.config.num_codes, transformer.config.vocabulary
    codes = sample(transformer, labels, temperature=temperature, generator=seeded(seed))
    tokens = vocabulary.to_sequences(codes, labels)[:, :-2]  # the class and 48 codes: what the 49 choices saw
    with eval_mode(transformer):
        logits, attention = transformer(tokens)[0, :, :K].float().cpu(), transformer.attention_maps(tokens)
    if temperature == 0:
        probabilities = F.one_hot(logits.argmax(-1), K).float()
    else:
        probabilities = (logits / temperature).softmax(-1)
    entropy = -torch.special.xlogy(probabilities, probabilities).sum(-1)
    written = torch.arange(CODES_PER_IMAGE) < torch.arange(CODES_PER_IMAGE + 1)[:, None]  # (50, 49)
    stages = torch.where(written, codes.cpu().flatten(), usual[label].flatten()).reshape(-1, GRID, GRID)
    ranking, attention = logits.argsort(descending=True), attention[:, 0].float().cpu()
    written = codes[0].flatten().cpu()
    return Trace(label, written, ranking, probabilities, entropy, attention, stages, pair.decode(stages))


def draw_trace(trace, t, layer, head, vqvae, zoom=6):
    """A `Trace` after t codes, in 0…49, as PNG: the picture so far, entropy, attention, the likeliest next codes.

    layer and head count from 0.
    """
    side, sheet = data.SIZE * zoom, Sheet(3 * data.SIZE * zoom + 4 * 16, data.SIZE * zoom + 134)
    xs, y, unit = [16 + i * (side + 16) for i in range(3)], 22, CELL * zoom
    written = (torch.arange(CODES_PER_IMAGE) < t).reshape(GRID, GRID)
    bright, shown = written.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1), trace.pictures[t][0]
    sheet.text(xs[0], 4, f"{t} of 49 codes written")
    sheet.picture(xs[0], y, torch.where(bright, shown, (shown + 1) * 0.3 - 1), zoom)
    so_far, top = trace.entropy[:t].sum(), trace.entropy.max()
    sheet.text(xs[1], 4, f"entropy: {so_far:.0f} nats so far, yellow {top:.1f}", size=9)
    entropy = trace.entropy.reshape(GRID, GRID).masked_fill(~written, torch.nan)
    sheet.numbers(xs[1], y, entropy, top, unit, trace.codes[:t])
    if t == CODES_PER_IMAGE:
        sheet.text(xs[2], 4, "all is written")
        return sheet.png()
    weights = trace.attention[layer, head, t]
    sheet.text(xs[2], 4, f"attention: {weights[0]:.0%} on class, yellow {weights.max():.0%}", size=9)
    seen = F.pad(weights[1:], (0, 1)).reshape(GRID, GRID).masked_fill(~written, torch.nan)
    sheet.numbers(xs[2], y, seen, weights.max(), unit)
    for x in xs:
        sheet.box(x + t % GRID * unit, y + t // GRID * unit, unit, unit)
    _draw_candidates(sheet, trace, t, vqvae, xs[0], y + side + 14)
    return sheet.png()


def _draw_candidates(sheet, trace, t, vqvae, x, y):
    """The likeliest codes for the next cell: what each would draw there, its number, and how likely it is."""
    likely, drawn = trace.ranking[t, :10].clone(), int(trace.codes[t])
    if drawn not in likely:
        likely[-1] = drawn
    sheet.text(x, y, "the likeliest codes for the marked cell, what each would draw there, and (framed) the one drawn")
    crops = crop(variants(vqvae, trace.stages[t], t, likely), t, around=CELL)
    for i, (patch, code) in enumerate(zip(crops, likely.tolist(), strict=True)):
        left, chosen, p = x + i * 52, code == drawn, trace.probabilities[t, code].item()
        colour = TEXT if chosen else FAINT
        sheet.picture(left, y + 20, patch[0], 3)
        sheet.box(left, y + 20, 36, 36, MARK if chosen else GROUND, 2 if chosen else 0)
        sheet.box(left, y + 60, max(1, round(36 * p)), 4, None, 0, MARK)
        sheet.text(left, y + 67, f"code {code}", colour, 9)
        sheet.text(left, y + 79, f"{p:.0%}" if p >= 0.01 else "< 1%", colour, 9)


class TokenByToken(Panel):
    """Watch one picture being written: which codes could come next, how sure the model is, where a head looks.

    pair: a `Pair`, by default what `load_pair` finds. label, seed: where the class and the seed begin.
    """

    def _build(self, pair=None, label=9, seed=0):
        self._set_pair(pair)
        self.usual = usual_codes(self.pair.vqvae, data.load_mini("train"))
        config = self.pair.transformer.config
        play = self._play_controls("codes written", 24, CODES_PER_IMAGE, 250)
        self.label, self.temperature = base.class_slider(label), base.temperature_slider()
        self.layer = slider("layer", 0, 0, config.n_layers - 1)
        self.head = slider("head", 0, 0, config.n_heads - 1)
        decoder = self._decoder_switch()
        below = *self._seed_controls(seed), decoder, base.more(self.temperature)
        self._on_move(self._write, self.label, self.temperature, self.seed)
        self._on_move(self._draw, self.step, self.layer, self.head)
        self._on_move(self._redraw, decoder)
        self.controls.children = [*play, self.label, self.layer, self.head, *below]
        return self._write()

    def _write(self):
        self.trace = trace(self._drawn(), self.usual, self.label.value, self.temperature.value, self.seed.value)
        return self._draw()

    def _redraw(self):
        self.trace = self.trace._replace(pictures=self._drawn().decode(self.trace.stages))
        return self._draw()

    def _draw(self):
        step = self.step.value
        self._show(draw_trace(self.trace, step, self.layer.value, self.head.value, self._drawn().vqvae))
        if step == 0:
            return "nothing is written yet: every head sees the class alone"
        if step == CODES_PER_IMAGE:
            return "all is written: no head looks anywhere any more"
        return "dimmed cells are still to come: they show this class's most frequent codes"

    def _grey(self):
        self.layer.disabled = self.head.disabled = self.step.value in (0, CODES_PER_IMAGE)  # no codes to look at
        self._grey_seed(self.temperature.value == 0)
