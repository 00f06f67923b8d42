"""Settings of the reward trainer."""

from dataclasses import dataclass, field

import trl

from .secrets import TokenFree


@dataclass(repr=False)
class RewardConfig(TokenFree, trl.RewardConfig):
    """
    Settings of [`RewardTrainer`]: those of [`~trl.RewardConfig`], with the same defaults, and the ones below.

    Args:
        pad_token (`str`, *optional*):
            Padding token: one of the tokenizer's vocabulary, other than EOS. Defaults to the tokenizer's own. Llama 3.1
            has none set, and `<|finetune_right_pad_id|>` in its vocabulary.
        report_card (`bool`, *optional*, defaults to `True`):
            Make a report card on the `eval_dataset` at the end of training. It costs one pass over that dataset.
        calibration_bins (`int`, *optional*, defaults to `10`):
            Number of bins of the report card's reliability table.

    Raises:
        `ValueError`: for `calibration_bins` below 1.
    """

    # TRL deprecates this setting in favour of a tokenizer from Python, which a recipe cannot give.
    pad_token: str | None = field(
        default=None, metadata={"help": "Padding token, other than EOS; by default the tokenizer's own."}
    )
    report_card: bool = field(
        default=True,
        metadata={"help": "Make a report card on the eval_dataset at the end of training (one pass over it)."},
    )
    calibration_bins: int = field(
        default=10, metadata={"help": "Number of bins of the report card's reliability table."}
    )

    def __post_init__(self) -> None:
        pad_token, self.pad_token = self.pad_token, None
        super().__post_init__()
        self.pad_token = pad_token
        if self.calibration_bins < 1:
            raise ValueError(f"calibration_bins must be at least 1, got {self.calibration_bins}")
