"""What the client of Hugging Face does with the server that the tests of the Hub rely on."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import huggingface_hub
import pytest
from hub_server import HubServer, client_environment, use_server
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

REPO, CONFIG, WEIGHTS = "someone/net", "config.json", "model.safetensors"
FILES = {CONFIG: b'{"depth": 3}\n', WEIGHTS: bytes(range(256)) * 40, "sub/notes.txt": b"notes"}


@pytest.fixture
def server(monkeypatch, tmp_path):
    with HubServer() as hub, use_server(monkeypatch, hub, tmp_path / "home"):
        yield hub


@pytest.fixture
def no_waiting(monkeypatch):
    """Between the retries of the client; it would be 23 s where nothing answers."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture
def api(server):
    return HfApi(token=server.token)


def write(folder, files):
    for name, data in files.items():
        folder.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        folder.joinpath(name).write_bytes(data)
    return folder


def read(name, **arguments):
    return Path(hf_hub_download(REPO, name, **arguments)).read_bytes()


def asked(server, method):
    return [path for used, path in server.log if used == method]


def test_a_repo_is_created_once(server, api):
    url = api.create_repo(REPO)
    assert (str(url), url.repo_id) == (f"{server.url}/{REPO}", REPO)
    assert api.create_repo(REPO, exist_ok=True) == url
    with pytest.raises(HfHubHTTPError, match="already created") as caught:
        api.create_repo(REPO)
    assert caught.value.response.status_code == 409
    assert server.files(REPO) == {".gitattributes": b""}
    assert api.create_repo("mine").repo_id == "someone/mine"
    assert api.whoami()["name"] == "someone"


def test_a_folder_is_pushed_in_one_commit(server, api, tmp_path):
    stale = FILES | {"pytorch_model.bin": b"old", "old/deep.bin": b"old", "README.md": b"kept"}
    first = server.put(REPO, stale)
    new = {CONFIG: b'{"depth": 4}\n', "a.safetensors": b"a" * 5000, "sub/b.safetensors": b"b"}
    server.clear_log()
    commit = api.upload_folder(repo_id=REPO, folder_path=write(tmp_path / "new", new),
                               delete_patterns=["*.safetensors", "*.bin"])
    kept = {"README.md": b"kept", "sub/notes.txt": b"notes"}
    assert server.files(REPO) == new | kept
    assert server.files(REPO, commit.oid) == new | kept
    assert server.files(REPO, first) == stale
    assert [c.sha for c in server.repos[REPO].branches["main"]] == [first, commit.oid]
    assert asked(server, "POST").count(f"/api/models/{REPO}/commit/main") == 1
    assert sorted(asked(server, "PUT")) == sorted(
        f"/lfs/{hashlib.sha256(new[name]).hexdigest()}"
        for name in ("a.safetensors", "sub/b.safetensors"))


def test_what_is_there_already_is_not_sent_again(server, api, tmp_path):
    server.put(REPO, {})
    folder = write(tmp_path / "new", FILES)
    first = api.upload_folder(repo_id=REPO, folder_path=folder)
    server.clear_log()
    assert api.upload_folder(repo_id=REPO, folder_path=folder).oid == first.oid
    assert asked(server, "PUT") == []
    assert f"/api/models/{REPO}/commit/main" not in asked(server, "POST")


def test_a_commit_deletes_and_asks_for_its_parent(server, api):
    first = server.put(REPO, FILES | {"old/a.bin": b"", "old/b/c.txt": b""})
    operations = [CommitOperationDelete("old/"), CommitOperationDelete(CONFIG),
                  CommitOperationAdd("README.md", b"---\nlicense: mit\n---\n# Net\n"),
                  CommitOperationAdd("empty.bin", b"")]
    second = api.create_commit(REPO, operations, commit_message="m", parent_commit=first).oid
    assert server.files(REPO) == {name: FILES[name] for name in (WEIGHTS, "sub/notes.txt")} | {
        "README.md": b"---\nlicense: mit\n---\n# Net\n", "empty.bin": b""}
    assert "/api/validate-yaml" in asked(server, "POST")
    with pytest.raises(HfHubHTTPError, match="commit has happened since") as caught:
        api.create_commit(REPO, [CommitOperationAdd("x", b"x")], commit_message="m",
                          parent_commit=first)
    assert caught.value.response.status_code == 412
    assert server.repos[REPO].find("main").sha == second


