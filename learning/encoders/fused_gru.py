"""The GRU's recurrence with a backward pass written out, for training on a CPU.

torch.nn.GRU records some twenty small operations per row and multiplies weight gradients row by
row. Here a row takes seven operations each way and the weights' gradients one product in all."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Recurrence(torch.autograd.Function):
    """gates_TBG: what the inputs add to the gates r, z, n (G = 3H); h0_BH; returns h_TBH."""

    @staticmethod
    def forward(
        ctx: Any, gates_TBG: Tensor, h0_BH: Tensor, weight_GH: Tensor, bias_G: Tensor
    ) -> Tensor:
        t, b, _ = gates_TBG.shape
        n = h0_BH.shape[1]
        h = gates_TBG.new_empty(t + 1, b, n)
        h[0] = h0_BH
        rz, new, inner = (gates_TBG.new_empty(t, b, k * n) for k in (2, 1, 1))
        across = weight_GH.t()
        from_h = gates_TBG.new_empty(b, 3 * n)
        gap = gates_TBG.new_empty(b, n)
        h_rz, h_new = from_h[:, : 2 * n], from_h[:, 2 * n :]
        columns = (
            h[:-1], h[1:], gates_TBG[..., : 2 * n], gates_TBG[..., 2 * n :],
            rz, rz[..., :n], rz[..., n:], inner, new,
        )  # fmt: skip
        # Views made at once: taking them row by row would cost as much as the arithmetic.
        for before, after, x_rz, x_new, both, r, z, keep, fresh in zip(
            *(c.unbind(0) for c in columns), strict=True
        ):
            torch.addmm(bias_G, before, across, out=from_h)
            torch.add(x_rz, h_rz, out=both).sigmoid_()
            keep.copy_(h_new)
            torch.addcmul(x_new, r, h_new, out=fresh).tanh_()
            torch.sub(before, fresh, out=gap)
            torch.addcmul(fresh, z, gap, out=after)
        ctx.save_for_backward(h, rz, new, inner, weight_GH)
        return h[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h, rz, new, inner, weight_GH = ctx.saved_tensors
        t, b, n = new.shape
        r, z = rz[..., :n], rz[..., n:]
        # What each gate's input is worth, per unit of the output's gradient.
        to_new = (1 - z) * (1 - new * new)
        to_z = (h[:-1] - new) * z * (1 - z)
        to_r = inner * r * (1 - r)
        d_from_h, d_new = new.new_empty(t, b, 3 * n), torch.empty_like(new)
        carry, d_h, kept = (new.new_zeros(b, n) for _ in range(3))
        columns = (
            d_out, d_new, d_from_h, to_new, to_r, to_z, r, z,
            d_from_h[..., :n], d_from_h[..., n : 2 * n], d_from_h[..., 2 * n :],
        )  # fmt: skip
        steps = zip(*(c.unbind(0)[::-1] for c in columns), strict=True)
        for out, d_fresh, d_gates, by_new, by_r, by_z, r_i, z_i, d_r, d_z, d_inner in steps:
            torch.add(carry, out, out=d_h)
            torch.mul(d_h, by_new, out=d_fresh)
            torch.mul(d_fresh, by_r, out=d_r)
            torch.mul(d_h, by_z, out=d_z)
            torch.mul(d_fresh, r_i, out=d_inner)
            if t > 1 or ctx.needs_input_grad[1]:
                torch.mul(d_h, z_i, out=kept)
                torch.addmm(kept, d_gates, weight_GH, out=carry)
        flat = d_from_h.view(t * b, 3 * n)
        d_weight = flat.t() @ h[:-1].reshape(t * b, n)
        return torch.cat([d_from_h[..., : 2 * n], d_new], -1), carry, d_weight, flat.sum(0)


def fused_gru(
    x_BTD: Tensor, h0_BH: Tensor, gru: torch.nn.GRU, before: torch.nn.Linear | None = None
) -> Tensor:
    """What a one-layer, batch-first `gru` returns for every row, [B, T, H]; of before(x), if given.

    Two linear maps in a row are one: with few features that is a third of the products less."""
    x_TBD = x_BTD.transpose(0, 1)
    w_ih, w_hh, b_ih, b_hh = gru.all_weights[0]
    weight: Tensor = w_ih
    bias: Tensor = b_ih
    if before is not None:
        weight, bias = w_ih @ before.weight, torch.addmv(b_ih, w_ih, before.bias)
    gates = torch.nn.functional.linear(x_TBD, weight, bias)
    h_TBH: Tensor = _Recurrence.apply(gates, h0_BH, w_hh, b_hh)
    return h_TBH.transpose(0, 1)


def stepped(gates_BG: Tensor, h_BH: Tensor, weight_GH: Tensor, bias_G: Tensor) -> Tensor:
    """The state [B, H] after one step, from what the inputs add to the gates r, z, n (G = 3H)."""
    h_TBH: Tensor = _Recurrence.apply(gates_BG.unsqueeze(0), h_BH, weight_GH, bias_G)
    return h_TBH[0]
