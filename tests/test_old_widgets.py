"""The panels on Colab's versions, ipywidgets 7.7.1 and IPython 7.34: an environment layered over this one."""

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OLD = ["ipywidgets==7.7.1", "ipython==7.34.0", "ipykernel<7"]


def environment(**more):
    """This one's variables, without those that would put other packages or data first."""
    return {key: value for key, value in os.environ.items() if key not in ("VQLIB_DATA", "PYTHONPATH")} | more


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The layered environment's Python: its own ipywidgets, IPython and ipykernel; all else, torch too, from here."""
    folder = tmp_path_factory.mktemp("old") / "env"
    binary = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    try:
        venv.create(folder, with_pip=True, symlinks=os.name != "nt")
        subprocess.run([binary, "-m", "pip", "install", "-q", "--retries", "1", "--timeout", "15", *OLD], check=True,
                       capture_output=True, text=True, env=environment(), timeout=600)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"could not make an environment with {', '.join(OLD)}: {error} {str(error.stderr)[-300:]}")
    packages = shown(binary, "import sysconfig; print(sysconfig.get_path('purelib'))")[0]
    (Path(packages) / "zz_layer.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")  # searched after its own
    return binary


def shown(python, code):
    """The lines that this code prints there."""
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True,
                          env=environment()).stdout.splitlines()


def run(python, *arguments, cwd):
    env = environment(VQLIB_FAST="1", VQLIB_RUNS=str(cwd / "runs"), JUPYTER_PLATFORM_DIRS="1")
    done = subprocess.run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, arguments)], cwd=cwd,
                          env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_the_versions_are_colabs_and_torch_is_this_environments(python):
    import torch

    code = ("import ipywidgets, IPython, torch; print(ipywidgets.__version__, IPython.__version__, torch.__file__, "
            "sep='\\n')")
    assert shown(python, code) == ["7.7.1", "7.34.0", torch.__file__]


def test_the_panels_driven_by_their_traits(python, tmp_path):
    run(python, "--rootdir", ROOT / "tests", "-c", os.devnull, ROOT / "tests" / "test_widgets.py", cwd=tmp_path)


@pytest.mark.parametrize("name", ["02_vqvae", "05_sampling"])
def test_the_notebooks_with_panels(python, tmp_path, name):
    run(python, "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300", "--rootdir", ROOT / "notebooks",
        "-c", os.devnull, ROOT / "notebooks" / f"{name}.ipynb", cwd=tmp_path)