def test_every_revision_stays(server, api):
    first = server.put(REPO, FILES)
    api.create_branch(REPO, branch="a/b")
    api.create_branch(REPO, branch="a/b", exist_ok=True)
    on_branch = api.create_commit(REPO, [CommitOperationAdd(CONFIG, b"branch")], revision="a/b",
                                  commit_message="m").oid
    second = server.put(REPO, FILES | {CONFIG: b"second"})
    assert len({first, on_branch, second}) == 3
    assert read(CONFIG) == b"second"
    assert read(CONFIG, revision="a/b") == read(CONFIG, revision=on_branch) == b"branch"
    assert read(CONFIG, revision=first) == FILES[CONFIG]
    for revision, sha in ((None, second), ("a/b", on_branch), (first, first)):
        assert api.model_info(REPO, revision=revision).sha == sha
    with pytest.raises(RevisionNotFoundError):
        read(CONFIG, revision="c")
    with pytest.raises(RevisionNotFoundError):
        api.create_commit(REPO, [CommitOperationAdd("x", b"x")], revision="c", commit_message="m")
    with pytest.raises(EntryNotFoundError):
        read("absent.json")


def test_listings(server, api):
    server.put(REPO, FILES | {"sub/deep/x.bin": b"x"})
    names = sorted([*FILES, "sub/deep/x.bin"])
    assert sorted(api.list_repo_files(REPO)) == names
    info = api.model_info(REPO)
    assert (info.id, info.private, sorted(s.rfilename for s in info.siblings)) == (
        REPO, False, names)
    assert {e.path for e in api.list_repo_tree(REPO)} == {CONFIG, WEIGHTS, "sub"}
    assert {e.path for e in api.list_repo_tree(REPO, "sub")} == {"sub/notes.txt", "sub/deep"}
    assert {e.path for e in api.list_repo_tree(REPO, "sub", recursive=True, expand=True)} == {
        "sub/notes.txt", "sub/deep", "sub/deep/x.bin"}
    weights, folder = api.get_paths_info(REPO, [WEIGHTS, "sub", "absent"])
    assert (weights.size, weights.lfs.size, weights.lfs.sha256) == (
        10240, 10240, hashlib.sha256(FILES[WEIGHTS]).hexdigest())
    assert folder.path == "sub"
    assert api.file_exists(REPO, CONFIG) and not api.file_exists(REPO, "absent")
    assert api.repo_exists(REPO) and not api.repo_exists("someone/other")


def test_the_head_of_a_file(server):
    sha = server.put(REPO, FILES)
    seen = get_hf_file_metadata(hf_hub_url(REPO, WEIGHTS))
    assert (seen.commit_hash, seen.etag, seen.size) == (
        sha, hashlib.sha256(FILES[WEIGHTS]).hexdigest(), 10240)
    seen = get_hf_file_metadata(hf_hub_url(REPO, CONFIG))
    git = hashlib.sha1(b"blob 13\0" + FILES[CONFIG]).hexdigest()
    assert (seen.commit_hash, seen.etag, seen.size) == (sha, git, 13)
    assert server.downloads() == []


@pytest.mark.parametrize("asked, first, last", [
    ("5-9", 5, 9), ("10000-", 10000, 10239), ("0-99999", 0, 10239)])
def test_a_part_of_a_file(server, asked, first, last):
    server.put(REPO, FILES)
    request = Request(hf_hub_url(REPO, WEIGHTS), headers={"Range": f"bytes={asked}"})
    with urlopen(request) as reply:
        assert (reply.status, reply.headers["Content-Range"]) == (
            206, f"bytes {first}-{last}/10240")
        assert reply.read() == FILES[WEIGHTS][first:last + 1]


