"""The sampling studio: sample one class live, while the noise stays fixed."""

import functools
import html
import itertools
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from vqlib import checkpoints, files
from vqlib.checks import check_knobs
from vqlib.classifier import classify, rerank
from vqlib.data import CLASS_NAMES, SIZE
from vqlib.notebook.panels import base
from vqlib.notebook.panels.base import Panel, slider
from vqlib.notebook.panels.drawing import FAINT, RIGHT, WRONG, gallery
from vqlib.pair import seeded
from vqlib.sampling import noise_for, start_tokens, write
from vqlib.transformer import eval_mode
from vqlib.vqvae import GRID


class Strip(NamedTuple):
    codes: torch.Tensor  # (n, 7, 7) int64
    images: torch.Tensor  # (n, 1, 28, 28) float in [-1, 1]
    nats_per_code: torch.Tensor  # (n,) float ≥ 0: mean of -log p over the chosen codes, at T = 1, without guidance
    verdicts: torch.Tensor  # (n,) int64: the class that the judge sees


def write_strip(pair, judge, label, n=6, seed=0, critic=None, draws=1, **knobs):
    """Sample ``draws · n`` images of class ``label`` and keep the n that the critic likes best: a `Strip`, on the CPU.

    knobs: those of `sampling.sample`. With draws = 1 nothing is chosen, and the critic may be None.
    Raises ValueError if there is something to choose and no critic, or if `sample` would refuse the knobs.
    """
    if draws > 1 and critic is None:
        raise ValueError(f"choosing {n} of {draws * n} images needs a critic: checkpoints.load_classifier('critic')")
    transformer, knobs = pair.transformer, {"temperature": 0.8, "top_k": None, "top_p": 1.0, "guidance": 1.0} | knobs
    check_knobs(**knobs)
    start = start_tokens(transformer, torch.full((draws * n,), label, device="cpu"), knobs["guidance"])
    noise = noise_for(transformer, len(start), seeded(seed))
    codes, surprise = [], []
    with eval_mode(transformer):  # `sample`, written out, since here the logits are needed, too
        for logits, chosen in write(transformer, start, noise, **knobs):
            codes.append(chosen)
            surprise.append(F.cross_entropy(logits, chosen, reduction="none"))
    codes, nats = torch.stack(codes, 1).reshape(-1, GRID, GRID).cpu(), torch.stack(surprise).mean(0).cpu()
    images = pair.decode(codes)
    if draws > 1:
        best = rerank(critic, images, label, n)
        codes, images, nats = codes[best], images[best], nats[best]
    return Strip(codes, images, nats, classify(judge, images)[0].argmax(1))


def same_noise(pair, labels, temperature, seed, **knobs):
    """One image for each label, all from the noise of the same ``seed``: (len(labels), 1, 28, 28) in [-1, 1]."""
    return torch.cat([pair.generate(label, 1, temperature=temperature, seed=seed, **knobs) for label in labels])


def draw_strip(strip, label, columns=4, zoom=4):
    """A `Strip` as PNG: below each image its nats per code, and the judge's verdict, green if it is right."""
    sheet, places = gallery(strip.images, columns, zoom, foot=36)
    for (x, y), nats, verdict in zip(places, strip.nats_per_code, strip.verdicts, strict=True):
        x, y, colour = x + SIZE * zoom / 2, y + SIZE * zoom, RIGHT if verdict == label else WRONG
        sheet.text(x, y + 3, f"{nats:.2f} nats/code", FAINT, 10, "ma")
        sheet.text(x, y + 17, CLASS_NAMES[verdict], colour, 10, "ma")
    return sheet.png()


class SamplingStudio(Panel):
    """Sample one class live. The noise is fixed for a seed, so that moving a knob shows what this knob does alone.

    pair: a `Pair`, by default what `load_pair` finds. judge, critic: classifiers, by default the shipped ones.
    label, n, seed: where the class, the number of images and the seed begin.
    """

    def _build(self, pair=None, judge=None, critic=None, label=6, n=4, seed=0):
        self._set_pair(pair)
        given = {"judge": judge, "critic": critic}
        self.judge, self.critic = (
            base.shared(functools.partial(checkpoints.load_classifier, name), name) if one is None else one
            for name, one in given.items()
        )
        K = self.pair.transformer.config.num_codes
        self.label, self.temperature = base.class_slider(label), base.temperature_slider()
        self.guidance = slider("guidance", 1.0, 0.0, 5.0, 0.5)
        self.top_k = slider(f"top-k ({K}: all)", K, 1, K)
        self.top_p = slider("top-p (1: all)", 1.0, 0.05, 1.0, 0.05)
        self.n = slider("how many", n, 1, 16)
        ranks = [("off", 1), ("best half", 2), ("best quarter", 4), ("best eighth", 8)]
        self.draws = base.choice("rerank", 1, ranks)
        seed_controls = self._seed_controls(seed)
        self.save = base.button("save as PNG", "save", "Write this strip into the folder that the kernel runs in")
        hidden, decoder = (self.guidance, self.top_k, self.top_p, self.n, self.draws), self._decoder_switch()
        self._on_move(self._write, self.label, self.temperature, *hidden, self.seed)
        self._on_move(self._draw, decoder)
        self._on_click(self.save, self._save)
        self.controls.children = [self.label, self.temperature, *seed_controls, decoder, base.more(*hidden, self.save)]
        return self._write()

    def _write(self):
        label, n, seed, draws = self.label.value, self.n.value, self.seed.value, self.draws.value
        top_k = self.top_k.value if self.top_k.value < self.top_k.max else None
        knobs = {"temperature": self.temperature.value, "guidance": self.guidance.value}
        knobs |= {"top_p": self.top_p.value, "top_k": top_k}
        self.strip = write_strip(self.pair, self.judge, label, n, seed, self.critic, draws, **knobs)
        off = {"guidance": 1, "top_p": 1, "top_k": None}
        turned = [f"{knob}{value:g}" for knob, value in knobs.items() if off.get(knob) != value]
        ending = [f"best-of-{draws}"] * (draws > 1)
        name = CLASS_NAMES[label].lower().replace(" ", "-").replace("/", "-")
        self.stem = "-".join([name, *turned, f"seed{seed}", *ending])
        return self._draw()

    def _draw(self):
        strip, label = self.strip, self.label.value
        if self._drawn() is not self.pair:  # the same clothes, whichever the critic may have chosen
            images = self._drawn().decode(strip.codes)
            strip = strip._replace(images=images, verdicts=classify(self.judge, images)[0].argmax(1))
        self._show(draw_strip(strip, label))
        greedy = "; only the likeliest code is kept, so all are the same, and the seed does nothing" * self._greedy()
        return f"the judge sees {CLASS_NAMES[label]} in {(strip.verdicts == label).sum()} of {len(strip.codes)}{greedy}"

    def _greedy(self):
        return self.temperature.value == 0 or self.top_k.value == 1

    def _grey(self):
        self._grey_seed(self._greedy())
        self.top_p.disabled = self.draws.disabled = self._greedy()
        self.top_k.disabled = self.temperature.value == 0

    def _save(self):
        stem = self.stem + "-crisp" * (self.decoder.value == "crisp")
        names = itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
        path = next(path for path in (Path(f"{name}.png") for name in names) if not path.exists())
        files.replace_file(path, self.image.value)
        return f"saved as {html.escape(str(path.resolve()))}"
