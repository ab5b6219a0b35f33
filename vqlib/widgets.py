"""The interactive panels (notebooks 02 and 05), for ipywidgets 7.7 and 8. Nothing else in vqlib imports Jupyter.

The computing and the drawing is in `vqlib.interactive`. Here are only controls, and what happens when one moves. A
picture is an `Image` widget whose bytes are replaced: nothing flickers, and the page doesn't jump. An error in a
callback, which a front end would swallow, is shown in the panel in words and kept in ``panel.error``.
"""

import base64
import html
import itertools
import random
import time
import uuid
from pathlib import Path

import torch

from vqlib import checkpoints, data
from vqlib import interactive as compute
from vqlib.sampling import code_log_probs, sample
from vqlib.tokens import CODES_PER_IMAGE, NUM_CODES
from vqlib.transformer import eval_mode
from vqlib.vqvae import GRID

try:
    import ipywidgets as W
except ImportError as error:
    raise ImportError("the panels need ipywidgets: pip install ipywidgets") from error

CLASSES = [(name, label) for label, name in enumerate(data.CLASS_NAMES)]


def _slider(kind, description, value, **options):
    return kind(value=value, description=description, style={"description_width": "105px"},
                layout=W.Layout(width="380px", max_width="98%"), **options)


def _button(description, icon, tooltip):
    return W.Button(description=description, icon=icon, tooltip=tooltip, layout=W.Layout(width="auto"))


def _row(*children):
    return W.HBox(children, layout=W.Layout(flex_flow="row wrap", align_items="center"))


def _more(*children):
    """Controls that are folded away at first."""
    folded = W.Accordion(children=[W.VBox(children)], selected_index=None)
    folded.set_title(0, "More")
    return folded


class Panel:
    """What all panels share. Show ``panel.widget``; ``panel.error`` is None, or what the last move raised."""

    def __init__(self, *args, **kwargs):
        self.error, self.status = None, W.HTML("&nbsp;")
        self.image = W.Image(format="png")
        self.widget = W.VBox([self.status])
        self._guard(lambda: self._build(*args, **kwargs))

    def _guard(self, action):
        began = time.perf_counter()
        try:
            words = action()
            self.error = None
            if words is not None:
                self.status.value = f"{words} · {1000 * (time.perf_counter() - began):.0f} ms"
        except Exception as error:
            self.error = error
            kept = " (The picture is the one from before.)" if self.image.value else ""
            self.status.value = f"<b>{type(error).__name__}:</b> {html.escape(str(error))}{kept}"

    def _on_move(self, action, *controls):
        for control in controls:
            control.observe(lambda change: self._guard(action), names="value")

    def _on_click(self, button, action):
        button.on_click(lambda button: self._guard(action))

    def _show(self, png):
        width, height = compute.png_size(png)
        if self.image.layout.width != f"{width}px":
            self.image.layout.width, self.image.layout.max_width = f"{width}px", "calc(100% - 4px)"
        self.image.value = png

    def _models(self, transformer, vqvae):
        """The pair given, or what `checkpoints` would load: its errors say what to run."""
        self.vqvae = vqvae if vqvae is not None else checkpoints.load_vqvae()
        self.transformer = transformer if transformer is not None else checkpoints.load_transformer(vqvae=self.vqvae)

    def _seed(self, value=0):
        """A slider for the seed, and a button that moves it."""
        self.seed = _slider(W.IntSlider, "seed", value, min=0, max=999)
        self.new_seed = _button("new seed", "random", "Draw new noise")
        self.new_seed.on_click(lambda button: setattr(
            self.seed, "value", (self.seed.value + random.randrange(1, 1000)) % 1000))  # never the same again
        return _row(self.seed, self.new_seed)


