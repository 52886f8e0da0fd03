"""Based: linear attention with the Taylor expansion of softmax's exponential."""

from torch import Tensor, nn

from subquad.kernels.polynomial_attention import polynomial_attention

from ._mixer import Mixer, head_size
from ._short_conv import ShortConv


class Based(Mixer):
    """Taylor attention: weights 1 + s + s^2 / 2 with s = q . k / sqrt(feature_dim) (arXiv 2402.18668, sec. 4).

    x -> q, k (feature_dim per head), v -> short convolution -> polynomial_attention, normalised -> out.

    Args:
        d_model: width of the input and of the output.
        num_heads: number of memories.
        head_dim: channels of a value; d_model / num_heads if None.
        feature_dim: channels of a query and of a key; the memory has 1 + f + f (f + 1) / 2 rows.
        conv_width: taps of a short convolution on q, k and v; none by default.
        backend: passed to the ops.
    """

    coefficients = (1.0, 1.0, 0.5)  # of 1, s and s^2

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 4,
        head_dim: int | None = None,
        feature_dim: int = 16,
        conv_width: int | None = None,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(d_model, backend)
        factory = dict(device=device, dtype=dtype)
        values = num_heads * head_size(self.name, d_model, num_heads, head_dim)
        if feature_dim < 1:
            raise ValueError(f"{self.name}: feature_dim must be at least 1, got {feature_dim}")
        self.num_heads = num_heads
        self.widths = (num_heads * feature_dim, num_heads * feature_dim, values)  # of q, k and v
        self.qkv_proj = nn.Linear(d_model, sum(self.widths), bias=False, **factory)
        self.conv = ShortConv(sum(self.widths), conv_width, backend=backend, **factory)
        self.out_proj = nn.Linear(values, d_model, bias=False, **factory)

    def project(self, x: Tensor, conv: Tensor | None, position: int) -> tuple[dict[str, Tensor], Tensor | None]:
        qkv, conv = self.conv(self.qkv_proj(x), conv)
        q, k, v = qkv.split(self.widths, dim=-1)
        q, k = self.normalize_features(q, k)
        return {name: part.unflatten(-1, (self.num_heads, -1)) for name, part in dict(q=q, k=k, v=v).items()}, conv

    def normalize_features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """What is done to (b, t, h f) queries and keys before the polynomial: nothing."""
        return q, k

    def mix(self, inputs: dict[str, Tensor], memory: Tensor | None) -> tuple[Tensor, Tensor]:
        return polynomial_attention(**inputs, coefficients=self.coefficients, state=memory, backend=self.backend)

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out_proj(y.flatten(-2))
