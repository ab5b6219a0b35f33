"""A trained pair, a tokenizer and the Transformer that learned its codes, and all that one can do with it."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from vqlib import captions, checkpoints, checks, files, sampling
from vqlib.adversarial import draw
from vqlib.data import CLASS_NAMES, to_pixels
from vqlib.transformer import Transformer
from vqlib.vqvae import GRID, VQVAE, Decoder


class Pair(NamedTuple):
    """What `load_pair` returns. The knobs (temperature, top_k, top_p, guidance) are those of `sampling.sample`."""

    vqvae: VQVAE
    transformer: Transformer

    def __repr__(self):
        parts = {"vqvae": self.vqvae, "transformer": self.transformer}
        if hasattr(self.vqvae.decoder, "info"):  # from a file of its own
            parts["decoder"] = self.vqvae.decoder
        return f"Pair({'; '.join(f'{name}: {checkpoints.describe(part)}' for name, part in parts.items())})"

    @torch.no_grad()
    def generate(self, classes, n: int = 8, *, seed: int = 0, **knobs) -> torch.Tensor:
        """Draw ``n`` pictures of each class: (len(classes) · n, 1, 28, 28) float images in [-1, 1], on the CPU.

        classes: a name or number from `data.CLASS_NAMES`, a sequence of them, or None for pictures of any class; or of
        ``load_pair(captions=True)`` a caption of `captions.WORDS`, such as "a bright slim dress", a sequence, or None.
        The same seed gives the same pictures. Raises ValueError if a class or a knob is not as described.
        """
        checks.check_whole("n", n, 1)
        start = self._start(classes).repeat_interleave(n, 0)
        return self.decode(sampling.sample(self.transformer, start, generator=seeded(seed), **knobs))

    @torch.no_grad()
    def complete(self, images, classes=None, *, rows: int = 3, n: int = 1, seed: int = 0, **knobs) -> torch.Tensor:
        """Keep the upper ``rows`` of 7 rows of codes of each picture, and draw the rest anew, ``n`` times.

        images: (B, 1, 28, 28) in [-1, 1]; classes: what they show, one for each or one for all, as in `generate`.
        Returns (B · n, 1, 28, 28) images, the completions of one picture side by side.
        """
        checks.check_whole("rows", rows, 0, GRID)
        checks.check_whole("n", n, 1)
        prefix, start = self.encode(images).flatten(1)[:, : GRID * rows], self._start(classes)
        checks.check_choice("the number of classes", len(start), (1, len(images)))
        start = start.expand(len(images), -1).repeat_interleave(n, 0)
        knobs |= {"prefix": prefix.repeat_interleave(n, 0), "generator": seeded(seed)}
        return self.decode(sampling.sample(self.transformer, start, **knobs))

    def _start(self, classes):  # (B, 1) int64 start tokens, or (B, 8) of captions
        vocabulary = self._vocabulary()
        if classes is None:
            return torch.full((1, captions.TEXT if vocabulary.num_words else 1), vocabulary.end, device="cpu")
        if vocabulary.num_words:
            return captions.text_tokens(one_or_more(classes), vocabulary)
        return vocabulary.num_codes + class_numbers(classes, vocabulary.num_classes)[:, None]

    def _vocabulary(self):
        """The Transformer's. Raises ValueError if it has other codes than the tokenizer, in a pair made by hand."""
        K, vocabulary = self.vqvae.config.num_codes, self.transformer.config.vocabulary
        if K != vocabulary.num_codes:
            words = f"a pair must agree on K: the tokenizer has {K} codes, the Transformer {vocabulary.num_codes}"
            raise ValueError(f"{words}. Take two that were trained together, such as load_pair's")
        return vocabulary

    def encode(self, images) -> torch.Tensor:
        """(B, 1, 28, 28) images in [-1, 1], of any float dtype -> (B, 7, 7) int64 codes."""
        floating = isinstance(images, torch.Tensor) and images.is_floating_point()
        return self.vqvae.encode(images.to(self.vqvae.quantizer.codebook) if floating else images)  # it checks the rest

    def decode(self, codes) -> torch.Tensor:
        """(B, 7, 7) int64 codes -> (B, 1, 28, 28) float32 images in [-1, 1], on the CPU."""
        return self.vqvae.decode(codes.to(self.vqvae.quantizer.codebook.device)).float().cpu()

    def reconstruct(self, images) -> torch.Tensor:
        """What the codes keep of pictures: (B, 1, 28, 28) -> (B, 1, 28, 28), in [-1, 1], on the CPU."""
        return self.decode(self.encode(images))

    def log_likelihood(self, images, classes) -> torch.Tensor:
        """log p(codes of the picture | class), a class (or caption) for each or for all, as in `generate`.

        (B, 1, 28, 28) images -> (B,) float, nats.
        """
        codes, start = self.encode(images), self._start(classes)
        start = start.expand(len(codes), -1) if len(start) == 1 else start
        return sampling.log_likelihood(self.transformer, codes, start).cpu()

    @torch.no_grad()
    def fabrics(self, images, n: int = 8, *, seed: int = 0) -> torch.Tensor:
        """Draw the codes of pictures ``n`` times with other noise: (B, 1, 28, 28) -> (B · n, 1, 28, 28), on the CPU.

        Raises ValueError if the decoder takes no noise: this needs ``load_pair(decoder="fabrics")``.
        """
        checks.check_whole("n", n, 1)
        remedy = 'Take load_pair(decoder="fabrics")'
        checks.check_choice("the decoder", type(self.vqvae.decoder).__name__, ("FabricDecoder",), remedy)
        latents = self.vqvae.quantizer.lookup(self.encode(images)).repeat_interleave(n, 0)
        return draw(self.vqvae.decoder, latents, seeded(seed)).float().cpu()

    def drawn_by(self, decoder) -> "Pair":
        """This pair with another decoder for the same codes, such as `checkpoints.load_decoder("crisp")`.

        Raises ValueError if it is none, or says that it learned other codes.
        """
        checks.check_kinds(decoder=(decoder, Decoder))
        if "tokenizer" in getattr(decoder, "info", {}):
            checkpoints.check_tokenizer(decoder, self.vqvae, "decoders")
        with torch.device("meta"):  # it gets all of its parts from elsewhere
            vqvae = VQVAE(self.vqvae.config)
        vqvae.encoder, vqvae.quantizer, vqvae.decoder = self.vqvae.encoder, self.vqvae.quantizer, decoder
        vqvae.info = getattr(self.vqvae, "info", {})
        return self._replace(vqvae=vqvae.train(self.vqvae.training))

    @staticmethod
    def save_png(path, images, columns: int = 8, zoom: int = 4):
        """Write images, (N, 1, 28, 28) in [-1, 1], to one PNG, row by row, each pixel ``zoom`` × ``zoom``."""
        from PIL import Image
        from torchvision.utils import make_grid

        checks.check_images("images", images)
        for name, number in (("number of images", len(images)), ("columns", columns), ("zoom", zoom)):
            checks.check_whole(name, number, 1)
        pixels = to_pixels(images.cpu()).repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
        grid = make_grid(pixels[:, None], nrow=columns, padding=0)[0]
        stream = io.BytesIO()
        Image.fromarray(grid.numpy()).save(stream, "PNG")
        files.replace_file(path, stream.getvalue())