def test_no_part_after_the_end(server):
    server.put(REPO, FILES)
    request = Request(hf_hub_url(REPO, WEIGHTS), headers={"Range": "bytes=10240-"})
    with pytest.raises(HTTPError) as caught:
        urlopen(request)
    assert (caught.value.code, caught.value.headers["Content-Range"]) == (416, "bytes */10240")
    caught.value.close()


def test_a_snapshot_holds_what_the_patterns_allow(server):
    sha = server.put(REPO, FILES)
    server.clear_log()
    folder = Path(snapshot_download(REPO, allow_patterns=["*.json", "sub/*"]))
    assert folder.name == sha
    assert {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file()} == {name: FILES[name] for name in (CONFIG, "sub/notes.txt")}
    assert sorted(server.downloads()) == [CONFIG, "sub/notes.txt"]


def test_a_second_download_asks_for_no_body(server):
    sha = server.put(REPO, FILES)
    assert read(WEIGHTS) == FILES[WEIGHTS]
    assert server.downloads() == [WEIGHTS]
    path = f"/{REPO}/resolve/main/{WEIGHTS}"
    assert server.log == [("HEAD", path), ("GET", path)]
    old = server.log
    server.clear_log()
    assert read(WEIGHTS) == FILES[WEIGHTS]
    assert (server.log, server.downloads(), len(old)) == ([("HEAD", path)], [], 2)
    server.clear_log()
    assert read(WEIGHTS, revision=sha) == FILES[WEIGHTS]
    assert server.log == []
    server.put(REPO, FILES | {CONFIG: b"new"})
    assert read(WEIGHTS) == FILES[WEIGHTS]
    assert server.downloads() == []  # the same content in another commit


def test_a_stopped_server_is_gone_and_the_cache_stays(server, no_waiting):
    server.put(REPO, FILES)
    read(CONFIG)
    server.stop()
    assert read(CONFIG) == FILES[CONFIG]
    with pytest.raises(LocalEntryNotFoundError):
        read(WEIGHTS)


def test_a_private_repo_needs_its_token(server, api):
    api.create_repo(REPO, private=True)
    assert api.model_info(REPO).private
    server.put(REPO, FILES)  # and it stays private
    for token, status in ((False, 401), (None, 401), ("hf_another", 404)):
        with pytest.raises(RepositoryNotFoundError) as caught:
            read(CONFIG, token=token)
        assert caught.value.response.status_code == status
        with pytest.raises(RepositoryNotFoundError):
            HfApi(token=token or False).model_info(REPO)
    assert server.downloads() == []
    assert read(CONFIG, token=server.token) == FILES[CONFIG]


def test_an_absent_repo_looks_like_a_private_one(server):
    for token, status in ((False, 401), (server.token, 404)):
        with pytest.raises(RepositoryNotFoundError) as caught:
            read(CONFIG, token=token)
        assert caught.value.response.status_code == status


def test_only_the_token_may_write(server, monkeypatch):
    server.put(REPO, FILES)
    operations = [CommitOperationAdd(CONFIG, b"mine now")]
    for token, status in ((False, 401), ("hf_another", 403)):
        with pytest.raises(HfHubHTTPError) as caught:
            HfApi(token=token).create_commit(REPO, operations, commit_message="m")
        assert caught.value.response.status_code == status
        with pytest.raises(HfHubHTTPError):
            HfApi(token=token).create_repo("someone/another")
    assert server.files(REPO) == FILES and list(server.repos) == [REPO]
    monkeypatch.setenv("HF_TOKEN", server.token)
    huggingface_hub.create_commit(REPO, operations, commit_message="m")  # without an HfApi
    assert server.files(REPO)[CONFIG] == b"mine now"


