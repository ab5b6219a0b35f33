"""The README and the benchmarks' README: commands, code blocks, links and figures."""

import dataclasses
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from vqlib import checkpoints, data, evaluation, load_pair, records, training
from vqlib.transformer import TransformerConfig
from vqlib.vqvae import VQVAEConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "tests" / "benchmarks" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)  # three lines; a picture; a data set of one's own


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(text):
    return re.sub(r"\s+", " ", text)


# --- its form --------------------------------------------------------------------------------------------------------


def test_length_and_two_commands():
    lines = README.splitlines()
    assert len(lines) <= 130
    assert max(len(line) for line in lines if not line.startswith(("|", "<img", "![", "python3 "))) <= 120
    commands = re.findall(r"(?m)^python3 -m venv .*$", README)
    assert len(commands) == 2 and "jupyter lab" in commands[0] and commands[1].endswith("-m pytest")
    *_, root, notebook = shlex.split(commands[0])
    assert root == "--notebook-dir=." and (ROOT / notebook).is_file()  # without it, notebooks/ would be Jupyter's root
    clone, folder = re.search(r"(?m)^git clone \S+ (\S+) && cd (\S+)\n" + re.escape(commands[0]), README).groups()
    assert clone == folder
    assert not re.search(r"pip install.* (-q|--quiet)", README)  # up to 6 GB come: pip should show how far it is
    assert "README test command" in README and "README test command" in (ROOT / ".ci" / "run").read_text()


def test_the_command_that_ci_runs_is_the_second():
    """As .ci/run looks for it: the first line with "pytest" among the three below the marker."""
    below = README.split("README test command", 1)[1].splitlines()[1:4]
    assert next(line for line in below if "pytest" in line) == re.findall(r"(?m)^python3 -m venv .*$", README)[1]


@pytest.mark.parametrize(
    "path", ["README.md", "CONTRIBUTING.md", "SCALING.md", "CHANGELOG.md", "tests/benchmarks/README.md"]
)
def test_links_lead_to_files_of_the_repository(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+?)\)", text) + re.findall(r'<img src="(.*?)"', text)
    for link in links:
        target = ((ROOT / path).parent / link).resolve()
        assert link.startswith("https://") or target.is_relative_to(ROOT) and target.exists(), link
    for script in re.findall(r"python ((?:tools|tests)/[\w/]+\.py)", text):
        assert (ROOT / script).is_file(), script


def test_pictures_have_a_description():
    assert all(alt.strip() for alt in re.findall(r"!\[(.*?)\]\(", README + BENCHMARKS))
    assert README.count("<img ") == len(re.findall(r'<img [^>]*alt="[^"]+"', README)) == 2


def test_the_table_has_every_notebook_and_its_colab_link():
    paths = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    rows = re.findall(r"(?m)^\| \[(\d) · \w.*?\]\((notebooks/\S+?)\) \|.*\| \d+ \| \[Colab\]\((\S+)\) \|$", README)
    assert [path for _, path, _ in rows] == paths
    for number, path, colab in rows:
        assert path.startswith(f"notebooks/0{number}_") and colab.endswith(f"/blob/main/{path}")


def test_the_impatient_find_what_they_are_sent_to():
    assert "[notebook 5](notebooks/05_sampling.ipynb), run all cells, and go to *Play*" in README
    cells = json.loads((ROOT / "notebooks" / "05_sampling.ipynb").read_text(encoding="utf-8"))["cells"]
    assert any(re.search(r"(?m)^#+ Play$", "".join(cell["source"])) for cell in cells)


def test_the_map_names_every_module_and_folder():
    shown = re.search(r"## Where things are\n\n```\n(.*?)```", README, flags=re.S)[1]
    named = set(re.findall(r"\w+", shown))
    assert {path.stem for path in (ROOT / "vqlib").glob("*.py")} - {"__init__"} <= named
    folders = {path.name for path in (ROOT / "vqlib").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert {*folders, "notebooks", "vqlib", "tests", "tools"} == set(re.findall(r"(?m)(\w+)/(?=\s)", shown))


def test_messages_that_it_explains_are_those_of_the_code():
    section = README.split("## When something goes wrong", 1)[1]
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "vqlib").glob("*.py"))
    messages = re.findall(r"\*\*`(.*?)`\*\*", section)
    assert len(messages) == 2 and all(message in source for message in messages)


def test_one_address_which_the_tool_sets(tmp_path, monkeypatch):
    set_address = tool("set_address")
    old, new = set_address.current().removeprefix("https://github.com/"), "anna/clothes"
    names = ["pyproject.toml", "README.md", "CITATION.cff", "tests/benchmarks/README.md", "notebooks/01_data.ipynb"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(set_address, "ROOT", tmp_path)
    set_address.main(f"https://github.com/{new}")
    for name in names:
        before, after = ((folder / name).read_text(encoding="utf-8") for folder in (ROOT, tmp_path))
        assert after.count(new) == before.count(old) and old not in after and "OWNER" not in after, name
    assert f"git clone https://github.com/{new} " in (tmp_path / "README.md").read_text(encoding="utf-8")


# --- its code --------------------------------------------------------------------------------------------------------


def run(code, folder):
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, timeout=120)


def test_the_lines_and_the_commands_draw_the_same_boots_and_dresses(tmp_path):
    assert len([line for line in BLOCKS[0].splitlines() if line]) == 4
    run(BLOCKS[0], tmp_path)
    boots, dresses = ((tmp_path / name).read_bytes() for name in ("boots.png", "dresses.png"))
    (tmp_path / "boots.png").unlink()
    said, caption = re.search(r'`vqlib (generate "Ankle boot" .*?)`, or `("a .*?")`', words(README)).groups()
    for command in (said, said.replace('"Ankle boot"', caption).replace("boots", "dresses")):
        subprocess.run([sys.executable, "-m", "vqlib", *shlex.split(command)], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "boots.png").read_bytes() == boots and len(boots) > 1000
    assert (tmp_path / "dresses.png").read_bytes() == dresses != boots


