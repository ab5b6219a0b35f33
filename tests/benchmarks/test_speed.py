"""The benchmark runs, and writes what its table shows. Nobody promises times, so no test asks for any."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "speed.py"


def test_a_fast_try_writes_the_figures_that_its_table_shows(tmp_path):
    out = tmp_path / "speed.json"
    command = [sys.executable, SCRIPT, "--repeats", "1", "--only", "quantize", "data", "--out", out]
    table = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    results = json.loads(out.read_text())
    assert list(results["groups"]) == ["quantize 64 pictures, with backward and EMA", "feed 6,400 pictures"]
    for group, contenders in results["groups"].items():
        assert f"| **{group}** |" in table and "vqlib" in contenders
        for name, entry in contenders.items():
            assert entry["fastest"] <= entry["median"] <= entry["slowest"] and entry["first"] > 0
            assert f"| {name} |" in table
