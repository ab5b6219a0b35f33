"""How fast each part is, beside well-kept libraries that do the same, in one run.

    pip install -r tests/benchmarks/requirements.txt
    python tests/benchmarks/speed.py                          # five minutes; nothing else should be running
    python tests/benchmarks/speed.py --repeats 2 --only write # a fast try

All contenders of a group are called in turn, again and again, so that a slow minute of the machine slows them all. The
first call of each is reported apart; then come the medians, and how many times longer than ours they are. Sizes and
number of threads are the same for all. The precision is float32 unless it says otherwise; the training loops and the
matrix product beside them are in bf16 if the hardware has it. The peers' Transformers are untrained, which costs no
time.
"""

import argparse
import dataclasses
import json
import os
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing should be fetched

import torch
import torchvision
from einops import rearrange
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from vqlib import data, load_pair, sampling, tokens, training
from vqlib.training import devices
from vqlib.vqvae import VectorQuantizer, VQVAEConfig

NO_PEERS = "not here: pip install -r tests/benchmarks/requirements.txt"


def interleave(contenders, repeats, device, bar):
    """Seconds of each: {name: {"first": s, "median": s, "fastest": s, "slowest": s}}."""
    seconds = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name, call in contenders.items():
            began = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
            bar.update()
    return {
        name: {"first": first, "median": statistics.median(rest), "fastest": min(rest), "slowest": max(rest)}
        for name, (first, *rest) in seconds.items()
    }


# --- contenders ------------------------------------------------------------------------------------------------------


