"""No code of a repository runs unless asked for, no file is read that could run any, and nothing of ours reports home."""

import ast
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = [path for folder in ("rlhf_ext", "trainers", "configs") for path in sorted((ROOT / folder).rglob("*.py"))]
ALL_CODE = [*CODE, *sorted((ROOT / "benchmarks").rglob("*.py"))]
# They unpickle, run what they read, or go on the network by other ways than the Hub's client.
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "telnetlib", "ftplib"}
NETWORK_MODULES = {"requests", "httpx", "aiohttp", "socket", "http.client", "urllib.request", "urllib3", "smtplib"}


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unsafe(tree):
    """What in a module could run the code of a file, as `line: what`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        last = name.rpartition(".")[2]
        if name == "torch.load" and keywords.get("weights_only") != "True":
            yield f"{node.lineno}: torch.load without weights_only=True"
        if name in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"):
            yield f"{node.lineno}: {name} in place of yaml.safe_load"
        if keywords.get("allow_pickle") == "True" or name in ("eval", "exec"):
            yield f"{node.lineno}: {name}"
        if keywords.get("trust_remote_code") == "True":
            yield f"{node.lineno}: trust_remote_code=True"
        if last == "from_pretrained" and name.startswith("Auto") and not {"trust_remote_code", None} & set(keywords):
            yield f"{node.lineno}: {name} without trust_remote_code"


@pytest.mark.parametrize("path", ALL_CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_reads_a_file_that_could_run_code(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {name for name in imports(tree) if name.partition(".")[0] in UNSAFE_MODULES}
    own = "demo" in path.parts or "benchmarks" in path.parts
    # Demo and benchmarks load what they have made themselves; asked for nothing, transformers runs nothing either.
    assert [found for found in unsafe(tree) if not (own and found.endswith("without trust_remote_code"))] == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "yaml.load(f)",
        "np.load(f, allow_pickle=True)",
        "eval(text)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoTokenizer.from_pretrained(x)",
    ],
)
def test_the_search_finds_what_it_looks_for(line):
    assert list(unsafe(ast.parse(line)))


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_of_ours_goes_on_the_network_by_itself(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not NETWORK_MODULES & set(imports(tree))
    assert "send_telemetry" not in path.read_text(encoding="utf-8")


@pytest.fixture
def evil(tmp_path, tiny_policy_path, tiny_reward_path):
    """A function that gives a copy of a model's folder whose config or tokenizer names code, and the mark of that code."""

    def make(of="policy", what="config.json"):
        folder, mark = tmp_path / "evil", tmp_path / "mark"
        shutil.copytree({"policy": tiny_policy_path, "reward": tiny_reward_path}[of], folder)
        (folder / "code.py").write_text(f"open({str(mark)!r}, 'w').close()\nraise SystemExit('it ran')\n")
        table = json.loads((folder / what).read_text())
        if what == "config.json":
            names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
            table |= {"model_type": "evil", "auto_map": dict.fromkeys(names, "code.Evil")}
        else:
            table |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "code.Evil"]}}
        (folder / what).write_text(json.dumps(table))
        return str(folder), mark

    return make


def ones(completions, **_):
    return [1.0] * len(completions)


# What is loaded, of which model a copy, the file that names the code, and the argument that it is given as.
LOADERS = {
    "policy": ("policy", "config.json", "model"),
    "tokenizer": ("policy", "tokenizer_config.json", "model"),
    "reward model": ("reward", "config.json", "reward_funcs"),
    "reward tokenizer": ("reward", "tokenizer_config.json", "reward_funcs"),
    "critic": ("reward", "config.json", "critic_model"),
}


@pytest.mark.parametrize("trusts", [False, True])
@pytest.mark.parametrize("loader", LOADERS)
def test_code_of_a_repository_runs_only_where_it_is_trusted(
    loader, trusts, evil, tiny_policy_path, prompts, ppo_config, monkeypatch, tmp_path
):
    from rlhf_ext import PPOTrainer

    of, what, argument = LOADERS[loader]
    path, mark = evil(of, what)
    # Where nothing was said, transformers asks at the terminal.
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks at the terminal"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    args = ppo_config(trust_remote_code=trusts)
    with pytest.raises(SystemExit if trusts else OSError, match="it ran" if trusts else "set trust_remote_code=True"):
        PPOTrainer(
            **{"model": tiny_policy_path, "reward_funcs": ones, argument: path}, args=args, train_dataset=prompts
        )
    assert mark.exists() == trusts


