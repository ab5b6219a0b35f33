"""The first lines of a notebook: what it runs on, where its runs are kept, helpful errors."""

import os
import symtable
import sys

import torch

import vqlib
from vqlib import checkpoints


def versions(device="cpu"):
    """One line that says what a notebook runs on: versions, device and random seed. From here on errors are explained.

    See `explain_errors`. It is called here, since every notebook begins with this.
    """
    explain_errors()
    where = f"{device}, {torch.get_num_threads()} threads"
    if "cuda" in str(device):
        where = torch.cuda.get_device_name(device)
    python = sys.version.split()[0]
    return f"Python {python}, torch {torch.__version__}, vqlib {vqlib.__version__}, device {where}, random seed 0"


def keep_on_drive():
    """Keep the runs on Google Drive, so that they outlive the Colab machine. Colab asks for permission first.

    Raises RuntimeError outside Colab.
    """
    try:
        from google.colab import drive
    except ImportError:
        words = "keep_on_drive works only in Colab. Elsewhere runs are kept anyway"
        raise RuntimeError(
            f"{words}, in {checkpoints.runs_folder()}: leave this line out. VQLIB_RUNS names another folder"
        ) from None
    drive.mount("/content/drive")
    os.environ["VQLIB_RUNS"] = "/content/drive/MyDrive/vqvae-from-scratch/runs"
    print(f"Runs are kept in {checkpoints.runs_folder()}.")


def explain_errors():
    """Under IPython, let an unknown name and an interrupt say how to go on. Without it this does nothing.

    After the stop button a reader would see a traceback through all of training, and in the next cells "name 'model' is
    not defined", which is true, but doesn't say what to do.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        shell.set_custom_exc((NameError, KeyboardInterrupt), _explain)


def _explain(shell, kind, error, trace, tb_offset=None):
    """Show an error as IPython does, but an interrupt in one line, and under a NameError how to go on."""
    sys.last_type, sys.last_value, sys.last_traceback = kind, error, trace  # for %tb and %debug
    if kind is KeyboardInterrupt:
        words = error if error.args else "This cell was stopped before its end. %tb shows where."
        lines = [f"KeyboardInterrupt: {words}"]
    else:
        lines = shell.InteractiveTB.structured_traceback(kind, error, trace, tb_offset=tb_offset)
        while trace.tb_next:
            trace = trace.tb_next
        if kind is NameError and error.name and trace.tb_frame.f_globals is shell.user_ns:
            lines = [*lines, _how_to_go_on(error.name, shell.user_ns["In"])]
    shell._showtraceback(kind, error, lines)


def _how_to_go_on(name, cells):
    """cells: the code of all that have run, by their number; the last one is the one that failed."""
    number = max((i for i, cell in enumerate(cells[:-1]) if _makes(cell, name)), default=None)
    if number is None:
        return f"`{name}` isn't there yet: no cell that has run makes it. Run the cells above this one first, in order."
    words = f"`{name}` isn't there yet: the cell that makes it, [{number}], may not have run to its end. Run it again"
    return f"{words}; what it trains goes on from its checkpoint." if "path=" in cells[number] else f"{words}."


def _makes(cell, name):
    try:
        symbol = symtable.symtable(cell, "cell", "exec").lookup(name)
    except (SyntaxError, KeyError):
        return False
    return symbol.is_assigned() or symbol.is_imported()
