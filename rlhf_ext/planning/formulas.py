"""Bytes that follow from shapes alone: weights, gradients, optimizer states, LM head, sampling, rollout."""

import math
from collections.abc import Iterable

import torch

from ..models.cpu_head import TILE_TOKENS, TILE_WORDS
from .architecture import Architecture, Parameter

FLOAT32 = 4
INT64 = 8

# TRL's ChunkedLogProbFunction (trl/kernels/chunked_logprob.py) works on tiles of that many tokens and, on a GPU, words.
LM_HEAD_TOKENS = 4096
LM_HEAD_WORDS = 32768
# Tiles in float32 that its torch version (without Triton) holds beside the logits: z, z - max and exp in the forward pass;
# y, z, log p, p, the gradient, two factors of its entropy part and their product in the backward pass, with one tile of
# bool. In float32 the project's own head runs instead, which holds one, and ten numbers a token.
FORWARD_TILES = 3
BACKWARD_TILES = 8
OWN_TILES = 1
OWN_STATISTICS = 10

# bitsandbytes: parameters smaller than this keep float32 states (min_8bit_size), others have one scale per block.
SMALL_PARAMETER = 4096
STATE_BLOCK = 256
WEIGHT_BLOCK = 64
SCALE_BLOCK = 256

# DeepSpeed's stage3_max_live_parameters, which transformers leaves at its default.
ZERO3_LIVE_PARAMETERS = 10**9


def quantized_bytes(parameter: Parameter, quantization: str, double: bool) -> int:
    """
    Bytes of a linear layer's weight as bitsandbytes stores it.

    8 bit: one byte an element and a float32 scale per row ([Dettmers et al. 2022](https://huggingface.co/papers/2208.07339)).
    4 bit: half a byte an element, a scale per block of 64 and a code of 16 float32; the scale is a float32, or with double
    quantisation a byte, with a float32 per 256 of them, a code of 256 float32 and an offset
    ([Dettmers et al. 2023](https://huggingface.co/papers/2305.14314), section 3).
    """
    if quantization == "8bit":
        return parameter.numel + FLOAT32 * parameter.shape[0]
    blocks = math.ceil(parameter.numel / WEIGHT_BLOCK)
    scales = FLOAT32 * blocks
    if double:
        scales = blocks + FLOAT32 * (math.ceil(blocks / SCALE_BLOCK) + 256 + 1)
    return math.ceil(parameter.numel / 2) + scales + FLOAT32 * 16


def weight_bytes(parameters: Iterable[Parameter], quantization: str | None = None, double: bool = False) -> int:
    """Bytes of weights; with `quantization`, of the linear layers as bitsandbytes stores them."""
    return sum(
        quantized_bytes(p, quantization, double) if quantization and p.quantizable else p.bytes for p in parameters
    )


def dequantized_bytes(architecture: Architecture, parameters: Iterable[Parameter]) -> int:
    """Largest weight that is unpacked for one product, in the type of the computation; nothing without quantisation."""
    if architecture.quantization is None:
        return 0
    return max((p.numel * architecture.dtype.itemsize for p in parameters if p.quantizable), default=0)


def gradient_bytes(parameters: Iterable[Parameter]) -> int:
    """One gradient per trained element, in the parameter's type."""
    return sum(p.bytes for p in parameters if p.trainable)


def optimizer_bytes(parameters: Iterable[Parameter], optimizer: str) -> int:
    """
    Two moments per trained element, and the step count.

    `"adamw"`: in the parameter's type, as `torch.optim.AdamW` makes them, with a float32 step each. `"adamw_8bit"`
    ([Dettmers et al. 2021](https://huggingface.co/papers/2110.02861)): a byte each and a float32 scale per block of 256;
    float32 for parameters below 4096 elements and for embeddings, which transformers leaves out of it.
    """
    total = 0
    for p in parameters:
        if not p.trainable:
            continue
        if optimizer == "adamw":
            total += 2 * p.bytes + FLOAT32
        elif p.embedding or p.numel < SMALL_PARAMETER:
            total += 2 * FLOAT32 * p.numel
        else:
            total += 2 * (p.numel + FLOAT32 * math.ceil(p.numel / STATE_BLOCK))
    return total


def zero_optimizer_bytes(parameters: Iterable[Parameter], optimizer: str) -> int:
    """
    What ZeRO partitions: a float32 copy of each trained element, and its two moments, 12 bytes with AdamW
    ([Rajbhandari et al. 2020](https://huggingface.co/papers/1910.02054), section 3.1: K = 12).
    """
    trained = [p for p in parameters if p.trainable]
    masters = [Parameter(p.shape, torch.float32, True, p.embedding, False, p.adapter) for p in trained]
    return weight_bytes(masters) + optimizer_bytes(masters, optimizer)


