"""Notebook 05 in the other front ends: Notebook 7, nbclassic, which is that of Notebook 6, and Voilà."""

import importlib.util
import json
import socket
import subprocess
import time

import lab
import pytest
from conftest import environment, layered

NAME = "05_sampling.ipynb"
CELLS = json.loads((lab.ROOT / "notebooks" / NAME).read_text(encoding="utf-8"))["cells"]
COUNT = sum(cell["cell_type"] == "code" for cell in CELLS)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    if lab.browser_path() is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("needs Chromium or Chrome, and the package playwright")
    return layered(
        tmp_path_factory.mktemp("classic") / "env", ["notebook>=7", "nbclassic", "voila", "ipywidgets>=8", "anywidget"]
    )


def by_mouse_and_by_keyboard(page, place, keyboard=True):
    """The studio's picture follows its slider, and the code editor's its grid. ``place`` holds both."""
    label = page.locator('.widget-label:text-is("temperature")')
    slider = place.locator(".widget-slider:visible").filter(has=label).first
    slider.scroll_into_view_if_needed()
    assert slider.locator(".widget-readout").inner_text() == "0.80"
    track = slider.locator(".noUi-target").bounding_box()
    at = track["x"] + 0.7 * track["width"], track["y"] + track["height"] / 2
    lab.changing(place, lambda: page.mouse.click(*at))
    now = float(slider.locator(".widget-readout").inner_text())
    assert 1.2 < now < 1.6  # of 2
    if keyboard:
        slider.locator(".noUi-handle").focus()
        lab.changing(place, lambda: page.keyboard.press("ArrowUp"))
        assert float(slider.locator(".widget-readout").inner_text()) == pytest.approx(now + 0.1)
    cells = page.locator(".vqlib-grid").first
    cells.scroll_into_view_if_needed()
    cells.click(position={"x": 2.5 * 28, "y": 3.5 * 28})
    page.keyboard.press("ArrowDown")
    assert cells.get_attribute("aria-valuetext") == "cell 30"
    assert cells.evaluate("grid => grid === document.activeElement")


def test_notebook_7(python, tmp_path):
    with lab.server(tmp_path, python, "notebook") as (address, _), lab.page(address) as page:
        page.goto(f"{address}/notebooks/{NAME}", timeout=60_000)
        page.locator(".jp-Notebook .jp-Cell").nth(len(CELLS) - 1).wait_for(state="attached", timeout=60_000)
        page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(state="attached", timeout=60_000)
        page.wait_for_function(
            """async () => { const kernels = await (await fetch("/api/kernels")).json();
            return kernels.some(k => k.connections > 0 && k.execution_state === "idle"); }""",
            timeout=60_000,
        )
        page.locator(".lm-MenuBar-item", has_text="Run").click()
        page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
        last = page.locator(".jp-Notebook .jp-CodeCell .jp-InputArea-prompt").nth(COUNT - 1)
        page.wait_for_function(
            "([prompt, text]) => prompt.innerText.trim() === text",
            timeout=300_000,
            arg=[last.element_handle(), f"[{COUNT}]:"],
        )
        assert page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]').count() == 0
        cell = page.locator(".jp-CodeCell").filter(has_text="studio = panels.SamplingStudio").first
        by_mouse_and_by_keyboard(page, cell)


def test_nbclassic(python, tmp_path):
    with lab.server(tmp_path, python, "nbclassic") as (address, _), lab.page(address) as page:
        page.goto(f"{address}/nbclassic/notebooks/{NAME}", timeout=60_000)
        page.wait_for_function("window.Jupyter?.notebook?.kernel?.is_connected()", timeout=60_000)
        page.wait_for_function("Jupyter.notebook.kernel.info_reply.status === 'ok'", timeout=60_000)
        page.evaluate("Jupyter.notebook.clear_all_output(); Jupyter.notebook.execute_all_cells()")
        page.wait_for_function(
            """count => Jupyter.notebook.get_cells().filter(c => c.cell_type === "code")
            .at(-1).input_prompt_number === count""",
            arg=COUNT,
            timeout=300_000,
        )
        assert (
            page.evaluate("""Jupyter.notebook.get_cells().filter(
            c => c.output_area?.outputs.some(o => o.output_type === "error")).length""")
            == 0
        )
        cell = page.locator("div.code_cell").filter(has_text="studio = panels.SamplingStudio").first
        by_mouse_and_by_keyboard(page, cell)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_voila(python, tmp_path, theme):
    """It runs the notebook for the page, and shows the outputs only."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "voila", lab.ROOT / "notebooks" / NAME, "--no-browser", f"--port={port}"]
    command += [f"--theme={theme}", "--Voila.ip=127.0.0.1", "--VoilaExecutor.timeout=300"]
    env = environment(VQLIB_FAST="1", VQLIB_RUNS=str(tmp_path / "runs"))
    with open(tmp_path / "voila.log", "wb") as log:
        process = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.time() + 60
        while True:
            with socket.socket() as knock:  # it answers a request only when all has run, and each runs it anew
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None and time.time() < deadline, (tmp_path / "voila.log").read_text()
            time.sleep(0.5)
        with lab.page(f"http://127.0.0.1:{port}") as page:
            page.goto(f"http://127.0.0.1:{port}", timeout=300_000)
            page.locator(".vqlib-panel").nth(3).wait_for(timeout=300_000)
            studio = page.locator(".vqlib-panel").first
            by_mouse_and_by_keyboard(page, studio)
    finally:
        process.terminate()
        process.wait(30)
