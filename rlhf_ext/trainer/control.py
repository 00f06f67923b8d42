"""The KL controller of a run: made from its settings and first rollout, or continued from a checkpoint."""

import json
import os
from typing import Any

from ..kl_control import KLController, auto_beta, make_kl_controller
from .ppo_config import PPOConfig
from .statistics import SequenceTable

KL_CONTROL_FILE = "kl_control.json"


def controller_for(
    args: PPOConfig, table: SequenceTable, total_rollouts: int, state: dict[str, Any] | None
) -> KLController:
    """A new controller, whose `beta="auto"` is read off the scores of the first rollout, or the saved one."""
    # Complete and consistent since `PPOConfig.__post_init__`.
    kind: Any = args.kl_controller
    target: Any = args.kl_target
    unit: Any = args.kl_unit
    beta: Any = args.beta if state is None else state["beta"]
    if beta == "auto":
        spread, length = table.score.std(correction=0).item(), table.length.mean().item()
        beta = auto_beta(spread, target, unit, length)
    controller = make_kl_controller(kind, beta=beta, target=target, unit=unit, total_rollouts=total_rollouts)
    if state is not None:
        controller.load_state_dict(state)
    return controller


def save_controller(controller: KLController, folder: str) -> None:
    """Write the controller's state to a checkpoint."""
    with open(os.path.join(folder, KL_CONTROL_FILE), "w", encoding="utf-8") as file:
        json.dump(controller.state_dict(), file, indent=2)


def saved_controller(folder: str) -> dict[str, Any] | None:
    """The controller's state in a checkpoint; `None` where it holds none."""
    path = os.path.join(folder, KL_CONTROL_FILE)
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)
