"""From key press to new picture: each panel of notebooks 2 and 5, in JupyterLab, in headless Chromium.

    python tests/benchmarks/panel_latency.py              # three minutes; nothing else should be running
    python tests/benchmarks/panel_latency.py --moves 500  # and then the sampling studio's temperature so often

Moves sliders by arrow key, at default settings, and prints milliseconds: median and 95th percentile. Then drags the
studio's temperature for three seconds, and prints how long after the last move its picture came, and how many pictures
there were. Last, the kernel's memory after the first move of the studio and after all.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "browser"))
import lab  # noqa: E402

SLIDERS = {
    "02_vqvae.ipynb": {"walk = panels": ("step", "revive below")},
    "05_sampling.ipynb": {
        "writing = panels": ("codes written", "class", "layer"),
        "editor = panels": ("cell", "its code"),
        "completion = panels": ("rows to keep", "seed"),
        "studio = panels": ("temperature", "class", "seed"),
    },
}
COUNT = """image => { window.count = 0; window.last = 0;
new MutationObserver(() => { window.count += 1; window.last = performance.now(); })
    .observe(image, {attributes: true, attributeFilter: ["src"]}); }"""


def kernel_memory(server):
    """Resident memory of the server's kernels, in MiB."""
    kernels = [
        child
        for child in psutil.Process(server.pid).children(recursive=True)
        if any("ipykernel" in word for word in child.cmdline())
    ]
    return sum(kernel.memory_info().rss for kernel in kernels) / 2**20


def moved(panel, label, moves):
    """Milliseconds of so many moves of a slider, there and back again."""
    keys = ("ArrowLeft", "ArrowRight") if label == "class" else ("ArrowRight", "ArrowLeft")  # the last class may be set
    return [1000 * lab.press(panel, label, keys[i % 2]) for i in range(moves)]


def dragged(page, panel):
    """Drag the temperature for three seconds: milliseconds until the picture of the last move, and how many came."""
    lab.handle(panel, "temperature").scroll_into_view_if_needed()
    lab.picture(panel).evaluate(COUNT)
    knob, track = (
        lab.handle(panel, "temperature").bounding_box(),
        lab.handle(panel, "temperature").locator("xpath=ancestor::*[contains(@class,'noUi-target')]").bounding_box(),
    )
    y = knob["y"] + knob["height"] / 2
    page.mouse.move(knob["x"] + knob["width"] / 2, y)
    page.mouse.down()
    for i in range(100):
        page.mouse.move(track["x"] + track["width"] * (0.3 + 0.6 * abs(i % 40 - 20) / 20), y)
        page.wait_for_timeout(30)
    page.mouse.up()
    let_go = page.evaluate("performance.now()")
    time.sleep(3)
    return page.evaluate("window.last") - let_go, page.evaluate("window.count")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=0, help="further moves of the studio")
    options = parser.parse_args()
    for notebook, panels in SLIDERS.items():
        with tempfile.TemporaryDirectory() as folder, lab.server(Path(folder)) as (address, server):
            with lab.page(address) as page:
                lab.run_all(page, address, notebook)
                for code, labels in panels.items():
                    panel = lab.panel(page, code)
                    for label in labels:
                        values = sorted(moved(panel, label, 24))
                        shown = f"median {statistics.median(values):.0f} ms, 95th percentile {values[22]:.0f} ms"
                        print(f"{code.split()[0]}, {label}: {shown}", flush=True)
                if notebook == list(SLIDERS)[-1]:
                    memory = kernel_memory(server)
                    late, count = dragged(page, panel)
                    print(f"dragged for 3 s: {count} pictures, the last {late:.0f} ms after the knob was let go")
                    moved(panel, "temperature", options.moves)
                    after = kernel_memory(server)
                    print(f"kernels' memory: {memory:.0f} MiB, {after:.0f} MiB after {options.moves} more moves")
                assert page.complaints == [], page.complaints


if __name__ == "__main__":
    main()
