"""TRL's supervised fine-tuning with what our trainers do with the Hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import trl
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from transformers import (
    DataCollator,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)

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

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Language model to train: a Hub id, a folder, or an instance.
        args ([`SFTConfig`], *optional*):
            Settings. With them, a model that cannot be read is named before anything is loaded.
        data_collator ([`~transformers.DataCollator`], *optional*):
            What makes a batch of examples; by default TRL's, with padding or packing as `args` say.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Texts (column `text`), conversations (`messages`), or prompts with their answers (`prompt` and `completion`).
        eval_dataset ([`~datasets.Dataset`] or a `dict` of them, *optional*):
            Held-out texts in the same form.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`], *optional*):
            Tokenizer; by default the one saved with the model.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Train an adapter of the model, not the whole.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Load the model in 4 or 8 bits, where `model` is an id or a folder.
        formatting_func (`Callable[[dict], str]`, *optional*):
            Makes the text of a row that has none.
        compute_loss_func, compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics:
            As in [`~trl.SFTTrainer`].

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
        self,
        model: str | PreTrainedModel | PeftModel,
        args: SFTConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        compute_loss_func: Callable[..., Any] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[Any], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[..., Any] | None = None,
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
        formatting_func: Callable[[dict[str, Any]], str] | None = None,
    ):
        if args is not None:
            check_trained_model(model, args)
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            compute_loss_func,
            compute_metrics,
            callbacks,
            optimizers,
            optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics,
            quantization_config,
            peft_config,
            formatting_func,
        )

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
