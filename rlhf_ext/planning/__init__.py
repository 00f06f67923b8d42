"""Memory of a PPO run, told from the config of its models before anything is loaded."""

from .architecture import Architecture
from .plan import MemoryPlan, Moment, plan_memory
from .resident import Part
from .settings import PlanSettings, RewardModel

__all__ = ["Architecture", "MemoryPlan", "Moment", "Part", "PlanSettings", "RewardModel", "plan_memory"]