def drawn(path):
    """The pictures side by side in a PNG that `save_png` wrote, four times as large: (N, 1, 28, 28) in [-1, 1]."""
    pixels = pil_to_tensor(Image.open(path).convert("L"))[0, ::4, ::4]
    return data.to_images(torch.stack(pixels.split(28, 1)))


def test_the_block_for_a_picture_of_ones_own_copies_and_completes_it(tmp_path):
    """A photograph: large, in colour, a dark shirt on white ground."""
    mini = data.load_mini("test")
    index = (mini.labels == 6).nonzero()[0].item()
    photograph = Image.fromarray((255 - mini.pixels[index]).numpy()).convert("RGB").resize((280, 280))
    photograph.save(tmp_path / "shirt.jpg", quality=95)
    run(BLOCKS[0] + BLOCKS[1], tmp_path)
    copy, endings = drawn(tmp_path / "copy.png"), drawn(tmp_path / "endings.png")
    assert evaluation.nearest_neighbours(copy, mini.pixels)[0].tolist() == [index]  # of 500 pictures
    assert len(endings) == 8 and len({ending.numpy().tobytes() for ending in endings}) == 8
    spread = endings.std(0)[0]
    assert spread[:8].mean() < 0.1 * spread[16:].mean()  # the upper part is kept, the lower one is drawn anew


def test_the_block_for_a_data_set_of_ones_own_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vqvae, transformer = VQVAEConfig(channels=8, quantizer="ema"), TransformerConfig(d_model=16, n_heads=2, n_layers=1)
    monkeypatch.setattr(training, "CRISP", dataclasses.replace(training.CRISP, epochs=1, warmup_steps=1))
    for name, model in (("BEST_VQVAE", vqvae), ("BEST_TRANSFORMER", transformer)):
        recipe = dataclasses.replace(getattr(training, name), epochs=1, warmup_steps=1, model=model)
        monkeypatch.setattr(training, name, recipe)
    mini = data.load_mini("test")
    exec(BLOCKS[2], {"pixels": mini.pixels, "labels": mini.labels})
    soft, crisp = (load_pair("mine", decoder=decoder).generate("Bag", n=2) for decoder in ("soft", "crisp"))
    assert soft.shape == crisp.shape == (2, 1, 28, 28) and not torch.equal(soft, crisp)


# --- its figures -----------------------------------------------------------------------------------------------------


def test_tables_are_what_the_kept_files_say():
    figures = tool("figures")
    first, rest = figures.tables()
    assert first in README and len(first.splitlines()) == 8 and first.splitlines()[0].count("|") == 6
    for table in rest:
        assert table in BENCHMARKS, table
    command = [sys.executable, ROOT / "tools" / "figures.py"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed == "\n\n".join([first, *rest]) + "\n"


def test_times_in_the_text_are_those_of_the_kept_files():
    figures = tool("figures")
    old, new = (sum(minutes) for minutes in zip(*(m for _, m in figures.training_minutes().values()), strict=True))
    assert f"takes about {round(new, -1):.0f} minutes with a recent processor" in words(README)
    assert f"and {round(old, -1):.0f} with an older one" in words(README)
    slow, fast = figures.writing_seconds()
    assert f"drawing eight pictures takes {fast:.2f} or {slow:.2f} s" in words(README)
    seconds = checkpoints.load_transformer(shipped=True).info["history"]["seconds"]
    assert f"the shipped Transformer itself took {seconds / 60:.0f} minutes" in words(BENCHMARKS)
    assert abs(records.load_scorecard()["seconds"] / 60 - 15) < 5 and "scorecard` (a quarter of an hour" in BENCHMARKS
    means = [counts["mean"] for entry in figures.kept("passes.json")["passes"].values() for counts in entry.values()]
    assert f"takes {min(means):.0f} to {max(means):.0f} passes on average" in words(BENCHMARKS)
    assert f"about {figures.kept('scale.json')['knee']} pictures a step mostly waits" in words(BENCHMARKS)


def test_what_the_text_says_of_the_tricks_is_so():
    def mean(name, figure, collapse=False):
        values = records.load_ablation(collapse)[name][figure]
        return sum(values) / len(values)

    single = ["+ k-means start", "+ codebook by moving averages", "+ revival below 0.1", "+ rotation trick"]
    assert "Moving averages lower the error most among the single tricks for a codebook" in words(BENCHMARKS)
    assert min(single, key=lambda name: mean(name, "mse")) == "+ codebook by moving averages"
    assert "make the use of codes *less* even" in words(BENCHMARKS)
    assert mean("+ codebook by moving averages", "perplexity") < mean("the original loss", "perplexity")
    assert "FSQ alone does as well as three tricks together" in words(BENCHMARKS)
    assert mean("FSQ, levels [8, 8]", "mse") == pytest.approx(mean("+ all three", "mse"), rel=0.05)
    assert "Moving averages don't" in words(BENCHMARKS) and "it recovers by itself" in words(BENCHMARKS)
    assert mean("N(0, 1), cure: moving averages, 300 steps", "codes_used", collapse=True) < 10
    for cured in ("N(0, 1), cure: k-means start, 300 steps", "N(0, 1), cure: revival below 0.33, 300 steps"):
        assert mean(cured, "codes_used", collapse=True) > 40
    assert mean("start at uniform ±1/K, 1,200 steps", "codes_used", collapse=True) > 50


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
