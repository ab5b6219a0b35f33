"""What the panels of `vqlib.widgets` compute and draw: pure functions, from tensors to PNG bytes. No front end needed.

Pictures are enlarged by whole pixels, at twice the size at which a wide page shows them: sharp on dense screens too.
Text stands on the pictures' own dark ground, so it is readable in light and dark themes alike.
"""

import functools
import io
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont

from vqlib.classifier import judge, rerank
from vqlib.data import CLASS_NAMES, SIZE
from vqlib.plots import COLOURS
from vqlib.sampling import sample
from vqlib.tokens import CODES_PER_IMAGE, NUM_CODES, Histogram, encode_pixels, to_sequences
from vqlib.transformer import eval_mode
from vqlib.vqvae import GRID, VectorQuantizer, VQVAEConfig

DENSITY = 2  # pixels of the PNG for each pixel on the page
CELL = SIZE // GRID  # a code's own 4×4 pixels
NONE = (44, 44, 52)
GROUND, TEXT, FAINT, MARK, RIGHT, WRONG = "#1b1b1f", "#eceff1", "#9aa4ad", COLOURS[4], "#7fd1ae", "#ff9e80"


# --- computing -------------------------------------------------------------------------------------------------------


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Strip(NamedTuple):
    images: torch.Tensor         # (n, 1, 28, 28) float in [-1, 1]
    nats_per_code: torch.Tensor  # (n,) float ≥ 0: mean -log p of the codes chosen, at T = 1, without guidance
    verdicts: torch.Tensor       # (n,) int64: the class that the judge names


def write_strip(transformer, vqvae, judge_model, label, n=6, seed=0, critic=None, draws=1, **knobs):
    """Write ``draws · n`` pictures of class ``label`` and keep the n that the critic likes best: a `Strip`.

    knobs are those of `sampling.sample`. With draws = 1 nothing is chosen, and the critic may be None.
    Raises ValueError where there is something to choose and no critic.
    """
    if draws > 1 and critic is None:
        raise ValueError(f"choosing {n} of {draws * n} pictures needs a critic: checkpoints.load_classifier('critic')")
    labels = torch.full((draws * n,), label)
    surprise = []  # of each choice (draws · n,)

    def note(t, logits, chosen):
        surprise.append(F.cross_entropy(logits, chosen, reduction="none"))

    codes = sample(transformer, labels, generator=seeded(seed), on_choice=note, **knobs)
    images, nats = vqvae.decode(codes), torch.stack(surprise).mean(0).cpu()
    if draws > 1:
        best = rerank(critic, images, label, n)
        images, nats = images[best.to(images.device)], nats[best.cpu()]
    return Strip(images.cpu(), nats, judge(judge_model, images)[0].argmax(1))


def same_noise(transformer, vqvae, labels, temperature, seed, **knobs):
    """One picture for each label, all with the noise of the same ``seed``: (len(labels), 1, 28, 28) in [-1, 1]."""
    codes = [sample(transformer, torch.tensor([label]), temperature=temperature, generator=seeded(seed), **knobs)
             for label in labels]
    return vqvae.decode(torch.cat(codes)).cpu()


def usual_codes(vqvae, dataset):
    """The code that each class has most often in each cell, over a `Dataset`: (10, 7, 7) int64."""
    histogram = Histogram.fit(encode_pixels(vqvae, dataset.pixels), dataset.labels)
    return histogram.log_probs.argmax(-1).reshape(-1, GRID, GRID)


class Trace(NamedTuple):
    """How one picture was written; t counts the codes that stand before the choice."""

    label: int
    codes: torch.Tensor          # (49,) int64
    ranking: torch.Tensor        # (49, 64) int64: the codes for choice t, likeliest first
    probabilities: torch.Tensor  # (49, 64) float: of choice t, at the temperature asked for
    entropy: torch.Tensor        # (49,) float, nats: of that distribution
    attention: torch.Tensor      # (layers, heads, 49, 49) float: choice t's weights on the class and codes 0…t-1
    stages: torch.Tensor         # (50, 7, 7) int64: after t codes; the cells not yet written hold the usual codes
    pictures: torch.Tensor       # (50, 1, 28, 28): those, decoded