class SamplingStudio(Panel):
    """Sample one class live. The noise is held fixed for a seed, so that a knob changes only what that knob does.

    The Transformer's weights are laid out once: where they change, make a new panel.
    """

    def _build(self, transformer=None, vqvae=None, judge=None, critic=None, label=6, n=4, seed=0):
        self._models(transformer, vqvae)
        with eval_mode(self.transformer):
            self.stepper = self.transformer.stepper()
        self.judge = judge if judge is not None else checkpoints.load_classifier("judge")
        self.critic = critic if critic is not None else checkpoints.load_classifier("critic")
        self.label = _slider(W.SelectionSlider, "class", label, options=CLASSES)
        self.temperature = _slider(W.FloatSlider, "temperature", 0.8, min=0.0, max=2.0, step=0.1)
        self.guidance = _slider(W.FloatSlider, "guidance", 1.0, min=0.0, max=5.0, step=0.5)
        self.top_k = _slider(W.IntSlider, "top-k (64: all)", NUM_CODES, min=1, max=NUM_CODES)
        self.top_p = _slider(W.FloatSlider, "top-p (1: all)", 1.0, min=0.05, max=1.0, step=0.05)
        self.n = _slider(W.IntSlider, "how many", n, min=1, max=16)
        self.draws = _slider(W.SelectionSlider, "rerank", 1, options=[("off", 1), ("best half", 2),
                                                                    ("best quarter", 4), ("best eighth", 8)])
        seed_row = self._seed(seed)
        self.save = _button("save as PNG", "save", "Write this strip into the folder that the kernel runs in")
        self._on_move(self._update, self.label, self.temperature, self.guidance, self.top_k, self.top_p, self.n,
                      self.draws, self.seed)
        self._on_click(self.save, self._save)
        self.widget.children = [self.label, self.temperature,
                                _more(self.guidance, self.top_k, self.top_p, self.n, self.draws, seed_row,
                                      _row(self.save)),
                                self.image, self.status]
        return self._update()

    def _update(self):
        knobs = {"temperature": self.temperature.value, "guidance": self.guidance.value, "top_p": self.top_p.value,
                 "top_k": self.top_k.value if self.top_k.value < NUM_CODES else None}
        strip = compute.write_strip(self.transformer, self.vqvae, self.judge, self.label.value, self.n.value,
                                    self.seed.value, self.critic, self.draws.value, stepper=self.stepper, **knobs)
        self._show(compute.draw_strip(strip, self.label.value))
        name = data.CLASS_NAMES[self.label.value]
        off = {"guidance": 1, "top_p": 1, "top_k": None}
        set_knobs = [f"{knob}{value:g}" for knob, value in knobs.items() if off.get(knob) != value]
        chosen = [f"best-of-{self.draws.value}"] if self.draws.value > 1 else []
        self.stem = "-".join([name.lower().replace(" ", "-").replace("/", "-"), *set_knobs, f"seed{self.seed.value}",
                              *chosen])
        greedy = "; at temperature 0 all are the same, and the seed does nothing" if not self.temperature.value else ""
        right = int((strip.verdicts == self.label.value).sum())
        return f"the judge sees {name} in {right} of {self.n.value}{greedy}"

    def _save(self):
        names = itertools.chain([self.stem], (f"{self.stem}-{i}" for i in itertools.count(2)))
        path = next(path for path in (Path(f"{name}.png") for name in names) if not path.exists())
        path.write_bytes(self.image.value)
        return f"saved as {html.escape(str(path.resolve()))}"


