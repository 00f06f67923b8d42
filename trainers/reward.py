"""Train a reward model on preference pairs, and measure it on held-out ones.

    rlhf-ext reward --config recipe.yaml
    accelerate launch trainers/reward.py --config recipe.yaml

The recipe holds settings of the classes that `main` parses; each can be given on the command line too.
`model_name_or_path` is a Hub id or a local folder, `dataset_name` a Hub id, a local folder or a JSON lines file with
the columns `prompt` (optional), `chosen` and `rejected`, or `prompt` and `completions`, a list of answers with the best
first. The report card is made on `dataset_test_split`, which of a
single file can be a slice: `dataset_train_split: "train[:90%]"` and `dataset_test_split: "train[90%:]"`; with
`dataset_test_split: null` nothing is held out and there is no report card.
"""

import sys
from dataclasses import dataclass, field

from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)

from rlhf_ext import RecipeParser, RewardConfig, RewardTrainer, load_data, push, run_program


@dataclass
class RewardScriptArguments(ScriptArguments):
    """TRL's data arguments, and where the completions come from on which the scores' mean and spread are measured."""

    reference_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Reference completions; by default the chosen and rejected ones of the held-out pairs."},
    )
    reference_dataset_split: str = field(default="train", metadata={"help": "Split of the reference completions."})


def main() -> None:
    parser = RecipeParser((RewardScriptArguments, RewardConfig, ModelConfig, DatasetMixtureConfig), __doc__)
    # An adapter with another task type would not train and not save the score head.
    parser.set_defaults(lora_task_type="SEQ_CLS")
    script_args, training_args, model_args, mixture_args = parser.parse_args_and_config()
    if not model_args.model_name_or_path:
        parser.error("model_name_or_path is not set: give a Hub id or a local folder")

    # Data
    if mixture_args.datasets:
        dataset = get_dataset(mixture_args)
        train_dataset, eval_dataset = dataset["train"], dataset.get("test")
    else:
        name, config, streaming = script_args.dataset_name, script_args.dataset_config, script_args.dataset_streaming
        train_dataset = load_data(name, script_args.dataset_train_split, config, streaming)
        eval_dataset = None
        if script_args.dataset_test_split:
            eval_dataset = load_data(name, script_args.dataset_test_split, config, streaming)
    reference_dataset = None
    if script_args.reference_dataset_name:
        reference_dataset = load_data(script_args.reference_dataset_name, script_args.reference_dataset_split)

    # Model
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    trainer = RewardTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        reference_dataset=reference_dataset,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )

    # Train, measure and save
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    if trainer.last_report_card is not None:
        trainer.accelerator.print(trainer.last_report_card.to_markdown())
    # The push comes last.
    trainer.save_model(training_args.output_dir, _internal_call=training_args.push_to_hub)
    trainer.accelerator.print(f"Model saved to {training_args.output_dir}")
    if trainer.last_report_card is not None:
        trainer.accelerator.print(f"Plots and mistakes: {training_args.output_dir}/reward_report.html")
    problem = push(trainer, script_args.dataset_name) if training_args.push_to_hub else None
    # Gloo's threads must have let go of the last tensors before the process group is taken down (pytorch #56297).
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    if problem:
        sys.exit(problem)


if __name__ == "__main__":
    run_program(main)
