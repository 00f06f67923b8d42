"""A policy goes to the Hub over HTTP and comes back; a push that fails loses nothing and tells how to retry."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from fake_hub import TOKEN
from huggingface_hub import ModelCard, snapshot_download
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoModelForCausalLM

from rlhf_ext import PPOTrainer, PushError, merge_adapter, push

pytestmark = pytest.mark.slow
LORA = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
EVIL = "</pre><script>alert(1)</script>\n---\nlicense: stolen\n---\n```{{ x }} | a \u202e b"


def spread(completions, **_):
    return [sum(ord(character) % 7 for character in text) / 10 for text in completions]


def judge(completions, **_):
    return [float(len(set(text))) for text in completions]


def with_evil_prompts():
    return Dataset.from_dict({"prompt": [f"{EVIL} {i}" for i in range(16)]})


def push_settings(**more):
    return {"hub_model_id": "me/aligned", "push_to_hub": True, "beta": 0.1, "report_to": [], **more}


def trained(policy, config, data, **arguments):
    trainer = PPOTrainer(policy, spread, config, data, **arguments)
    trainer.train()
    return trainer


def python_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def run_blocks(text):
    """Run the Python of a card, each block in the names of those before it, and return the names."""
    names: dict = {}
    for code in python_blocks(text):
        exec(compile(code, "card", "exec"), names)
    return names


def everything(folder):
    return b"\0".join(path.read_bytes() for path in Path(folder).rglob("*") if path.is_file())


def logits(model, ids=((5, 6, 7),)):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(ids)).logits


def test_a_full_policy_is_pushed_at_every_save_and_loads_with_the_code_of_its_card(
    hub, tiny_policy_path, ppo_config, tmp_path, capsys
):
    settings = push_settings(save_strategy="steps", save_steps=4, hub_strategy="every_save", max_steps=8)
    token = {"hub_token": TOKEN, "model_init_kwargs": {"token": TOKEN}}
    data = with_evil_prompts()
    config = ppo_config(**settings, **token, probe_every=1, probe_size=2)
    trainer = trained(tiny_policy_path, config, data, eval_dataset=data, quality_fn=judge)
    trainer.save_state()
    trainer.push_to_hub(dataset_name="me/prompts")
    files = hub.repos["me/aligned"]
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "generation_config.json",
        "README.md",
        "curves.svg",
    } <= set(files)
    assert "critic/value_head.safetensors" in files and "critic/README.md" in files
    assert not any(name.startswith(("_", "checkpoint-")) for name in files)
    assert ("me/aligned", "Training in progress, step 4") in hub.commits
    assert hub.commits[-1] == ("me/aligned", "End of training")

    card = files["README.md"].decode()
    names = run_blocks(card)
    assert torch.equal(logits(names["model"]), logits(trainer.model))
    assert names["tokenizer"].get_vocab() == trainer.processing_class.get_vocab()
    run_blocks(files["critic/README.md"].decode().split("trainer = ")[0] + "```")

    data = ModelCard(card).data
    assert {"trl", "rlhf-ext", "ppo", "generated_from_trainer"} <= set(data.tags)
    assert (data.datasets, data.pipeline_tag, data.base_model) == ("me/prompts", "text-generation", None)
    assert card.count("license: stolen") == 2 and "license" not in data.to_dict()
    assert "<script>" not in card and "\u202e" not in card and card.count("<pre>") == card.count("</pre>") == 6
    assert f"KL to the reference, nats per completion | {trainer.state.log_history[0]['kl/ref']:.4g}" in card
    assert str(tmp_path) not in card
    # The token is in nothing that was written, sent as a file, or printed.
    printed = "".join(capsys.readouterr())
    written = everything(tmp_path) + hub.all_bytes() + printed.encode() + repr(trainer.args).encode()
    assert b"KnownSecretToken" not in written and hub.refused == 0


def test_an_adapter_and_its_merged_policy_come_back_with_the_same_outputs(
    hub, tiny_policy_path, prompts, ppo_config, tmp_path
):
    trainer = trained(tiny_policy_path, ppo_config(**push_settings()), prompts, peft_config=LORA)
    out = trainer.args.output_dir
    trainer.save_model(_internal_call=True)
    merge_adapter(out, f"{out}/merged")
    assert push(trainer, "a/local/file.jsonl", f"{out}/merged") is None
    expected = logits(trainer.model)
    adapter = AutoPeftModelForCausalLM.from_pretrained("me/aligned")
    assert torch.equal(logits(adapter), expected)
    assert not any(name.startswith("merged") for name in hub.repos["me/aligned"])
    assert {"README.md", "curves.svg", "model.safetensors"} <= set(hub.repos["me/aligned-merged"])
    for name, library in (("me/aligned", "peft"), ("me/aligned-merged", "transformers")):
        card = hub.repos[name]["README.md"].decode()
        names = run_blocks(card)
        torch.testing.assert_close(logits(names["model"]), expected, rtol=1e-4, atol=1e-4)
        assert names["tokenizer"].eos_token == "<|im_end|>" and "## KL control" in card
        assert ModelCard(card).data.library_name == library and "local folder (tiny-policy)" in card
        assert "me/aligned-merged" in card
    # The critic of the Hub is one that a run starts from.
    folder = snapshot_download("me/aligned", allow_patterns="critic/*") + "/critic"
    again = PPOTrainer(
        tiny_policy_path, spread, ppo_config(max_steps=4), prompts, peft_config=LORA, critic_model=folder
    )
    weight = trainer.critic.value_head.linear.weight
    assert weight.abs().max() > 0 and torch.equal(again.critic.value_head.linear.weight, weight)


@pytest.mark.parametrize(
    ("call", "how", "lfs"),
    [
        ("POST /api/models/me/aligned/commit", 500, False),
        ("POST /api/models/me/aligned/commit", 403, False),
        ("POST /api/models/me/aligned/preupload", "drop", False),
        ("PUT /lfs/", "drop", True),
    ],
)
def test_a_failing_push_loses_nothing_and_a_retry_finishes(
    hub, environment, tiny_policy_path, prompts, ppo_config, tmp_path, capsys, call, how, lfs
):
    hub.lfs = lfs
    trainer = PPOTrainer(tiny_policy_path, spread, ppo_config(**push_settings(), max_steps=1), prompts)
    trainer.model.lm_head.weight.data += 0.5
    hub.fail(call, how)
    with pytest.raises(PushError) as failed:
        trainer.push_to_hub()
    message = str(failed.value)
    assert "KnownSecretToken" not in message + str(failed.value.__cause__)
    assert "me/aligned" in message and "Nothing is lost" in message
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(trainer.args.output_dir)), logits(trainer.model))
    # The transient kind of failure: the first calls succeed, the command that the error names does the rest.
    hub.mend()
    command = message.splitlines()[-1]
    assert command.startswith("hf upload me/aligned ")
    path = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    done = subprocess.run(command, shell=True, env={**environment, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained("me/aligned")), logits(trainer.model))
    trainer.push_to_hub()
    assert "KnownSecretToken" not in "".join(capsys.readouterr()) + done.stdout + done.stderr


def test_a_push_in_the_background_that_fails_is_said_and_does_not_stop_the_training(
    hub, tiny_policy_path, prompts, ppo_config, caplog, monkeypatch
):
    monkeypatch.setattr("rlhf_ext.trainer.hub.logger", __import__("logging").getLogger("push"))
    settings = push_settings(save_strategy="steps", save_steps=4, hub_strategy="every_save", max_steps=8)
    hub.fail("POST /api/models/me/aligned/commit", 403, times=1)
    trainer = trained(tiny_policy_path, ppo_config(**settings), prompts)
    trainer._finish_current_push()
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "push"]
    assert "me/aligned in the background failed" in warning and "KnownSecretToken" not in warning
    assert trainer.state.global_step == 8
    trainer.push_to_hub()
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained("me/aligned")), logits(trainer.model))


def test_a_repository_that_cannot_be_made_is_refused_with_the_way_out(
    hub, tiny_policy_path, prompts, ppo_config, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    with pytest.raises(PushError, match=r"'me/aligned' cannot be made on the Hub: .*401.*hf auth login"):
        PPOTrainer(tiny_policy_path, spread, ppo_config(**push_settings(), max_steps=1), prompts)
    # Asked for after training only: everything is saved first.
    trainer = PPOTrainer(tiny_policy_path, spread, ppo_config(hub_model_id="me/late", max_steps=1), prompts)
    with pytest.raises(PushError, match="cannot be made"):
        trainer.push_to_hub()
    assert (Path(trainer.args.output_dir) / "model.safetensors").is_file()


def test_the_card_of_a_resumed_run_is_that_of_one_that_was_not_stopped(
    tiny_policy_path, prompts, ppo_config, tmp_path
):
    def card_and_curves(folder):
        text = (Path(folder) / "README.md").read_text().replace(str(folder), "FOLDER")
        timeless = [line for line in text.splitlines() if "max_steps" not in line]
        return timeless, (Path(folder) / "curves.svg").read_text()

    # Rollouts of four steps, each with a probe; the checkpoint of step 6 is in the middle of one.
    settings = {"beta": 0.1, "max_steps": 16, "save_strategy": "steps", "save_steps": 6, "probe_every": 1}

    def make(folder):
        config = ppo_config(**settings, probe_size=2, output_dir=str(folder))
        return PPOTrainer(tiny_policy_path, spread, config, prompts, eval_dataset=prompts, quality_fn=judge)

    whole = make(tmp_path / "a" / "run")
    whole.train()
    whole.save_model()
    out = tmp_path / "b" / "run"
    shutil.copytree(tmp_path / "a" / "run", out)
    for later in ("checkpoint-12", "checkpoint-16"):
        shutil.rmtree(out / later)
    (out / "README.md").unlink()
    again = make(out)
    again.train(resume_from_checkpoint=True)
    again.save_model()
    assert card_and_curves(out)[1] == card_and_curves(tmp_path / "a" / "run")[1]
    # Both journals tell of the same rollouts; the resumed one has some of them twice in the file.
    probes = [json.loads(line)["step"] for line in (out / "diagnostics.jsonl").open() if '"kind": "probe"' in line]
    assert probes == [4, 8, 12, 16, 8, 12, 16]
    assert card_and_curves(out)[0] == card_and_curves(tmp_path / "a" / "run")[0]


@pytest.mark.parametrize("fails", [False, True])
def test_the_program_trains_merges_and_pushes_or_ends_with_the_way_to_retry(
    hub, environment, tiny_policy_path, tiny_reward_path, tmp_path, fails
):
    rows = [json.dumps({"prompt": f"Say {i}"}) for i in range(8)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    recipe = {
        "model_name_or_path": tiny_policy_path, "reward_model": tiny_reward_path, "dataset_name": "prompts.jsonl",
        "output_dir": "aligned", "per_device_train_batch_size": 4, "num_iterations": 1, "max_steps": 2,
        "max_completion_length": 4, "save_strategy": "no", "use_cpu": True, "bf16": False, "dtype": "float32",
        "gradient_checkpointing": False, "use_peft": True, "merge": True, "push_to_hub": True,
        "hub_model_id": "me/aligned", "hub_token": TOKEN, "hub_private_repo": True,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    if fails:
        hub.fail("POST /api/models/me/aligned/commit", 403)
    program = Path(__file__).parents[2] / "trainers" / "ppo.py"
    command = [sys.executable, str(program), "--config", "recipe.yaml"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "KnownSecretToken" not in done.stdout + done.stderr
    assert b"KnownSecretToken" not in everything(tmp_path / "aligned")
    assert (tmp_path / "aligned" / "merged" / "model.safetensors").is_file()
    if fails:
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        first, second = done.stderr.splitlines()[-2:]
        assert first.startswith("hf upload me/aligned aligned . --exclude")
        assert second.startswith("hf upload me/aligned-merged aligned/merged . --exclude")
        # The retry makes the second repository, which must not be a public one.
        assert second.endswith(" --private")
        return
    assert done.returncode == 0, done.stderr
    assert {"adapter_model.safetensors", "README.md"} <= set(hub.repos["me/aligned"])
    assert "model.safetensors" in hub.repos["me/aligned-merged"]
    assert [summary for _, summary in hub.commits] == ["End of training", "Merged policy"]
