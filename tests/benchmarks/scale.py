"""How sampling scales: pictures per second and memory against the number of pictures that are written together.

    python tests/benchmarks/scale.py                         # some minutes; nothing else should be running
    python tests/benchmarks/scale.py --repeats 1 --most 8    # a fast try
    python tests/benchmarks/scale.py --plot                  # draw the kept figures anew

Each of a picture's 49 steps reads all the weights once, however many pictures share them. So a step is hardly faster
than the longer of two times. *Waiting* is the same for any batch: for the calls (of layers so thin that they do little
else) and for the weights (a sum of as many bytes, maybe from a cache). *Work* grows with the batch: the products and
attention, as fast as in a large batch. On a CPU the two hardly overlap: near the knee a step takes about their sum.

The knee is the smallest batch that reaches half of the best pictures per second. If a step takes w + a · B, both parts
are equal there, B = w / a. So it is where the two lines cross, but the rule needs neither a fit nor the floor.
"""

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from speed import interleave, processor
from torch.nn.functional import scaled_dot_product_attention as attend
from tqdm import tqdm

from vqlib import checkpoints, sampling, stepper, tokens
from vqlib.notebook import plots
from vqlib.transformer import Transformer


def cache_bytes(config, n):
    """Float32 keys and values of n pictures. 49 tokens each: the start is one, and the last code is never fed back."""
    return n * tokens.CODES_PER_IMAGE * config.n_layers * config.d_model * 2 * 4


def peak_memory(n, device, threads):
    """The most that a fresh process's first call holds beyond the loaded model, in MB; None if nothing counts it.

    An old one keeps what it freed. Linux counts the peak anew once a 5 is written; `ru_maxrss` begins at the parent's.
    """
    torch.set_num_threads(threads)
    transformer, status = checkpoints.load_transformer(shipped=True, device=device), Path("/proc/self/status")
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        sampling.sample(transformer, torch.arange(n) % 10)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    if status.exists():
        Path("/proc/self/clear_refs").write_text("5")
        before = status.read_text().split("VmRSS:")[1].split()[0]
        sampling.sample(transformer, torch.arange(n) % 10)
        return (int(status.read_text().split("VmHWM:")[1].split()[0]) - int(before)) * 1024 / 1e6


def knee(rates):
    """The smallest batch that reaches half of the best rate, of {pictures: pictures per second}."""
    return min(n for n, rate in rates.items() if rate >= max(rates.values()) / 2)


