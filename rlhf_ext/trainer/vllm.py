"""What generation by vLLM needs beyond TRL: the policy's weights alone, and a proof that they arrived."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..models.roles import belongs_to_policy

# Mean |difference| of log-probabilities, in nats per token. Other kernels and roundings stay below; stale or wrong
# weights lie above.
ENGINE_BOUNDS = {torch.float32: 0.01, torch.float16: 0.05, torch.bfloat16: 0.1}
PROBE_PROMPTS = 4


def sync_policy_only(engine: Any) -> None:
    """
    Keep critic and reward models, which the engine does not know, out of its weight synchronisation.

    Args:
        engine ([`~trl.generation.vllm_generation.VLLMGeneration`]):
            The trainer's engine.
    """
    named_params = engine._iter_named_params

    def policy_params() -> Iterator[tuple[str, Tensor]]:
        return ((name, parameter) for name, parameter in named_params() if belongs_to_policy(name))

    engine._iter_named_params = policy_params


def check_engine(ours: Tensor, engine: Tensor, dtype: torch.dtype) -> None:
    """
    Refuse to go on when the engine that samples is not the policy that is trained.

    Args:
        ours (`torch.Tensor` of shape `(N,)`):
            Log-probabilities of sampled tokens under the policy, in nats.
        engine (`torch.Tensor` of shape `(N,)`):
            Log-probabilities of the same tokens as the engine reports them, in nats.
        dtype (`torch.dtype`):
            Precision of the forward pass.

    Raises:
        RuntimeError: If they differ by more than rounding.
    """
    difference = (ours - engine).abs().mean().item()
    bound = ENGINE_BOUNDS.get(dtype, ENGINE_BOUNDS[torch.bfloat16])
    if not difference <= bound:
        raise RuntimeError(
            f"After the weights were sent to vLLM, it gives {engine.mean().item():.4f} nats per token where the policy "
            f"gives {ours.mean().item():.4f}; they differ by {difference:.4f} on average, at most {bound} is expected in "
            f"{dtype}. The two are not the same model: check that the vLLM server serves the policy's base, that its "
            "temperature and logprobs_mode ('processed_logprobs') are the trainer's, and its quantization."
        )
