"""What all panels share, for ipywidgets 7.7 and 8: controls, the picture, and the line of status below it.

A picture is an `Image` widget whose bytes are replaced, so that nothing flickers and the page doesn't jump. A front end
would swallow an error in a callback: here it is shown in the line of status and kept in ``panel.error``.
"""

import html
import random
import time

from vqlib import data
from vqlib.checks import check_kinds
from vqlib.notebook.panels.drawing import png_size
from vqlib.pair import Pair, load_pair

try:
    import ipywidgets as W
except ImportError as error:
    raise ImportError("the panels need ipywidgets: pip install ipywidgets") from error

LABEL, WIDE = {"description_width": "105px"}, {"width": "380px", "max_width": "98%"}


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
    return W.Button(description=description, icon=icon, tooltip=tooltip, layout={"width": "auto"})


def row(*children):
    return W.HBox(children, layout={"flex_flow": "row wrap", "align_items": "center"})


def more(*children):
    """Controls that are folded away at first."""
    folded = W.Accordion(children=[W.VBox(children)], selected_index=None)
    folded.set_title(0, "More")
    return folded


class Panel:
    """The base of all panels. Show ``panel.widget``; ``panel.error`` is None, or what the last move raised.

    A subclass makes its controls in ``_build``, which takes the panel's arguments and ends with the first picture.
    """

    def __init__(self, *args, **kwargs):
        self.error, self.status = None, W.HTML("&nbsp;")
        self.image = W.Image(format="png")
        self.widget = W.VBox([self.status])
        self._guard(lambda: self._build(*args, **kwargs))

    def _guard(self, action):
        """Run an action, and show the words that it returns, if any, or its error."""
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
        width = f"{png_size(png)[0]}px"
        if self.image.layout.width != width:
            self.image.layout.width, self.image.layout.max_width = width, "calc(100% - 4px)"
        self.image.value = png

    def _set_pair(self, pair):
        """Keep the pair given, or what `load_pair` finds."""
        self.pair = load_pair() if pair is None else pair
        check_kinds(pair=(self.pair, Pair))

    def _test_pictures(self, number):
        """A slider over the embedded test pictures."""
        self.pictures = data.load_mini("test")
        self.number = slider("test picture", number, 0, len(self.pictures) - 1)

    def _image(self, number):
        """A test picture: (1, 1, 28, 28) in [-1, 1]."""
        return data.to_images(self.pictures.pixels[number : number + 1])

    def _seed_row(self, seed):
        """A slider for the seed, and a button that moves it."""
        self.seed = slider("seed", seed, 0, 999)
        self.new_seed = button("new seed", "random", "Draw new noise")
        self.new_seed.on_click(self._move_seed)
        return row(self.seed, self.new_seed)

    def _move_seed(self, button):
        self.seed.value = (self.seed.value + random.randrange(1, 1000)) % 1000  # never the same again

    def _play_row(self, description, last, interval):
        """A slider for steps 0 … last, and a button that plays them, tied together in the front end."""
        self.play = W.Play(value=0, min=0, max=last, interval=interval, description="play")
        self.step = slider(description, 0, 0, last)
        self.link = W.jslink((self.play, "value"), (self.step, "value"))
        return row(self.play, self.step)
