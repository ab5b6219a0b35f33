"""From key press to new picture: the sampling studio of notebook 05, in JupyterLab, in headless Chromium.

    python tests/benchmarks/panel_latency.py                  # over five minutes; nothing else should be running
    python tests/benchmarks/panel_latency.py --moves 20       # a fast try

Moves the temperature by arrow key, at default settings. Prints milliseconds, median and 95th percentile of the first 50
moves, and the kernel's memory after the first and after all.
"""

import argparse
import re
import statistics
import sys
import tempfile
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "browser"))
import lab  # noqa: E402


def kernel_memory(server):
    """Resident memory of the server's kernels, in MiB."""
    kernels = [
        child
        for child in psutil.Process(server.pid).children(recursive=True)
        if any("ipykernel" in word for word in child.cmdline())
    ]
    return sum(kernel.memory_info().rss for kernel in kernels) / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=500)
    options = parser.parse_args()
    if options.moves < 1:
        parser.error("--moves must be at least 1")
    with (
        tempfile.TemporaryDirectory() as folder,
        lab.server(Path(folder)) as (address, server),
        lab.page(address) as page,
    ):
        lab.run_all(page, address, "05_sampling.ipynb")
        studio = lab.panel(page, "studio = panels.SamplingStudio")
        first = lab.press(studio, "temperature", "ArrowRight")
        memory, total, inside = kernel_memory(server), [], []
        for move in range(options.moves):
            total.append(1000 * lab.press(studio, "temperature", "ArrowLeft" if move % 8 < 4 else "ArrowRight"))
            page.wait_for_timeout(50)  # the status comes after the picture
            inside.append(int(re.search(r"(\d+) ms", studio.locator(".widget-html").last.inner_text())[1]))
        print(f"first move {1000 * first:.0f} ms; then, first {len(total[:50])} moves:")
        for name, values in (("key press to picture", total), ("of that, in the panel's own callback", inside)):
            values = sorted(values[:50])
            print(
                f"{name}: median {statistics.median(values):.0f} ms, 95th percentile "
                f"{values[round(0.95 * (len(values) - 1))]:.0f} ms"
            )
        print(
            f"kernel memory: {memory:.0f} MiB after the first move, {kernel_memory(server):.0f} MiB "
            f"after {options.moves} more"
        )
        assert page.complaints == [], page.complaints


if __name__ == "__main__":
    main()
