"""The benchmark of batch sizes runs, and its figures are what they say. Nobody promises times: no test asks for any."""

import json
import subprocess
import sys

import matplotlib.image
import pytest
import scale
import torch

from vqlib import sampling
from vqlib.transformer import Transformer, TransformerConfig


def test_a_fast_try_writes_the_figures_that_its_table_shows_and_draws_them_anew(tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "scale.json"
    command = [sys.executable, scale.__file__, "--repeats", "1", "--most", "2", "--device", "cpu", "--out", out]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    kept, drawn = out.read_text(), matplotlib.image.imread(out.with_suffix(".png"))
    results = json.loads(kept)
    assert [row["pictures"] for row in results["rows"]] == [1, 2]
    for row in results["rows"]:
        figures = [round(figure, 2) for name, figure in row.items() if name != "seconds" and figure is not None]
        assert f"| {' | '.join(map(str, figures))} |" in shown
        assert row["peak, MB"] is None or row["peak, MB"] > row["cache, MB"]
    assert f"knee: {results['knee']} pictures" in shown
    assert drawn[0, 0, 3] == 0  # transparent, for a page that is dark

    out.with_suffix(".png").unlink()
    monkeypatch.setattr(sys, "argv", ["scale.py", "--plot", "--out", str(out)])
    scale.main()
    assert (matplotlib.image.imread(out.with_suffix(".png")) == drawn).all()
    assert capsys.readouterr().out == shown and out.read_text() == kept


def test_the_cache_has_the_bytes_of_the_one_that_is_used(monkeypatch):
    used, make = [], Transformer.new_cache
    monkeypatch.setattr(Transformer, "new_cache", lambda *arguments: used.append(make(*arguments)) or used[-1])
    config = TransformerConfig(d_model=48, n_heads=4, n_layers=3)
    sampling.sample(Transformer(config), torch.arange(5))
    assert [scale.cache_bytes(config, 5)] == [cache.keys.nbytes + cache.values.nbytes for cache in used]


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({n: n / (6 + 0.75 * n) for n in (1, 2, 4, 8, 16, 1024)}, 8),  # 6 ms and 0.75 ms a picture: equal at 8
        ({1: 10, 2: 19, 4: 30, 8: 38, 16: 18}, 2),  # a half is enough, and what falls again isn't the best
    ],
)
def test_the_knee_is_where_half_of_the_best_rate_is_reached(rates, expected):
    assert scale.knee(rates) == expected
