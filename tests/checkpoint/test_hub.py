"""Uploads: what is made, what is refused, and what is said where the hub cannot be reached."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub
import pytest
from hub_client import Hub
from huggingface_hub import HfApi

from tokensurgeon.checkpoint.hub import push_directory
from tokensurgeon.errors import InputError, PolicyError


@pytest.fixture(autouse=True)
def _no_login(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))


@pytest.fixture
def hub(monkeypatch):
    def connect(private: bool | None) -> Hub:
        api = Hub(private)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
        return api

    return connect


def test_a_new_repository_is_private_unless_told_otherwise(hub, tmp_path):
    api = hub(None)
    assert push_directory(tmp_path, "me/model", message="first") == "https://hub/me/model"
    assert api.asked == [("create", True), ("upload", "first")]
    api = hub(None)
    push_directory(tmp_path, "me/model", public=True)
    assert api.asked == [("create", False), ("upload", None)]


def test_a_public_repository_is_not_written_to_by_accident(hub, tmp_path):
    api = hub(False)
    with pytest.raises(PolicyError, match=r"(?s)everybody can see it.*--public"):
        push_directory(tmp_path, "me/model")
    assert api.asked == []
    push_directory(tmp_path, "me/model", public=True)
    api = hub(True)
    push_directory(tmp_path, "me/model")
    assert api.asked == [("upload", None)]


def test_it_says_what_is_missing_when_offline_or_without_a_login(monkeypatch, tmp_path):
    with pytest.raises(PolicyError, match=r"(?s)no token for the hub.*hf auth login"):
        push_directory(tmp_path, "me/model")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: HfApi(token="hf_none"))
    with pytest.raises(InputError, match="unset HF_HUB_OFFLINE"):
        push_directory(tmp_path, "me/model")


class Refuses(BaseHTTPRequestHandler):
    """Knows a login, and no repository by an impossible name."""

    status = 401

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


def test_a_hub_that_refuses_or_is_not_there_is_told_apart(monkeypatch, tmp_path):
    server = HTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: HfApi(endpoint=address, token="hf_wrong"))
    with pytest.raises(PolicyError, match="token that may write"):
        push_directory(tmp_path, "me/model")
    monkeypatch.setattr(Refuses, "status", 200)
    with pytest.raises(InputError, match="not the name of a repository"):
        push_directory(tmp_path, "not/a/name")
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match="cannot be reached"):
        push_directory(tmp_path, "me/model")
