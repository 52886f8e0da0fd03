"""selective_scan in PyTorch: a run of tokens is expanded to (tokens, b, d, m), walked in place, and contracted again.

A run is so short that what it expands to stays in the caches. Only the states before each run are kept; the backward
pass expands each run anew.
"""

import torch
from torch import Tensor

from .._autograd import differentiable
from .._packed import over_sequences
from . import SHAPES

RUN_ELEMENTS = 1 << 18  # of a run's states: 1 MB in float32
MAX_RUN = 32  # tokens


def _run_length(x: Tensor, A: Tensor) -> int:
    return max(1, min(MAX_RUN, RUN_ELEMENTS // (x.shape[0] * A.numel())))


def _runs(x: Tensor, A: Tensor) -> list[slice]:
    t, length = x.shape[1], _run_length(x, A)
    return [slice(start, min(t, start + length)) for start in range(0, t, length)]


def _allocate(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    """y, the state after the last token, and those before each run but the first."""
    n = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    compute = torch.promote_types(x.dtype, torch.float32)
    num_kept = (x.shape[1] - 1) // _run_length(x, A)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return [y, x.new_empty(n, *A.shape, dtype=compute), x.new_empty(num_kept, n, *A.shape, dtype=compute)]


def _forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None
) -> list[Tensor]:
    y, h, kept = _allocate(x, dt, A, B, C, D, state, None)
    h.zero_() if state is None else h.copy_(state)
    for index, run in enumerate(_runs(x, A)):
        if index:
            kept[index - 1] = h
        xs, dts, Bs, Cs = _time_first((x, dt, B, C), run, h.dtype)
        _, states = _expand(xs, dts, A.to(h.dtype), Bs, h)
        read = torch.matmul(states[1:], Cs[..., None]).squeeze(-1)  # (tokens, b, d)
        if D is not None:
            read.addcmul_(xs, D.to(h.dtype))
        y[:, run] = read.transpose(0, 1)
        h.copy_(states[-1])
    return [y, h, kept]


def _time_first(tensors: tuple[Tensor, ...], run: slice, dtype: torch.dtype) -> list[Tensor]:
    """(tokens, b, channels), contiguous."""
    return [x[:, run].transpose(0, 1).to(dtype).contiguous() for x in tensors]


def _expand(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """exp(dt A) (tokens, b, d, m), and the state before the run and after each token, (tokens + 1, b, d, m)."""
    decay = (dt[..., None] * A).exp_()
    states = h.new_empty(len(x) + 1, *h.shape)
    states[0] = h
    torch.mul((dt * x)[..., None], B[:, :, None, :], out=states[1:])
    for now in range(len(x)):
        states[now + 1].addcmul_(decay[now], states[now])
    return decay, states


def _backward(
    grads: list[Tensor | None], kept: list[Tensor],
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None,
) -> list[Tensor | None]:  # fmt: skip
    """dh_t = C_t dy_t + exp(dt_{t+1} A) dh_{t+1} , and what flows on through exp(dt_t A) h_{t-1} and dt_t x_t B_t."""
    (dy, dlast), (_, last, before) = grads, kept
    compute = last.dtype
    dcarry = torch.zeros_like(last) if dlast is None else dlast.clone()
    dx, ddt, dB, dC = (torch.empty_like(z, memory_format=torch.contiguous_format) for z in (x, dt, B, C))
    rates = A.to(compute)
    dA = torch.zeros_like(rates)
    dD = None if D is None else torch.zeros_like(D, dtype=compute)
    for index, run in reversed(list(enumerate(_runs(x, A)))):
        first = before[index - 1] if index else state
        first = torch.zeros_like(last) if first is None else first.to(compute)
        xs, dts, Bs, Cs = _time_first((x, dt, B, C), run, compute)
        dys = torch.zeros_like(xs) if dy is None else _time_first((dy,), run, compute)[0]
        decay, states = _expand(xs, dts, rates, Bs, first)
        dC[:, run] = torch.matmul(dys[:, :, None, :], states[1:]).squeeze(2).transpose(0, 1)
        dstates = dys[..., None] * Cs[:, :, None, :]
        dstates[-1] += dcarry
        for now in reversed(range(1, len(xs))):
            dstates[now - 1].addcmul_(decay[now], dstates[now])
        torch.mul(decay[0], dstates[0], out=dcarry)
        entered = torch.matmul(dstates, Bs[..., None]).squeeze(-1)  # what reaches dt x, (tokens, b, d)
        dB[:, run] = torch.matmul((dts * xs)[:, :, None, :], dstates).squeeze(2).transpose(0, 1)
        dexponent = decay.mul_(states[:-1]).mul_(dstates)  # what reaches dt A
        dA += torch.einsum("tbdm,tbd->dm", dexponent, dts)
        ddt[:, run] = (dexponent.mul_(rates).sum(-1)).addcmul_(entered, xs).transpose(0, 1)
        dxs = entered.mul_(dts)
        if D is not None:
            dxs.addcmul_(dys, D.to(compute))
            dD += (dys * xs).sum((0, 1))
        dx[:, run] = dxs.transpose(0, 1)
    return [dx, ddt, dA, dB, dC, dD, None if state is None else dcarry]


_run = differentiable(
    "selective_scan_torch", SHAPES, *over_sequences(SHAPES, _allocate, _forward, _backward), num_outputs=2
)


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y, h, *_ = _run(x, dt, A, B, C, D, state, cu_seqlens)
    return y, h
