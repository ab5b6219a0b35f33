"""The README: its commands, code blocks, links and figures."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

from vqlib import checkpoints, data, training
from vqlib.transformer import TransformerConfig
from vqlib.vqvae import VQVAEConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_length_and_two_commands():
    assert len(README.splitlines()) <= 150
    commands = re.findall(r"(?m)^python3 -m venv .*$", README)
    assert len(commands) == 2 and "jupyter lab" in commands[0] and commands[1].endswith("-m pytest")
    assert "README test command" in README and "README test command" in (ROOT / ".ci" / "run").read_text()


def test_table_is_what_the_shipped_files_say():
    command = [sys.executable, ROOT / "tools" / "figures.py"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() in README


def test_what_it_says_of_the_shipped_runs_own_time_is_in_their_files():
    seconds = checkpoints.load_transformer(shipped=True).info["history"]["seconds"]
    assert f"the shipped Transformer itself took {seconds / 60:.0f} minutes" in README
    assert abs(checkpoints.load_scorecard()["seconds"] / 60 - 45) < 5
    assert "`--ancestor-run runs/ancestor`; 45 minutes" in README


def test_python_block_runs(tmp_path):
    block = re.search(r"```python\n(.*?)```", README, flags=re.S)[1]
    subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "boots.png").stat().st_size > 1000


def test_the_block_for_pictures_of_ones_own_runs(tmp_path, monkeypatch):
    block = re.findall(r"```python\n(.*?)```", README, flags=re.S)[1]
    monkeypatch.chdir(tmp_path)
    for name, model in (("BEST_VQVAE", VQVAEConfig(channels=8, ema=True)),
                        ("BEST_TRANSFORMER", TransformerConfig(d_model=16, n_heads=2, n_layers=1))):
        recipe = dataclasses.replace(getattr(training, name), epochs=1, warmup_steps=1, model=model)
        monkeypatch.setattr(training, name, recipe)
    sample = data.load_sample("test")
    exec(block, {"pixels": sample.pixels, "labels": sample.labels})
    vqvae = checkpoints.load_vqvae(tmp_path / "mine" / "vqvae.safetensors")
    assert checkpoints.load_transformer(tmp_path / "mine" / "transformer.safetensors", vqvae=vqvae).info["history"]


def test_links_and_commands_exist():
    for link in re.findall(r"\]\(([^)#]+?)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
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
    assert values["times as many"] == "1e+08" and "a hundred million times as many" in text
