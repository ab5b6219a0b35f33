import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import same_weights, seeded
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vqlib import data
from vqlib.checks import check_codes
from vqlib.vqvae import GRID, VQVAE, VectorQuantizer, VQVAEConfig, kmeans

# --- pictures to codes and back --------------------------------------------------------------------------------------


def test_encode_and_decode_have_the_documented_shapes_and_ranges(vqvae, images):
    codes = vqvae.encode(images)
    assert codes.shape == (24, GRID, GRID) == (24, 7, 7) and codes.dtype == torch.int64
    assert 0 <= codes.min() and codes.max() < 64
    decoded = vqvae.decode(torch.arange(64).repeat(49)[: 4 * 49].reshape(4, 7, 7))
    assert decoded.shape == (4, 1, 28, 28) and decoded.abs().max() <= 1
    assert not decoded.requires_grad
    assert vqvae.encode(images[:0]).shape == (0, 7, 7) and vqvae.decode(codes[:0]).shape == (0, 1, 28, 28)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_decoding_the_codes_gives_the_reconstruction(vqvae, images, dtype, tolerance):
    vqvae, images = vqvae.to(dtype), images.to(dtype)
    output, codes = vqvae(images), vqvae.encode(images)
    assert torch.equal(codes, output.quantized.codes)
    assert (vqvae.decode(codes) - output.images).abs().max() < tolerance
    moved = vqvae.decode(codes.roll(1, 2)) - output.images
    assert moved.abs().max() > 100 * tolerance  # it would be seen if the codes were shifted by a cell


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_original_defect_1_codes_do_not_depend_on_the_batch(vqvae, images, mode):
    vqvae.train(mode == "train")
    together = vqvae.encode(images)
    alone = torch.cat([vqvae.encode(image[None]) for image in images])
    among_others = vqvae.encode(torch.cat([images[5:6], -images[:9]]))[:1]
    assert torch.equal(together, alone) and torch.equal(together[5:6], among_others)
    codes = torch.cat([together, 63 - together])
    assert (vqvae.decode(codes)[:24] - vqvae.decode(together)).abs().max() < 1e-12


def test_original_defect_1_training_and_eval_mode_give_the_same_codes(vqvae, images):
    assert torch.equal(vqvae.train().encode(images), vqvae.eval().encode(images))


def test_original_defect_1_no_layer_looks_across_the_batch():
    def offending(module):
        return isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd)

    assert not [m for m in VQVAE().modules() if offending(m)]


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("quantizer", ["gradient", "ema"])
@pytest.mark.parametrize("method", ["encode", "forward", "decode"])
def test_using_the_model_never_changes_it(images, method, quantizer, mode):
    vqvae = VQVAE(VQVAEConfig(channels=8, quantizer=quantizer)).double().train(mode == "train")
    before, flags = copy.deepcopy(vqvae), [module.training for module in vqvae.modules()]
    getattr(vqvae, method)(torch.arange(98).reshape(2, 7, 7) % 64 if method == "decode" else images)
    assert same_weights(vqvae, before) and [module.training for module in vqvae.modules()] == flags


def test_a_code_is_about_its_own_part_of_the_picture(vqvae):
    image = torch.full((1, 1, 28, 28), -1.0, dtype=torch.float64)
    corner = image.clone()
    corner[..., :4, :4] = 1
    before, after = vqvae.encode(image), vqvae.encode(corner)
    assert (before != after)[0, :2, :2].any() and not (before != after)[0, 5:, 5:].any()


def test_without_a_config_it_has_the_original_codebook():
    codebook = VQVAE().quantizer.codebook
    assert codebook.shape == (64, 16) and codebook.abs().max() <= 1 / 64 and codebook.requires_grad


# --- the quantizer ---------------------------------------------------------------------------------------------------


@given(st.data())
def test_nearest_agrees_with_a_slow_search_and_ties_go_to_the_lower_index(draw):
    K, D, n = (draw.draw(st.integers(1, high)) for high in (12, 5, 8))
    numbers = st.lists(st.integers(-3, 3), min_size=D, max_size=D)  # small whole numbers: exact arithmetic, many ties
    codebook = draw.draw(st.lists(numbers, min_size=K, max_size=K))
    vectors = draw.draw(st.lists(numbers, min_size=n, max_size=n))
    quantizer = VectorQuantizer(VQVAEConfig(num_codes=K, code_dim=D)).double()
    quantizer.codebook.data.copy_(torch.tensor(codebook))
    expected = []
    for vector in vectors:
        distances = [sum((a - b) ** 2 for a, b in zip(vector, code, strict=True)) for code in codebook]
        expected.append(distances.index(min(distances)))
    assert quantizer.nearest(torch.tensor(vectors).double()).tolist() == expected


def test_forward_puts_the_nearest_code_at_each_place(vqvae, images):
    latents = vqvae.encoder(images)
    quantized, codebook = vqvae.quantizer(latents), vqvae.quantizer.codebook
    for b, y, x in ((0, 0, 0), (3, 2, 5), (23, 6, 6)):
        code = quantized.codes[b, y, x]
        assert code == (codebook - latents[b, :, y, x]).pow(2).sum(1).argmin()
        assert (quantized.latents[b, :, y, x] - codebook[code]).abs().max() < 1e-12
    assert torch.equal(vqvae.quantizer.lookup(quantized.codes)[3, :, 2, 5], codebook[quantized.codes[3, 2, 5]])


def test_the_gradient_passes_straight_through(vqvae, images):
    output = vqvae(images)
    output.latents.retain_grad()
    output.quantized.latents.retain_grad()
    F.mse_loss(vqvae.decoder(output.quantized.latents), images).backward()
    at_decoder, at_encoder = output.quantized.latents.grad, output.latents.grad
    assert at_decoder.abs().max() > 0 and torch.equal(at_encoder, at_decoder)
    assert vqvae.encoder[0].weight.grad.abs().max() > 0 and vqvae.quantizer.codebook.grad is None


@pytest.mark.parametrize("quantizer, names", [("gradient", ["codebook", "commitment"]), ("ema", ["commitment"])])
def test_the_losses_are_the_mean_squared_distance_to_the_code(images, quantizer, names):
    vqvae = VQVAE(VQVAEConfig(channels=8, quantizer=quantizer)).double()
    output, codebook = vqvae(images), vqvae.quantizer.codebook
    vectors = rearrange(output.latents, "b d h w -> (b h w) d")
    distance = torch.cdist(vectors, codebook).min(1).values.pow(2).sum() / vectors.numel()
    assert distance > 0 and list(output.quantized.losses) == names
    assert codebook.requires_grad is (quantizer == "gradient")
    for loss in output.quantized.losses.values():
        assert loss.shape == ()
        torch.testing.assert_close(loss, distance)


def test_the_codebook_loss_moves_only_the_codebook_and_the_commitment_loss_only_the_encoder(vqvae, images):
    encoder, codebook = vqvae.encoder[0].weight, vqvae.quantizer.codebook
    for name, moved, still in (("codebook", codebook, encoder), ("commitment", encoder, codebook)):
        vqvae.zero_grad()
        vqvae(images).quantized.losses[name].backward()
        assert moved.grad.abs().max() > 0 and still.grad is None
        assert all(p.grad is None for p in vqvae.decoder.parameters())


def test_the_commitment_gradient_pulls_each_vector_to_its_code(vqvae, images):
    output = vqvae(images)
    output.latents.retain_grad()
    output.quantized.losses["commitment"].backward()
    pull = 2 * (output.latents - vqvae.quantizer.lookup(output.quantized.codes)) / output.latents.numel()
    torch.testing.assert_close(output.latents.grad, pull.detach())


def test_codes_are_chosen_in_float32_under_autocast(vqvae, images):
    vqvae = vqvae.float()
    latents = vqvae.encoder(images.float()).detach()
    expected = vqvae.quantizer(latents)
    with torch.autocast("cpu", torch.bfloat16):
        found = vqvae.quantizer(latents)
    assert torch.equal(found.codes, expected.codes) and found.latents.dtype == torch.float32
    assert torch.equal(found.losses["commitment"], expected.losses["commitment"])


# --- moving averages (appendix A.1) and revival ----------------------------------------------------------------------


@pytest.fixture
def quantizer():
    quantizer = VectorQuantizer(VQVAEConfig(num_codes=6, code_dim=3, quantizer="ema")).double()
    quantizer.init_from(torch.randn(60, 3, dtype=torch.float64, generator=seeded()), seeded())
    return quantizer


def test_ema_update_agrees_with_the_papers_equations(quantizer):
    K, n, decay = 6, 40, 0.9
    N = [count.item() * n / K for count in quantizer.ema_count]  # here 1 is an even share, in the paper it is n / K
    m = [
        code * count
        for code, count in zip(quantizer.codebook.tolist(), N, strict=True)
        for code in [torch.tensor(code).double()]
    ]
    generator = seeded(1)
    for _ in range(5):
        z = torch.randn(n, 3, dtype=torch.float64, generator=generator) + 1
        codes = quantizer.nearest(z)
        assert quantizer.ema_update(z, codes, decay) == 0
        for i in range(K):
            mine = [z[j] for j in range(n) if codes[j] == i]
            N[i] = N[i] * decay + len(mine) * (1 - decay)
            m[i] = m[i] * decay + sum(mine, torch.zeros(3)) * (1 - decay)
            torch.testing.assert_close(quantizer.codebook[i], m[i] / N[i])
            torch.testing.assert_close(quantizer.ema_count[i] * n / K, torch.tensor(N[i]).double())


def test_ema_update_finds_the_means_of_clusters(quantizer):
    centres = torch.tensor([[4, 0, 0], [-4, 0, 0], [0, 4, 0], [0, -4, 0], [0, 0, 4], [0, 0, -4]]).double()
    quantizer.codebook.copy_(centres / 4)
    quantizer.ema_sum.copy_(centres / 4)
    quantizer.ema_count.fill_(1)
    for step in range(80):
        z = centres.repeat(20, 1) + torch.randn(120, 3, dtype=torch.float64, generator=seeded(step)) / 10
        quantizer.ema_update(z, quantizer.nearest(z), decay=0.9)
    assert (quantizer.codebook - centres).abs().max() < 0.05


def test_a_dead_code_restarts_at_a_vector_of_the_batch_and_the_living_stay(quantizer):
    still = copy.deepcopy(quantizer)
    z = torch.randn(40, 3, dtype=torch.float64, generator=seeded(2))
    codes = torch.arange(40) % 4  # nobody chose codes 4 and 5
    for q in (quantizer, still):
        q.ema_count[4:] = 0.05
        q.ema_sum[4:] = q.codebook[4:] * 0.05
    assert still.ema_update(z, codes, revive_below=0.0) == 0
    revived = quantizer.ema_update(z, codes, revive_below=0.1, generator=seeded(3))
    assert revived == 2 and revived.shape == () and revived.dtype == torch.int64
    assert torch.equal(quantizer.codebook[:4], still.codebook[:4])
    assert torch.equal(quantizer.ema_count[:4], still.ema_count[:4])
    for code in (4, 5):
        assert (quantizer.codebook[code] == z).all(1).any() and not (still.codebook[code] == z).all(1).any()
    assert quantizer.ema_count[4:].tolist() == [1, 1]  # an even share to live on
    assert quantizer.ema_update(z, codes, revive_below=0.1) == 0


def test_revive_below_zero_never_revives(quantizer):
    quantizer.float()  # whose least number is soon reached
    z, codes, before = torch.ones(10, 3), torch.zeros(10, dtype=torch.int64), quantizer.codebook.detach().clone()
    for _ in range(300):
        assert quantizer.ema_update(z, codes, decay=0.5) == 0
    assert quantizer.ema_count[1:].max() == 0  # nobody chose them, but they are still where they were
    torch.testing.assert_close(quantizer.codebook[1:], before[1:])
    torch.testing.assert_close(quantizer.codebook[0], torch.ones(3))


