"""The small language model in which mixers are compared: everything but the mixer is the same."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.mixers import Mixer, State

EMBEDDING_STD = 0.02
MLPS = (None, "swiglu", "gelu")


class ModelState(NamedTuple):
    """What the model carries from one token to the next."""

    mixers: tuple[State, ...]

    @property
    def num_tokens(self) -> int:
        return self.mixers[0].position


class TinyLM(nn.Module):
    """tokens -> embedding -> blocks -> norm -> tied head.

    block:  x = x + mixer(norm(x)),  then, where there is an MLP,  x = x + mlp(norm(x))

    Args:
        mixers: one for each block, all of the same width.
        d_model: that width.
        vocab_size: number of token ids.
        mlp: None, "swiglu" (3 matrices of d_model x 8/3 d_model) or "gelu" (2 of d_model x 4 d_model).
        num_positions: learned positions are added for so many tokens; 0 adds none.
        bottleneck: hidden states of all positions are decoded from that of the last one alone.
    """

    def __init__(
        self,
        mixers: Sequence[Mixer],
        d_model: int,
        vocab_size: int,
        *,
        mlp: str | None = None,
        num_positions: int = 0,
        bottleneck: bool = False,
    ):
        super().__init__()
        if mlp not in MLPS:
            raise ValueError(f"TinyLM: mlp must be one of {', '.join(map(repr, MLPS))}, got {mlp!r}")
        if not mixers:
            raise ValueError("TinyLM: mixers must name at least one block, got none")
        self.vocab_size = vocab_size
        self.num_positions = num_positions
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(num_positions, d_model) if num_positions else None
        self.blocks = nn.ModuleList(Block(mixer, d_model, mlp) for mixer in mixers)
        self.norm = nn.LayerNorm(d_model)
        self.decoder = PositionDecoder(d_model) if bottleneck else None
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=EMBEDDING_STD)

    def forward(self, tokens: Tensor, at: Tensor | None = None) -> Tensor:
        """Hidden states: (b, t, d) or, with `at` (a,) indices into the flattened (b t), only those rows, (a, d).

        Once the last mixer has mixed, no token reads another: with `at` the rest runs on those rows alone.
        """
        x, last = self._embed(tokens, 0), self.blocks[-1]
        for block in self.blocks[:-1]:
            x = block(x)
        if self.decoder is not None:
            return self._decode(x, at)
        return self.norm(last(x) if at is None else last.forward_at(x, at))

    def _decode(self, x: Tensor, at: Tensor | None) -> Tensor:
        """What `forward` gives, each row from the last token's of its sequence and its position; x (b, t, d) before
        the last block."""
        batch, length, _ = x.shape
        ends = torch.arange(1, batch + 1, device=x.device) * length - 1
        gathered = self.norm(self.blocks[-1].forward_at(x, ends))  # (b, d)
        if at is None:
            positions = torch.arange(length, device=x.device)
            return self.decoder(gathered.unsqueeze(1), positions)
        return self.decoder(gathered[at // length], at % length)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., v) by the embedding itself."""
        return F.linear(hidden, self.embedding.weight)

    def prefill(self, tokens: Tensor) -> tuple[Tensor, ModelState]:
        """(b, t) -> logits after the last token (b, v), and the state from which `step` goes on."""
        return self._run(tokens, ModelState(tuple(State() for _ in self.blocks)))

    def step(self, token: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """(b,) the next token of each row -> logits (b, v), state."""
        return self._run(token.unsqueeze(1), state)

    def state_size(self, t: int) -> int:
        """Bytes that one sequence of t tokens leaves in the states of all mixers."""
        return sum(block.mixer.state_size(t) for block in self.blocks)

    def _run(self, tokens: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        x = self._embed(tokens, state.num_tokens)
        after = []
        for block, before in zip(self.blocks, state.mixers, strict=True):
            x, mixer_state = block.run(x, before)
            after.append(mixer_state)
        return self.logits(self.norm(x[:, -1])), ModelState(tuple(after))

    def _embed(self, tokens: Tensor, start: int) -> Tensor:
        try:
            x = self.embedding(tokens)
        except IndexError:
            low, high = tokens.min().item(), tokens.max().item()
            raise ValueError(
                f"TinyLM: tokens must be in 0 .. {self.vocab_size - 1}, got tokens from {low} to {high}"
            ) from None
        if self.positions is None:
            return x
        stop = start + tokens.shape[1]
        if stop > self.num_positions:
            raise ValueError(f"TinyLM: num_positions={self.num_positions} cannot place {stop} tokens")
        return x + self.positions.weight[start:stop]


class Block(nn.Module):
    """One mixer across time, and behind it an optional MLP for each token."""

    def __init__(self, mixer: Mixer, d_model: int, mlp: str | None):
        super().__init__()
        self.mixer_norm = nn.LayerNorm(d_model)
        self.mixer = mixer
        self.mlp_norm = nn.LayerNorm(d_model) if mlp else None
        self.mlp = {"swiglu": SwiGLU, "gelu": GeluMLP}[mlp](d_model) if mlp else None

    def forward(self, x: Tensor) -> Tensor:
        return self._transform(x + self.mixer(self.mixer_norm(x)))

    def forward_at(self, x: Tensor, at: Tensor) -> Tensor:
        """The rows `at` (a,) of what `forward` gives for (b, t, d), flattened: (a, d)."""
        normed = self.mixer_norm(x)
        inputs, _ = self.mixer.project(normed, None, 0)
        y, _ = self.mixer.mix(inputs, None)
        beside = [inputs[name] for name in self.mixer.beside]
        x, normed, y, *beside = (rows.flatten(0, 1).index_select(0, at) for rows in (x, normed, y, *beside))
        given = {name: rows.unsqueeze(0) for name, rows in zip(self.mixer.beside, beside, strict=True)}
        merged = self.mixer.merge(normed.unsqueeze(0), y.unsqueeze(0), **given).squeeze(0)
        return self._transform(x + merged)

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.mixer.run(self.mixer_norm(x), state)
        return self._transform(x + y), state

    def _transform(self, x: Tensor) -> Tensor:
        return x if self.mlp is None else x + self.mlp(self.mlp_norm(x))


class PositionDecoder(nn.Module):
    """Hidden states of positions from one vector of their sequence, after MAD's auto-encoder (arXiv 2403.17844).

    x = z + sinusoids(position),  twice  x = gelu(linear(norm(x))),  then norm
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.d_model = d_model
        self.layers = nn.Sequential(
            *(
                layer
                for _ in range(2)
                for layer in (nn.LayerNorm(d_model), nn.Linear(d_model, d_model), nn.GELU())
            ),
            nn.LayerNorm(d_model),
        )  # fmt: skip

    def forward(self, z: Tensor, positions: Tensor) -> Tensor:
        """(..., d) and positions (...,), broadcast together -> (..., d)."""
        pairs = torch.arange(0, self.d_model, 2, device=z.device)
        angles = positions.unsqueeze(-1) * 10_000.0 ** (-pairs / self.d_model)  # (..., d/2)
        sinusoids = torch.cat((angles.sin(), angles.cos()), dim=-1)[..., : self.d_model]
        return self.layers(z + sinusoids.to(z.dtype))


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), Shazeer 2020 (arXiv 2002.05202)."""

    def __init__(self, d_model: int):
        super().__init__()
        width = 8 * d_model // 3
        self.gate_up_proj = nn.Linear(d_model, 2 * width, bias=False)
        self.down_proj = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class GeluMLP(nn.Module):
    """down(gelu(up x))."""

    def __init__(self, d_model: int):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x)))
