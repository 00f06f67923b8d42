"""The notebooks run from top to bottom."""

import copy
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from tiny import tiny_config

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {
    "01_rlhf_in_20_minutes": {"NUM_PROMPTS": 48, "ROLLOUTS": 2},
    "02_read_the_signals": {"ROLLOUTS": 6, "PRETRAINING_STEPS": 10, "PAIRS": 600},
    "03_big_models": {"ROLLOUTS": 2},
}
"""Parameters with which a notebook takes seconds."""


def run(path, folder, monkeypatch, **parameters):
    notebook = nbformat.read(path, as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    unknown = [name for name in parameters if f"\n{name} = " not in f"\n{cell.source}"]
    assert not unknown
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    # Of `!rlhf-ext`, which is installed beside this interpreter.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    if not torch.cuda.is_available():
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # DeepSpeed, which 01 and 02 do not install, says so otherwise.
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return notebook


@pytest.fixture(scope="module")
def model_path(tmp_path_factory, tiny_tokenizer):
    """A model whose rows are as long as a block of four-bit weights, and whose tokenizer pads with EOS, as SmolLM2's."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("tiny") / "model")
    LlamaForCausalLM(tiny_config(tiny_tokenizer, hidden_size=64, intermediate_size=128)).save_pretrained(folder)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    return folder


def text_of(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text") or str(output.get("data", "")) for output in outputs)


def noise_of(notebook):
    """What libraries say on the side; `!` lets a program's stderr into stdout."""
    printed = [
        (output.name, line)
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
        for line in output.text.splitlines()
    ]
    noise = (line for name, line in printed if name == "stderr" or re.search("WARNING|Warning|Failed", line))
    # X17 is about settings that 02 makes wrong on purpose.
    return [line for line in noise if line.strip() and " X17 " not in line]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch, model_path):
    parameters = dict(SMALL[path.stem])
    if "02" not in path.stem:
        parameters |= {"MODEL": model_path, "PAD_TOKEN": "<pad>"}
    notebook = run(path, tmp_path, monkeypatch, **parameters)
    shown = text_of(notebook)
    assert 'class="rollouts"' in shown
    assert "'objective/score'" not in shown
    assert noise_of(notebook) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_of_a_run_is_kept_in_a_notebook(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_there_are_as_many_notebooks_as_parameters():
    assert {path.stem for path in NOTEBOOKS} == set(SMALL)
