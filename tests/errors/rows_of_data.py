"""Wrong datasets: files, columns and rows."""

import json

from datasets import DatasetDict, IterableDataset
from error_row import Row

from rlhf_ext import load_data

CHAT = [{"role": "user", "content": "a"}]


def columns(name, words, **columns):
    return Row(f"data: {name}", lambda world: world.trainer(data=world.rows(**columns)), ValueError, words)


def mixed(world):
    rows = "\n".join(json.dumps({"prompt": prompt}) for prompt in ("a", CHAT) * 8)
    world.trainer(data=load_data(world.file("mixed.jsonl", rows)))


def stream_with_an_empty_prompt(world):
    rows = IterableDataset.from_generator(lambda: ({"prompt": "" if i == 5 else "a"} for i in range(16)))
    world.trainer(data=rows).train()


def chats_without_a_template(world):
    world.trainer(data=world.rows(prompt=[CHAT] * 16), processing_class=world.tokenizer(chat_template=None))


def long_completion(world):
    world.trainer(data=world.prompts.to_iterable_dataset(), settings={"max_completion_length": 256})


def read(name, content=None, split="train", **arguments):
    def act(world):
        path = world.file(name, content) if content is not None else str(world.tmp_path / name)
        load_data(path, split, **arguments)

    return act


DATA = [
    columns("no prompts", ("`train_dataset` has no column `prompt`", "['text']", "rename_column"), text=["a"] * 16),
    columns("no rows", ("`train_dataset` is empty", "Pass at least one prompt"), prompt=[]),
    columns("a blank prompt", ("Row 15", "empty prompt ('  ')", "Remove such rows"), prompt=["a"] * 15 + ["  "]),
    columns("a blank message", ("Row 0", "empty prompt"), prompt=[[{"role": "user", "content": ""}]] * 16),
    columns("a missing prompt", ("Row 15", "empty prompt (None)", "Remove such rows"), prompt=["a"] * 15 + [None]),
    columns("no messages", ("Row 0", "empty prompt ([])"), prompt=[[]] * 16),
    columns("token ids", ("Row 0", "holds token ids ([5, 6, 7])", "pass the texts"), prompt=[[5, 6, 7]] * 16),
    columns("the old format", ("no column `prompt`", "pass the texts"), input_ids=[[5, 6, 7]] * 16),
    columns("a message alone", ("Row 0", "which is no prompt", "a list of messages"), prompt=CHAT * 16),
    columns("a list of texts", ("Row 0", "holds ['a', 'b'], which is no prompt"), prompt=[["a", "b"]] * 16),
    columns("ShareGPT", ("which is no prompt", "{'role': 'user'"), prompt=[[{"from": "human", "value": "a"}]] * 16),
    columns("a long prompt", ("Row 15", "400 tokens", "context of 256", "Shorten or"), prompt=["a"] * 15 + ["b" * 400]),
    columns("too few rows", ("3 prompts, but one rollout takes 8", "Pass more prompts or lower"), prompt=["a"] * 3),
    columns("images", ("`train_dataset` has a column ['image']", "text only", "Remove the column"),
            prompt=["a"] * 16, image=["x"] * 16),
    Row("data: none at all", lambda w: w.trainer(data=False), TypeError, ("`train_dataset` must be a", "got bool")),
    Row("data: texts and conversations", mixed, ValueError, ("Row 1", "is a conversation, unlike the rows before it")),
    Row("data: an empty prompt in a stream", stream_with_an_empty_prompt, ValueError,
        ("of `prompts` has an empty prompt ('')", "Remove such rows"), True),
    Row("data: conversations without a template", chats_without_a_template, ValueError,
        ("holds conversations", "no chat template", "Set `tokenizer.chat_template`")),
    Row("data: all splits at once", lambda w: w.trainer(data=DatasetDict(train=w.prompts, test=w.prompts)), TypeError,
        ("got DatasetDict with the splits train, test", "pass one of them")),
    Row("data: a list", lambda w: w.trainer(data=[{"prompt": "a"}]), TypeError, ("`train_dataset` must be a", "got list")),
    Row("data: an evaluation without prompts", lambda w: w.trainer(eval_dataset=w.rows(q=["a"])), ValueError,
        ("`eval_dataset` has no column `prompt`", "['q']")),
    Row("data: one of several evaluations", lambda w: w.trainer(eval_dataset={"a": w.prompts, "b": w.rows(prompt=[""])}),
        ValueError, ("`eval_dataset['b']`", "empty prompt")),
    Row("data: a completion as long as the context", long_completion, ValueError,
        ("max_completion_length=256 leaves no room", "256 tokens", "Lower it")),
    Row("file: not there", read("nowhere.jsonl"), FileNotFoundError,
        ("dataset_name: there is no file", "nowhere.jsonl", "give a .jsonl")),
    Row("file: no folder", read("nowhere"), FileNotFoundError, ("there is no folder", "nowhere'", "Give a .jsonl")),
    Row("file: empty", read("empty.jsonl", ""), ValueError, ("the file", "empty.jsonl' is empty")),
    Row("file: broken", read("broken.jsonl", '{"prompt": "a"}\n{"prompt": \n'), ValueError,
        ("broken.jsonl' cannot be read as JSON lines", "one object a line")),
    Row("file: of another kind", read("prompts.csv", "prompt\na\n"), ValueError,
        ("prompts.csv' is not read", "Give a .jsonl or .json file")),
    Row("file: no name", lambda _: load_data(None), ValueError, ("dataset_name is not set", "give a .jsonl")),
    Row("file: no such split", read("a.jsonl", '{"prompt": "a"}\n', "validation"), ValueError,
        ("no split 'validation'", "its splits are: train", "train[:90%]")),
    Row("file: an empty slice", read("a.jsonl", '{"prompt": "a"}\n', "train[:0]"), ValueError,
        ("split 'train[:0]'", "is empty", "choose another split")),
    Row("Hub: a dataset that is not there", lambda _: load_data("no-such/data"), ConnectionError,
        ("dataset_name='no-such/data'", "the Hub did not give it", "hf auth login", "hf download")),
]  # fmt: skip
