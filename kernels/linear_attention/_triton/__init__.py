"""linear_attention on the GPU: programs walk along time, a chunk at a time, with the memory in registers."""

import torch
import triton
from torch import Tensor

from ..._autograd import differentiable
from .. import EPS, SHAPES
from ._channel import linear_attention_bwd_scores_kernel, linear_attention_fwd_scores_kernel
from ._tiles import block_width, chunk_size, power_of_two, precision, walk_warps
from ._walk import linear_attention_walk_kernel


def _allocate(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    scale: float, normalize: bool,
) -> list[Tensor]:  # fmt: skip
    """y, the memory after the last token, the sums of weights."""
    b, t, h, width = q.shape
    n = b if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return [
        q.new_empty(b, t, h, v.shape[-1]),
        q.new_empty(n, h, width, v.shape[-1] + normalize, dtype=torch.float32),
        q.new_empty((b, t, h) if normalize else 0, dtype=torch.float32),
    ]


def _readable(x: Tensor) -> Tensor:
    """Kernels take any strides but that of the last axis."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _walk(
    q: Tensor, k: Tensor, v: Tensor, y: Tensor, *, scale: float, chunk: int, columns: int, cu_seqlens: Tensor | None,
    log_decay: Tensor | None, decay: str, intra: Tensor | None = None, start: Tensor | None = None,
    end: Tensor | None = None, transposed: bool = False, reverse: bool = False, norm: Tensor | None = None,
    norm_of: str = "none", own: Tensor | None = None, flow: str = "none", flows: Tensor | None = None,
    states: Tensor | None = None, dlog_decay: Tensor | None = None,
) -> None:  # fmt: skip
    """Launch the walk kernel. A memory is (k, columns); `transposed` walks hold it as (columns, k)."""
    b, t, h, key = q.shape
    value = v.shape[-1]
    n = b if cu_seqlens is None else len(cu_seqlens) - 1
    block_v = block_width(key, value, q.dtype, decay)
    gate_strides = (0, 0, 0) if log_decay is None else log_decay.stride()[:3]
    own_strides = (0, 0, 0) if own is None else own.stride()[:3]
    linear_attention_walk_kernel[(n * h * triton.cdiv(value, block_v),)](
        q, k, v, y, log_decay, intra, start, end, norm, own, flows, states, dlog_decay, cu_seqlens,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *gate_strides, *own_strides,
        *((1, columns) if transposed else (columns, 1)), (value if transposed else key) * columns,
        scale, EPS, b * t, t, h, key, value,
        BLOCK_T=chunk, BLOCK_K=power_of_two(key), BLOCK_V=block_v, PRECISION=precision(),
        REVERSE=reverse, DECAY=decay, NORM=norm_of, FLOW=flow,
        HAS_START=start is not None, HAS_END=end is not None, HAS_SEQLENS=cu_seqlens is not None,
        num_warps=walk_warps(key, q.dtype), num_stages=1,
    )  # fmt: skip


def _decay(log_decay: Tensor | None, channel: str) -> str:
    if log_decay is None:
        return "none"
    return "head" if log_decay.ndim == 3 else channel


def _scores(q: Tensor, k: Tensor, log_decay: Tensor, cu_seqlens: Tensor | None, chunk: int) -> Tensor:
    """Weights between the tokens of each chunk, (b, t, h, chunk)."""
    b, t, h, width = q.shape
    n = b if cu_seqlens is None else len(cu_seqlens) - 1
    scores = q.new_empty(b, t, h, chunk)
    linear_attention_fwd_scores_kernel[(n * triton.cdiv(t, chunk) * h,)](
        q, k, log_decay, scores, cu_seqlens, *q.stride()[:3], *k.stride()[:3], *log_decay.stride()[:3], t, h, width,
        BLOCK_T=chunk, BLOCK_K=min(32, power_of_two(width)), LEVELS=chunk.bit_length() - 1,
        HAS_SEQLENS=cu_seqlens is not None, num_warps=4, num_stages=1,
    )  # fmt: skip
    return scores


def _scores_backward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, dy: Tensor, dden: Tensor | None, cu_seqlens: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The parts of dq and dk that tokens of the same chunk give each other, in float32."""
    b, t, h, key = q.shape
    n = b if cu_seqlens is None else len(cu_seqlens) - 1
    dq, dk = (q.new_empty(b, t, h, key, dtype=torch.float32) for _ in range(2))
    linear_attention_bwd_scores_kernel[(n * triton.cdiv(t, chunk) * h,)](
        q, k, v, log_decay, dy, dden, dq, dk, cu_seqlens,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *log_decay.stride()[:3], t, h, key, v.shape[-1],
        BLOCK_T=chunk, BLOCK_K=min(32, power_of_two(key)), BLOCK_V=min(64, power_of_two(v.shape[-1])),
        LEVELS=chunk.bit_length() - 1, HAS_NORM=dden is not None,
        HAS_SEQLENS=cu_seqlens is not None, num_warps=4, num_stages=1,
    )  # fmt: skip
    return dq, dk


