"""The wheel and the source distribution, and the wheel in an environment that has numpy and PyYAML alone."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECIPE = "qwen2.5-0.5b-ppo"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy, because setuptools packs whatever an earlier build left in the checkout's build folder."""
    source = tmp_path_factory.mktemp("package") / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("rlhf_ext", "trainers", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    return source


def build(kind, source, folder):
    """Without build isolation, because that would download the setuptools that the dev extra has installed."""
    code = f"from setuptools import build_meta; print('built', build_meta.build_{kind}({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def rlhf_ext(wheel, tmp_path_factory):
    """A function that runs the command of the wheel in an environment without torch, from an empty folder."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    command = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--no-deps"]
    subprocess.run([*command, "--no-index", "--quiet", str(wheel)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in ("numpy", "numpy.libs", "yaml"):
        found = Path(importlib.util.find_spec("numpy").origin).parents[1] / name
        if found.exists():
            (site / name).symlink_to(found)
    work = tmp_path_factory.mktemp("work")

    def run(*arguments):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(folder / "bin" / "rlhf-ext"), *arguments]
        return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)

    return run


def test_the_wheel_holds_programs_configurations_and_types_and_no_stray_packages(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    code = [*(ROOT / "rlhf_ext").rglob("*.py"), ROOT / "rlhf_ext" / "py.typed"]
    assert {str(path.relative_to(ROOT)) for path in code} <= names
    assert {f"rlhf_ext/programs/{path.name}" for path in (ROOT / "trainers").glob("*.py")} <= names
    shipped = [path for suffix in ("yaml", "json") for path in (ROOT / "configs").rglob(f"*.{suffix}")]
    assert len(shipped) > 15 and {f"rlhf_ext/{path.relative_to(ROOT)}" for path in shipped} <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"rlhf_ext"}


def test_a_wheel_of_the_source_distribution_is_the_same(source, wheel, tmp_path):
    with tarfile.open(build("sdist", source, tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    again = build("wheel", unpacked, tmp_path)
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize("command", ["", "ppo", "check", "diagnose", "migrate", "demo"])
def test_help_runs_without_torch(rlhf_ext, command):
    done = rlhf_ext(*command.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: rlhf-ext")


def test_env_runs_without_torch(rlhf_ext):
    done = rlhf_ext("env")
    assert (done.returncode, done.stderr) == (0, "")
    assert "- torch: not installed\n" in done.stdout and "- devices: not known without torch\n" in done.stdout


def test_check_of_a_shipped_recipe_runs_without_torch(rlhf_ext):
    assert rlhf_ext("check", "--config", f"recipes/{RECIPE}.yaml").returncode == 0
    done = rlhf_ext("check", "--config", RECIPE, "--kl_target", "500")
    assert done.returncode == 1 and done.stdout.startswith("WARN kl-target-far: ")


def test_diagnose_runs_without_torch(rlhf_ext, tmp_path):
    log = tmp_path / "log.csv"
    rows = [f"{i},{'nan' if i > 20 else i / 20},{0.1 * i},0.2" for i in range(40)]
    log.write_text("step,objective/score,kl/ref,kl/beta\n" + "\n".join(rows))
    done = rlhf_ext("diagnose", str(log), "--fail-on", "warn")
    assert (done.returncode, done.stderr) == (1, "")
    assert "CRITICAL X1: numbers that are not finite (from step 21" in done.stdout


def test_migrate_runs_without_torch(rlhf_ext, tmp_path):
    script = tmp_path / "old.py"
    script.write_text("from trl import PPOConfig\nPPOConfig(kl_coef=0.1)\n")
    done = rlhf_ext("migrate", str(script))
    assert (done.returncode, done.stderr) == (1, "") and "kl_coef -> beta" in done.stdout


@pytest.mark.parametrize("command", ["sft", "reward", "ppo", "plan"])
def test_a_command_that_needs_more_says_what_is_missing(rlhf_ext, command):
    program = "ppo" if command == "plan" else command
    done = rlhf_ext(command, "--config", f"qwen2.5-0.5b-{program}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"rlhf-ext {command}: error: the package ") and "is not installed" in done.stderr
    assert done.stderr.count("\n") == 1
