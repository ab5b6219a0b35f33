"""The panels: what they compute and draw, against slow, obvious versions; then their controls, without a front end."""

import base64
import io
import shutil
import subprocess
import sys
from collections import Counter

import ipywidgets as W
import nbclient
import nbformat
import pytest
import torch
from conftest import lively_transformer, seeded
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageStat

from vqlib import captions, checkpoints, data, evaluation, sampling
from vqlib.classifier import Classifier, ClassifierConfig
from vqlib.contrastive import ContrastiveConfig, ContrastivePair, similarity
from vqlib.notebook import panels
from vqlib.notebook.panels import (
    caption_studio,
    code_editor,
    completion,
    drawing,
    quantizer_walk,
    sampling_studio,
    token_by_token,
)
from vqlib.pair import Pair, load_pair
from vqlib.transformer import Transformer, TransformerConfig
from vqlib.vqvae import VQVAE, VectorQuantizer, VQVAEConfig

pytestmark = pytest.mark.filterwarnings("ignore::vqlib.checks.ScaleWarning")  # untrained decoders draw light grey


def a_classifier(seed):
    torch.manual_seed(seed)
    return Classifier(ClassifierConfig(channels=4)).eval()


def a_pair(num_codes, **config):
    """An untrained pair with so many codes, all of them lively. config: the Transformer's."""
    torch.manual_seed(0)
    vqvae = VQVAE(VQVAEConfig(num_codes=num_codes, channels=8)).double().eval()
    with torch.no_grad():
        vqvae.quantizer.codebook.normal_()
    return Pair(vqvae, lively_transformer(num_codes=num_codes, **config))


WRITES_FOR_CAPTIONS = {"num_words": captions.NUM_WORDS, "context": captions.TEXT + 49}


def a_contrastive():
    torch.manual_seed(3)
    return ContrastivePair(ContrastiveConfig(channels=4)).eval()


def opened(png):
    return Image.open(io.BytesIO(png)).convert("RGB")


def colours(png):
    return {colour for _, colour in opened(png).getcolors(1 << 24)}


def grey(image):
    """What `Sheet.picture` should make of an image: (h, w) whole numbers in 0…255."""
    return ((image + 1) * 127.5).round().long()


def surprises(pair, codes, label):
    """-log p of each of the (7, 7) codes, from one forward pass per code: (49,)."""
    K, nats = pair.transformer.config.num_codes, []
    tokens = torch.cat([torch.tensor([K + label]), codes.flatten()])
    for t in range(49):
        with torch.no_grad():
            logits = pair.transformer(tokens[None, : t + 1])[0, -1, :K]
        nats.append(-logits.softmax(-1)[tokens[t + 1]].log())
    return torch.stack(nats)


# --- what they compute -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", [{}, {"temperature": 1.1, "top_k": 20}, {"guidance": 3.0, "top_p": 0.8}])
def test_a_strip_is_what_sample_writes_with_its_likelihood_and_verdict(pair, knobs):
    judge, labels = a_classifier(1), torch.full((5,), 3)
    strip = sampling_studio.write_strip(pair, judge, 3, n=5, seed=2, **knobs)
    codes = sampling.sample(pair.transformer, labels, generator=seeded(2), **knobs)
    assert torch.equal(strip.codes, codes) and torch.equal(strip.images, pair.vqvae.decode(codes).float())
    expected = torch.stack([surprises(pair, picture, 3).mean() for picture in codes])
    assert torch.allclose(strip.nats_per_code, expected)
    with torch.no_grad():
        assert torch.equal(strip.verdicts, judge(strip.images).argmax(1))


def test_reranking_keeps_those_that_the_critic_likes_best(pair):
    judge, critic = a_classifier(1), a_classifier(2)
    all_of_them = sampling_studio.write_strip(pair, judge, 3, n=12, seed=2)
    kept = sampling_studio.write_strip(pair, judge, 3, n=4, seed=2, critic=critic, draws=3)
    with torch.no_grad():
        order = critic(all_of_them.images).log_softmax(-1)[:, 3].argsort(descending=True)[:4]
    for some, every in zip(kept, all_of_them, strict=True):
        assert torch.equal(some, every[order])


def test_a_strip_refuses_what_it_cannot_do(pair):
    judge = a_classifier(1)
    with pytest.raises(ValueError, match="critic"):
        sampling_studio.write_strip(pair, judge, 3, n=2, draws=4)
    for name, value in {"temperature": -1.0, "top_k": 0, "top_p": 1.5, "guidance": -1}.items():
        with pytest.raises(ValueError, match=name):
            sampling_studio.write_strip(pair, judge, 3, **{name: value})
    with pytest.raises(ValueError, match="labels"):
        sampling_studio.write_strip(pair, judge, 10)
    pair.transformer.info = {"recipe": {"drop_class": 0}}  # it never saw a picture of "any class"
    with pytest.raises(ValueError, match="guidance"):
        sampling_studio.write_strip(pair, judge, 3, guidance=2.0)


def test_same_noise_is_the_same_whichever_labels_are_drawn(pair):
    all_ten = sampling_studio.same_noise(pair, range(10), 0.8, seed=3)
    assert torch.equal(sampling_studio.same_noise(pair, [6], 0.8, seed=3)[0], all_ten[6])
    codes = sampling.sample(pair.transformer, torch.tensor([6]), temperature=0.8, generator=seeded(3))
    assert torch.allclose(all_ten[6], pair.vqvae.decode(codes)[0].float())


@pytest.mark.parametrize("num_codes", [32, 64, 256])
def test_usual_codes_are_the_most_frequent_of_each_class_and_cell(test, num_codes):
    vqvae = a_pair(num_codes).vqvae.float()
    usual = token_by_token.usual_codes(vqvae, test)
    codes = vqvae.encode(data.to_images(test.pixels))
    for label, row, column in [(0, 0, 0), (3, 3, 3), (9, 6, 2)]:
        count = Counter(codes[test.labels == label, row, column].tolist())
        assert count[usual[label, row, column].item()] == max(count.values())


