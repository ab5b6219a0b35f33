"""The README: its commands, code blocks, links and figures."""

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

from vqlib import checkpoints, data, load_pair, records, training
from vqlib.transformer import TransformerConfig
from vqlib.vqvae import VQVAEConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_length_and_two_commands():
    assert len(README.splitlines()) <= 160
    commands = re.findall(r"(?m)^python3 -m venv .*$", README)
    assert len(commands) == 2 and "jupyter lab" in commands[0] and commands[1].endswith("-m pytest")
    *_, root, notebook = shlex.split(commands[0])
    assert root == "--notebook-dir=." and (ROOT / notebook).is_file()  # without it, notebooks/ would be Jupyter's root
    assert "README test command" in README and "README test command" in (ROOT / ".ci" / "run").read_text()


def test_table_is_what_the_shipped_files_say():
    command = [sys.executable, ROOT / "tools" / "figures.py"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() in README


def test_what_it_says_of_the_shipped_runs_own_time_is_in_their_files():
    seconds = checkpoints.load_transformer(shipped=True).info["history"]["seconds"]
    assert f"the shipped Transformer itself took {seconds / 60:.0f} minutes" in README
    assert abs(records.load_scorecard()["seconds"] / 60 - 15) < 5 and "scorecard` (a quarter of an hour" in README


def test_the_three_lines_and_the_command_draw_the_same_boots(tmp_path):
    block = re.search(r"```python\n(.*?)```", README, flags=re.S)[1]
    assert len([line for line in block.splitlines() if line]) == 3
    subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True, timeout=120)
    drawn = (tmp_path / "boots.png").read_bytes()
    (tmp_path / "boots.png").unlink()
    command = shlex.split(re.search(r"`vqlib (generate .*?)`", README)[1])
    subprocess.run([sys.executable, "-m", "vqlib", *command], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "boots.png").read_bytes() == drawn and len(drawn) > 1000


def test_the_block_for_pictures_of_ones_own_runs(tmp_path, monkeypatch):
    block = re.findall(r"```python\n(.*?)```", README, flags=re.S)[1]
    monkeypatch.chdir(tmp_path)
    vqvae, transformer = VQVAEConfig(channels=8, quantizer="ema"), TransformerConfig(d_model=16, n_heads=2, n_layers=1)
    for name, model in (("BEST_VQVAE", vqvae), ("BEST_TRANSFORMER", transformer)):
        recipe = dataclasses.replace(getattr(training, name), epochs=1, warmup_steps=1, model=model)
        monkeypatch.setattr(training, name, recipe)
    mini = data.load_mini("test")
    exec(block, {"pixels": mini.pixels, "labels": mini.labels})
    assert load_pair("mine").generate("Bag", n=2).shape == (2, 1, 28, 28)


def test_links_and_commands_exist():
    for name in ("README.md", "CONTRIBUTING.md", "SCALING.md", "CHANGELOG.md"):
        for link in re.findall(r"\]\(([^)#]+?)\)", (ROOT / name).read_text(encoding="utf-8")):
            target = (ROOT / link).resolve()
            assert link.startswith("http") or target.is_relative_to(ROOT) and target.exists(), f"{name}: {link}"
    for script in re.findall(r"python (tools/\w+\.py)", README):
        assert (ROOT / script).is_file()


def test_the_arithmetic_of_scaling_is_what_its_command_prints():
    command = [sys.executable, ROOT / "tools" / "scale.py"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = (ROOT / "SCALING.md").read_text(encoding="utf-8")
    values = dict(line.rsplit(": ", 1) for line in printed.splitlines())
    approximate = ("times as many", "operations a second, here")
    shown = {name: value for name, value in values.items() if name not in approximate}
    assert len(shown) == 10
    for name, value in shown.items():
        assert re.search(rf"(?<![\d.,]){re.escape(value)}(?![\d])", text), name
    assert values["times as many"] == "2e+08" and "two hundred million times as many" in text
