"""RLHF with PPO for the Hugging Face stack.

Names are loaded on first use, so that `import rlhf_ext` costs neither torch nor trl.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .notices import hide_missing_kernels
from .version import __version__

if TYPE_CHECKING:
    from .cli.exits import run_program
    from .diagnostics import diagnose
    from .kl_control import KLMeasurement, auto_beta, make_kl_controller
    from .migration import explain_old_names
    from .trainer.callbacks import DiagnosticsCallback
    from .trainer.data import load_data
    from .trainer.hub import PushError, push
    from .trainer.launch import check_saves_weights
    from .trainer.policy import merge_adapter
    from .trainer.ppo_config import PPOConfig
    from .trainer.ppo_trainer import PPOTrainer
    from .trainer.recipe import RecipeParser
    from .trainer.reward_config import RewardConfig
    from .trainer.reward_trainer import RewardTrainer
    from .trainer.sft_config import SFTConfig
    from .trainer.sft_trainer import SFTTrainer

_MODULE_OF = {
    "DiagnosticsCallback": ".trainer.callbacks",
    "KLMeasurement": ".kl_control",
    "PPOConfig": ".trainer.ppo_config",
    "PPOTrainer": ".trainer.ppo_trainer",
    "PushError": ".trainer.hub",
    "RecipeParser": ".trainer.recipe",
    "RewardConfig": ".trainer.reward_config",
    "RewardTrainer": ".trainer.reward_trainer",
    "SFTConfig": ".trainer.sft_config",
    "SFTTrainer": ".trainer.sft_trainer",
    "auto_beta": ".kl_control",
    "check_saves_weights": ".trainer.launch",
    "diagnose": ".diagnostics",
    "explain_old_names": ".migration",
    "load_data": ".trainer.data",
    "make_kl_controller": ".kl_control",
    "merge_adapter": ".trainer.policy",
    "push": ".trainer.hub",
    "run_program": ".cli.exits",
}

__all__ = [
    "DiagnosticsCallback",
    "KLMeasurement",
    "PPOConfig",
    "PPOTrainer",
    "PushError",
    "RecipeParser",
    "RewardConfig",
    "RewardTrainer",
    "SFTConfig",
    "SFTTrainer",
    "__version__",
    "auto_beta",
    "check_saves_weights",
    "diagnose",
    "explain_old_names",
    "load_data",
    "make_kl_controller",
    "merge_adapter",
    "push",
    "run_program",
]

# Before anything of ours imports peft, trl or bitsandbytes.
hide_missing_kernels()


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
