"""From TRL's old PPO to this one. Standard library only; no script is run."""

from .behaviour import BEHAVIOUR, DEFAULTS, STEP_LOOP, TRAIN
from .names import CLASSES, METHODS, METRICS, OLD_ARGUMENTS, OLD_NAMES, Change, explain_old_names
from .report import as_data, as_markdown, as_text
from .script import Finding, Migration, read_script

__all__ = [
    "BEHAVIOUR",
    "CLASSES",
    "DEFAULTS",
    "METHODS",
    "METRICS",
    "OLD_ARGUMENTS",
    "OLD_NAMES",
    "STEP_LOOP",
    "TRAIN",
    "Change",
    "Finding",
    "Migration",
    "as_data",
    "as_markdown",
    "as_text",
    "explain_old_names",
    "read_script",
]
