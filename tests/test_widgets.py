"""The panels, driven by their traits, without a front end."""

import io
import subprocess
import sys

import pytest
import torch
from PIL import Image

from vqlib import checkpoints, interactive, sampling, widgets
from vqlib.classifier import Classifier, ClassifierConfig
from vqlib.vqvae import VQVAE, VQVAEConfig


@pytest.fixture
def pair(transformer):
    torch.manual_seed(0)
    return transformer, VQVAE(VQVAEConfig(channels=8)).eval()


@pytest.fixture
def studio(pair):
    judges = [Classifier(ClassifierConfig(channels=4)).eval() for _ in range(2)]
    return widgets.SamplingStudio(*pair, *judges, n=3)


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
    assert panel.image.value == before, "the noise is held fixed: the same knobs give the same picture"


@pytest.mark.parametrize("control, value", [
    ("label", 2), ("temperature", 1.5), ("guidance", 3.0), ("top_k", 2), ("top_p", 0.3), ("n", 5), ("draws", 4),
    ("seed", 7),
])
def test_studio_each_control_changes_the_picture_and_back_again(studio, control, value):
    no_error(studio)
    moves(studio, control, value)


def test_studio_shows_what_sample_writes(studio):
    codes = sampling.sample(studio.transformer, torch.full((3,), 6), generator=torch.Generator().manual_seed(0))
    strip = interactive.write_strip(studio.transformer, studio.vqvae, studio.judge, 6, n=3)
    assert torch.equal(strip.images, studio.vqvae.decode(codes))
    assert studio.image.value == interactive.draw_strip(strip, 6)
    assert "of 3" in studio.status.value and "ms" in studio.status.value
    assert studio.image.layout.width == f"{interactive.png_size(studio.image.value)[0]}px"


def test_studio_draws_new_noise(studio):
    for _ in range(3):
        before = studio.image.value
        studio.new_seed.click()
        assert studio.image.value != before
    no_error(studio)


def test_studio_saves_without_overwriting(studio, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        studio.save.click()
        no_error(studio)
    saved = sorted(tmp_path.iterdir())
    assert [path.name for path in saved] == ["shirt-temperature0.8-seed0-2.png", "shirt-temperature0.8-seed0.png"]
    assert all(path.read_bytes() == studio.image.value for path in saved)
    assert str(saved[0]) in studio.status.value
    studio.label.value, studio.guidance.value, studio.draws.value = 0, 2.0, 2  # "T-shirt/top": no folder of that name
    studio.save.click()
    no_error(studio)
    assert (tmp_path / "t-shirt-top-temperature0.8-guidance2-seed0-best-of-2.png").is_file()


def test_studio_says_that_greedy_pictures_are_all_alike(studio):
    studio.temperature.value = 0.0
    no_error(studio)
    assert "all are the same" in studio.status.value
    before = studio.image.value
    studio.seed.value = 5
    assert studio.image.value == before


def test_an_error_is_shown_in_words_kept_and_forgotten(studio):
    before, vqvae = studio.image.value, studio.vqvae
    studio.vqvae = None
    studio.temperature.value = 1.0
    assert isinstance(studio.error, AttributeError) and "AttributeError" in studio.status.value
    assert studio.image.value == before and "from before" in studio.status.value
    studio.vqvae = vqvae
    studio.temperature.value = 0.8
    no_error(studio)


@pytest.mark.parametrize("panel", [widgets.SamplingStudio, widgets.TokenByToken, widgets.CodeEditor,
                                   widgets.Completion])
def test_without_weights_a_panel_says_what_to_run(panel, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path)
    monkeypatch.setenv("VQLIB_RUNS", str(tmp_path / "runs"))
    broken = panel()
    assert isinstance(broken.error, Exception)
    assert "vqvae.safetensors" in broken.status.value
    assert "git checkout" in broken.status.value or "python -m vqlib.training" in broken.status.value
    assert broken.widget.children == (broken.status,)


@pytest.fixture
def tokens_panel(pair):
    return widgets.TokenByToken(*pair)


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
    assert len(shown) == 50 and tokens_panel.trace is trace  # drawn, not written, anew
    tokens_panel.step.value = 20
    moves(tokens_panel, "layer", 1)
    moves(tokens_panel, "head", 3)
    assert (tokens_panel.layer.max, tokens_panel.head.max) == (1, 3)


def test_play_and_slider_are_tied_in_the_front_end(tokens_panel):
    assert tokens_panel.link.source == (tokens_panel.play, "value")
    assert tokens_panel.link.target == (tokens_panel.step, "value")
    assert (tokens_panel.play.min, tokens_panel.play.max) == (tokens_panel.step.min, tokens_panel.step.max) == (0, 49)


@pytest.fixture
def editor(pair):
    return widgets.CodeEditor(*pair)


def test_editor_a_click_on_a_cell_and_on_a_code_changes_one_code(editor):
    no_error(editor)
    original = editor.codes.clone()
    editor.cells[16].click()
    assert editor.cell.value == 16 and editor.code.value == original[2, 2]
    style, image = editor.style.value, editor.image.value
    code = (int(original[2, 2]) + 1) % 64
    editor.palette[code].click()
    no_error(editor)
    assert editor.code.value == code
    changed = (editor.codes != original).nonzero().tolist()
    assert changed == [[2, 2]] and editor.codes[2, 2] == code
    assert editor.style.value != style and editor.image.value != image
    assert f"{editor.prefix}-code-{code} {{outline" in editor.style.value
    assert "1 code changed" in editor.status.value
    now = sampling.log_likelihood(editor.transformer, editor.codes[None], editor.labels).item()
    assert f"{now:.1f} nats" in editor.status.value
    editor.reset.click()
    assert torch.equal(editor.codes, original) and "0 codes changed" in editor.status.value


def test_editor_moving_to_another_cell_changes_no_code(editor):
    original = editor.codes.clone()
    for cell in range(49):
        editor.cell.value = cell
        assert editor.code.value == original.flatten()[cell]
    assert torch.equal(editor.codes, original)
    no_error(editor)


def test_editor_resamples_what_comes_after_the_cell(editor):
    original = editor.codes.clone().flatten()
    editor.cell.value = 20
    results = []
    for _ in range(3):
        editor.resample.click()
        no_error(editor)
        now = editor.codes.flatten()
        assert torch.equal(now[:21], original[:21]) and not torch.equal(now[21:], original[21:])
        results.append(now)
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])
    editor.cell.value = 48
    editor.resample.click()  # nothing comes after the last
    no_error(editor)
    assert torch.equal(editor.codes.flatten(), results[-1]) and "nothing comes after" in editor.status.value
    editor.graft.click()
    no_error(editor)
    assert torch.equal(editor.codes.flatten(), results[-1]) and "no row below" in editor.status.value