@pytest.mark.parametrize("kwargs", [{}, {"trust_remote_code": True}])
def test_a_model_to_train_is_trusted_where_its_loading_arguments_say_so(kwargs, evil, monkeypatch, tmp_path):
    """As TRL has it: `model_init_kwargs` win over the setting."""
    from trl import SFTConfig

    from rlhf_ext.trainer.repositories import check_trained_model

    path, _ = evil()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    args = SFTConfig(use_cpu=True, bf16=False, report_to=[], model_init_kwargs=kwargs)
    with pytest.raises(SystemExit if kwargs else OSError, match="it ran" if kwargs else "set trust_remote_code=True"):
        check_trained_model(path, args)


def test_trust_is_off_by_default(ppo_config):
    from rlhf_ext import PPOConfig, RewardConfig

    assert PPOConfig.trust_remote_code is RewardConfig.trust_remote_code is False
    assert ppo_config().trust_remote_code is False


def test_a_dataset_that_is_a_program_does_not_run(tmp_path):
    from rlhf_ext import load_data

    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\n")
    with pytest.raises((OSError, ValueError, RuntimeError)):
        load_data(str(folder))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_carries_code_does_not_run_it(
    name, tiny_policy_path, prompts, ppo_config, tmp_path, monkeypatch
):
    import torch

    from rlhf_ext import PPOTrainer
    from rlhf_ext.trainer import resumable

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "mark"), "w")

    args = ppo_config(max_steps=2, save_strategy="steps", save_steps=2, beta=0.1)
    PPOTrainer(tiny_policy_path, ones, args, prompts).train()
    folder = tmp_path / "out" / "checkpoint-2"
    torch.save({"state": Evil()}, folder / name)
    # An attacker would have adapted the manifest too.
    monkeypatch.setattr(resumable, "checkpoint_to_resume", lambda *_: str(folder))
    trainer = PPOTrainer(tiny_policy_path, ones, ppo_config(beta=0.1), prompts)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        trainer.train(resume_from_checkpoint=str(folder))
    assert not (tmp_path / "mark").exists()


def test_what_the_parent_reports_is_what_the_docs_say(tiny_policy_path, prompts, ppo_config, monkeypatch):
    from rlhf_ext import PPOTrainer

    sent = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **what: sent.append(what))
    PPOTrainer(tiny_policy_path, ones, ppo_config(), prompts)
    (what,) = sent
    page = (ROOT / "docs" / "safety.md").read_text(encoding="utf-8")
    assert set(what) == {"topic", "library_name", "library_version", "user_agent"} and what["topic"] == "trl/other"
    assert [name for name in what["user_agent"] if f"`{name}`" not in page] == []
    assert str(Path(tiny_policy_path).name) not in json.dumps(what)


def test_no_tracker_is_asked_for_by_default(tmp_path):
    from rlhf_ext import PPOConfig

    settings = {"use_cpu": True, "bf16": False, "per_device_train_batch_size": 2}
    assert PPOConfig(str(tmp_path), **settings).report_to == []


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = set()

    def handle_starttag(self, tag, attributes):
        self.found |= {tag, *(name for name, _ in attributes if name.startswith("on"))}


EVIL_TEXT = '<script>alert("1")</script><img src=x onerror=alert(1)> ![i](http://x/y) [l](javascript:alert(1))'


def tags(page):
    parser = _Tags()
    parser.feed(page)
    return parser.found


def test_the_report_of_the_demo_shows_samples_as_text(tmp_path):
    from rlhf_ext.demo import report

    rows = [{"prompt": EVIL_TEXT, "completion": EVIL_TEXT, "gold": 0.5}]
    for name in (report.BEFORE, report.AFTER):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(rows))
    text = report._examples(tmp_path)
    assert tags(text) == set() and "&lt;script&gt;" in text
    assert not re.search(r"(?<!\\)\]\(", text)  # Markdown's links and images
