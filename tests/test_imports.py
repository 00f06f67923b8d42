"""The import directions of the design, read from the source and seen in fresh interpreters."""

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rlhf_ext"
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}
# What a part may import besides itself and the standard library.
ALLOWED = {
    "functional": {"torch"},
    "rollout": {"torch"},
    "kl_control": set(),
    "diagnostics": {"numpy"},
    "report_card": {"numpy", "rlhf_ext.pair_statistics"},
    "pair_statistics": {"numpy"},
    "migration": set(),
    # What it plans for: the tile of the head, which layers are merged, and the parts of a micro-batch.
    "planning": {
        "torch",
        "transformers",
        "peft",
        "rlhf_ext.models.cpu_head",
        "rlhf_ext.models.merging",
        "rlhf_ext.models.products",
    },
    # What is heavy only inside a command: see the tests of what is loaded.
    "cli": {
        "accelerate",
        "psutil",
        "shtab",
        "torch",
        "yaml",
        "rlhf_ext.configs",
        "rlhf_ext.kl_control",
        "rlhf_ext.version",
        "rlhf_ext.demo",
        "rlhf_ext.diagnostics",
        "rlhf_ext.migration",
        "rlhf_ext.planning",
        "rlhf_ext.programs",
        "rlhf_ext.trainer",
    },
    "models": {
        "torch",
        "transformers",
        "peft",
        "safetensors",
        "huggingface_hub",
        "deepspeed",
        "rlhf_ext.report_card",
    },
}


def part_of(path):
    relative = path.relative_to(PACKAGE).with_suffix("")
    return relative.parts[0]


def imported(path):
    """Absolute names of everything a file imports."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            yield ".".join([*base, *(node.module or "").split(".")]).strip(".")


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_a_part_imports_only_what_it_may(part):
    files = [path for path in PACKAGE.rglob("*.py") if part_of(path) == part]
    assert files
    for path in files:
        for name in imported(path):
            top = name.split(".")[0]
            inside = name == f"rlhf_ext.{part}" or name.startswith(f"rlhf_ext.{part}.")
            allowed = {a for a in ALLOWED[part] if name == a or name.startswith(f"{a}.")}
            assert inside or allowed or top in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_only_the_trainer_imports_trl():
    for path in PACKAGE.rglob("*.py"):
        if part_of(path) != "trainer":
            assert not any(name.split(".")[0] == "trl" for name in imported(path)), path


@pytest.mark.parametrize("path", sorted((ROOT / "trainers").glob("*.py")), ids=lambda path: path.name)
def test_a_program_imports_trl_and_public_names_alone(path):
    import rlhf_ext

    for name in imported(path):
        top = name.split(".")[0]
        assert name == "rlhf_ext" or top in {"trl", "datasets", "transformers"} | sys.stdlib_module_names, name
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "rlhf_ext":
            assert {alias.name for alias in node.names} <= set(rlhf_ext.__all__)


# Distribution -> what it is imported as, where the two differ.
IMPORTED_AS = {"pyyaml": "yaml"}
# Asked for only where it is at work: DeepSpeed under a launch of it, IPython in a notebook, matplotlib for a plot.
OPTIONAL = {"deepspeed", "IPython", "matplotlib"}


def declared(*sections):
    """Top-level modules of the requirements in these sections of setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = " ".join(setup[section][key] for section, key in sections).split()
    names = [re.match(r"[\w.-]+", requirement)[0].lower() for requirement in required]
    return {IMPORTED_AS.get(name, name).lower() for name in names}


@pytest.mark.parametrize("part", ["demo", "the rest"])
def test_what_is_imported_is_declared(part):
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "trainers").glob("*.py")]
    names = {
        name.split(".")[0]
        for path in files
        if (PACKAGE / "demo" in path.parents) == (part == "demo")
        for name in imported(path)
    }
    foreign = {name for name in names if name and name != "rlhf_ext" and name not in sys.stdlib_module_names}
    sections = [("options", "install_requires")]
    sections += [("options.extras_require", extra) for extra in ("demo", "plots") if part == "demo"]
    allowed = declared(*sections) | {name.lower() for name in OPTIONAL}
    assert len(foreign) > 5
    assert {name for name in foreign if name.lower() not in allowed} == set()


def loaded_by(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import rlhf_ext",
        "import rlhf_ext.kl_control",
        "import rlhf_ext.report_card",
        "import rlhf_ext.migration",
        "import rlhf_ext.cli.exits, rlhf_ext.cli.launch, rlhf_ext.cli.light_check",
        "import rlhf_ext.diagnostics",
        "import atexit, rlhf_ext.cli; atexit.register(lambda: print(*sys.modules)); rlhf_ext.cli.main(['plan', '--help'])",
    ],
)
def test_light_parts_load_nothing_heavy(statement):
    assert not HEAVY & loaded_by(statement)


def test_the_mathematics_loads_torch_alone():
    assert loaded_by("import rlhf_ext.functional") & HEAVY == {"torch"}


def test_every_public_name_is_there():
    import rlhf_ext

    for name in rlhf_ext.__all__:
        assert getattr(rlhf_ext, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rlhf_ext.nothing  # noqa: B018
