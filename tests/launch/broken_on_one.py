"""A run whose loss is NaN on the last process alone, at the steps 2, 3 and 5 of 6.

accelerate launch --config_file X.yaml tests/launch/on_cpu.py FACTS.json tests/launch/broken_on_one.py POLICY FOLDER
"""

import json
import math
import sys
from pathlib import Path

import scripted
import torch
from transformers import TrainerCallback

from rlhf_ext import PPOTrainer

BROKEN = (2, 3, 5)


class Watch(TrainerCallback):
    """A number that stands for all weights, after every step."""

    def __init__(self):
        self.sums = []

    def on_step_end(self, args, state, control, model, **_):
        local = (p.to_local() if hasattr(p, "to_local") else p for p in model.parameters())
        self.sums.append(sum(p.detach().double().abs().sum().item() for p in local))


class Trainer(PPOTrainer):
    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        last = self.args.process_index == self.args.world_size - 1
        return loss * math.nan if last and self.state.global_step + 1 in BROKEN else loss


def main(policy: str, folder: Path) -> None:
    args = scripted.settings(folder, peft=False, max_steps=6, save_steps=100, gradient_accumulation_steps=1)
    watch = Watch()
    trainer = Trainer(policy, scripted.score, args, scripted.prompts(), callbacks=[watch])
    try:
        trainer.train()
    except RuntimeError as error:
        written = {"error": str(error), "sums": watch.sums, "step": trainer.state.global_step}
        (folder / f"run-{args.process_index}.json").write_text(json.dumps(written))
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
