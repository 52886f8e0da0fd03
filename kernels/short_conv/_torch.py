"""short_conv in PyTorch: (b, t, d) is a channels-last image of height 1, which has a fast depthwise kernel on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._autograd import differentiable
from .._packed import over_sequences
from . import SHAPES

BLOCK_ELEMENTS = 1 << 17  # rows of a block of the weight gradient: their products stay in a core's L2 cache


def _allocate(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    activation: str | None,
) -> list[Tensor]:  # fmt: skip
    n = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    compute = torch.promote_types(x.dtype, torch.float32)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return [y, x.new_empty(n, weight.shape[1] - 1, x.shape[2], dtype=compute)]


def _with_history(x: Tensor, width: int, state: Tensor | None) -> Tensor:
    """(b, w - 1 + t, d) in the dtype of computation."""
    compute = torch.promote_types(x.dtype, torch.float32)
    if state is None:
        return F.pad(x.to(compute), (0, 0, width - 1, 0))
    return torch.cat([state.to(compute), x.to(compute)], dim=1)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """Correlate each channel of (b, t, d) with its row of (d, w)."""
    image = x.transpose(1, 2).unsqueeze(2)  # (b, d, 1, t), channels last in memory
    y = F.conv2d(image, weight[:, None, None], bias, groups=x.shape[2], padding=(0, padding))
    return y.squeeze(2).transpose(1, 2)
