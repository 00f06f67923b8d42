"""Memory of the four roles on one base.

    python benchmarks/memory.py                      # bytes of parameters against one model, SmolLM2-135M
    python benchmarks/memory.py --step llama-8b      # and the peak of one PPO step on a GPU, random weights, bf16
    python benchmarks/memory.py --step llama-8b --nf4

Policy, reference, critic and reward model are LoRA adapters of rank 16 on one base. The step is a whole one: a rollout of
`--batch` answers of `--tokens` tokens, scored by all roles, and one update with gradient checkpointing.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig, PreTrainedModel

from rlhf_ext import PPOConfig, PPOTrainer
from rlhf_ext.demo.model import bundled_model

RESULTS = Path(__file__).parent / "results" / "memory.json"
SHAPES = {
    "llama-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "vocab_size": 49152,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
PROMPT_TOKENS = 64


def lora(task_type: str = "CAUSAL_LM") -> LoraConfig:
    """The adapter of every role."""
    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type=task_type)


def save_reward_adapter(base: PreTrainedModel, name: str, folder: Path) -> str:
    """A random reward model, saved as an adapter of `base`, which is left as it was."""
    model = get_peft_model(base, lora())
    model.save_pretrained(folder)
    model.unload()
    weights = load_file(folder / "adapter_model.safetensors")
    weights["base_model.model.score.weight"] = torch.zeros(1, base.config.hidden_size)
    save_file(weights, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": name, "task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def make_trainer(
    model: str, tokenizer: Any, reward: str, folder: Path, quantization: Any = None, **settings: Any
) -> PPOTrainer:
    """A trainer with all four roles on one base."""
    prompts = Dataset.from_dict({"prompt": ["word " * PROMPT_TOKENS] * 64})
    args = PPOConfig(
        str(folder), kl_target=6.0, kl_unit="sequence", critic="adapter", report_to=[], save_strategy="no",
        num_iterations=1, max_steps=1, **settings,
    )  # fmt: skip
    return PPOTrainer(
        model, reward, args, prompts, processing_class=tokenizer, reward_processing_classes=tokenizer,
        quantization_config=quantization, peft_config=lora(),
    )  # fmt: skip


def bytes_of(model: torch.nn.Module) -> int:
    """Bytes of all distinct parameters."""
    return sum(p.numel() * p.element_size() for p in {p.data_ptr(): p for p in model.parameters()}.values())


def parameter_bytes(folder: Path) -> dict[str, float]:
    """Bytes of parameters for one model and for four roles, SmolLM2-135M in float32."""
    base = str(bundled_model(folder / "base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    one = bytes_of(model)
    reward = save_reward_adapter(model, base, folder / "reward")
    tokenizer.save_pretrained(reward)
    cpu = {"use_cpu": True, "bf16": False} if not torch.cuda.is_available() else {}
    trainer = make_trainer(base, tokenizer, reward, folder / "out", **cpu)
    four = bytes_of(trainer.model)
    return {"model": "SmolLM2-135M", "one_model": one, "four_roles": four, "ratio": four / one}


def step_peak(shape: str, nf4: bool, batch: int, tokens: int, folder: Path) -> dict[str, Any]:
    """Peak memory of one PPO step on the GPU, random weights."""
    tokenizer = AutoTokenizer.from_pretrained(bundled_model(folder / "base"))
    name = f"random-{shape}"
    config = LlamaConfig(
        **SHAPES[shape], pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    base = str(folder / name)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    reward = save_reward_adapter(model, base, folder / "reward")
    del model
    torch.cuda.empty_cache()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    trainer = make_trainer(
        base, tokenizer, reward, folder / "out", quantization if nf4 else None, per_device_train_batch_size=batch,
        max_completion_length=tokens, optim="adamw_8bit" if nf4 else "adamw_torch_fused",
        model_init_kwargs={"dtype": "bfloat16", "device_map": {"": 0}},
    )  # fmt: skip
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    return {
        "model": name,
        "precision": "nf4" if nf4 else "bf16",
        "batch": batch,
        "tokens": tokens,
        "gpu": torch.cuda.get_device_name(),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", choices=sorted(SHAPES), help="also measure a step of this size on the GPU")
    parser.add_argument("--nf4", action="store_true", help="the base in 4 bits")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    arguments = parser.parse_args()
    if arguments.step and not torch.cuda.is_available():
        parser.error("--step measures a GPU, and there is none")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.step:
            rows = step_peak(arguments.step, arguments.nf4, arguments.batch, arguments.tokens, Path(folder))
        else:
            rows = parameter_bytes(Path(folder))
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    kept["parameters" if not arguments.step else f"{rows['model']} {rows['precision']}"] = rows
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
