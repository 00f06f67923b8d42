"""What the checks before a run read and allow; what they refuse is in tests/errors."""

from peft import LoraConfig

from rlhf_ext.models import sources
from rlhf_ext.trainer import checks
from rlhf_ext.trainer.policy import PolicySource


def test_mismatched_sampling_can_be_allowed(ppo_config):
    assert ppo_config(top_k=50, allow_mismatched_sampling=True).top_k == 50


def test_config_and_tokenizer_are_those_of_the_revision(
    tiny_policy_path, tiny_tokenizer, prompts, ppo_config, monkeypatch
):
    asked = []
    loaded = {
        sources.AutoConfig: sources.AutoConfig.from_pretrained(tiny_policy_path),
        checks.AutoTokenizer: tiny_tokenizer,
    }
    for auto, result in loaded.items():
        monkeypatch.setattr(auto, "from_pretrained", lambda name, result=result, **kw: asked.append(kw) or result)
    args = ppo_config(model_init_kwargs={"revision": "v2", "token": "t", "dtype": "float32"})
    checks.check_inputs(tiny_policy_path, PolicySource(tiny_policy_path, None), args, prompts, None, None)
    assert [{name: kw.get(name) for name in args.model_init_kwargs} for kw in asked] == [
        {"revision": "v2", "token": "t", "dtype": None}
    ] * 2


def test_a_base_has_the_revision_of_its_adapters_config_and_not_that_of_the_adapters_repository(
    tiny_policy_path, ppo_config, monkeypatch
):
    asked, config = [], sources.AutoConfig.from_pretrained(tiny_policy_path)
    monkeypatch.setattr(sources.AutoConfig, "from_pretrained", lambda name, **kw: asked.append((name, kw)) or config)
    args = ppo_config(model_init_kwargs={"revision": "of-the-adapter", "subfolder": "adapter", "token": "t"})
    for revision in ("of-the-base", None):
        checks.base_config("adapter", PolicySource("base", LoraConfig(), revision), args)
    shared = {"trust_remote_code": False, "token": "t"}
    assert asked == [("base", shared | {"revision": name}) for name in ("of-the-base", "main")]