class TokenByToken(Panel):
    """Watch one picture being written: what could come next, how sure the model is, and where a head looks."""

    def _build(self, transformer=None, vqvae=None, label=9, seed=0):
        self._models(transformer, vqvae)
        self.usual = compute.usual_codes(self.vqvae, data.load_sample("train"))
        config = self.transformer.config
        self.play = W.Play(value=0, min=0, max=CODES_PER_IMAGE, interval=250, description="play")
        self.step = _slider(W.IntSlider, "codes written", 0, min=0, max=CODES_PER_IMAGE)
        self.label = _slider(W.SelectionSlider, "class", label, options=CLASSES)
        self.temperature = _slider(W.FloatSlider, "temperature", 0.8, min=0.0, max=2.0, step=0.1)
        self.layer = _slider(W.IntSlider, "layer", 0, min=0, max=config.n_layers - 1)
        self.head = _slider(W.IntSlider, "head", 0, min=0, max=config.n_heads - 1)
        seed_row = self._seed(seed)
        self.link = W.jslink((self.play, "value"), (self.step, "value"))
        self._on_move(self._write, self.label, self.temperature, self.seed)
        self._on_move(self._draw, self.step, self.layer, self.head)
        self.widget.children = [_row(self.play, self.step), self.label, _row(self.layer, self.head),
                                _more(self.temperature, seed_row), self.image, self.status]
        return self._write()

    def _write(self):
        self.trace = compute.trace(self.transformer, self.vqvae, self.usual, self.label.value, self.temperature.value,
                                   self.seed.value)
        return self._draw()

    def _draw(self):
        step = self.step.value
        self._show(compute.draw_trace(self.trace, step, self.layer.value, self.head.value, self.vqvae))
        return ("all is written" if step == CODES_PER_IMAGE else
                "dimmed: not yet written, filled with the class's most usual codes")


