"""What behaves differently from TRL's PPO although no name says so."""

from dataclasses import dataclass

STEP_LOOP, TRAIN = "0.11 or earlier", "0.12 to 1.12"
"""The two eras of TRL's PPO: a loop of the user's around `step`, and a trainer with `train`."""


@dataclass(frozen=True)
class Default:
    """
    A setting whose default changed.

    Args:
        setting (`str`):
            Its name here.
        now (`object`):
            Default here.
        before (`dict[str, object]`):
            Era -> default there.
        old_names (`tuple[str, ...]`):
            What sets it in an old script.
        note (`str`, *optional*):
            Why it differs.
    """

    setting: str
    now: object
    before: dict[str, object]
    old_names: tuple[str, ...]
    note: str = ""


DEFAULTS = (
    Default(
        "epsilon",
        0.1,
        {STEP_LOOP: 0.2, TRAIN: 0.2},
        ("cliprange",),
        "Language models need smaller steps than games, and four epochs make them.",
    ),
    Default("value_clip_range", 0.5, {STEP_LOOP: 0.2, TRAIN: 0.2}, ("cliprange_value",), "In score units."),
    Default("temperature", 1.0, {TRAIN: 0.7}, ("temperature",), "Other than 1 is scored at that temperature too."),
    Default("max_completion_length", 512, {TRAIN: 53}, ("response_length",)),
    Default(
        "learning_rate",
        3e-6,
        {STEP_LOOP: 1.41e-5},
        ("learning_rate",),
        "For full fine-tuning; ten times it and more for LoRA.",
    ),
    Default(
        "adam_epsilon",
        1e-5,
        {STEP_LOOP: 1e-8, TRAIN: 1e-8},
        ("adam_epsilon",),
        "As in OpenAI's code: the first steps are several times too large with 1e-8.",
    ),
    Default(
        "kl_controller",
        None,
        {STEP_LOOP: "'ziegler' with a target of 6"},
        ("adap_kl_ctrl", "target"),
        "Without kl_target the penalty is fixed.",
    ),
    Default(
        "beta", None, {STEP_LOOP: 0.2}, ("init_kl_coef",), "None is 0.05 without a kl_target, and 'auto' with one."
    ),
)
"""Settings whose default changed; `now` is what PPOConfig's field has."""

BEHAVIOUR = {
    "The data": (
        "A column `prompt` of text or conversations, tokenised at each rollout; TRL took `input_ids` and padded them. "
        "Conversations go through the tokenizer's chat template with chat_template_kwargs."
    ),
    "The KL penalty": (
        "It stands at the last token, with the score (kl_placement='terminal'); TRL spread it over the tokens "
        "(kl_placement='token'). With gamma=1 both give the same return, the terminal one with less to do for the critic."
    ),
    "The score": (
        "It stands at the last token of the completion, EOS included. TRL put it one position later, outside the mask of "
        "the policy, so that it reached EOS through GAE alone."
    ),
    "The means": (
        "Losses and logged numbers are means over completion tokens, over all processes and micro-batches of a step. TRL "
        "averaged each micro-batch by itself, and counted padding in some of what it logged."
    ),
    "The gradient": "It is clipped at max_grad_norm (1.0); TRL's loops never applied it unless DeepSpeed did.",
    "The critic": (
        "It is initialised from the reward model, in the unit that PPO maximises, or is a second adapter with PEFT; "
        "critic_warmup_rollouts trains it alone at first."
    ),
    "The reward model": (
        "It reads the completion's own tokens where it shares the policy's tokenizer, and its text through its own "
        "template where it does not; TRL gave it the policy's token ids whatever its tokenizer."
    ),
    "Resuming": (
        "resume_from_checkpoint continues bit for bit, controller and rollout included; TRL's train() took no argument."
    ),
}
"""What differs -> how."""
