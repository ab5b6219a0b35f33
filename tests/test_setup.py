"""The set-up lines of a notebook."""

import os
import sys
import types

import pytest
import torch

import vqlib
from vqlib import checkpoints
from vqlib.notebook import setup


def test_pick_takes_the_small_number_only_at_the_speed_of_the_tests(monkeypatch):
    assert setup.pick(10_000, 500) == 10_000
    monkeypatch.setenv("VQLIB_FAST", "1")
    assert setup.pick(10_000, 500) == 500


def test_versions_names_what_a_notebook_runs_on():
    line = setup.versions()
    assert all(word in line for word in (torch.__version__, f"vqlib {vqlib.__version__}", "cpu", "seed 0"))
    assert "\n" not in line


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