def lm_head_forward_bytes(tokens: int, architecture: Architecture, compute: torch.dtype, on_gpu: bool) -> int:
    """
    Working memory of TRL's fused LM head in the forward pass: a copy of the hidden states of the scored positions, one
    tile of logits, and without Triton three more of float32, or one where float32 is computed in. The `(B, L, V)` logits
    never exist.

    Args:
        tokens (`int`):
            Positions that are scored: those with a label.
        architecture ([`Architecture`]):
            The model.
        compute (`torch.dtype`):
            Type in which the head computes.
        on_gpu (`bool`):
            Whether the device runs Triton kernels.
    """
    hidden = tokens * architecture.hidden_size * architecture.dtype.itemsize
    return hidden + _tile_bytes(tokens, architecture, compute, on_gpu, FORWARD_TILES)


def lm_head_backward_bytes(tokens: int, architecture: Architecture, compute: torch.dtype, on_gpu: bool) -> int:
    """
    The same in the backward pass, which makes every tile of logits again: the gradient of the hidden states in float32,
    and tiles; without Triton eight of float32 and one of bool, or two where float32 is computed in, one of which may be
    words of the weight's gradient instead. The gradient of the head's weight is not in it.
    """
    hidden = tokens * architecture.hidden_size * FLOAT32
    tiles = _tile_bytes(tokens, architecture, compute, on_gpu, BACKWARD_TILES)
    if not on_gpu and compute == torch.float32:
        words = min(architecture.vocab_size, TILE_WORDS) * architecture.hidden_size * FLOAT32
        one = _tile_elements(min(tokens, TILE_TOKENS), architecture) * FLOAT32
        return hidden + tiles + max(words - one, 0)
    return hidden + tiles + (0 if on_gpu else _tile_elements(tokens, architecture))


def lm_head_saved_bytes(tokens: int, architecture: Architecture, compute: torch.dtype) -> int:
    """
    What the fused LM head saves for the backward pass: the hidden states of the scored positions, and per position the
    label (int64), the log-normaliser and the entropy (float32). In float32 on a CPU, where its weight is frozen, also the
    direction of their gradient, which is not in it.
    """
    return tokens * (architecture.hidden_size * compute.itemsize + INT64 + 2 * FLOAT32)


def value_head_saved_bytes(positions: int, architecture: Architecture) -> int:
    """The hidden states in float32, whatever the precision of the trunk."""
    return positions * architecture.hidden_size * FLOAT32


def value_head_bytes(architecture: Architecture) -> int:
    """A linear layer to one number in float32, with bias."""
    return FLOAT32 * (architecture.hidden_size + 1)


def lm_head_gradient_bytes(architecture: Architecture) -> int:
    """The gradient of the LM head's weight is gathered in float32, whatever the precision of the weight."""
    return architecture.vocab_size * architecture.hidden_size * FLOAT32


def hidden_bytes(batch: int, length: int, architecture: Architecture) -> int:
    """Hidden states `(B, L, H)`, or their gradient, in the precision of the trunk."""
    return batch * length * architecture.hidden_size * architecture.dtype.itemsize


def _tile_elements(tokens: int, architecture: Architecture) -> int:
    """Of a tile on a CPU."""
    return min(tokens, LM_HEAD_TOKENS) * min(architecture.vocab_size, TILE_WORDS)


def _tile_bytes(tokens: int, architecture: Architecture, compute: torch.dtype, on_gpu: bool, tiles: int) -> int:
    # A tile is allocated as wide as its limit. On a CPU, what a smaller vocabulary never writes takes no memory.
    if on_gpu:
        return min(tokens, LM_HEAD_TOKENS) * LM_HEAD_WORDS * compute.itemsize
    if compute == torch.float32:
        scaled = min(tokens, TILE_TOKENS) * architecture.hidden_size * FLOAT32
        # Of each token a copy of the label and the running statistics.
        scaled += tokens * (INT64 + OWN_STATISTICS * FLOAT32)
        return _tile_elements(min(tokens, TILE_TOKENS), architecture) * (1 + OWN_TILES) * FLOAT32 + scaled
    return _tile_elements(tokens, architecture) * (compute.itemsize + tiles * FLOAT32)


def sampling_bytes(sequences: int, architecture: Architecture, logits: torch.dtype, temperature: float) -> int:
    """
    What is held per step to draw the next token: the logits, their probabilities in float32, and the distribution function
    in float64; one more copy in float32 where the logits are shorter, and one where the temperature is not 1.
    """
    copies = 3 + (logits != torch.float32) + (temperature != 1.0)
    return sequences * architecture.vocab_size * (logits.itemsize + copies * FLOAT32)


def rollout_bytes(sequences: int, prompt_length: int, completion_length: int) -> int:
    """
    Token ids (int64) and masks (bool) of prompts and completions; log-probabilities, values, advantages and returns
    (float32) of the completions.
    """
    return sequences * ((prompt_length + completion_length) * (INT64 + 1) + completion_length * 4 * FLOAT32)
