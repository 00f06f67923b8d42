"""Runs a program on the CPU under any launcher, and writes down how each of its trainers ran.

    accelerate launch --config_file X.yaml tests/launch/on_cpu.py FACTS.json PROGRAM [ARGUMENTS ...]

Changed for the sake of the CPU alone: accelerate turns FSDP on where it finds only CPUs (it falls back to DDP without a
word), and DeepSpeed leaves out what it would compile for some minutes, its all-reduce over shared memory (Gloo does it)
and its Adam on offloaded parameters (PyTorch's does it).
"""

import importlib
import json
import os
import runpy
import sys
from pathlib import Path

import transformers
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType


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


def prepare_deepspeed(by_recipe: bool) -> None:
    import deepspeed

    # Its own name for the module is hidden by PyTorch's.
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    original = DeepSpeedPlugin.__post_init__

    def post_init(self):
        original(self)
        self.deepspeed_config["zero_force_ds_cpu_optimizer"] = False

    DeepSpeedPlugin.__post_init__ = post_init
    if by_recipe:
        # transformers starts DeepSpeed's communication before it loads a model on a GPU, and later on a CPU.
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)


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
        # ZeRO-3 keeps small parameters whole, and says so in `ds_persist`.
        "divided": sum(hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in wrapped.parameters()),
        "whole": sum(p.numel() > 0 for p in wrapped.parameters()),
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


def prepare_for_cpu() -> None:
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        turn_fsdp_on()
    by_recipe = "--deepspeed" in sys.argv
    if by_recipe or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        prepare_deepspeed(by_recipe)


def main() -> None:
    path, program = Path(sys.argv[1]), sys.argv[2]
    prepare_for_cpu()
    write_facts_after_training(path)
    sys.argv = sys.argv[2:]
    sys.path.insert(0, str(Path(program).parent))
    runpy.run_path(program, run_name="__main__")
    # The program has ended; what Gloo's threads do while the interpreter goes down can abort the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