def test_a_flipped_bit_goes_unseen_and_stays(server):
    server.put(REPO, FILES)
    server.fault(WEIGHTS, "flip")
    wrong = read(WEIGHTS)
    assert wrong == FILES[WEIGHTS][:-1] + b"\xfe"
    assert read(WEIGHTS) == wrong
    assert read(WEIGHTS, force_download=True) == FILES[WEIGHTS]


def test_a_short_body_is_an_error_and_not_cached(server):
    server.put(REPO, FILES)
    server.fault(WEIGHTS, "truncate")
    with pytest.raises(OSError, match="size 10240 but has size 5120"):
        read(WEIGHTS)
    assert read(WEIGHTS) == FILES[WEIGHTS]
    assert server.downloads() == [WEIGHTS, WEIGHTS]


@pytest.mark.parametrize("kind", ["close", "reset"])
def test_a_connection_that_breaks_in_the_body(server, no_waiting, kind):
    server.put(REPO, FILES)
    server.fault(WEIGHTS, kind)
    try:
        data = read(WEIGHTS)  # some versions ask for the rest
    except Exception as error:
        assert type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "requests")
        data = read(WEIGHTS)
    assert data == FILES[WEIGHTS]
    assert server.downloads() == [WEIGHTS, WEIGHTS]


def test_a_connection_that_breaks_before_the_reply(server, no_waiting):
    server.put(REPO, FILES)
    server.fault(CONFIG, "reset", times=20, method="HEAD")  # some versions try again
    with pytest.raises(Exception) as caught:  # of the HTTP library, or one that it caused
        read(CONFIG)
    assert "reset by peer" in f"{caught.value} {caught.value.__cause__}"
    server.faults.clear()
    assert read(CONFIG) == FILES[CONFIG]


@pytest.mark.parametrize("status, kind", [
    ("401", HfHubHTTPError), ("403", GatedRepoError), ("404", EntryNotFoundError)])
def test_a_refusal(server, status, kind):
    server.put(REPO, FILES)
    server.fault(CONFIG, status)
    with pytest.raises(kind) as caught:
        read(CONFIG)
    assert caught.value.response.status_code == int(status)
    assert read(CONFIG) == FILES[CONFIG]
    server.fault(WEIGHTS, status, method="GET")
    with pytest.raises(kind):
        read(WEIGHTS)
    assert server.downloads() == [CONFIG]
    assert read(WEIGHTS) == FILES[WEIGHTS]


def test_an_overload(server, no_waiting):
    sha = server.put(REPO, FILES)
    server.fault(f"/models/{REPO}", "503")
    with pytest.raises(HfHubHTTPError) as caught:
        HfApi().model_info(REPO)
    assert caught.value.response.status_code == 503
    assert HfApi().model_info(REPO).sha == sha
    server.fault(CONFIG, "503", times=20)
    with pytest.raises(LocalEntryNotFoundError):
        read(CONFIG)
    server.faults.clear()
    assert read(CONFIG) == FILES[CONFIG]


def test_a_subprocess_uses_the_server(server, tmp_path):
    server.put(REPO, FILES, private=True)
    environment = client_environment(server, tmp_path / "other") | {"HF_TOKEN": server.token}
    code = f"import huggingface_hub as h; print(h.hf_hub_download({REPO!r}, {CONFIG!r}))"
    path = subprocess.run([sys.executable, "-c", code], env=environment, check=True,
                          capture_output=True, text=True).stdout.strip()
    assert Path(path).is_relative_to(tmp_path / "other" / "hub")
    assert json.loads(Path(path).read_text()) == {"depth": 3}
    assert server.downloads() == [CONFIG]


def test_an_unknown_fault_and_an_unknown_path(server):
    with pytest.raises(ValueError, match="no such fault: 'melt'"):
        server.fault(CONFIG, "melt")
    with pytest.raises(HfHubHTTPError, match="this server has no GET /api/models"):
        HfApi().list_models(author="x").__iter__().__next__()
