"""The sampling panel, driven by its traits, without a front end."""

import io

import pytest
import torch
from PIL import Image

from vqlib import sampling, widgets
from vqlib.vqvae import VQVAE, VQVAEConfig


@pytest.fixture
def panel(transformer):
    torch.manual_seed(0)
    return widgets.SamplingPanel(transformer, VQVAE(VQVAEConfig(channels=8)).double().eval(), n=3)


@pytest.mark.parametrize("control, value", [("label", 2), ("temperature", 1.5), ("seed", 7)])
def test_each_control_changes_the_picture_and_back_again(panel, control, value):
    slider, before = getattr(panel, control), panel.image.value
    old = slider.value
    slider.value = value
    assert panel.error is None and panel.image.value != before and "ms" in panel.status.value
    slider.value = old
    assert panel.image.value == before, "the noise is held fixed: the same knobs give the same picture"


def test_it_shows_what_sample_writes(panel):
    codes = sampling.sample(panel.transformer, torch.full((3,), 6), temperature=0.8,
                            generator=torch.Generator().manual_seed(0))
    assert panel.image.value == widgets.strip_png(panel.vqvae.decode(codes), columns=3)


def test_an_error_is_shown_in_words_and_kept(panel):
    before = panel.image.value
    panel.vqvae = None
    panel.temperature.value = 1.0
    assert isinstance(panel.error, AttributeError) and "AttributeError" in panel.status.value
    assert panel.image.value == before


def test_strip_is_enlarged_by_whole_pixels():
    images = torch.linspace(-1, 1, 28 * 28).reshape(1, 1, 28, 28)
    picture = Image.open(io.BytesIO(widgets.strip_png(images, columns=1, zoom=3)))
    assert picture.size == (90, 90)
    small = picture.resize((30, 30), Image.Resampling.NEAREST)
    assert picture.tobytes() == small.resize((90, 90), Image.Resampling.NEAREST).tobytes()
    assert small.getpixel((1, 1)) == 0 and small.getpixel((28, 28)) == 255


def test_same_noise_is_the_same_whoever_else_is_drawn(transformer):
    torch.manual_seed(0)
    vqvae = VQVAE(VQVAEConfig(channels=8)).double().eval()
    all_ten = widgets.same_noise(transformer, vqvae, range(10), 0.8, seed=3)
    assert torch.allclose(widgets.same_noise(transformer, vqvae, [6], 0.8, seed=3)[0], all_ten[6])
