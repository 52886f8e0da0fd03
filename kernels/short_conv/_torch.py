"""short_conv in PyTorch: (b, t, d) is a channels-last image of height 1, which has a fast depthwise kernel on a CPU.

The whole batch goes through as one long row. Its tokens whose filter would cross a border, the first w - 1 of each
sequence (going back: the last w - 1), are computed again from what they may really see.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._autograd import differentiable
from .._packed import over_sequences
from . import SHAPES

BLOCK_ELEMENTS = 1 << 17  # of a block of the weight gradient: it and its products stay in a core's L2 cache


def _allocate(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    activation: str | None,
) -> list[Tensor]:  # fmt: skip
    n = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    compute = torch.promote_types(x.dtype, torch.float32)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return [y, x.new_empty(n, weight.shape[1] - 1, x.shape[2], dtype=compute)]


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, activation: str | None
) -> list[Tensor]:
    before = _before(x, weight, state)
    if x.shape[1] == 1:
        return _decode(x, weight, bias, before, activation)
    y = _filter(x, weight, bias, before)
    y = F.silu(y, inplace=True) if activation == "silu" else y
    return [y.to(x.dtype), _last_inputs(x, before)]


def _decode(x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor, activation: str | None) -> list[Tensor]:
    """One token: too little work for a convolution's set-up."""
    seen = torch.cat([before, x.to(before.dtype)], dim=1)  # (b, w, d)
    y = (seen * weight.T).sum(dim=1, keepdim=True, dtype=before.dtype)
    y = y if bias is None else y.add_(bias)
    y = F.silu(y, inplace=True) if activation == "silu" else y
    return [y.to(x.dtype), seen[:, 1:].clone(memory_format=torch.contiguous_format)]


def _backward(
    grads: list[Tensor | None], kept: list[Tensor], x: Tensor, weight: Tensor, bias: Tensor | None,
    state: Tensor | None, activation: str | None,
) -> list[Tensor | None]:  # fmt: skip
    dy, dlast = grads
    before = _before(x, weight, state)
    dy = torch.zeros_like(x, dtype=before.dtype) if dy is None else dy.to(before.dtype)
    x, weight = x.to(before.dtype), weight.to(before.dtype)
    if activation == "silu":
        dy = torch.ops.aten.silu_backward(dy, _filter(x, weight, bias, before))
    dx = _input_gradient(dy, weight, dlast)
    dweight = _weight_gradient(dy, x, before)
    dbias = None if bias is None else dy.sum(dim=(0, 1))
    dstate = None if state is None else _before_gradient(dy, weight, dlast)
    return [dx, dweight, dbias, dstate]


def _before(x: Tensor, weight: Tensor, state: Tensor | None) -> Tensor:
    """The w - 1 inputs before the first token, in the dtype of computation."""
    compute = torch.promote_types(x.dtype, torch.float32)
    if state is not None:
        return state.to(compute)
    return x.new_zeros(x.shape[0], weight.shape[1] - 1, x.shape[2], dtype=compute)


def _last_inputs(x: Tensor, before: Tensor) -> Tensor:
    (b, t, d), kept = x.shape, before.shape[1]
    last = before.new_empty(b, kept, d)
    from_before = max(kept - t, 0)
    last[:, :from_before] = before[:, kept - from_before :]
    last[:, from_before:] = x[:, t - (kept - from_before) :]
    return last


def _filter(x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor) -> Tensor:
    """(b, t, d) before the activation, contiguous, in the dtype of `before`."""
    compute = before.dtype
    weight, bias = weight.to(compute), None if bias is None else bias.to(compute)
    (b, t, d), past = x.shape, before.shape[1]
    head = min(past, t)
    row = x.to(compute).reshape(1, b * t, d)
    y = _depthwise(row, weight, bias, padding=past)[:, : b * t].reshape(b, t, d)
    if head:
        y[:, :head] = _depthwise(torch.cat([before, x[:, :head].to(compute)], dim=1), weight, bias)
    return y.contiguous()