def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    scale: float, normalize: bool,
) -> list[Tensor]:  # fmt: skip
    outputs = _allocate(q, k, v, log_decay, state, cu_seqlens, scale, normalize)
    y, memory, den = outputs
    q, k, v = _readable(q), _readable(k), _readable(v)
    decay = _decay(log_decay, "key")
    chunk = chunk_size(q.shape[1], max(q.shape[-1], v.shape[-1]), q.dtype, decay == "key")
    log_decay = None if log_decay is None else _readable(log_decay)
    _walk(
        q, k, v, y, scale=scale, chunk=chunk, columns=memory.shape[-1], cu_seqlens=cu_seqlens,
        log_decay=log_decay, decay=decay,
        intra=_scores(q, k, log_decay, cu_seqlens, chunk) if decay == "key" else None,
        start=None if state is None else state.contiguous(), end=memory,
        norm=den if normalize else None, norm_of="value" if normalize else "none",
    )  # fmt: skip
    return outputs


def _backward(
    grads: list[Tensor | None], kept: list[Tensor],
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    scale: float, normalize: bool,
) -> list[Tensor | None]:  # fmt: skip
    y, memory, den = kept
    dy = torch.zeros_like(y) if grads[0] is None else grads[0].contiguous()
    dmemory = None if grads[1] is None else grads[1].contiguous()
    dden = None
    if normalize:
        dden = -(dy.float() * y.float()).sum(-1) / den
        dy = (dy / den[..., None]).to(dy.dtype)
    q, k, v = _readable(q), _readable(k), _readable(v)
    start = None if state is None else state.contiguous()
    b, t, h, width = q.shape
    n = b if cu_seqlens is None else len(cu_seqlens) - 1
    decay = _decay(log_decay, "value")
    chunk = chunk_size(t, max(width, v.shape[-1]), q.dtype, decay == "value")
    dq, dk, dv = (q.new_empty(x.shape) for x in (q, k, v))
    dstate = None if state is None else torch.empty_like(memory)

    scores = dq_intra = dk_intra = flows = states = dgates = None
    if log_decay is not None:
        log_decay = _readable(log_decay)
        wide = torch.float32 if q.dtype == torch.float32 else torch.bfloat16
        num_chunks = n * triton.cdiv(t, chunk) if cu_seqlens is None else t // chunk + n
        states = q.new_empty(num_chunks, *memory.shape[1:], dtype=wide)
        partial = (triton.cdiv(width, block_width(v.shape[-1], width, q.dtype, decay)), b, t, h)
        flows = q.new_empty(partial if decay == "head" else (b, t, h, width), dtype=torch.float32)
        dgates = torch.empty_like(flows)
    if decay == "value":
        scores = _scores(q, k, log_decay, cu_seqlens, chunk)
        dq_intra, dk_intra = _scores_backward(q, k, v, log_decay, dy, dden, cu_seqlens, chunk)
    common = dict(scale=scale, chunk=chunk, columns=memory.shape[-1], cu_seqlens=cu_seqlens, log_decay=log_decay)
    transposed = dict(
        common, decay=decay, transposed=True, norm=dden, norm_of="key" if normalize else "none",
        flows=flows, states=states,
    )  # fmt: skip
    fades = log_decay is not None
    _walk(dy, v, k, dq, intra=dq_intra, start=start, own=q if fades else None, flow="store" if fades else "none",
          **transposed)  # fmt: skip
    _walk(v, dy, q, dk, intra=dk_intra, start=dmemory, end=dstate, own=k if fades else None, reverse=True,
          flow="gather" if fades else "none", dlog_decay=dgates, **transposed)  # fmt: skip
    _walk(k, q, dy, dv, intra=scores, start=dmemory, reverse=True, decay=_decay(log_decay, "key"), **common)
    return [dq, dk, dv, dgates.sum(0) if decay == "head" else dgates, dstate]


_run = differentiable("linear_attention_triton", SHAPES, _allocate, _forward, _backward, num_outputs=2)


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    scale: float, normalize: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y, memory, *_ = _run(q, k, v, log_decay, state, cu_seqlens, scale, normalize)
    return y, memory
