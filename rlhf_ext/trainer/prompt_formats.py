"""What TRL's formats of prompts hold that a language model on text cannot be trained with."""

from typing import Any


def check_columns(row: dict[str, Any], name: str) -> None:
    """
    Refuse columns that would be ignored although they change the prompts.

    Args:
        row (`dict[str, Any]`):
            First row of the dataset.
        name (`str`):
            The dataset, in the message.

    Raises:
        ValueError: For images, and for settings of the chat template that come with each row.
    """
    images = {"image", "images"} & set(row)
    if images:
        raise ValueError(f"`{name}` has a column {sorted(images)}; PPOTrainer trains on text only. Remove the column.")
    settings = {key: value for key, value in (row.get("chat_template_kwargs") or {}).items() if value is not None}
    if settings:
        raise ValueError(
            f"`{name}` has a column `chat_template_kwargs` ({settings} in row 0). One template writes all prompts: set "
            f"PPOConfig(chat_template_kwargs={settings}) and remove the column."
        )


def check_content(prompt: list[dict[str, Any]], where: str) -> None:
    """
    Refuse messages whose content is a list of parts, as for models that see images.

    Args:
        prompt (`list[dict]`):
            Conversation.
        where (`str`):
            Its place, in the message.

    Raises:
        ValueError: For such a message.
    """
    for message in prompt:
        content = message.get("content")
        if not isinstance(content, list):
            continue
        kinds = sorted({str(part.get("type")) if isinstance(part, dict) else type(part).__name__ for part in content})
        if kinds == ["text"]:
            remedy = "Join the texts: a chat template for text would print the list itself."
        else:
            remedy = "PPOTrainer trains language models, on text only: drop such rows, or describe them in words."
        raise ValueError(f"{where} has a message whose content is a list with {', '.join(kinds)}. {remedy}")
