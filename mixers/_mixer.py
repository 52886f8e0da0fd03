"""The one interface every mixer keeps."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from ._cache import Cache
from ._long_filter import History

Memory = Tensor | Cache | History  # what an op returned, or the tokens that it must read again
IDENTITY_COLUMNS = 64  # the identity passes through the op in slices: an op takes values of at most 256 channels


class State(NamedTuple):
    """What a mixer carries from one token to the next; State() is the state before the first token.

    A State is a value: running a mixer from it never changes it, so one State may be continued many times.
    """

    conv: Tensor | None = None  # last inputs of the short convolution, (b, w - 1, d)
    memory: Memory | None = None
    position: int = 0  # number of tokens seen, the same for every row

    def detach(self) -> "State":
        """The same state, cut from the graph of gradients."""
        return self._replace(conv=_detach(self.conv), memory=_detach(self.memory))

    def index_select(self, rows: Tensor) -> "State":
        """The state of the rows of the batch with these indices, in this order (beam search, shared prompts)."""
        return self._replace(conv=_select(self.conv, rows), memory=_select(self.memory, rows))

    def emptied(self) -> "State":
        """Of the same size and position, for rows that have seen no token."""
        return self._replace(conv=_empty(self.conv), memory=_empty(self.memory))

    @classmethod
    def join(cls, states: Sequence["State"]) -> "State":
        """The rows of all these in one batch. They are at one position; how many tokens each holds may differ."""
        positions = {state.position for state in states}
        if len(positions) != 1:
            raise ValueError(f"state: only states at one position can be joined, got {sorted(positions)}")
        return cls(_join([s.conv for s in states]), _join([s.memory for s in states]), positions.pop())


def state_bytes(state: State) -> int:
    """Bytes that a state holds for all its rows together. A cache counts its tokens, not the room it keeps for more."""
    return sum(part.nbytes for part in (state.conv, state.memory) if part is not None)


class Mixer(nn.Module, ABC):
    """(b, t, d) -> (b, t, d), causal. One path serves training, prefill and decoding: project, mix, merge.

    Args:
        d_model: width of the input and of the output.
        backend: passed to the ops.
    """

    values = "v"  # the op's input that is mixed over time, linearly; all others decide with what weights
    beside: tuple[str, ...] = ()  # what `project` makes for `merge` alone, (b, t, ...) each: it goes past the op

    def __init__(self, d_model: int, backend: str):
        super().__init__()
        self.d_model = d_model
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, State())[0]

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One token, (b, d) -> (b, d)."""
        if x.ndim != 2:
            raise ValueError(f"{self.name}: step takes one token (b, {self.d_model}), got shape {tuple(x.shape)}")
        y, state = self.run(x[:, None], state)
        return y[:, 0], state

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The tokens x (b, t, d) that follow `state`: their outputs (b, t, d) and the state after them."""
        if x.ndim != 3 or x.shape[-1] != self.d_model or x.shape[1] == 0:
            raise ValueError(
                f"{self.name}: x must be (b, t, {self.d_model}) with at least one token, got shape {tuple(x.shape)}"
            )
        inputs, conv = self.project(x, state.conv, state.position)
        y, memory = self.mix(inputs, state.memory)
        beside = {name: inputs[name] for name in self.beside}
        return self.merge(x, y, **beside), State(conv, memory, state.position + x.shape[1])

    @abstractmethod
    def project(self, x: Tensor, conv: Tensor | None, position: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """The op's inputs under the op's own names, what goes `beside`, and the short convolution's new state."""

    @abstractmethod
    def mix(self, inputs: dict[str, Tensor], memory: Memory | None) -> tuple[Tensor, Memory | None]:
        """The op. Past the short convolution, this is the only place where one token reads another."""

    @abstractmethod
    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        """Norm, gate and output projection, token by token. A mixer that names inputs `beside` takes these too."""

    def mixing_matrix(self, x: Tensor) -> Tensor:
        """The weights with which `mix` sums the values of the tokens s <= t: y = matrix @ v.

        (b, h, t, t); or (b, d, t, t) where values are channels (b, t, d), each with weights of its own. The op is
        applied to the identity as values, so this is what runs, not a second account of it.
        """
        inputs, _ = self.project(x, None, 0)
        if inputs[self.values].ndim == 3:
            return self._mixing_matrix_of_channels(inputs)
        b, t, g = inputs["v"].shape[:3]
        identity = torch.eye(t, dtype=inputs["v"].dtype, device=x.device)
        columns = []
        for part in identity.split(IDENTITY_COLUMNS, dim=1):
            v = part[None, :, None].expand(b, t, g, part.shape[1])
            columns.append(self.mix(inputs | {"v": v}, None)[0])  # (b, t, h, columns)
        return torch.cat(columns, dim=-1).transpose(1, 2)

    def _mixing_matrix_of_channels(self, inputs: dict[str, Tensor]) -> Tensor:
        """Each of the t impulses is a row of the batch."""
        b, t, d = inputs[self.values].shape
        impulses = torch.eye(t, dtype=inputs[self.values].dtype, device=inputs[self.values].device)
        impulses = impulses[None, :, :, None].expand(b, t, t, d).flatten(0, 1)
        repeated = {name: z.repeat_interleave(t, dim=0) for name, z in inputs.items()}
        y = self.mix(repeated | {self.values: impulses}, None)[0]  # (b s, t, d)
        return y.unflatten(0, (b, t)).permute(0, 3, 2, 1)

    def state_size(self, t: int) -> int:
        """Bytes that one sequence carries after t tokens, read off the tensors of a run on shapes alone."""
        if t < 1:
            raise ValueError(f"{self.name}: state_size counts after at least one token, got t={t}")
        weight = next(self.parameters())
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            x = torch.empty(1, t, self.d_model, dtype=weight.dtype, device=weight.device)
            return state_bytes(self.run(x, State())[1])

    @property
    def name(self) -> str:
        """What errors call this mixer."""
        return type(self).__name__


def head_size(where: str, d_model: int, num_heads: int, head_dim: int | None = None) -> int:
    """Channels of a head: as asked, or those of each of the heads that share d_model evenly."""
    if head_dim is not None:
        if num_heads < 1 or head_dim < 1:
            raise ValueError(
                f"{where}: num_heads and head_dim must be at least 1, got num_heads={num_heads}, head_dim={head_dim}"
            )
        return head_dim
    if num_heads < 1 or d_model % num_heads:
        raise ValueError(f"{where}: num_heads must divide d_model, got num_heads={num_heads} and d_model={d_model}")
    return d_model // num_heads


def _detach(part: Memory | None) -> Memory | None:
    return None if part is None else part.detach()


def _empty(part: Memory | None) -> Memory | None:
    if part is None:
        return None
    return torch.zeros_like(part) if isinstance(part, Tensor) else part.emptied()


def _join(parts: list[Memory | None]) -> Memory | None:
    if parts[0] is None:
        return None
    return torch.cat(parts) if isinstance(parts[0], Tensor) else type(parts[0]).join(parts)


def _select(part: Memory | None, rows: Tensor) -> Memory | None:
    return None if part is None else part.index_select(0, rows)
