"""The model card of a PPO run, from what the run has recorded: its log, `diagnostics.jsonl`, the reward models' cards."""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate.utils import is_peft_model
from huggingface_hub.errors import HfHubHTTPError

from ..diagnostics.plots import image, plot
from ..diagnostics.report_text import short
from ..markdown import inline, table
from ..models.critic import CRITIC_FOLDER
from ..models.normalization import read_report_card
from ..models.scoring import RewardModelScorer, hub_arguments
from ..version import __version__
from .callbacks import JOURNAL_FILE
from .hub import CURVES_FILE, LOADING_HEADING, MERGED_FOLDER, MERGED_SUFFIX, Card, is_on_hub
from .journal_card import journal_sections

LAST_ROLLOUTS = 5
PANELS = {
    "objective/score": "score",
    "kl/ref": "KL to the reference, nats per completion",
    "kl/beta": "beta",
    "policy/entropy": "entropy, nats per token",
    "value/explained_variance": "explained variance of the critic",
    "completions/mean_length": "length, tokens",
    "probe/quality": "held-out quality, the probe",
}
# How the run was launched, logged and stored says nothing about the model, and some of it is about the machine.
_NOT_OF_THE_RECIPE = (
    "accelerator_config", "activation_checkpointing", "bf16_full_eval", "dataloader", "ddp", "debug", "deepspeed",
    "disable_tqdm", "do_", "fsdp", "generation_batch_size", "gradient_checkpointing", "hub_", "include_", "load_best",
    "local_rank", "log", "model_init_kwargs", "output_dir", "overwrite", "pad_to", "parallelism", "project", "push_to_hub",
    "report_to", "resume_from", "run_name", "save_", "skip_damaged", "trackio", "use_cpu",
)  # fmt: skip


def ppo_card(trainer: Any) -> Card:
    """
    The card of a policy; also writes the curves and the critic's card beside it.

    Args:
        trainer ([`PPOTrainer`]): On the main process.
    """
    folder = Path(trainer.args.output_dir)
    rows = [row for row in trainer.state.log_history if "objective/score" in row]
    sections = [
        _introduction(trainer),
        f"{LOADING_HEADING}\n\n{_loading(trainer)}",
        _results(trainer, rows),
        write_curves(folder, rows, PANELS, {"kl/ref": _sequence_target(trainer.args)}),
        _models(trainer),
        _controller(trainer.args, rows),
        f"## Recipe\n\nSettings that differ from the defaults of `PPOConfig`.\n\n{recipe(trainer.args)}",
        *journal_sections(folder / JOURNAL_FILE if trainer.diagnostics is not None else None),
        _limits(trainer),
    ]
    if (folder / CRITIC_FOLDER).is_dir():
        (folder / CRITIC_FOLDER / "README.md").write_text(_critic_card(trainer, rows), encoding="utf-8")
    library = {"library_name": "peft"} if is_peft_model(trainer.model) else {}
    return Card(
        {**library, "pipeline_tag": "text-generation"}, [part for part in sections if part], package_versions()
    )


def package_versions() -> dict[str, str]:
    """What made the model, beside the packages that TRL's card names."""
    python = ".".join(map(str, sys.version_info[:3]))
    return {
        "rlhf-ext": __version__,
        "PEFT": version("peft"),
        "Accelerate": version("accelerate"),
        "Python": python,
    }


# ---- What it is, and how to load it ---------------------------------------------------------------------------------


def named(place: str) -> str:
    """A link to a repository of the Hub, or the last name of a local folder, whose path is nobody's business."""
    if is_on_hub(place):
        return f"[{inline(place)}](https://huggingface.co/{place})"
    return f"{inline(Path(place).name)} (a local folder)" if place else "a model without a name"


def _base(trainer: Any) -> str:
    return str(getattr(trainer.model.config, "_name_or_path", "") or "")


def _introduction(trainer: Any) -> str:
    kind = "An adapter of" if is_peft_model(trainer.model) else "A fine-tuned version of"
    judges = ", ".join(map(_reward_name, trainer.reward_funcs))
    return (
        f"{kind} {named(_base(trainer))}, aligned by PPO with a KL penalty against {judges}, with "
        f"rlhf-ext on [TRL](https://github.com/huggingface/trl). Step {trainer.state.global_step} of "
        f"{trainer.state.max_steps}."
    )


def _loading(trainer: Any) -> str:
    trusts = trainer.args.trust_remote_code
    code = loading_code(trainer._repository, is_peft_model(trainer.model), is_chat(trainer), trusts)
    folder = Path(trainer.args.output_dir) / MERGED_FOLDER
    if not folder.is_dir():
        return code
    merged = str(folder) if trainer.hub_model_id is None else f"{trainer.hub_model_id}{MERGED_SUFFIX}"
    return f"{code}\n\nThe policy with its adapter merged, which needs no PEFT, is `{merged}`."


