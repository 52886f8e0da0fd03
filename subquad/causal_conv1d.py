"""causal-conv1d's functions by our kernels: instead of `causal_conv1d` import them from `subquad.causal_conv1d`.

The same names, arguments, layouts and meaning, on any device, for filters up to 8 wide.
"""

import torch
from torch import Tensor

from subquad.kernels.short_conv import short_conv

__all__ = ["causal_conv1d_fn", "causal_conv1d_update"]

ACTIVATIONS = {None: None, "silu": "silu", "swish": "silu"}


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`short_conv` under causal-conv1d's name, with time last.

    Args:
        x: (b, d, t) input.
        weight: (d, w) filter.
        bias: (d,) added before the activation.
        seq_idx: (b, t) number of each token's sequence; no filter crosses where it changes, and the output where it is
            negative is 0.
        initial_states: (b, d, w - 1) inputs before the first token; zero if None.
        return_final_states: return the last w - 1 inputs too, in x.dtype; not with seq_idx.
        final_states_out: (b, d, w - 1) a tensor to write these to, which is then returned.
        activation: None, "silu" or "swish".

    Returns:
        (b, d, t) in x.dtype; with return_final_states, and the final states.

    Raises:
        ValueError: an unknown activation, final states of several sequences, or shapes that do not fit.
    """
    where = "causal_conv1d_fn"
    act = _activation(where, activation)
    state = None if initial_states is None else initial_states.transpose(1, 2)
    if seq_idx is None:
        y, last = short_conv(x.transpose(1, 2), weight, bias, activation=act, state=state)
    elif return_final_states:
        raise ValueError(f"{where}: seq_idx and return_final_states exclude each other, for a row has many sequences")
    else:
        y, last = _filter_sequences(where, x.transpose(1, 2), weight, bias, seq_idx, state, act), None
    y = y.transpose(1, 2)
    if not return_final_states:
        return y
    final = last.transpose(1, 2).to(x.dtype)
    if final_states_out is None:
        return y, final
    with torch.no_grad():
        final_states_out.copy_(final)
    return y, final_states_out


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """The next tokens of sequences whose last inputs a buffer holds. Writes to the buffer; gives no gradients.

    Args:
        x: (b, d) one token, or (b, d, t).
        conv_state: (b, d, l) last inputs, l >= w - 1; with conv_state_indices the first axis is longer.
        weight: (d, w) filter.
        bias: (d,) added before the activation.
        activation: None, "silu" or "swish".
        cache_seqlens: (b,) number of tokens seen, if the buffer is used in circles: token i lies in slot i mod l.
        conv_state_indices: (b,) row of the buffer that each sequence has.

    Returns:
        Of x's shape and dtype.

    Raises:
        ValueError: an unknown activation, or a buffer that is too short.
    """
    where = "causal_conv1d_update"
    act, past, slots = _activation(where, activation), weight.shape[1] - 1, conv_state.shape[-1]
    tokens = (x[..., None] if x.ndim == 2 else x).detach()  # (b, d, t)
    t = tokens.shape[-1]
    if slots < past:
        raise ValueError(f"{where}: conv_state must hold at least w - 1 = {past} inputs, got {slots}")
    with torch.no_grad():
        state = conv_state if conv_state_indices is None else conv_state[conv_state_indices]
        if cache_seqlens is None:
            newest = torch.cat([state, tokens.to(state.dtype)], dim=-1)[..., -slots:]
            before = state[..., slots - past :]
        else:
            before = state.gather(2, _slots(cache_seqlens - past, past, state))
            kept = min(t, slots)  # of more tokens only the last have a slot
            newest = state.clone().scatter_(
                2, _slots(cache_seqlens + t - kept, kept, state), tokens[..., t - kept :].to(state.dtype)
            )
        y, _ = short_conv(tokens.transpose(1, 2), weight, bias, activation=act, state=before.transpose(1, 2))
        if conv_state_indices is None:
            conv_state.copy_(newest)
        else:
            conv_state[conv_state_indices] = newest
    return y.transpose(1, 2).reshape(x.shape)


def _filter_sequences(
    where: str, x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor, state: Tensor | None, act: str | None
) -> Tensor:
    """Rows (b, t, d) of several sequences, run as one long row. A row's state is its first sequence's."""
    b, t, d = x.shape
    if seq_idx.shape != (b, t):
        raise ValueError(f"{where}: seq_idx must be (b, t) = {(b, t)}, got {tuple(seq_idx.shape)}")
    begins = torch.ones_like(seq_idx, dtype=torch.bool)
    begins[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    borders = begins.flatten().nonzero().flatten()
    cu_seqlens = torch.cat([borders, borders.new_tensor([b * t])]).to(torch.int32)
    if state is not None:
        first = (borders % t == 0).nonzero().flatten()
        states = state.new_zeros(len(borders), *state.shape[1:])
        state = states.index_copy(0, first, state)
    y, _ = short_conv(
        x.reshape(1, b * t, d), weight, bias, activation=act, state=state, cu_seqlens=cu_seqlens
    )  # fmt: skip
    return y.view(b, t, d).masked_fill((seq_idx < 0)[..., None], 0)


def _slots(first: Tensor, num: int, state: Tensor) -> Tensor:
    """(b, d, num): the circle's slots of `num` tokens from the first on."""
    tokens = first.long()[:, None] + torch.arange(num, device=state.device)
    return (tokens % state.shape[-1])[:, None].expand(-1, state.shape[1], -1)


def _activation(where: str, activation: str | None) -> str | None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"{where}: activation must be None, 'silu' or 'swish', got {activation!r}")
    return ACTIVATIONS[activation]
