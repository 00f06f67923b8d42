"""From the settings of `trainers/ppo.py` to what a memory plan needs, without loading a model."""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import find_adapter_config_file
from trl import ModelConfig, get_peft_config

from ..migration import explain_old_names
from ..models.reward_adapter import is_adapter_of
from ..models.scoring import tokenize_prompts
from ..planning.architecture import Architecture
from ..planning.settings import PlanSettings, RewardModel
from .checks import load_tokenizer
from .data import load_data
from .policy import PolicySource, policy_source
from .ppo_config import PPOConfig
from .recipe import RecipeParser

_OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "paged_adamw_32bit": "adamw",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "adamw_8bit",
}


@dataclass
class PlannedPPOConfig(PPOConfig):
    """[`PPOConfig`] of a run on other machines: it may ask for GPUs that are not here, and for more than one."""

    num_gpus: int = field(default=1, metadata={"help": "Processes of the planned run."})

    def __post_init__(self) -> None:
        self.planned_on_gpu = not self.use_cpu  # type: ignore[has-type]
        if not torch.cuda.is_available():
            self.use_cpu = True
        super().__post_init__()

    @property
    def world_size(self) -> int:
        """Number of processes of the planned run."""
        return self.num_gpus


@dataclass(frozen=True)
class Launch:
    """
    How the run is launched, which no recipe says.

    Args:
        num_gpus (`int`, *optional*, defaults to `1`):
            Processes, one a GPU.
        zero_stage (`int`, *optional*, defaults to `0`):
            Stage of ZeRO.
        offload (`str`, *optional*):
            `"optimizer"` or `"all"`.
        on_gpu (`bool`, *optional*, defaults to `True`):
            Whether it runs on GPUs.
    """

    num_gpus: int = 1
    zero_stage: int = 0
    offload: str | None = None
    on_gpu: bool = True


def read_recipe(
    script_arguments: type[Any], arguments: list[str], num_gpus: int, command: str
) -> tuple[Any, PlannedPPOConfig, ModelConfig]:
    """
    The settings of a run on other machines, read as `trainers/ppo.py` reads them.

    Args:
        script_arguments (`type`):
            The program's own settings class.
        arguments (`list[str]`):
            Its command line.
        num_gpus (`int`):
            Processes of the run.
        command (`str`):
            What the user called, for messages. What the parser refuses ends the program.
    """
    parser = RecipeParser((script_arguments, PlannedPPOConfig, ModelConfig), None, explain_old_names)
    parser.prog = command
    script_args, args, model_args = parser.parse_args_and_config([*arguments, "--num_gpus", str(num_gpus)])
    return script_args, args, model_args


def read_plan_settings(
    script_arguments: type[Any],
    arguments: list[str],
    num_gpus: int,
    zero_stage: int,
    offload: str | None,
    prompt_length: int | None,
) -> tuple[PlanSettings, list[str]]:
    """
    Read a recipe, and what overrides it, as `trainers/ppo.py` does.

    Args:
        script_arguments (`type`):
            The program's own settings class.
        arguments (`list[str]`):
            Its command line.
        num_gpus, zero_stage, offload:
            See [`Launch`].
        prompt_length (`int`, *optional*):
            Longest prompt, in tokens; by default that of the recipe's dataset.

    Returns:
        `tuple`: the settings of the plan, and sentences on what was assumed.

    Raises:
        ValueError: For a recipe that cannot be planned. What the recipe's parser refuses ends the program.
    """
    script_args, args, model_args = read_recipe(script_arguments, arguments, num_gpus, "rlhf-ext plan")
    if not model_args.model_name_or_path:
        raise ValueError("model_name_or_path is not set: give a Hub id or a local folder")
    notes: list[str] = []
    if prompt_length is None:
        prompt_length = longest_prompt(
            script_args.dataset_name,
            script_args.dataset_train_split,
            script_args.dataset_config,
            args,
            model_args.model_name_or_path,
        )
        notes.append(f"The longest prompt of the dataset has {prompt_length} tokens.")
    launch = Launch(num_gpus, zero_stage, offload, args.planned_on_gpu)
    settings, assumed = settings_of_recipe(args, model_args, script_args.reward_model, prompt_length, launch)
    return settings, [*notes, *assumed]