def loading_code(repository: str, is_adapter: bool, is_chat: bool, trust_remote_code: bool) -> str:
    """
    Python that loads a policy and answers a prompt, as a Markdown block.

    Args:
        repository (`str`): Repository or folder.
        is_adapter (`bool`): Whether it holds an adapter.
        is_chat (`bool`): Whether prompts are conversations.
        trust_remote_code (`bool`): Whether the model needs code of its repository.
    """
    quoted = json.dumps(repository)
    trust = ", trust_remote_code=True" if trust_remote_code else ""
    loader = "AutoPeftModelForCausalLM" if is_adapter else "AutoModelForCausalLM"
    imports = (
        "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n"
        if is_adapter
        else "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    )
    ask = (
        'messages = [{"role": "user", "content": "Why is the sky blue?"}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n)\n'
        if is_chat
        else 'inputs = tokenizer("The sky is", return_tensors="pt")\n'
    )
    return (
        f"```python\n{imports}\n"
        f"model = {loader}.from_pretrained({quoted}{trust})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({quoted}{trust})\n"
        f"{ask}"
        "output = model.generate(**inputs, max_new_tokens=64)\n"
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))\n```'
    )


def is_chat(trainer: Any) -> bool:
    """Whether the prompts of a PPO run are conversations."""
    prompts = trainer._logs["prompt"]
    return bool(prompts) and not isinstance(prompts[-1], str)


# ---- What came of it ------------------------------------------------------------------------------------------------


def _results(trainer: Any, rows: Sequence[Mapping[str, float]]) -> str:
    if not rows:
        return ""
    count = min(LAST_ROLLOUTS, len(rows))
    lines = [
        (title, short(rows[0].get(name)), short(mean_at_end(rows, name)))
        for name, title in PANELS.items()
        if any(name in row for row in rows) and name != "kl/beta"
    ]
    evaluation: dict[str, Any] = next(
        (row for row in reversed(trainer.state.log_history) if "eval_objective/score" in row), {}
    )
    names = ("eval_objective/score", "eval_kl/ref", "eval_completions/eos_fraction")
    held_out = [(name.removeprefix("eval_"), short(evaluation[name])) for name in names if name in evaluation]
    text = f"## Results\n\n{table(('', 'first rollout', f'mean of the last {count}'), lines)}"
    if held_out:
        text += f"\n\nOn held-out prompts, at step {evaluation['step']}:\n\n{table(('', 'mean'), held_out)}"
    return (
        f"{text}\n\nScores are those that PPO maximised, on prompts of the training; they are no evidence of quality."
    )


def mean_at_end(rows: Sequence[Mapping[str, float]], name: str) -> float | None:
    """Mean of the last rollouts that have the number."""
    values = [row[name] for row in rows if _is_number(row.get(name))][-LAST_ROLLOUTS:]
    return fmean(values) if values else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def write_curves(
    folder: Path, rows: Sequence[Mapping[str, float]], panels: Mapping[str, str], targets: Mapping[str, float | None]
) -> str:
    """
    Write the curves of a run beside its card.

    Args:
        folder (`Path`): Output folder.
        rows (list of `dict`): Of the log.
        panels (`dict[str, str]`): Key of the log -> title.
        targets (`dict[str, float]`): Key -> level to draw.

    Returns:
        `str`: the section of the card, empty where there are no two points.
    """
    plots = {}
    for name, title in panels.items():
        points = [(int(row["step"]), float(row[name])) for row in rows if isinstance(row.get(name), int | float)]
        if len(points) > 1:
            steps, values = [step for step, _ in points], [value for _, value in points]
            plots[title] = plot(steps, values, target=targets.get(name), label=title)
    if not plots:
        return ""
    (folder / CURVES_FILE).write_text(image(plots, columns=2), encoding="utf-8")
    return f"## Curves\n\n![curves over the optimizer steps]({CURVES_FILE})"


def _sequence_target(args: Any) -> float | None:
    return args.kl_target if args.kl_unit == "sequence" else None


def _controller(args: Any, rows: Sequence[Mapping[str, float]]) -> str:
    if not any("kl/ref" in row for row in rows):
        return "## KL control\n\nNone: `beta=0`, the policy was free to leave the reference." if args.beta == 0 else ""
    kl = mean_at_end(rows, "kl/ref")
    peak = max((row["kl/ref"] for row in rows if _is_number(row.get("kl/ref"))), default=None)
    target = "no target" if args.kl_target is None else f"target {args.kl_target:g} nats per {args.kl_unit}"
    betas = [row.get("kl/beta") for row in rows]
    per_token = mean_at_end(rows, "kl/ref_token")
    return (
        f"## KL control\n\nController `{args.kl_controller}`, {target}; penalty `{args.kl_placement}`, estimator "
        f"`{args.kl_estimator}`. Reached over the last {min(LAST_ROLLOUTS, len(rows))} rollouts: {short(kl)} nats per "
        f"completion ({short(per_token)} per token), at most {short(peak)} in the run. Beta went from {short(betas[0])} to "
        f"{short(betas[-1])}."
    )


# ---- The models and the recipe --------------------------------------------------------------------------------------


def _reward_name(function: Any) -> str:
    if isinstance(function, RewardModelScorer):
        return named(_place(function))
    return f"the function `{inline(getattr(function, '__name__', type(function).__name__))}`"


def _place(scorer: RewardModelScorer) -> str:
    if isinstance(scorer.source, str):
        return scorer.source
    return str(getattr(getattr(scorer.model, "config", None), "_name_or_path", "") or "")


def _models(trainer: Any) -> str:
    reference = (
        "none, since `beta=0`"
        if not trainer._measures_kl
        else "the base with the adapter off, or the adapter that training started from"
        if is_peft_model(trainer.model)
        else "the policy that training started from"
    )
    parts = [
        f"## Base, reference and reward\n\n- Base: {named(_base(trainer))}\n- Reference of the KL: {reference}\n"
        f"- Critic: `{trainer._critic_kind}`, in `{CRITIC_FOLDER}/`"
    ]
    for function, weight in zip(trainer.reward_funcs, trainer.reward_weights.tolist(), strict=True):
        parts[0] += f"\n- Reward: {_reward_name(function)}, weight {weight:g}"
        # Of a model in memory, the weights need not be those that a report is about.
        if isinstance(function, RewardModelScorer) and isinstance(function.source, str):
            parts.append(_report_of(function.source, trainer))
    return "\n\n".join(parts)


def _report_of(place: str, trainer: Any) -> str:
    """What the report card of a reward model says, in a paragraph."""
    if place not in trainer._reward_reports:
        trainer._reward_reports[place] = _read_report(place, trainer.args)
    card = trainer._reward_reports[place]
    if not card:
        return f"Of {named(place)} there is no report card, so nothing is known of how far its scores can be trusted."
    return (
        f"Report card of {named(place)}: accuracy {short(card['accuracy'])} ({short(card['accuracy_low'])} to "
        f"{short(card['accuracy_high'])}, 95 %) on {card['num_pairs']} held-out pairs, calibration error "
        f"{short(card['calibration_error'])}, correlation of score and length {short(card['length_spearman'])} (Spearman)."
    )


def _read_report(place: str, args: Any) -> dict[str, Any]:
    try:
        return read_report_card(place, **hub_arguments(args.model_init_kwargs))
    except (HfHubHTTPError, OSError, ValueError):
        # No way to reach it, or a file that is none.
        return {}


def recipe(args: Any) -> str:
    """The settings that make the model and differ from the defaults, as a table."""
    given = args.to_dict()
    rows = []
    for setting in fields(args):
        value = given.get(setting.name)
        default = setting.default_factory() if callable(setting.default_factory) else setting.default
        if not setting.name.startswith(_NOT_OF_THE_RECIPE) and value != default and setting.init:
            rows.append((setting.name, value))
    return table(("setting", "value"), sorted(rows)) if rows else "None."


def _limits(trainer: Any) -> str:
    lines = [
        "It was trained to score high by the reward above, and has that reward's errors and tastes: a high score is not "
        "truth, safety or helpfulness.",
        "Nothing was tested here but what this card shows. Languages, topics and lengths beyond the training prompts are "
        "unknown, and the base's biases are still in it.",
    ]
    if is_peft_model(trainer.model) and not is_on_hub(_base(trainer)):
        lines.append(
            f"The adapter's base is a local folder ({inline(Path(_base(trainer)).name)}): elsewhere the adapter loads only "
            f"once `base_model_name_or_path` in `adapter_config.json` names where that base is"
            + ("." if (Path(trainer.args.output_dir) / MERGED_FOLDER).is_dir() else ", or with a merged policy.")
        )
    if trainer.state.global_step < trainer.state.max_steps:
        lines.append("It is a checkpoint of a run that had not ended.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


# ---- The critic -----------------------------------------------------------------------------------------------------


def _critic_card(trainer: Any, rows: Sequence[Mapping[str, float]]) -> str:
    explained = mean_at_end(rows, "value/explained_variance")
    repository = trainer._repository
    download = (
        f"folder = {json.dumps(os.path.join(repository, CRITIC_FOLDER))}\n"
        if trainer.hub_model_id is None
        else "from huggingface_hub import snapshot_download\n\n"
        f'folder = snapshot_download({json.dumps(repository)}, allow_patterns="{CRITIC_FOLDER}/*") + "/{CRITIC_FOLDER}"\n'
    )
    return f"""---
tags:
- trl
- rlhf-ext
- ppo
- critic
---

# Critic of {inline(trainer._model_name)}

Estimates, at each token of an answer, the return that PPO will give to it: score minus KL penalty, in the unit of the
training. Kind `{trainer._critic_kind}`. Explained variance of the returns over the last rollouts: {short(explained)} (1 is
perfect, 0 no better than a constant). It judges the policy beside it, and grows stale with any other.

A run that goes on from this policy starts from it:

```python
{download}trainer = PPOTrainer(..., args=PPOConfig(..., critic="{trainer._critic_kind}"), critic_model=folder)
```
"""
