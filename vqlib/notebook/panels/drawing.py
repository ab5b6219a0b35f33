"""Drawing for the panels: from tensors to the bytes of a PNG.

Pictures are enlarged by whole pixels, at twice their size on the page, so they are sharp on dense screens, too.
Text stands on a dark ground of its own, so it can be read in light and dark themes alike.
"""

import functools
import io
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont

from vqlib.data import SIZE
from vqlib.notebook.plots import COLOURS
from vqlib.vqvae import GRID

DENSITY = 2  # pixels of the PNG for each pixel on the page
CELL = SIZE // GRID  # the 4×4 pixels of one code
GAP = 6  # between the pictures of a gallery
GROUND, TEXT, FAINT, MARK, RIGHT, WRONG = "#1b1b1f", "#eceff1", "#9aa4ad", COLOURS[4], "#7fd1ae", "#ff9e80"
NONE = (44, 44, 52)  # a cell without a number


@functools.cache
def _font(size):
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


class Sheet:
    """A dark sheet to draw on, measured in pixels of the page."""

    def __init__(self, width, height):
        self.image = Image.new("RGB", (DENSITY * width, DENSITY * height), GROUND)
        self.draw = ImageDraw.Draw(self.image)

    def text(self, x, y, text, colour=TEXT, size=11, anchor="la", edge=None):
        at, font, stroke = (DENSITY * x, DENSITY * y), _font(DENSITY * size), DENSITY if edge else 0
        self.draw.text(at, text, fill=colour, font=font, anchor=anchor, stroke_width=stroke, stroke_fill=edge)

    def words(self, x, y, words, size=11):
        """Words side by side, each in its own colour, with x in their middle: a list of (word, colour)."""
        widths, space = [_font(DENSITY * size).getlength(word) / DENSITY for word, _ in words], size / 3
        x -= (sum(widths) + space * (len(words) - 1)) / 2
        for (word, colour), width in zip(words, widths, strict=True):
            self.text(x, y, word, colour, size)
            x += width + space

    def picture(self, x, y, values, zoom):
        """values: (H, W) float in [-1, 1], black to white, or (H, W, 3) uint8; each pixel zoom × zoom on the page."""
        if values.ndim == 2:
            values = ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        tile = Image.fromarray(values.numpy()).convert("RGB")
        size = (DENSITY * zoom * tile.width, DENSITY * zoom * tile.height)
        self.image.paste(tile.resize(size, Image.Resampling.NEAREST), (DENSITY * x, DENSITY * y))

    def numbers(self, x, y, values, top, unit, codes=()):
        """A heat map of (7, 7) values in 0 … top, grey for NaN, with cells of ``unit`` pixels and codes over them."""
        share = (values / max(float(top), 1e-9)).clamp(0, 1)
        colours = torch.from_numpy(matplotlib.colormaps["viridis"](share.numpy(), bytes=True)[..., :3].copy())
        colours[values.isnan()] = torch.tensor(NONE, dtype=torch.uint8)
        self.picture(x, y, colours, unit)
        for index, code in enumerate(torch.as_tensor(codes).tolist()):
            row, column = divmod(index, GRID)
            colour = "white" if share[row, column] < 0.6 else "black"
            self.text(x + unit * (column + 0.5), y + unit * (row + 0.5), str(code), colour, 9, "mm")

    def box(self, x, y, width, height, colour=MARK, line=2, fill=None):
        corners = [DENSITY * x, DENSITY * y, DENSITY * (x + width) - 1, DENSITY * (y + height) - 1]
        self.draw.rectangle(corners, fill=fill, outline=colour, width=DENSITY * line)

    def png(self):
        stream = io.BytesIO()
        self.image.save(stream, "PNG", compress_level=1)  # takes a few milliseconds; the default of 6 ten times that
        return stream.getvalue()


def png_size(png):
    """How large the PNG of a `Sheet` is on the page: (width, height) in pixels."""
    return tuple(side // DENSITY for side in Image.open(io.BytesIO(png)).size)


def still(pngs, words):
    """The PNGs of sheets side by side, and a line of words below, as PNG."""
    parts = [Image.open(io.BytesIO(png)) for png in pngs]
    width, height = (sum(p.width for p in parts) // DENSITY + GAP * (len(parts) - 1)), max(p.height for p in parts)
    sheet, x = Sheet(width, height // DENSITY + 24), 0
    for part in parts:
        sheet.image.paste(part, (x, 0))
        x += part.width + GAP * DENSITY
    sheet.text(6, height // DENSITY + 5, words, MARK)
    stream = io.BytesIO()
    sheet.image.quantize(128).save(stream, "PNG", optimize=True)  # it stays in the notebook's file: a third of the size
    return stream.getvalue()


def gallery(images, columns, zoom, foot):
    """Rows of images (N, 1, 28, 28), with ``foot`` pixels of room below each: a `Sheet`, and where each one stands."""
    across, down = SIZE * zoom + GAP, SIZE * zoom + foot
    sheet = Sheet(min(columns, len(images)) * across + GAP, -(-len(images) // columns) * down + GAP)
    places = [(GAP + i % columns * across, GAP + i // columns * down) for i in range(len(images))]
    for image, (x, y) in zip(images, places, strict=True):
        sheet.picture(x, y, image[0], zoom)
    return sheet, places


def sprite(images, columns, zoom):
    """Images (N, 1, h, w) side by side, without gaps, as PNG: the background of a grid of buttons."""
    images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, -len(images) % columns), value=-1.0)  # fill the last row
    grid = rearrange(images, "(r c) 1 h w -> (r h) (c w)", c=columns)
    sheet = Sheet(grid.shape[1] * zoom, grid.shape[0] * zoom)
    sheet.picture(0, 0, grid, zoom)
    return sheet.png()