def settings_of_recipe(
    args: PPOConfig, model_args: ModelConfig, reward_models: list[str], prompt_length: int, launch: Launch
) -> tuple[PlanSettings, list[str]]:
    """
    Settings of a plan.

    Args:
        args ([`PPOConfig`]):
            Settings of the trainer.
        model_args ([`~trl.ModelConfig`]):
            Policy, precision, quantisation and adapter.
        reward_models (`list[str]`):
            Ids or folders.
        prompt_length (`int`):
            Longest prompt, in tokens.
        launch ([`Launch`]):
            Processes and ZeRO.

    Returns:
        `tuple`: the settings, and sentences on what was assumed.

    Raises:
        ValueError: For a model without config, or settings that no run can have.
    """
    source = _source(args, model_args)
    policy = _policy(source, args, model_args, launch)
    notes: list[str] = []
    rewards = tuple(_reward_model(path, policy, source, notes) for path in reward_models)
    critic = args.critic or ("model" if policy.adapter is None else "adapter")
    if args.use_vllm:
        notes.append("What vLLM holds is not in the table: it reserves its own share of a GPU.")
    continued = source.base != model_args.model_name_or_path
    return plan_settings(args, launch, policy, rewards, critic, prompt_length, continued), notes


def plan_settings(
    args: PPOConfig,
    launch: Launch,
    policy: Architecture,
    rewards: tuple[RewardModel, ...],
    critic: str,
    prompt_length: int,
    continues_adapter: bool,
    trunk: PretrainedConfig | None = None,
) -> PlanSettings:
    """
    Settings of a plan whose models are known.

    Args:
        args ([`PPOConfig`]):
            Settings of the trainer.
        launch ([`Launch`]):
            Processes and ZeRO.
        policy, rewards, critic, prompt_length, continues_adapter:
            As in [`PlanSettings`].
        trunk ([`~transformers.PretrainedConfig`], *optional*):
            Of a critic of its own; by default that of the first reward model, or of the policy.

    Raises:
        ValueError: For settings that no run can have, or an optimizer that is not planned for.
    """
    if args.optim not in _OPTIMIZERS:
        raise ValueError(f"optim={args.optim} is not planned for. One of: {', '.join(_OPTIMIZERS)}.")
    return PlanSettings(
        policy=policy,
        reward_models=rewards,
        prompt_length=prompt_length,
        completion_length=args.max_completion_length,
        micro_batch=args.per_device_train_batch_size,
        steps_per_generation=args.steps_per_generation,
        score_batch=args.per_device_eval_batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        gradient_checkpointing=args.gradient_checkpointing,
        critic=critic,
        critic_trunk=_critic_trunk(critic, policy, trunk or (rewards[0].architecture.config if rewards else None)),
        has_reference=args.beta != 0,
        continues_adapter=continues_adapter,
        optimizer=_OPTIMIZERS[args.optim],
        autocast=None if launch.zero_stage else _mixed_precision(args),
        temperature=args.temperature,
        on_gpu=launch.on_gpu,
        num_gpus=launch.num_gpus,
        zero_stage=launch.zero_stage,
        offload=launch.offload,
    )


def longest_prompt(dataset: str | None, split: str, config: str | None, args: PPOConfig, model: str) -> int:
    """
    Tokens of the longest prompt of a local dataset.

    Args:
        dataset (`str`):
            File or folder.
        split, config (`str`):
            As [`load_data`] takes them.
        args ([`PPOConfig`]):
            Settings of the trainer.
        model (`str`):
            Policy, whose tokenizer counts.

    Raises:
        ValueError: If the dataset or the tokenizer is not on this machine: nothing is fetched for a plan.
    """
    remedy = "give the longest prompt, in tokens, with --prompt_length"
    if not dataset or not Path(dataset).expanduser().exists():
        raise ValueError(
            f"dataset_name={dataset!r} is not on this machine, so its prompts cannot be counted: {remedy}"
        )
    prompts = load_data(dataset, split, config)["prompt"]
    try:
        tokenizer = load_tokenizer(model, args.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"there is no tokenizer of {model!r} to count the dataset's prompts: {remedy}") from error
    return max(map(len, tokenize_prompts(tokenizer, list(prompts), args.chat_template_kwargs or {})))


