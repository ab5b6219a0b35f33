"""The caption studio: write a caption, watch clothes appear, and see which of its words came true."""

import functools

import torch

from vqlib import captions, checkpoints
from vqlib.contrastive import similarity
from vqlib.data import SIZE
from vqlib.evaluation import facts_found
from vqlib.notebook.panels import base
from vqlib.notebook.panels.base import Panel, slider
from vqlib.notebook.panels.drawing import FAINT, RIGHT, WRONG, gallery
from vqlib.notebook.panels.frontend import W
from vqlib.pair import load_pair, seeded
from vqlib.sampling import sample
from vqlib.vqvae import GRID

BATCH = 128  # so many pictures are written together: with 64 candidates for each there can be 1024


def unseen(facts, words=1):
    """The pairs of words in (4,) facts that training never saw together, of `captions.withheld`: ["bright dress"]."""
    pairs = torch.where(torch.eye(3, 4, dtype=torch.bool), facts, -1)  # each of the other facts alone …
    pairs[:, 3] = facts[3]  # … with the class
    kept = captions.withheld(pairs, words).tolist()
    return [f"{captions.KINDS[k][facts[k]]} {captions.CLASSES[facts[3]]}" for k in range(3) if kept[k]]


def write_candidates(pair, caption, n, candidates=1, seed=0, **knobs):
    """The codes of ``candidates`` times n pictures for one caption: (candidates, n, 7, 7) int64, on the CPU.

    The same seed gives the same n pictures first, however many candidates follow. knobs: those of `sampling.sample`.
    """
    start = captions.text_tokens([caption], pair.transformer.config.vocabulary).expand(candidates * n, -1)
    generator = seeded(seed)  # one for all, so the noise is that of a single batch
    codes = [sample(pair.transformer, part, generator=generator, **knobs).cpu() for part in start.split(BATCH)]
    return torch.cat(codes).reshape(candidates, n, GRID, GRID)


def draw_best(pair, codes, caption, contrastive=None):
    """Draw candidates, (m, n, 7, 7) codes, and keep the one of each group of m that fits best: (n, 1, 28, 28) images.

    Picture i has candidates i, n + i, 2n + i and so on. So with one candidate each the pictures are the first n, and a
    larger group holds the smaller one: its best can't fit worse. The candidates are compared as this pair draws them.
    With m = 1 nothing is chosen, and the contrastive pair may be None.
    """
    m, n = codes.shape[:2]
    images = torch.cat([pair.decode(part) for part in codes.flatten(0, 1).split(BATCH)])
    if m == 1:
        return images
    best = similarity(contrastive, images, [caption] * len(images)).reshape(m, n).argmax(0)
    return images[best * n + torch.arange(n)]


def draw_found(images, facts, asked, columns=4, zoom=4):
    """Images as PNG, and below each the words found in it: (N, 4) facts, held against the four that were asked for.

    A word is green if it was asked for, orange if another was, and faint if nothing was. That a picture is upright goes
    without saying, unless it should be upside down.
    """
    sheet, places = gallery(images, columns, zoom, foot=36)
    for (x, y), row in zip(places, facts.tolist(), strict=True):
        colours = [FAINT if a < 0 else RIGHT if f == a else WRONG for f, a in zip(row, asked, strict=True)]
        words = [(kind[fact], colour) for kind, fact, colour in zip(captions.KINDS, row, colours, strict=True)]
        x, y, said = x + SIZE * zoom / 2, y + SIZE * zoom, 2 if row[2] or asked[2] else 3
        sheet.words(x, y + 3, words[:2], 10)
        sheet.words(x, y + 17, words[said:], 10)
    return sheet.png()


def options(kind):
    """What a dropdown offers of a kind of words: all of them, and to say nothing, which means "upright"."""
    return [("—", -1)] * (kind is not captions.TURNED) + [(word, fact) for fact, word in enumerate(kind)]


