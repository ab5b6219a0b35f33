"""What the panels compute and draw, against slow obvious versions."""

import io
from collections import Counter

import pytest
import torch
from PIL import Image

from vqlib import data, interactive, sampling
from vqlib.classifier import Classifier, ClassifierConfig
from vqlib.transformer import Transformer, TransformerConfig
from vqlib.vqvae import VQVAE, VectorQuantizer, VQVAEConfig


@pytest.fixture
def vqvae():
    torch.manual_seed(0)
    return VQVAE(VQVAEConfig(channels=8)).double().eval()


def a_classifier(seed):
    torch.manual_seed(seed)
    return Classifier(ClassifierConfig(channels=4)).double().eval()


def opened(png):
    return Image.open(io.BytesIO(png)).convert("RGB")


def colours(png):
    return {colour for _, colour in opened(png).getcolors(1 << 24)}


# --- computing -------------------------------------------------------------------------------------------------------


def test_a_strip_is_what_sample_writes_with_its_likelihood_and_verdict(transformer, vqvae):
    judge, labels = a_classifier(1), torch.full((5,), 3)
    strip = interactive.write_strip(transformer, vqvae, judge, 3, n=5, seed=2, temperature=1.1, top_k=20)
    codes = sampling.sample(transformer, labels, 1.1, top_k=20, generator=torch.Generator().manual_seed(2))
    assert torch.equal(strip.images, vqvae.decode(codes))
    likelihood = sampling.log_likelihood(transformer, codes, labels)
    assert torch.allclose(strip.nats_per_code, -likelihood / 49)
    with torch.no_grad():
        assert torch.equal(strip.verdicts, judge(strip.images).argmax(1))


def test_reranking_keeps_those_that_the_critic_likes_best(transformer, vqvae):
    judge, critic = a_classifier(1), a_classifier(2)
    all_of_them = interactive.write_strip(transformer, vqvae, judge, 3, n=12, seed=2)
    kept = interactive.write_strip(transformer, vqvae, judge, 3, n=4, seed=2, critic=critic, draws=3)
    with torch.no_grad():
        order = critic(all_of_them.images).log_softmax(-1)[:, 3].argsort(descending=True)[:4]
    assert torch.equal(kept.images, all_of_them.images[order])
    assert torch.allclose(kept.nats_per_code, all_of_them.nats_per_code[order])
    assert torch.equal(kept.verdicts, all_of_them.verdicts[order])


def test_same_noise_is_the_same_whoever_else_is_drawn(transformer, vqvae):
    all_ten = interactive.same_noise(transformer, vqvae, range(10), 0.8, seed=3)
    assert torch.allclose(interactive.same_noise(transformer, vqvae, [6], 0.8, seed=3)[0], all_ten[6])


def test_usual_codes_are_the_most_frequent_of_each_class_and_cell(vqvae):
    sample = data.load_sample("test")
    usual = interactive.usual_codes(vqvae.float(), sample)
    codes = vqvae.encode(data.to_images(sample.pixels))
    for label, row, column in [(0, 0, 0), (3, 3, 3), (9, 6, 2)]:
        count = Counter(codes[sample.labels == label, row, column].tolist())
        assert count[usual[label, row, column].item()] == max(count.values())


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_trace_is_what_the_transformer_saw_at_each_choice(transformer, vqvae, temperature):
    usual = torch.randint(64, (10, 7, 7), generator=torch.Generator().manual_seed(0))
    trace = interactive.trace(transformer, vqvae, usual, 4, temperature, seed=1)
    codes = sampling.sample(transformer, torch.tensor([4]), temperature, generator=torch.Generator().manual_seed(1))
    assert torch.equal(trace.codes, codes.flatten())
    for t in (0, 1, 20, 48):
        tokens = torch.cat([torch.tensor([68]), trace.codes[:t]])[None]
        with torch.no_grad():
            logits = transformer(tokens)[0, -1, :64]
            attention = transformer.attention_maps(tokens)[:, 0, :, -1]
        expected = (logits / temperature).softmax(-1) if temperature else torch.eye(64)[logits.argmax()]
        assert torch.allclose(trace.probabilities[t].double(), expected.double(), atol=1e-5)
        assert torch.equal(trace.ranking[t], logits.argsort(descending=True))
        assert trace.entropy[t].item() == pytest.approx(-sum(p * torch.tensor(p).log().item()
                                                             for p in expected.tolist() if p > 0), abs=1e-4)
        assert torch.allclose(trace.attention[:, :, t, :t + 1].double(), attention, atol=1e-5)
        assert (trace.attention[:, :, t, t + 1:] == 0).all()
        assert torch.equal(trace.stages[t].flatten()[:t], trace.codes[:t])
        assert torch.equal(trace.stages[t].flatten()[t:], usual[4].flatten()[t:])
    assert torch.allclose(trace.pictures, vqvae.decode(trace.stages))
    assert torch.allclose(trace.pictures[49], vqvae.decode(codes)[0])


