"""Logs as the frameworks write them, made by hand or with the tracker's own package."""

import json
import sqlite3
import struct


def write_lines(path, objects):
    path.write_text("".join(json.dumps(item) + "\n" for item in objects), encoding="utf-8")
    return path


def trainer_state(path, history):
    """As `TrainerState.save_to_json` writes it: indented, keys sorted, NaN as it is."""
    state = {"best_metric": None, "epoch": 1.0, "global_step": history[-1]["step"], "is_world_process_zero": True}
    state |= {"log_history": history, "logging_steps": 1, "max_steps": 100, "stateful_callbacks": {}}
    path.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return path


def trl_ppo_row(step, **changes):
    """The metrics of TRL's PPOTrainer 0.12 to 1.12 (`trl/experimental/ppo/ppo_trainer.py`)."""
    return {
        "eps": 3,
        "objective/kl": 0.1 * step,
        "objective/entropy": 40.0,
        "objective/non_score_reward": -0.005 * step,
        "objective/rlhf_reward": 0.5 - 0.005 * step,
        "objective/scores": 0.5,
        "policy/approxkl_avg": 0.002,
        "policy/clipfrac_avg": 0.01,
        "loss/policy_avg": -0.01,
        "loss/value_avg": 0.2,
        "val/clipfrac_avg": 0.0,
        "policy/entropy_avg": 1.5,
        "val/ratio": 1.0,
        "val/ratio_var": 1e-5,
        "val/num_eos_tokens": 12,
        "lr": 3e-6,
        "episode": 64 * step,
        "epoch": step / 100,
        "step": step,
    } | changes


def trl_grpo_row(step, **changes):
    """The metrics of TRL's GRPOTrainer 1.16 with beta > 0."""
    return {
        "loss": 0.01,
        "grad_norm": 0.4,
        "learning_rate": 1e-6,
        "num_tokens": 1000.0 * step,
        "completions/mean_length": 50.0,
        "completions/min_length": 10.0,
        "completions/max_length": 64.0,
        "completions/clipped_ratio": 0.25,
        "completions/mean_terminated_length": 45.0,
        "completions/min_terminated_length": 10.0,
        "completions/max_terminated_length": 60.0,
        "rewards/length_reward/mean": 0.3,
        "rewards/length_reward/std": 0.1,
        "reward": 0.3,
        "reward_std": 0.1,
        "frac_reward_zero_std": 0.0,
        "kl": 0.02,
        "entropy": 1.2,
        "clip_ratio/low_mean": 0.0,
        "clip_ratio/high_mean": 0.0,
        "clip_ratio/region_mean": 0.05,
        "step_time": 3.0,
        "epoch": step / 100,
        "step": step,
    } | changes


VERL_ROW = {
    "critic/score/mean": 0.25,
    "critic/score/max": 1.0,
    "critic/score/min": 0.0,
    "critic/rewards/mean": 0.24,
    "response_length/mean": 120.0,
    "response_length/clip_ratio": 0.125,
    "actor/pg_loss": -0.002,
    "actor/pg_clipfrac": 0.003,
    "actor/pg_clipfrac_lower": 0.0005,
    "actor/ppo_kl": 0.0004,
    "actor/grad_norm": 0.9,
    "critic/vf_loss": 0.07,
    "critic/vf_clipfrac": 0.01,
    "critic/grad_norm": 5.5,
    "perf/throughput": 900.0,
}
VERL_NEW_ROW = VERL_ROW | {
    "actor/reward_kl_penalty": 0.05,
    "actor/reward_kl_penalty_coeff": 0.001,
    "actor/entropy": 0.4,
    "actor/lr": 1e-6,
    "critic/lr": 1e-5,
    "critic/vf_explained_var": 0.6,
    "val-core/openai/gsm8k/reward/mean@1": 0.5,
    "val-core/openai/math/reward/mean@1": 0.7,
    "val-core/openai/gsm8k/reward/best@4/mean": 0.9,
}
VERL_OLD_ROW = VERL_ROW | {
    "critic/kl": 0.05,
    "critic/kl_coeff": 0.001,
    "actor/entropy_loss": 0.4,
    "actor/lr(1e-4)": 0.01,
    "critic/lr(1e-4)": 0.1,
    "val/test_score/openai/gsm8k": 0.5,
}


def verl_line(step, row):
    """`concat_dict_to_str` of verl's console logger, before values were printed with `pprint`."""
    return " - ".join([f"step:{step}", *(f"{key}:{value:.3f}" for key, value in row.items())])


def trackio_project(path, runs, config):
    """The tables of trackio 0.43; run -> (step, metrics) in the order they were logged."""
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TABLE metrics (id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, timestamp TEXT NOT NULL, "
        "run_name TEXT NOT NULL, step INTEGER NOT NULL, metrics TEXT NOT NULL, log_id TEXT, space_id TEXT)"
    )
    connection.execute(
        "CREATE TABLE configs (id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, run_name TEXT NOT NULL, "
        "config TEXT NOT NULL, created_at TEXT NOT NULL, UNIQUE(run_id))"
    )
    for run, rows in runs.items():
        connection.execute("INSERT INTO configs VALUES (NULL, ?, ?, ?, '')", (run, run, json.dumps(config)))
        connection.executemany(
            "INSERT INTO metrics VALUES (NULL, ?, '', ?, ?, ?, NULL, NULL)",
            [(run, run, step, json.dumps(metrics)) for step, metrics in rows],
        )
    connection.commit()
    connection.close()
    return path


def _varint(number):
    out = b""
    while number > 0x7F:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def _field(number, content):
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def wandb_number(key, content):
    """A row of history whose value stands as a number: 8 bytes, or as many as are given."""
    return _field(2, _field(1, _field(2, key.encode()) + _field(6, content)))


def wandb_file(path, rows, config, more=()):
    """A `.wandb` file: 7 bytes of header, then records in the blocks of a LevelDB log (W&B 0.31)."""
    items = b"".join(
        _field(1, _field(1, key.encode()) + _field(16, json.dumps(value).encode())) for key, value in config.items()
    )
    records = [_field(17, _field(4, items))]
    for row in rows:
        history = b"".join(
            _field(1, _field(2, key.encode()) + _field(16, json.dumps(value).encode())) for key, value in row.items()
        )
        records.append(_field(2, history))
    records += more
    out = bytearray(b":W&B" + struct.pack("<HB", 0xBEE1, 0))
    for record in records:
        first = True
        while first or record:
            left = 2**15 - len(out) % 2**15
            if left < 7:
                out += b"\0" * left
                continue
            part, record = record[: left - 7], record[left - 7 :]
            kind = {(True, False): 1, (True, True): 2, (False, True): 3, (False, False): 4}[first, bool(record)]
            out += struct.pack("<IHB", 0, len(part), kind) + part
            first = False
    path.write_bytes(bytes(out))
    return path
