"""Sampling without transformers' overheads: rows leave the batch when they end, prompts are read without their padding."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer
from transformers.generation import TemperatureLogitsWarper

from .forward import TokenOutputs

PADDED_SHARE = 1.25
"""Prompts are read in groups of similar length where padding would make the work larger than by this factor."""
GROUPS = 4
BLOCK = 256
"""Words of the vocabulary that are drawn from together, before one of them is."""
DROPPED_SHARE = 1 / 8
"""Share of the rows of a batch that must have ended before the others go on without them: leaving copies the cache."""


class Sampler:
    """
    Draws completions in place of transformers' own loop (`generate(custom_generate=...)`), and keeps what it learned of
    the sampled tokens on the way.

    Args:
        value_head (`torch.nn.Module`, *optional*):
            The critic's head where the critic shares the policy's trunk; the values are then known too.
        temperature (`float`, *optional*, defaults to `1.0`):
            That of the log-probabilities which are trained on.

    Attributes:
        outputs ([`TokenOutputs`], *optional*):
            Log-probabilities and values `(B, C)` of the last call, zero after the end of a row; `None` where transformers
            sampled, or at another temperature.
    """

    def __init__(self, value_head: nn.Module | None, temperature: float = 1.0):
        self.value_head = value_head
        self.temperature = temperature
        self.outputs: TokenOutputs | None = None
        self.num_tokens = 0

    def take(self, num_tokens: int) -> TokenOutputs | None:
        """The outputs, once; nothing if they are not of so many tokens, as where who called cut the answers elsewhere."""
        outputs, self.outputs = self.outputs, None
        return outputs if num_tokens == self.num_tokens else None

    @contextmanager
    def sampling(self, model: Any) -> Iterator[None]:
        """Inside, `model.generate` samples here."""
        plain, own = model.generate, vars(model).get("generate")
        model.generate = lambda *args, **kwargs: plain(*args, custom_generate=self, **kwargs)
        try:
            yield
        finally:
            if own is None:
                del model.generate
            else:
                model.generate = own

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Any:
        """Token ids `(B, P + C)` of prompts and completions, padded after the end of a row."""
        self.outputs = None
        is_plain = all(isinstance(processor, TemperatureLogitsWarper) for processor in logits_processor)
        if not (is_plain and generation_config.do_sample and _can_leave_rows(model_kwargs)):
            return model._sample(input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs)
        batch = _Batch(model, input_ids, model_kwargs)
        with _last_states(model) as states:
            logits = batch.read_prompts(states, stopping_criteria.max_length - input_ids.size(1))
            while True:
                sampled: tuple[Tensor, ...] = draw(logits_processor(batch.ids, logits.float()))
                if self.value_head is not None:
                    sampled = *sampled, self.value_head(states[0])
                if not batch.append(sampled, stopping_criteria):
                    break
                logits = batch.step()
        ids, outputs = batch.results(generation_config._pad_token_tensor)
        if math.prod(processor.temperature for processor in logits_processor) == self.temperature:
            self.outputs = outputs
        self.num_tokens = sum(len(rows) for rows, *_ in batch.sampled)
        return ids


def _cache_name(model_kwargs: dict[str, Any]) -> str:
    """What models call their cache: transformers 5.24 gave it another name."""
    return "cache" if "cache" in model_kwargs else "past_key_values"


def _can_leave_rows(model_kwargs: dict[str, Any]) -> bool:
    """Whether rows can be taken out of the cache, and positions are one number a token."""
    cache, positions = model_kwargs.get(_cache_name(model_kwargs)), model_kwargs.get("position_ids")
    if not isinstance(cache, DynamicCache) or not cache.layers:
        return False
    return all(isinstance(layer, DynamicLayer) for layer in cache.layers) and (
        positions is None or positions.ndim == 2
    )


def draw(scores: Tensor) -> tuple[Tensor, Tensor]:
    """
    One token of each row, and its log-probability, both `(B,)`, by inverting the distribution function at one uniform
    number a row. `torch.multinomial` draws one for every word of the vocabulary.

    Args:
        scores (`torch.Tensor` of shape `(B, V)`, float32):
            Logits of the distribution.
    """
    top = scores.amax(-1, keepdim=True)
    powers = nn.functional.pad((scores - top).exp_(), (0, -scores.size(-1) % BLOCK)).unflatten(-1, (-1, BLOCK))
    # A block of words first, then a word of it: few passes over the vocabulary.
    cumulated = powers.sum(-1).double().cumsum(-1)
    total = cumulated[:, -1:]
    block, share = _invert(cumulated, torch.rand(total.shape, dtype=torch.float64, device=scores.device))
    within = powers.gather(1, block[..., None].expand(-1, -1, BLOCK)).squeeze(1)
    word, _ = _invert(within.double().cumsum(-1), share)
    tokens = (block * BLOCK + word).clamp(max=scores.size(-1) - 1)
    logprobs = scores.gather(1, tokens) - top - total.log()
    return tokens.squeeze(1), logprobs.squeeze(1).to(scores.dtype)


def _invert(cumulated: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Where a share `(B, 1)` of the last of cumulated weights `(B, n)` falls, and its share of the weight there."""
    point = share * cumulated[:, -1:]
    # To the right: a weight of zero ends where the one before it ends, and is never the first above a point.
    place = torch.searchsorted(cumulated, point, right=True).clamp(max=cumulated.size(1) - 1)
    end = cumulated.gather(1, place)
    start = cumulated.gather(1, (place - 1).clamp(min=0)).where(place > 0, 0.0)
    return place, ((point - start) / (end - start)).clamp(0, 1)


