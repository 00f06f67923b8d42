"""Align a language model with PPO against a reward model.

    rlhf-ext ppo --config recipe.yaml
    accelerate launch trainers/ppo.py --config recipe.yaml

The recipe holds settings of the classes that `main` parses; each can be given on the command line too.
`model_name_or_path` and `reward_model` are Hub ids or local folders (several reward models as a list or separated by
commas, weighted by `reward_weights`), `dataset_name` a Hub id, a local folder or a JSON lines file with the column
`prompt`. On `dataset_test_split`, where one is given, score, KL, length and EOS rate are measured after training; of a
single file it can be a slice: `dataset_train_split: "train[:90%]"` and `dataset_test_split: "train[90%:]"`. Rewards in
Python are left out: write your own program around `PPOTrainer` for them.

Ctrl-C and SIGTERM save a checkpoint before the program ends; `--resume_from_checkpoint true` goes on from the newest one.
"""

import signal
import sys
from dataclasses import dataclass, field

from transformers.utils import find_adapter_config_file
from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from rlhf_ext import (
    PPOConfig,
    PPOTrainer,
    RecipeParser,
    explain_old_names,
    load_data,
    merge_adapter,
    push,
    run_program,
)


@dataclass
class PPOScriptArguments(ScriptArguments):
    """TRL's data arguments, and the models beside the policy."""

    reward_model: list[str] | None = field(
        default=None, metadata={"help": "Hub id or folder of the reward model; several as a list or with commas."}
    )
    critic_model: str | None = field(
        default=None, metadata={"help": "What the critic starts from, such as the folder `critic` of an earlier run."}
    )
    merge: bool = field(
        default=False, metadata={"help": "Also save the policy with its adapter merged, in the folder `merged`."}
    )
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Held-out prompts to evaluate on after training; none by default."}
    )

    def __post_init__(self) -> None:
        # A recipe gives a string or a list, the command line always a list.
        given = [self.reward_model] if isinstance(self.reward_model, str) else self.reward_model or []
        self.reward_model = [path.strip() for item in given for path in item.split(",") if path.strip()]


def main() -> None:
    parser = RecipeParser((PPOScriptArguments, PPOConfig, ModelConfig), __doc__, explain_old_names)
    script_args, training_args, model_args = parser.parse_args_and_config()
    if not model_args.model_name_or_path:
        parser.error("model_name_or_path is not set: give a Hub id or a local folder")
    is_adapter = model_args.use_peft or find_adapter_config_file(model_args.model_name_or_path) is not None
    if script_args.merge and not is_adapter:
        parser.error(
            "merge merges an adapter, but the policy is trained as a whole model: leave merge out, or set use_peft"
        )
    if not script_args.reward_model:
        parser.error("reward_model is not set: give a Hub id or a local folder")

    # Data
    name, config, streaming = script_args.dataset_name, script_args.dataset_config, script_args.dataset_streaming
    train_dataset = load_data(name, script_args.dataset_train_split, config, streaming)
    eval_dataset = None
    if script_args.dataset_test_split:
        eval_dataset = load_data(name, script_args.dataset_test_split, config, streaming)

    # Models
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    trainer = PPOTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=script_args.reward_model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
        critic_model=script_args.critic_model,
    )

    # Train, measure and save. Ctrl-C does what SIGTERM does: the trainer saves a checkpoint before it ends.
    signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    # The push comes last, with all that belongs to the model.
    trainer.save_model(training_args.output_dir, _internal_call=training_args.push_to_hub)
    trainer.accelerator.print(f"Policy saved to {training_args.output_dir}")
    merged = f"{training_args.output_dir}/merged" if script_args.merge else None
    if merged and trainer.is_world_process_zero():
        merge_adapter(training_args.output_dir, merged, trust_remote_code=training_args.trust_remote_code)
        print(f"Merged policy saved to {merged}")
    if eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    problem = push(trainer, script_args.dataset_name, merged) if training_args.push_to_hub else None
    # Gloo's threads must have let go of the last tensors before the process group is taken down (pytorch #56297).
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    if problem:
        sys.exit(problem)


if __name__ == "__main__":
    run_program(main)
