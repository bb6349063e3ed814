"""Weights are found in files, folders and a hub; where they are not, one sentence says the mend.

The hub is a real HTTP server on loopback that answers as huggingface.co does.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mixgrpo.errors import ConfigError
from mixgrpo.files import hub as weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b"{}", "model.bin": b"weights", "other.bin": b"others"}


class Hub(BaseHTTPRequestHandler):
    """owner/open is public, owner/gated shows its list but no file, owner/ill is out of order."""

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/owner/ill"):
            self.answer(b"", 503)
        elif not path.replace("/api/models", "").startswith(("/owner/open", "/owner/gated")):
            self.answer(b"", 401, X_Error_Code="RepoNotFound")
        elif "/revision/" in path and not path.endswith(("/main", COMMIT)):
            self.answer(b"", 404, X_Error_Code="RevisionNotFound")
        elif "/tree/" in path:
            rows = [
                {"type": "file", "path": name, "size": len(body), "oid": f"{name}-oid"}
                for name, body in FILES.items()
            ]
            self.answer(json.dumps(rows).encode(), Content_Type="application/json")
        elif path.startswith("/api/"):
            body = json.dumps({"id": "owner/open", "sha": COMMIT, "siblings": []}).encode()
            self.answer(body, Content_Type="application/json")
        elif "gated" in path:
            self.answer(b"", 403, X_Error_Code="GatedRepo")
        else:
            name = path.rsplit("/", 1)[1]
            self.answer(FILES[name], X_Repo_Commit=COMMIT, ETag=f'"{name}-oid"')

    do_HEAD = do_GET


@contextmanager
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(cache: Path, endpoint: str, *calls: str) -> list[str]:
    """What each call answers in a process of its own: huggingface_hub reads these when imported."""
    code = (
        "from mixgrpo.files import hub as weights\n"
        "from mixgrpo.errors import ConfigError, RunError\n"
    )
    for call in calls:
        code += (
            f"try: print('path', weights.{call})\n"
            "except (ConfigError, RunError) as e: print(type(e).__name__, e)\n"
        )
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache)}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_local_file_and_a_file_in_a_folder_are_found(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"weights")
    assert weights.file(str(file), "another name") == file
    assert weights.file(str(tmp_path), "model.bin") == file
    assert weights.folder(str(tmp_path)) == tmp_path


def test_a_folder_without_the_file_and_a_path_that_is_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^reward hps: .* has no file model\.bin$"):
        weights.file(str(tmp_path), "model.bin", needed_by="reward hps")
    with pytest.raises(ConfigError, match=r"there is no file or folder .*absent$"):
        weights.file(str(tmp_path / "absent"), "model.bin")
    with pytest.raises(ConfigError, match="no id of the hub"):
        weights.folder("not an id")
    (tmp_path / "model.bin").touch()
    with pytest.raises(ConfigError, match="a folder is needed"):
        weights.folder(str(tmp_path / "model.bin"))


def test_a_hub_gives_what_is_asked_for_and_the_cache_serves_without_it(tmp_path: Path) -> None:
    with hub() as endpoint:
        one, part = ask(
            tmp_path,
            endpoint,
            "file('owner/open', 'model.bin')",
            "folder('owner/open', allow_patterns=['*.json'])",
        )
    file, folder = Path(one.removeprefix("path ")), Path(part.removeprefix("path "))
    assert file.read_bytes() == FILES["model.bin"]
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.bin"]
    later = ask(
        tmp_path, endpoint, "file('owner/open', 'model.bin')", "file('owner/open', 'other.bin')"
    )
    assert later[0] == one
    assert later[1].startswith("ConfigError model: there is no folder owner/open, the cache lacks")


def test_what_a_hub_does_not_give_is_one_sentence_with_the_mend(tmp_path: Path) -> None:
    with hub() as endpoint:
        gated, revision, unknown, lacking, ill = ask(
            tmp_path,
            endpoint,
            "file('owner/gated', 'model.bin', needed_by='reward hps')",
            "folder('owner/open', revision='v9')",
            "folder('owner/absent')",
            "file('owner/open', 'absent.bin')",
            "folder('owner/ill')",
        )
    assert gated == (
        "ConfigError reward hps: owner/gated is gated; accept its licence on "
        "https://huggingface.co/owner/gated, then run `hf auth login` and "
        "`hf download owner/gated model.bin`"
    )
    assert revision == "ConfigError model: owner/open has no revision v9"
    assert unknown.startswith("ConfigError model: there is no folder owner/absent, and the hub")
    assert lacking == "ConfigError model: owner/open has no file absent.bin"
    assert ill == "RunError model: the hub answers 503 for owner/ill"


def test_a_hub_that_cannot_be_reached_is_an_error_at_once(tmp_path: Path) -> None:
    (answer,) = ask(tmp_path, "http://127.0.0.1:9", "folder('owner/open', revision='v1')")
    assert answer == (
        "ConfigError model: there is no folder owner/open, the cache lacks owner/open at v1, and "
        "the hub cannot be reached; run `hf download owner/open --revision v1` where it can, or "
        "name a folder"
    )
