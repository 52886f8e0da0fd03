"""Attention: every token reads all tokens before it. The quadratic baseline."""

from torch import Tensor, nn

from subquad.kernels.causal_attention import causal_attention

from ._cache import Cache
from ._mixer import Mixer, head_size
from ._rotary import check_rotary, rotary_angles, rotate
from ._short_conv import ShortConv


class Attention(Mixer):
    """Softmax attention (Vaswani et al. 2017, arXiv 1706.03762) as in Llama (2302.13971), without biases.

    x -> q, k, v -> short convolution -> rotary -> causal_attention -> out. Its state is every key and value.

    Args:
        d_model: width of the input and of the output.
        num_heads: query heads.
        num_kv_heads: heads of keys and values, each shared by a group of query heads; num_heads if None.
        head_dim: channels of a head; d_model / num_heads if None.
        rotary_base: longest wavelength of the rotary positions, over 2 pi; no positions if None.
        conv_width: taps of a short convolution on q, k and v; none by default.
        backend: passed to the ops.
    """

    window: int | None = None  # number of keys a query sees

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rotary_base: float | None = 10_000.0,
        conv_width: int | None = None,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(d_model, backend)
        factory = dict(device=device, dtype=dtype)
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(
                f"{self.name}: num_kv_heads must divide num_heads, got num_kv_heads={num_kv_heads} and "
                f"num_heads={num_heads}"
            )
        self.head_dim = head_size(self.name, d_model, num_heads, head_dim)
        check_rotary(self.name, rotary_base, self.head_dim)
        self.heads = (num_heads, num_kv_heads, num_kv_heads)  # of q, k and v
        self.rotary_base = rotary_base
        width = sum(self.heads) * self.head_dim
        self.qkv_proj = nn.Linear(d_model, width, bias=False, **factory)
        self.conv = ShortConv(width, conv_width, backend=backend, **factory)
        self.out_proj = nn.Linear(num_heads * self.head_dim, d_model, bias=False, **factory)

    def project(self, x: Tensor, conv: Tensor | None, position: int) -> tuple[dict[str, Tensor], Tensor | None]:
        qkv, conv = self.conv(self.qkv_proj(x), conv)
        q, k, v = qkv.unflatten(-1, (-1, self.head_dim)).split(self.heads, dim=-2)  # each (b, t, h or g, k)
        if self.rotary_base is not None:
            cos, sin = rotary_angles(position, x.shape[1], self.head_dim, self.rotary_base, like=q)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return dict(q=q, k=k, v=v), conv

    def mix(self, inputs: dict[str, Tensor], memory: Cache | None) -> tuple[Tensor, Cache]:
        q, k, v = inputs["q"], inputs["k"], inputs["v"]
        memory = Cache.of(k, v) if memory is None else memory.append(k, v)
        y = causal_attention(q, *memory.tokens, starts=memory.starts, window=self.window, backend=self.backend)
        return y, memory if self.window is None else memory.last(self.window - 1)

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out_proj(y.flatten(-2))