def test_editor_grafts_the_rows_below(editor):
    original = editor.codes.clone()
    before, status = editor.second.value, editor.status.value
    editor.other.value = 123
    assert editor.second.value != before and editor.status.value == status
    editor.cell.value = 16  # in row 2
    editor.graft.click()
    no_error(editor)
    second = editor.vqvae.encode(editor._image(slice(123, 124)))[0]
    assert torch.equal(editor.codes[:3], original[:3]) and torch.equal(editor.codes[3:], second[3:])


def test_editor_another_picture_brings_its_codes_and_class(editor):
    editor.number.value = 7
    no_error(editor)
    assert torch.equal(editor.codes, editor.vqvae.encode(editor._image(slice(7, 8)))[0])
    assert editor.labels.item() == editor.pictures.labels[7]


def test_two_editors_do_not_share_their_style(pair):
    first, second = widgets.CodeEditor(*pair), widgets.CodeEditor(*pair)
    assert first.prefix != second.prefix and first.prefix not in second.style.value


@pytest.mark.parametrize("control, value", [("number", 7), ("rows", 5), ("temperature", 1.7), ("seed", 3)])
def test_completion_each_control_changes_the_picture_and_back_again(pair, control, value):
    panel = widgets.Completion(*pair, n=2)
    no_error(panel)
    moves(panel, control, value)


def test_completion_with_all_rows_given_is_the_copy(pair):
    panel = widgets.Completion(*pair, n=2)
    panel.rows.value = 7
    no_error(panel)
    picture = Image.open(io.BytesIO(panel.image.value))
    copy, first, second = (picture.crop((2 * (6 + 118 * i), 12, 2 * (118 + 118 * i), 236)) for i in (1, 2, 3))
    assert copy.tobytes() == first.tobytes() == second.tobytes()


@pytest.mark.parametrize("control, value", [("step", 9), ("start", "k-means"), ("revive", 0.3), ("K", 5),
                                            ("decay", 0.5), ("seed", 3)])
def test_walk_each_control_changes_the_picture_and_back_again(control, value):
    panel = widgets.QuantizerWalk(torch.randn(100, 2, generator=torch.Generator().manual_seed(0)))
    panel.step.value = 30
    no_error(panel)
    moves(panel, control, value)


def test_a_panel_leaves_the_transformer_in_the_mode_it_was_in(pair):
    transformer, vqvae = pair
    transformer.train()
    no_error(widgets.Completion(transformer, vqvae))
    assert transformer.training


def test_without_ipywidgets_the_error_says_what_to_install():
    code = "import sys; sys.modules['ipywidgets'] = None; import vqlib.widgets"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 1 and process.stderr.strip().endswith(
        "ImportError: the panels need ipywidgets: pip install ipywidgets")
