"""
What the Python of the pages stands in: tiny models in place of the named ones, few steps, and the names that a block uses
without making them.
"""

import ast
import builtins
import importlib
from pathlib import Path
from typing import Any

SMALL = {"use_cpu": True, "bf16": False, "max_steps": 1, "per_device_train_batch_size": 2, "report_to": []}
ONLINE = {**SMALL, "max_completion_length": 4}
# Settings of a class that a reader leaves at their defaults.
SETTINGS: dict[str, dict[str, Any]] = {
    # A rollout of eight: their scores must differ.
    "PPOConfig": {**ONLINE, "steps_per_generation": 4, "save_strategy": "steps", "save_steps": 1},
    "GRPOConfig": {**ONLINE, "num_generations": 2},
    "RLOOConfig": {**ONLINE, "num_generations": 2},
    "RewardConfig": {**SMALL, "max_length": 64},
    "SFTConfig": {**SMALL, "max_length": 64},
}
# Where a name comes from that a page uses without importing it.
SOURCES = {
    "BitsAndBytesConfig": "transformers",
    "GRPOConfig": "trl",
    "GRPOTrainer": "trl",
    "LoraConfig": "peft",
    "PPOConfig": "rlhf_ext",
    "PPOTrainer": "rlhf_ext",
    "RewardConfig": "rlhf_ext",
    "RewardTrainer": "rlhf_ext",
}
# What stands for `...` in a call.
ELLIPSIS = {
    "PPOTrainer": "model='MODEL', reward_funcs='REWARD', args=PPOConfig('aligned'), train_dataset=prompts",
    "GRPOTrainer": "model='MODEL', reward_funcs='REWARD', args=GRPOConfig('aligned'), train_dataset=prompts",
}


class Context:
    """
    Names for the blocks of one page, made when they are first used.

    Args:
        policy, reward, reward_adapter (`str`): Folders of tiny models.
    """

    def __init__(self, policy: str, reward: str, reward_adapter: str) -> None:
        self.texts = {
            "MODEL": policy,
            "REWARD": reward,
            "Qwen/Qwen2.5-0.5B-Instruct": policy,
            "Qwen/Qwen2.5-0.5B": policy,
            "meta-llama/Llama-3.1-8B-Instruct": policy,
            "my-reward-model": reward,
            "my-reward-adapter": reward_adapter,
            "aligned/checkpoint-500": "aligned/checkpoint-1",
        }
        self.names: dict[str, Any] = {"__name__": "page"}

    def run(self, text: str, place: str) -> None:
        """Run a block as a reader would, after the blocks before it."""
        tree = ast.parse(text, place)
        tree = ast.fix_missing_locations(_Smaller(self.texts).visit(tree))
        for name in sorted(_unmade(tree) - self.names.keys()):
            self.names[name] = self._made(name, place)
        exec(compile(tree, place, "exec"), self.names)

    def _made(self, name: str, place: str) -> Any:
        if name in SOURCES:
            return getattr(importlib.import_module(SOURCES[name]), name)
        maker = getattr(self, f"make_{name}", None)
        assert maker, f"{place} uses `{name}` without making it: complete the block, or add make_{name} to {__file__}"
        return maker()

    def make_prompts(self) -> Any:
        """Prompts of a training set."""
        from datasets import Dataset

        return Dataset.from_dict({"prompt": ["Write a haiku about rain.", "Name a colour."] * 8})

    make_held_out_prompts = make_prompts

    def make_pairs(self) -> Any:
        """Preference pairs."""
        from datasets import Dataset

        return Dataset.from_dict(
            {
                "prompt": ["Name a colour."] * 8,
                "chosen": [f"It is red {i}." for i in range(8)],
                "rejected": [f"No {i}." for i in range(8)],
            }
        )

    make_held_out = make_pairs

    def make_my_judge(self) -> Any:
        """A quality function."""
        return lambda completions, **_: [float(len(text)) for text in completions]

    def make_log(self) -> Any:
        """Rows of a log in canonical names."""
        return [{"score_mean": 0.01 * i, "kl_ref_seq": 0.1 * i, "beta": 0.1} for i in range(100)]

    def make_trainer(self) -> Any:
        """A trainer whose run has a checkpoint."""
        from rlhf_ext import PPOConfig, PPOTrainer

        model, reward = self.texts["MODEL"], self.texts["REWARD"]
        settings = {**SETTINGS["PPOConfig"], "max_steps": 2}
        trainer = PPOTrainer(model, reward, PPOConfig("aligned", **settings), self.make_prompts())
        trainer.train()
        return trainer


def make_log_files(folder: Path) -> None:
    """The folder that pages call `outputs/my-run`, with the log of a run."""
    import json

    run = folder / "outputs" / "my-run"
    run.mkdir(parents=True)
    rows = [{"step": i, "score_mean": 0.01 * i, "kl_ref_seq": 0.1 * i, "score_std": 1.0} for i in range(1, 101)]
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _unmade(tree: ast.Module) -> set[str]:
    """Names that are read and neither made in the block nor part of the language."""
    nodes = list(ast.walk(tree))
    made = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    made |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    made |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    made |= {
        (alias.asname or alias.name).split(".")[0]
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return read - made - set(dir(builtins))


class _Smaller(ast.NodeTransformer):
    """Puts tiny models and few steps in, and arguments for `...`."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant(self.texts[node.value]) if node.value in self.texts else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        given = {word.arg for word in node.keywords}
        if node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value is ... and name in ELLIPSIS:
            node.args.pop(0)
            call = ast.parse(f"f({ELLIPSIS[name]})", mode="eval").body
            assert isinstance(call, ast.Call)
            node.keywords += [word for word in call.keywords if word.arg not in given]
        for setting, value in SETTINGS.get(name, {}).items():
            if setting not in given:
                node.keywords.append(ast.keyword(setting, ast.parse(repr(value), mode="eval").body))
        return self.generic_visit(node)