def test_a_trace_is_of_the_transformer_without_dropout_whatever_its_mode(vqvae):
    torch.manual_seed(0)
    transformer = Transformer(TransformerConfig(d_model=32, n_heads=4, n_layers=2, dropout=0.5)).double()
    usual = torch.zeros(10, 7, 7, dtype=torch.int64)
    expected = interactive.trace(transformer.eval(), vqvae, usual, 4)
    trace = interactive.trace(transformer.train(), vqvae, usual, 4)
    assert transformer.training and torch.equal(trace.codes, expected.codes)
    assert torch.equal(trace.probabilities, expected.probabilities) and torch.equal(trace.attention, expected.attention)


def test_variants_change_one_code(vqvae):
    codes = torch.randint(64, (7, 7), generator=torch.Generator().manual_seed(0))
    pictures = interactive.variants(vqvae, codes, 24, torch.tensor([5, 63, int(codes[3, 3])]))
    for picture, code in zip(pictures, (5, 63, codes[3, 3]), strict=True):
        changed = codes.clone()
        changed[3, 3] = code
        assert torch.allclose(picture, vqvae.decode(changed[None])[0])


def test_crop_takes_the_cells_own_pixels_and_black_beyond_the_rim():
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(interactive.crop(images, 9), images[:, :, 4:8, 8:12])
    corner = interactive.crop(images, 48, around=4)
    assert corner.shape == (2, 1, 12, 12) and torch.equal(corner[:, :, :8, :8], images[:, :, 20:, 20:])
    assert (corner[:, :, 8:] == -1).all() and (corner[..., 8:] == -1).all()


@pytest.mark.parametrize("rows", [0, 3, 7])
def test_completions_keep_the_upper_rows(transformer, vqvae, rows):
    codes = torch.randint(64, (7, 7), generator=torch.Generator().manual_seed(0))
    pictures = interactive.complete(transformer, vqvae, codes, 6, rows, n=4, temperature=1.0, seed=0)
    expected = sampling.sample(transformer, torch.full((4,), 6), 1.0, generator=torch.Generator().manual_seed(0),
                               prefix=codes.flatten()[None, :7 * rows].repeat(4, 1))
    assert torch.equal(expected[:, :rows], codes[:rows].expand(4, rows, 7))
    assert torch.equal(pictures, vqvae.decode(expected)) and len(pictures.unique(dim=0)) == (1 if rows == 7 else 4)


def points_in_the_plane():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[2.0, 1.0], [-2.0, 1.5], [0.0, -2.0]])
    return centres[torch.randint(3, (200,), generator=generator)] + 0.4 * torch.randn(200, 2, generator=generator)


def test_a_walk_is_made_of_moving_average_steps():
    points = points_in_the_plane()
    walk = interactive.quantizer_walk(points, K=5, start="random points", decay=0.8, steps=4)
    quantizer = VectorQuantizer(VQVAEConfig(num_codes=5, code_dim=2, ema=True))
    quantizer.codebook.copy_(walk.codebooks[0])
    quantizer.ema_sum.copy_(walk.codebooks[0])
    for step in range(1, 5):
        quantizer.ema_update(points, quantizer.nearest(points), decay=0.8)
        assert torch.allclose(walk.codebooks[step], quantizer.codebook)
    assert (walk.revived == 0).all()
    known = {tuple(point) for point in points.tolist()}
    assert all(tuple(code) in known for code in walk.codebooks[0].tolist())


def used(points, codebook):
    return len(torch.cdist(points, codebook).argmin(1).unique())


def test_codes_that_start_to_one_side_die_and_revival_or_kmeans_cure_it():
    points = points_in_the_plane()
    collapsed = interactive.quantizer_walk(points)
    assert (collapsed.codebooks[0].mean(0) > points.mean(0)).all()
    assert used(points, collapsed.codebooks[-1]) < 8
    revived = interactive.quantizer_walk(points, revive_below=0.2)
    assert used(points, revived.codebooks[-1]) == 8 and revived.revived[-1] > 0
    assert (revived.revived.diff() >= 0).all()
    assert used(points, interactive.quantizer_walk(points, start="k-means").codebooks[0]) == 8


def test_a_walk_refuses_what_it_cannot_do_and_leaves_the_readers_generator_alone():
    points = points_in_the_plane()
    with pytest.raises(ValueError, match="start must be one of .*k-means"):
        interactive.quantizer_walk(points, start="kmeans")
    with pytest.raises(ValueError, match="at most the number of points, 200"):
        interactive.quantizer_walk(points, K=201)
    before = torch.get_rng_state()
    interactive.quantizer_walk(points, revive_below=0.3)
    assert torch.equal(torch.get_rng_state(), before)


def test_choosing_needs_a_critic(transformer, vqvae):
    with pytest.raises(ValueError, match="2 of 8 pictures needs a critic"):
        interactive.write_strip(transformer, vqvae, a_classifier(1), 3, n=2, draws=4)


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_pictures_are_enlarged_by_whole_pixels():
    images = torch.linspace(-1, 1, 4 * 28 * 28).reshape(4, 1, 28, 28)
    png = interactive.sprite(images, columns=2, zoom=3)
    assert interactive.png_size(png) == (168, 168)
    picture = opened(png)
    small = picture.resize((56, 56), Image.Resampling.NEAREST)
    again = small.resize((336, 336), Image.Resampling.NEAREST)
    assert picture.size == (336, 336) and picture.tobytes() == again.tobytes()
    expected = ((images[1, 0, 5, 7] + 1) * 127.5).round().item()
    assert small.getpixel((28 + 7, 5)) == (expected,) * 3
    assert small.getpixel((0, 0)) == (0, 0, 0) and small.getpixel((55, 55)) == (255, 255, 255)


def test_the_verdict_is_green_where_it_is_right():
    def shown(verdict):
        strip = interactive.Strip(torch.zeros(1, 1, 28, 28), torch.tensor([2.0]), torch.tensor([verdict]))
        return colours(interactive.draw_strip(strip, label=6))

    right, wrong = ((127, 209, 174), (255, 158, 128))
    assert right in shown(6) and wrong not in shown(6)
    assert wrong in shown(4) and right not in shown(4)


def test_the_sheet_of_a_trace_keeps_its_size_and_changes_with_each_step(transformer, vqvae):
    usual = torch.zeros(10, 7, 7, dtype=torch.int64)
    trace = interactive.trace(transformer, vqvae, usual, 4)
    sheets = [interactive.draw_trace(trace, t, 0, 0, vqvae) for t in range(50)]
    assert len({interactive.png_size(png) for png in sheets}) == 1 and len(set(sheets)) == 50
    assert interactive.draw_trace(trace, 20, 1, 2, vqvae) != sheets[20]  # another head


def test_an_unwritten_cell_is_dimmed(transformer, vqvae):
    trace = interactive.trace(transformer, vqvae, torch.zeros(10, 7, 7, dtype=torch.int64), 4)
    picture = opened(interactive.draw_trace(trace, 14, 0, 0, vqvae, zoom=6))

    def shown(row, column):
        return picture.getpixel((2 * (16 + 6 * column) + 6, 2 * (22 + 6 * row) + 6))[0]

    values = (trace.pictures[14][0] + 1) * 127.5
    assert shown(3, 5) == pytest.approx(values[3, 5].item(), abs=1)
    assert shown(20, 5) == pytest.approx(0.3 * values[20, 5].item(), abs=1)


def test_a_walks_sheet_marks_used_codes_black_and_dead_ones_white_where_they_lie():
    points = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    walk = interactive.Walk(torch.tensor([[[0.0, 0.0], [1.0, 1.0], [3.0, 4.0]]]), torch.zeros(1, dtype=torch.int64))
    png = interactive.draw_walk(points, walk, 0)
    picture, unit = opened(png), 380 / 4.4  # the plane from -0.2 to 4.2
    for (x, y), colour in (((0, 0), 0), ((1, 1), 0), ((3, 4), 255)):
        at = (round(2 * (x + 0.2) * unit), round(2 * (404 - (y + 0.2) * unit)))
        assert picture.getpixel(at) == (colour,) * 3
    assert interactive.png_size(png) == (380, 404)


def test_the_drawn_code_is_framed_though_it_was_unlikely(transformer, vqvae):
    trace = interactive.trace(transformer, vqvae, torch.zeros(10, 7, 7, dtype=torch.int64), 4, temperature=3.0)
    ranks = [(trace.ranking[t] == trace.codes[t]).nonzero().item() for t in range(49)]
    t = max(range(49), key=ranks.__getitem__)
    assert ranks[t] >= 10
    picture = opened(interactive.draw_trace(trace, t, 0, 0, vqvae))
    left, top = 16 + 9 * 52, 22 + 168 + 14 + 20  # the tenth candidate
    assert picture.getpixel((2 * left + 1, 2 * top + 1)) == (0xE6, 0x9F, 0x00)
