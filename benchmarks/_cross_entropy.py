"""The head and its loss in one: no logits outlive their block, and both gradients are formed on the way forward."""

import torch
from torch import Tensor

BLOCK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 26}  # logits at a time: 2 MB stay in a CPU's cache, a GPU wants many


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean over a of -log softmax(hidden weight^T)[target], with the memory of a few rows of logits.

    The softmax is computed in float32; the products in hidden's dtype, or in autocast's where that is on.

    Args:
        hidden: (a, d) one row for each answer.
        weight: (v, d) the head, one row for each token.
        targets: (a,) tokens in 0 .. v - 1.

    Returns:
        The loss, a float32 scalar (float64 for float64 inputs).
    """
    device = hidden.device.type
    compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(hidden, weight, targets, compute)


class _LinearCrossEntropy(torch.autograd.Function):
    """dlogits = softmax - onehot is known as soon as the logits are, so no second pass makes them again."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, compute):
        wide = torch.promote_types(compute, torch.float32)
        h, w, count = hidden.to(compute), weight.to(compute), len(hidden)
        w_t = w.T.contiguous()  # products of row-major matrices are the fastest on a CPU
        dhidden, dweight_t = torch.empty_like(hidden), torch.zeros_like(w_t, dtype=weight.dtype)
        loss = hidden.new_zeros((), dtype=wide)
        block = min(count, max(1, BLOCK_ELEMENTS[hidden.device.type] // len(w)))
        # Memory that is used again has been faulted in already, and is still in the cache.
        logits, log_p = h.new_empty(block, len(w)), h.new_empty(block, len(w), dtype=wide)
        for start in range(0, count, block):
            span = slice(start, min(start + block, count))
            size, target = span.stop - start, targets[span].unsqueeze(1)
            torch.mm(h[span], w_t, out=logits[:size])
            torch.log_softmax(logits[:size].to(wide), dim=-1, out=log_p[:size])
            loss -= log_p[:size].gather(1, target).sum()
            dlogits = log_p[:size].exp_()
            dlogits.scatter_add_(1, target, dlogits.new_full(target.shape, -1.0))
            dlogits = dlogits.to(compute)
            dhidden[span] = dlogits @ w
            _add_product_(dweight_t, h[span].T, dlogits)
        ctx.save_for_backward(dhidden.div_(count), dweight_t.div_(count).T.contiguous())
        return loss / count

    @staticmethod
    def backward(ctx, dloss):
        dhidden, dweight = ctx.saved_tensors
        return dhidden * dloss, dweight * dloss, None, None


def _add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, in one pass where the dtypes are the same."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def linear_argmax(hidden: Tensor, weight: Tensor) -> Tensor:
    """(a,) the most likely token of each row of hidden (a, d), by blocks of logits."""
    block = max(1, BLOCK_ELEMENTS[hidden.device.type] // len(weight))
    return torch.cat([(rows @ weight.T).argmax(dim=-1) for rows in hidden.split(block)])