@pytest.mark.parametrize("num_codes", [32, 64, 256])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_trace_is_what_the_transformer_saw_at_each_choice(num_codes, temperature):
    (vqvae, transformer), K = a_pair(num_codes), num_codes
    usual = torch.randint(K, (10, 7, 7), generator=seeded())
    trace = token_by_token.trace(Pair(vqvae, transformer), usual, 4, temperature, seed=1)
    codes = sampling.sample(transformer, torch.tensor([4]), temperature=temperature, generator=seeded(1))
    assert torch.equal(trace.codes, codes.flatten())
    for t in (0, 1, 20, 48):
        tokens = torch.cat([torch.tensor([K + 4]), trace.codes[:t]])[None]
        with torch.no_grad():
            logits = transformer(tokens)[0, -1, :K]
            attention = transformer.attention_maps(tokens)[:, 0, :, -1]
        expected = (logits / temperature).softmax(-1) if temperature else torch.eye(K)[logits.argmax()].double()
        assert torch.allclose(trace.probabilities[t].double(), expected, atol=1e-5)
        assert torch.equal(trace.ranking[t], logits.float().argsort(descending=True))
        entropy = -sum(p * torch.tensor(p).log().item() for p in expected.tolist() if p > 0)
        assert trace.entropy[t].item() == pytest.approx(entropy, abs=1e-4)
        assert torch.allclose(trace.attention[:, :, t, : t + 1].double(), attention, atol=1e-5)
        assert (trace.attention[:, :, t, t + 1 :] == 0).all()
        assert torch.equal(trace.stages[t].flatten()[:t], trace.codes[:t])
        assert torch.equal(trace.stages[t].flatten()[t:], usual[4].flatten()[t:])
    assert torch.equal(trace.pictures, vqvae.decode(trace.stages).float())
    assert torch.allclose(trace.pictures[49], vqvae.decode(codes)[0].float())


def test_a_trace_is_of_the_transformer_without_dropout_whatever_its_mode(vqvae):
    torch.manual_seed(0)
    transformer = Transformer(TransformerConfig(d_model=32, n_heads=4, n_layers=2, dropout=0.5)).double()
    usual = torch.zeros(10, 7, 7, dtype=torch.int64)
    expected = token_by_token.trace(Pair(vqvae, transformer.eval()), usual, 4)
    trace = token_by_token.trace(Pair(vqvae, transformer.train()), usual, 4)
    assert transformer.training and torch.equal(trace.codes, expected.codes)
    assert torch.equal(trace.probabilities, expected.probabilities) and torch.equal(trace.attention, expected.attention)


def test_variants_change_one_code(vqvae):
    codes = torch.randint(64, (7, 7), generator=seeded())
    pictures = code_editor.variants(vqvae, codes, 24, torch.tensor([5, 63, int(codes[3, 3])]))
    for picture, code in zip(pictures, (5, 63, codes[3, 3]), strict=True):
        changed = codes.clone()
        changed[3, 3] = code
        assert torch.allclose(picture, vqvae.decode(changed[None])[0])


def test_crop_takes_the_cells_own_pixels_and_black_beyond_the_rim():
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(code_editor.crop(images, 9), images[:, :, 4:8, 8:12])
    corner = code_editor.crop(images, 48, around=4)
    assert corner.shape == (2, 1, 12, 12) and torch.equal(corner[:, :, :8, :8], images[:, :, 20:, 20:])
    assert (corner[:, :, 8:] == -1).all() and (corner[..., 8:] == -1).all()


def points_in_the_plane():
    generator = seeded()
    centres = torch.tensor([[2.0, 1.0], [-2.0, 1.5], [0.0, -2.0]])
    return centres[torch.randint(3, (200,), generator=generator)] + 0.4 * torch.randn(200, 2, generator=generator)


def test_a_walk_is_made_of_moving_average_steps():
    points = points_in_the_plane()
    steps = quantizer_walk.quantizer_walk(points, K=5, start="random points", decay=0.8, steps=4)
    quantizer = VectorQuantizer(VQVAEConfig(num_codes=5, code_dim=2, quantizer="ema"))
    quantizer.codebook.copy_(steps.codebooks[0])
    quantizer.ema_sum.copy_(steps.codebooks[0])
    for step in range(1, 5):
        quantizer.ema_update(points, quantizer.nearest(points), decay=0.8)
        assert torch.allclose(steps.codebooks[step], quantizer.codebook)
    assert (steps.revived == 0).all()
    known = {tuple(point) for point in points.tolist()}
    assert all(tuple(code) in known for code in steps.codebooks[0].tolist())


def used(points, codebook):
    return len(torch.cdist(points, codebook).argmin(1).unique())


def test_codes_that_start_to_one_side_die_and_revival_or_kmeans_cures_it():
    points = points_in_the_plane()
    collapsed = quantizer_walk.quantizer_walk(points)
    assert (collapsed.codebooks[0].mean(0) > points.mean(0)).all()
    assert used(points, collapsed.codebooks[-1]) < 8
    revived = quantizer_walk.quantizer_walk(points, revive_below=0.2)
    assert used(points, revived.codebooks[-1]) == 8 and revived.revived[-1] > 0
    assert (revived.revived.diff() >= 0).all()
    assert used(points, quantizer_walk.quantizer_walk(points, start="k-means").codebooks[0]) == 8


def test_a_walk_refuses_what_it_cannot_do_and_leaves_the_readers_generator_alone():
    points = points_in_the_plane()
    with pytest.raises(ValueError, match="start"):
        quantizer_walk.quantizer_walk(points, start="kmeans")
    with pytest.raises(ValueError, match="K"):
        quantizer_walk.quantizer_walk(points, K=201)
    before = torch.get_rng_state()
    quantizer_walk.quantizer_walk(points, revive_below=0.3)
    assert torch.equal(torch.get_rng_state(), before)


# --- what they draw --------------------------------------------------------------------------------------------------


def test_pictures_are_enlarged_by_whole_pixels_and_a_last_row_is_filled_with_black():
    images = torch.linspace(-1, 1, 3 * 28 * 28).reshape(3, 1, 28, 28)
    png = drawing.sprite(images, columns=2, zoom=3)
    assert drawing.png_size(png) == (168, 168)
    picture = opened(png)
    small = picture.resize((56, 56), Image.Resampling.NEAREST)
    again = small.resize((336, 336), Image.Resampling.NEAREST)
    assert picture.size == (336, 336) and picture.tobytes() == again.tobytes()
    assert small.getpixel((28 + 7, 5)) == (grey(images)[1, 0, 5, 7],) * 3
    assert small.getpixel((0, 0)) == (0, 0, 0) and small.getpixel((27, 55)) == (255, 255, 255)
    assert small.crop((28, 28, 56, 56)).getcolors() == [(784, (0, 0, 0))]


def test_the_verdict_is_green_if_it_is_right():
    def shown(verdict):
        codes, images = torch.zeros(1, 7, 7, dtype=torch.int64), torch.zeros(1, 1, 28, 28)
        strip = sampling_studio.Strip(codes, images, torch.tensor([2.0]), torch.tensor([verdict]))
        return colours(sampling_studio.draw_strip(strip, label=6))

    right, wrong = ((127, 209, 174), (255, 158, 128))
    assert right in shown(6) and wrong not in shown(6)
    assert wrong in shown(4) and right not in shown(4)