def _source(args: PPOConfig, model_args: ModelConfig) -> PolicySource:
    path = str(model_args.model_name_or_path)
    try:
        source = policy_source(path, get_peft_config(model_args), args)
    except OSError:
        source = PolicySource(path, None)  # there is no such model, as is said when its config is read
    if source.base == path:
        return source._replace(revision=model_args.model_revision)
    # It is trained further.
    adapter: Any = copy.deepcopy(source.adapter)
    adapter.inference_mode = False
    return source._replace(adapter=adapter)


def _policy(source: PolicySource, args: PPOConfig, model_args: ModelConfig, launch: Launch) -> Architecture:
    config = _config_of(source.base, args, source.revision or "main")
    quantization = "4bit" if model_args.load_in_4bit else "8bit" if model_args.load_in_8bit else None
    # TRL makes the adapter of a quantised base bfloat16, and DeepSpeed everything what mixed precision would be.
    deepspeed = _mixed_precision(args) if launch.zero_stage else None
    quantized = torch.bfloat16 if quantization is not None else None
    return Architecture(
        config=config,
        kind="lm",
        dtype=deepspeed or _dtype(args, model_args, config),
        adapter=source.adapter,
        adapter_dtype=deepspeed or quantized,
        quantization=quantization,
        double_quantization=model_args.use_bnb_nested_quant,
        attention="eager" if model_args.attn_implementation == "eager" else "sdpa",
        dropout=not args.disable_dropout,
    )


def _dtype(args: PPOConfig, model_args: ModelConfig, config: PretrainedConfig) -> torch.dtype:
    given = (args.model_init_kwargs or {}).get("dtype", model_args.dtype)
    if given in (None, "auto"):
        return config.dtype or torch.float32
    return given if isinstance(given, torch.dtype) else getattr(torch, given)


def _mixed_precision(args: PPOConfig) -> torch.dtype | None:
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None


def _config_of(path: str, args: PPOConfig | None = None, revision: str = "main") -> PretrainedConfig:
    trust = args is not None and args.trust_remote_code
    try:
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"There is no config of a model at {path!r}: give a folder with a config.json, or an id of the Hub that can "
            f"be reached from here ({str(error).splitlines()[0]})"
        ) from error


def _reward_model(path: str, policy: Architecture, source: PolicySource, notes: list[str]) -> RewardModel:
    whole = replace(policy, kind="classifier", adapter=None, adapter_dtype=None, quantization=None, dropout=False)
    if find_adapter_config_file(path) is None:
        try:
            config = _classifier_config(_config_of(path))
        except ValueError:
            notes.append(f"There is no reward model at {path!r} yet: planned as a whole model of the policy's kind.")
            config = _classifier_config(policy.config)
        return RewardModel(path, replace(whole, config=config), attached=False)
    adapter = PeftConfig.from_pretrained(path)
    adapter.inference_mode = False
    if policy.adapter is not None and is_adapter_of(path, source.base, source.revision, policy.adapter):
        shared = replace(policy, kind="classifier", config=_classifier_config(policy.config), adapter=adapter)
        return RewardModel(path, shared, attached=True)
    config = _classifier_config(_config_of(str(adapter.base_model_name_or_path)))
    return RewardModel(path, replace(whole, config=config, adapter=adapter), attached=False)


def _classifier_config(config: PretrainedConfig) -> PretrainedConfig:
    config = copy.deepcopy(config)
    config.num_labels = 1
    return config


def _critic_trunk(kind: str, policy: Architecture, trunk: PretrainedConfig | None) -> Architecture | None:
    """What runs for the critic; one of its own starts from the policy where no other model is named."""
    if kind == "head":
        return None
    if kind == "adapter":
        adapter: Any = copy.deepcopy(policy.adapter)
        if not getattr(adapter, "modules_to_save", None):
            return policy
        adapter.modules_to_save = None
        return replace(policy, adapter=adapter)
    return Architecture(
        trunk or policy.config, "trunk", policy.dtype, attention=policy.attention, dropout=policy.dropout
    )
