"""What all panels share, for ipywidgets 7.7 and 8: controls at the left, the picture and a line of status at the right.

A picture is an `Image` widget whose bytes are replaced, so that nothing flickers and the page doesn't jump. A front end
would swallow an error in a callback: here it is shown in the line of status and kept in ``panel.error``.
"""

import base64
import contextlib
import html
import random
import time
from pathlib import Path

import IPython
import torch

from vqlib import checkpoints, data
from vqlib.checks import check_kinds
from vqlib.notebook.panels.drawing import png_size, still
from vqlib.notebook.panels.frontend import Keys, W, family
from vqlib.pair import Pair, load_pair
from vqlib.training.devices import own_state

UNDER_SLIDERS = {"width": "auto", "margin": "2px 2px 2px 106px"}  # not under their names
LABEL, WIDE = {"description_width": "100px"}, {"width": "320px", "max_width": "98%"}
TO_PLAY = "A still picture: run all cells to play with it."
GONE = "The kernel that moved this panel is gone. Run all cells to play with it again."
NOTE = f"""<style>.vqlib-gone {{display: none}} .jupyter-widgets-disconnected > .vqlib-gone {{display: block}}</style>
<b>{GONE}</b>"""
_LOADED = {}  # names of weights -> (the files they were in, what was loaded)


def slider(description, value, low, high, step=1):
    """A slider for numbers low … high: for floats if the step is one."""
    kind = W.FloatSlider if isinstance(step, float) else W.IntSlider
    return kind(value=value, min=low, max=high, step=step, description=description, style=LABEL, layout=WIDE)


def choice(description, value, options):
    """A slider over named values, a list of (name, value)."""
    return W.SelectionSlider(value=value, options=options, description=description, style=LABEL, layout=WIDE)


def class_slider(label):
    return choice("class", label, [(name, label) for label, name in enumerate(data.CLASS_NAMES)])


def temperature_slider():
    return slider("temperature", 0.8, 0.0, 2.0, 0.1)


def button(description, icon, tooltip):
    return W.Button(description=description, icon=icon, tooltip=tooltip, layout=UNDER_SLIDERS)


def row(*children, **layout):
    return W.HBox(children, layout={"flex_flow": "row wrap", "align_items": "center"} | layout)


def more(*children):
    """Controls that are folded away at first."""
    folded = W.Accordion(children=[W.VBox(children)], selected_index=None, layout=WIDE)
    folded.set_title(0, "More")
    return folded


def shared(load, *names):
    """What ``load()`` gives, loaded once while the files with weights of these names stay the same.

    So all panels share one copy of the weights, and of what the sampler lays out for them.
    """
    files = [(path, path.stat().st_mtime_ns) for path in map(checkpoints.find, names) if path.is_file()]
    if _LOADED.get(names, (None,))[0] != files:
        _LOADED[names] = files, load()
    return _LOADED[names][1]


def running_cell():
    """Which cell of a notebook runs now, and the number of this run: (str, int); (None, 0) outside a notebook."""
    shell = IPython.get_ipython()
    if not hasattr(shell, "kernel"):
        return None, 0
    metadata = shell.get_parent().get("metadata", {})
    return metadata.get("cellId") or shell.history_manager.input_hist_raw[-1], shell.execution_count  # not all send ids


