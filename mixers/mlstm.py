"""MLSTM: a matrix memory with an exponential input gate, kept in range by a running maximum."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.kernels.linear_attention import linear_attention

from ._decay import in_float32
from ._mixer import Mixer, head_size
from ._norms import HeadNorm
from ._short_conv import ShortConv

INPUT_BIAS = -10.0  # of the input gate's logarithm at the start
FORGET_BIAS = (3.0, 6.0)  # of the forget gate at the start, from the first head to the last
CAP = 15.0  # gates before their nonlinearity are kept softly below it


class ScaledMemory(NamedTuple):
    """A memory that is to be multiplied by exp(log_scale): (n, h, k, v) and (n, h)."""

    memory: Tensor
    log_scale: Tensor

    @property
    def tokens(self) -> tuple[Tensor, ...]:
        return tuple(self)

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes + self.log_scale.nbytes

    def detach(self) -> "ScaledMemory":
        return ScaledMemory(self.memory.detach(), self.log_scale.detach())

    def emptied(self) -> "ScaledMemory":
        return ScaledMemory(*(torch.zeros_like(x) for x in self))

    @classmethod
    def join(cls, parts: list["ScaledMemory"]) -> "ScaledMemory":
        """The rows of all these."""
        return cls(*(torch.cat(rows) for rows in zip(*parts, strict=True)))

    def index_select(self, dim: int, rows: Tensor) -> "ScaledMemory":
        return ScaledMemory(self.memory.index_select(dim, rows), self.log_scale.index_select(dim, rows))


class MLSTM(Mixer):
    """The matrix LSTM (Beck et al. 2024, arXiv 2405.04517, eq. 19-27), with xLSTM-7B's gates and order (2503.13427).

    C_t = f_t C_{t-1} + i_t k_t v_t^T ,  n_t = f_t n_{t-1} + i_t k_t ,  h_t = q_t C_t / max(|q_t n_t|, 1)

    with f = sigmoid(W x + b) and i = exp(W x + b); then norm of each head * sigmoid(W x) -> out. With the running
    maximum m_t = max(log f_t + m_{t-1}, log i_t) it is linear attention whose decay is f_t exp(m_{t-1} - m_t) <= 1 and
    whose keys are i_t exp(-m_t) k_t; the memory is that of the equations times exp(-m_t).

    Args:
        d_model: width of the input and of the output.
        num_heads: number of memories.
        head_dim: channels of a head; d_model / num_heads if None.
        conv_width: taps of a short convolution on q, k and v; none by default.
        backend: passed to the ops.
    """

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 4,
        head_dim: int | None = None,
        conv_width: int | None = None,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(d_model, backend)
        factory = dict(device=device, dtype=dtype)
        self.num_heads = num_heads
        head_dim = head_size(self.name, d_model, num_heads, head_dim)
        width = num_heads * head_dim
        self.qkv_proj = nn.Linear(d_model, 3 * width, bias=False, **factory)
        self.conv = ShortConv(3 * width, conv_width, backend=backend, **factory)
        self.gates_proj = nn.Linear(d_model, 2 * num_heads, **factory)  # of i, of f
        self.gate_proj = nn.Linear(d_model, width, bias=False, **factory)
        self.norm = HeadNorm(head_dim, **factory)
        self.out_proj = nn.Linear(width, d_model, bias=False, **factory)
        with torch.no_grad():
            self.gates_proj.bias[:num_heads].fill_(INPUT_BIAS)
            forget = torch.linspace(*FORGET_BIAS, num_heads, device=device, dtype=dtype)
            self.gates_proj.bias[num_heads:].copy_(forget)

    def project(self, x: Tensor, conv: Tensor | None, position: int) -> tuple[dict[str, Tensor], Tensor | None]:
        qkv, conv = self.conv(self.qkv_proj(x), conv)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(-3)  # each (b, t, h, k)
        gates = CAP * torch.tanh(in_float32(self.gates_proj(x)) / CAP)
        log_input, forget = gates.chunk(2, dim=-1)
        return dict(q=q, k=k, v=v, log_input=log_input, log_forget=F.logsigmoid(forget)), conv

    def mix(self, inputs: dict[str, Tensor], memory: ScaledMemory | None) -> tuple[Tensor, ScaledMemory]:
        q, k, v, log_input, log_forget = inputs.values()
        before, start = (None, log_input.new_zeros(log_input[:, 0].shape)) if memory is None else memory
        if len(start) != len(q):
            raise ValueError(f"{self.name}: the state has b={len(start)} rows, but the new tokens have b={len(q)}")
        peak = _running_maximum(log_input, log_forget, start)  # m_t
        earlier = torch.cat([start.double()[:, None], peak[:, :-1]], dim=1)
        log_decay = (log_forget.double() + earlier - peak).clamp_max(0).to(log_forget.dtype)
        keys = (k * (log_input.double() - peak).exp()[..., None].to(log_input.dtype)).to(k.dtype)
        ones = v.new_ones(*v.shape[:3], 1)
        y, after = linear_attention(
            q, keys, torch.cat([v, ones], dim=-1), log_decay, state=before, backend=self.backend
        )  # fmt: skip
        weights = torch.maximum(in_float32(y[..., -1:]).abs(), (-peak).exp()[..., None].to(log_decay.dtype))
        return (y[..., :-1] / weights).to(v.dtype), ScaledMemory(after, peak[:, -1].to(log_decay.dtype))

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out_proj(self.norm(y).flatten(-2) * torch.sigmoid(self.gate_proj(x)))


def _running_maximum(log_input: Tensor, log_forget: Tensor, start: Tensor) -> Tensor:
    """m_t = max(log_forget_t + m_{t-1}, log_input_t), all at once, in float64: sums over a long row lose digits."""
    faded = log_forget.double().cumsum(1)
    return faded + torch.maximum((log_input.double() - faded).cummax(1).values, start.double()[:, None])