@torch.no_grad()
def trace(transformer, vqvae, usual, label, temperature=0.8, seed=0):
    """Write one picture of class ``label`` and keep what happened on the way: a `Trace`, on the CPU."""
    labels = torch.tensor([label])
    codes = sample(transformer, labels, temperature=temperature, generator=seeded(seed))
    tokens = to_sequences(codes, labels.to(codes.device))[:, :-2]  # class and 48 codes: what the 49 choices saw
    with eval_mode(transformer):
        logits, attention = transformer(tokens)[0, :, :NUM_CODES].float().cpu(), transformer.attention_maps(tokens)
    if temperature == 0:
        probabilities = F.one_hot(logits.argmax(-1), NUM_CODES).float()
    else:
        probabilities = (logits / temperature).softmax(-1)
    entropy = -torch.special.xlogy(probabilities, probabilities).sum(-1)
    written = torch.arange(CODES_PER_IMAGE) < torch.arange(CODES_PER_IMAGE + 1)[:, None]  # (50, 49)
    stages = torch.where(written, codes.cpu().flatten(), usual[label].flatten()).reshape(-1, GRID, GRID)
    return Trace(label, codes[0].flatten().cpu(), logits.argsort(descending=True), probabilities, entropy,
                 attention[:, 0].float().cpu(), stages, vqvae.decode(stages.to(codes.device)).cpu())


def variants(vqvae, codes, cell, candidates):
    """One picture for each code that may stand in a cell: codes (7, 7), cell in 0…48, (n,) -> (n, 1, 28, 28)."""
    changed = codes.flatten().repeat(len(candidates), 1)
    changed[:, cell] = candidates
    device = next(vqvae.parameters()).device
    return vqvae.decode(changed.reshape(-1, GRID, GRID).to(device)).cpu()


def crop(images, cell, around=0):
    """A cell's 4×4 pixels, with ``around`` more on each side, black past the rim: (n, 1, 28, 28) -> (n, 1, h, h)."""
    padded = F.pad(images, (around,) * 4, value=-1.0)
    row, column, side = *divmod(cell, GRID), CELL + 2 * around
    return padded[..., CELL * row:CELL * row + side, CELL * column:CELL * column + side]


def complete(transformer, vqvae, codes, label, rows, n=8, temperature=0.8, seed=0, stepper=None):
    """Keep the upper ``rows`` of a picture's codes (7, 7), and write the others n times: (n, 1, 28, 28) in [-1, 1]."""
    prefix = codes.flatten()[:GRID * rows].repeat(n, 1)
    written = sample(transformer, torch.full((n,), label), temperature, generator=seeded(seed), prefix=prefix,
                     stepper=stepper)
    return vqvae.decode(written).cpu()


class Walk(NamedTuple):
    codebooks: torch.Tensor  # (steps + 1, K, D): before the first step, and after each
    revived: torch.Tensor    # (steps + 1,) int64: how many codes were restarted, up to there


STARTS = ("to one side", "random points", "k-means")


def quantizer_walk(points, K=8, start="to one side", decay=0.9, revive_below=0.0, steps=60, seed=0):
    """A quantizer's moving-average steps on points (N, D): a `Walk`.

    Raises ValueError where start is none of `STARTS`, or where there are more codes than points.
    """
    if start not in STARTS or K > len(points):
        raise ValueError(f"start must be one of {STARTS}, and K at most the number of points, {len(points)}; "
                         f"got {start!r} and K = {K}")
    D, generator = points.shape[1], seeded(seed)
    with torch.random.fork_rng(devices=[]):  # what it draws for a start is replaced below
        quantizer = VectorQuantizer(VQVAEConfig(num_codes=K, code_dim=D, ema=True))
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


# --- drawing ---------------------------------------------------------------------------------------------------------


@functools.cache
def _font(size):
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


