"""The tables on the pages of `docs/failures`: the causes that the detectors hold, and the names of the metrics.

python benchmarks/failure_pages.py --write docs/failures

Why a cause does it and what to change are the words of the code; how a reader confirms it without the code stands here.
"""

import argparse
import re
from functools import cache
from pathlib import Path

from rlhf_ext.diagnostics import METRICS, Cause, Diagnostics, Record, RunSettings
from rlhf_ext.diagnostics.keys.ours import OURS

INDEX = "index"
CAUSES, NAMES = "causes", "metrics"
OPTIMUM = "the optimum for Gaussian scores, `score_std^2 / (2 beta^2)`, lies"
# By cause, or by mode and cause where a mode looks at something else.
CONFIRM: dict[str, str] = {
    "M1.reward-scale": "`score_std` is twice that of the start",
    "M3.length-bias": "score and length correlate above 0.5, and the length has left its start by 30 %",
    "X4.temperature": "`temperature` is not 1, and the gap is there in the first rollout",
    "X14.constant-score": "`score_std` is 0",
    "adapter-or-precision": "the KL of the first rollout is not 0 within its error",
    "advantage-scale": "`adv_std` is twice that of the start",
    "beta-too-high": f"{OPTIMUM} below what counts as movement",
    "beta-too-low": f"{OPTIMUM} above 1.5 times the target; without one, above the present KL",
    "ceiling": "`score_mean` is within two `score_std` of `score_max`",
    "cold-sampling": "`temperature` is below 0.9",
    "constant-score": "`score_std` is 0",
    "constant-whitened": "`score_std` is 0 at that step",
    "controller-at-upper-bound": "beta stands at the largest value it ever had",
    "controller-stuck": "beta does not move while the KL is off its target",
    "critic-learning-rate": "it is thirty times that of the policy, or the critic's gradient ten times that of the start",
    "critic-not-warmed-up": "`critic_warmup_rollouts` is 0, and the explained variance was never above 0.05",
    "critic-too-slow": "worse than a constant, steadily and not in swings, at less than five times the policy's rate",
    "critic-takes-all": "`adv_std` is 0 while `score_std` is not",
    "data-changed": "read the prompts of that step; another mixture begins there",
    "dropout": "the ratio of the first pass is not 1, and is with `disable_dropout=True`",
    "duplicates": "`dup_frac` is above 0.1",
    "engine-precision": "the two dtypes differ; the gap is the same from the first rollout on",
    "entropy-bonus-too-large": "`entropy_coef` times the entropy is above a tenth of `score_std`",
    "eos-never-sampled": "`eos_rate` is 0",
    "eos-reward": "`eos_rate` rose, and there is a `missing_eos_penalty`",
    "fp16-overflow": "`fp16` is set; the same run in `bf16` is finite",
    "frozen-parameters": "`grad_norm` is 0 while scores differ",
    "gradient-not-clipped": "`max_grad_norm` is 0 or above 10",
    "kl-per-token": "the length stays where it was with a tenth of `beta`",
    "learning-rate-too-high": "half the rate halves `kl_update` and the share that is clipped",
    "learning-rate-too-low": "the rate is 0, or `kl_update` below 1e-4 with a gradient and scores that differ",
    "length-bias": "score and length correlate above 0.5 within a rollout",
    "length-growth": "the length is 1.3 times that of a window ago, the KL per token as before",
    "limit-too-low": "the median length is `max_completion_length`; read the ends of some completions",
    "missing-eos-penalty": "`eos_rate` rose by 0.2, and there is a `missing_eos_penalty`",
    "no-clipping": "`max_grad_norm` is 0 or above 10",
    "no-entropy-bonus": "`entropy_coef` is 0",
    "no-eos": "`trunc_rate` is above 0.3",
    "no-gradient": "`grad_norm` is 0 while scores differ, or `kl_update` is exactly 0",
    "noisy-kl": "from one rollout to the next the KL changes by more than half of its level",
    "nothing-for-ending": "`missing_eos_penalty` is not set",
    "outlier-batches": "`ratio_max` is above 10, or `score_max` far from the mean at those steps",
    "outliers": "`score_max` is six `score_std` above the mean; read that completion",
    "padding-or-mask": "a completion alone and the same one in a padded batch have other log-probabilities",
    "reference-is-the-policy": "the KL is exactly 0 and `kl_update` is not",
    "reward-blind": "the score gained less than a twentieth of what it could at this KL",
    "reward-blind-to-loops": "score a looping completion by hand; score and length correlate above 0.5",
    "reward-changed": "nothing else changed at that step; score one old completion before and after it",
    "reward-clipped-away": "the mean lies at `score_clip`, with no spread",
    "reward-model-out-of-distribution": "disagreement with a second reward model is 1.5 times that of the start, or 20 % "
    "are outliers",
    "reward-not-finite": "`score_mean` is not finite, or single scores are; score an empty and a cut completion by hand",
    "reward-peaked": "`score_std` is under half of its start while the mean rose; the samples share a phrase",
    "reward-scale": "the variance of the returns is above 100, or `score_std` twice that of the start",
    "rule": "`kl_controller` is `ziegler` or `multiplicative`",
    "sampler-settings": "`generation_kwargs` or the model's `generation_config` name one of them",
    "score-at-ceiling": "the mean is near the largest score",
    "stale-rollout": "the ratio of the first pass is not 1",
    "stale-weights": "the gap is small in the first rollout and grows from there",
    "steps-too-large": "`max_grad_norm` is 0 or above 10; `grad_norm` and `kl_update` rise before it",
    "temperature": "the ratio of the first pass is not 1, and `temperature` is not 1",
    "too-many-epochs": "`num_iterations` is above 4",
    "updates-cancel": "`kl_update` is above 1e-3: it moves, in no direction",
    "updates-too-large": "`kl_update` is above 0.02 nats/token, or over 20 % of the ratios are clipped",
    "value-clip-off": "nothing tells",
    "value-clip-too-tight": "over 30 % of the value losses are clipped",
    "value-start": "`critic_warmup_rollouts` is 0, and the length falls from the first rollout on",
    "wrong-reference": "the KL of the first rollout is not 0",
    "wrong-unit": "the target times the mean length, or divided by it, is a usual one (2 to 20 nats per sequence)",
}
# What a remedy says of a setting or a metric, in words of code.
_CODE = re.compile(
    r"\b([a-z]\w*=(?:'\w+'|[\w.]*\w)|(?:[a-z_]+\.)?[a-z]+_\w+(?:\(\))?|Diagnostics\.rearm|beta|rep4|epsilon)(?![\w^'])"
)


