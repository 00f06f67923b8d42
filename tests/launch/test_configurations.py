"""The shipped configurations say the same in both formats, and start several machines."""

import json
import runpy
import socket
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.utils import DeepSpeedPlugin
from launching import CONFIGS, ROOT, accelerate, finish, start
from transformers import TrainingArguments

from rlhf_ext import PPOConfig
from rlhf_ext.trainer.launch import check_optimizer_has_critic, check_saves_weights

NAMES = sorted(path.stem for path in (CONFIGS / "accelerate").glob("*.yaml"))
ZERO = sorted(path.stem for path in (CONFIGS / "deepspeed").glob("*.json"))


def settings(name: str) -> dict:
    return yaml.safe_load((CONFIGS / "accelerate" / f"{name}.yaml").read_text())


@pytest.fixture
def zero_environment(monkeypatch):
    """Sets what `accelerate launch` would set for settings of DeepSpeed."""

    def set_for(deepspeed_config: dict) -> None:
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        names = {"zero3_init_flag": "zero3_init"}
        for name, value in deepspeed_config.items():
            name = names.get(name, name).upper()
            monkeypatch.setenv(f"ACCELERATE_DEEPSPEED_{name}", str(value).lower())

    return set_for


def test_there_is_one_for_every_way_to_train():
    several = {"ddp", "zero3", "fsdp2"}
    assert set(NAMES) == {"single", "zero1", "zero2", "zero3_offload"} | several | {f"{n}_multinode" for n in several}
    assert set(ZERO) == {"zero1", "zero2", "zero3", "zero3_offload"}


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_reads_it_and_it_leaves_the_precision_to_the_recipe(name):
    path = str(CONFIGS / "accelerate" / f"{name}.yaml")
    config = ClusterConfig.from_yaml_file(path)
    assert config.mixed_precision == "no"
    assert (config.num_machines > 1) == name.endswith("_multinode")
    # Paths would be looked for from wherever the user is.
    assert not [value for value in str(settings(name)).split() if "/" in value]


def resolved(plugin: DeepSpeedPlugin) -> dict:
    zero = {k: v for k, v in plugin.deepspeed_config["zero_optimization"].items() if v is not None}
    devices = {name: zero.pop(name, {}).get("device", "none") for name in ("offload_optimizer", "offload_param")}
    zero.setdefault("stage3_gather_16bit_weights_on_model_save", False)
    return zero | devices


@pytest.mark.parametrize("name", ZERO)
def test_the_same_settings_in_both_formats(name, zero_environment):
    whole = json.loads((CONFIGS / "deepspeed" / f"{name}.json").read_text())
    from_json = resolved(DeepSpeedPlugin(hf_ds_config=whole))
    zero_environment(settings(name)["deepspeed_config"])
    assert resolved(DeepSpeedPlugin()) == from_json
    assert from_json["stage"] == int(name[4])


def test_several_machines_differ_from_one_in_the_edited_lines_alone():
    for name in ("ddp", "zero3", "fsdp2"):
        one, several = settings(name), settings(f"{name}_multinode")
        assert several.pop("deepspeed_config", {}).items() >= one.pop("deepspeed_config", {}).items()
        edited = {"num_machines", "num_processes", "machine_rank", "main_process_ip", "main_process_port"}
        assert several.keys() - one.keys() <= edited | {"same_network", "rdzv_backend"}
        assert {k: v for k, v in one.items() if k not in edited} == {k: several[k] for k in one if k not in edited}
        lines = (CONFIGS / "accelerate" / f"{name}_multinode.yaml").read_text().splitlines()
        assert {line.split(":")[0] for line in lines if "# EDIT" in line} == edited


def test_zero3_that_would_save_no_weights_is_refused(zero_environment, tmp_path):
    zero_environment({"zero_stage": 3})
    with pytest.raises(ValueError, match="zero3_save_16bit_model: true"):
        check_saves_weights(TrainingArguments(str(tmp_path), use_cpu=True, bf16=False))
    zero_environment({"zero3_save_16bit_model": True})
    check_saves_weights(TrainingArguments(str(tmp_path), use_cpu=True, bf16=False))


def test_fsdp_that_would_save_no_model_is_refused(monkeypatch, tmp_path):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, bf16=False)
    check_saves_weights(arguments)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    for kind in ("SHARDED_STATE_DICT", None):
        monkeypatch.setenv("FSDP_STATE_DICT_TYPE", kind) if kind else monkeypatch.delenv("FSDP_STATE_DICT_TYPE")
        with pytest.raises(ValueError, match="SHARDED_STATE_DICT would save no model"):
            check_saves_weights(arguments)
    monkeypatch.setenv("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT")
    check_saves_weights(arguments)


def test_sft_that_would_save_no_model_is_refused_before_anything_loads(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")
    program = str(ROOT / "trainers" / "sft.py")
    settings = [
        "--model_name_or_path",
        "nothing",
        "--output_dir",
        str(tmp_path),
        "--use_cpu",
        "true",
        "--bf16",
        "false",
    ]
    monkeypatch.setattr("sys.argv", [program, *settings])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(program, run_name="__main__")
    assert ended.value.code == 2
    assert "SHARDED_STATE_DICT would save no model" in capsys.readouterr().err


@pytest.mark.parametrize("block", ["optimizer", "scheduler"])
def test_an_optimizer_of_deepspeed_that_takes_critic_and_policy_as_one_is_refused(block, monkeypatch, tmp_path):
    config = json.loads((CONFIGS / "deepspeed" / "zero2.json").read_text())
    config[block] = {"type": {"optimizer": "AdamW", "scheduler": "WarmupLR"}[block], "params": {}}
    (tmp_path / "zero2.json").write_text(json.dumps(config))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "zero2.json"))
    settings = {"per_device_train_batch_size": 2, "use_cpu": True, "bf16": False}
    check_optimizer_has_critic(PPOConfig(str(tmp_path), **settings))
    for own in ({"critic_learning_rate": 1e-4}, {"critic_warmup_rollouts": 2}):
        with pytest.raises(ValueError, match=f"{next(iter(own))} would have no effect: .* has its own {block}"):
            check_optimizer_has_critic(PPOConfig(str(tmp_path), **settings, **own))


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "zero3", "fsdp2"])
def test_two_machines_find_each_other(name, tmp_path):
    port = free_port()
    program = str(Path(__file__).parent / "machine.py")
    edited = ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    machines = [
        start([*accelerate(f"{name}_multinode", *edited, "--machine_rank", str(rank)), program]) for rank in (0, 1)
    ]
    printed = [finish(machine, timeout=120).splitlines() for machine in machines]
    seen = [json.loads(next(line for line in lines if line.startswith("{"))) for lines in printed]
    assert [machine["rank"] for machine in seen] == [0, 1]
    for machine in seen:
        assert (machine["world_size"], machine["sum"]) == (2, 3)
        assert machine["zero_stage"] == {"zero3": 3}.get(name)
        assert machine["fsdp_version"] == {"fsdp2": 2}.get(name)