def test_revival_is_drawn_from_the_generator_given(quantizer):
    z, codes = torch.randn(40, 3, dtype=torch.float64, generator=seeded()), torch.zeros(40, dtype=torch.int64)
    books = []
    for seed in (1, 1, 2):
        q = copy.deepcopy(quantizer)
        q.ema_update(z, codes, revive_below=10.0, generator=seeded(seed))
        books.append(q.codebook)
    assert torch.equal(books[0], books[1]) and not torch.equal(books[0], books[2])


def test_init_from_starts_every_code_where_data_is(quantizer):
    z = torch.randn(300, 3, dtype=torch.float64, generator=seeded(4)) * 5 + 100
    quantizer.init_from(z, seeded(5))
    share = quantizer.nearest(z).bincount(minlength=6) / 50
    assert share.min() > 0
    torch.testing.assert_close(quantizer.ema_count, share.double())
    torch.testing.assert_close(quantizer.ema_sum / quantizer.ema_count[:, None], quantizer.codebook.detach())


Z, CHOSEN = torch.zeros(40, 3, dtype=torch.float64), torch.zeros(40, dtype=torch.int64)


@pytest.mark.parametrize(
    "name, value",
    [
        ("vectors", Z.float()),
        ("vectors", Z[:, :2]),
        ("vectors", Z[:39]),
        ("vectors", Z[None]),
        ("vectors", Z * float("nan")),
        ("vectors", Z.tolist()),
        ("codes", CHOSEN - 1),
        ("codes", CHOSEN + 6),
        ("codes", CHOSEN.int()),
        ("codes", CHOSEN[None]),
        ("codes", CHOSEN[:0]),
        ("decay", -0.1),
        ("decay", 1.1),
        ("decay", True),
        ("revive_below", -1),
        ("revive_below", float("nan")),
        ("revive_below", None),
    ],
)
def test_ema_update_refuses_before_anything_has_changed(quantizer, name, value):
    before = copy.deepcopy(quantizer)
    with pytest.raises(ValueError, match=name):
        quantizer.ema_update(**{"vectors": Z, "codes": CHOSEN, name: value})
    assert same_weights(quantizer, before)


@pytest.mark.parametrize("vectors", [Z[:5], Z[:, :2], Z[0], Z.long(), Z / 0, Z.tolist()])
def test_init_from_refuses_before_anything_has_changed(quantizer, vectors):
    before = copy.deepcopy(quantizer)
    with pytest.raises(ValueError, match="vectors"):
        quantizer.init_from(vectors)
    assert same_weights(quantizer, before)


# --- k-means ---------------------------------------------------------------------------------------------------------


def objective(points, centres, assigned):
    return (points - centres[assigned]).pow(2).sum().item()


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(6, 40))
def test_kmeans_converges_to_the_means_of_its_clusters(seed, k, n):
    points = torch.randn(n, 2, dtype=torch.float64, generator=seeded(seed))
    centres, assigned = kmeans(points, k, iterations=100, generator=seeded(seed))
    assert centres.shape == (k, 2) and assigned.shape == (n,)
    for i, point in enumerate(points):
        distances = (centres - point).pow(2).sum(1)
        assert distances[assigned[i]] <= distances.min() + 1e-12
    for j in range(k):
        torch.testing.assert_close(centres[j], points[assigned == j].mean(0))


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_kmeans_never_gets_worse(seed, k):
    points = torch.randn(30, 3, dtype=torch.float64, generator=seeded(seed))
    errors = [objective(points, *kmeans(points, k, iterations=i, generator=seeded(seed))) for i in range(5)]
    assert all(later <= earlier + 1e-9 for earlier, later in zip(errors, errors[1:], strict=False))


def test_kmeans_starts_at_distinct_points_and_follows_its_generator():
    points = torch.arange(20.0)[:, None]
    start, _ = kmeans(points, 20, iterations=0, generator=seeded())
    assert sorted(start.flatten().tolist()) == list(range(20))
    some, again, other = (kmeans(points, 5, iterations=0, generator=seeded(s))[0] for s in (0, 0, 1))
    assert torch.equal(some, again) and not torch.equal(some, other)


def test_kmeans_finds_well_separated_clusters():
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    points = centres.repeat(30, 1) + torch.randn(90, 2, generator=seeded())
    found = [kmeans(points, 3, generator=seeded(seed)) for seed in range(5)]
    best = min(found, key=lambda pair: objective(points, *pair))[0]
    assert torch.cdist(centres, best).min(1).values.max() < 1


def test_kmeans_moves_a_centre_that_lost_its_points():
    points = torch.tensor([[0.0], [0.0], [0.0], [5.0], [9.0]])
    for seed in range(10):  # among equal starting centres the first takes all: the others must move on
        centres, assigned = kmeans(points, 3, iterations=50, generator=seeded(seed))
        assert centres.isfinite().all() and objective(points, centres, assigned) < 8.01


# --- bad input -------------------------------------------------------------------------------------------------------


def spoiled(value):
    images = torch.zeros(2, 1, 28, 28)
    images[1, 0, 3, 3] = value
    return images


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 28, 28),
        torch.zeros(2, 3, 28, 28),
        torch.zeros(2, 1, 32, 32),
        torch.zeros(2, 1, 28, 28, dtype=torch.uint8),
        torch.zeros(2, 1, 28, 28, dtype=torch.float64),  # the model's are float32
        torch.zeros(2, 1, 28, 28).numpy(),
        spoiled(255.0),
        spoiled(-1.1),
        spoiled(float("nan")),
        spoiled(float("inf")),
        None,
    ],
)
def test_encode_refuses_what_are_no_images_and_names_the_remedy(images):
    with pytest.raises(ValueError, match="images must .*to_images"):
        VQVAE(VQVAEConfig(channels=8)).encode(images)


CODES = torch.zeros(2, 7, 7, dtype=torch.int64)


@pytest.mark.parametrize(
    "codes",
    [
        CODES.int(),
        CODES.float(),
        CODES.bool(),
        CODES[0],
        CODES.flatten(1),
        CODES[:, :6],
        CODES[None],
        CODES.tolist(),
        CODES.numpy(),
        None,
        CODES - 1,
        CODES + 64,
        CODES + 74,
    ],
)
def test_decode_refuses_what_are_no_codes(codes):
    for function in (VQVAE(VQVAEConfig(channels=8)).decode, lambda codes: check_codes(codes, 64)):
        with pytest.raises(ValueError, match="codes must"):
            function(codes)


@pytest.mark.parametrize("K", [32, 256])
def test_the_range_of_codes_is_that_of_the_codebook(K, images):
    vqvae = VQVAE(VQVAEConfig(channels=8, num_codes=K)).double()
    assert vqvae.decode(CODES + K - 1).shape == (2, 1, 28, 28)
    assert vqvae.encode(images).max() < K
    with pytest.raises(ValueError, match=f"codes must .*{K - 1}"):
        vqvae.decode(CODES + K)


def test_real_pixels_are_refused_until_they_are_scaled(train):
    vqvae = VQVAE(VQVAEConfig(channels=8))
    with pytest.raises(ValueError, match="images"):
        vqvae.encode(train.pixels[:5, None].float())
    assert vqvae.encode(data.to_images(train.pixels[:5])).shape == (5, 7, 7)


@pytest.mark.parametrize(
    "name, value", [("num_codes", 0), ("code_dim", 2.0), ("channels", 1), ("residual_blocks", -1), ("quantizer", True)]
)
def test_a_configuration_is_checked(name, value):
    with pytest.raises(ValueError, match=name):
        VQVAEConfig(**{name: value})


def test_all_that_chooses_the_nearest_does_so_in_float32_under_autocast(test):
    torch.manual_seed(0)
    model, images = VQVAE().eval(), data.to_images(test.pixels[:64])
    points = model.encoder(images).detach().permute(0, 2, 3, 1).reshape(-1, 16)
    centres, assigned = kmeans(points, 64, generator=seeded())
    codes = model.quantizer.nearest(points)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.quantizer.nearest(points), codes)
        found = kmeans(points, 64, generator=seeded())
        model.quantizer.ema_update(points, codes)
        encoded, forward = model.encode(images), model(images).quantized.codes
    assert torch.equal(found[0], centres) and torch.equal(found[1], assigned)
    assert torch.equal(encoded, forward)
