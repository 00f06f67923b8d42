"""The README's Python runs as it is printed, on tiny local models."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_ten_lines_train(tmp_path, tiny_policy_path, tiny_reward_path):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    small = "use_cpu=True, bf16=False, max_steps=1, per_device_train_batch_size=2, max_completion_length=4, "
    for printed, local in {
        '"Qwen/Qwen2.5-0.5B-Instruct"': repr(str(tiny_policy_path)),
        '"my-reward-model"': repr(str(tiny_reward_path)),
        'PPOConfig("aligned", ': f"PPOConfig({str(tmp_path)!r}, {small}",
    }.items():
        assert code.count(printed) == 1
        code = code.replace(printed, local)
    scope: dict = {}
    exec(compile(code, str(README), "exec"), scope)
    (row,) = [row for row in scope["trainer"].state.log_history if "objective/score" in row]
    assert row["kl/target"] == 6.0
    assert row["kl/ref"] == 0.0
