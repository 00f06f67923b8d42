"""The KL controller of a run: made from its settings and first rollout, or continued from a checkpoint."""

import os
from typing import Any

from ..kl_control import KLController, auto_beta, make_kl_controller
from .checkpoint import read_json, save_json
from .ppo_config import PPOConfig
from .statistics import SequenceTable

KL_CONTROL_FILE = "kl_control.json"


def new_controller(args: PPOConfig, table: SequenceTable, total_rollouts: int) -> KLController:
    """A controller for a run that begins, whose `beta="auto"` is read off the scores of the first rollout."""
    # Complete and consistent since `PPOConfig.__post_init__`.
    beta: Any = args.beta
    target: Any = args.kl_target
    unit: Any = args.kl_unit
    if beta == "auto":
        beta = auto_beta(table.score.std(correction=0).item(), target, unit, table.length.mean().item())
    return _controller(args, beta, total_rollouts)


def save_controller(controller: KLController, folder: str) -> None:
    """Write the controller's state to a checkpoint."""
    save_json(controller.state_dict(), os.path.join(folder, KL_CONTROL_FILE))


def restored_controller(args: PPOConfig, total_rollouts: int, folder: str) -> KLController:
    """The controller of a checkpoint."""
    state = read_json(os.path.join(folder, KL_CONTROL_FILE))
    controller = _controller(args, state["beta"], total_rollouts)
    controller.load_state_dict(state)
    return controller


def _controller(args: PPOConfig, beta: float, total_rollouts: int) -> KLController:
    kind: Any = args.kl_controller
    unit: Any = args.kl_unit
    return make_kl_controller(kind, beta=beta, target=args.kl_target, unit=unit, total_rollouts=total_rollouts)
