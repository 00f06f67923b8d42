"""Optimizer groups and learning rates of policy and critic."""

from functools import partial

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ..models.roles import CRITIC, belongs_to

IS_CRITIC = "is_critic"


def split_off_critic(optimizer: Optimizer, model: nn.Module, learning_rate: float | None) -> None:
    """
    Move the critic's parameters to groups of their own, after the policy's, with all other settings unchanged.

    Those that are in no group, as in an optimizer that was made before the critic, are added with its default settings.

    Args:
        optimizer (`torch.optim.Optimizer`):
            Optimizer that has not made a step.
        model (`torch.nn.Module`):
            The policy with its critic.
        learning_rate (`float`, *optional*):
            The critic's learning rate; by default the policy's.
    """
    trained = {id(p): p for name, p in model.named_parameters() if belongs_to(name, CRITIC) and p.requires_grad}
    groups = [{**group, "params": list(group["params"])} for group in optimizer.param_groups]
    known = {id(parameter) for group in groups for parameter in group["params"]}
    if not trained.keys() <= known:
        groups.append({**optimizer.defaults, "params": [p for key, p in trained.items() if key not in known]})
    optimizer.param_groups.clear()
    for is_critic in (False, True):
        for group in groups:
            parameters = [p for p in group["params"] if (id(p) in trained) == is_critic]
            rate = learning_rate if is_critic and learning_rate is not None else group["lr"]
            if parameters:
                optimizer.add_param_group({**group, "params": parameters, "lr": rate, IS_CRITIC: is_critic})


def hold_policy(scheduler: LRScheduler, steps: int, total_steps: int) -> LambdaLR:
    """
    The same schedule with the policy's learning rate at zero for the first steps.

    At zero the optimizer still gathers the moments of the policy's gradients. Were they kept from it instead, its bias
    correction would be over by the time the policy starts, and Adam's first steps up to six times too large.

    Args:
        scheduler (`torch.optim.lr_scheduler.LRScheduler`):
            A schedule by step.
        steps (`int`):
            Optimizer steps during which the policy stands still.
        total_steps (`int`):
            Planned optimizer steps of the run.

    Raises:
        ValueError: If the policy would never move, or the schedule is not a function of the step.
    """
    if steps >= total_steps:
        raise ValueError(
            f"critic_warmup_rollouts takes {steps} optimizer steps, but the run has {total_steps}: the policy would never "
            "move. Lower critic_warmup_rollouts, or raise max_steps or num_train_epochs."
        )
    if not isinstance(scheduler, LambdaLR):
        raise ValueError(
            f"critic_warmup_rollouts needs a learning-rate schedule by step, got {type(scheduler).__name__}. Set "
            "lr_scheduler_type to linear, cosine or constant."
        )
    groups = zip(scheduler.optimizer.param_groups, scheduler.lr_lambdas, strict=True)
    lambdas = [f if group.get(IS_CRITIC) else partial(_zero_before, steps, f) for group, f in groups]
    return LambdaLR(scheduler.optimizer, lambdas)


def scale_learning_rate(scheduler: LambdaLR, optimizer: Optimizer, factor: float, critic: bool) -> tuple[float, float]:
    """
    Multiply the learning rate of the critic or of the policy, from now on and whatever the schedule.

    Args:
        scheduler (`torch.optim.lr_scheduler.LambdaLR`):
            The schedule, whose base rates are scaled; they are part of its saved state.
        optimizer (`torch.optim.Optimizer`):
            With the groups that [`split_off_critic`] made.
        factor (`float`):
            What to multiply by.
        critic (`bool`):
            Whose rate.

    Returns:
        `tuple[float, float]`: the present rate of those groups, before and after.
    """
    chosen = [i for i, group in enumerate(optimizer.param_groups) if group.get(IS_CRITIC, False) == critic]
    before = optimizer.param_groups[chosen[0]]["lr"]
    for i in chosen:
        scheduler.base_lrs[i] *= factor
        optimizer.param_groups[i]["lr"] *= factor
    return before, optimizer.param_groups[chosen[0]]["lr"]


def _zero_before(first: int, factor, step: int) -> float:  # type: ignore[no-untyped-def]
    return 0.0 if step < first else factor(step)
