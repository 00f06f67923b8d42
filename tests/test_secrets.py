"""No tracked file holds a secret, and the audit of the dependencies gives no verdict that it does not have."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Of the Hub, which detect-secrets does not know.
TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]


def scan(*names):
    command = [sys.executable, "-m", "detect_secrets.pre_commit_hook", "--baseline", str(ROOT / ".secrets.baseline")]
    return subprocess.run([*command, *names], cwd=ROOT, capture_output=True, text=True)


def test_no_tracked_file_holds_a_secret():
    names = tracked()
    assert len(names) > 100
    found = scan(*names)
    assert found.returncode == 0, found.stdout + found.stderr
    assert [name for name in names if TOKEN.search((ROOT / name).read_bytes())] == []


@pytest.mark.parametrize("secret", [f"AKIA{'Q3EXAMPLE7ABCDEF'}", f"-----BEGIN {'RSA PRIVATE KEY'}-----"])
def test_a_secret_is_found(secret, tmp_path):
    (tmp_path / "settings.py").write_text(f"key = '{secret}'\n")
    found = scan(str(tmp_path / "settings.py"))
    assert found.returncode == 1 and "Secret Type" in found.stdout
    assert TOKEN.search(b"token = hf_" + b"a" * 34)


FINE = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("packages", "status", "text"),
    [
        ([FINE], 0, "1 packages, none known to be vulnerable"),
        ([FINE, BAD], 1, "b 2: CVE-1, fixed in 3"),
        ([FINE, UNKNOWN], 2, "NOT AUDITED: 1 of 2 packages could not be looked up, the first: Dependency not found"),
        ([BAD, UNKNOWN], 1, "NOT AUDITED: 1 of 2"),
        ([], 2, "NOT AUDITED: 0 of 0"),
    ],
)
def test_an_audit_that_could_not_be_made_is_no_pass(packages, status, text):
    verdict = runpy.run_path(str(ROOT / ".ci" / "audit"))["verdict"]
    found, printed = verdict({"dependencies": packages})
    assert found == status and text in printed
