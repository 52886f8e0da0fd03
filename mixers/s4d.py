"""S4D: a convolution whose filter a diagonal state space makes, so that decoding needs its states alone."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from subquad.kernels.long_conv import long_conv

from ._decay import MAX_STEP, MIN_STEP, in_float32
from ._long_filter import toeplitz
from ._mixer import Mixer

RUN = 256  # tokens that enter the states in one product


class Modes(NamedTuple):
    """What one pass needs of a state space: exponents dt A, entries B and readings 2 C, complex (d, m)."""

    exponent: Tensor
    enter: Tensor
    read: Tensor

    def powers(self, distances: Tensor) -> Tensor:
        """exp(dt A)^l for each l, (d, m, l)."""
        return (self.exponent[..., None] * distances).exp()


class DiagonalStateSpace(nn.Module):
    """h_t = exp(dt A) h_{t-1} + B x_t ,  y_t = 2 Re(C h_t) with B = (exp(dt A) - 1) / A; complex, diagonal, fixed.

    S4D-Lin of Gu et al. 2022 (arXiv 2206.11893, eq. 9): A_m = -1/2 + i pi m at the start, C from a complex normal, dt
    log-uniform; the discretisation is zero-order hold, each pair of conjugate states is kept once.

    Args:
        channels: number of channels d, each with states of its own.
        d_state: real states of a channel, two for each complex one.
    """

    def __init__(self, channels: int, d_state: int, *, device=None, dtype=None):
        super().__init__()
        if d_state < 2 or d_state % 2:
            raise ValueError(f"d_state must be even, for states come in conjugate pairs, got {d_state}")
        factory = dict(device=device, dtype=dtype)
        self.log_dt = nn.Parameter(torch.empty(channels, **factory))
        self.A_real_log = nn.Parameter(torch.empty(channels, d_state // 2, **factory))
        self.A_imag = nn.Parameter(torch.empty(channels, d_state // 2, **factory))
        self.C = nn.Parameter(torch.empty(channels, d_state // 2, 2, **factory))  # real and imaginary part
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.log_dt, math.log(MIN_STEP), math.log(MAX_STEP))
        nn.init.constant_(self.A_real_log, math.log(0.5))
        nn.init.normal_(self.C, std=2**-0.5)
        with torch.no_grad():
            order = torch.arange(self.A_imag.shape[1], dtype=self.A_imag.dtype, device=self.A_imag.device)
            self.A_imag.copy_((math.pi * order).expand_as(self.A_imag))

    def modes(self) -> Modes:
        A = torch.complex(-in_float32(self.A_real_log).exp(), in_float32(self.A_imag))
        exponent = in_float32(self.log_dt).exp()[:, None] * A
        return Modes(exponent, torch.expm1(exponent) / A, 2 * torch.view_as_complex(in_float32(self.C).contiguous()))

    def filter(self, modes: Modes, length: int) -> Tensor:
        """K_l = 2 Re(sum_m C_m exp(dt A_m)^l B_m), (d, length)."""
        powers = modes.powers(torch.arange(length, device=self.log_dt.device))
        return torch.einsum("dm, dml -> dl", modes.read * modes.enter, powers).real

    def read(self, modes: Modes, states: Tensor, length: int) -> Tensor:
        """What the next tokens read of the states (b, d, m), (b, length, d)."""
        powers = modes.powers(torch.arange(1, length + 1, device=states.device))
        return torch.einsum("bdm, dml -> bld", states * modes.read, powers).real

    def advance(self, modes: Modes, states: Tensor | None, x: Tensor) -> Tensor:
        """The states (b, d, m) after x (b, t, d)."""
        for part in in_float32(x).split(RUN, dim=1):
            t = part.shape[1]
            powers = modes.powers(torch.arange(t - 1, -1, -1, device=x.device))
            entered = torch.einsum("btd, dmt -> bdm", part.to(powers.dtype), powers) * modes.enter
            states = entered if states is None else states * (modes.exponent * t).exp() + entered
        return states


class S4D(Mixer):
    """S4D (Gu et al. 2022, arXiv 2206.11893): x -> convolution with a state space's filter + D x -> gelu -> GLU.

    Training runs the filter as a long convolution; what follows a state reads it too.

    Args:
        d_model: width of the input and of the output.
        d_state: real states of a channel, an even number.
        backend: passed to the ops.
    """

    values = "x"

    def __init__(self, d_model: int, *, d_state: int = 64, backend: str = "auto", device=None, dtype=None):
        super().__init__(d_model, backend)
        factory = dict(device=device, dtype=dtype)
        self.space = DiagonalStateSpace(d_model, d_state, **factory)
        self.D = nn.Parameter(torch.randn(d_model, **factory))
        self.out_proj = nn.Linear(d_model, 2 * d_model, **factory)

    def project(self, x: Tensor, conv: None, position: int) -> tuple[dict[str, Tensor], None]:
        return dict(x=x), None

    def mix(self, inputs: dict[str, Tensor], memory: Tensor | None) -> tuple[Tensor, Tensor]:
        return convolve(self.space, inputs["x"], self.D, memory, self.backend)

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.glu(self.out_proj(nn.functional.gelu(y)), dim=-1)

    def mixing_matrix(self, x: Tensor) -> Tensor:
        """The weights (b, d, t, t) of each channel: the filter at t - s, and D at t = s; the same for all rows."""
        return filter_matrix(self.space, self.D, x)


def convolve(
    space: DiagonalStateSpace, x: Tensor, D: Tensor, memory: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    """y (b, t, d), and the states as real numbers (b, d, m, 2)."""
    modes = space.modes()
    y = long_conv(x, space.filter(modes, x.shape[1]).to(x.dtype), D.to(x.dtype), backend=backend)
    states = None
    if memory is not None:
        if len(memory) != len(x):
            raise ValueError(f"state: it has b={len(memory)} rows, but the new tokens have b={len(x)}")
        states = torch.view_as_complex(memory)
        y = y + space.read(modes, states, x.shape[1]).to(y.dtype)
    return y, torch.view_as_real(space.advance(modes, states, x))


def filter_matrix(space: DiagonalStateSpace, D: Tensor, x: Tensor) -> Tensor:
    taps = space.filter(space.modes(), x.shape[1]).to(x.dtype)
    taps = torch.cat([taps[:, :1] + D[:, None].to(x.dtype), taps[:, 1:]], dim=1)
    return toeplitz(taps).expand(x.shape[0], -1, -1, -1)
