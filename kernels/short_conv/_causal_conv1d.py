"""short_conv by the package causal-conv1d: a baseline, and a choice where it is installed."""

import torch
from torch import Tensor

from .._dispatch import refuse_unmet


def short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    needs = {
        "a filter 2 to 4 wide": 2 <= weight.shape[1] <= 4,
        "no packed sequences": cu_seqlens is None,  # it returns no last inputs of theirs
    }
    refuse_unmet("short_conv", "causal_conv1d", needs)
    from causal_conv1d import causal_conv1d_fn

    past = weight.shape[1] - 1
    compute = torch.promote_types(x.dtype, torch.float32)
    before = x.new_zeros(x.shape[0], past, x.shape[2], dtype=compute) if state is None else state
    # Channels last, in which its kernels take a state.
    image, initial = x.contiguous().transpose(1, 2), before.to(x.dtype).contiguous().transpose(1, 2)
    y = causal_conv1d_fn(image, weight, bias, initial_states=initial, activation=activation)
    return y.transpose(1, 2), torch.cat([before.to(compute), x.to(compute)], dim=1)[:, -past:]
