"""The notebooks: their hygiene as committed, and runs of each in the fast mode: once, then each cell once more."""

import ast
import base64
import importlib.util
import io
import json
import os
import re
import statistics
import subprocess
import symtable
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
NAMES = ["01_data", "02_vqvae", "03_tokens", "04_transformer", "05_sampling", "06_quality", "07_crisp", "08_dalle"]
CHECK = "nbval-check-output"


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def test_the_series_is_complete():
    assert [p.stem for p in NOTEBOOKS] == NAMES


@each_notebook
def test_committed_with_the_outputs_of_one_full_run(path):
    notebook = read(path)
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    panels = [cell["outputs"] for cell in cells if "panel" in cell["metadata"].get("tags", ())]
    for *_, last in panels:  # a still picture, without the widget itself, which no page could show without a kernel
        assert set(last["data"]) == {"image/png", "text/plain"} and "run all cells" in "".join(
            last["data"]["text/plain"]
        )
    assert "widgets" not in notebook["metadata"]
    assert not [o for o in outputs if "needs_background" in o.get("metadata", {})], "white in JupyterLab's dark theme"
    figures = [
        o["data"]["image/png"]
        for o in outputs
        if "".join(o.get("data", {}).get("text/plain", "")).startswith("<Figure")
    ]
    assert all(plt.imread(io.BytesIO(base64.b64decode(png)))[0, 0, -1] == 0 for png in figures), "not transparent"
    assert "MINI SET" not in json.dumps(outputs, ensure_ascii=False), "run on the real data before committing"


@each_notebook
def test_size_and_shape(path):
    notebook = read(path)
    assert path.stat().st_size < 1_000_000
    assert len(notebook["cells"]) <= 60
    cells = [source(cell) for cell in code_cells(notebook)[1:]]
    assert statistics.median(len(re.findall(r"(?m)^.*\S", cell)) for cell in cells) <= 8
    for cell in cells:
        assert len(cell.splitlines()) <= (40 if re.search(r"(?m)^class ", cell) else 25), cell
        assert max(map(len, cell.splitlines())) <= 108, "a page would have to scroll"
    assert len(source(code_cells(notebook)[0]).splitlines()) <= 22
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


def prose(path):
    return "\n".join(source(cell) for cell in read(path)["cells"] if cell["cell_type"] == "markdown")


@each_notebook
def test_the_head_is_the_same_in_all(path):
    first, *_ = read(path)["cells"]
    parts = ["# ", "[![Open in Colab]", "**You will learn**", "**Time.**", "**Reads**", "**Writes**"]
    places = [source(first).index(part) for part in parts]
    assert places == sorted(places)
    assert 3 <= len(re.findall(r"(?m)^- ", source(first))) <= 5
    code = [source(cell) for cell in code_cells(read(path))]
    assert "diagrams.two_stages(" in "".join(code[1:3]), "the reader's place on the way"


@each_notebook
def test_the_idea_is_in_the_text_and_nothing_else(path):
    """The rules on writing that a test can hold."""
    text, code = prose(path), "\n".join(source(cell) for cell in code_cells(read(path)))
    assert 3 <= len(re.findall(r"\*\*Predict\.\*\*", text)) <= 8
    assert text.count("What you should see") <= 4
    assert not re.search(r"ancestor|earlier version|setup\.pick|VQLIB_FAST", text + code)
    assert "__class__" not in code


@pytest.mark.parametrize("name", ["02_vqvae", "04_transformer", "07_crisp", "08_dalle"])
def test_the_training_loops_stand_in_the_notebooks(name):
    code = "\n".join(source(cell) for cell in code_cells(read(ROOT / "notebooks" / f"{name}.ipynb")))
    for line in ("optimizer.zero_grad()", "loss.backward()", "optimizer.step()"):
        assert line in code


@each_notebook
def test_markdown_that_code_hosts_render(path):
    text = prose(path)
    assert len(re.findall(r"(?m)^# ", text)) == 1
    assert "<details" not in text and "<div" not in text and "> [!" not in text
    assert "@@" not in text
    assert all(alt.strip() for alt in re.findall(r"!\[(.*?)\]\(", text))


