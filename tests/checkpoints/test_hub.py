"""Fetching weights: a local server stands for the publishers' servers and for the Hub."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

from vitkit import files
from vitkit.checkpoints import hub
from vitkit.checkpoints.hub import fetch, is_remote
from vitkit.checkpoints.problems import CheckpointError
from vitkit.checkpoints.published import PUBLISHED, Published
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * 40
CONFIG = b'{"model_type": "vit"}'
REPOSITORY = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "README.md": b"words"}


class Server(ThreadingHTTPServer):
    """Answers by path; remembers what was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.answers: dict[str, tuple[int, bytes, dict[str, str]]] = {}
        self.stall = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def publish(self, path: str, body: bytes, status: int = 200, **headers: str) -> str:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[path] = (status, body, names)
        return self.url + path

    def publish_repository(self, files: dict[str, bytes], revision: str = "main") -> None:
        """owner/name as the Hub has it: the listing, and each file."""
        listing = {"id": "owner/name", "siblings": [{"rfilename": name} for name in files]}
        self.publish(f"/api/models/owner/name/revision/{revision}", json.dumps(listing).encode())
        for name, body in files.items():
            self.publish(
                f"/owner/name/resolve/{revision}/{name}", body,
                X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha1(body).hexdigest()}"',
            )  # fmt: skip

    def fetched(self) -> list[str]:
        """Names of the repository's files that were downloaded, in order."""
        return [line.rpartition("/")[2] for line in self.asked if line.startswith("GET /owner/")]


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self):
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {path}")
        status, body, headers = self.server.answers.get(path, (404, b"", {}))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            if "X-Stall" in headers:
                self.server.stall.wait(10)

    do_HEAD = do_GET

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.stall.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VITKIT_CACHE", str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture
def the_hub(server, monkeypatch, tmp_path):
    """The server in place of huggingface.co, with an empty cache."""
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return server


def publish_row(monkeypatch, where: str, name: str = "test-weights") -> str:
    row = Published("ViT-B/16", where, Preprocessing.direct((224, 224)), "here")
    monkeypatch.setitem(PUBLISHED, name, row)
    return name


