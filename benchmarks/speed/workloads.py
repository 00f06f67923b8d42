"""What is measured: prompts, lengths and sizes."""

import random
from dataclasses import dataclass
from typing import Any

SUBJECTS = ("the sea", "a train", "old books", "the moon", "bread", "a violin", "the rain", "bees", "glass", "maps")
SHORT = (
    "Name one thing about {x}. Answer with one word.",
    "Is {x} useful? Answer yes or no.",
    "Say something nice about {x} in one short sentence.",
)
LONG = ("Write a story about {x}.", "Explain {x} to a child, step by step.")
FILLER = (
    "I have thought about it for a while.",
    "My neighbour asked me the same thing yesterday, and I did not know what to say.",
    "Please keep in mind that I am new to this.",
    "We talked about it at breakfast, on the way to work and again in the evening, and nobody could agree.",
)


@dataclass(frozen=True)
class Workload:
    """
    One comparison.

    Args:
        name (`str`): Letter of the workload.
        what (`str`): What it stands for.
        chat (`bool`): Conversations of uneven length instead of short openings of a sentence.
        long_share (`float`): Share of prompts that ask for a long answer.
        completion (`int`): Longest answer, in tokens.
        fixed (`bool`): Whether TRL 1.12 is not told of EOS; on these prompts hardly an answer ends before the longest.
        prompts (`int`): Sequences in a rollout.
        micro_batch (`int`): Sequences in a forward call of the update.
        epochs (`int`): PPO epochs.
        lora (`int`): Rank, 0 for full fine-tuning with a critic of its own.
        model (`str`): `smollm2`, or a shape of [`benchmarks.speed.models.SHAPES`] with random weights.
        dtype (`str`): Precision of the weights.
    """

    name: str
    what: str
    chat: bool
    completion: int
    prompts: int
    fixed: bool = False
    long_share: float = 0.0
    micro_batch: int = 8
    epochs: int = 2
    lora: int = 16
    model: str = "smollm2"
    dtype: str = "float32"

    def texts(self, count: int) -> list[Any]:
        """Prompts, the same in every run: text, or conversations of one turn."""
        if not self.chat:
            from rlhf_ext.demo.prompts import demo_prompts

            return demo_prompts()[0][:count]
        generator = random.Random(0)
        prompts = []
        for _ in range(count):
            wishes = LONG if generator.random() < self.long_share else SHORT
            wish = generator.choice(wishes).format(x=generator.choice(SUBJECTS))
            # Most are short, some are long: from none to two sentences before the question.
            fillers = [generator.choice(FILLER) for _ in range(int(3 * generator.random() ** 3))]
            prompts.append([{"role": "user", "content": " ".join([*fillers, wish])}])
        return prompts


CPU = (
    Workload("a", "short answers, 16 tokens", chat=False, completion=16, prompts=16, fixed=True),
    Workload(
        "b", "chat, answers up to 64 tokens", chat=True, completion=64, prompts=16, long_share=0.2, micro_batch=4
    ),
    Workload(
        "c", "chat, long tail up to 256 tokens", chat=True, completion=256, prompts=8, long_share=0.1, micro_batch=4
    ),
    Workload("d", "full fine-tuning, critic of its own", chat=False, completion=16, prompts=16, fixed=True, lora=0),
)
GPU = tuple(
    Workload(
        f"gpu-{model}", f"{model}, bf16, answers of {tokens} tokens", chat=True, completion=tokens, prompts=prompts,
        fixed=True, lora=16, model=model, dtype="bfloat16",
    )
    for model, tokens, prompts in (("0.5b", 512, 64), ("1.5b", 512, 64), ("8b", 512, 32))
)  # fmt: skip
WORKLOADS = {workload.name: workload for workload in (*CPU, *GPU)}