def test_a_gallery_puts_pictures_row_by_row_with_room_below():
    images = torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1).expand(3, 1, 28, 28)
    sheet, places = drawing.gallery(images, columns=2, zoom=2, foot=20)
    assert drawing.png_size(sheet.png()) == (2 * 62 + 6, 2 * 76 + 6)
    assert places == [(6, 6), (68, 6), (6, 82)]
    for (x, y), value in zip(places, (0, 128, 255), strict=True):
        assert sheet.image.getpixel((2 * x, 2 * y)) == sheet.image.getpixel((2 * x + 111, 2 * y + 111)) == (value,) * 3


def a_trace(pair, **knobs):
    return token_by_token.trace(pair, torch.zeros(10, 7, 7, dtype=torch.int64), 4, **knobs)


def test_the_sheet_of_a_trace_keeps_its_size_and_changes_with_each_step(pair):
    trace = a_trace(pair)
    sheets = [token_by_token.draw_trace(trace, t, 0, 0, pair.vqvae) for t in range(50)]
    assert len({drawing.png_size(png) for png in sheets}) == 1 and len(set(sheets)) == 50
    assert token_by_token.draw_trace(trace, 20, 1, 2, pair.vqvae) != sheets[20]  # another head


def test_an_unwritten_cell_is_dimmed(pair):
    trace = a_trace(pair)
    picture = opened(token_by_token.draw_trace(trace, 14, 0, 0, pair.vqvae, zoom=6))

    def shown(row, column):
        return picture.getpixel((2 * (16 + 6 * column) + 6, 2 * (22 + 6 * row) + 6))[0]

    values = (trace.pictures[14][0] + 1) * 127.5
    assert shown(3, 5) == pytest.approx(values[3, 5].item(), abs=1)
    assert shown(20, 5) == pytest.approx(0.3 * values[20, 5].item(), abs=1)


def test_the_drawn_code_is_framed_even_if_it_was_unlikely(pair):
    trace = a_trace(pair, temperature=3.0)
    ranks = [(trace.ranking[t] == trace.codes[t]).nonzero().item() for t in range(49)]
    t = max(range(49), key=ranks.__getitem__)
    assert ranks[t] >= 10
    picture = opened(token_by_token.draw_trace(trace, t, 0, 0, pair.vqvae))
    left, top = 16 + 9 * 52, 22 + 168 + 14 + 20  # the tenth candidate
    assert picture.getpixel((2 * left + 1, 2 * top + 1)) == (0xE6, 0x9F, 0x00)


def test_a_line_shows_how_many_rows_of_a_completion_were_given():
    def marked(rows):
        png = completion.draw_completions(torch.full((2, 1, 28, 28), -1.0), rows, ["original", "1"])
        picture = opened(png)
        return [[picture.getpixel((2 * x + 40, 2 * y)) == (0xE6, 0x9F, 0x00) for x in (6, 124)] for y in (53, 101)]

    assert marked(3) == [[False, True], [False, False]]  # 3 rows of 16 pixels, below 6 of margin
    assert marked(6) == [[False, False], [False, True]]
    assert marked(0) == marked(7) == [[False, False], [False, False]]


def test_a_walks_sheet_marks_used_codes_black_and_dead_ones_white_where_they_lie():
    points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    codebook = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [3.0, 4.0]]])
    png = quantizer_walk.draw_walk(points, quantizer_walk.Walk(codebook, torch.zeros(1, dtype=torch.int64)), 0)
    picture, unit = opened(png), 380 / 4.4  # the plane from -0.2 to 4.2
    for (x, y), colour in (((0, 0), 0), ((1, 1), 0), ((3, 4), 255)):
        at = (round(2 * (x + 0.2) * unit), round(2 * (404 - (y + 0.2) * unit)))
        assert picture.getpixel(at) == (colour,) * 3
    assert drawing.png_size(png) == (380, 404)


# --- the controls ----------------------------------------------------------------------------------------------------


def no_error(panel):
    assert panel.error is None, panel.status.value
    assert "Error" not in panel.status.value


def moves(panel, control, value):
    """Move a control there and back: the picture changes, and comes back."""
    slider, before = getattr(panel, control), panel.image.value
    old = slider.value
    slider.value = value
    no_error(panel)
    assert panel.image.value != before
    slider.value = old
    no_error(panel)
    assert panel.image.value == before, "the noise is fixed: the same knobs give the same picture"


@pytest.fixture
def a_studio(pair):
    return panels.SamplingStudio(pair, a_classifier(1), a_classifier(2), n=3)


@pytest.mark.parametrize(
    "control, value",
    [
        *[("label", 2), ("temperature", 1.5), ("guidance", 3.0), ("top_k", 2)],
        *[("top_p", 0.3), ("n", 5), ("draws", 4), ("seed", 7)],
    ],
)
def test_studio_each_control_changes_the_picture_and_back_again(a_studio, control, value):
    no_error(a_studio)
    moves(a_studio, control, value)


def test_studio_shows_what_sample_writes(a_studio):
    pair = a_studio.pair
    codes = sampling.sample(pair.transformer, torch.full((3,), 6), generator=seeded())
    images = pair.vqvae.decode(codes).float()
    nats = torch.stack([surprises(pair, picture, 6).mean() for picture in codes])
    with torch.no_grad():
        verdicts = a_studio.judge(images).argmax(1)
    assert a_studio.image.value == sampling_studio.draw_strip(sampling_studio.Strip(codes, images, nats, verdicts), 6)
    assert f"in {(verdicts == 6).sum()} of 3" in a_studio.status.value and "ms" in a_studio.status.value
    assert a_studio.image.layout.width == f"{drawing.png_size(a_studio.image.value)[0]}px"


def test_studio_draws_new_noise(a_studio):
    for _ in range(3):
        before = a_studio.image.value
        a_studio.new_seed.click()
        assert a_studio.image.value != before
    no_error(a_studio)


