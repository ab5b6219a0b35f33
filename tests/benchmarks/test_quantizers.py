"""The two quantizers of the ablation, held against slow and obvious versions, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from stage1_ablation import FSQ, RotationQuantizer, rotate

from vqlib.vqvae import VQVAE, VectorQuantizer, VQVAEConfig


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def flat(latents):
    return rearrange(latents, "b d h w -> (b h w) d")


# --- the rotation trick ----------------------------------------------------------------------------------------------


def rotation_matrix(z, q):
    """The textbook's rotation from z's direction to q's, in the plane of the two (Rodrigues), for a pair of vectors."""
    u, v = z / z.norm(), q / q.norm()
    across = v - (v @ u) * u
    across = across / across.norm()
    angle = torch.acos(u @ v)
    turn = torch.outer(across, u) - torch.outer(u, across)
    return (
        torch.eye(len(z), dtype=z.dtype)
        + angle.sin() * turn
        + (angle.cos() - 1) * (torch.outer(u, u) + torch.outer(across, across))
    )


@pytest.mark.parametrize("dim", [2, 3, 16])
def test_rotate_has_the_value_q_and_the_gradient_of_the_scaled_rotation(dim):
    z, q, gradient = normal(20, dim).requires_grad_(), normal(20, dim, seed=1), normal(20, dim, seed=2)
    turned = rotate(z, q)
    turned.backward(gradient)
    torch.testing.assert_close(turned, q)
    for i in range(20):
        a, b = z[i].detach(), q[i]
        R, scale = rotation_matrix(a, b), b.norm() / a.norm()
        torch.testing.assert_close(R @ R.T, torch.eye(dim, dtype=a.dtype))
        torch.testing.assert_close(scale * R @ a, b)
        torch.testing.assert_close(z.grad[i], scale * R.T @ gradient[i])


def test_rotate_keeps_the_angle_between_the_gradient_and_the_vector():
    z, q, gradient = normal(50, 16).requires_grad_(), normal(50, 16, seed=1), normal(50, 16, seed=2)
    rotate(z, q).backward(gradient)
    torch.testing.assert_close(F.cosine_similarity(z.grad, z), F.cosine_similarity(gradient, q))


@pytest.fixture
def latents():
    return normal(4, 16, 7, 7)


def pair():
    """The project's quantizer and the rotating one, with one codebook."""
    plain, rotating = VectorQuantizer(VQVAEConfig()).double(), RotationQuantizer(VQVAEConfig()).double()
    plain.codebook.data.copy_(normal(64, 16, seed=3))
    rotating.load_state_dict(plain.state_dict())
    return plain, rotating


def test_rotation_changes_only_the_encoders_gradient(latents):
    outputs, gradients = [], []
    for quantizer in pair():
        z = latents.clone().requires_grad_()
        outputs.append(quantizer(z))
        loss = (outputs[-1].latents * normal(4, 16, 7, 7, seed=4)).sum()
        gradients.append(torch.autograd.grad(loss, [z, quantizer.codebook], retain_graph=True, allow_unused=True))
    plain, rotating = outputs
    assert torch.equal(plain.codes, rotating.codes) and len(plain.codes.unique()) > 20
    assert plain.losses == rotating.losses and set(plain.losses) == {"codebook", "commitment"}
    torch.testing.assert_close(rotating.latents, pair()[1].lookup(rotating.codes))
    torch.testing.assert_close(gradients[0][0], normal(4, 16, 7, 7, seed=4))  # straight-through: as it came
    z, q = flat(latents), flat(rotating.latents.detach())
    expected = torch.stack(
        [
            b.norm() / a.norm() * rotation_matrix(a, b).T @ g
            for a, b, g in zip(z, q, flat(normal(4, 16, 7, 7, seed=4)), strict=True)
        ]
    )
    torch.testing.assert_close(flat(gradients[1][0]), expected)
    assert gradients[0][1] is None and gradients[1][1] is None  # the codebook learns from its own loss only


def test_rotation_at_a_zero_vector_and_against_an_opposite_code():
    quantizer = pair()[1]
    latents = torch.zeros(2, 16, 7, 7, dtype=torch.float64)
    latents[1] = -1e-9 * quantizer.codebook.detach()[quantizer.nearest(torch.zeros(16).double())][:, None, None]
    latents.requires_grad_()
    output = quantizer(latents)
    output.latents.sum().backward()
    torch.testing.assert_close(output.latents, quantizer.lookup(output.codes))
    assert latents.grad.isfinite().all()


# --- finite scalar quantization --------------------------------------------------------------------------------------

FSQ_CONFIG = VQVAEConfig(code_dim=2, channels=8)


def round_one(number, levels):
    """One number, as the paper says: squash it to a range that `levels` integers fill, and round; counted from 0."""
    half = (levels - 1) * (1 - 1e-3) / 2
    middle = 0.5 if levels % 2 == 0 else 0.0
    bounded = math.tanh(number + math.atanh(middle / half)) * half - middle
    return bounded, math.floor(bounded + 0.5) + levels // 2


@pytest.mark.parametrize("codes, dim, levels", [(64, 2, 8), (25, 2, 5), (64, 3, 4), (7, 1, 7)])
def test_fsq_rounds_each_number_to_its_level(codes, dim, levels):
    fsq = FSQ(VQVAEConfig(num_codes=codes, code_dim=dim)).double()
    z = (normal(100, dim, 7, 7) * 1.5).requires_grad_()
    output = fsq(z)
    output.latents.sum().backward()
    for vector, q, grad, code in zip(
        *map(flat, (z.detach(), output.latents.detach(), z.grad)), output.codes.flatten(), strict=True
    ):
        index = 0
        for number, value, slope in zip(vector.tolist(), q.tolist(), grad.tolist(), strict=True):
            bounded, digit = round_one(number, levels)
            index = index * levels + digit
            assert value == pytest.approx((digit - levels // 2) / (levels // 2), abs=1e-12)
            ahead, behind = round_one(number + 1e-6, levels)[0], round_one(number - 1e-6, levels)[0]
            assert slope == pytest.approx((ahead - behind) / 2e-6 / (levels // 2), rel=1e-6, abs=1e-8)
        assert index == code
    assert len(output.codes.unique()) == codes  # with these numbers every code is in use, and none outside is
    assert not output.losses


def test_fsq_codes_are_the_grid_and_the_nearest_of_it():
    fsq = FSQ(FSQ_CONFIG).double()
    assert fsq.codebook.shape == (64, 2) and len(fsq.codebook.unique(dim=0)) == 64
    assert fsq.codebook.min() == -1 and fsq.codebook.max() == 0.75
    z = normal(500, 2) * 2
    assert torch.equal(fsq.nearest(z), torch.cdist(fsq.bound(z) / 4, fsq.codebook).argmin(1))
    assert fsq.codebook[fsq.nearest(torch.zeros(2, dtype=torch.float64))].tolist() == [0, 0]
    far = torch.tensor([[-1e6, -1e6], [1e6, 1e6]], dtype=torch.float64)
    assert fsq.nearest(far).tolist() == [0, 63]


@pytest.mark.parametrize("quantizer, config", [(FSQ, FSQ_CONFIG), (RotationQuantizer, VQVAEConfig(channels=8))])
def test_in_a_vqvae_decoding_the_codes_gives_the_reconstruction(quantizer, config, images):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vqvae = VQVAE(config).double()
        vqvae.quantizer = quantizer(config).double()
    output = vqvae(images)
    torch.testing.assert_close(vqvae.decode(vqvae.encode(images)), output.images)
    output.images.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vqvae.encoder.parameters())
