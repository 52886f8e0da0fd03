"""Normalisation of what a mixer read, head by head."""

import torch.nn.functional as F
from torch import Tensor, nn


class HeadNorm(nn.RMSNorm):
    """RMS norm of each head of y (b, t, h, v), with one weight per channel of a head."""

    def __init__(self, head_dim: int, *, device=None, dtype=None):
        super().__init__(head_dim, eps=1e-5, device=device, dtype=dtype)

    def forward(self, y: Tensor) -> Tensor:
        # Under autocast y is half precision and the weight is not; PyTorch then leaves its fused kernel and warns.
        return F.rms_norm(y, self.normalized_shape, self.weight.to(y.dtype), self.eps)
