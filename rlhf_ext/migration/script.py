"""Finds TRL's old PPO in a script, by its syntax tree: nothing is run or imported."""

import ast
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches

from .behaviour import STEP_LOOP, TRAIN
from .known import ARGUMENTS, SETTINGS
from .names import CLASSES, KEPT_ARGUMENTS, METHODS, METRICS, OLD_ARGUMENTS, OLD_NAMES, UNKNOWN, Change

_TRAINERS = {"PPOTrainer", "PPOv2Trainer"}
_CONFIGS = {"PPOConfig", "PPOv2Config"}
# What a script that is moved has to do with; the rest of CLASSES is in TRL for other trainers too.
_PPO = _TRAINERS | _CONFIGS | {name for name in CLASSES if "ValueHead" in name}
_PARSERS = {"HfArgumentParser", "TrlParser"}
# Positional arguments of PPOTrainer: 0.x, and since 0.12 (`ppov2_trainer.py` of 0.11 too).
_POSITIONS = {
    STEP_LOOP: (
        "config", "model", "ref_model", "tokenizer", "dataset", "optimizer", "data_collator", "num_shared_layers",
        "lr_scheduler", "training_data_collator",
    ),
    TRAIN: (
        "config", "tokenizer", "policy", "ref_policy", "reward_model", "train_dataset", "value_model", "data_collator",
        "eval_dataset", "optimizers", "callbacks", "peft_config",
    ),
}  # fmt: skip
# Names of settings that something else in a script may well have: believed of a PPOConfig alone.
_COMMON_WORDS = {
    "batch_size", "horizon", "is_peft_model", "mini_batch_size", "model_name", "reward_model", "steps", "stop_token",
    "stop_token_id", "target", "task_name", "world_size",
}  # fmt: skip
_DATA = {
    "input_ids": Change("the column `prompt`, as text", "Leave the tokenising of prompts out: token ids are refused."),
    "query": Change("the column `prompt`, as text", "Reward functions get it as `prompts`."),
}
_UNPACKED = Change(
    "not seen: its keys are known only when it runs", "PPOConfig and PPOTrainer name the old ones when they are given."
)
_PARSER = Change(
    "rlhf_ext.RecipeParser, with parse_args_and_config()",
    "It reads `--config recipe.yaml` as well, and says what an old setting is called now.",
)
_OPTION = re.compile(r"--([a-z][a-z0-9_]*)")


@dataclass(frozen=True, order=True)
class Finding:
    """
    An old name in a script.

    Args:
        line (`int`):
            Line, from 1.
        name (`str`):
            The name there.
        new, differs (`str`):
            See [`Change`].
    """

    line: int
    name: str
    new: str
    differs: str = field(compare=False)


@dataclass(frozen=True)
class Migration:
    """
    What a script needs in order to run here.

    Args:
        era (`str`, *optional*):
            Versions of TRL that it is written for; `None` if there is no PPO of TRL in it.
        findings (`list[Finding]`):
            Every old name, by line.
        settings (`set[str]`):
            Old settings that the script gives a value.
    """

    era: str | None
    findings: list[Finding]
    settings: set[str]


def read_script(source: str) -> Migration:
    """
    Find what must change in a script that uses TRL's PPO.

    Args:
        source (`str`):
            The script.

    Returns:
        [`Migration`]

    Raises:
        SyntaxError: If it is not Python.
    """
    tree = ast.parse(source)
    script = _Script(tree)
    if not script.uses_ppo:
        return Migration(None, [], set())
    findings: dict[tuple[int, str, str], Finding] = {}
    for line, name, change in script.changes():
        findings.setdefault((line, name, change.new), Finding(line, name, change.new, change.differs))
    return Migration(script.era, sorted(findings.values()), script.settings)


class _Script:
    """The names of a script, and what they hold."""

    def __init__(self, tree: ast.Module):
        self.nodes = list(ast.walk(tree))
        self.origins = dict(_imports(self.nodes))
        self.trainers: set[str] = set()
        self.configs: set[str] = set()
        self.settings: set[str] = set()
        self.subclasses: dict[str, str] = {}
        for node in self.nodes:
            if isinstance(node, ast.ClassDef):
                for base in map(self.name_in_trl, node.bases):
                    if base in _TRAINERS | _CONFIGS:
                        self.subclasses[node.name] = base
        for node in self.nodes:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    self._assign(target, node.value)
            elif isinstance(node, ast.arg) and node.annotation is not None:
                self._hold(node.arg, self.name_in_trl(node.annotation))

    @property
    def uses_ppo(self) -> bool:
        names = {self.name_in_trl(node) for node in self.nodes if isinstance(node, ast.Name | ast.Attribute)}
        return bool(names & _PPO) or any(origin.rpartition(".")[2] in _PPO for origin in self.origins.values())

    @property
    def era(self) -> str:
        methods = {
            node.attr for node in self.nodes if isinstance(node, ast.Attribute) and self._is_trainer(node.value)
        }
        given = {keyword.arg for call in self._calls(_TRAINERS) for keyword in call.keywords}
        names = {origin.rpartition(".")[2] for origin in self.origins.values()}
        by_loop = "step" in methods or "dataset" in given or any("ValueHead" in name for name in names)
        return STEP_LOOP if by_loop else TRAIN

    def changes(self) -> Iterator[tuple[int, str, Change]]:
        yield from self._of_imports()
        for node in self.nodes:
            if isinstance(node, ast.Call):
                yield from self._of_call(node)
            elif isinstance(node, ast.Attribute):
                yield from self._of_attribute(node)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield from self._of_text(node, node.value)

    def name_in_trl(self, node: ast.expr) -> str | None:
        """`PPOTrainer` of whatever the script calls `trl.[...]PPOTrainer`."""
        if isinstance(node, ast.Name) and node.id in self.subclasses:
            return self.subclasses[node.id]
        dotted = ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""
        first, _, rest = dotted.partition(".")
        origin = self.origins.get(first)
        if origin is None:
            return dotted if "*" in self.origins and dotted in CLASSES else None
        full = f"{origin}.{rest}" if rest else origin
        return full.rpartition(".")[2] if full.partition(".")[0] == "trl" else None

    # ---- What variables hold ----------------------------------------------------------------------------------------

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        called = self.name_in_trl(value.func) if isinstance(value, ast.Call) else None
        self._hold(ast.unparse(target), called)
        if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Attribute):
            return
        if value.func.attr not in ("parse_args_into_dataclasses", "parse_args_and_config"):
            return
        classes = self._parsed_classes(ast.unparse(value.func.value))
        targets = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
        for item, name in zip(targets, classes, strict=False):
            self._hold(ast.unparse(item), name)

    def _parsed_classes(self, parser: str) -> list[str | None]:
        for node in self.nodes:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                if ast.unparse(node.targets[0]) == parser and self._is_parser(node.value):
                    return self._classes_of(node.value)
        return []

    def _classes_of(self, parser: ast.Call) -> list[str | None]:
        first = parser.args[0] if parser.args else ast.Tuple([])
        classes = first.elts if isinstance(first, ast.Tuple | ast.List) else [first]
        return [self.name_in_trl(item) for item in classes]

    def _hold(self, variable: str, name: str | None) -> None:
        if name in _TRAINERS:
            self.trainers.add(variable)
        elif name in _CONFIGS:
            self.configs.add(variable)

    def _is_trainer(self, node: ast.expr) -> bool:
        return ast.unparse(node) in self.trainers

    def _is_parser(self, call: ast.Call) -> bool:
        return ast.unparse(call.func).rpartition(".")[2] in _PARSERS

    def _calls(self, names: set[str]) -> list[ast.Call]:
        return [node for node in self.nodes if isinstance(node, ast.Call) and self.name_in_trl(node.func) in names]

    # ---- What must change -------------------------------------------------------------------------------------------

    def _of_imports(self) -> Iterator[tuple[int, str, Change]]:
        for node in self.nodes:
            if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] != "trl":
                continue
            for alias in node.names:
                if alias.name in CLASSES:
                    yield alias.lineno, alias.name, CLASSES[alias.name]

    def _of_call(self, node: ast.Call) -> Iterator[tuple[int, str, Change]]:
        name = self.name_in_trl(node.func)
        if self._is_parser(node) and set(self._classes_of(node)) & _CONFIGS:
            yield node.lineno, ast.unparse(node.func), _PARSER
        if name in _CONFIGS:
            yield from self._of_keywords(node, OLD_NAMES, SETTINGS, "PPOConfig")
            self.settings |= {keyword.arg for keyword in node.keywords if keyword.arg}
        elif name in _TRAINERS:
            yield from self._of_keywords(node, OLD_ARGUMENTS | KEPT_ARGUMENTS, ARGUMENTS, "PPOTrainer")
            positions = _POSITIONS[self.era]
            for argument, position in zip(node.args, positions, strict=False):
                change = (OLD_ARGUMENTS | KEPT_ARGUMENTS).get(position, Change(f"{position}="))
                yield argument.lineno, f"argument {position}", Change(f"{change.new} (by name)", change.differs)

    def _of_keywords(
        self, node: ast.Call, table: dict[str, Change], known: Collection[str], owner: str
    ) -> Iterator[tuple[int, str, Change]]:
        for keyword in node.keywords:
            if keyword.arg is None:
                yield keyword.value.lineno, f"**{ast.unparse(keyword.value)}", _UNPACKED
            elif keyword.arg in table:
                yield keyword.lineno, keyword.arg, table[keyword.arg]
            elif keyword.arg not in known:
                yield keyword.lineno, keyword.arg, _unknown(keyword.arg, known, owner)

    def _of_attribute(self, node: ast.Attribute) -> Iterator[tuple[int, str, Change]]:
        line = node.end_lineno or node.lineno
        name = self.name_in_trl(node)
        if name in CLASSES:
            yield line, name, CLASSES[name]
        elif self._is_trainer(node.value) and node.attr in METHODS:
            yield line, f".{node.attr}", METHODS[node.attr]
        elif ast.unparse(node.value) in self.configs:
            if node.attr in OLD_NAMES:
                yield line, f".{node.attr}", OLD_NAMES[node.attr]
            elif isinstance(node.ctx, ast.Store) and node.attr not in SETTINGS:
                yield line, f".{node.attr}", _unknown(node.attr, SETTINGS, "PPOConfig")
        elif node.attr in OLD_NAMES and "_" in node.attr and node.attr not in _COMMON_WORDS:
            yield line, f".{node.attr}", OLD_NAMES[node.attr]

    def _of_text(self, node: ast.Constant, text: str) -> Iterator[tuple[int, str, Change]]:
        if text in METRICS:
            yield node.lineno, f'"{text}"', METRICS[text]
        elif text in _DATA and (text == "input_ids" or self.era == STEP_LOOP):
            yield node.lineno, f'"{text}"', _DATA[text]
        for match in _OPTION.finditer(text):
            if match[1] in OLD_NAMES:
                self.settings.add(match[1])
                yield node.lineno + text.count("\n", 0, match.start()), f"--{match[1]}", OLD_NAMES[match[1]]


def _unknown(name: str, known: Collection[str], owner: str) -> Change:
    close = get_close_matches(name, sorted(known), n=1)
    near = f" (near it is {close[0]})" if close else ""
    return Change(
        f"{UNKNOWN}: {owner} takes nothing of this name{near}",
        "Of another version of a library: say it otherwise, or leave it out. Of a subclass of your own: keep it.",
    )


def _imports(nodes: list[ast.AST]) -> Iterator[tuple[str, str]]:
    """What a name in the script is called where it comes from."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (first, first)
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] == "trl":
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"