class CodeEditor(Panel):
    """Change the codes of a test picture one by one, by mouse (two grids of buttons) or by keyboard (two sliders)."""

    UNIT, PATCH = 32, 28  # pixels on the page of a cell, and of a patch in the palette

    def _build(self, transformer=None, vqvae=None, number=4):
        self._models(transformer, vqvae)
        self.pictures = data.load_sample("test")
        last = len(self.pictures) - 1
        self.number = _slider(W.IntSlider, "test picture", number, min=0, max=last)
        self.cell = _slider(W.IntSlider, "cell", 24, min=0, max=CODES_PER_IMAGE - 1)
        self.code = _slider(W.IntSlider, "its code", 0, min=0, max=NUM_CODES - 1)
        self.other = _slider(W.IntSlider, "second picture", (number + 10) % (last + 1), min=0, max=last)
        self.resample = _button("resample from here on", "random", "Write the cells after the marked one anew, T = 0.8")
        self.graft = _button("graft its lower rows", "level-down", "The rows below the marked cell, from this picture")
        self.reset = _button("reset", "undo", "Back to the test picture's own codes")
        self.second = W.Image(format="png", layout=W.Layout(width="56px", height="56px"))
        self.prefix, self.style, self.seed, self.quiet = f"vq{uuid.uuid4().hex[:8]}", W.HTML(), 0, False
        self.cells, grid = self._buttons("cell", GRID, self.UNIT, self.cell)
        self.palette, patches = self._buttons("code", 8, self.PATCH, self.code)
        self._on_move(self._open, self.number)
        self._on_move(self._select, self.cell)
        self._on_move(self._put, self.code)
        self._on_move(self._show_second, self.other)
        for button, action in ((self.resample, self._resample), (self.graft, self._graft), (self.reset, self._open)):
            self._on_click(button, action)
        self.widget.children = [self.number, _row(self.cell, self.code),
                                _row(W.VBox([W.HTML("click a cell"), grid]), W.VBox([W.HTML("pick its code"), patches]),
                                     self.image),
                                _row(self.resample, self.reset), _row(self.other, self.second, self.graft),
                                W.HTML(self._fixed_style()), self.style, self.status]
        self._show_second()
        return self._open()

    def _buttons(self, name, side, unit, slider):
        layout = {"width": f"{unit}px", "height": f"{unit}px", "min_width": "0", "padding": "0", "margin": "0"}
        buttons = [W.Button(layout=W.Layout(**layout), tooltip=f"{name} {i}") for i in range(side * side)]
        for i, button in enumerate(buttons):
            button.add_class(f"{self.prefix}-{name}").add_class(f"{self.prefix}-{name}-{i}")
            button.on_click(lambda button, i=i: setattr(slider, "value", i))
        grid = W.GridBox(buttons, layout=W.Layout(grid_template_columns=f"repeat({side}, {unit}px)", grid_gap="0",
                                                  width=f"{side * unit}px", margin="0 16px 8px 0"))
        return buttons, grid

    def _fixed_style(self):
        """Buttons can't hold pictures: each shows its part of one, which is their common background."""
        rules = []
        for name, side, unit in (("cell", GRID, self.UNIT), ("code", 8, self.PATCH)):
            rules.append(f".{self.prefix}-{name} {{background-size: {side * unit}px; image-rendering: pixelated; "
                         f"border: 0; border-radius: 0; box-shadow: inset 0 0 0 0.5px #80808060}}"
                         f".{self.prefix}-{name}:focus {{box-shadow: inset 0 0 0 2px #56B4E9 !important}}")
            rules += [f".{self.prefix}-{name}-{i} {{background-position: -{i % side * unit}px -{i // side * unit}px}}"
                      for i in range(side * side)]
        return f"<style>{''.join(rules)}</style>"

    def _open(self):
        index = slice(self.number.value, self.number.value + 1)
        self.labels = self.pictures.labels[index]
        self.codes = self.original = self.vqvae.encode(self._image(index))[0].cpu()
        surprise = self._surprise(self.codes)
        self.top, self.before = surprise.max(), surprise.sum()
        return self._select()

    def _image(self, index):
        return data.to_images(self.pictures.pixels[index]).to(next(self.vqvae.parameters()))

    def _surprise(self, codes):
        return -code_log_probs(self.transformer, codes[None], self.labels)[0].reshape(GRID, GRID).cpu()

    def _select(self):
        self._quietly(self.code, int(self.codes.flatten()[self.cell.value]))
        return self._draw()

    def _quietly(self, slider, value):
        """Move a slider to what is already so: its observers have nothing to do."""
        self.quiet = True
        slider.value = value
        self.quiet = False

    def _put(self):
        if self.quiet:
            return None
        codes = self.codes.flatten().clone()
        codes[self.cell.value] = self.code.value
        self.codes = codes.reshape(GRID, GRID)
        return self._draw()

    def _show_second(self):
        self.second.value = compute.sprite(self._image(slice(self.other.value, self.other.value + 1)).cpu(), 1, 2)

    def _resample(self):
        if self.cell.value == CODES_PER_IMAGE - 1:
            return "nothing comes after the last cell: mark another, then resample"
        self.seed += 1
        prefix = self.codes.flatten()[None, :self.cell.value + 1]
        self.codes = sample(self.transformer, self.labels, prefix=prefix, generator=compute.seeded(self.seed))[0].cpu()
        return self._select()

    def _graft(self):
        below, index = self.cell.value // GRID + 1, slice(self.other.value, self.other.value + 1)
        if below == GRID:
            return "there is no row below the last: mark a cell further up, then graft"
        lower = self.vqvae.encode(self._image(index))[0].cpu()[below:]
        self.codes = torch.cat([self.codes[:below], lower])
        return self._select()

    def _draw(self):
        cell, surprise = self.cell.value, self._surprise(self.codes)
        self._show(compute.draw_surprise(surprise, self.codes, cell, self.top, self.UNIT))
        candidates = compute.variants(self.vqvae, self.codes, cell, torch.arange(NUM_CODES))
        chosen = int(self.codes.flatten()[cell])
        grounds = {"cell": (compute.sprite(candidates[chosen:chosen + 1], 1, self.UNIT // compute.CELL), cell),
                   "code": (compute.sprite(compute.crop(candidates, cell), 8, self.PATCH // compute.CELL), chosen)}
        self.style.value = "<style>" + "".join(
            f".{self.prefix}-{name} {{background-image: url(data:image/png;base64,{base64.b64encode(png).decode()})}}"
            f".{self.prefix}-{name}-{marked} {{outline: 3px solid {compute.MARK} !important; "
            f"outline-offset: -3px}}"
            for name, (png, marked) in grounds.items()) + "</style>"
        changed = int((self.codes != self.original).sum())
        return (f"{data.CLASS_NAMES[int(self.labels)]}, {changed} code{'s' * (changed != 1)} changed: log-likelihood "
                f"{-surprise.sum():.1f} nats, before {-self.before:.1f}")


class Completion(Panel):
    """Keep the upper rows of a test picture, and let the Transformer write the rest, eight times."""

    def _build(self, transformer=None, vqvae=None, number=4, rows=3, n=8, seed=0):
        self._models(transformer, vqvae)
        with eval_mode(self.transformer):
            self.stepper = self.transformer.stepper()
        self.pictures, self.how_many = data.load_sample("test"), n
        self.number = _slider(W.IntSlider, "test picture", number, min=0, max=len(self.pictures) - 1)
        self.rows = _slider(W.IntSlider, "rows to keep", rows, min=0, max=GRID)
        self.temperature = _slider(W.FloatSlider, "temperature", 0.8, min=0.0, max=2.0, step=0.1)
        seed_row = self._seed(seed)
        self._on_move(self._update, self.number, self.rows, self.temperature, self.seed)
        self.widget.children = [self.number, self.rows, _more(self.temperature, seed_row), self.image, self.status]
        return self._update()

    def _update(self):
        index = slice(self.number.value, self.number.value + 1)
        original, label = data.to_images(self.pictures.pixels[index]), int(self.pictures.labels[index])
        codes = self.vqvae.encode(original.to(next(self.vqvae.parameters())))
        written = compute.complete(self.transformer, self.vqvae, codes[0], label, self.rows.value, self.how_many,
                                   self.temperature.value, self.seed.value, self.stepper)
        images = torch.cat([original, self.vqvae.decode(codes).cpu(), written])
        names = ["original", "its copy", *(str(i + 1) for i in range(self.how_many))]
        self._show(compute.draw_completions(images, self.rows.value, names))
        return f"{data.CLASS_NAMES[label]}: the upper {self.rows.value} of 7 rows are the picture's own"


class QuantizerWalk(Panel):
    """A codebook in the plane, step by step: which codes find points, which die, and what revives them."""

    STEPS = 60

    def _build(self, points, K=8, seed=0):
        self.points = points
        self.play = W.Play(value=0, min=0, max=self.STEPS, interval=200, description="play")
        self.step = _slider(W.IntSlider, "step", 0, min=0, max=self.STEPS)
        self.start = W.Dropdown(description="codes start", options=compute.STARTS,
                                style={"description_width": "105px"}, layout=W.Layout(width="300px"))
        self.revive = _slider(W.FloatSlider, "revive below", 0.0, min=0.0, max=0.5, step=0.05)
        self.K = _slider(W.IntSlider, "K, codes", K, min=2, max=16)
        self.decay = _slider(W.FloatSlider, "decay", 0.9, min=0.5, max=0.99, step=0.01)
        seed_row = self._seed(seed)
        self.link = W.jslink((self.play, "value"), (self.step, "value"))
        self._on_move(self._walk, self.start, self.revive, self.K, self.decay, self.seed)
        self._on_move(self._draw, self.step)
        self.widget.children = [_row(self.play, self.step), self.start, self.revive,
                                _more(self.K, self.decay, seed_row), self.image, self.status]
        return self._walk()

    def _walk(self):
        self.walk = compute.quantizer_walk(self.points, self.K.value, self.start.value, self.decay.value,
                                           self.revive.value, self.STEPS, self.seed.value)
        return self._draw()

    def _draw(self):
        self._show(compute.draw_walk(self.points, self.walk, self.step.value))
        return "points and ground have the colour of their nearest code"
