"""The set-up lines of a notebook, and what a reader sees in a real kernel after the stop button."""

import os
import re
import sys
import types

import nbformat
import pytest
import torch
from conftest import environment
from jupyter_client import KernelManager
from nbclient import NotebookClient

import vqlib
from vqlib import checkpoints
from vqlib.notebook import setup


def test_versions_names_what_a_notebook_runs_on():
    line = setup.versions()
    assert all(word in line for word in (torch.__version__, f"vqlib {vqlib.__version__}", "cpu", "seed 0"))
    assert "\n" not in line


QUIETLY = """
import pkgutil, sys, warnings
warnings.simplefilter("always")
warnings.simplefilter("ignore", DeprecationWarning)  # of other packages' code
sys.modules["ipywidgets"] = None  # as if it were not installed
import vqlib
names = [module.name for module in pkgutil.walk_packages(vqlib.__path__, "vqlib.") if "panels" not in module.name]
for name in names:
    if not name.endswith("__main__"):
        __import__(name)
print(len(names))
"""


def test_without_ipywidgets_imports_warn_of_nothing():
    """In a kernel: there ``tqdm.auto``, for one, warns that it can't show its bar as a widget."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(QUIETLY)])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    assert [output.name for output in outputs] == ["stdout"] and int(outputs[0].text) > 25, outputs


def test_runs_are_kept_on_google_drive_in_colab_only(monkeypatch, capsys):
    with pytest.raises(RuntimeError, match="VQLIB_RUNS"):
        setup.keep_on_drive()
    mounted, colab = [], types.ModuleType("google.colab")
    colab.drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    setup.keep_on_drive()
    assert mounted == ["/content/drive"] and os.environ["VQLIB_RUNS"].startswith("/content/drive/MyDrive/")
    assert str(checkpoints.runs_folder()) in capsys.readouterr().out


SET_UP = "from vqlib.notebook import setup; print(setup.versions())"
TRAINING = """
import dataclasses
from vqlib import data, training
recipe = dataclasses.replace(training.ORIGINAL_VQVAE, epochs=1000, batch_size=2)
tokenizer = training.train_vqvae(recipe, data.load_mini("train"), path="vqvae.safetensors", device="cpu")
"""
SLEEPING = """
import sys, time
print("50%", file=sys.stderr)
time.sleep(60)
for i, (rested, *others) in enumerate([(True,)]): pass
"""


@pytest.fixture(scope="module", params=["these versions", "Colab's versions"])
def kernel(request, tmp_path_factory):
    """A function that runs a cell, interrupts it at its first sign of progress if asked to, and returns its error."""
    manager = KernelManager(kernel_name="python3")
    if request.param == "Colab's versions":
        manager.kernel_spec.argv[0] = str(request.getfixturevalue("old_python"))
    manager.start_kernel(cwd=str(tmp_path_factory.mktemp("kernel")), env=environment())
    client = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=60)

    def run(code, interrupted=False):
        error, asked = None, client.execute(code)
        while True:
            message = client.get_iopub_msg(timeout=120)
            content = message["content"]
            if message["parent_header"].get("msg_id") != asked:
                continue
            if interrupted and "%" in content.get("text", ""):
                manager.interrupt_kernel()
                interrupted = False
            if message["msg_type"] == "error":
                error = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(content["traceback"]))
            if content.get("execution_state") == "idle":
                assert client.get_shell_msg(timeout=60)["content"]["status"] == ("error" if error else "ok")
                return error

    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_after_the_stop_button_the_next_cells_say_what_is_missing_and_how_to_go_on(kernel):
    assert kernel(SET_UP) is None
    stopped = kernel(TRAINING, interrupted=True)
    assert stopped.startswith("KeyboardInterrupt: Stopped at step ") and "\n" not in stopped
    missing = kernel("print(tokenizer)")
    assert "NameError: name 'tokenizer' is not defined" in missing and "----> 1 print(tokenizer)" in missing
    assert missing.endswith(
        "the cell that makes it, [2], may not have run to its end. Run it again; "
        "what it trains goes on from its checkpoint."
    )
    assert kernel("def describe():\n    return tokenizer") is None
    assert "[2], may not have run to its end" in kernel("describe()")  # within a function of the notebook's, too


def test_a_cell_that_does_not_train_is_to_be_run_again_as_well(kernel):
    assert (
        kernel(SLEEPING, interrupted=True)
        == "KeyboardInterrupt: This cell was stopped before its end. %tb shows where."
    )
    assert kernel("rested").endswith("may not have run to its end. Run it again.")


def test_a_cell_before_the_one_that_makes_a_name_is_sent_there(kernel):
    assert kernel("nowhere = elsewhere").endswith(
        "`elsewhere` isn't there yet: no cell that has run makes it. Run the cells above this one first, in order."
    )
    assert "`nowhere` isn't there yet: the cell that makes it" in kernel("nowhere")


def test_other_errors_look_as_ever(kernel):
    for code, last in {
        "1 / 0": "ZeroDivisionError: division by zero",
        "raise NameError('by hand')": "NameError: by hand",
        "def f():\n    local; local = 1\nf()": "UnboundLocalError",
        "import string; exec('absent', vars(string))": "NameError: name 'absent' is not defined",
    }.items():
        assert last in kernel(code).splitlines()[-1]
