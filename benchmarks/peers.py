"""The published forms that our ops are timed against, as plain as their papers and repositories write them."""

from collections.abc import Callable
from functools import wraps

import torch
import torch.nn.functional as F
from torch import Tensor


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's fused causal attention; (b, h, t, k) is its own layout."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def fft_conv(x: Tensor, filter: Tensor, skip: Tensor, pre_gate: Tensor, post_gate: Tensor) -> Tensor:
    """Long convolution by one transform of twice the length, gates as operations of their own; x is (b, d, t).

    Source: `fftconv_ref` of github.com/HazyResearch/H3, src/ops/fftconv.py, without its GELU; Hyena and Zoology use
    the same.
    """
    t = x.shape[-1]
    u = pre_gate * x
    y = torch.fft.irfft(torch.fft.rfft(u, n=2 * t) * torch.fft.rfft(filter, n=2 * t), n=2 * t)[..., :t]
    return post_gate * (y + u * skip[:, None])


def grouped_conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Short convolution by a grouped one; x is (b, d, t).

    Source: `causal_conv1d_ref` of github.com/Dao-AILab/causal-conv1d, causal_conv1d_interface.py.
    """
    d, width = weight.shape
    return F.conv1d(x, weight.unsqueeze(1), bias, padding=width - 1, groups=d)[..., : x.shape[-1]]


def in_model(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A convolution over (b, d, t) called as by a model whose tokens are (b, t, d): turned round, and its result back.

    Source: `LongConv` and `ShortConvolution` of github.com/HazyResearch/zoology, zoology/mixers/base_conv.py.
    """

    @wraps(convolution)
    def turned(**inputs: Tensor) -> Tensor:
        inputs = {name: x.transpose(1, 2) if x.ndim == 3 else x for name, x in inputs.items()}
        return convolution(**inputs).transpose(1, 2)

    return turned


def decode_by_concatenation(q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor) -> Tensor:
    """One token of attention whose cache is concatenated anew; all (b, h, t, k).

    Source: `DynamicCache.update` of github.com/huggingface/transformers, cache_utils.py, and its SDPA attention.
    """
    keys, values = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
    return F.scaled_dot_product_attention(q, keys, values)
