"""SlidingWindow: attention over the last few tokens."""

from .attention import Attention


class SlidingWindow(Attention):
    """Softmax attention to the last `window` tokens, the token itself included (Beltagy et al. 2020, arXiv 2004.05150).

    x -> q, k, v -> short convolution -> rotary -> causal_attention(window) -> out. Its state is the last window - 1
    keys and values. (The mask of Zoology's code keeps window + 1 tokens.)

    Args:
        d_model: width of the input and of the output.
        window: number of tokens that a token reads, its own included; 64 is Based's smallest.
        num_heads, num_kv_heads, head_dim, rotary_base, conv_width, backend: as in Attention.
    """

    def __init__(
        self,
        d_model: int,
        *,
        window: int = 64,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rotary_base: float | None = 10_000.0,
        conv_width: int | None = None,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(
            d_model,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rotary_base=rotary_base,
            conv_width=conv_width,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        if window < 1:
            raise ValueError(f"{self.name}: window counts the token itself, so it must be at least 1, got {window}")
        self.window = window