def load_pair(
    folder=None, *, captions: bool = False, decoder: str = "soft", shipped: bool = False, device="cpu"
) -> Pair:
    """The pair in ``folder``; else the reader's own, if one has been trained; else the shipped one.

    folder: holds vqvae.safetensors and transformer.safetensors. shipped: True skips the reader's own.
    captions: True takes the Transformer that writes for captions, captions.safetensors, in place of transformer's.
    decoder: what draws the codes: the VQ-VAE's own, which is "soft"; or "crisp" or "fabrics", see `adversarial`. All
        draw the same codes, so the same seed gives the same clothes.
    Raises what `checkpoints.load_vqvae` and `load_transformer` raise, such as when the two don't belong together.
    """
    checks.check_choice("decoder", decoder, ("soft", *checkpoints.DECODERS))
    name = "captions" if captions else "transformer"
    first, second, third = (folder and Path(folder, f"{n}.safetensors") for n in ("vqvae", name, decoder))
    vqvae = checkpoints.load_vqvae(first, shipped=shipped, device=device)
    pair = Pair(vqvae, checkpoints.load_transformer(second, name=name, shipped=shipped, vqvae=vqvae, device=device))
    if decoder == "soft":
        return pair
    return pair.drawn_by(checkpoints.load_decoder(decoder, third, shipped=shipped, vqvae=vqvae, device=device))


def class_numbers(classes: str | int | Sequence, num_classes: int = 10) -> torch.Tensor:
    """Names or numbers of classes, one or a sequence of them, as (B,) int64 labels. Raises ValueError for others."""
    known = {name.lower(): label for label, name in enumerate(CLASS_NAMES)} | {str(i): i for i in range(num_classes)}
    numbers = []
    for given in one_or_more(classes):
        word = str(given.item() if getattr(given, "ndim", None) == 0 else given).strip().lower()
        if word not in known:
            names = ", ".join(f"{label} {name}" for label, name in enumerate(CLASS_NAMES))
            raise ValueError(f"a class must be a name or a number of these: {names}; got {given!r}")
        numbers.append(known[word])
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def one_or_more(given):
    """What was given, if it is a sequence, or a list of it alone."""
    one = isinstance(given, str) or not hasattr(given, "__iter__") or getattr(given, "ndim", 1) == 0
    return [given] if one else given


def seeded(seed):
    checks.check_whole("seed", seed, 0, 2**63 - 1)
    return torch.Generator().manual_seed(int(seed))
