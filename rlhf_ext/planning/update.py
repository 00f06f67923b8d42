"""The moments of an optimizer step at which memory may be highest."""

from dataclasses import dataclass

from . import formulas
from .architecture import Architecture, lm_head_of
from .resident import Part, gathered_parts, partitioned, trained_parameters
from .settings import PlanSettings
from .trace import UpdateTrace, trace_update

NOTHING = UpdateTrace(0, 0, 0, 0)


@dataclass(frozen=True)
class _Update:
    """Everything that the moments of one update are made from."""

    settings: PlanSettings
    trace: UpdateTrace
    critic_trace: UpdateTrace
    weights: tuple[Part, ...]
    saved_by_heads: tuple[Part, ...]
    gradients: dict[str, int]

    @property
    def accumulates(self) -> bool:
        """Whether gradients are there before the backward pass, so that new ones are made beside them."""
        return self.settings.accumulates or self.settings.zero_stage >= 2

    def moment(self, name: str, so_far: dict[str, int], *parts: Part) -> tuple[str, str, list[Part]]:
        """A moment, given the gradients that the backward pass has made so far."""
        if self.settings.zero_stage >= 2:
            so_far = {role: partitioned(size, self.settings, 2) for role, size in self.gradients.items()}
        elif self.accumulates:
            so_far = self.gradients
        return (
            "update",
            name,
            [*self.weights, *(Part(role, "gradients", size) for role, size in so_far.items()), *parts],
        )


def scored_tokens(settings: PlanSettings) -> int:
    """Positions that the fused LM head scores in the update: those with a label."""
    return settings.update_batch * settings.completion_length


def update_moments(settings: PlanSettings) -> list[tuple[str, str, list[Part]]]:
    """
    Phase, name and additional parts of each moment.

    Forward: the policy's trunk, the LM head, then the critic's trunk where it has one. Backward: the other way round,
    since autograd runs first what came last.
    """
    policy, critic = settings.policy, settings.critic_trunk
    weights = gathered_parts(settings, policy, "policy")
    if critic is not None:
        weights += gathered_parts(settings, critic, "critic")
    update = _Update(
        settings,
        _trace(settings, policy),
        _trace(settings, critic) if critic is not None else NOTHING,
        tuple(weights),
        _saved_by_heads(settings),
        {role: formulas.gradient_bytes(p) for role, p in trained_parameters(settings).items()},
    )
    moments = [*_forward(update), *_lm_head_backward(update), *_trunk_backward(update)]
    return [*moments, *_critic(update)] if critic is not None else moments


def _forward(update: _Update) -> list[tuple[str, str, list[Part]]]:
    settings, trace = update.settings, update.trace
    head = formulas.lm_head_forward_bytes(
        scored_tokens(settings), settings.policy, settings.compute_dtype, settings.on_gpu
    )
    kept = Part("policy", "activations", trace.saved)
    return [
        update.moment("policy's trunk, forward", {}, Part("policy", "activations", trace.forward)),
        update.moment("LM head, forward", {}, kept, Part("policy", "LM head", head)),
    ]


def _lm_head_backward(update: _Update) -> list[tuple[str, str, list[Part]]]:
    """The value head's part of the gradient of the hidden states is there already."""
    settings = update.settings
    policy, tokens = settings.policy, scored_tokens(settings)
    head = formulas.lm_head_backward_bytes(tokens, policy, settings.compute_dtype, settings.on_gpu)
    kept = Part(
        "policy",
        "activations",
        update.trace.saved + formulas.hidden_bytes(settings.update_batch, settings.length, policy),
    )
    own = _head_gradient(update)
    so_far = {"policy": own, "critic": update.gradients["critic"]}
    beside = Part("policy", "gradients", own if update.accumulates else 0)
    return [
        update.moment(
            "LM head, backward", so_far, kept, *update.saved_by_heads, Part("policy", "LM head", head), beside
        )
    ]


def _trunk_backward(update: _Update) -> list[tuple[str, str, list[Part]]]:
    """The LM head's gradient waits beside the others until that of the embedding comes, where the two are one weight."""
    trace, total, own = update.trace, update.gradients, _head_gradient(update)
    _, tied = lm_head_of(update.settings.policy)
    so_far = {"policy": min(total["policy"], own + trace.gradients_at_peak), "critic": total["critic"]}
    waiting = Part("policy", "gradients", own if tied and update.accumulates else 0)
    embedding = Part("policy", "gradients", own if tied else 0)
    return [
        update.moment("policy's trunk, backward", so_far, Part("policy", "activations", trace.backward), waiting),
        update.moment("gradient of the embedding", total, embedding, waiting),
    ]


def _critic(update: _Update) -> list[tuple[str, str, list[Part]]]:
    kept = Part("policy", "activations", update.trace.saved)
    trace = update.critic_trace
    forward = Part("critic", "activations", trace.forward)
    backward = Part("critic", "activations", trace.backward)
    so_far = {"critic": trace.gradients_at_peak}
    return [
        update.moment("critic's trunk, forward", {}, kept, *update.saved_by_heads, forward),
        update.moment("critic's trunk, backward", so_far, kept, *update.saved_by_heads, backward),
    ]


def _head_gradient(update: _Update) -> int:
    trained, _ = lm_head_of(update.settings.policy)
    return formulas.lm_head_gradient_bytes(update.settings.policy) if trained else 0


def _saved_by_heads(settings: PlanSettings) -> tuple[Part, ...]:
    policy, positions = settings.policy, settings.update_batch * (settings.length - 1)
    lm_head = formulas.lm_head_saved_bytes(scored_tokens(settings), policy, settings.compute_dtype)
    value_head = formulas.value_head_saved_bytes(positions, settings.critic_trunk or policy)
    return Part("policy", "LM head", lm_head), Part("critic", "activations", value_head)


def _trace(settings: PlanSettings, architecture: Architecture) -> UpdateTrace:
    return trace_update(
        architecture,
        settings.update_batch,
        settings.length,
        settings.autocast,
        settings.gradient_checkpointing,
        settings.accumulates,
    )
