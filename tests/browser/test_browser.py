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
    lab.changing(studio, studio.get_by_role("button", name="new seed").click)
    shot(studio, "studio_more")


def test_token_by_token_plays(page):
    writing = lab.panel(page, "writing = panels.TokenByToken")
    assert readout(writing, "codes written") == "0"
    start = lab.picture(writing).get_attribute("src")
    writing.locator(".jupyter-button").first.click()  # play
    page.wait_for_function(
        "element => Number(element.innerText) >= 8",
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


def test_a_click_in_the_code_editor(page):
    editor = lab.panel(page, "editor = panels.CodeEditor")
    lab.press(editor, "cell", "Home")
    assert readout(editor, "cell") == "0"
    cells, palette = (editor.locator(".widget-gridbox").nth(i).locator("button") for i in range(2))
    assert (cells.count(), palette.count()) == (49, 64)
    lab.changing(editor, cells.nth(24).click)
    assert readout(editor, "cell") == "24"
    ground = cells.nth(24).evaluate("button => getComputedStyle(button).backgroundImage")
    assert ground.startswith('url("data:image/png;base64,')
    assert cells.nth(24).evaluate("button => getComputedStyle(button).backgroundPosition") == "-96px -96px"
    palette.nth(5).focus()
    lab.changing(editor, lambda: page.keyboard.press("Enter"))
    says(editor, "1 code changed")  # it comes last, after the picture and the style sheet
    assert cells.nth(24).evaluate("button => getComputedStyle(button).backgroundImage") != ground
    assert readout(editor, "its code") == "5"
    shot(editor, "code_editor")


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


def test_at_the_end_neither_page_nor_console_complained(page):
    assert page.complaints == []
    errors = page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')
    assert errors.count() == 0
