"""The peak of every phase of PPO, from what is resident and what each moment adds."""

from dataclasses import dataclass

from ..models.merging import mergeable
from . import formulas
from .architecture import Architecture, model_on_meta
from .resident import Part, gathered_parts, resident_parts
from .settings import PlanSettings
from .trace import trace_forward, trace_generation
from .update import update_moments

PHASES = ("generate", "score", "update")


@dataclass(frozen=True)
class Moment:
    """
    A point of an iteration at which memory may be at its highest.

    Args:
        phase (`str`):
            `"generate"`, `"score"` or `"update"`.
        name (`str`):
            What runs then.
        parts (`tuple` of [`Part`]):
            Everything that is in memory then.
    """

    phase: str
    name: str
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        """Bytes on the device of one process."""
        return sum(part.bytes for part in self.parts if not part.on_host)

    @property
    def host_bytes(self) -> int:
        """Bytes that one process keeps on the host instead."""
        return sum(part.bytes for part in self.parts if part.on_host)


@dataclass(frozen=True)
class MemoryPlan:
    """
    Memory of one process over an iteration of PPO.

    Args:
        settings ([`PlanSettings`]):
            What it was made from.
        moments (`tuple` of [`Moment`]):
            All of them, in order.
    """

    settings: PlanSettings
    moments: tuple[Moment, ...]

    def phase(self, name: str) -> Moment:
        """The highest moment of a phase."""
        return max((m for m in self.moments if m.phase == name), key=lambda m: m.bytes)

    @property
    def peak(self) -> Moment:
        """The highest moment of all."""
        return max(self.moments, key=lambda m: m.bytes)


def plan_memory(settings: PlanSettings) -> MemoryPlan:
    """
    Memory per role and phase of a PPO run, before anything of it is loaded.

    Weights, gradients and optimizer states are counted from the models' shapes; activations and the cache of keys and
    values by running the forward and backward passes on tensors without storage; the LM head, sampling and the rollout by
    formula ([`~rlhf_ext.planning.formulas`]). Not in it: the libraries themselves (on a GPU the CUDA context, about half a
    GiB), what the allocator loses to fragmentation, and what loading and saving take for a moment.

    Args:
        settings ([`PlanSettings`]):
            Models, sizes and launch.

    Returns:
        [`MemoryPlan`]: bytes of one process.
    """
    resident = resident_parts(settings)
    moments = [*_generate(settings), *_score(settings), *update_moments(settings)]
    return MemoryPlan(settings, tuple(Moment(phase, name, (*resident, *parts)) for phase, name, parts in moments))


def _generate(settings: PlanSettings) -> list[tuple[str, str, list[Part]]]:
    policy, batch = settings.policy, settings.rollout
    # PEFT generates through the base model, around the forward that accelerate wraps in mixed precision.
    autocast = settings.autocast if policy.adapter is None else None
    trace = trace_generation(policy, batch, settings.prompt_length, settings.completion_length, autocast)
    prompt_cache = trace.cache * settings.prompt_length // settings.length
    sampling = formulas.sampling_bytes(batch, policy, autocast or policy.dtype, settings.temperature)
    cache = Part("policy", "KV cache", trace.cache)
    weights = gathered_parts(settings, policy, "policy", whole=True)
    if not settings.on_gpu:
        weights.append(Part("policy", "merged weights", _merged_bytes(policy)))
    prefill = [Part("policy", "KV cache", prompt_cache), Part("policy", "activations", trace.prefill - prompt_cache)]
    return [
        ("generate", "reading the prompts", [*weights, *prefill]),
        ("generate", "last token's forward", [*weights, cache, Part("policy", "activations", trace.decode)]),
        ("generate", "drawing the last token", [*weights, cache, Part("policy", "sampling", sampling)]),
    ]


def _merged_bytes(policy: Architecture) -> int:
    """Copies of the layers that an adapter is merged into while a CPU samples."""
    layers = [] if policy.quantization else mergeable(model_on_meta(policy))
    return sum(layer.get_base_layer().weight.nbytes for layer in layers)


def _score(settings: PlanSettings) -> list[tuple[str, str, list[Part]]]:
    policy, batch, length = settings.policy, settings.micro_batch, settings.length
    trunk = trace_forward(policy, batch, length, settings.autocast)
    hidden = formulas.hidden_bytes(batch, length, policy)
    tokens = batch * settings.completion_length
    head = formulas.lm_head_forward_bytes(tokens, policy, settings.compute_dtype, settings.on_gpu)
    moments = []
    for role in ("policy", "reference") if settings.has_reference else ("policy",):
        weights = gathered_parts(settings, policy, role)
        moments.append(("score", f"{role}'s trunk", [*weights, Part(role, "activations", trunk)]))
        outputs = [Part(role, "activations", hidden), Part(role, "LM head", head)]
        moments.append(("score", f"{role}'s LM head", [*weights, *outputs]))
    critic = settings.critic_trunk
    if critic is not None:
        size = trace_forward(critic, batch, length, settings.autocast)
        parts = [Part("policy", "activations", hidden), Part("critic", "activations", size)]
        moments.append(("score", "critic's trunk", [*gathered_parts(settings, critic, "critic"), *parts]))
    for model in settings.reward_models:
        # An attached adapter is called through the policy, whose forward accelerate wraps in mixed precision.
        autocast = settings.autocast if model.attached else None
        size = trace_forward(model.architecture, min(settings.score_batch, settings.rollout), length, autocast)
        weights = gathered_parts(settings, model.architecture, "reward model")
        moments.append(("score", "reward model's forward", [*weights, Part("reward model", "activations", size)]))
    return moments
