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


def scan_loop(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Mamba's scan, everything expanded to (b, d, t, m) and then a step a token; x and dt (b, d, t), B and C (b, m, t).

    Source: `selective_scan_ref` of github.com/state-spaces/mamba, mamba_ssm/ops/selective_scan_interface.py.
    """
    decay = torch.exp(torch.einsum("bdt,dm->bdtm", dt, A))
    entering = torch.einsum("bdt,bmt,bdt->bdtm", dt, B, x)
    h, ys = A.new_zeros(x.shape[0], *A.shape), []
    for now in range(x.shape[2]):
        h = decay[:, :, now] * h + entering[:, :, now]
        ys.append(torch.einsum("bdm,bm->bd", h, C[:, :, now]))
    return torch.stack(ys, dim=2) + x * D[:, None]


# The plain chunked forms of flash-linear-attention, which are all that it runs without a GPU. They take (b, t, h, k).


def fla_scalar_decay(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    from fla.ops.simple_gla.naive import naive_chunk_simple_gla

    return naive_chunk_simple_gla(q, k, v, log_decay)[0]


def fla_delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """It has the layout (b, h, t, k)."""
    from fla.ops.delta_rule.naive import delta_rule_chunkwise

    return delta_rule_chunkwise(*(x.transpose(1, 2) for x in (q, k, v, beta)))[0].transpose(1, 2)


def fla_gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor) -> Tensor:
    from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule

    return naive_chunk_gated_delta_rule(q, k, v, log_decay, beta)[0]


def fla_kimi_delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor) -> Tensor:
    from fla.ops.kda.naive import naive_chunk_kda

    return naive_chunk_kda(q, k, v, log_decay, beta)[0]


def fla_generalized_delta_rule(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor) -> Tensor:
    """It has the layout (b, h, t, k)."""
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_chunkwise

    return dplr_chunkwise(*(x.transpose(1, 2) for x in (q, k, v, a, b, log_decay)))[0].transpose(1, 2)
