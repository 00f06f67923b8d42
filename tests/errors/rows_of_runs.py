"""Wrong checkpoints, logs, and places to write."""

import errno
import json
import os

from error_row import Row

from rlhf_ext import diagnose
from rlhf_ext.trainer import resumable
from rlhf_ext.trainer.checkpoint import checkpoint_to_resume

# Content of a file that is no log, and what is said of it; tests/diagnostics/test_diagnose.py has the command line.
NO_LOGS = [
    ("empty.jsonl", "", "is empty"),
    ("blank.csv", "\n\n", "is empty"),
    ("notes.txt", "Dear diary,\ntoday the reward went up, and up.\n", "no log that is known here"),
    ("weights.bin", b"\x80\x02}q\x00(X\x05\x00\x00\x00", "content is binary"),
    ("model.db", b"SQLite format 3\0" + b"\0" * 100, "no project of trackio"),
    ("cut.json", '{"log_history": [', "breaks off"),
    ("rowless.json", '{"log_history": []}', "no row"),
    ("halfway.json", '{"log_history": [{"step": 1}, {"st', "breaks off"),
    ("config.json", '{\n "model_type": "llama"\n}\n', "no log that is known here"),
    ("list.json", "[]", "no row"),
    ("setup.cfg", "[metadata]\nname = x\n", "no log that is known here"),
    ("other.jsonl", '{"step": 1, "accuracy": 0.5}\n', "no framework known here logs these keys: accuracy"),
    ("words.jsonl", '{"step": 1, "text": "hello"}\n', "holds no number besides the step"),
    ("nulls.jsonl", '{"step": 1, "objective/scores": null}\n', "holds no number besides the step"),
    ("header.csv", "step,objective/scores,objective/kl\n", "a header and no row"),
    ("windows.log", "step:1 - critic/kl:0.5\n".encode("utf-16"), "is UTF-16"),
    ("deep.json", '{"log_history": [' + "[" * 100_000, "breaks off, or is no JSON"),
    ("deep.jsonl", '{"a":' * 5000 + "1" + "}" * 5000, "no log that is known here"),
    ("journal.jsonl", '{"kind": "rollout", "step": 1}\n', "no row with a number. 1 line of rollouts"),
    ("events.out.tfevents.1", b"\x18" + b"\0" * 11 + b"\x09brain.Event:2" + b"\xff" * 30, "is damaged"),
]


def several_logs(world):
    for name in ("a.jsonl", "b.csv"):
        world.file(f"logs/{name}", "x")
    diagnose(world.tmp_path / "logs")


def log_row(name, content, words):
    return Row(f"log: {name}", lambda world: diagnose(world.file(name, content)), ValueError, (name, words))


def damaged(change):
    def act(world):
        folder = world.checkpoint()
        change(folder)
        world.resume(folder)

    return act


def rewritten(name, **changes):
    def change(folder):
        manifest = json.loads((folder / name).read_text())
        for key, value in changes.items():
            manifest[key] = {**manifest[key], **value} if isinstance(value, dict) else value
        (folder / name).write_text(json.dumps(manifest))

    return change


def own_policy(world):
    folder = world.checkpoint()
    world.trainer(str(folder), processing_class=world.tokenizer(), settings={"beta": 0.1}).train(str(folder))


def full_disk(world):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    world.monkeypatch.setattr(resumable, "save_json", fail)
    world.checkpoint()


def not_permitted(world):
    world.monkeypatch.setattr(os, "access", lambda *_: False)
    world.trainer()


RUNS = [
    Row("checkpoint: there is none", lambda w: w.trainer().train(resume_from_checkpoint=True), ValueError,
        ("There is no checkpoint in", "Start without resume_from_checkpoint"), True),
    Row("checkpoint: none, named in the settings", lambda w: w.trainer(settings={"resume_from_checkpoint": True}),
        ValueError, ("There is no checkpoint in", "Start without resume_from_checkpoint")),
    Row("checkpoint: no such folder", lambda w: checkpoint_to_resume(str(w.tmp_path / "no"), "", False), ValueError,
        ("Cannot resume from", "there is no such folder", "skip_damaged_checkpoints=True")),
    Row("checkpoint: of another trainer", lambda w: checkpoint_to_resume(w.policy, "", False), ValueError,
        ("no `ppo_checkpoint.json`", "another trainer or with save_only_model=True")),
    Row("checkpoint: a file is missing", damaged(lambda folder: (folder / "optimizer.pt").unlink()), ValueError,
        ("checkpoint-2`: `optimizer.pt` is missing", "Resume from another checkpoint"), True),
    Row("checkpoint: of another release", damaged(rewritten("ppo_checkpoint.json", version=7)), ValueError,
        ("has checkpoint version 7", "Resume with the release that wrote it"), True),
    Row("checkpoint: of several processes", damaged(rewritten("ppo_checkpoint.json", settings={"number of processes": 2})),
        ValueError, ("number of processes was 2 and is 1", "Resume with the saved values"), True),
    Row("checkpoint: other settings", lambda w: w.resume(w.checkpoint(), seed=5), ValueError,
        ("seed was 1 and is 5", "Resume with the saved values"), True),
    Row("checkpoint: its policy as reference", own_policy, ValueError,
        ("was saved by the run that is to be continued", "Pass the model that the run began with"), True),
    Row("disk: full while saving", full_disk, OSError,
        ("The checkpoint of step 2 could not be saved", "GiB free", "No space left on device", "Make room"), True),
    Row("disk: a file in place of the folder", lambda w: w.trainer(settings={"output_dir": w.file("x", "x")}),
        NotADirectoryError, ("output_dir=", "/x' is a file", "Choose another folder")),
    Row("disk: a file on the way", lambda w: w.trainer(settings={"output_dir": w.file("x", "x") + "/run"}),
        NotADirectoryError, ("output_dir=", "/x' is a file", "Choose another folder")),
    Row("disk: no permission", not_permitted, PermissionError, ("output_dir=", "may not be written", "change its owner")),
]  # fmt: skip

LOGS = [
    Row("log: not there", lambda _: diagnose("/nowhere.jsonl"), FileNotFoundError,
        ("no file or folder '/nowhere.jsonl'", "accepted are trainer_state.json, JSONL")),
    Row("log: a folder without one", lambda w: diagnose(w.tmp_path), ValueError, ("holds no log; accepted are",)),
    Row("log: a folder with several", several_logs, ValueError,
        ("holds 2 files that may be logs; give one of them: a.jsonl, b.csv",)),
    *(log_row(*row) for row in NO_LOGS),
]  # fmt: skip