@contextlib.contextmanager
def one_thread():
    """Within it PyTorch computes on one thread.

    What a panel computes is small. A second thread would gain little, and while it waits for work it would take a core
    from the browser that draws the result.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Panel:
    """The base of all panels. A cell that ends with the panel shows it; so does ``panel.widget``, in a front end.

    ``panel.error`` is None, or what the last move raised. ``panel.close()`` frees the panel. When
    its cell runs again and makes a panel, the old one is closed, too. A subclass makes its controls in ``_build``,
    which takes the panel's arguments and ends with the first picture.
    """

    beside = None  # how wide the results are that stand beside the controls, if that isn't the picture's width
    _standing = {}  # cell -> (number of its last run that made panels, those)

    def __init__(self, *args, **kwargs):
        self.error, self.status = None, W.HTML("&nbsp;")
        self.image = W.Image(format="png", layout={"display": "none"}).add_class("vqlib-picture")  # hidden at first
        self.controls = W.VBox(layout={"flex": "0 1 330px", "margin": "0 8px 0 0", "align_items": "flex-start"})
        self.pictures = row(self.image, align_items="flex-start")
        self.results = W.VBox([self.pictures, self.status], layout={"min_width": "0"})
        gone = W.HTML(NOTE).add_class("vqlib-gone")
        self.widget = row(self.controls, self.results, Keys(), gone, align_items="flex-start")
        self.widget.add_class("vqlib-panel")
        self._parts = [self.widget]  # what `close` frees
        self._close_earlier()
        self._guard(lambda: self._build(*args, **kwargs))

    def _close_earlier(self):
        cell, run = running_cell()
        if cell is None:
            return
        earlier, standing = Panel._standing.get(cell, (run, []))
        if earlier != run:
            for panel in standing:
                panel.close()
            standing = []
        Panel._standing[cell] = run, [*standing, self]

    def close(self):
        """Take the panel off the page, and free what it holds. It can't be shown again."""
        for widget in [widget for part in self._parts for widget in family(part)]:
            widget.close()
        vars(self).clear()  # notebooks keep what their cells have shown
        self.error, self.widget, self._parts = None, None, []

    def _repr_mimebundle_(self, include=None, exclude=None):
        """What a notebook shows: the widget; a still picture of it, for pages without a kernel; else a line of text."""
        shown, metadata = {"text/plain": f"{type(self).__name__}: a panel. {TO_PLAY}"}, {}
        if self.widget is not None:
            view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
            shown["application/vnd.jupyter.widget-view+json"] = view
            if self.image.value:
                png = still(self._stills(), TO_PLAY)
                shown["image/png"] = base64.b64encode(png).decode()
                metadata["image/png"] = dict(zip(("width", "height"), png_size(png), strict=True))
        return shown, metadata

    def _stills(self):
        """The PNGs that a still picture of this panel consists of."""
        return [self.image.value]

    def _guard(self, action):
        """Run an action, and show the words that it returns, if any, or its error."""
        began = time.perf_counter()
        try:
            with one_thread(), own_state("cpu"):  # whatever the reader has set
                words = action()
            self._grey()
            self.error = None
            if words is not None:
                self.status.value = f"{words} · {1000 * (time.perf_counter() - began):.0f} ms"
        except Exception as error:
            self.error = error
            kept = " (The picture is the one from before.)" if self.image.value else ""
            self.status.value = f"<b>{type(error).__name__}:</b> {html.escape(str(error))}{kept}"

    def _grey(self):
        """Disable the controls that would change nothing now."""

    def _on_move(self, action, *controls):
        for control in controls:
            control.observe(lambda change: self._guard(action), names="value")

    def _on_click(self, button, action):
        button.on_click(lambda button: self._guard(action))

    def _show(self, png):
        width = f"{png_size(png)[0]}px"
        if (layout := self.image.layout).width != width:
            layout.width, layout.max_width, layout.display = width, "calc(100% - 4px)", None
            self.results.layout.flex = f"1 1 {self.beside or width}"  # where there is less room, it stands below
        self.image.value = png

    def _set_pair(self, pair):
        """Keep the pair given, or what `load_pair` finds."""
        self.pair = shared(load_pair, "vqvae", "transformer") if pair is None else pair
        check_kinds(pair=(self.pair, Pair))

    def _decoder_switch(self):
        """Buttons for the decoders that draw the pair's codes. Where there is no crisp one for them, they say why."""
        own = getattr(self.pair.vqvae.decoder, "info", {}).get("recipe", {}).get("name", "soft")
        self.pairs, why = {own: self.pair}, ""
        places = [checkpoints.find("crisp"), checkpoints.find("crisp", shipped=True)]
        if path := getattr(self.pair.vqvae, "info", {}).get("path"):  # beside the tokenizer is where its own one lies
            places = [p for p in [Path(path).with_name("crisp.safetensors")] if p.is_file()] + places
        for path in places if own != "crisp" else ():
            try:
                decoder = checkpoints.load_decoder("crisp", path, vqvae=self.pair.vqvae)
            except (OSError, ValueError) as error:
                why = why or str(error)
            else:
                self.pairs["crisp"] = self.pair.drawn_by(decoder.to(self.pair.vqvae.quantizer.codebook))
                why = "The codes stay, only the drawing changes"
                break
        names, one = list(self.pairs), len(self.pairs) == 1
        look = {"style": {"button_width": "70px"}, "layout": UNDER_SLIDERS}
        self.decoder = W.ToggleButtons(options=names, tooltips=[why] * len(names), disabled=one, **look)
        return self.decoder

    def _drawn(self):
        """The pair with the decoder that is switched on."""
        return self.pairs[self.decoder.value]

    def _test_pictures(self, number):
        """A slider over the embedded test pictures."""
        self.tests = data.load_mini("test")
        self.number = slider("test picture", number, 0, len(self.tests) - 1)

    def _image(self, number):
        """A test picture: (1, 1, 28, 28) in [-1, 1]."""
        return data.to_images(self.tests.pixels[number : number + 1])

    def _seed_controls(self, seed):
        """A slider for the seed, and a button that moves it."""
        self.seed = slider("seed", seed, 0, 999)
        self.new_seed = button("new seed", "random", "Draw new noise")
        self.new_seed.on_click(self._move_seed)
        return self.seed, self.new_seed

    def _move_seed(self, button):
        self.seed.value = (self.seed.value + random.randrange(1, 1000)) % 1000  # never the same again

    def _grey_seed(self, without_effect):
        self.seed.disabled = self.new_seed.disabled = without_effect

    def _play_controls(self, description, first, last, interval):
        """A slider for steps 0 … last, and a button that plays them, tied together in the front end."""
        self.play = W.Play(value=first, min=0, max=last, interval=interval, description="play")
        self.step = slider(description, first, 0, last)
        self.link = W.jslink((self.play, "value"), (self.step, "value"))
        self._parts.append(self.link)
        self.play.layout.margin = UNDER_SLIDERS["margin"]
        return self.step, self.play
