"""The other side: PPOTrainer of TRL 1.12, run by an interpreter that has it (`python -m benchmarks.speed.trl_112 SPEC`)."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from .recorder import Recorder


def with_readout(ids: Any, pad: int, readout: list[int]) -> Any:
    """Rows that end with what the reward model was trained to read last, padded on the left."""
    rows = [row[row != pad].tolist() + readout for row in ids]
    width = max(map(len, rows))
    return torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=ids.device)


def record(recorder: Recorder, tokenizer: Any, spec: dict[str, Any]) -> type[PPOTrainer]:
    """The trainer, its phases marked where it calls the functions of its module."""
    generate, forward, score = ppo_trainer.batch_generation, ppo_trainer.forward, ppo_trainer.get_reward
    seen: dict[str, Any] = {}

    def batch_generation(model: Any, queries: Any, size: int, pad: int, config: Any) -> Any:
        recorder.begin("generate")
        outputs = generate(model, queries, size, pad, config)
        recorder.begin("score")
        seen["prompts"] = (queries != pad).sum(1).tolist()
        seen["completions"], seen["texts"] = [], []
        return outputs

    def marked_forward(*args: Any) -> Any:
        if torch.is_grad_enabled() and recorder.phase == "score":
            recorder.begin("update")
        return forward(*args)

    def get_reward(model: Any, ids: Any, pad: int, context: int) -> Any:
        if model is not seen["reward"]:
            return score(model, ids, pad, context)
        # Answers cut at their end.
        answers = [row[row != pad] for row in ids[:, context:]]
        seen["completions"] += map(len, answers)
        if spec["keeps_texts"]:
            seen["texts"] += tokenizer.batch_decode(answers, skip_special_tokens=True)
        if spec["readout"]:
            ids = with_readout(ids, pad, spec["readout"])
            # The score is read before the first padding after the context: at the last token.
            context = ids.size(1) - 1
        return score(model, ids, pad, context)

    class RecordedTrainer(PPOTrainer):
        """Ends a rollout where the trainer logs it."""

        def train(self) -> None:
            seen["reward"] = self.reward_model
            super().train()

        def log(self, logs: Any, *args: Any, **kwargs: Any) -> None:
            super().log(logs, *args, **kwargs)
            recorder.count(seen["prompts"], seen["completions"])
            if spec["keeps_texts"]:
                recorder.note(texts=seen["texts"], kl=logs["objective/kl"])
            recorder.finish()

    ppo_trainer.batch_generation = batch_generation
    ppo_trainer.forward = marked_forward
    ppo_trainer.get_reward = get_reward
    return RecordedTrainer


def main() -> None:
    """Train for the rollouts of the specification."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    recorder = Recorder(spec["cuda"])
    tokenizer = AutoTokenizer.from_pretrained(spec["policy"], padding_side="left")
    trainer_class = record(recorder, tokenizer, spec)
    dtype = {"dtype": getattr(torch, spec["dtype"])}
    model = AutoModelForCausalLM.from_pretrained(spec["policy"], **dtype)
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(spec["reward"], num_labels=1, **dtype) for _ in range(2)
    )
    if isinstance(spec["prompts"][0], str):
        ids = tokenizer(spec["prompts"])["input_ids"]
    else:
        chat = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
        ids = tokenizer.apply_chat_template(spec["prompts"], **chat)["input_ids"]
    rank = spec["lora"]
    args = PPOConfig(
        output_dir=spec["output_dir"],
        total_episodes=spec["rollouts"] * spec["sequences"],
        # It steps after so many calls as accumulate, whatever a mini-batch is: with several of them none may accumulate.
        per_device_train_batch_size=spec["micro_batch"] * spec["mini_batches"],
        gradient_accumulation_steps=spec["sequences"] // (spec["micro_batch"] * spec["mini_batches"]),
        num_mini_batches=spec["mini_batches"],
        num_ppo_epochs=spec["epochs"],
        response_length=spec["completion"],
        stop_token=None if spec["fixed"] else "eos",
        temperature=1.0,
        kl_coef=spec["beta"],
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant",
        num_sample_generations=0,
        seed=spec["seed"],
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not spec["cuda"],
        bf16=spec["cuda"],
        gradient_checkpointing=spec["checkpointing"],
    )
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = trainer_class(
        args=args,
        processing_class=tokenizer,
        model=model,
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": ids}),
        peft_config=lora if rank else None,
    )
    trainer.train()


if __name__ == "__main__":
    main()
