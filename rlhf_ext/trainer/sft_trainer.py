"""TRL's supervised fine-tuning with what our trainers do with the Hub."""

from pathlib import Path
from typing import Any

import trl
from accelerate.utils import is_peft_model
from peft import PeftModel
from transformers import PreTrainedModel

from .hub import LOADING_HEADING, Card, HubTrainer
from .model_card import loading_code, named, package_versions, recipe, write_curves
from .repositories import check_trained_model
from .sft_config import SFTConfig

_PANELS = {
    "loss": "loss",
    "mean_token_accuracy": "accuracy of the next token",
    "eval_loss": "loss on the held-out texts",
    "entropy": "entropy, nats per token",
}


class SFTTrainer(HubTrainer, trl.SFTTrainer):
    r"""
    [`~trl.SFTTrainer`] whose pushes are safe to fail, and whose model card says what the run recorded.

    Training, data and arguments are TRL's. What differs from the parent is what `save_model`, `push_to_hub` and
    `create_model_card` do: everything is saved before the network is touched, and a push that fails raises a
    [`~rlhf_ext.trainer.hub.PushError`] with the command that retries it.

    The arguments are those of [`~trl.SFTTrainer`]. With `args`, a model that cannot be read is named before anything
    is loaded.

    Example:

    ```python
    >>> args = SFTConfig("policy", push_to_hub=True, hub_model_id="me/policy")
    >>> trainer = SFTTrainer("Qwen/Qwen2.5-0.5B", args, train_dataset=conversations)
    >>> trainer.train()
    >>> trainer.push_to_hub()
    ```
    """

    _tag_names = ("trl", "rlhf-ext", "sft")
    args: SFTConfig

    def __init__(
        self, model: str | PreTrainedModel | PeftModel, args: SFTConfig | None = None, *more: Any, **named: Any
    ):
        if args is not None:
            check_trained_model(model, args)
        super().__init__(model, args, *more, **named)

    def _card(self) -> Card:
        is_adapter = is_peft_model(self.model)
        base = str(getattr(self.model.config, "_name_or_path", "") or "")
        is_chat = bool(getattr(self.processing_class, "chat_template", None))
        trusts = bool((self.args.model_init_kwargs or {}).get("trust_remote_code"))
        sections = [
            f"{'An adapter of' if is_adapter else 'A fine-tuned version of'} {named(base)}, by supervised fine-tuning with "
            f"rlhf-ext on [TRL](https://github.com/huggingface/trl). Step {self.state.global_step} of "
            f"{self.state.max_steps}.",
            f"{LOADING_HEADING}\n\n{loading_code(self._repository, is_adapter, is_chat, trusts)}",
            write_curves(Path(self.args.output_dir), self.state.log_history, _PANELS, {}),
            f"## Recipe\n\nSettings that differ from the defaults of `SFTConfig`.\n\n{recipe(self.args)}",
            "## Limits\n\n- It imitates the texts that it was trained on, errors and all. Nothing was tested here but what "
            "this card shows.",
        ]
        metadata = {**({"library_name": "peft"} if is_adapter else {}), "pipeline_tag": "text-generation"}
        return Card(metadata, [part for part in sections if part], package_versions())
