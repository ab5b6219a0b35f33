"""What the captioned model makes of captions whose words it has seen together, and of others (notebook 08).

    python tests/benchmarks/captions.py seen        # 40 pictures for each of the 180 captions, held against it
    python tests/benchmarks/captions.py guided      # the same with guidance
    python tests/benchmarks/captions.py curve       # small models, from which more and more combinations are withheld
    python tests/benchmarks/captions.py choose      # the best of 1, 8, 64 by the contrastive pair
    python tests/benchmarks/captions.py tokenizers --dvae-model FILE    # VQ-VAE and discrete VAE: copies and samples

--out FILE merges what was measured into it, as vqlib/weights/captions.json was made. Only "curve" trains. Brightness
and size are judged by the captions' rules, class and orientation by the judge.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path

import torch
from tqdm import tqdm

from vqlib import captions, checkpoints, data, evaluation, load_pair
from vqlib.classifier import classify
from vqlib.contrastive import similarity
from vqlib.pair import Pair
from vqlib.tokens import encode_pixels
from vqlib.training import CAPTIONS, dalle, train_captions

EVERY = torch.cartesian_prod(*(torch.arange(len(kind)) for kind in captions.KINDS))  # the facts of all 180 captions
KINDS = ("brightness", "size", "orientation", "class")
SMALL = dataclasses.replace(CAPTIONS, model=dataclasses.replace(CAPTIONS.model, d_model=128, n_heads=4, n_layers=4))
GUIDANCE = 3.0  # chosen among 1, 2, 3 and 5 by the critic
STEPS = 1290  # of 64 pictures, of each of the curve's models, rounded to whole epochs: 1,186 to 1,712
CURVE = ("0", "1", "2", "4", "few 0", "few 1")  # so many words withheld; few: in as few examples as with 4


def drawn(pair, facts, seed=0, batch_size=360, **knobs):
    """One picture for the whole caption of each row of facts."""
    texts, images = captions.write_captions(facts), []
    for at in tqdm(range(0, len(texts), batch_size), desc="drawing"):
        images.append(pair.generate(texts[at : at + batch_size], 1, seed=seed + at, **knobs))
    return torch.cat(images)


def shares(right, which=slice(None)):
    """How many pictures are right, in each kind and in all of them."""
    right = right[which].float()
    whole = right.prod(1).mean().item()
    return dict(zip(KINDS, right.mean(0).tolist(), strict=True)) | {"all": whole, "pictures": len(right)}


def by_word(right, facts):
    """The same for each combination that training may not see: {"dark t-shirt": …}."""
    figures = {}
    for c, name in enumerate(captions.CLASSES):
        word = captions.NEVER[c % len(captions.NEVER)]
        kind, value = captions.fact_of(word)
        which = (facts[:, 3] == c) & (facts[:, kind] == value)
        others = (facts[:, 3] == c) & (facts[:, kind] != value)  # the same class, with the words that it does have
        figures[f"{word} {name}"] = shares(right, which) | {
            "asked": right[which, kind].float().mean().item(),
            "asked_elsewhere": right[others, kind].float().mean().item(),
        }
    return figures


def measure_seen(pair, judge, each=40, **knobs):
    """Seen and unseen combinations, and chance."""
    facts = EVERY.repeat(each, 1)
    right = evaluation.as_asked(drawn(pair, facts, **knobs), facts, judge)
    unseen = captions.withheld(facts)
    chance = {kind: 1 / len(values) for kind, values in zip(KINDS, captions.KINDS, strict=True)}
    return {
        "seen": shares(right, ~unseen),
        "unseen": shares(right, unseen),
        "chance": chance | {"all": 1 / len(EVERY)},
        "by_word": by_word(right, facts),
        "knobs": knobs,
    }


def measure_real(pair, judge, test):
    """For comparison: real pictures, and their copies."""
    pixels, facts = dalle.described(test, 1)
    copies = evaluation.reconstruct(pair.vqvae, encode_pixels(pair.vqvae, pixels))
    return {
        "copies": shares(evaluation.as_asked(copies, facts, judge)),
        "pictures": shares(evaluation.as_asked(data.to_images(pixels), facts, judge)),
    }


def measure_curve(train, vqvae, judge, folder, steps=STEPS, each=20, names=CURVE, **knobs):
    """Small models that never see 0, 1, 2 or 4 of seven words with each class, trained in whole epochs."""

    def allowed(part, words):
        return int((~captions.withheld(dalle.described(part, CAPTIONS.turned)[1], words)).sum())

    rows, order = {}, torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    for name in names:
        words, part = int(name.removeprefix("few ")), train
        if name.startswith("few"):  # as many examples as are left with four words withheld
            part = train.subset(order[: len(train) * allowed(train, 4) // allowed(train, words)])
        size = allowed(part, words)
        epochs = max(1, round(steps * CAPTIONS.batch_size / size))
        recipe = dataclasses.replace(SMALL, withheld=words, epochs=epochs)
        path = folder / f"curve-{name.replace(' ', '-')}.safetensors"
        model = train_captions(recipe, vqvae, part, path=path)
        facts = EVERY.repeat(each, 1)
        unseen = captions.withheld(facts, words)
        rows[name] = {"withheld": words / len(captions.NEVER), "examples": size}
        rows[name]["steps"] = model.info["history"]["steps"][-1]["step"]
        for guidance in (1.0, GUIDANCE):
            right = evaluation.as_asked(drawn(Pair(vqvae, model), facts, guidance=guidance, **knobs), facts, judge)
            rows[name][f"guidance {guidance:g}"] = {
                "seen": shares(right, ~unseen),
                "unseen": shares(right, unseen) if words else None,
                "asked": asked(right, facts, words),  # of the withheld combinations, if there are any,
                "first": asked(right, facts, 1),  # and of those that the shipped model never saw
            }
        print(name, rows[name], flush=True)
    return rows


def asked(right, facts, words):
    """Of pictures whose combination is withheld: how often the very word that training never saw there is right."""
    hits = []
    for c in range(len(captions.CLASSES)):
        for i in range(words):
            kind, value = captions.fact_of(captions.NEVER[(c + i) % len(captions.NEVER)])
            hits.append(right[(facts[:, 3] == c) & (facts[:, kind] == value), kind].float())
    return torch.cat(hits).mean().item() if hits else None


def measure_choice(pair, model, judge, test, candidates=(1, 8, 64), **knobs):
    """The best of 1, 8, 64 candidates: for each of the 180 captions three groups of 64, 24 of 8 and 192 of 1.

    Beside them what the contrastive pair finds of real pictures and their captions: to fit better is suspicious.
    """
    pixels, said = dalle.described(test, 1)
    real = similarity(model, data.to_images(pixels), captions.write_captions(said))
    rows, n = {"real": {"similarity": real.mean().item()}}, max(candidates)
    facts = EVERY.repeat(3, 1).repeat_interleave(n, 0)
    images = drawn(pair, facts, batch_size=320, **knobs)
    right = evaluation.as_asked(images, facts, judge)
    scores = similarity(model, images, captions.write_captions(facts))
    features = classify(judge, images)[1]
    for k in candidates:
        best = scores.reshape(-1, k).argmax(1) + torch.arange(0, len(scores), k)
        unseen = captions.withheld(facts[best])
        rows[str(k)] = {
            "seen": shares(right[best], ~unseen),
            "unseen": shares(right[best], unseen),
            "similarity": scores[best].mean().item(),
            "spread": features[best].var(0).sum().item(),
        }
    return rows


def measure_tokenizers(test, judge, tokenizers):
    """Copies of the test set, and as many samples for its captions, by {name: pair}."""
    images, facts = data.to_images(test.pixels), captions.facts_of(test.pixels, test.labels)
    real, rows = classify(judge, images)[1], {}
    for name, pair in tokenizers.items():
        copies = evaluation.reconstruct(pair.vqvae, encode_pixels(pair.vqvae, test.pixels))
        row = evaluation.evaluate_vqvae(pair.vqvae, test)
        row["fid_copies"] = evaluation.frechet_distance(classify(judge, copies)[1], real)
        for T in (0.8, 1.0):
            samples = drawn(pair, facts, temperature=T)
            row[f"fid_samples_{T:g}"] = evaluation.frechet_distance(classify(judge, samples)[1], real)
            row[f"right_{T:g}"] = shares(evaluation.as_asked(samples, facts, judge))
        rows[name] = row
        print(name, row, flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("seen", "guided", "curve", "choose", "tokenizers"))
    parser.add_argument("--model", help="the captioned model, by default the shipped one")
    parser.add_argument("--contrastive", help="by default the shipped one")
    parser.add_argument("--dvae-model", help="a captioned model of the discrete VAE's codes")
    parser.add_argument("--dvae", help="the discrete VAE, by default the shipped one")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"), help="where the curve's models go")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--decoder", default="crisp", help="what draws the pictures that are judged (default crisp)")
    parser.add_argument("--judge", default="judge", choices=("judge", "critic"), help="the critic, to choose knobs by")
    parser.add_argument("--out", type=Path, help="merge the figures into this file")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    knobs = {"temperature": options.temperature}
    judge = checkpoints.load_classifier(options.judge, shipped=True)
    tokenizer = load_pair(shipped=True, decoder=options.decoder).vqvae
    model = checkpoints.load_transformer(options.model, name="captions", shipped=True, vqvae=tokenizer)
    pair = Pair(tokenizer, model)
    if options.what == "guided":
        figures = measure_seen(pair, judge, guidance=GUIDANCE, **knobs)
    elif options.what == "seen":
        figures = measure_seen(pair, judge, **knobs) | {"real": measure_real(pair, judge, data.load("test"))}
    elif options.what == "curve":
        options.folder.mkdir(parents=True, exist_ok=True)
        figures = measure_curve(data.load("train"), tokenizer, judge, options.folder, **knobs)
    elif options.what == "choose":
        model = checkpoints.load_contrastive(options.contrastive, shipped=True)
        figures = measure_choice(pair, model, judge, data.load("test"), **knobs)
    elif options.what == "tokenizers":
        soft, crisp = (load_pair(shipped=True, decoder=name).vqvae for name in ("soft", "crisp"))
        tokenizers = {"VQ-VAE": Pair(soft, model), "VQ-VAE, crisp": Pair(crisp, model)}
        if options.dvae_model:
            vqvae = checkpoints.load_dvae(options.dvae, shipped=True)
            model = checkpoints.load_transformer(options.dvae_model, name="captions", vqvae=vqvae)
            tokenizers["discrete VAE"] = Pair(vqvae, model)
        figures = measure_tokenizers(data.load("test"), judge, tokenizers)
    print(json.dumps(figures, indent=1))
    if options.out:
        kept = json.loads(options.out.read_text()) if options.out.is_file() else {}
        options.out.write_text(json.dumps(kept | {options.what: figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
