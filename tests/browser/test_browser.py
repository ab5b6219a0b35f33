"""Notebook 05 in a real front end: JupyterLab in headless Chromium, driven by keyboard and mouse."""

import importlib.util
import os
from pathlib import Path

import lab
import pytest

ARTIFACTS = Path(__file__).parent / "artifacts"  # screenshots of the last run, not committed


def skip_or_fail(reason):
    if os.environ.get("CI"):
        pytest.fail(f"under CI this test may not be skipped: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if lab.browser_path() is None:
        skip_or_fail("no Chromium or Chrome on this machine (Debian, Ubuntu: apt install chromium)")
    if importlib.util.find_spec("playwright") is None:
        skip_or_fail("the package playwright is not installed (pip install -r requirements.txt)")
    with lab.server(tmp_path_factory.mktemp("lab")) as (address, _), lab.page(address) as page:
        ARTIFACTS.mkdir(exist_ok=True)
        try:
            lab.run_all(page, address, "05_sampling.ipynb")
        finally:
            page.screenshot(path=ARTIFACTS / "after_run_all.png")
        yield page


def shot(panel, name):
    panel.screenshot(path=ARTIFACTS / f"{name}.png")


def says(panel, text):
    """Wait until the panel's line of status holds this."""
    panel.locator(".widget-html", has_text=text).last.wait_for(timeout=10_000)


def readout(panel, label):
    slider = panel.locator(".widget-slider").filter(has=panel.page.locator(f'.widget-label:text-is("{label}")')).first
    return slider.locator(".widget-readout").inner_text()


def test_the_studio_by_keyboard(page):
    studio = lab.panel(page, "studio = panels.SamplingStudio")
    assert readout(studio, "class") == "Shirt"
    lab.press(studio, "class", "ArrowRight")
    assert readout(studio, "class") == "Sneaker"
    says(studio, "the judge sees Sneaker")
    shot(studio, "studio")
    lab.press(studio, "temperature", "ArrowLeft")
    assert readout(studio, "temperature") == "0.70"
    size = lab.picture(studio).bounding_box()
    lab.press(studio, "temperature", "ArrowLeft")
    assert lab.picture(studio).bounding_box() == size  # the page doesn't jump
    natural = lab.picture(studio).evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert [side / 2 for side in natural] == [size["width"], size["height"]]  # two pixels of the PNG for one here


def test_the_studios_other_knobs_unfold(page):
    studio = lab.panel(page, "studio = panels.SamplingStudio")
    studio.get_by_text("More").click()
    lab.handle(studio, "guidance").wait_for(state="visible")
    lab.press(studio, "guidance", "ArrowRight")
    shot(studio, "studio_more")


def greyed(panel, label):
    slider = panel.locator(".widget-slider").filter(has=panel.page.locator(f'.widget-label:text-is("{label}")')).first
    return slider.locator(".noUi-target").get_attribute("disabled") is not None


def test_new_seed_stands_in_front_and_is_greyed_where_all_pictures_are_alike(page):
    studio = lab.panel(page, "studio = panels.SamplingStudio")
    new_seed = studio.get_by_role("button", name="new seed")
    lab.changing(studio, new_seed.click)
    lab.press(studio, "temperature", "Home")
    says(studio, "all are the same")
    assert new_seed.is_disabled() and greyed(studio, "seed")
    lab.press(studio, "temperature", "ArrowRight")
    says(studio, "the judge sees")
    assert new_seed.is_enabled() and not greyed(studio, "seed")


@pytest.mark.parametrize("name", ["studio", "writing", "editor", "completion"])
def test_the_picture_stands_beside_its_controls_and_below_them_in_a_narrow_window(page, name):
    def places():
        panel = lab.panel(page, f"{name} = panels")
        slider, image = panel.locator(".widget-slider").first.bounding_box(), lab.picture(panel).bounding_box()
        return slider["x"] + slider["width"] <= image["x"], slider["y"] + slider["height"] <= image["y"]

    page.set_viewport_size({"width": 1400, "height": 900})
    try:
        assert places()[0]
        page.set_viewport_size({"width": 700, "height": 900})
        page.wait_for_timeout(300)
        assert places() == (False, True)
        controls = lab.panel(page, f"{name} = panels").locator(".widget-vbox").first
        assert controls.evaluate("box => box.scrollWidth <= box.clientWidth")  # nothing is cut off
    finally:
        page.set_viewport_size({"width": 1280, "height": 1000})


def test_token_by_token_opens_in_the_middle_and_plays(page):
    writing = lab.panel(page, "writing = panels.TokenByToken")
    assert readout(writing, "codes written") == "24"
    start = lab.picture(writing).get_attribute("src")
    writing.locator(".jupyter-button").first.click()  # play
    page.wait_for_function(
        "element => Number(element.innerText) >= 30",
        timeout=30_000,
        arg=writing.locator(".widget-readout").first.element_handle(),
    )
    assert lab.picture(writing).get_attribute("src") != start
    writing.locator(".jupyter-button").first.click()  # pause
    count = readout(writing, "codes written")
    page.wait_for_timeout(1500)  # what was under way arrives
    assert readout(writing, "codes written") == count
    shot(writing, "token_by_token")
    lab.press(writing, "layer", "ArrowRight")
    lab.press(writing, "codes written", "End")
    assert greyed(writing, "layer") and greyed(writing, "head")  # all is written: nothing is attended to


def test_the_code_editor_by_mouse(page):
    editor = lab.panel(page, "editor = panels.CodeEditor")
    cells, palette = editor.locator(".vqlib-grid").nth(0), editor.locator(".vqlib-grid").nth(1)
    cells.scroll_into_view_if_needed()
    assert readout(editor, "cell") == "24"
    lab.changing(editor, lambda: cells.click(position={"x": 2.5 * 28, "y": 3.5 * 28}))  # row 3, column 2
    assert readout(editor, "cell") == "23" and cells.get_attribute("aria-valuetext") == "cell 23"
    assert cells.evaluate("grid => getComputedStyle(grid).backgroundImage").count("blob:") == 1
    code = int(readout(editor, "its code"))
    other = 5 if code != 5 else 6
    lab.changing(editor, lambda: palette.click(position={"x": (other + 0.5) * 24, "y": 12}))
    says(editor, "1 code changed")
    assert readout(editor, "its code") == str(other)
    shot(editor, "code_editor")


def test_the_code_editor_by_keyboard_stays_in_its_grid(page):
    editor = lab.panel(page, "editor = panels.CodeEditor")
    cells = editor.locator(".vqlib-grid").nth(0)
    cells.click(position={"x": 2.5 * 28, "y": 3.5 * 28})
    prompt = page.locator(".jp-Notebook .jp-mod-active .jp-InputPrompt").inner_text()
    for key, number in (
        *[("ArrowRight", 24), ("ArrowDown", 31), ("ArrowUp", 24), ("ArrowLeft", 23), ("End", 27), ("Home", 21)],
        *[("ArrowLeft", 20), ("ArrowUp", 13), ("ArrowUp", 6), ("ArrowUp", 6)],  # nothing is above the first row
    ):
        page.keyboard.press(key)
        assert cells.get_attribute("aria-valuenow") == str(number)
        assert cells.evaluate("grid => grid === document.activeElement")
    editor.locator(".widget-readout").nth(1).filter(has_text="6").wait_for(timeout=10_000)  # the slider follows
    assert page.locator(".jp-Notebook .jp-mod-active .jp-InputPrompt").inner_text() == prompt  # the notebook stays, too


def test_keys_that_delete_or_choose_cells_do_nothing_in_a_panel(page):
    count = page.locator(".jp-Notebook .jp-Cell").count()
    editor = lab.panel(page, "editor = panels.CodeEditor")
    editor.locator(".vqlib-grid").nth(0).click(position={"x": 5, "y": 5})
    for key in "ddjjkkxab":
        page.keyboard.press(key)
    assert page.locator(".jp-Notebook .jp-Cell").count() == count
    assert editor.locator(".vqlib-grid").nth(0).evaluate("grid => grid === document.activeElement")


def test_sliders_take_all_four_arrow_keys(page):
    studio = lab.panel(page, "studio = panels.SamplingStudio")
    lab.press(studio, "temperature", "Home")
    for key, value in (("ArrowUp", "0.10"), ("ArrowUp", "0.20"), ("ArrowDown", "0.10")):
        lab.press(studio, "temperature", key)
        assert readout(studio, "temperature") == value


def test_completion_by_keyboard(page):
    completion = lab.panel(page, "completion = panels.Completion")
    lab.press(completion, "test picture", "ArrowRight")
    lab.press(completion, "rows to keep", "ArrowLeft")
    shot(completion, "completion")


def test_a_narrow_window_cuts_nothing_off(page):
    page.set_viewport_size({"width": 640, "height": 900})
    try:
        for code in ("studio = panels", "editor = panels", "completion = panels"):
            panel = lab.panel(page, code)
            room = panel.bounding_box()
            for image in panel.locator("img.widget-image").all():
                box = image.bounding_box()
                assert box["x"] + box["width"] <= room["x"] + room["width"] + 1
            shot(panel, f"narrow_{code.split()[0]}")
    finally:
        page.set_viewport_size({"width": 1280, "height": 1000})


def test_dark_theme(page):
    page.locator(".lm-MenuBar-item", has_text="Settings").click()
    page.locator(".lm-Menu-itemLabel", has_text="Theme").first.hover()
    page.locator(".lm-Menu-itemLabel", has_text="JupyterLab Dark").first.click()
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    shot(lab.panel(page, "studio = panels"), "dark_studio")
    shot(lab.panel(page, "editor = panels"), "dark_editor")


def test_up_to_here_neither_page_nor_console_complained(page):
    assert page.complaints == []
    errors = page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')
    assert errors.count() == 0


def test_a_panel_says_when_its_kernel_is_gone(page):
    studio = lab.panel(page, "studio = panels.SamplingStudio")
    note = studio.locator(".vqlib-gone")
    assert not note.is_visible()
    page.locator(".lm-MenuBar-item", has_text="Kernel").click()
    page.locator('.lm-Menu-item[data-command="kernelmenu:restart"]').click()
    page.locator(".jp-Dialog button", has_text="Restart").click()
    note.wait_for(state="visible", timeout=60_000)
    assert "Run all cells" in note.inner_text()
    shot(studio, "kernel_gone")
