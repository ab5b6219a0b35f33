"""Draw notebooks/panels.png, the README's picture of two panels: notebook 05 in JupyterLab, in headless Chromium.

python tools/make_panels.py
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "browser"))
import lab  # noqa: E402

with tempfile.TemporaryDirectory() as folder, lab.server(Path(folder)) as (address, _), lab.page(address, 1400) as page:
    lab.run_all(page, address, "05_sampling.ipynb")
    writing, editor = (lab.panel(page, code) for code in ("writing = panels", "editor = panels"))
    palette = editor.locator(".vqlib-grid").nth(1)
    at = {"x": 4.5 * 24, "y": 3.5 * 24}  # code 28, a black one, in the middle cell
    lab.changing(editor, lambda: palette.click(position=at))
    editor.locator(".widget-html", has_text="1 code changed").wait_for()  # it comes after the picture and the style
    shots = [Image.open(io.BytesIO(panel.screenshot())).convert("RGB") for panel in (writing, editor)]
width = 960
shots = [shot.crop((0, 0, width, shot.height)) for shot in shots]
sheet = Image.new("RGB", (width, sum(shot.height for shot in shots) + 24), "white")
sheet.paste(shots[0], (0, 0))
sheet.paste(shots[1], (0, shots[0].height + 24))
path = ROOT / "notebooks" / "panels.png"
sheet.quantize(128).save(path, optimize=True)
print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
