"""The least that a rollout can take: floating-point operations over what the machine's matrix product reaches."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from rlhf_ext.models.products import pack, use_in

from .workloads import Workload


@dataclass(frozen=True)
class Shapes:
    """
    Matrix products of a decoder.

    Args:
        linears (`list[tuple[int, int]]`): Inputs and outputs of every linear layer below the head.
        head (`tuple[int, int]`): Of the language-model head.
        attention (`int`): Width of the attention, over all layers: operations of a query and a key are four times that.
        rank (`int`): Of the adapters, 0 without.
    """

    linears: list[tuple[int, int]]
    head: tuple[int, int]
    attention: int
    rank: int

    @property
    def body(self) -> int:
        """Weights below the head."""
        return sum(i * o for i, o in self.linears)

    @property
    def adapter(self) -> int:
        """Weights of an adapter on all of them."""
        return sum(self.rank * (i + o) for i, o in self.linears)


def shapes_of(folder: str | Path, rank: int) -> Shapes:
    """Matrix products of a model of the Llama family."""
    config = AutoConfig.from_pretrained(folder)
    hidden, inner = config.hidden_size, config.intermediate_size
    head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    layer = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    layer += [(hidden, inner), (hidden, inner), (inner, hidden)]
    count = config.num_hidden_layers
    return Shapes(layer * count, (hidden, config.vocab_size), queries * count, rank)


def operations(
    shapes: Shapes, prompts: list[int], completions: list[int], epochs: int, critic: str
) -> dict[str, float]:
    """
    Floating-point operations that the work needs, by phase.

    A product counts two operations for each of its multiplications. Softmax, norms, activations and sampling count nothing.

    - `generate`: every prompt once, and every sampled token but the last of its answer once, with the adapter merged; the
      head once for each sampled token.
    - `score`: the trunk over prompt and answer for the policy, the reference, the reward model and a critic that has its
      own forward, the head at the answer's tokens for the first two. Only the reward model reads the last token.
    - `update`, for each epoch: forward of policy and critic, and backward, which is one product for the gradient of the
      inputs and, where weights are trained, one for theirs.
    """
    pairs = list(zip(prompts, completions, strict=True))
    head = 2 * shapes.head[0] * shapes.head[1]
    answers = sum(completions)
    attended = sum((p + c) ** 2 for p, c in pairs) / 2 * 4 * shapes.attention
    fed = sum(p + c - 1 for p, c in pairs)
    trunk, adapter = fed * 2 * shapes.body + attended, fed * 2 * shapes.adapter
    own = critic in ("adapter", "model")
    score = (3 + own) * trunk + len(pairs) * 2 * shapes.body + 2 * answers * head
    score += adapter * (2 + (critic == "adapter"))
    # The gradient of attention is twice its forward; of a frozen layer one product, of a trained one two.
    backward = fed * 2 * shapes.body * (1 if shapes.rank else 2) + 2 * attended + 2 * adapter
    once = trunk + adapter + backward
    update = once * (1 + own) + answers * head * (2 if shapes.rank else 3)
    return {"generate": fed * 2 * shapes.body + attended + answers * head, "score": score, "update": epochs * update}


def matrix_rates(workload: Workload, policy: str, threads: int, own: bool) -> dict[str, float]:
    """
    Operations a second that `torch.mm` reaches at the shapes of each phase, every layer's product once; or those of
    [`rlhf_ext.models.products`], weights packed, which on some processors are more.
    """
    shapes = shapes_of(policy, workload.lora)
    device = "cuda" if workload.name.startswith("gpu") else "cpu"
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    length = 22 if not workload.chat else 100
    rows = {
        "generate": workload.prompts,
        "score": workload.micro_batch * length,
        "update": workload.micro_batch * length,
    }
    rates = {phase: rate(shapes, count, workload.dtype, device, own) for phase, count in rows.items()}
    torch.set_num_threads(before)
    return rates


def rate(shapes: Shapes, rows: int, dtype: str, device: str, own: bool, seconds: float = 0.5) -> float:
    """Operations a second of the products of one token batch, weights not reused from the cache of the product before."""
    count = len(shapes.linears)
    products: list[Any] = [*shapes.linears[: min(count, 70)]]
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "device": device}
    layers = [torch.nn.Linear(i, o, bias=False, **options) for i, o in products]
    if own:
        use_in(*layers)
        for layer in layers:
            pack(layer, layer.weight)
    inputs = {i: torch.randn(rows, i, **options) for i, _ in products}
    done, spent, first = 0, 0.0, True
    while spent < seconds:
        wall, started = time.perf_counter(), time.process_time()
        with torch.no_grad():
            for (i, o), layer in zip(products, layers, strict=True):
                layer(inputs[i])
                done += 2 * rows * i * o
        if device == "cuda":
            torch.cuda.synchronize()
            spent += time.perf_counter() - wall
        else:
            spent += time.process_time() - started
        if first:
            # Page faults of the first round.
            done, spent, first = 0, 0.0, False
    return done / spent
