"""The panels with Colab's versions, ipywidgets 7.7.1 and IPython 7.34. (For the notebooks there, see test_colab.py.)"""

import os
import subprocess
from pathlib import Path

from conftest import environment, shown

ROOT = Path(__file__).parent.parent


def run(python, *arguments, cwd):
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, arguments)]
    env = environment(VQLIB_FAST="1", VQLIB_RUNS=str(cwd / "runs"), JUPYTER_PLATFORM_DIRS="1")
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_the_versions_are_colabs_and_torch_is_this_environments(old_python):
    import torch

    code = "import ipywidgets, IPython, torch; print(ipywidgets.__version__, IPython.__version__, torch.__file__)"
    assert shown(old_python, code) == [f"7.7.1 7.34.0 {torch.__file__}"]


def test_the_panels_driven_by_their_traits(old_python, tmp_path):
    run(old_python, "--rootdir", ROOT / "tests", "-c", os.devnull, ROOT / "tests" / "test_panels.py", cwd=tmp_path)
