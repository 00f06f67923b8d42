"""Of what bitsandbytes says at import, one notice is not printed and nothing else is lost."""

import logging
import subprocess
import sys

import pytest

import rlhf_ext

LOGGER = "bitsandbytes.backends.cpu.ops"
NOTICE = (
    "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please make sure you already `pip install kernels` "
    "and the kernels >= 0.11.1"
)
MISSING = ModuleNotFoundError("No module named 'kernels'", name="kernels")


@pytest.mark.parametrize(
    ("name", "message", "values", "is_said"),
    [
        (LOGGER, NOTICE, (MISSING,), False),
        (LOGGER, NOTICE, (ModuleNotFoundError("No module named 'packaging'", name="packaging"),), True),
        (LOGGER, NOTICE, (OSError("no network"),), True),
        (LOGGER, "A plugin is missing: %s", (MISSING,), True),
        (LOGGER, "The CPU is slow.", (), True),
        ("bitsandbytes.cextension", NOTICE, (MISSING,), True),
    ],
)
def test_the_notice_alone_is_hidden(name, message, values, is_said):
    assert rlhf_ext.__version__
    # Through the logger's own filters, whatever level an earlier test has left it at.
    record = logging.LogRecord(name, logging.WARNING, "ops.py", 1, message, values, None)
    assert bool(logging.getLogger(name).filter(record)) == is_said


def test_the_package_that_prints_it_is_silent_beside_ours():
    pytest.importorskip("bitsandbytes")
    code = "import rlhf_ext, bitsandbytes, sys; print(bitsandbytes.backends.cpu.ops.logger.name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == LOGGER
    assert "gemm_4bit_forward" not in done.stderr