@cache
def _situations() -> tuple[Diagnostics, ...]:
    """One for each list of causes that a detector has: nothing known; a value clip; an entropy that grows."""
    growing = Diagnostics(RunSettings(planned_rollouts=60))
    for step in range(60):
        growing.observe(Record(step, {"entropy_tok": 1.0 + step}))
    return Diagnostics(), Diagnostics(RunSettings(value_clip_range=0.5)), growing


def causes_of(mode: str) -> list[Cause]:
    """Every cause that the detector of a mode can name, in its order."""
    found: dict[str, Cause] = {}
    for diagnostics in _situations():
        (detector,) = [each for each in diagnostics.detectors if each.mode == mode]
        for cause in detector.causes(diagnostics.history):
            found.setdefault(cause.name, cause)
    return list(found.values())


def modes() -> list[str]:
    """Modes that a detector reads, in the order of precedence."""
    return [detector.mode for detector in Diagnostics().detectors]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def table(mode: str) -> str:
    """The causes of a mode: one row each."""
    lines = ["| cause | why | confirm it | change |", "|---|---|---|---|"]
    for cause in causes_of(mode):
        confirm = CONFIRM.get(f"{mode}.{cause.name}") or CONFIRM[cause.name]
        why, remedy = (_cell(_CODE.sub(r"`\1`", text)).removesuffix(".") for text in (cause.why, cause.remedy))
        lines.append(f"| `{cause.name}` | {why} | {confirm} | {remedy} |")
    return "\n".join(lines)


def metric_table() -> str:
    """Every metric of the diagnostics: its name there, ours, unit and meaning."""
    lines = ["| here | in the log of `PPOTrainer` | unit | meaning |", "|---|---|---|---|"]
    for name, metric in METRICS.items():
        logged = ", ".join(f"`{key}`" for key in OURS.keys.get(name, ()))
        lines.append(f"| `{name}` | {logged} | {metric.unit} | {_cell(metric.meaning)} |")
    return "\n".join(lines)


def renewed(text: str, page: str) -> str:
    """A page, named by its mode or `index`, with its table renewed."""
    kind, content = (NAMES, metric_table()) if page == INDEX else (CAUSES, table(page))
    start, end = f"<!-- {kind}: start -->", f"<!-- {kind}: end -->"
    head, rest = text.split(start)
    return f"{head}{start}\n{content}\n{end}{rest.split(end)[1]}"


def main() -> None:
    """Renew the table of every page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, required=True, help="folder of the pages")
    folder = parser.parse_args().write
    for name in (INDEX, *modes()):
        page = folder / f"{name}.md"
        page.write_text(renewed(page.read_text(encoding="utf-8"), name), encoding="utf-8")


if __name__ == "__main__":
    main()
