"""Runs a program on the CPU under any launcher, and writes down how each of its trainers ran.

    accelerate launch --config_file X.yaml tests/launch/on_cpu.py FACTS.json PROGRAM [ARGUMENTS ...]

Two things are changed, for the sake of the CPU alone: accelerate turns FSDP on where it finds only CPUs (it falls back
to DDP without a word), and DeepSpeed leaves its all-reduce over shared memory, a minute of compiling, to Gloo.
"""

import importlib
import json
import os
import runpy
import sys
from pathlib import Path

import transformers
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def turn_fsdp_on() -> None:
    original = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self.mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self.mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


def leave_shared_memory_out() -> None:
    # Its own name for the module is hidden by PyTorch's.
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None


def facts(trainer: transformers.Trainer) -> dict:
    accelerator, wrapped = trainer.accelerator, trainer.model_wrapped
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return {
        "trainer": type(trainer).__name__,
        "world_size": accelerator.num_processes,
        "distributed_type": accelerator.distributed_type.value,
        "wrapped": [cls.__name__ for cls in type(wrapped).__mro__],
        "zero_stage": None if plugin is None else wrapped.zero_optimization_stage(),
        "offload": None if plugin is None else [plugin.offload_optimizer_device, plugin.offload_param_device],
        "sharded_parameters": sum(hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in wrapped.parameters()),
        "steps": trainer.state.global_step,
    }


def write_facts_after_training(path: Path) -> None:
    original, collected = transformers.Trainer.train, []

    def train(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        collected.append(facts(self))
        if self.accelerator.process_index == 0:
            path.write_text(json.dumps(collected))
        return output

    transformers.Trainer.train = train


def main() -> None:
    path, program = Path(sys.argv[1]), sys.argv[2]
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        turn_fsdp_on()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" or "--deepspeed" in sys.argv:
        leave_shared_memory_out()
    write_facts_after_training(path)
    sys.argv = sys.argv[2:]
    sys.path.insert(0, str(Path(program).parent))
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