class Sheet:
    """A dark sheet to draw on, measured in pixels of the page."""

    def __init__(self, width, height):
        self.image = Image.new("RGB", (DENSITY * width, DENSITY * height), GROUND)
        self.draw = ImageDraw.Draw(self.image)

    def text(self, x, y, text, colour=TEXT, size=11, anchor="la", edge=None):
        self.draw.text((DENSITY * x, DENSITY * y), text, fill=colour, font=_font(DENSITY * size), anchor=anchor,
                       stroke_width=DENSITY if edge else 0, stroke_fill=edge)

    def picture(self, x, y, values, zoom):
        """values: (H, W) float in [-1, 1], black to white, or (H, W, 3) uint8; each pixel zoom × zoom on the page."""
        if values.ndim == 2:
            values = ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        tile = Image.fromarray(values.numpy()).convert("RGB")
        size = (DENSITY * zoom * tile.width, DENSITY * zoom * tile.height)
        self.image.paste(tile.resize(size, Image.Resampling.NEAREST), (DENSITY * x, DENSITY * y))

    def numbers(self, x, y, values, top, unit, codes=()):
        """A heat map of (7, 7) values, 0 … top, NaN grey, in cells of ``unit`` pixels; codes are written into them."""
        share = (values / max(float(top), 1e-9)).clamp(0, 1)
        colours = torch.from_numpy(matplotlib.colormaps["viridis"](share.numpy(), bytes=True)[..., :3].copy())
        colours[values.isnan()] = torch.tensor(NONE, dtype=torch.uint8)
        self.picture(x, y, colours, unit)
        for index, code in enumerate(torch.as_tensor(codes).tolist()):
            row, column = divmod(index, GRID)
            self.text(x + unit * (column + 0.5), y + unit * (row + 0.5), str(code),
                      "white" if share[row, column] < 0.6 else "black", 9, "mm")

    def box(self, x, y, width, height, colour=MARK, line=2, fill=None):
        corners = [DENSITY * x, DENSITY * y, DENSITY * (x + width) - 1, DENSITY * (y + height) - 1]
        self.draw.rectangle(corners, fill=fill, outline=colour, width=DENSITY * line)

    def png(self):
        stream = io.BytesIO()
        self.image.save(stream, "PNG", compress_level=1)  # a few milliseconds; 6, the default, takes ten times that
        return stream.getvalue()


