"""A Hub of the test's own, in the place of huggingface.co."""

import time
from types import SimpleNamespace

import pytest
from fake_hub import TOKEN, FakeHub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A [`FakeHub`] that everything in this process talks to, logged in, with an empty cache."""
    import huggingface_hub.hf_api
    import huggingface_hub.utils._http
    import transformers.utils.hub
    from huggingface_hub import constants

    server = FakeHub()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name, value in {
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_XET": True,
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    # The client waits between its own retries.
    waits = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
    monkeypatch.setattr(huggingface_hub.utils._http, "time", waits)
    yield server
    server.close()


@pytest.fixture
def environment(hub, tmp_path):
    """Variables for a program that is to talk to the same Hub."""
    import os

    return {
        **{name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }
