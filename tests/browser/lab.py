"""Jupyter in headless Chromium: what the browser tests and the latency benchmark share."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
QUIET = (  # the browser shouldn't look for other machines
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-quic", "--disable-component-update", "--disable-sync"),
)
BROWSERS = ("chromium", "google-chrome-stable", "google-chrome", "chromium-browser", "chrome")


def browser_path():
    """The path of a Chromium or Chrome that starts, or None."""
    return next((path for path in map(shutil.which, BROWSERS) if path and _starts(path)), None)


def _starts(path):
    if os.name != "posix":
        return True  # on Windows, asking for the version may open a window
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@contextlib.contextmanager
def server(folder, python=sys.executable, module="jupyterlab"):
    """Start Jupyter on a copy of the notebooks, with settings of its own. Yields its address and its process.

    folder: an empty folder for everything that it writes. The notebooks run at the speed of the tests.
    python: the interpreter. module: "jupyterlab", "notebook" (7), or "nbclassic" (the front end of Notebook 6).
    """
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    for name, setting in {
        "notebook-extension/tracker": {"windowingMode": "none"},  # keep cells that are out of sight
        "apputils-extension/notification": {"fetchNews": "false"},
    }.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(setting))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    env = (
        {key: value for key, value in os.environ.items() if key != "VQLIB_DATA"}
        | own
        | {
            "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
            "IPYTHONDIR": str(folder / "ipython"),
            "VQLIB_RUNS": str(folder / "runs"),
            "VQLIB_FAST": "1",
        }
    )
    command = [
        python,
        "-m",
        module,
        "--no-browser",
        "--allow-root",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder / 'notebooks'}",
    ]
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(240):
            with contextlib.suppress(OSError):
                direct.open(f"{address}/api/status", timeout=5).read()
                break
            if process.poll() is not None:
                raise RuntimeError(f"{module} ended:\n{(folder / 'server.log').read_text()[-3000:]}")
            time.sleep(0.25)
        else:
            raise RuntimeError(f"{module} did not answer:\n{(folder / 'server.log').read_text()[-3000:]}")
        yield address, process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def page(address, width=1280, height=1000):
    """A page of a headless browser, which collects errors of the page and its console in ``page.complaints``."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=list(QUIET))
        page = browser.new_page(viewport={"width": width, "height": height})
        page.complaints = []
        page.route(
            lambda url: (
                not url.startswith((address, "blob:", "data:"))
            ),  # such as the badge: answer as if there were a network
            lambda route: route.fulfill(status=200, content_type="image/svg+xml", body="<svg/>"),
        )
        page.on("pageerror", lambda error: page.complaints.append(f"page: {error}"))
        page.on(
            "console",
            lambda message: page.complaints.append(f"console: {message.text}") if message.type == "error" else None,
        )
        yield page
        browser.close()


def run_all(page, address, name, timeout_s=300):
    """Open a notebook, run all its cells, and wait until they have run."""
    notebook = json.loads((ROOT / "notebooks" / name).read_text(encoding="utf-8"))
    cells = [cell["cell_type"] for cell in notebook["cells"]]
    page.goto(f"{address}/lab/tree/{name}", timeout=60_000)
    page.locator(".jp-Notebook .jp-Cell").nth(len(cells) - 1).wait_for(state="attached", timeout=60_000)
    page.locator(".jp-StatusBar-Widget", has_text="Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    page.locator(".lm-MenuBar-item", has_text="Run").click()
    page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
    prompts = page.locator(".jp-Notebook .jp-CodeCell .jp-InputArea-prompt")
    last, count, started = prompts.nth(cells.count("code") - 1), cells.count("code"), False
    deadline = time.time() + timeout_s
    while time.time() < deadline:
        shown = last.inner_text().strip()
        started = started or shown == "[*]:"
        if started and shown == f"[{count}]:":
            return
        time.sleep(0.1)
    raise TimeoutError(f"{name} did not end within {timeout_s} s; its last cell shows {shown!r}")


def panel(page, code):
    """The output of the cell that begins with this code."""
    cell = page.locator(".jp-Notebook .jp-CodeCell").filter(has=page.locator(".jp-InputArea", has_text=code)).first
    output = cell.locator(".vqlib-panel").first
    output.scroll_into_view_if_needed()
    return output


def handle(panel, label):
    """The knob of the slider with this description, for the keyboard."""
    slider = panel.locator(".widget-slider").filter(has=panel.page.locator(f'.widget-label:text-is("{label}")')).first
    return slider.locator(".noUi-handle")


def picture(panel):
    """The panel's picture."""
    return panel.locator("img.vqlib-picture").first


WATCH = """image => { window.seen = null; const began = performance.now();
new MutationObserver((_, watch) => { window.seen = performance.now() - began; watch.disconnect(); })
    .observe(image, {attributes: true, attributeFilter: ["src"]}); }"""


def changing(panel, act):
    """Do something, wait until the picture changes, and return how many seconds that took.

    New bytes give the picture a new address, and an observer in the page notes the time by the page's own clock.
    """
    picture(panel).evaluate(WATCH)
    act()
    panel.page.wait_for_function("window.seen !== null", polling=100, timeout=30_000)
    return panel.page.evaluate("window.seen") / 1000


def press(panel, label, key):
    """Focus a slider, press a key, wait until the picture changes, and return the seconds since the key press."""
    handle(panel, label).focus()
    return changing(panel, lambda: panel.page.keyboard.press(key))
