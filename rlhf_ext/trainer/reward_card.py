"""The model card of a reward model: its report card, and how to use it."""

import json
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from datasets import Dataset
from trl.data_utils import is_conversational

from .hub import LOADING_HEADING, Card
from .model_card import named, package_versions, recipe, write_curves

PANELS = {
    "loss": "loss",
    "accuracy": "accuracy on the training pairs",
    "margin": "margin on the training pairs",
    "eval_accuracy": "accuracy on the held-out pairs",
}


def reward_card(trainer: Any) -> Card:
    """
    The card of a reward model; also writes its curves beside it.

    Args:
        trainer ([`RewardTrainer`]): On the main process.
    """
    is_adapter = is_peft_model(trainer.model)
    kind = "An adapter of" if is_adapter else "A fine-tuned version of"
    base = str(getattr(trainer.model.config, "_name_or_path", "") or "")
    card = trainer.last_report_card
    sections = [
        f"{kind} {named(base)} that scores answers: trained on preference pairs (Bradley-Terry) with rlhf-ext on "
        f"[TRL](https://github.com/huggingface/trl). Step {trainer.state.global_step} of {trainer.state.max_steps}.",
        f"{LOADING_HEADING}\n\n{_loading_code(trainer, is_adapter)}",
        card.to_markdown().strip() if card else "No report card: nothing was held out, or the run has not ended.",
        write_curves(Path(trainer.args.output_dir), trainer.state.log_history, PANELS, {}),
        f"## Recipe\n\nSettings that differ from the defaults of `RewardConfig`.\n\n{recipe(trainer.args)}",
        "## Limits\n\n- A score says which of two answers to one prompt is preferred; scores of different prompts, and "
        "their size, mean nothing by themselves.\n- It has the tastes and errors of whoever labelled the pairs. Answers "
        "unlike those it was trained on may be scored high for no reason, and a policy trained against it will find them.",
    ]
    library = {"library_name": "peft"} if is_adapter else {}
    metadata = {**library, "pipeline_tag": "text-classification"}
    return Card(metadata, [part for part in sections if part], package_versions())


def _loading_code(trainer: Any, is_adapter: bool) -> str:
    quoted = json.dumps(trainer._repository)
    trust = ", trust_remote_code=True" if trainer.args.trust_remote_code else ""
    if is_adapter:
        imports = "from peft import AutoPeftModelForSequenceClassification\nfrom transformers import AutoTokenizer\n"
        load = f"AutoPeftModelForSequenceClassification.from_pretrained({quoted}, num_labels=1{trust})"
    else:
        imports = "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
        load = f"AutoModelForSequenceClassification.from_pretrained({quoted}{trust})"
    return (
        f"```python\nimport torch\n{imports}\nmodel = {load}.eval()\n"
        f"tokenizer = AutoTokenizer.from_pretrained({quoted}{trust})\n{_encode(trainer)}"
        "with torch.no_grad():\n    print(model(**inputs).logits[0, 0].item())\n```\n\n"
        f"In PPO: `PPOTrainer(..., reward_funcs={quoted})`."
    )


def _encode(trainer: Any) -> str:
    data = trainer.train_dataset
    if not (isinstance(data, Dataset) and len(data) and "chosen" in data.column_names and is_conversational(data[0])):
        return 'inputs = tokenizer("Is it raining? No." + tokenizer.eos_token, return_tensors="pt")\n'
    return (
        'messages = [{"role": "user", "content": "Is it raining?"}, {"role": "assistant", "content": "No."}]\n'
        'inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)\n'
    )
