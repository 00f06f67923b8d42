"""Names of steps, and what trackers do to names."""

# What loggers call the step, the surest first.
STEP_KEYS = (
    "train/global_step",
    "training/global_step",
    "global_step",
    "eval/global_step",
    "step",
    "Step",
    "_step",
    "trainer/global_step",
    "update",
    "iteration",
)


def plain_key(key: str) -> str:
    """The name a trainer gave, without what a tracker's callback puts before it: `train/x` is x, `eval/x` is eval_x."""
    if key in STEP_KEYS:
        return key
    if key.startswith("train/"):
        return key[len("train/") :]
    return f"eval_{key[len('eval/') :]}" if key.startswith("eval/") else key
