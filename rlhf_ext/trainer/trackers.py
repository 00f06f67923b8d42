"""Alerts in the trackers that have them."""

from importlib import import_module


def send_alert(report_to: list[str], title: str, text: str, is_critical: bool) -> None:
    """
    Send an alert to wandb and trackio, where the run reports to them. Their interfaces are alike: `alert(title=, text=,
    level=)`, with `AlertLevel.WARN` and `AlertLevel.ERROR`.

    Args:
        report_to (`list[str]`): Integrations of the run, as in [`~transformers.TrainingArguments`].
        title (`str`): Short; repeated alerts of a title are what the trackers hold back.
        text (`str`): What happened and what to do.
        is_critical (`bool`): Sent as an error instead of a warning.
    """
    for name in ("wandb", "trackio"):
        if name in report_to:
            tracker = import_module(name)
            level = tracker.AlertLevel.ERROR if is_critical else tracker.AlertLevel.WARN
            tracker.alert(title=title, text=text, level=level)
