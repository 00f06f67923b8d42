"""What is counted from shapes, against trainers that were really made and models that were really quantised."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MixtralConfig,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from trl import ModelConfig, get_peft_config

from rlhf_ext import PPOTrainer
from rlhf_ext.models.roles import CRITIC, belongs_to, belongs_to_policy
from rlhf_ext.planning import plan_memory
from rlhf_ext.planning.architecture import Architecture, Parameter, parameters_of
from rlhf_ext.planning.formulas import optimizer_bytes, quantized_bytes
from rlhf_ext.planning.settings import PlanSettings
from rlhf_ext.trainer.recipe_plan import Launch, settings_of_recipe
from tiny import tiny_config

LORA = {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 4, "lora_dropout": 0.0}


def size(tensors):
    return sum(t.numel() * t.element_size() for t in {t.data_ptr(): t for t in tensors}.values())


def planned(plan, phase, role, *whats):
    return sum(p.bytes for p in plan.phase(phase).parts if p.role == role and p.what in whats)


class GradientBytes(TrainerCallback):
    """Gradients of each role before the first optimizer step."""

    def on_pre_optimizer_step(self, args, state: TrainerState, control: TrainerControl, model=None, **kwargs):
        named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
        self.policy = size(g for name, g in named if belongs_to_policy(name))
        self.critic = size(g for name, g in named if belongs_to(name, CRITIC))


@pytest.mark.parametrize(
    ("critic", "lora"), [("head", False), ("model", False), ("head", True), ("adapter", True)], ids=str
)
def test_weights_gradients_and_states_are_those_of_a_real_trainer(
    critic, lora, ppo_config, prompts, tiny_policy_path, tiny_reward_path
):
    args = ppo_config(critic=critic, max_steps=2, num_iterations=1, gradient_accumulation_steps=2)
    model_args = ModelConfig(model_name_or_path=tiny_policy_path, dtype="float32", **(LORA if lora else {}))
    gradients = GradientBytes()
    trainer = PPOTrainer(
        model=tiny_policy_path,
        reward_funcs=tiny_reward_path,
        args=args,
        train_dataset=prompts,
        peft_config=get_peft_config(model_args),
        callbacks=[gradients],
    )
    trainer.train()
    settings, notes = settings_of_recipe(args, model_args, [tiny_reward_path], 12, Launch(on_gpu=False))
    plan = plan_memory(settings)
    assert notes == []

    named = list(trainer.model.named_parameters())
    assert planned(plan, "score", "policy", "weights", "adapter") == size(
        p for name, p in named if belongs_to_policy(name)
    )
    assert planned(plan, "score", "critic", "weights", "adapter", "value head") == size(
        p for name, p in named if belongs_to(name, CRITIC)
    )
    assert planned(plan, "score", "reference", "weights") == (0 if lora else size(trainer.ref_model.parameters()))
    scorer = trainer.reward_funcs[0].model
    assert planned(plan, "score", "reward model", "weights") == size(scorer.parameters())

    step = next(m for m in plan.moments if m.name == "gradient of the embedding")
    found = {
        role: sum(p.bytes for p in step.parts if p.role == role and p.what == "gradients")
        for role in ("policy", "critic")
    }
    assert found == {"policy": gradients.policy, "critic": gradients.critic}
    states = [v for state in trainer.optimizer.state.values() for v in state.values()]
    assert sum(planned(plan, "score", role, "optimizer states") for role in ("policy", "critic")) == size(states)


def test_a_saved_adapter_is_planned_with_its_initial_state_beside_it(ppo_config, prompts, tiny_policy_path, tmp_path):
    adapter = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    get_peft_model(base, adapter).save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny_policy_path).save_pretrained(tmp_path / "adapter")
    args = ppo_config()
    model_args = ModelConfig(model_name_or_path=str(tmp_path / "adapter"), dtype="float32")
    trainer = PPOTrainer(str(tmp_path / "adapter"), lambda completions, **_: [0.0] * len(completions), args, prompts)
    settings, _ = settings_of_recipe(args, model_args, [], 12, Launch(on_gpu=False))
    plan = plan_memory(settings)
    sizes = {part.what: part.bytes for part in plan.phase("score").parts if part.role == "policy"}
    ours = sum(
        planned(plan, "score", role, "weights", "adapter", "value head") for role in ("policy", "reference", "critic")
    )
    assert ours == size(trainer.model.parameters())
    assert planned(plan, "score", "reference", "adapter") == sizes["adapter"] > 0


@pytest.mark.parametrize(("quantization", "double"), [("4bit", False), ("4bit", True), ("8bit", False)])
def test_quantised_weights_have_the_bytes_of_bitsandbytes(quantization, double):
    bnb = pytest.importorskip("bitsandbytes")
    rows, columns = 96, 320
    if quantization == "8bit":
        layer = bnb.nn.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False).to("cpu")
        stored = [layer.weight.data, layer.weight.SCB]
    else:
        layer = bnb.nn.Linear4bit(columns, rows, bias=False, compress_statistics=double, quant_type="nf4").to("cpu")
        state = layer.weight.quant_state
        stored = [layer.weight.data, state.absmax, state.code]
        stored += [state.offset, state.state2.absmax, state.state2.code] if double else []
    assert quantized_bytes(
        Parameter((rows, columns), torch.float32, False, False, True, False), quantization, double
    ) == (size(stored))


def test_8_bit_adam_has_the_bytes_of_bitsandbytes():
    bnb = pytest.importorskip("bitsandbytes")
    shapes = [(80, 100), (40, 100), (7,)]
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = bnb.optim.AdamW8bit(parameters)
    sum(p.square().sum() for p in parameters).backward()
    optimizer.step()
    moments = ("state1", "state2", "absmax1", "absmax2")
    found = size(v for state in optimizer.state.values() for k, v in state.items() if k in moments)
    assert found == optimizer_bytes(
        [Parameter(s, torch.float32, True, False, False, False) for s in shapes], "adamw_8bit"
    )


def llama_8b():
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
        pad_token_id=0,
    )


def test_llama_8b_has_its_published_size_and_lora_what_the_paper_says():
    adapter = LoraConfig(r=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    parameters = parameters_of(Architecture(llama_8b(), "lm", torch.bfloat16, adapter))
    assert sum(p.numel for p in parameters if not p.adapter) == 8_030_261_248
    # r * (in + out) per matrix and layer; v_proj gives 8 heads of 128.
    assert sum(p.numel for p in parameters if p.adapter) == 32 * 16 * ((4096 + 4096) + (4096 + 1024))
    assert {p.dtype for p in parameters if p.adapter} == {torch.float32}


@pytest.mark.parametrize(
    ("stage", "per_parameter"),
    # Rajbhandari et al. 2020, figure 1, with 2 bytes of weights and gradients and K = 12 on 4 GPUs.
    [(1, 2 + 2 + 12 / 4), (2, 2 + (2 + 12) / 4), (3, (2 + 2 + 12) / 4)],
)
def test_zero_partitions_what_its_paper_says(stage, per_parameter, tiny_tokenizer):
    policy = Architecture(tiny_config(tiny_tokenizer, hidden_size=64), "lm", torch.bfloat16)
    settings = PlanSettings(
        policy, (), 8, 8, 2, 2, 2, gradient_accumulation_steps=2, has_reference=False, num_gpus=4, zero_stage=stage
    )
    plan = plan_memory(settings)
    step = next(m for m in plan.moments if m.name == "gradient of the embedding")
    whats = ("weights", "gradients", "optimizer states")
    found = sum(p.bytes for p in step.parts if p.role == "policy" and p.what in whats)
    trained = sum(p.numel for p in parameters_of(policy))
    # The step counts of Adam are beside the paper's numbers, as is what does not divide by four.
    assert found == pytest.approx(trained * per_parameter, rel=1e-3)


@pytest.mark.parametrize(
    ("overrides", "rows"),
    # Prompt and answer have 70 tokens: three rows are at most 256.
    [
        ({"on_gpu": False}, 3),
        ({"on_gpu": False, "completion_length": 300}, 1),
        ({"on_gpu": False, "prompt_length": 8}, 5),
        ({"on_gpu": True}, 5),
        ({"on_gpu": False, "autocast": torch.bfloat16}, 5),
        ({"on_gpu": False, "num_gpus": 2}, 5),
        ({"on_gpu": False, "zero_stage": 2}, 5),
    ],
)
def test_an_update_on_a_cpu_is_planned_in_the_parts_that_it_is_made_in(overrides, rows, tiny_tokenizer):
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    config = tiny_config(tiny_tokenizer)
    sizes = {
        "prompt_length": 40,
        "completion_length": 30,
        "micro_batch": 5,
        "steps_per_generation": 2,
        "score_batch": 5,
    }
    for adapter, expected in ((lora, rows), (None, 5)):
        settings = PlanSettings(Architecture(config, "lm", torch.float32, adapter), (), **{**sizes, **overrides})
        assert settings.update_batch == expected
        by_hand = {**sizes, **overrides, "micro_batch": expected, "gradient_accumulation_steps": 1 + (expected < 5)}
        same = PlanSettings(settings.policy, (), **by_hand)
        found, wanted = (
            [
                (moment.name, [part for part in moment.parts if part.role != "rollout"])
                for moment in plan_memory(s).moments
            ]
            for s in (settings, same)
        )
        assert found[-4:] == wanted[-4:] and found[-1][0] == "gradient of the embedding"


def test_an_update_with_the_loss_of_a_router_is_planned_whole():
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = Architecture(MixtralConfig(), "lm", torch.float32, lora)
    assert PlanSettings(policy, (), 40, 30, 5, 2, 5, on_gpu=False).update_batch == 5


def test_a_whole_critic_is_planned_to_be_trained_on_whole_micro_batches(tiny_tokenizer):
    config, lora = tiny_config(tiny_tokenizer), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    policy, trunk = Architecture(config, "lm", torch.float32, lora), Architecture(config, "lm", torch.float32)
    sizes = (40, 30, 5, 2, 5)
    assert PlanSettings(policy, (), *sizes, on_gpu=False, critic="adapter", critic_trunk=policy).update_batch == 3
    assert PlanSettings(policy, (), *sizes, on_gpu=False, critic="model", critic_trunk=trunk).update_batch == 5
