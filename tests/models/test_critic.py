"""What the critic starts from, how fast it learns, and what is left of it on disk."""

import itertools
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_ext import PPOTrainer
from rlhf_ext.models.reward_adapter import RewardAdapter
from rlhf_ext.rollout import Sequences

SEQUENCES = [[5, 6, 7], [8]], [[9, 10, 11], [12, 13]]


def lora():
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def code_points(completions, **_):
    return [sum(map(ord, text)) / 500 for text in completions]


@pytest.fixture
def normalized_reward_path(tmp_path, tiny_reward_path, tiny_tokenizer):
    """A reward model whose scores have mean 0.7 and standard deviation 2.5."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_path)
    model.config.score_mean, model.config.score_std = 0.7, 2.5
    folder = str(tmp_path / "normalized-reward")
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("as_instance", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_critic_from_the_reward_model_predicts_its_weighted_score(
    as_instance, normalize, normalized_reward_path, tiny_policy_path, tiny_tokenizer, prompts, ppo_config
):
    judge = AutoModelForSequenceClassification.from_pretrained(normalized_reward_path).eval()
    reward = AutoModelForSequenceClassification.from_pretrained(normalized_reward_path)
    rewards = [code_points, reward if as_instance else normalized_reward_path]
    args = ppo_config(beta=0.1, reward_weights=[1.0, 3.0], normalize_scores=normalize)
    trainer = PPOTrainer(tiny_policy_path, rewards, args, prompts)
    assert trainer.critic.trunk is not trainer.reward_funcs[1].model.base_model  # trained, so a copy
    prompt_ids, completion_ids = SEQUENCES
    sequences = Sequences.from_lists(prompt_ids, [[*ids, 40] for ids in completion_ids], tiny_tokenizer.pad_token_id)
    values = trainer._forward_in_chunks(trainer.model.eval(), sequences).values
    for b, (prompt, answer) in enumerate(zip(prompt_ids, completion_ids, strict=True)):
        with torch.no_grad():
            score = judge(input_ids=torch.tensor([prompt + answer])).logits[0, 0]
        expected = 3.0 * ((score - 0.7) / 2.5 if normalize else score)
        # The value of the state before one more token is the score of what stands there.
        torch.testing.assert_close(values[b, len(answer)], expected, rtol=1e-4, atol=1e-5)


def test_without_a_reward_model_the_critic_starts_as_the_policy_with_value_zero(tiny_policy_path, prompts, ppo_config):
    trainer = PPOTrainer(tiny_policy_path, code_points, ppo_config(beta=0.1), prompts)
    trunk = AutoModel.from_pretrained(tiny_policy_path).state_dict()
    own = trainer.critic.trunk.state_dict()
    assert own.keys() == trunk.keys() and all(torch.equal(tensor, trunk[name]) for name, tensor in own.items())
    own = {p.data_ptr() for p in trainer.critic.trunk.parameters()}
    assert not own & {p.data_ptr() for name, p in trainer.model.named_parameters() if "critic" not in name}
    assert not any(p.any() for p in trainer.critic.value_head.parameters())


@pytest.mark.parametrize("given", ["instance", "peft instance", "subfolder"])
def test_a_critic_that_starts_as_the_policy_has_the_very_weights_that_are_trained(
    given, tiny_policy_path, tiny_tokenizer, prompts, ppo_config, tmp_path
):
    model = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    torch.manual_seed(9)
    torch.nn.init.normal_(model.model.embed_tokens.weight)  # no longer what is in the folder
    own = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    kwargs = {"processing_class": tiny_tokenizer, "peft_config": lora() if given == "peft instance" else None}
    args = ppo_config(beta=0.1, critic="model")
    if given == "subfolder":
        folder = tmp_path / "repository"
        AutoModelForCausalLM.from_pretrained(tiny_policy_path).save_pretrained(folder)
        model.save_pretrained(folder / "tuned")
        args, model = ppo_config(beta=0.1, critic="model", model_init_kwargs={"subfolder": "tuned"}), str(folder)
    trainer = PPOTrainer(model, code_points, args, prompts, **kwargs)
    trunk = trainer.critic.trunk.state_dict()
    assert trunk.keys() == own.keys() and all(torch.equal(tensor, own[name]) for name, tensor in trunk.items())
    shared = {p.data_ptr() for p in trainer.critic.trunk.parameters()}
    assert not shared & {p.data_ptr() for name, p in trainer.model.named_parameters() if "critic" not in name}


@pytest.mark.parametrize(
    "start", ["reward instance", "reward adapter", "adapter instance", "frozen instance", "the reward itself"]
)
def test_a_critic_of_its_own_is_trained_as_a_whole_and_its_origin_is_not(
    start, tiny_policy_path, tiny_reward_path, tiny_reward_adapter_path, tiny_tokenizer, prompts, ppo_config
):
    judge = AutoModelForSequenceClassification.from_pretrained(tiny_reward_path)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_policy_path, num_labels=1)
    adapter = PeftModel.from_pretrained(base, tiny_reward_adapter_path)
    reward = {"reward adapter": tiny_reward_adapter_path, "adapter instance": adapter}.get(start, judge)
    frozen = AutoModelForSequenceClassification.from_pretrained(tiny_reward_path).requires_grad_(False)
    critic_model = {"frozen instance": frozen, "the reward itself": judge}.get(start)
    args = ppo_config(beta=0.1, critic="model")
    trainer = PPOTrainer(
        tiny_policy_path, reward, args, prompts, critic_model=critic_model, reward_processing_classes=tiny_tokenizer
    )
    scores = {name: p.clone() for name, p in trainer.reward_funcs[0].model.named_parameters()}
    before = {name: p.detach().clone() for name, p in trainer.critic.named_parameters()}
    trainer.train()
    assert all(torch.equal(p, scores[name]) for name, p in trainer.reward_funcs[0].model.named_parameters())
    assert {n for n, p in trainer.critic.named_parameters() if not torch.equal(p, before[n])} == set(before)


@pytest.mark.parametrize("critic", ["adapter", "head", "model"])
def test_a_saved_critic_is_what_a_later_run_starts_from(critic, tiny_policy_path, prompts, ppo_config, tmp_path):
    def make(critic_model=None):
        peft_config = lora() if critic == "adapter" else None
        args = ppo_config(beta=0.1, critic=critic, learning_rate=1e-2)
        return PPOTrainer(
            tiny_policy_path, code_points, args, prompts, peft_config=peft_config, critic_model=critic_model
        )

    first = make()
    first.train()
    first.save_model(str(tmp_path / "out"))
    folder = str(tmp_path / "out" / "critic")
    second = make(critic_model=folder)
    of_critic = {name for name in second.model.state_dict() if ".critic." in f".{name}"}
    before, after = first.model.state_dict(), second.model.state_dict()
    assert of_critic and all(torch.equal(before[name], after[name]) for name in of_critic)
    assert any(after[name].any() for name in of_critic)
    if critic == "model":  # a plain transformers model too
        assert AutoModel.from_pretrained(folder).config.hidden_size == 32


def test_a_critic_of_another_kind_is_refused_before_a_model_loads(tiny_policy_path, prompts, ppo_config, tmp_path):
    with pytest.raises(ValueError, match="has none"):
        PPOTrainer(
            "nothing",
            code_points,
            ppo_config(critic="adapter"),
            prompts,
            processing_class=tokenizer_of(tiny_policy_path),
        )
    for kind in ("head", "adapter"):
        with pytest.raises(ValueError, match=f"critic='{kind}' starts from the folder `critic`"):
            PPOTrainer(
                tiny_policy_path, code_points, ppo_config(critic=kind), prompts, peft_config=lora(),
                critic_model=tiny_policy_path,
            )  # fmt: skip


def tokenizer_of(path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize(("critic", "peft"), [("adapter", True), ("head", True), ("head", False), ("model", False)])
def test_the_critic_learns_at_a_rate_of_its_own(critic, peft, tiny_policy_path, prompts, ppo_config):
    args = ppo_config(
        beta=0.1, critic=critic, learning_rate=1e-3, critic_learning_rate=5e-3, lr_scheduler_type="linear",
        weight_decay=0.1, max_steps=4,
    )  # fmt: skip
    trainer = PPOTrainer(tiny_policy_path, code_points, args, prompts, peft_config=lora() if peft else None)
    trainer.train()
    rates = {id(p): group["initial_lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    named = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    trainable = {name: p for name, p in named.items() if p.requires_grad}
    assert len(rates) == len(trainable) == sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    for name, parameter in trainable.items():
        assert rates[id(parameter)] == (5e-3 if ".critic." in f".{name}" else 1e-3), name
        assert decays[id(parameter)] == (0.0 if name.endswith("bias") or "norm" in name else 0.1), name
    # The logged rate is the policy's, after three of four steps of a linear schedule.
    assert trainer.state.log_history[0]["learning_rate"] == pytest.approx(1e-3 / 4)


@pytest.mark.parametrize("rate", [None, 5e-3])
def test_the_critic_is_added_to_an_optimizer_that_was_made_before_it(rate, tiny_policy_path, prompts, ppo_config):
    model = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    args = ppo_config(beta=0.1, critic="head", critic_learning_rate=rate)
    trainer = PPOTrainer(model, code_points, args, prompts, optimizers=(optimizer, None))
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer
    policy, critic = optimizer.param_groups
    assert (policy["initial_lr"], critic["initial_lr"], critic["momentum"]) == (1e-2, rate or 1e-2, 0.9)
    assert {id(p) for p in critic["params"]} == {id(p) for p in trainer.critic.parameters()}
    assert all(p.any() for p in trainer.critic.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    with pytest.raises(ValueError, match=r"optimizers=\(optimizer, None\)"):
        PPOTrainer(model, code_points, args, prompts, optimizers=(optimizer, schedule))


@pytest.mark.parametrize(("critic", "peft"), [("adapter", True), ("head", False), ("model", False)])
def test_the_policy_stands_still_while_the_critic_warms_up(critic, peft, tiny_policy_path, prompts, ppo_config):
    # 4 steps a rollout: rollouts 1 and 2 warm the critic up, the policy moves in 3 and 4.
    args = ppo_config(beta=0.1, critic=critic, critic_warmup_rollouts=2, max_steps=16, weight_decay=0.1)
    trainer = PPOTrainer(tiny_policy_path, code_points, args, prompts, peft_config=lora() if peft else None)
    weights, original = [], trainer._generate_and_score_completions

    def remembering(inputs):
        weights.append({n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad})
        return original(inputs)

    trainer._generate_and_score_completions = remembering
    trainer.train()
    moved = [{name for name in a if not torch.equal(a[name], b[name])} for a, b in itertools.pairwise(weights)]
    of_critic = {name for name in weights[0] if ".critic." in f".{name}"}
    assert moved[0] == moved[1] == of_critic
    assert moved[2] > of_critic
    rows = [row for row in trainer.state.log_history if "objective/score" in row]
    # Rounding: the log-probabilities of the rollout are those that sampling found.
    assert [row["kl/update"] < 1e-10 for row in rows] == [True, True, False, False]


def test_a_warm_up_longer_than_the_run_is_refused(tiny_policy_path, prompts, ppo_config):
    # How long it is shows when the data is counted; with max_steps it is refused before a model loads.
    args = ppo_config(beta=0.1, critic_warmup_rollouts=4, max_steps=-1, num_train_epochs=1)
    with pytest.raises(ValueError, match="takes 16 optimizer steps, but the run has 16"):
        PPOTrainer(tiny_policy_path, code_points, args, prompts).train()


def reward_adapter(folder, base, tokenizer, **lora_settings):
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    settings = {"r": 2, "target_modules": ["q_proj"], "task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    get_peft_model(model, LoraConfig(**{**settings, **lora_settings})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_only_an_adapter_of_the_very_base_is_attached(
    tiny_policy_path, tiny_reward_path, tiny_tokenizer, prompts, ppo_config, tmp_path
):
    same = reward_adapter(tmp_path / "same", tiny_policy_path, tiny_tokenizer)
    other_base = reward_adapter(tmp_path / "other-base", tiny_reward_path, tiny_tokenizer)
    retrained = reward_adapter(
        tmp_path / "retrained", tiny_policy_path, tiny_tokenizer, modules_to_save=["score", "norm"]
    )
    other_revision = reward_adapter(tmp_path / "other-revision", tiny_policy_path, tiny_tokenizer)
    config = tmp_path / "other-revision" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "revision": "v2"}))
    functions = [same, other_base, retrained, same]
    trainer = PPOTrainer(tiny_policy_path, functions, ppo_config(beta=0.1), prompts, peft_config=lora())
    assert [isinstance(f.model, RewardAdapter) for f in trainer.reward_funcs] == [True, False, False, True]
    full = PPOTrainer(tiny_policy_path, [same], ppo_config(beta=0.1), prompts)
    assert not isinstance(full.reward_funcs[0].model, RewardAdapter)  # its base is being trained
    from rlhf_ext.models.reward_adapter import is_adapter_of

    assert is_adapter_of(same, tiny_policy_path, None, lora())
    assert not is_adapter_of(other_revision, tiny_policy_path, None, lora())
    scores = [f(["ab", "c"], ["x", "yz"], [[10, 1], [11, 12, 13]]) for f in trainer.reward_funcs]
    assert scores[0] == pytest.approx(scores[3], rel=1e-6) and scores[0] != pytest.approx(scores[1])
    assert scores[0] == pytest.approx(
        full.reward_funcs[0](["ab", "c"], ["x", "yz"], [[10, 1], [11, 12, 13]]), rel=1e-4
    )


def test_a_base_that_was_trained_in_memory_keeps_its_hands_off_the_reward_adapter(
    tiny_policy_path, tiny_tokenizer, prompts, ppo_config, tmp_path
):
    folder = reward_adapter(tmp_path / "same", tiny_policy_path, tiny_tokenizer)
    policy = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    with torch.no_grad():
        policy.model.layers[0].mlp.down_proj.weight.mul_(3)  # trained further, under its old name
    changed = PPOTrainer(
        policy, folder, ppo_config(beta=0.1), prompts, processing_class=tiny_tokenizer, peft_config=lora()
    )
    as_saved = PPOTrainer(tiny_policy_path, folder, ppo_config(beta=0.1), prompts, peft_config=lora())
    inputs = (["ab", "c"], ["x", "yz"], [[10, 1], [11, 12, 13]])
    assert changed.reward_funcs[0](*inputs) == pytest.approx(as_saved.reward_funcs[0](*inputs), rel=1e-5)


def test_a_reward_adapter_that_does_not_fit_is_refused_by_name(
    tiny_policy_path, tiny_tokenizer, prompts, ppo_config, tmp_path
):
    from safetensors.torch import load_file, save_file

    folder = reward_adapter(tmp_path / "broken", tiny_policy_path, tiny_tokenizer)
    file = tmp_path / "broken" / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: tensor for name, tensor in weights.items() if "score" not in name}, file)
    with pytest.raises(ValueError, match=r"broken` should hold one score head"):
        PPOTrainer(tiny_policy_path, folder, ppo_config(beta=0.1), prompts, peft_config=lora())
    save_file({name: tensor for name, tensor in weights.items() if "layers.1" not in name}, file)
    with pytest.raises(ValueError, match=r"broken` does not fit the policy's base"):
        PPOTrainer(tiny_policy_path, folder, ppo_config(beta=0.1), prompts, peft_config=lora())


def test_a_policy_adapter_loads_with_peft_alone(tiny_policy_path, tiny_tokenizer, prompts, ppo_config, tmp_path):
    from transformers import AutoTokenizer, GenerationConfig

    rewards = reward_adapter(tmp_path / "reward", tiny_policy_path, tiny_tokenizer)
    args = ppo_config(beta=0.1, learning_rate=1e-2)
    trainer = PPOTrainer(tiny_policy_path, rewards, args, prompts, peft_config=lora())
    trainer.train()
    out = tmp_path / "out"
    trainer.save_model(str(out))
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"critic"}
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_policy_path), out).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(policy(ids).logits, trainer.model.eval()(ids).logits, rtol=1e-5, atol=1e-5)
    assert AutoTokenizer.from_pretrained(out).chat_template == tiny_tokenizer.chat_template
    assert GenerationConfig.from_pretrained(out).eos_token_id in (
        tiny_tokenizer.eos_token_id,
        [tiny_tokenizer.eos_token_id],
    )
