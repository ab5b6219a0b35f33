"""Interactive panels (notebook 05). ipywidgets 7.7 and 8; nothing else in vqlib imports Jupyter.

A picture is an `Image` widget whose bytes are replaced: nothing flickers, and the page doesn't jump. An error in a
callback is shown in the panel in words, and kept in ``panel.error``.
"""

import io
import time

import ipywidgets as W
import torch
from PIL import Image

from vqlib.data import CLASS_NAMES
from vqlib.plots import tile
from vqlib.sampling import sample


def same_noise(transformer, vqvae, labels, temperature, seed, **knobs):
    """One picture for each label, all with the noise of the same ``seed``: (len(labels), 1, 28, 28) in [-1, 1]."""
    codes = [sample(transformer, torch.tensor([label]), temperature=temperature,
                    generator=torch.Generator().manual_seed(seed), **knobs) for label in labels]
    return vqvae.decode(torch.cat(codes)).cpu()


def strip_png(images, columns=8, zoom=3):
    """Pictures in rows as PNG bytes, enlarged by whole pixels: (N, 1, 28, 28) float in [-1, 1]."""
    grid = torch.as_tensor(tile(images, columns))
    picture = Image.fromarray(((grid.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy())
    stream = io.BytesIO()
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(stream, "PNG")
    return stream.getvalue()


class SamplingPanel:
    """Sliders for class and temperature; each move writes the pictures anew, from the same noise.

    Show ``panel.widget``. ``panel.error`` is None, or what the last move raised.
    """

    def __init__(self, transformer, vqvae, n=8, seed=0):
        self.transformer, self.vqvae, self.n, self.error = transformer, vqvae, n, None
        wide = {"style": {"description_width": "90px"}, "layout": W.Layout(width="420px", max_width="100%")}
        self.label = W.SelectionSlider(options=[(name, i) for i, name in enumerate(CLASS_NAMES)], value=6,
                                       description="class", **wide)
        self.temperature = W.FloatSlider(value=0.8, min=0.0, max=2.0, step=0.1, description="temperature", **wide)
        self.seed = W.IntSlider(value=seed, min=0, max=99, description="seed", **wide)
        self.image = W.Image(format="png", layout=W.Layout(width=f"{30 * 3 * n}px", max_width="100%"))
        self.status = W.HTML("&nbsp;")
        controls = (self.label, self.temperature, self.seed)
        for control in controls:
            control.observe(self._update, names="value")
        self.widget = W.VBox([*controls, self.image, self.status])
        self._update()

    def _update(self, change=None):
        began = time.perf_counter()
        try:
            labels = torch.full((self.n,), self.label.value)
            codes = sample(self.transformer, labels, temperature=self.temperature.value,
                           generator=torch.Generator().manual_seed(self.seed.value))
            self.image.value = strip_png(self.vqvae.decode(codes).cpu(), columns=self.n)
            self.error = None
            self.status.value = f"{1000 * (time.perf_counter() - began):.0f} ms"
        except Exception as error:  # a front end swallows what a callback raises: so say it, and keep it
            self.error = error
            self.status.value = f"<b>{type(error).__name__}:</b> {error}"
