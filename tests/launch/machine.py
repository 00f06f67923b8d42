"""One process of a run over several machines: adds up the ranks, counted from 1, and tells what it was launched as."""

import json

import torch
from accelerate import Accelerator, PartialState
from on_cpu import prepare_for_cpu

prepare_for_cpu()
# As TrainingArguments does with `use_cpu`.
PartialState(cpu=True)
accelerator = Accelerator()
total = accelerator.reduce(torch.tensor(accelerator.process_index + 1), reduction="sum").item()
zero, fsdp = (getattr(accelerator.state, name, None) for name in ("deepspeed_plugin", "fsdp_plugin"))
seen = {
    "rank": accelerator.process_index,
    "world_size": accelerator.num_processes,
    "sum": total,
    "zero_stage": zero and zero.zero_stage,
    "fsdp_version": fsdp and fsdp.fsdp_version,
}
accelerator.wait_for_everyone()
accelerator.end_training()
print(json.dumps(seen), flush=True)
