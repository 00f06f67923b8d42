"""The second epoch on a rollout, where ratio and values have left their start and the clips bite, against plain torch."""

import copy
import math

import pytest
import torch
from transformers import LlamaForCausalLM

from rlhf_ext import PPOTrainer

EPSILON, LAM, VF, ENT, VALUE_CLIP, LR, BETA = 0.1, 0.9, 0.5, 0.05, 0.02, 0.05, 0.3


def count_a(completions, **_):
    return [text.count("a") + 0.1 * len(text) for text in completions]


def plain_outputs(model, head, row, length, temperature):
    """Log-probabilities, entropies and values at the last `length` tokens of one unpadded row."""
    hidden = model.model(input_ids=row[None]).last_hidden_state[0]
    logp = torch.log_softmax(model.lm_head(hidden) / temperature, dim=-1)[:-1]
    entropy = -(logp.exp() * logp).sum(-1)
    chosen = logp[torch.arange(len(row) - 1), row[1:]]
    return chosen[-length:], entropy[-length:], (hidden[:-1] @ head[0] + head[1])[-length:]


def rows_of(rollout):
    """Unpadded prompt + completion of each sequence, and the length of the completion."""
    for b in range(len(rollout["prompt_ids"])):
        answer = rollout["completion_ids"][b][rollout["completion_mask"][b]]
        yield torch.cat([rollout["prompt_ids"][b][rollout["prompt_mask"][b]], answer]), len(answer)


def kl_by_hand(old, ref, estimator):
    d = [a - b for a, b in zip(old, ref, strict=True)]
    return {"k1": d, "k2": [x * x / 2 for x in d], "k3": [math.exp(-x) - 1 + x for x in d]}[estimator]


def advantages_by_hand(kl, values, score, placement, gamma):
    """Generalised advantages of one sequence, by the sums of the definition."""
    n = len(kl)
    rewards = [-BETA * kl[t] if placement == "token" else 0.0 for t in range(n)]
    rewards[-1] += score - (BETA * sum(kl) if placement == "terminal" else 0.0)
    deltas = [rewards[t] + (gamma * values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)]
    return [sum((gamma * LAM) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)]


def loss_by_hand(sequences):
    """Token mean of -gain + VF * value error / 2 - ENT * entropy, and how many tokens each clip decided."""
    flat = torch.tensor([a for s in sequences for a in s["advantages"]])
    mean, std = flat.mean(), ((flat - flat.mean()) ** 2).mean().sqrt()
    total, clips = 0.0, [0, 0]
    for s in sequences:
        new, entropy, values = s["new"]
        for t, advantage in enumerate(s["advantages"]):
            white = (advantage - mean) / std
            ratio = (new[t] - s["old"][t]).exp()
            free, bound = ratio * white, ratio.clamp(1 - EPSILON, 1 + EPSILON) * white
            target, v_old = advantage + s["values"][t], s["values"][t]
            near = v_old + (values[t] - v_old).clamp(-VALUE_CLIP, VALUE_CLIP)
            errors = (values[t] - target) ** 2, (near - target) ** 2
            total = total - torch.min(free, bound) + VF * 0.5 * torch.max(*errors) - ENT * entropy[t]
            clips[0] += int(bound < free)
            clips[1] += int(errors[1] > errors[0])
    return total / len(flat), clips


@pytest.mark.parametrize(
    ("placement", "estimator", "gamma", "temperature"),
    [
        ("terminal", "k1", 1.0, 1.0),
        ("token", "k1", 1.0, 0.7),
        ("token", "k2", 0.9, 1.0),
        ("terminal", "k3", 0.95, 1.3),
    ],
)
def test_the_second_step_on_a_rollout_equals_plain_torch(
    placement, estimator, gamma, temperature, tiny_policy_path, tiny_tokenizer, prompts, ppo_config
):
    args = ppo_config(
        beta=BETA, epsilon=EPSILON, lam=LAM, vf_coef=VF, entropy_coef=ENT, value_clip_range=VALUE_CLIP, optim="sgd",
        learning_rate=LR, lr_scheduler_type="constant", max_grad_norm=1e9, num_iterations=2, steps_per_generation=1,
        per_device_train_batch_size=8, max_steps=2, kl_placement=placement, critic="head",
        kl_estimator=estimator, gamma=gamma, temperature=temperature,
    )  # fmt: skip
    plain = LlamaForCausalLM.from_pretrained(tiny_policy_path)
    noisy = copy.deepcopy(plain)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=noise))
    trainer = PPOTrainer(
        copy.deepcopy(plain), count_a, args, prompts, processing_class=tiny_tokenizer, ref_model=copy.deepcopy(noisy)
    )
    with torch.no_grad():
        trainer.critic.value_head.linear.weight.normal_(generator=torch.Generator().manual_seed(3))
    states, original = [], trainer._compute_loss

    def remembering(*inputs):
        states.append({k: v.detach().clone() for k, v in trainer.model.state_dict().items()})
        return original(*inputs)

    trainer._compute_loss = remembering
    trainer.train()
    rollout = trainer._buffered_inputs[0]
    heads = [
        [s["critic.value_head.linear.weight"][0].clone(), s["critic.value_head.linear.bias"].clone()] for s in states
    ]
    weights = [{k: v for k, v in s.items() if "critic" not in k} for s in states]
    texts = tiny_tokenizer.batch_decode(rollout["completion_ids"], skip_special_tokens=True)
    plain.load_state_dict(weights[0])
    sequences = []
    with torch.no_grad():
        for (row, n), score in zip(rows_of(rollout), count_a(texts), strict=True):
            old, _, values = (x.tolist() for x in plain_outputs(plain, heads[0], row, n, temperature))
            ref = plain_outputs(noisy, heads[0], row, n, temperature)[0].tolist()
            advantages = advantages_by_hand(kl_by_hand(old, ref, estimator), values, score, placement, gamma)
            sequences.append({"old": old, "values": values, "advantages": advantages})
    plain.load_state_dict(weights[1])
    head = [h.requires_grad_() for h in heads[1]]
    for sequence, (row, n) in zip(sequences, rows_of(rollout), strict=True):
        sequence["new"] = plain_outputs(plain, head, row, n, temperature)
    loss, clips = loss_by_hand(sequences)
    assert min(clips) > 0  # both clips decide some tokens, or the test shows nothing
    loss.backward()
    after = trainer.model.state_dict()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(after[name], parameter.detach() - LR * parameter.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        after["critic.value_head.linear.weight"][0], (head[0] - LR * head[0].grad).detach(), rtol=1e-5, atol=1e-5
    )