def _input_gradient(dy: Tensor, weight: Tensor, dlast: Tensor | None) -> Tensor:
    """dx: the filter runs backwards over `dy`; the last inputs, which are also a result, get `dlast` too."""
    (b, t, d), past = dy.shape, weight.shape[1] - 1
    weight = weight.flip(1)
    if past == 0:
        return _depthwise(dy, weight)
    nothing = dy.new_zeros(b, past, d)
    if t > past:
        # Beginning at row `past`, the padded filter returns b t rows, the first of them at the first token. A slice
        # of a longer result would be a view with an offset, which an operator may not return.
        dx = _depthwise(dy.reshape(1, b * t, d)[:, past:], weight, padding=past).reshape(b, t, d)
        first = _depthwise(dy[:1, : 2 * past], weight)
        dx[:1, : first.shape[1]] = first
        dx[:, t - past :] = _depthwise(torch.cat([dy[:, t - past :], nothing], dim=1), weight)
    else:
        dx = _depthwise(torch.cat([dy, nothing], dim=1), weight).contiguous()
    if dlast is not None:
        dx[:, max(t - past, 0) :] += dlast[:, max(past - t, 0) :]
    return dx


def _before_gradient(dy: Tensor, weight: Tensor, dlast: Tensor | None) -> Tensor:
    """Gradient of the w - 1 inputs before the first token: the first tokens saw them, and some may still be last."""
    (b, t, d), past = dy.shape, weight.shape[1] - 1
    nothing = dy.new_zeros(b, past, d)
    if past == 0:
        return nothing
    head = min(past, t)
    around = torch.cat([nothing, dy[:, :head], nothing[:, head:]], dim=1)
    dbefore = _depthwise(around, weight.flip(1)).contiguous()
    if dlast is not None:
        dbefore[:, head:] += dlast[:, : past - head]
    return dbefore


def _weight_gradient(dy: Tensor, x: Tensor, before: Tensor) -> Tensor:
    """(d, w): for each tap the sum over time of dy times the input that the tap met.

    Products are added up in one block of rows a tap, which stays in cache, and its rows only at the end.
    """
    (b, t, d), past = x.shape, before.shape[1]
    num_sequences = min(b, max(1, BLOCK_ELEMENTS // (t * d)))
    num_rows = min(t, max(1, BLOCK_ELEMENTS // d))
    sums = x.new_zeros(past + 1, num_sequences, num_rows, d)
    for i in range(0, b, num_sequences):
        some_dy, some_x = dy[i : i + num_sequences], x[i : i + num_sequences]
        for start in range(past, t, num_rows):
            end = min(start + num_rows, t)
            block = some_dy[:, start:end]
            totals = sums[:, : len(some_x), : end - start]
            for tap, total in enumerate(totals.unbind()):
                total.addcmul_(block, some_x[:, start - past + tap : end - past + tap])
    dweight = sums.sum(dim=(1, 2))  # (w, d)
    head = min(past, t)  # tokens that met `before`
    met = torch.cat([before, x[:, :head]], dim=1)
    for tap in range(past + 1):
        dweight[tap] += (dy[:, :head] * met[:, tap : tap + head]).sum(dim=(0, 1))
    return dweight.T


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 0) -> Tensor:
    """Correlate each channel of (b, t, d) with its row of (d, w)."""
    image = x.transpose(1, 2).unsqueeze(2)  # (b, d, 1, t), channels last in memory
    y = F.conv2d(image, weight[:, None, None], bias, groups=x.shape[2], padding=(0, padding))
    return y.squeeze(2).transpose(1, 2)


run = differentiable("short_conv_torch", SHAPES, *over_sequences(SHAPES, _allocate, _forward, _backward), num_outputs=2)


def short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y, last_inputs = run(x, weight, bias, state, cu_seqlens, activation)
    return y, last_inputs
