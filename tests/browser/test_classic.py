"""Notebook 05 in the other two front ends: Notebook 7, and nbclassic, which is that of Notebook 6."""

import importlib.util
import json

import lab
import pytest
from conftest import layered

NAME = "05_sampling.ipynb"
CELLS = json.loads((lab.ROOT / "notebooks" / NAME).read_text(encoding="utf-8"))["cells"]
COUNT = sum(cell["cell_type"] == "code" for cell in CELLS)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    if lab.browser_path() is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("needs Chromium or Chrome, and the package playwright")
    return layered(tmp_path_factory.mktemp("classic") / "env", ["notebook>=7", "nbclassic", "ipywidgets>=8"])


def raise_the_temperature(page, cell):
    """The studio's picture follows its slider, by mouse: in Notebook 7 the arrow keys move from cell to cell."""
    slider = cell.locator(".widget-slider:visible").filter(has=page.locator('.widget-label:text-is("temperature")'))
    slider.scroll_into_view_if_needed()
    assert slider.locator(".widget-readout").inner_text() == "0.80"
    track = slider.locator(".noUi-target").bounding_box()
    at = track["x"] + 0.7 * track["width"], track["y"] + track["height"] / 2
    lab.changing(cell, lambda: page.mouse.click(*at))
    assert 1.2 < float(slider.locator(".widget-readout").inner_text()) < 1.6  # of 2


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
        raise_the_temperature(page, cell)


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
        raise_the_temperature(page, cell)