class _GrowingLayer(DynamicLayer):
    """A layer's keys and values in a buffer with room, where transformers copies all of them for every token."""

    ROOM = 64

    @classmethod
    def of(cls, layers: Sequence[DynamicLayer], room: int) -> "_GrowingLayer":
        """The layers of several batches as one, padded on the left to the longest, with room for so many tokens."""
        width = max(layer.get_seq_length() for layer in layers)
        grown = cls()
        grown.lazy_initialization(layers[0].keys, layers[0].values)
        for i, name in enumerate(("keys", "values")):
            parts = [getattr(layer, name) for layer in layers]
            shape = sum(map(len, parts)), parts[0].size(1), width + min(room, cls.ROOM), parts[0].size(3)
            # Masked positions are multiplied by zero, so they must be numbers.
            grown.buffers[i] = parts[0].new_zeros(shape)
            for part, rows in zip(parts, grown.buffers[i].split([len(part) for part in parts]), strict=True):
                rows[:, :, width - part.size(2) : width] = part
        grown._look(width)
        return grown

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.buffers: list[Tensor] = [self.keys, self.values]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As the parent."""
        start = self.get_seq_length()
        end = start + key_states.size(2)
        if end > self.buffers[0].size(2):
            room = end - start + max(self.ROOM, end // 4)
            self.buffers = [nn.functional.pad(buffer[:, :, :start], (0, 0, 0, room)) for buffer in self.buffers]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        return self._look(end)

    def batch_select_indices(self, indices: Tensor) -> None:
        """As the parent."""
        end = self.get_seq_length()
        self.buffers = [buffer[indices] for buffer in self.buffers]
        self._look(end)

    def _look(self, end: int) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[:, :, :end] for buffer in self.buffers)
        self.keys, self.values = keys, values
        return keys, values


class _Batch:
    """The rows that still go on, and what was sampled of all."""

    def __init__(self, model: PreTrainedModel, input_ids: Tensor, model_kwargs: dict[str, Any]):
        self.model = model
        self.prompts = self.ids = input_ids
        self.cache_name = _cache_name(model_kwargs)
        self.cache = model_kwargs.pop(self.cache_name)
        # Those with a column for each token; the others go to every forward call as they are. Without padding, transformers
        # makes no mask.
        given = {name: model_kwargs.pop(name, None) for name in ("attention_mask", "position_ids")}
        self.columns: dict[str, Tensor] = {name: column for name, column in given.items() if column is not None}
        self.kwargs = model_kwargs
        self.rows = torch.arange(len(input_ids), device=input_ids.device)
        self.ended = torch.zeros_like(self.rows, dtype=torch.bool)
        self.sampled: list[tuple[Tensor, ...]] = []

    def read_prompts(self, states: list[Tensor], room: int) -> Tensor:
        """Logits `(B, V)` after the prompts, which are read in groups of similar length where that saves padding."""
        mask = self.columns.get("attention_mask", torch.ones_like(self.ids))
        lengths = mask.sum(1).tolist()
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        size = -(-len(order) // GROUPS)
        groups = [order[i : i + size] for i in range(0, len(order), size)]
        is_full = all(type(layer) is DynamicLayer for layer in self.cache.layers)
        if not is_full or mask.numel() <= PADDED_SHARE * sum(lengths):
            logits = self._forward(self.ids, self.columns, self.cache, is_first_iteration=True)
            if is_full:
                self._grow([self.cache], room)
            return logits
        caches: list[DynamicCache] = []
        read: list[tuple[Tensor, Tensor]] = []
        for group in groups:
            width = lengths[group[-1]]
            columns = {name: column[group, -width:] for name, column in self.columns.items()}
            caches.append(DynamicCache(config=self.model.config.get_text_config(decoder=True)))
            logits = self._forward(self.ids[group, -width:], columns, caches[-1], is_first_iteration=True)
            read.append((logits, states[0]))
        self._grow(caches, room)
        back = torch.tensor(order, device=self.ids.device).argsort()
        self.cache.batch_select_indices(back)
        logits, states[0] = (torch.cat(column)[back] for column in zip(*read, strict=True))
        return logits

    def _grow(self, caches: list[DynamicCache], room: int) -> None:
        """The caches as one that grows, a layer at a time: keys and values of all layers would be there twice."""
        for i in range(len(caches[0].layers)):
            grown = _GrowingLayer.of([cache.layers[i] for cache in caches], room)
            for cache in (*caches, self.cache):
                cache.layers[i : i + 1] = [grown]

    def step(self) -> Tensor:
        """Logits `(b, V)` after the last token of the rows that go on."""
        return self._forward(self.ids, self.columns, self.cache, next_sequence_length=1)

    def _forward(self, ids: Tensor, columns: dict[str, Tensor], cache: DynamicCache, **how: Any) -> Tensor:
        how[self.cache_name] = cache
        inputs = self.model.prepare_inputs_for_generation(ids, **columns, **self.kwargs, **how)
        return self.model(**inputs, return_dict=True).logits[:, -1]

    def append(self, sampled: tuple[Tensor, ...], stopping_criteria: StoppingCriteriaList) -> bool:
        """Add a token to every row, and go on without those that have ended; whether any goes on."""
        alive = ~self.ended
        self.sampled.append((self.rows[alive], *(column[alive] for column in sampled)))
        self.ids = torch.cat([self.ids, sampled[0][:, None]], dim=1)
        self.ended = self.ended | stopping_criteria(self.ids, None)
        num_ended = int(self.ended.sum())
        if num_ended == len(self.ended):
            return False
        for name, column in self.columns.items():
            last = column[:, -1:]
            self.columns[name] = torch.cat(
                [column, last + 1 if name == "position_ids" else torch.ones_like(last)], dim=1
            )
        if num_ended >= DROPPED_SHARE * len(self.ended):
            self._select((~self.ended).nonzero().squeeze(1))
        return True

    def _select(self, indices: Tensor) -> None:
        self.ids, self.rows, self.ended = self.ids[indices], self.rows[indices], self.ended[indices]
        self.columns = {name: column[indices] for name, column in self.columns.items()}
        self.cache.batch_select_indices(indices)

    def results(self, pad_token_id: Tensor | None) -> tuple[Tensor, TokenOutputs]:
        """Token ids `(B, P + C)`, and the other columns of `sampled` as `(B, C)`."""
        shape = len(self.prompts), len(self.sampled)
        ids = self.prompts.new_full(shape, 0 if pad_token_id is None else int(pad_token_id))
        others = [torch.zeros(shape, dtype=torch.float32, device=ids.device) for _ in self.sampled[0][2:]]
        for t, (rows, tokens, *columns) in enumerate(self.sampled):
            ids[rows, t] = tokens
            for table, column in zip(others, columns, strict=True):
                table[rows, t] = column.float()
        names = ("logprobs", "values")
        outputs = TokenOutputs(**dict(zip(names, others, strict=False)))
        return torch.cat([self.prompts, ids], dim=1), outputs


@contextmanager
def _last_states(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The hidden states `(b, H)` at the last position of the latest forward call, in a list; the head gets no others."""
    states: list[Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> Any:
        # Contiguous: for a slice of longer rows torch takes another product, at a fifth of the speed.
        output.last_hidden_state = output.last_hidden_state[:, -1:].contiguous()
        states[:] = [output.last_hidden_state[:, 0]]
        return output

    handle = model.base_model.register_forward_hook(keep)
    try:
        yield states
    finally:
        handle.remove()
