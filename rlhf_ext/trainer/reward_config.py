"""Settings of the reward trainer."""

from dataclasses import dataclass, field

import trl


@dataclass
class RewardConfig(trl.RewardConfig):
    """
    Settings of [`RewardTrainer`]: those of [`~trl.RewardConfig`], with the same defaults, and the ones below.

    Args:
        report_card (`bool`, *optional*, defaults to `True`):
            Make a report card on the `eval_dataset` at the end of training. It costs one pass over that dataset.
        calibration_bins (`int`, *optional*, defaults to `10`):
            Number of bins of the report card's reliability table.

    Raises:
        `ValueError`: for `calibration_bins` below 1.
    """

    report_card: bool = field(
        default=True,
        metadata={"help": "Make a report card on the eval_dataset at the end of training (one pass over it)."},
    )
    calibration_bins: int = field(
        default=10, metadata={"help": "Number of bins of the report card's reliability table."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration_bins < 1:
            raise ValueError(f"calibration_bins must be at least 1, got {self.calibration_bins}")