class CaptionStudio(Panel):
    """Write a caption, by dropdowns or freely, and see which of its words the pictures follow.

    pair: a `Pair` that writes for captions, by default what ``load_pair(captions=True)`` finds. judge: a classifier, by
    default what `load_classifier` finds. contrastive: a `ContrastivePair`, by default what `load_contrastive` finds,
    once there are candidates to choose from. caption, n, seed: where the caption, the number of pictures and the seed
    begin.
    """

    def _build(self, pair=None, judge=None, contrastive=None, caption="a bright slim dress", n=8, seed=0):
        load = functools.partial(load_pair, captions=True)
        self._set_pair(base.shared(load, "vqvae", "captions") if pair is None else pair)
        if not self.pair.transformer.config.num_words:
            raise ValueError("pair must write for captions, and this one writes for classes: load_pair(captions=True)")
        load = functools.partial(checkpoints.load_classifier, "judge")
        self.judge, self.contrastive = base.shared(load, "judge") if judge is None else judge, contrastive
        look, self.following = {"style": base.LABEL, "layout": base.WIDE}, False
        names, said = ("brightness", "size", "orientation", "class"), captions.read_captions([caption])[0].tolist()
        self.words = [
            W.Dropdown(description=name, options=options(kind), value=fact, **look)
            for name, kind, fact in zip(names, captions.KINDS, said, strict=True)
        ]
        self.brightness, self.size, self.turned, self.label = self.words
        self.text = W.Text(description="caption", value=caption, continuous_update=False, **look)
        self.temperature, self.guidance = base.temperature_slider(), slider("guidance", 1.0, 0.0, 5.0, 0.5)
        self.candidates = base.choice("best of", 1, [(str(m), m) for m in (1, 4, 16, 64)])
        self.n = slider("how many", n, 1, 16)
        hidden = self.temperature, self.guidance, self.candidates, self.n
        seed_controls, decoder = self._seed_controls(seed), self._decoder_switch()
        for dropdown in self.words:
            dropdown.observe(self._say, names="value")
        self._on_move(self._write, self.text, self.seed, *hidden)
        self._on_move(self._draw, decoder)
        self.controls.children = [*self.words, self.text, *seed_controls, decoder, base.more(*hidden)]
        return self._write()

    def _say(self, change):
        """Write what the dropdowns say into the line of text, unless they have just followed it."""
        if not self.following:
            facts = torch.tensor([[dropdown.value for dropdown in self.words]])
            self.text.value = captions.write_captions(facts)[0]  # which draws it

    def _follow(self, facts):
        self.following = True
        for dropdown, fact in zip(self.words, facts, strict=True):
            dropdown.value = fact
        self.following = False

    def _write(self):
        caption, candidates = self.text.value, 1 if self._greedy() else self.candidates.value
        facts = captions.read_captions([caption])[0]
        self._follow(facts.tolist())
        if candidates > 1 and self.contrastive is None:
            self.contrastive = base.shared(checkpoints.load_contrastive, "contrastive")
        knobs = {"temperature": self.temperature.value, "guidance": self.guidance.value}
        self.codes = write_candidates(self.pair, caption, self.n.value, candidates, self.seed.value, **knobs)
        self.caption, self.facts = caption, facts
        return self._draw()

    def _draw(self):
        images = draw_best(self._drawn(), self.codes, self.caption, self.contrastive)
        asked = self.facts.expand(len(images), -1)
        seen = facts_found(images, asked, self.judge)
        self._show(draw_found(images, seen, self.facts.tolist()))
        right = ((seen == asked) | (asked < 0)).all(1).sum()
        recipe = getattr(self.pair.transformer, "info", {}).get("recipe", {})
        never = unseen(self.facts, recipe.get("withheld", 1))
        new = f"; never seen in training: {', '.join(never)}" * bool(never)
        greedy = "; only the likeliest code is kept, so all are the same, and the seed does nothing" * self._greedy()
        return f'"{self.caption}": {right} of {len(images)} are right in every word{new}{greedy}'

    def _greedy(self):
        return self.temperature.value == 0

    def _grey(self):
        self._grey_seed(self._greedy())
        self.candidates.disabled = self._greedy()
