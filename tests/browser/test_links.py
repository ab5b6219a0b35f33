"""Every link of every notebook, clicked in JupyterLab, which is started by the README's first command."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import lab
import pytest
from test_browser import skip_or_fail

COMMAND = re.search(r"jupyter (lab .*)", (lab.ROOT / "README.md").read_text(encoding="utf-8"))[1]
NOTEBOOKS = sorted(path.relative_to(lab.ROOT) for path in (lab.ROOT / "notebooks").glob("**/*.ipynb"))
NOT_COPIED = shutil.ignore_patterns(".*", "runs", "data", "artifacts", "__pycache__", "*.safetensors")
FRONT = ".lm-TabBar-tab.jp-mod-current"  # the tab of the document in front


def links(path):
    """Where the relative links of a notebook lead, in their order, from the repository's root."""
    cells = json.loads((lab.ROOT / path).read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    found = [link.split("#")[0] for link in re.findall(r"(?<!!)\[[^\]]*\]\(([^):]+)\)", text)]
    return [os.path.normpath(Path(path).parent / link).replace(os.sep, "/") for link in found]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page, and the address that a reader's browser would be sent to."""
    if lab.browser_path() is None or importlib.util.find_spec("playwright") is None:
        skip_or_fail("needs Chromium or Chrome, and the package playwright")
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(lab.ROOT, folder / "repository", ignore=NOT_COPIED)
    for name, setting in {
        "notebook-extension/tracker": {"windowingMode": "none"},
        "apputils-extension/notification": {"fetchNews": "false"},
    }.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(setting))
    own = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    command = [sys.executable, "-m", "jupyterlab", *shlex.split(COMMAND)[1:], "--no-browser", "--allow-root"]
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(
            command,
            env=os.environ | own | {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")},
            cwd=folder / "repository",
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(240):
            if opened := list(folder.glob("runtime/*file-to-run*.html")):
                break
            assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
            time.sleep(0.25)
        address = re.search(r'href="(http://[^"]+)"', opened[0].read_text(encoding="utf-8"))[1]
        with lab.page(address.split("/lab")[0]) as page:
            yield page, address
    finally:
        process.terminate()  # the kernels as well
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def in_front(page, path):
    """Wait until this document is in front, loaded, and no dialog says that it can't be."""
    page.wait_for_function(
        """([tab, path]) => {
            const title = document.querySelector(tab)?.title ?? "", shown = ".jp-Document:not(.lm-mod-hidden)";
            return title.includes(`Path: ${path}\\n`) && document.querySelector(shown)?.innerText.length > 100;
        }""",
        arg=[FRONT, path],
        timeout=60_000,
    )
    assert page.locator(".jp-Dialog").count() == 0


def test_the_command_opens_the_first_notebook(page):
    page, address = page
    page.goto(address, timeout=60_000)
    in_front(page, "notebooks/01_data.ipynb")


@pytest.mark.slow
@pytest.mark.parametrize("path", [path.as_posix() for path in NOTEBOOKS])
def test_each_link_opens_what_it_names(page, path):
    page, address = page
    page.goto(address.replace("notebooks/01_data.ipynb", path) + "&reset", timeout=60_000)
    in_front(page, path)
    tab = page.locator(FRONT).element_handle()
    ours = page.locator(".jp-NotebookPanel").first.locator(".jp-RenderedMarkdown a[href*='/files/']")
    ours.nth(len(links(path)) - 1).wait_for(state="attached", timeout=30_000)
    assert ours.count() == len(links(path))
    for i, target in enumerate(links(path)):
        ours.nth(i).click()
        in_front(page, target)
        tab.click()
        in_front(page, path)
    assert page.complaints == []
