"""Supervised fine-tuning of a language model: the policy that RLHF starts from.

    rlhf-ext sft --config recipe.yaml
    accelerate launch trainers/sft.py --config recipe.yaml

The recipe holds settings of trl's ScriptArguments, SFTConfig, ModelConfig and DatasetMixtureConfig; each can be given
on the command line too. `model_name_or_path` is a Hub id or a local folder, `dataset_name` a Hub id, a local folder or
a JSON lines file with the columns `prompt` and `completion`, `messages` or `text`.
"""

import sys

from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)

from rlhf_ext import RecipeParser, SFTConfig, SFTTrainer, check_saves_weights, load_data, push, run_program


def main() -> None:
    parser = RecipeParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig), __doc__)
    script_args, training_args, model_args, mixture_args = parser.parse_args_and_config()
    if not model_args.model_name_or_path:
        parser.error("model_name_or_path is not set: give a Hub id or a local folder")
    check_saves_weights(training_args)
    wants_eval = training_args.eval_strategy != "no"

    # Data
    if mixture_args.datasets:
        dataset = get_dataset(mixture_args)
        train_dataset, eval_dataset = dataset["train"], dataset["test"] if wants_eval else None
    else:
        name, config, streaming = script_args.dataset_name, script_args.dataset_config, script_args.dataset_streaming
        train_dataset = load_data(name, script_args.dataset_train_split, config, streaming)
        eval_dataset = load_data(name, script_args.dataset_test_split, config, streaming) if wants_eval else None

    # Model
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    trainer = SFTTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )

    # Train and save
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    # The push comes last.
    trainer.save_model(training_args.output_dir, _internal_call=training_args.push_to_hub)
    trainer.accelerator.print(f"Model saved to {training_args.output_dir}")
    problem = push(trainer, script_args.dataset_name) if training_args.push_to_hub else None
    # Gloo's threads must have let go of the last tensors before the process group is taken down (pytorch #56297).
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    if problem:
        sys.exit(problem)


if __name__ == "__main__":
    run_program(main)
