"""A layer of transformers' caches that holds what a mixer carries."""

import copy

import torch
from torch import Tensor
from transformers import Cache, EncoderDecoderCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from subquad.mixers import State


class MixerLayer(CacheLayerMixin):
    """A mixer's state in the place of a layer of keys and values.

    The layer whose place it takes goes on counting tokens, on one number each in the place of keys: so lengths and mask
    sizes stay those that the model's other layers have, whatever the class of the cache.
    """

    is_croppable = False

    def __init__(self, counter: CacheLayerMixin):
        super().__init__()
        self.counter = counter
        self.state = State()
        self.begun: Tensor | None = None  # (b,) which rows have seen a token that is no padding

    @classmethod
    def of(cls, cache: Cache, index: int) -> "MixerLayer":
        """The layer of that index, which takes the place of one that holds nothing yet."""
        if isinstance(cache, EncoderDecoderCache):
            cache = cache.self_attention_cache
        while len(cache.layers) <= index:
            cache.layers.append(cache.layer_class_to_replicate())
        layer = cache.layers[index]
        if isinstance(layer, cls):
            return layer
        if int(layer.get_seq_length()):
            raise ValueError(
                f"cache: layer {index} holds keys and values of {int(layer.get_seq_length())} tokens, made before the "
                "mixer was swapped in; begin with a new cache"
            )
        cache.layers[index] = cls(_emptied(layer))
        return cache.layers[index]

    @property
    def is_sliding(self) -> bool:
        return self.counter.is_sliding

    @property
    def is_initialized(self) -> bool:
        return self.counter.is_initialized

    @is_initialized.setter
    def is_initialized(self, value: bool) -> None:
        """CacheLayerMixin sets it to False; the counter knows."""

    @property
    def next_key(self) -> int:
        """Where a mask of this layer has the next token's key."""
        return int(self.counter.get_seq_length()) - int(self.counter.get_mask_sizes(1)[1])

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.counter.lazy_initialization(_ticks(key_states), _ticks(value_states))

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Count the new tokens. Their keys and values go to the mixer, which keeps what it needs."""
        counter, ticks = self.counter, _ticks(key_states)
        if type(counter) is DynamicLayer:
            # It counts by the length of what it holds: one number, shown once for each token, holds nothing.
            seen = counter.get_seq_length() + ticks.shape[2]
            counter.lazy_initialization(ticks, ticks)
            counter.keys = counter.values = ticks[:, :, :1].expand(-1, -1, seen, -1)
        else:
            counter.update(ticks, ticks)
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.counter.get_mask_sizes(query_length)

    def get_seq_length(self) -> int:
        return self.counter.get_seq_length()

    def get_max_length(self) -> int:
        return self.counter.get_max_length()

    def reset(self) -> None:
        self.counter, self.state, self.begun = _emptied(self.counter), State(), None

    def offload(self) -> None:
        """A state stays where it is: it is small, and every token needs all of it."""

    def prefetch(self) -> None:
        """It never left."""

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError(
            "cache: a mixer's state cannot be taken back to an earlier token, which assisted and speculative decoding "
            "would need; generate without an assistant"
        )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.begun is not None:
            self._select(torch.arange(len(self.begun), device=self.begun.device).repeat_interleave(repeats))

    def _select(self, rows: Tensor) -> None:
        if self.begun is not None:
            rows = rows.to(self.begun.device)
            self.state, self.begun = self.state.index_select(rows), self.begun[rows]


def _ticks(states: Tensor) -> Tensor:
    """(1, 1, t, 1): one number a token, the same for all rows."""
    return states[:1, :1, :, :1]


def _emptied(layer: CacheLayerMixin) -> CacheLayerMixin:
    """A layer of the same kind and size that has seen nothing and stores nothing."""
    layer = copy.copy(layer)
    layer.keys = layer.values = None
    layer.is_initialized = False
    for count in ("cumulative_length", "cumulative_length_int"):
        if hasattr(layer, count):
            before = getattr(layer, count)
            setattr(layer, count, torch.zeros_like(before) if isinstance(before, Tensor) else 0)
    return layer