def closed_port() -> str:
    """The URL of a server that there is not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in files.items():
        (folder / name).write_bytes(body)
    return folder


def one_sentence(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


# What is remote


@pytest.mark.parametrize("text", ["hf:owner/name", "hf:./folder", "vit-b16-i21k", "https://a.b/c"])
def test_names_that_are_fetched(text):
    assert is_remote(text)


@pytest.mark.parametrize("text", ["vit.npz", "runs/base", "ViT-B/16", "no-such-weights", ""])
def test_everything_else_is_a_path(text):
    assert not is_remote(text)


def test_a_local_path_comes_before_a_published_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("vit-b16-i21k").mkdir()
    assert not is_remote("vit-b16-i21k")


def test_an_unknown_name_gets_the_nearest_ones():
    with pytest.raises(UsageError, match="did you mean 'vit-b16-i21k'"):
        fetch("vit-b16-21k")


def test_urls_are_fetched_for_published_weights_only(server, cache):
    url = server.publish("/other.npz", WEIGHTS)
    with pytest.raises(UsageError, match="only the files of published weights"):
        fetch(url)
    assert not server.asked


# Files of the publishers


def test_a_published_file_is_fetched_once(server, cache, monkeypatch):
    url = server.publish("/vit_models/a+b/ViT-B_16.npz", WEIGHTS)
    name = publish_row(monkeypatch, url)
    path = fetch(name)
    assert path.read_bytes() == WEIGHTS
    assert path.name == "ViT-B_16.npz"
    assert path.is_relative_to(cache)
    server.answers.clear()
    assert fetch(name) == fetch(url) == path
    assert server.asked == ["GET /vit_models/a+b/ViT-B_16.npz"]


def test_files_of_one_name_do_not_meet_in_the_cache(server, cache, monkeypatch):
    for number in (1, 2):
        url = server.publish(f"/{number}/ViT-B_16.npz", WEIGHTS + bytes([number]))
        publish_row(monkeypatch, url, f"test-{number}")
    assert [fetch(f"test-{n}").read_bytes()[-1] for n in (1, 2)] == [1, 2]


def test_the_cache_is_in_the_home_folder_by_default(server, monkeypatch, tmp_path):
    monkeypatch.delenv("VITKIT_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = fetch(publish_row(monkeypatch, server.publish("/a.npz", WEIGHTS)))
    assert path.is_relative_to(tmp_path / ".cache" / "vitkit" / "weights")


def test_a_length_that_is_not_announced_is_no_error(server, cache, monkeypatch):
    url = server.publish("/a.npz", WEIGHTS, Content_Length="")
    assert fetch(publish_row(monkeypatch, url)).read_bytes() == WEIGHTS


def test_a_truncated_file_is_absent(server, cache, monkeypatch):
    url = server.publish("/a.npz", WEIGHTS[:4000], Content_Length=str(len(WEIGHTS)))
    name = publish_row(monkeypatch, url)
    with pytest.raises(CheckpointError, match="broke off after 4000 of 10240 bytes") as error:
        fetch(name)
    one_sentence(error)
    assert not [path for path in cache.rglob("*") if path.is_file()]
    server.publish("/a.npz", WEIGHTS)
    assert fetch(name).read_bytes() == WEIGHTS


def test_a_file_named_by_its_hash_is_verified(server, cache, monkeypatch):
    right = hashlib.sha256(WEIGHTS).hexdigest()[:8]
    good = publish_row(monkeypatch, server.publish(f"/vit-{right}.pth", WEIGHTS))
    assert fetch(good).read_bytes() == WEIGHTS
    bad = publish_row(monkeypatch, server.publish("/vit-c867db91.pth", WEIGHTS))
    with pytest.raises(CheckpointError, match=f"SHA-256 .* is {right}.*, not c867db91") as error:
        fetch(bad)
    one_sentence(error)
    assert [path.name for path in cache.rglob("*.pth")] == [f"vit-{right}.pth"]


def test_a_file_that_is_gone_is_said(server, cache, monkeypatch):
    name = publish_row(monkeypatch, server.url + "/gone.npz")
    with pytest.raises(CheckpointError, match=r"gone\.npz: the server answers 404") as error:
        fetch(name)
    one_sentence(error)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_no_network_is_said(cache, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    name = publish_row(monkeypatch, closed_port() + "/a.npz")
    with pytest.raises(CheckpointError, match=r"cannot be fetched \(.*refused\)") as error:
        fetch(name)
    assert str(cache) in one_sentence(error)  # where to put the file by hand


def test_a_server_that_falls_silent_is_given_up(server, cache, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    url = server.publish("/a.npz", WEIGHTS, Content_Length="99999", X_Stall="yes")
    with pytest.raises(CheckpointError, match=r"cannot be fetched \(.*timed out\)"):
        fetch(publish_row(monkeypatch, url))
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_an_interrupted_download_leaves_nothing(server, cache, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "sync", interrupted)
    name = publish_row(monkeypatch, server.publish("/a.npz", WEIGHTS))
    with pytest.raises(KeyboardInterrupt):
        fetch(name)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_cache_that_cannot_be_written_is_said(server, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VITKIT_CACHE", str(tmp_path / "file"))
    name = publish_row(monkeypatch, server.publish("/a.npz", WEIGHTS))
    with pytest.raises(CheckpointError, match=r"cannot be written .*VITKIT_CACHE") as error:
        fetch(name)
    one_sentence(error)


def test_progress_is_for_terminals(server, cache, monkeypatch, capsys):
    name = publish_row(monkeypatch, server.publish("/a.npz", WEIGHTS))
    fetch(name)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch(publish_row(monkeypatch, server.publish("/b.npz", WEIGHTS)))
    assert capsys.readouterr().err.endswith("b.npz: 0 of 0 MB (100%)\n")


def test_files_have_no_revisions(server, cache, monkeypatch):
    name = publish_row(monkeypatch, server.publish("/a.npz", WEIGHTS))
    with pytest.raises(UsageError, match="revision"):
        fetch(name, revision="v1")
    assert not server.asked


# The Hub


def test_a_model_of_the_hub_comes_with_what_is_needed_only(the_hub):
    the_hub.publish_repository(
        REPOSITORY | {"pytorch_model.bin": b"x", "preprocessor_config.json": b"{}"}
    )
    folder = fetch("hf:owner/name")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert the_hub.fetched()[-1] == "model.safetensors"  # where it is, all is
    before = len(the_hub.fetched())
    assert fetch("hf:owner/name") == folder
    assert len(the_hub.fetched()) == before


@pytest.mark.parametrize(
    "weights, wanted",
    [
        (["model.safetensors", "pytorch_model.bin", "tf_model.h5"], ["model.safetensors"]),
        (
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors",
             "model-00002-of-00002.safetensors", "pytorch_model.bin"],
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors",
             "model-00002-of-00002.safetensors"],
        ),
        (["pytorch_model.bin", "flax_model.msgpack", "a.npz"], ["pytorch_model.bin"]),
    ],
)  # fmt: skip
def test_the_best_weights_are_chosen(the_hub, weights, wanted):
    the_hub.publish_repository(dict.fromkeys(weights, b"x") | {"config.json": CONFIG})
    folder = fetch("hf:owner/name")
    assert sorted(path.name for path in folder.iterdir()) == sorted(["config.json", *wanted])


def test_a_single_npz_file_is_returned_itself(the_hub):
    the_hub.publish_repository({"ViT-B_16.npz": WEIGHTS, "README.md": b"words"})
    path = fetch("hf:owner/name")
    assert path.name == "ViT-B_16.npz"
    assert path.read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    "files, message",
    [
        (["README.md"], "no model.safetensors, pytorch_model.bin or .npz file .*README.md"),
        ([], "no model.safetensors, .*nothing"),
        (["a.npz", "b.npz"], "more than one .npz file .*a.npz, b.npz"),
        (
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors"],
            "1 shards of weights, which are not all",
        ),
    ],
)
def test_a_repository_without_usable_weights_is_said(the_hub, files, message):
    the_hub.publish_repository(dict.fromkeys(files, b"x"))
    with pytest.raises(CheckpointError, match=f"hf:owner/name: {message}") as error:
        fetch("hf:owner/name")
    one_sentence(error)
    assert not the_hub.fetched()


def test_a_revision_is_given_in_either_way(the_hub):
    the_hub.publish_repository(REPOSITORY, revision="v1")
    assert fetch("hf:owner/name@v1") == fetch("hf:owner/name", revision="v1")
    assert fetch("hf:owner/name@v1", revision="v1").name == COMMIT
    with pytest.raises(UsageError, match="contradict"):
        fetch("hf:owner/name@v1", revision="v2")


def test_a_published_name_can_stand_for_a_model_of_the_hub(the_hub, monkeypatch):
    the_hub.publish_repository(REPOSITORY)
    name = publish_row(monkeypatch, "hf:owner/name")
    assert fetch(name) == fetch("hf:owner/name")


@pytest.mark.parametrize(
    "code, status, message",
    [
        ("RepoNotFound", 404, "no such public model"),
        ("RepoNotFound", 401, "no such public model"),
        ("GatedRepo", 403, "accept the terms on https://huggingface.co/owner/name"),
        ("RevisionNotFound", 404, "no such revision"),
        ("", 500, "cannot be fetched"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_sentence(the_hub, code, status, message):
    the_hub.publish("/api/models/owner/name/revision/main", b"", status, X_Error_Code=code)
    with pytest.raises(CheckpointError, match=message) as error:
        fetch("hf:owner/name")
    assert one_sentence(error).startswith("hf:owner/name: ")


def test_the_files_of_a_gated_model_are_refused_though_they_are_listed(the_hub):
    the_hub.publish_repository(REPOSITORY)
    weights = "/owner/name/resolve/main/model.safetensors"
    the_hub.publish(weights, b"", 403, X_Error_Code="GatedRepo")
    with pytest.raises(CheckpointError, match="accept the terms on"):
        fetch("hf:owner/name")


def test_without_network_the_cache_is_used(the_hub, monkeypatch):
    the_hub.publish_repository(REPOSITORY)
    folder = fetch("hf:owner/name")
    monkeypatch.setattr(constants, "ENDPOINT", closed_port())
    assert fetch("hf:owner/name") == folder
    with pytest.raises(CheckpointError, match=r"hf:owner/name@v2: cannot be fetched \(.*refused.*"):
        fetch("hf:owner/name@v2")
    with pytest.raises(CheckpointError, match=r"is not in the cache .*hf:\./folder") as error:
        fetch("hf:owner/other")
    one_sentence(error)


def lay_out_cache(home: Path, files: dict[str, bytes]) -> Path:
    """A snapshot as huggingface_hub keeps it: links to blobs, and a branch that names it."""
    model = home / "models--owner--name"
    snapshot = model / "snapshots" / COMMIT
    write(model / "refs", {"main": COMMIT.encode()})
    snapshot.mkdir(parents=True)
    for name, body in files.items():
        blob = hashlib.sha1(body).hexdigest()
        write(model / "blobs", {blob: body})
        (snapshot / name).symlink_to(Path("../../blobs") / blob)
    return snapshot


def test_offline_a_cache_of_huggingface_hub_serves_and_nothing_is_imported_before(tmp_path):
    snapshot = lay_out_cache(tmp_path, REPOSITORY)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    program = "\n".join([
        "import sys; from vitkit.checkpoints.hub import fetch",
        "print('huggingface_hub' in sys.modules)",
        "print(fetch('hf:owner/name'))",
        f"print(fetch('hf:owner/name@{COMMIT}'))",
        "try: fetch('hf:owner/other')",
        "except Exception as error: print(error)",
    ])  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert run.stderr == ""
    imported, branch, commit, error = run.stdout.splitlines()
    assert imported == "False"
    assert branch == commit == str(snapshot)
    assert error.startswith("hf:owner/other: not in the cache")
    assert "HF_HUB_OFFLINE" in error


@pytest.mark.parametrize("lacking", ["model.safetensors", "blob"])
def test_offline_half_a_model_in_the_cache_is_none(tmp_path, monkeypatch, lacking):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = lay_out_cache(tmp_path, REPOSITORY)
    weights = snapshot / "model.safetensors"
    (weights.resolve() if lacking == "blob" else weights).unlink()
    with pytest.raises(CheckpointError, match="not in the cache"):
        fetch("hf:owner/name")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"pip install 'vitkit\[hub\]'") as error:
        fetch("hf:owner/name")
    one_sentence(error)


# Folders of the same layout


@pytest.mark.parametrize("way", ["absolute", "relative", "plain"])
def test_a_local_folder_is_used_as_it_is(tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "owner" / "name", REPOSITORY)
    text = {"absolute": str(tmp_path / "owner/name"), "relative": "./owner/name"}
    folder = fetch("hf:" + text.get(way, "owner/name"))
    assert folder.resolve() == (tmp_path / "owner" / "name").resolve()


def test_the_npz_file_of_a_local_folder_is_returned_itself(tmp_path):
    write(tmp_path, {"ViT-B_16.npz": WEIGHTS})
    assert fetch(f"hf:{tmp_path}") == tmp_path / "ViT-B_16.npz"


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="none: no such folder"):
        fetch(f"hf:{tmp_path}/none")
    with pytest.raises(UsageError, match="no revisions"):
        fetch(f"hf:{tmp_path}", revision="v1")


# Names


@pytest.mark.parametrize(
    "text",
    [
        "", "name", "owner/", "/name", "a/b/c", "owner/../name", "owner/na me", "owner/name.git",
        "owner/-name", "owner/name-", "owner/na--me", "owner/na..me", "-o/name", "owner/n?x=1",
        "owner/näme", "owner/name\n", "owner/" + "n" * 96, "n" * 5000, "~nobody/n", "a\0b/c",
        "https://huggingface.co/owner/name",
    ],
)  # fmt: skip
def test_no_name_of_a_repository(the_hub, text):
    said = r"expected hf:owner/name|no such folder"
    with pytest.raises((UsageError, CheckpointError), match=said):
        fetch(f"hf:{text}")
    assert not the_hub.asked


@pytest.mark.parametrize("revision", ["", "-f", "a b", "../main", "a/../../b", "v1\n", "a?b", "@"])
def test_no_revision(the_hub, revision):
    for options in ({"source": f"hf:owner/name@{revision}"},
                    {"source": "hf:owner/name", "revision": revision}):  # fmt: skip
        with pytest.raises(UsageError, match="is no branch, tag or commit"):
            fetch(**options)
    assert not the_hub.asked