@pytest.mark.parametrize("path", NOTEBOOKS + SOLUTIONS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_links_lead_to_files_of_the_repository(path):
    """Which is Jupyter's root, by the README's command. (tests/browser/test_links.py clicks them.)"""
    text = "\n".join(source(cell) for cell in read(path)["cells"] if cell["cell_type"] == "markdown")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if ":" in link:
            assert re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[\w./%#?=-]*)?", link), link
        else:
            target = (path.parent / link.split("#")[0]).resolve()
            assert target.is_relative_to(ROOT) and target.exists(), link


@each_notebook
def test_no_machine_paths_shell_commands_or_branches_on_speed(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|tmp|work)/", text)
    for cell in code_cells(read(path)):
        assert not re.search(r"(?m)^\s*[!%]", source(cell))
        assert not re.search(r"\bif .*(fast\(|FAST)", source(cell))
        ast.parse(source(cell))


@each_notebook
def test_every_figure_is_shown(path):
    """A figure that is not the last thing in its cell, nor given to display, is lost."""
    for cell in code_cells(read(path)):
        for statement in ast.parse(source(cell)).body[:-1]:
            if isinstance(statement, ast.Expr):
                assert not ast.unparse(statement).startswith(("plots.", "Image(", "Markdown(")), source(cell)


@each_notebook
def test_at_least_five_cells_have_their_output_compared(path):
    tagged = [cell for cell in code_cells(read(path)) if CHECK in cell["metadata"].get("tags", [])]
    assert len(tagged) >= 5
    assert all(any(o["output_type"] == "stream" for o in cell["outputs"]) for cell in tagged)


def fast_environment(tmp_path):
    reader = tmp_path / "reader"
    reader.mkdir()
    (reader / "vqvae.safetensors").write_bytes(b"the fast mode must neither read nor write this")
    env = {k: v for k, v in os.environ.items() if k != "VQLIB_DATA"}
    return reader, env | {"VQLIB_FAST": "1", "VQLIB_RUNS": str(reader), "JUPYTER_PLATFORM_DIRS": "1"}


def test_they_run_fast_with_the_same_tagged_outputs(tmp_path):
    """All of them, once, one after the other."""
    reader, env = fast_environment(tmp_path)
    nbval = ["--nbval-lax", "--nbval-cell-timeout=300", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    command = [sys.executable, "-m", "pytest", *nbval, "--rootdir", str(ROOT / "notebooks"), *map(str, NOTEBOOKS)]
    run = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=1500)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert [p.name for p in reader.iterdir()] == ["vqvae.safetensors"]


def makes_and_takes(code):
    """The names that a cell gives values to, and the other names that it uses, in its functions, too."""

    def taken(table):
        symbols = [symbol for symbol in table.get_symbols() if symbol.is_global() or table.get_type() == "module"]
        names = {symbol.get_name() for symbol in symbols if symbol.is_referenced()}
        return names.union(*map(taken, table.get_children()))

    table = symtable.symtable(code, "cell", "exec")
    makes = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    return makes, taken(table) - makes


@each_notebook
def test_a_name_that_cells_share_is_made_in_one_of_them(path):
    """Otherwise it depends on the order of running them which of two things the name stands for."""
    cells = [makes_and_takes(source(cell)) for cell in code_cells(read(path))]
    made = [name for makes, _ in cells for name in makes]
    assert {name for _, takes in cells for name in takes if made.count(name) > 1} == set()


def shown(cell):
    """The text and the pictures that a cell shows, without progress, times and addresses in memory.

    A kernel may send what a cell prints in one piece or in two, before or after a picture.
    """
    timed, text, pictures = re.search(r"\btime\.|milliseconds", cell.source), [], []
    for output in cell.outputs:
        data = output.get("data", {})
        if output.get("name") != "stderr":
            text += [output.get("text", ""), output.get("evalue", ""), data.get("text/plain", "")]
        text.append(data.get("text/markdown", ""))
        pictures += [data["image/png"]] if "image/png" in data and not timed else []
    return re.sub(r"[\d.,]+ (ms|s|seconds|minutes)\b|0x[0-9a-f]+", "", "".join(text)), list(map(hash, pictures))


@each_notebook
def test_cells_run_again_from_the_last_to_the_first_show_the_same(path, tmp_path):
    """A cell that changes what another one has made would show itself here."""
    notebook = nbformat.read(path, as_version=4)
    cells = [(cell, i) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", allow_errors=True)
    client.resources = {"metadata": {"path": str(tmp_path)}}
    with client.setup_kernel(env=fast_environment(tmp_path)[1]):
        first = {i: shown(client.execute_cell(cell, i)) for cell, i in cells}
        assert not [o for cell, _ in cells for o in cell.outputs if o.output_type == "error"]
        for cell, i in reversed(cells):
            assert shown(client.execute_cell(cell, i)) == first[i], cell.source


@pytest.mark.slow
@pytest.mark.parametrize("where", ["notebooks", "elsewhere"])
def test_nbconvert_executes_from_any_folder(tmp_path, where):
    """As `jupyter nbconvert --execute` does; the kernel's folder is the notebook's, or one that has nothing of ours."""
    reader, env = fast_environment(tmp_path)
    folder = ROOT / "notebooks" if where == "notebooks" else tmp_path / "elsewhere"
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "nbconvert",
        "--to",
        "html",
        "--execute",
        "--output-dir",
        str(tmp_path / "out"),
        f"--ExecutePreprocessor.cwd={folder}",
        str(ROOT / "notebooks" / "03_tokens.ipynb"),
    ]
    run = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-4000:]
    assert "nats per code" in (tmp_path / "out" / "03_tokens.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["02_vqvae", "04_transformer", "07_crisp", "08_dalle"])
def test_the_train_switch_trains_and_the_notebook_uses_what_it_trained(name, tmp_path):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    switch = next(cell for cell in notebook.cells if "TRAIN = False" in cell.source)
    switch.source = switch.source.replace("TRAIN = False", "TRAIN = True")
    last = max(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and "if TRAIN" in cell.source)
    listing = "from vqlib import checkpoints\nprint(*checkpoints.runs_folder().iterdir())"
    notebook.cells = notebook.cells[: last + 1] + [nbformat.v4.new_code_cell(listing)]
    reader, env = fast_environment(tmp_path)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute(env=env)
    written = notebook.cells[-1].outputs[0].text
    runs = ("captions", "dvae", "contrastive") if name == "08_dalle" else (name[3:],)
    assert all(f"{run}.safetensors" in written for run in runs) and "vqlib-fast-" in written
    assert [p.name for p in reader.iterdir()] == ["vqvae.safetensors"]


def test_one_address_everywhere():
    spec = importlib.util.spec_from_file_location("set_address", ROOT / "tools" / "set_address.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    address = tool.current()
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        slug = address.removeprefix("https://github.com/")
        assert f'REPOSITORY = \\"{address}\\"' in text
        assert f"colab.research.google.com/github/{slug}/blob/main/notebooks/{path.name}" in text
        assert {m for m in re.findall(r"github\.com/([\w.-]+/[\w.-]+)", text)} <= {slug}
