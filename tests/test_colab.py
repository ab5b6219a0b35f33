"""Colab without Colab: its versions, a stand-in for its module, and each notebook alone in an empty folder.

The repository's address is that of a local bare clone, by git's own ``insteadOf``: so the set-up cells run as they are,
and pip installs the package from there.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment, shown

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ADDRESS = "https://github.com/OWNER/vqvae-from-scratch"
DRIVE = """
from pathlib import Path
def mount(place, force_remount=False):
    Path("mounted").write_text(place)
"""

RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
versions = nbformat.v4.new_code_cell(
    "import ipywidgets, torch, vqlib; print(ipywidgets.__version__, torch.__version__, torch.__file__, vqlib.__file__)")
setup = notebook.cells[code[0]]
cells = notebook.cells if sys.argv[2] == "all" else notebook.cells[:code[0] + 1]
again = nbformat.v4.new_code_cell(setup.source)  # a second time: it must do no harm
notebook.cells = [*cells[:code[0] + 1], again, *cells[code[0] + 1:], versions]
NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
print(notebook.cells[-1].outputs[0].text)
"""


@pytest.fixture(scope="module")
def colab(old_python, tmp_path_factory):
    """That environment without vqlib and with ``google.colab``; a bare clone for git to fetch from."""
    folder = tmp_path_factory.mktemp("colab")
    packages = Path(shown(old_python, "import sysconfig; print(sysconfig.get_path('purelib'))")[0])
    layer = packages / "zz_layer.pth"
    whole = layer.read_text()
    layer.write_text(whole.replace(f"{ROOT}\n", ""))
    (packages / "google" / "colab").mkdir(parents=True)
    (packages / "google" / "colab" / "__init__.py").write_text("")
    (packages / "google" / "colab" / "drive.py").write_text(DRIVE)
    source = folder / "source"  # what is checked out here, committed or not
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".venv", "runs", "data", ".git", "__pycache__"))
    git(source, "init", "-q", "-b", "main")
    git(source, "add", "-A")
    git(source, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "as it is")
    git(folder, "clone", "-q", "--bare", str(source), str(folder / "bare.git"))
    yield old_python, (folder / "bare.git").as_uri()
    uninstall(old_python)
    layer.write_text(whole)
    shutil.rmtree(packages / "google")


def uninstall(python):
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "vqlib"], check=True, capture_output=True)


def git(folder, *arguments):
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def run(colab, path, folder, how):
    """Run a notebook that lies alone in an empty folder; returns what the versions' cell printed."""
    python, address = colab
    shutil.copy(path, folder)
    env = environment(
        VQLIB_FAST="1",
        HOME=str(folder.parent / "home"),
        JUPYTER_PLATFORM_DIRS="1",
        GIT_CONFIG_COUNT="1",
        GIT_CONFIG_KEY_0=f"url.{address}.insteadOf",
        GIT_CONFIG_VALUE_0=ADDRESS,
    )
    for name in ("VQLIB_RUNS", "XDG_CACHE_HOME"):
        env.pop(name, None)
    done = subprocess.run(
        [python, "-c", RUN, path.name, how], cwd=folder, env=env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout.split()


def as_expected(printed, folder):
    import torch

    widgets, version, torch_file, vqlib_file = printed
    assert widgets == "7.7.1" and (version, torch_file) == (torch.__version__, torch.__file__)  # nothing reinstalled
    assert "site-packages" in vqlib_file and str(ROOT) not in vqlib_file
    assert list(folder.iterdir()) == []


def test_the_set_up_cell_fetches_and_imports_twice_in_a_row(colab, tmp_path):
    folder = tmp_path / "content"
    folder.mkdir()
    printed = run(colab, NOTEBOOKS[1], folder, "the set-up cell")
    (folder / NOTEBOOKS[1].name).unlink()
    as_expected(printed, folder)


def set_up(path):
    """The set-up cell, without the imports, which differ."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "".join(next(cell for cell in cells if cell["cell_type"] == "code")["source"]).split("\n\nimport")[0]


def test_all_set_up_cells_begin_alike():
    assert len({set_up(path) for path in NOTEBOOKS}) == 1


def test_a_set_up_cell_that_cannot_install_says_how(colab, tmp_path):
    """Without the package and outside Colab: the address leads nowhere, or it isn't tried, since this is a checkout."""
    python, address = colab
    uninstall(python)
    checkout = tmp_path / "checkout" / "notebooks"
    checkout.mkdir(parents=True)
    (checkout.parent / "requirements.txt").touch()
    for folder, git_address in ((tmp_path, "file:///nowhere"), (checkout, address)):
        code = set_up(NOTEBOOKS[0]).replace(ADDRESS, git_address)
        done = subprocess.run([python, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True)
        said = done.stderr.splitlines()[-1]
        assert done.returncode and said.startswith("ImportError: This kernel's Python has no vqlib.")
        assert f"run: {python} -m pip install -q -r requirements.txt" in said
        assert "No module named" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_whole_notebook_runs_alone(colab, path, tmp_path):
    folder = tmp_path / "content"
    folder.mkdir()
    printed = run(colab, path, folder, "all")
    (folder / path.name).unlink()
    as_expected(printed, folder)


def test_checkpoints_can_be_kept_on_drive(colab, tmp_path):
    """The line that stands, commented out, at the top of notebooks 2 and 4."""
    line = "from vqlib import checkpoints; from vqlib.notebook import setup; setup.keep_on_drive()"
    for path in NOTEBOOKS:
        if path.stem in ("02_vqvae", "04_transformer"):
            assert "setup.keep_on_drive()" in path.read_text(encoding="utf-8")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {line}; print(checkpoints.runs_folder())"
    done = subprocess.run(
        [colab[0], "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert (tmp_path / "mounted").read_text() == "/content/drive"
    assert done.stdout.splitlines()[-1] == str(Path("/content/drive/MyDrive/vqvae-from-scratch/runs"))


def test_elsewhere_there_is_no_drive(monkeypatch):
    from vqlib.notebook import setup

    monkeypatch.setitem(sys.modules, "google.colab", None)
    before = os.environ["VQLIB_RUNS"]
    with pytest.raises(RuntimeError, match="Colab.*VQLIB_RUNS"):
        setup.keep_on_drive()
    assert os.environ["VQLIB_RUNS"] == before