def test_studio_saves_without_overwriting(a_studio, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        a_studio.save.click()
        no_error(a_studio)
    saved = sorted(tmp_path.iterdir())
    assert [path.name for path in saved] == ["shirt-temperature0.8-seed0-2.png", "shirt-temperature0.8-seed0.png"]
    assert all(path.read_bytes() == a_studio.image.value for path in saved)
    assert str(saved[0]) in a_studio.status.value
    a_studio.label.value, a_studio.guidance.value, a_studio.draws.value = 0, 2.0, 2  # "T-shirt/top" names no folder
    a_studio.save.click()
    no_error(a_studio)
    assert (tmp_path / "t-shirt-top-temperature0.8-guidance2-seed0-best-of-2.png").is_file()


def test_studio_says_that_greedy_pictures_are_all_alike(a_studio):
    a_studio.temperature.value = 0.0
    no_error(a_studio)
    assert "all are the same" in a_studio.status.value
    before = a_studio.image.value
    for control, value in CONTROLS["SamplingStudio"][1].items():
        getattr(a_studio, control).value = value
        assert a_studio.image.value == before, control


def test_an_error_is_shown_in_words_kept_and_forgotten(a_studio):
    before, pair = a_studio.image.value, a_studio.pair
    a_studio.pair = None
    a_studio.temperature.value = 1.0
    assert isinstance(a_studio.error, AttributeError) and "AttributeError" in a_studio.status.value
    assert a_studio.image.value == before and "from before" in a_studio.status.value
    a_studio.new_seed.click()
    assert isinstance(a_studio.error, AttributeError) and "AttributeError" in a_studio.status.value
    a_studio.pair, a_studio.seed.value = pair, 0
    a_studio.temperature.value = 0.8
    no_error(a_studio)


OF_A_PAIR = [panels.SamplingStudio, panels.TokenByToken, panels.CodeEditor, panels.Completion, panels.CaptionStudio]


@pytest.mark.parametrize("panel", OF_A_PAIR)
def test_without_weights_a_panel_says_what_to_run(panel, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path)
    monkeypatch.setenv("VQLIB_RUNS", str(tmp_path / "runs"))
    broken = panel()
    assert isinstance(broken.error, Exception)
    assert "vqvae.safetensors" in broken.status.value
    assert "git checkout" in broken.status.value or "python -m vqlib.training" in broken.status.value
    assert broken.controls.children == () and broken.image.layout.display == "none"


@pytest.mark.parametrize("panel", OF_A_PAIR)
def test_a_panel_refuses_what_is_no_pair(panel, pair):
    broken = panel(pair.transformer)
    assert isinstance(broken.error, ValueError) and "pair" in broken.status.value


@pytest.fixture
def tokens_panel(pair):
    pair.vqvae.float()  # it encodes the mini set, whose images are float32
    return panels.TokenByToken(pair)


@pytest.mark.parametrize("control, value", [("label", 2), ("temperature", 2.0), ("seed", 5)])
def test_token_by_token_another_picture(tokens_panel, control, value):
    tokens_panel.step.value = 30
    moves(tokens_panel, control, value)


def test_token_by_token_each_step_shows_another_state_of_the_same_picture(tokens_panel):
    trace, shown = tokens_panel.trace, set()
    for step in range(50):
        tokens_panel.step.value = step
        no_error(tokens_panel)
        shown.add(tokens_panel.image.value)
    assert len(shown) == 50 and tokens_panel.trace is trace  # it is drawn anew, not written anew
    tokens_panel.step.value = 20
    moves(tokens_panel, "layer", 1)
    moves(tokens_panel, "head", 3)
    assert (tokens_panel.layer.max, tokens_panel.head.max) == (1, 3)


def test_play_and_slider_are_tied_in_the_front_end(tokens_panel):
    assert tokens_panel.link.source == (tokens_panel.play, "value")
    assert tokens_panel.link.target == (tokens_panel.step, "value")
    assert (tokens_panel.play.min, tokens_panel.play.max) == (tokens_panel.step.min, tokens_panel.step.max) == (0, 49)


@pytest.fixture
def an_editor(pair):
    return panels.CodeEditor(pair)


def shrunk(grid):
    """The picture of a grid, as small as it was: (h, w) whole numbers in 0…255."""
    picture, zoom = opened(grid.png), 2 * grid.unit // 4
    small = picture.resize((picture.width // zoom, picture.height // zoom), Image.Resampling.NEAREST).convert("L")
    return torch.tensor(list(small.getdata())).reshape(small.height, small.width)


def encoded(pair, test, number):
    return pair.vqvae.encode(data.to_images(test.pixels[number : number + 1]).double())[0]


def test_editor_a_click_on_a_cell_and_on_a_code_changes_one_code(an_editor, pair, test):
    no_error(an_editor)
    codes = encoded(pair, test, 4)
    before = -surprises(pair, codes, int(test.labels[4])).sum()
    an_editor.cells.index = 16
    assert an_editor.cell.value == 16 and an_editor.code.value == codes[2, 2]
    image = an_editor.image.value
    code = (int(codes[2, 2]) + 1) % 64
    an_editor.palette.index = code
    no_error(an_editor)
    codes[2, 2] = code
    assert an_editor.code.value == code and torch.equal(an_editor.codes, codes)
    assert an_editor.image.value != image
    now = -surprises(pair, codes, int(test.labels[4])).sum()
    assert "1 code changed" in an_editor.status.value
    assert f"{now:.1f} nats, before {before:.1f}" in an_editor.status.value
    an_editor.reset.click()
    assert "0 codes changed" in an_editor.status.value and f"{before:.1f} nats" in an_editor.status.value


@pytest.mark.parametrize("num_codes", [32, 64, 256])
def test_editors_grids_show_the_picture_and_what_each_code_would_draw(num_codes, test):
    pair = a_pair(num_codes)
    panel = panels.CodeEditor(pair)
    no_error(panel)
    assert panel.code.max == num_codes - 1
    assert (panel.cells.count, panel.palette.count) == (49, num_codes)
    panel.cell.value, panel.code.value = 18, num_codes - 1
    no_error(panel)
    codes = encoded(pair, test, 4)
    codes[2, 4] = num_codes - 1
    assert torch.equal(shrunk(panel.cells), grey(pair.vqvae.decode(codes[None])[0, 0]))
    patches = shrunk(panel.palette)
    assert patches.shape == (num_codes // 8 * 4, 32)
    for code in (0, 9, num_codes - 1):
        codes[2, 4] = code
        drawn = grey(pair.vqvae.decode(codes[None])[0, 0, 8:12, 16:20])
        row, column = 4 * (code // 8), 4 * (code % 8)
        assert torch.equal(patches[row : row + 4, column : column + 4], drawn)
    assert (panel.cells.index, panel.palette.index) == (18, num_codes - 1)


def test_editor_moving_to_another_cell_changes_no_code(an_editor):
    original = an_editor.codes.clone()
    for cell in range(49):
        an_editor.cell.value = cell
        assert an_editor.code.value == original.flatten()[cell]
    assert torch.equal(an_editor.codes, original)
    no_error(an_editor)


def test_editor_resamples_what_comes_after_the_cell(an_editor):
    original = an_editor.codes.clone().flatten()
    an_editor.cell.value = 20
    results = []
    for _ in range(3):
        an_editor.resample.click()
        no_error(an_editor)
        now = an_editor.codes.flatten()
        assert torch.equal(now[:21], original[:21]) and not torch.equal(now[21:], original[21:])
        results.append(now)
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])


def test_editor_grafts_the_rows_below(an_editor, pair, test):
    original = an_editor.codes.clone()
    before, status = an_editor.second.value, an_editor.status.value
    an_editor.other.value = 123
    assert an_editor.second.value != before and an_editor.status.value == status
    an_editor.cell.value = 16  # in row 2
    an_editor.graft.click()
    no_error(an_editor)
    assert torch.equal(an_editor.codes[:3], original[:3])
    assert torch.equal(an_editor.codes[3:], encoded(pair, test, 123)[3:])


def test_editor_another_picture_brings_its_codes_and_class(an_editor, pair, test):
    an_editor.number.value = 7
    no_error(an_editor)
    assert torch.equal(an_editor.codes, encoded(pair, test, 7))
    assert data.CLASS_NAMES[test.labels[7]] in an_editor.status.value


@pytest.mark.parametrize("control, value", [("number", 7), ("rows", 5), ("temperature", 1.7), ("seed", 3)])
def test_completion_each_control_changes_the_picture_and_back_again(pair, control, value):
    panel = panels.Completion(pair, n=2)
    no_error(panel)
    moves(panel, control, value)


@pytest.mark.parametrize("rows", [0, 3, 7])
def test_completion_keeps_the_upper_rows(pair, test, rows):
    panel = panels.Completion(pair, rows=rows, n=4)
    no_error(panel)
    codes = encoded(pair, test, 4)
    prefix = codes.flatten()[None, : 7 * rows].repeat(4, 1)
    labels = test.labels[4:5].repeat(4)
    written = sampling.sample(pair.transformer, labels, prefix=prefix, generator=seeded())
    assert torch.equal(written[:, :rows], codes[:rows].expand(4, rows, 7))
    images = torch.cat([pair.vqvae.decode(codes[None]), pair.vqvae.decode(written)]).float()
    images = torch.cat([data.to_images(test.pixels[4:5]), images])
    assert len(written.unique(dim=0)) == (1 if rows == 7 else 4)
    names = ["original", "its copy", "1", "2", "3", "4"]
    assert panel.image.value == completion.draw_completions(images, rows, names)


@pytest.mark.parametrize(
    "control, value", [("step", 9), ("start", "k-means"), ("revive", 0.3), ("K", 5), ("decay", 0.5), ("seed", 3)]
)
def test_walk_each_control_changes_the_picture_and_back_again(control, value):
    panel = panels.QuantizerWalk(torch.randn(100, 2, generator=seeded()))
    panel.step.value = 30
    no_error(panel)
    moves(panel, control, value)


SWITCHED = {"SamplingStudio": "strip", "Completion": "codes", "TokenByToken": "trace"}  # what each has written


@pytest.mark.parametrize("name", SWITCHED)
def test_the_decoder_switch_draws_the_same_codes_again(name):
    panel = getattr(panels, name)(load_pair(shipped=True))
    if name == "TokenByToken":
        panel.step.value = 49
    soft, written = panel.image.value, getattr(panel, SWITCHED[name])
    moves(panel, "decoder", "crisp")
    assert panel.image.value == soft
    if name == "TokenByToken":
        assert panel.trace.codes is written.codes and panel.trace.probabilities is written.probabilities
    else:
        assert getattr(panel, SWITCHED[name]) is written
    panel.decoder.value = "crisp"
    panel.seed.value = 5
    own = getattr(panels, name)(load_pair(decoder="crisp", shipped=True), seed=5)
    if name == "TokenByToken":
        own.step.value = 49
    no_error(panel)
    assert own.decoder.value == "crisp" and own.image.value == panel.image.value


def test_a_panel_draws_with_the_pairs_own_decoder(tmp_path):
    """If it has one; else with the one beside its tokenizer, else the shipped one, whatever lies in the runs folder."""
    pair = load_pair(shipped=True)
    mine = checkpoints.load_decoder(shipped=True)
    with torch.no_grad():
        mine[0].bias += 0.1
    assert panels.Completion(pair.drawn_by(mine)).pairs["crisp"].vqvae.decoder is mine
    for folder, other in (
        (tmp_path / "mini", mine),
        (checkpoints.runs_folder(), checkpoints.load_decoder(shipped=True)),
    ):
        for name, model in (("vqvae", pair.vqvae), ("transformer", pair.transformer), ("crisp", other)):
            codes = {"tokenizer": "0" * 64} if model is other and other is not mine else {}  # of other codes
            checkpoints.save_model(folder / f"{name}.safetensors", model, **model.info | codes)
    beside = panels.Completion(load_pair(tmp_path / "mini")).pairs["crisp"].vqvae.decoder
    assert torch.equal(beside[0].bias, mine[0].bias)
    (checkpoints.runs_folder() / "vqvae.safetensors").unlink()
    panel = panels.Completion(pair)
    no_error(panel)
    assert str(checkpoints.SHIPPED) in panel.pairs["crisp"].vqvae.decoder.info["path"]


def test_a_panel_says_why_there_is_no_crisp_decoder(a_studio):
    assert list(a_studio.decoder.options) == ["soft"] and a_studio.decoder.disabled
    assert "vqlib.training decoders" in a_studio.decoder.tooltips[0]


@pytest.mark.parametrize("num_codes", [32, 256])
def test_each_panel_shows_a_pair_with_another_number_of_codes(num_codes):
    pair = a_pair(num_codes)
    a_studio = panels.SamplingStudio(pair, a_classifier(1), a_classifier(2), n=2)
    no_error(a_studio)
    assert a_studio.top_k.max == a_studio.top_k.value == num_codes and str(num_codes) in a_studio.top_k.description
    moves(a_studio, "top_k", 2)
    moves(a_studio, "guidance", 3.0)
    codes = sampling.sample(pair.transformer, torch.full((2,), 6), generator=seeded())
    assert codes.max() < num_codes and (num_codes == 32 or codes.max() >= 64)  # it isn't about the usual 64
    assert a_studio.image.value == sampling_studio.draw_strip(
        sampling_studio.write_strip(pair, a_studio.judge, 6, n=2), 6
    )
    pair.vqvae.float()
    tokens_panel = panels.TokenByToken(pair)
    no_error(tokens_panel)
    assert tokens_panel.trace.probabilities.shape == (49, num_codes)
    moves(tokens_panel, "step", 30)
    panel = panels.Completion(pair, n=2)
    no_error(panel)
    moves(panel, "seed", 3)


def test_a_panel_leaves_the_transformer_in_the_mode_it_was_in(pair):
    pair.transformer.train()
    no_error(panels.Completion(pair))
    no_error(panels.SamplingStudio(pair, a_classifier(1), a_classifier(2)))
    assert pair.transformer.training


def test_without_ipywidgets_the_error_says_what_to_install():
    code = """
import sys
sys.modules["ipywidgets"] = None
from vqlib.notebook import exercises, plots, setup
from vqlib.notebook import panels
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 1 and process.stderr.strip().endswith(
        "ImportError: the panels need ipywidgets and anywidget: pip install ipywidgets anywidget"
    )


# --- the caption studio ----------------------------------------------------------------------------------------------

FACTS = st.tuples(*(st.integers(-1, len(kind) - 1) for kind in captions.KINDS)).filter(lambda facts: facts[2] >= 0)
GREEN, ORANGE, FADED = (127, 209, 174), (255, 158, 128), (154, 164, 173)


@given(FACTS, st.integers(0, 4))
def test_what_was_never_seen_are_the_words_that_the_list_keeps_from_the_class(facts, words):
    never, said, label = [], captions.write_captions(torch.tensor([facts]))[0].split(), facts[3]
    for i in range(words):
        word = captions.NEVER[(label + i) % 7]
        if label >= 0 and word in said:
            never.append(f"{word} {captions.CLASSES[label]}")
    assert sorted(caption_studio.unseen(torch.tensor(facts), words)) == sorted(never)


def in_colour(png, colour):
    """Where a sheet has this colour: (left, top, right, bottom) in its pixels, or None."""
    picture = opened(png)
    mask = (
        ImageChops.difference(picture, Image.new("RGB", picture.size, colour))
        .convert("L")
        .point(lambda p: 255 * (p < 2))
    )
    return mask.getbbox()


@pytest.mark.parametrize("kind", range(4))
def test_a_wrong_word_is_orange_where_it_stands_and_one_not_asked_for_is_faint(kind):
    image, facts = torch.full((1, 1, 28, 28), -1.0), [2, 0, 1, 3]  # a bright slim upside-down dress

    def shown(wish):
        asked = [wish if k == kind else fact for k, fact in enumerate(facts)]
        return caption_studio.draw_found(image, torch.tensor([facts]), asked)

    another = (facts[kind] + 1) % len(captions.KINDS[kind])
    right, wrong, free = shown(facts[kind]), shown(another), shown(-1)
    assert in_colour(right, GREEN) and not in_colour(right, ORANGE) and not in_colour(right, FADED)
    assert in_colour(free, FADED) and not in_colour(free, ORANGE)
    left, top, right, bottom = in_colour(wrong, ORANGE)
    middle, second = 2 * (6 + 56), 2 * (6 + 112 + 17)
    assert top > 2 * (6 + 112) and (bottom < second if kind < 2 else top > second)
    assert (left + right) / 2 < middle if kind in (0, 2) else (left + right) / 2 > middle


def test_upright_is_a_word_only_where_the_picture_should_be_upside_down():
    image = torch.full((1, 1, 28, 28), -1.0)
    shown = [caption_studio.draw_found(image, torch.tensor([[-1, 0, 0, 3]]), [-1, -1, turned, 3]) for turned in (0, 1)]
    assert not in_colour(shown[0], ORANGE) and in_colour(shown[1], ORANGE)
    left, _, right, _ = in_colour(shown[0], GREEN)
    assert right - left < 2 * 40  # "dress" stands alone


@pytest.fixture
def captioned():
    return a_pair(64, **WRITES_FOR_CAPTIONS)


@pytest.fixture
def a_caption_studio(captioned):
    return panels.CaptionStudio(captioned, a_classifier(1), a_contrastive(), n=3)


def test_candidates_are_the_pictures_of_one_batch_whose_first_are_the_same_without_candidates(captioned):
    start = captions.text_tokens(["a grey boot"], captioned.transformer.config.vocabulary)
    codes = caption_studio.write_candidates(captioned, "a grey boot", 3, candidates=64, seed=2, guidance=2.0)
    at_once = sampling.sample(captioned.transformer, start.repeat(192, 1), generator=seeded(2), guidance=2.0)
    assert torch.equal(codes.flatten(0, 1), at_once) and len(at_once) > caption_studio.BATCH
    alone = caption_studio.write_candidates(captioned, "a grey boot", 3, seed=2, guidance=2.0)
    assert torch.equal(alone[0], codes[0])


def test_of_each_group_the_candidate_that_fits_best_is_shown(a_caption_studio):
    pair, caption = a_caption_studio.pair, a_caption_studio.text.value
    a_caption_studio.candidates.value = 4
    no_error(a_caption_studio)
    images = pair.generate(caption, 12, seed=0)
    scores = similarity(a_caption_studio.contrastive, images, [caption] * 12).tolist()
    best = [max((i, 3 + i, 6 + i, 9 + i), key=scores.__getitem__) for i in range(3)]
    assert best != [0, 1, 2]
    asked = captions.read_captions([caption])
    found = evaluation.facts_found(images[best], asked.expand(3, -1), a_caption_studio.judge)
    assert a_caption_studio.image.value == caption_studio.draw_found(images[best], found, asked[0].tolist())


def test_caption_studio_shows_what_generate_draws_and_counts_what_is_right_in_every_word(captioned):
    judge = a_classifier(1)
    for caption in ("a bright slim dress", "wide"):
        panel = panels.CaptionStudio(captioned, judge, caption=caption, n=5, seed=3)
        images, asked = captioned.generate(caption, 5, seed=3), captions.read_captions([caption])
        found = evaluation.facts_found(images, asked.expand(5, -1), judge)
        assert panel.image.value == caption_studio.draw_found(images, found, asked[0].tolist())
        right = sum(all(a in (-1, f) for f, a in zip(row, asked[0].tolist(), strict=True)) for row in found.tolist())
        assert f"{right} of 5" in panel.status.value and caption in panel.status.value
    assert 0 < right


@pytest.mark.parametrize(
    "control, value",
    [
        *[("brightness", 0), ("size", -1), ("turned", 1), ("label", 9), ("text", "dress"), ("seed", 7)],
        *[("temperature", 1.5), ("guidance", 3.0), ("candidates", 4), ("n", 5)],
    ],
)
def test_caption_studio_each_control_changes_the_picture_and_back_again(a_caption_studio, control, value):
    no_error(a_caption_studio)
    moves(a_caption_studio, control, value)


@pytest.mark.parametrize("control", ["temperature", "guidance", "candidates", "n", *range(4)])
def test_caption_studio_no_control_fails_anywhere_in_its_range(captioned, control):
    panel = panels.CaptionStudio(captioned, a_classifier(1), a_contrastive(), n=1)
    moved = panel.words[control] if isinstance(control, int) else getattr(panel, control)
    if hasattr(moved, "step"):
        values = [moved.min + i * moved.step for i in range(round((moved.max - moved.min) / moved.step) + 1)]
    else:
        values = [value for _, value in moved.options]
    assert len(values) > 1
    for value in values:
        moved.value = value
        no_error(panel)


class Counting(panels.CaptionStudio):
    """It counts how often it draws."""

    written = 0

    def _write(self):
        self.written += 1
        return super()._write()


def test_text_and_dropdowns_say_the_same_and_each_move_draws_once(captioned):
    panel = Counting(captioned, a_classifier(1), n=1)
    said, written = [2, 0, 0, 3], 1
    for dropdown, value, text in [
        (0, 0, "a dark slim dress"),
        (1, -1, "a dark dress"),
        (0, -1, "a dress"),
        (2, 1, "an upside-down dress"),
        (3, 4, "an upside-down coat"),
        (3, -1, "an upside-down"),
    ]:
        panel.words[dropdown].value = said[dropdown] = value
        written += 1
        assert panel.text.value == text and [d.value for d in panel.words] == said and panel.written == written
        no_error(panel)
    for text, said in [
        ("Dress, dark and slim", [0, 0, 0, 3]),
        ("a wide wide upside-down bag", [-1, 2, 1, 8]),
        ("a slim wide bright", [2, -1, 0, -1]),  # it can't be both
    ]:
        panel.text.value = text
        written += 1
        assert panel.text.value == text and [d.value for d in panel.words] == said and panel.written == written
        no_error(panel)
        images = captioned.generate(text, 1)  # for exactly this text
        found = evaluation.facts_found(images, torch.tensor([said]), panel.judge)
        assert panel.image.value == caption_studio.draw_found(images, found, said)


def test_an_unknown_word_is_refused_and_the_picture_stays(a_caption_studio):
    before, said = a_caption_studio.image.value, [d.value for d in a_caption_studio.words]
    a_caption_studio.text.value = "a wide <b>blue</b> boot"
    assert isinstance(a_caption_studio.error, ValueError) and "&lt;b&gt;blue" in a_caption_studio.status.value
    assert a_caption_studio.image.value == before and "from before" in a_caption_studio.status.value
    assert [d.value for d in a_caption_studio.words] == said
    a_caption_studio.brightness.value = 0  # it says what the dropdowns say
    no_error(a_caption_studio)
    assert a_caption_studio.text.value == "a dark slim dress" and a_caption_studio.image.value != before
    a_caption_studio.brightness.value = 2
    assert a_caption_studio.image.value == before


def test_caption_studio_says_what_training_never_saw(a_caption_studio):
    assert "never seen in training: bright dress" in a_caption_studio.status.value
    a_caption_studio.brightness.value = 1
    assert "never" not in a_caption_studio.status.value
    a_caption_studio.pair.transformer.info = {"recipe": {"withheld": 3, "drop_caption": 0.1}}  # wide and grey, too
    a_caption_studio.size.value = 2
    assert "grey dress" in a_caption_studio.status.value and "wide dress" in a_caption_studio.status.value
    no_error(a_caption_studio)


def test_the_decoder_switch_draws_the_codes_for_a_caption_again_and_chooses_by_what_it_draws():
    vqvae = checkpoints.load_vqvae(shipped=True)
    pair = Pair(vqvae, lively_transformer(**WRITES_FOR_CAPTIONS).float())
    panel = panels.CaptionStudio(pair, a_classifier(1), a_contrastive(), caption="a boot", n=4)
    soft, codes = panel.image.value, panel.codes
    moves(panel, "decoder", "crisp")
    assert panel.codes is codes and panel.image.value == soft
    panel.decoder.value, panel.candidates.value = "crisp", 4
    no_error(panel)
    images = panel.pairs["crisp"].decode(panel.codes.flatten(0, 1))
    scores = similarity(panel.contrastive, images, ["a boot"] * 16).reshape(4, 4)
    others = similarity(panel.contrastive, pair.decode(panel.codes.flatten(0, 1)), ["a boot"] * 16).reshape(4, 4)
    assert (scores.argmax(0) != others.argmax(0)).any()
    best = torch.stack([images.reshape(4, 4, 1, 28, 28)[scores[:, i].argmax(), i] for i in range(4)])
    asked = captions.read_captions(["a boot"])
    found = evaluation.facts_found(best, asked.expand(4, -1), panel.judge)
    assert panel.image.value == caption_studio.draw_found(best, found, asked[0].tolist())
    panel.text.value = "a blue boot"
    assert panel.error is not None
    moves(panel, "decoder", "soft")
    assert '"a boot"' in panel.status.value  # the caption for which they were drawn


def test_caption_studio_loads_the_contrastive_pair_only_to_choose(captioned, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path)
    panel = panels.CaptionStudio(captioned, a_classifier(1), n=2)
    no_error(panel)
    before = panel.image.value
    panel.candidates.value = 4
    assert isinstance(panel.error, FileNotFoundError) and "contrastive.safetensors" in panel.status.value
    assert panel.image.value == before and len(panel.codes) == 1
    checkpoints.save_model(checkpoints.runs_folder() / "contrastive.safetensors", a_contrastive())
    panel.candidates.value = 16
    no_error(panel)
    given = panels.CaptionStudio(captioned, a_classifier(1), a_contrastive(), n=2)
    given.candidates.value = 16
    assert panel.image.value == given.image.value != before


def test_caption_studio_finds_the_pair_that_writes_for_captions(captioned):
    vqvae, transformer = captioned
    checkpoints.save_model(checkpoints.runs_folder() / "vqvae.safetensors", vqvae)
    tokenizer = checkpoints.tokenizer_id(vqvae)
    checkpoints.save_model(checkpoints.runs_folder() / "captions.safetensors", transformer, tokenizer=tokenizer)
    panel = panels.CaptionStudio(n=1)
    no_error(panel)
    assert panel.pair.transformer.info["path"] == str(checkpoints.runs_folder() / "captions.safetensors")
    assert panels.CaptionStudio(n=2).pair is panel.pair and "judge" in panel.judge.info["path"]


def test_caption_studio_refuses_a_pair_for_classes_and_a_caption_that_is_none(pair, captioned):
    broken = panels.CaptionStudio(pair, a_classifier(1))
    assert isinstance(broken.error, ValueError) and "load_pair(captions=True)" in broken.status.value
    broken = panels.CaptionStudio(captioned, a_classifier(1), caption="a blue dress")
    assert isinstance(broken.error, ValueError) and "blue" in broken.status.value
    assert broken.controls.children == ()


# --- greyed controls, closing, stills --------------------------------------------------------------------------------

CONTROLS = {  # of each panel: where a control is without effect, and a value to move it to there
    "SamplingStudio": ({"temperature": 0.0}, {"seed": 7, "top_k": 2, "top_p": 0.3, "draws": 4}),
    "SamplingStudio, one code": ({"top_k": 1}, {"seed": 7, "top_p": 0.3, "draws": 4}),
    "CaptionStudio": ({"temperature": 0.0}, {"seed": 7, "candidates": 4}),
    "TokenByToken": ({"step": 0}, {"layer": 1, "head": 3}),
    "TokenByToken at its end": ({"step": 49}, {"layer": 1, "head": 3}),
    "TokenByToken, greedy": ({"temperature": 0.0}, {"seed": 5}),
    "Completion": ({"rows": 7}, {"temperature": 0.0, "seed": 5}),
    "Completion, greedy": ({"temperature": 0.0}, {"seed": 5}),
    "QuantizerWalk": ({"step": 0}, {"revive": 0.3, "decay": 0.5}),
}


def a_panel(kind, pair):
    arguments = {
        "SamplingStudio": (pair, a_classifier(1), a_classifier(2)),
        "CaptionStudio": (a_pair(64, **WRITES_FOR_CAPTIONS), a_classifier(1), a_contrastive()),
        "QuantizerWalk": (torch.randn(100, 2, generator=seeded()),),
    }
    pair.vqvae.float()
    return getattr(panels, kind)(*arguments.get(kind, (pair,)))


@pytest.mark.parametrize("case", CONTROLS)
def test_a_control_is_greyed_where_it_changes_nothing_and_only_there(pair, case):
    panel, (there, greyed) = a_panel(case.split(",")[0].split(" ")[0], pair), CONTROLS[case]
    assert not any(getattr(panel, name).disabled for name in greyed)
    for name, value in there.items():
        getattr(panel, name).value = value
    before = panel.image.value
    for name, value in greyed.items():
        assert getattr(panel, name).disabled
        getattr(panel, name).value = value
        no_error(panel)
        assert panel.image.value == before, name
    controls = {name: c for name, c in vars(panel).items() if getattr(c, "disabled", False) and hasattr(c, "value")}
    assert controls.keys() <= {*greyed, "temperature", "decoder"}  # there is no crisp one for this pair's codes


def test_editors_buttons_are_greyed_where_there_is_nothing_to_do(an_editor):
    buttons = an_editor.resample, an_editor.graft, an_editor.reset
    for cell, greyed in ((16, (False, False, True)), (44, (False, True, True)), (48, (True, True, True))):
        an_editor.cell.value = cell
        assert tuple(button.disabled for button in buttons) == greyed
    an_editor.code.value = (an_editor.code.value + 1) % 64
    assert not an_editor.reset.disabled


KINDS = ["SamplingStudio", "TokenByToken", "CodeEditor", "Completion", "QuantizerWalk", "CaptionStudio"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_panel_leaves_no_widget_behind(pair, kind):
    instances = getattr(W.widgets.widget, "_instances", None) or W.Widget.widgets  # of ipywidgets 8, and of 7
    before = set(instances)
    panel = a_panel(kind, pair)
    no_error(panel)
    assert len(set(instances) - before) > 10
    panel.close()
    assert set(instances) <= before
    panel.close()
    assert list(panel._repr_mimebundle_()[0]) == ["text/plain"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_panel_shows_a_still_picture_of_itself_where_no_kernel_runs(pair, kind):
    panel = a_panel(kind, pair)
    shown, metadata = panel._repr_mimebundle_()
    assert shown["application/vnd.jupyter.widget-view+json"]["model_id"] == panel.widget.model_id
    assert "run all cells" in shown["text/plain"]
    still = Image.open(io.BytesIO(base64.b64decode(shown["image/png"])))
    width, height = metadata["image/png"]["width"], metadata["image/png"]["height"]
    assert still.size == (2 * width, 2 * height)
    picture = opened(panel.image.value)
    assert width <= 760 and 2 * height > picture.height  # with a line of words below
    at = (still.width - picture.width, 0, still.width, picture.height)
    difference = ImageChops.difference(still.convert("RGB").crop(at), picture)
    assert ImageStat.Stat(difference).mean < [4, 4, 4]  # it has fewer colours


def test_panels_share_weights_until_a_file_changes(tmp_path):
    def a_copy(name):
        (tmp_path / "runs").mkdir(exist_ok=True)
        shutil.copy(checkpoints.SHIPPED / f"{name}.safetensors", tmp_path / "runs")

    first, second = panels.Completion(n=1), panels.TokenByToken()
    assert first.pair is second.pair and "shipped" in repr(first.pair)
    a_copy("vqvae"), a_copy("transformer")
    third = panels.Completion(n=1)
    assert third.pair is not first.pair and str(tmp_path) in repr(third.pair)
    assert panels.Completion(n=1).pair is third.pair


CELLS = """
import gc, os, psutil
from vqlib.notebook import panels
from ipywidgets.widgets import widget
---
studio = panels.{kind}()
studio
---
a, b = panels.Completion(n=1), panels.Completion(n=2)
---
gc.collect()
print(len(getattr(widget, "_instances", None) or widget.Widget.widgets), psutil.Process().memory_info().rss // 2**20)
"""


@pytest.mark.parametrize("kind", ["SamplingStudio", "CodeEditor"])
def test_a_cell_that_is_run_thirty_times_holds_one_panel(tmp_path, kind):
    notebook = nbformat.v4.new_notebook(
        cells=list(map(nbformat.v4.new_code_cell, CELLS.format(kind=kind).split("---\n")))
    )
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}})
    with client.setup_kernel():
        import_it, studio, two, measure = notebook.cells

        def run(cell):
            client.execute_cell(cell, notebook.cells.index(cell))
            return cell.outputs

        run(import_it)
        counts, sizes = [], []
        for _ in range(30):
            run(studio)
            run(two)
            count, size = map(int, run(measure)[0].text.split())
            counts.append(count), sizes.append(size)
    assert len(set(counts)) == 1, counts
    assert sizes[-1] - sizes[4] < 50, sizes  # MiB


def test_a_panel_computes_on_one_thread_whatever_is_set_and_leaves_all_as_it_was(monkeypatch, pair):
    seen = []
    monkeypatch.setattr(panels.Completion, "_write", lambda panel: seen.append(torch.get_num_threads()))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        panels.Completion(pair)
        assert seen == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_a_panel_draws_the_same_under_other_defaults():
    points = torch.randn(100, 2, generator=seeded())
    wanted = panels.QuantizerWalk(points).image.value
    torch.set_default_dtype(torch.float64)
    try:
        panel = panels.QuantizerWalk(points)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    no_error(panel)
    assert panel.image.value == wanted
