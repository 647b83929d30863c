"""A hub of our own: its local cache, and a server on this machine that answers the client's requests as the real one does."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_aPrivateModelsOwnersToken"


def commit_for(repository: str, revision: str = "main") -> str:
    """The commit that a revision stands for here."""
    return sha1(f"{repository} {revision}".encode()).hexdigest()


def cached(cache: Path, repository: str, folder: Path, revision: str = "main") -> Path:
    """Put a model into a local cache, as the client leaves it: blobs, and links to them.  -> its snapshot"""
    place = cache / f"models--{repository.replace('/', '--')}"
    commit = commit_for(repository, revision)
    snapshot = place / "snapshots" / commit
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = place / "blobs" / sha1(file.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(link.relative_to(place).parts) - 1), "blobs", blob.name))
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / revision).write_text(commit)
    return snapshot


@dataclass
class Hub:
    """What the server has."""

    models: dict[tuple[str, str], Path] = field(default_factory=dict)
    """Repository and revision -> the folder of its files."""
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    """Every path that was asked for."""
    address: str = ""

    def environment(self, home: Path) -> dict[str, str]:
        """What a process needs that should ask this hub."""
        return {"HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "*", "no_proxy": "*"}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            words = [unquote(word) for word in urlsplit(self.path).path.strip("/").split("/")]
            hub.asked.append(self.path)
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if words[:2] == ["api", "whoami-v2"]:
                token = {"displayName": "test", "role": "read"}
                who = {"name": "me", "type": "user", "auth": {"accessToken": token}}
                self.answer(200 if known else 401, json.dumps(who).encode())
                return
            api, words = words[0] == "api", words[2:] if words[0] == "api" else words
            repository, kind, revision, inside = "/".join(words[:2]), *[*words[2:4], "", ""][:2], "/".join(words[4:])
            revisions = {(one, commit_for(one, name)): name for one, name in hub.models}
            revision = revisions.get((repository, revision), revision)
            folder = hub.models.get((repository, revision))
            if repository not in {one for one, _ in hub.models} or (repository in hub.private and not known):
                self.answer(401, X_Error_Code="RepoNotFound")
            elif repository in hub.gated and not known:
                self.answer(403, X_Error_Code="GatedRepo")
            elif folder is None:
                self.answer(404, X_Error_Code="RevisionNotFound")
            elif api and kind == "revision":
                self.answer(200, json.dumps({"id": repository, "sha": commit_for(repository, revision)}).encode())
            elif api:
                files = [path for path in folder.rglob("*") if path.is_file()]
                tree = [
                    {"type": "file", "path": f.relative_to(folder).as_posix(), "size": f.stat().st_size, "oid": _oid(f)}
                    for f in files
                ]
                self.answer(200, json.dumps(tree).encode())
            elif (folder / inside).is_file():
                head = {"X_Repo_Commit": commit_for(repository, revision), "ETag": f'"{_oid(folder / inside)}"'}
                self.answer(200, (folder / inside).read_bytes(), **head)
            else:
                self.answer(404, X_Error_Code="EntryNotFound")

        do_HEAD = do_GET

    return Handler


def _oid(file: Path) -> str:
    return sha1(file.read_bytes()).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """While open, a server answers for the hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use_cache(patch: pytest.MonkeyPatch, cache: Path) -> Path:
    """Let the client of this process look into another local cache."""
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


def use_hub(patch: pytest.MonkeyPatch, hub: Hub) -> None:
    """Let the client of this process ask another hub."""
    patch.setattr(constants, "ENDPOINT", hub.address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("NO_PROXY", "no_proxy"):
        patch.setenv(name, "*")
