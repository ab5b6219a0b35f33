"""Muon: an optimizer for matrices, whose steps move all directions about equally far (notebook 04).

A gradient is mostly made of a few strong directions, and so are Adam's steps. What a matrix could learn in all its
other directions comes late. Muon keeps the directions of the averaged gradient and makes them about equally strong.

Jordan and others, "Muon: An optimizer for hidden layers in neural networks" (kellerjordan.github.io/posts/muon, 2024);
the size of a step is that of Liu et al., "Muon is Scalable for LLM Training" (arXiv 2502.16982).
"""

import torch


class Muon(torch.optim.Optimizer):
    """The steps of ``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"``, in a dtype that can be chosen.

    PyTorch's always computes in bf16, which is sixty times slower on a processor that has to emulate it, and it refuses
    convolutions. Here these are taken as matrices, with all but the first dimension in a row.

    params: parameters of two or more dimensions. lr, weight_decay: as AdamW's; a step's entries are about 0.2 · lr.
    dtype: the one to compute in. Low precision is enough.
    """

    def __init__(self, params, lr=1e-3, weight_decay=0.1, momentum=0.95, dtype=torch.float32):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "dtype": dtype})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                average = self.state[p]["momentum_buffer"]
                average.lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(average, group["momentum"])  # Nesterov's: as if the next average were known
                direction = orthogonalized(ahead.flatten(1).to(group["dtype"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                # All singular values are about 1, so an entry's root mean square is 1 / √(the longer side).
                p.add_(direction.view_as(p), alpha=-0.2 * group["lr"] * max(direction.shape) ** 0.5)


def orthogonalized(matrix):
    """The matrix with all its singular values moved near 1, and its directions kept: (m, n) float -> (m, n).

    It is a Newton-Schulz iteration: an odd polynomial of a matrix is the same polynomial of its singular values, and a
    product of matrices is fast where a singular value decomposition is not. These coefficients bring every value above
    0.002 of the matrix's Frobenius norm to between 0.68 and 1.21 in five rounds.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / wide.norm().clamp(min=1e-7)  # no singular value is above 1 now
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide is matrix else x.T