def png_size(png):
    """How large a PNG of a `Sheet` is to be shown: (width, height) in pixels of the page."""
    return tuple(side // DENSITY for side in Image.open(io.BytesIO(png)).size)


def draw_strip(strip, label, columns=4, zoom=4):
    """A `Strip` as PNG: under each picture its nats per code and what the judge sees, green where it is right."""
    size, n = SIZE * zoom, len(strip.images)
    sheet = Sheet(min(n, columns) * (size + 6) + 6, -(-n // columns) * (size + 36) + 6)
    for i, (image, nats, verdict) in enumerate(zip(*strip, strict=True)):
        x, y = 6 + i % columns * (size + 6), 6 + i // columns * (size + 36)
        sheet.picture(x, y, image[0], zoom)
        sheet.text(x + size / 2, y + size + 3, f"{nats:.2f} nats/code", FAINT, 10, "ma")
        sheet.text(x + size / 2, y + size + 17, CLASS_NAMES[verdict], RIGHT if verdict == label else WRONG, 10, "ma")
    return sheet.png()


def draw_trace(trace, t, layer, head, vqvae, zoom=6):
    """Choice ``t`` of a `Trace` as PNG: the picture so far, entropy, attention, candidates.

    t: in 0…49; at 49 all is written. layer and head count from 0.
    """
    side, sheet = SIZE * zoom, Sheet(3 * SIZE * zoom + 4 * 16, SIZE * zoom + 134)
    xs, y, cell = [16 + i * (side + 16) for i in range(3)], 22, CELL * zoom
    written = (torch.arange(CODES_PER_IMAGE) < t).reshape(GRID, GRID)
    bright, shown = written.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1), trace.pictures[t][0]
    sheet.text(xs[0], 4, f"{t} of 49 codes written")
    sheet.picture(xs[0], y, torch.where(bright, shown, (shown + 1) * 0.3 - 1), zoom)
    so_far, top = trace.entropy[:t].sum(), trace.entropy.max()
    sheet.text(xs[1], 4, f"entropy: {so_far:.0f} nats so far, yellow {top:.1f}", size=9)
    entropy = trace.entropy.reshape(GRID, GRID).masked_fill(~written, torch.nan)
    sheet.numbers(xs[1], y, entropy, top, cell, trace.codes[:t])
    if t < CODES_PER_IMAGE:
        weights = trace.attention[layer, head, t]
        sheet.text(xs[2], 4, f"attention: {weights[0]:.0%} on class, yellow {weights.max():.0%}", size=9)
        seen = F.pad(weights[1:], (0, 1)).reshape(GRID, GRID).masked_fill(~written, torch.nan)
        sheet.numbers(xs[2], y, seen, weights.max(), cell)
        for x in xs:
            sheet.box(x + t % GRID * cell, y + t // GRID * cell, cell, cell)
        _draw_candidates(sheet, trace, t, vqvae, xs[0], y + side + 14)
    else:
        sheet.text(xs[2], 4, "all is written")
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
        sheet.picture(left, y + 20, patch[0], 3)
        sheet.box(left, y + 20, 36, 36, MARK if chosen else GROUND, 2 if chosen else 0)
        sheet.box(left, y + 60, max(1, round(36 * p)), 4, None, 0, MARK)
        sheet.text(left, y + 67, f"code {code}", TEXT if chosen else FAINT, 9)
        sheet.text(left, y + 79, f"{p:.0%}" if p >= 0.01 else "< 1%", TEXT if chosen else FAINT, 9)


def draw_surprise(surprise, codes, cell, top, unit=32):
    """How unexpected each code of a picture is, as PNG: (7, 7) nats ≥ 0 on a scale up to ``top``; (7, 7) codes."""
    sheet, (row, column) = Sheet(GRID * unit, GRID * unit + 22), divmod(cell, GRID)
    sheet.text(4, 4, f"surprise: {surprise.sum():.0f} nats; yellow: {top:.1f} or more", size=10)
    sheet.numbers(0, 22, surprise, top, unit, codes.flatten())
    sheet.box(unit * column, 22 + unit * row, unit, unit)
    return sheet.png()


def sprite(images, columns, zoom):
    """Small pictures side by side as PNG, without frames, each pixel zoom × zoom: for the grounds of buttons."""
    grid = rearrange(images, "(r c) 1 h w -> (r h) (c w)", c=columns)
    sheet = Sheet(grid.shape[1] * zoom, grid.shape[0] * zoom)
    sheet.picture(0, 0, grid, zoom)
    return sheet.png()


def draw_completions(images, rows, names, columns=5, zoom=4):
    """Pictures in rows as PNG, each with its name; a line shows how far they were given."""
    size = SIZE * zoom
    sheet = Sheet(min(columns, len(images)) * (size + 6) + 6, -(-len(images) // columns) * (size + 22) + 6)
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        x, y = 6 + i % columns * (size + 6), 6 + i // columns * (size + 22)
        sheet.picture(x, y, image[0], zoom)
        sheet.text(x + size / 2, y + size + 3, name, FAINT, 10, "ma")
        if name not in ("original", "its copy") and 0 < rows < GRID:
            sheet.box(x, y + rows * CELL * zoom - 1, size, 2, MARK, 1)
    return sheet.png()


def draw_walk(points, walk, step, size=380):
    """A `Walk` in the plane as PNG: points (N, 2), ground and points in the colour of their code.

    Codes are crosses, black where used, white where dead.
    """
    low, high = points.amin(0), torch.maximum(points.amax(0), walk.codebooks.amax((0, 1)))
    low, span = low - 0.2, (high - low).max().item() + 0.4
    codes, unit, sheet = walk.codebooks[step], size / span, Sheet(size, size + 24)

    def place(positions):
        """Positions in the plane to pixels of the page, y upwards."""
        x, y = ((positions - low) * unit).unbind(-1)
        return zip(x.tolist(), (size + 24 - y).tolist(), strict=True)

    axis = (torch.arange(size // 2) + 0.5) * 2 / unit
    ground = torch.stack(torch.meshgrid(axis.flip(0), axis, indexing="ij")[::-1], -1) + low  # (y, x, 2), y upwards
    colours = torch.from_numpy(matplotlib.colormaps["tab20"](range(len(codes)), bytes=True)[:, :3].copy())
    near = torch.cdist(ground.reshape(-1, 2), codes).argmin(1).reshape(ground.shape[:2])
    sheet.picture(0, 24, (255 - (255 - colours[near].float()) * 0.4).to(torch.uint8), 2)
    mine = torch.cdist(points, codes).argmin(1)
    for (x, y), code in zip(place(points), mine.tolist(), strict=True):
        sheet.box(x - 1.5, y - 1.5, 3, 3, None, 0, tuple(colours[code].tolist()))
    used = torch.bincount(mine, minlength=len(codes)) > 0
    for (x, y), alive in zip(place(codes), used.tolist(), strict=True):
        sheet.text(x, y, "✖", *(("black", 18, "mm", "white") if alive else ("white", 18, "mm", "black")))
    sheet.text(8, 5, f"step {step}: {int(used.sum())} of {len(codes)} codes used (black), the others dead (white); "
                     f"{int(walk.revived[step])} restarts", size=9)
    return sheet.png()