def parts(transformer, n, device):
    """The bytes of the weights as n rows read them, and what a call consists of: each part for all of its 49 steps."""
    config, step, steps = transformer.config, stepper.one_token_step(transformer, n), range(tokens.CODES_PER_IMAGE)
    weights = sum(p.numel() for part in (transformer.blocks, transformer.head) for p in part.parameters())
    weights *= 2 if "float16" in step.layers[0][-1].__qualname__ else 4  # see `stepper.laid_out`
    read, x = torch.zeros(weights // 4, device=device), torch.randn(n, config.d_model, device=device)
    cache, q = transformer.new_cache(n, tokens.CODES_PER_IMAGE), x.view(n, config.n_heads, 1, -1)
    return weights, {
        "weights": lambda: [read.sum() for _ in steps],
        "products": lambda: [(qkv(x), out(x), down(up(x))) for _ in steps for *_, qkv, out, up, down in step.layers],
        "attention": lambda: [attend(q, *kv[:, :, :, : t + 1].unbind(1)) for t in steps for kv in cache.pairs],
    }


def measure(transformer, sizes, repeats, device):
    """A row of figures per batch size."""
    thin = dataclasses.replace(transformer.config, d_model=8 * transformer.config.n_heads)
    thin = Transformer(thin).eval().half().float().to(device)  # float16 numbers, like ours, so they are laid out alike
    contenders = {n: lambda n=n: sampling.sample(transformer, torch.arange(n) % 10) for n in sizes}
    contenders["calls"] = lambda: sampling.sample(thin, torch.zeros(1, dtype=torch.int64))
    large = {True: stepper.FEW, False: 2 * stepper.FEW}  # rows of a large batch, by whether they count as few
    contains = {few: parts(transformer, rows, device) for few, rows in large.items()}
    contenders |= {(part, few): call for few, (_, calls) in contains.items() for part, call in calls.items()}
    with tqdm(total=len(contenders) * (repeats + 1), desc="calls") as bar, torch.no_grad():
        seconds = interleave(contenders, repeats, device, bar)
    ms = {name: 1000 * times["median"] / tokens.CODES_PER_IMAGE for name, times in seconds.items()}
    for n in tqdm(sizes, desc="memory"):
        few, config = n <= stepper.FEW, transformer.config
        row = {"pictures": n, "seconds": seconds[n], "per second": n / seconds[n]["median"], "step, ms": ms[n]}
        row |= {"weights, MB": contains[few][0] / 1e6, "calls, ms": ms["calls"], "weights, ms": ms["weights", few]}
        row |= {f"{part}, ms": ms[part, few] * n / large[few] for part in ("products", "attention")}
        least = max(row["calls, ms"] + row["weights, ms"], row["products, ms"] + row["attention, ms"])
        row |= {"most per second": 1000 * n / least / tokens.CODES_PER_IMAGE, "cache, MB": cache_bytes(config, n) / 1e6}
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            yield row | {"peak, MB": fresh.submit(peak_memory, n, device, torch.get_num_threads()).result()}


def table(rows):
    keys = [key for key in rows[0] if key != "seconds"]
    cells = [["–" if row[key] is None else str(round(row[key], 2)) for key in keys] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (keys, ["---:"] * len(keys), *cells))


@plots.styled
def plot(rows, bend):
    """Pictures per second, with the most that waiting and work allow, and memory, by batch size."""
    (figure, axes), n = plots._figure(plots.WIDTH, 3.2, 1, 2), [row["pictures"] for row in rows]
    speed = "pictures per second", "per second", "measured", "most per second", "waiting, then work, allow"
    memory = "MB beyond the model", "peak, MB", "measured peak", "cache, MB", "keys and values"
    for axis, (label, measured, its_name, computed, name) in zip(axes[0], (speed, memory), strict=True):
        axis.loglog(n, [row[measured] for row in rows], "o-", base=2, subs=[], markersize=4, label=its_name)
        axis.plot(n, [row[computed] for row in rows], "--", label=name)
        axis.axvline(bend, color=plots.GREY, linestyle=":", label=f"knee: {bend} pictures")
        axis.xaxis.set_major_formatter("{x:g}"), axis.yaxis.set_major_formatter("{x:g}")
        axis.set(xlabel="batch size", ylabel=label)
        axis.legend(**plots.ABOVE | {"ncols": 1})
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="calls of each batch size after the first")
    parser.add_argument("--most", type=int, default=1024, help="the largest batch")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"), help="the plot lies beside it")
    parser.add_argument("--plot", action="store_true", help="measure nothing, draw what is kept")
    options = parser.parse_args()
    if not options.plot:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(options.threads)
        model = checkpoints.load_transformer(shipped=True, device=options.device)
        rows = [*measure(model, [2**i for i in range(options.most.bit_length())], options.repeats, options.device)]
        results = {"command": shlex.join(["python", "tests/benchmarks/scale.py", *sys.argv[1:]])}
        results["processor"] = torch.cuda.get_device_name() if options.device == "cuda" else processor()
        results |= {"torch": torch.__version__, "threads": options.threads, "repeats": options.repeats}
        results["sha256 of the weights"] = hashlib.sha256(Path(model.info["path"]).read_bytes()).hexdigest()
        results |= {"rows": rows, "knee": knee({row["pictures"]: row["per second"] for row in rows})}
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results = json.loads(options.out.read_text(encoding="utf-8"))
    plot(results["rows"], results["knee"]).savefig(options.out.with_suffix(".png"))
    print(table(results["rows"]), f"knee: {results['knee']} pictures. All figures: {options.out}", sep="\n")


if __name__ == "__main__":
    main()