def write(n, transformer, device, bf16):
    """Write n pictures of 49 codes at temperature 0.8."""
    labels, config = torch.arange(n) % 10, transformer.config
    start = (config.num_codes + labels)[:, None].to(device)
    contenders = {
        "vqlib": lambda: sampling.sample(transformer, labels),
        "vqlib, no cache": lambda: without_cache(transformer, start),
    }
    if n > 100:
        del contenders["vqlib, no cache"]  # minutes
    if bf16:
        half = load_pair(shipped=True, device=device).transformer.bfloat16()
        contenders["vqlib, bf16"] = lambda: sampling.sample(half, labels)
    try:
        from transformers import GPT2Config, GPT2LMHeadModel

        sizes = {"n_embd": config.d_model, "n_layer": config.n_layers, "n_head": config.n_heads}
        sizes |= {"vocab_size": config.vocabulary.size, "n_positions": config.context}
        gpt2 = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)).to(device).eval()
        knobs = {"do_sample": True, "temperature": 0.8, "top_k": 0, "pad_token_id": config.vocabulary.end}
        knobs |= {"attention_mask": torch.ones_like(start), "max_new_tokens": tokens.CODES_PER_IMAGE}
        contenders["Hugging Face transformers, GPT-2"] = lambda: gpt2.generate(start, **knobs)
    except ImportError as error:
        print(f"Hugging Face transformers: {NO_PEERS} ({error})")
    try:
        from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

        sizes = {"dim": config.d_model, "depth": config.n_layers, "heads": config.n_heads}
        layers = Decoder(**sizes, attn_dim_head=config.d_model // config.n_heads)
        sizes = {"num_tokens": config.vocabulary.size, "max_seq_len": config.context}
        wrapped = AutoregressiveWrapper(TransformerWrapper(**sizes, attn_layers=layers)).to(device).eval()
        contenders["x-transformers"] = lambda: wrapped.generate(start, tokens.CODES_PER_IMAGE, temperature=0.8)
    except ImportError as error:
        print(f"x-transformers: {NO_PEERS} ({error})")
    return contenders


@torch.no_grad()
def without_cache(transformer, start, temperature=0.8):
    """What `sampling.sample` would cost without a cache: the whole sequence again for every code."""
    num_codes, weight = transformer.config.num_codes, transformer.token_embedding.weight
    noise = sampling.gumbel_noise(len(start), num_codes).to(weight)
    for t in range(tokens.CODES_PER_IMAGE):
        logits = transformer(start)[:, -1, :num_codes]
        start = torch.cat([start, (logits + temperature * noise[:, t]).argmax(-1, keepdim=True)], 1)
    return start[:, 1:]


def quantize(device):
    """Quantize the vectors of 64 pictures: forward, backward, and one step of the moving-average codebook."""
    latents = torch.randn(64, 16, 7, 7, device=device, requires_grad=True)
    ours = VectorQuantizer(VQVAEConfig(quantizer="ema")).to(device)

    def step():
        quantized = ours(latents)
        (quantized.latents.sum() + quantized.losses["commitment"]).backward()
        ours.ema_update(rearrange(latents.detach(), "b d h w -> (b h w) d"), quantized.codes.flatten())

    contenders = {"vqlib": step}
    try:
        from vector_quantize_pytorch import VectorQuantize

        theirs = (
            VectorQuantize(dim=16, codebook_size=64, decay=0.99, accept_image_fmap=True, rotation_trick=False)
            .to(device)
            .train()
        )

        def their_step():
            quantized, _, loss = theirs(latents)
            (quantized.sum() + loss.sum()).backward()

        contenders["vector-quantize-pytorch"] = their_step
    except ImportError as error:
        print(f"vector-quantize-pytorch: {NO_PEERS} ({error})")
    return contenders


def train_steps(vqvae, train, device, bf16, steps=10):
    """Ten steps of each training loop, as `training.fit` makes them."""
    part = train.subset(slice(0, 64 * steps))
    codes = tokens.encode_pixels(vqvae, part.pixels)
    stages = {
        "VQ-VAE": (training.VQVAEStage, training.BEST_VQVAE, part),
        "Transformer": (training.TransformerStage, training.BEST_TRANSFORMER, (codes, part.labels)),
    }
    contenders, flops = {}, {}
    for name, (kind, recipe, examples) in stages.items():
        recipe = dataclasses.replace(recipe, epochs=1, **({"kmeans_init": False} if name == "VQ-VAE" else {}))
        stage = kind(recipe, examples, device)
        with FlopCounterMode(display=False) as counter:
            stage.loss(training.Batch(torch.arange(recipe.batch_size))).backward()
        flops[name] = steps * counter.get_total_flops()
        contenders[name] = lambda stage=stage: training.fit(stage, progress=False)
    matrix = torch.randn(2048, 2048, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    contenders["a 2048³ matrix product"] = lambda: matrix @ matrix
    flops["a 2048³ matrix product"] = 2 * 2048**3
    return contenders, flops


def feed(train, device):
    """6,400 pictures in shuffled batches of 64, as float images in [-1, 1]."""
    n = 6400

    def ours():
        pixels = train.pixels
        for index in torch.randperm(len(pixels))[:n].split(64):
            data.to_images(pixels[index].to(device))

    per_item = torchvision.datasets.FashionMNIST.__new__(torchvision.datasets.FashionMNIST)  # without its files
    per_item.data, per_item.targets, per_item.target_transform = train.pixels[:n], train.labels[:n], None
    per_item.transform = torchvision.transforms.Compose(
        [torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(0.5, 0.5)]
    )

    def theirs(workers):
        for images, _ in torch.utils.data.DataLoader(per_item, batch_size=64, shuffle=True, num_workers=workers):
            images.to(device)

    return {
        "vqlib": ours,
        "DataLoader, transforms per picture": lambda: theirs(0),
        "the same, 2 workers": lambda: theirs(2),
    }


# --- the table -------------------------------------------------------------------------------------------------------


def table(results):
    rows = ["| | median | first call | times ours |", "| --- | --- | --- | --- |"]
    for group, entries in results["groups"].items():
        rows.append(f"| **{group}** | | | |")
        ours = entries.get("vqlib")
        for name, entry in entries.items():
            ratio = f"{entry['median'] / ours['median']:.1f}" if ours else "–"
            rate = f" ({entry['rate']})" if "rate" in entry else ""
            rows.append(f"| {name}{rate} | {shown(entry['median'])} | {shown(entry['first'])} | {ratio} |")
    return "\n".join(rows)


def shown(seconds):
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def processor():
    """The processor's name; on Linux with its family and model, since virtual machines often cut the name short."""
    try:
        lines = (line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        fields = {name.strip(): value.strip() for name, value in lines}
        return f"{fields['model name']}, family {fields['cpu family']}, model {fields['model']}"
    except (OSError, KeyError, ValueError):
        return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="calls of each contender after the first")
    parser.add_argument("--only", nargs="+", choices=("write", "quantize", "train", "data"))
    parser.add_argument("--device", default=training.pick_device())
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "speed.json")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    torch.set_num_threads(options.threads)
    device, chosen = options.device, options.only or ("write", "quantize", "train", "data")
    bf16 = training.bf16_gain(device) > devices.BF16_PAYS
    train, (vqvae, transformer) = data.load("train"), load_pair(shipped=True, device=device)
    groups, flops = {}, {}
    if "write" in chosen:
        for n in (8, 256):
            groups[f"write {n} pictures"] = write(n, transformer, device, bf16)
    if "quantize" in chosen:
        groups["quantize 64 pictures, with backward and EMA"] = quantize(device)
    if "train" in chosen:
        groups["10 training steps of 64 pictures"], flops = train_steps(vqvae, train, device, bf16)
    if "data" in chosen:
        groups["feed 6,400 pictures"] = feed(train, device)
    results = {
        "command": shlex.join(["python", "tests/benchmarks/speed.py", *sys.argv[1:]]),
        "device": device,
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": bf16,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repeats": options.repeats,
        "groups": {},
    }
    with tqdm(total=sum(map(len, groups.values())) * (options.repeats + 1), desc="calls") as bar:
        for group, contenders in groups.items():
            results["groups"][group] = interleave(contenders, options.repeats, device, bar)
    for name, entry in results["groups"].get("10 training steps of 64 pictures", {}).items():
        entry["rate"] = f"{flops[name] / entry['median'] / 1e9:.0f} GFLOP/s"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    if not bf16:
        print("bf16: not measured, it is no faster here")
    print(f"all figures: {options.out}")


if __name__ == "__main__":
    main()
