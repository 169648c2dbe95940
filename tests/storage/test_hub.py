"""The hub's laws: the commit is pinned, each file is resolved once, tokens stay at home, the cache saves requests."""

from __future__ import annotations

import concurrent.futures
import random
import re
import time

import pytest
from hub_server import TOKEN, HubServer
from page_cache import need_lending

from raymerge.errors import AccessError, ChangedError, NotFoundError, StorageError, TransientStorageError
from raymerge.storage import hub_cache, join_url, store_for
from raymerge.storage.hub import keep_input, resolve_model
from raymerge.storage.process import _forget_all

WEIGHTS = random.Random(3).randbytes(3 << 20)
FILES = {
    "config.json": b'{"a": 1}',
    "README.md": b"# x",
    "tokenizer_config.json": b"{}",
    "onnx/model.bin": b"else",
    "model.safetensors": WEIGHTS,
}


@pytest.fixture(autouse=True)
def fresh_process():
    """Nothing that an earlier test learned of the hub is remembered."""
    _forget_all()


def read(url: str, *, start: int = 0, nbytes: int = len(WEIGHTS), version: str = "") -> bytes:
    buffer = bytearray(nbytes)
    store_for(url).read_into(url, buffer, offset=start, version=version)
    return bytes(buffer)


def test_a_model_is_pinned_by_one_request(hub: HubServer):
    commit = hub.add_model("org/name", FILES)
    model = resolve_model("org/name")
    assert (model.commit, model.url, model.origin) == (commit, f"hf://org/name@{commit}", "range-read")
    assert hub.count("api") == len(hub.requests) == 1
    listed = store_for(model.url).list(model.url)
    assert [info.url for info in listed] == [join_url(model.url, name) for name in sorted(FILES) if "/" not in name]
    assert [info.nbytes for info in listed] == [len(FILES[name]) for name in sorted(FILES) if "/" not in name]
    assert {info.identity.partition(":")[0] for info in listed} == {"sha256", "git"}
    assert len(hub.requests) == 1


def test_bytes_are_exact_and_each_file_is_resolved_once(hub: HubServer):
    model = resolve_model(f"hf://org/name@{hub.add_model('org/name', FILES)}")
    url = join_url(model.url, "model.safetensors")
    version = store_for(url).info(url).version
    rng = random.Random(4)
    starts = [rng.randrange(len(WEIGHTS) - 70_000) for _ in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        pieces = list(pool.map(lambda start: read(url, start=start, nbytes=70_000, version=version), starts))
    assert pieces == [WEIGHTS[start : start + 70_000] for start in starts]
    assert hub.count("resolve") == 1
    assert hub.weight_bytes == 40 * 70_000


def test_small_files_are_read_whole_and_in_ranges(hub: HubServer):
    model = resolve_model("org/name", hub.add_model("org/name", FILES))
    url = join_url(model.url, "config.json")
    assert store_for(url).read(url, max_bytes=100) == FILES["config.json"]
    assert read(url, start=2, nbytes=3) == FILES["config.json"][2:5]
    nested = join_url(model.url, "onnx/model.bin")
    assert store_for(nested).read(nested, max_bytes=100) == b"else"
    with pytest.raises(StorageError, match="8 bytes, at most 7"):
        store_for(url).read(url, max_bytes=7)


def test_a_new_commit_changes_nothing(hub: HubServer):
    first = hub.add_model("org/name", FILES)
    model = resolve_model("org/name", "main")
    url = join_url(model.url, "model.safetensors")
    version = store_for(url).info(url).version
    hub.add_model("org/name", {**FILES, "model.safetensors": WEIGHTS[::-1]})
    assert read(url, version=version) == WEIGHTS
    assert resolve_model("org/name").commit != first
    with pytest.raises(ChangedError):
        read(join_url(resolve_model("org/name").url, "model.safetensors"), version=version)


def test_the_same_content_has_the_same_identity_on_another_commit(hub: HubServer):
    hub.add_model("org/name", FILES)
    before = {file.name: file.identity for file in resolve_model("org/name").files}
    hub.add_model("org/name", {**FILES, "README.md": b"new words"})
    after = {file.name: file.identity for file in resolve_model("org/name").files}
    assert {name for name in FILES if before[name] != after[name]} == {"README.md"}


def test_an_expired_address_is_asked_for_again(hub: HubServer):
    url = join_url(resolve_model("org/name", hub.add_model("org/name", FILES)).url, "model.safetensors")
    assert read(url) == WEIGHTS
    hub.expire_addresses()
    assert read(url) == WEIGHTS
    assert hub.count("resolve") == 2


def test_tokens_stay_at_the_hub(hub: HubServer, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    commit = hub.add_model("org/name", FILES, private=True)
    url = join_url(resolve_model("org/name").url, "model.safetensors")
    assert read(url) == WEIGHTS
    assert store_for(url).read(url, max_bytes=len(WEIGHTS)) == WEIGHTS
    assert {request.token for request in hub.requests if request.host == "127.0.0.1"} == {TOKEN}
    assert {request.token for request in hub.requests if request.host != "127.0.0.1"} == {None}
    assert commit in url
    assert TOKEN not in url


@pytest.mark.parametrize("kind", ["api", "resolve", "content"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_faults_that_pass(hub: HubServer, impatient, kind, status):
    hub.add_model("org/name", FILES)
    hub.fail(kind, status, times=2, headers={"Retry-After": "0"})
    assert read(join_url(resolve_model("org/name").url, "model.safetensors")) == WEIGHTS


@pytest.mark.parametrize("kind", ["api", "content"])
def test_cut_answers(hub: HubServer, impatient, kind):
    hub.add_model("org/name", FILES)
    hub.fail(kind, 0, times=2)
    assert read(join_url(resolve_model("org/name").url, "model.safetensors")) == WEIGHTS


def test_faults_that_stay(hub: HubServer, impatient):
    url = join_url(resolve_model("org/name", hub.add_model("org/name", FILES)).url, "model.safetensors")
    hub.fail("content", 503, times=100)
    with pytest.raises(TransientStorageError, match="failed 3 times") as caught:
        read(url)
    assert "Signature" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_hub_says_how_long_to_wait(hub: HubServer, impatient):
    url = join_url(resolve_model("org/name", hub.add_model("org/name", FILES)).url, "model.safetensors")
    hub.fail("content", 429, headers={"Retry-After": "1"})
    started = time.monotonic()
    assert read(url) == WEIGHTS
    assert time.monotonic() - started >= 1.0


def test_models_one_may_not_read(hub: HubServer, monkeypatch):
    hub.add_model("org/private", FILES, private=True)
    hub.add_model("org/gated", FILES, gated=True)
    with pytest.raises(
        NotFoundError, match=r"org/none@main: does not exist on .*private and a request without a token"
    ):
        resolve_model("org/none")
    with pytest.raises(NotFoundError, match="or is private"):
        resolve_model("org/private")
    with pytest.raises(NotFoundError, match="no such revision"):
        resolve_model("org/gated", "v2")
    url = join_url(resolve_model("org/gated").url, "model.safetensors")
    with pytest.raises(AccessError, match=r"gated; a request without a token .* `hf auth login`.*accept its terms"):
        read(url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.granted.clear()
    with pytest.raises(AccessError, match=r"gated; this token has no access; accept its terms on \S+/org/gated,"):
        read(url)
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    with pytest.raises(AccessError, match="does not know this token") as caught:
        resolve_model("org/gated")
    assert "hf_wrong" not in str(caught.value)


def test_missing_files(hub: HubServer):
    model = resolve_model("org/name", hub.add_model("org/name", FILES))
    url = join_url(model.url, "none")
    for ask in (lambda: store_for(url).info(url), lambda: store_for(url).read(url, max_bytes=1), lambda: read(url)):
        with pytest.raises(NotFoundError, match="none: does not exist"):
            ask()


def test_a_cached_commit_needs_no_request(hub: HubServer):
    commit = hub.add_model("org/name", FILES)
    expected = {file.name: file.identity for file in resolve_model("org/name").files}
    hub.fill_cache("org/name")
    _forget_all()
    hub.requests.clear()
    model = resolve_model("org/name", commit)
    assert model.origin == "hub cache"
    assert {file.name: file.identity for file in model.files} == expected
    url = join_url(model.url, "model.safetensors")
    assert read(url, version=store_for(url).info(url).version) == WEIGHTS
    assert store_for(url).read(join_url(model.url, "config.json"), max_bytes=99) == FILES["config.json"]
    assert hub.requests == []


def test_a_cached_file_is_lent_where_it_is_the_planned_one(hub: HubServer):
    commit = hub.add_model("org/name", FILES)
    url = join_url(resolve_model("org/name").url, "model.safetensors")
    version = store_for(url).info(url).version
    nbytes = 1 << 20
    assert store_for(url).lend(url, offset=8, nbytes=nbytes, version=version) is None
    hub.fill_cache("org/name")
    cached = hub_cache.cached_file("org/name", commit, "model.safetensors")
    assert cached is not None
    need_lending(cached)
    lent = store_for(url).lend(url, offset=8, nbytes=nbytes, version=version)
    assert lent is not None
    lent.load(0, len(lent.data))
    lent.confirm()
    assert lent.data == WEIGHTS[8 : 8 + nbytes]
    assert store_for(url).lend(url, offset=8, nbytes=nbytes, version="0" * 64) is None


def test_a_branch_is_looked_up_and_its_cached_files_are_used(hub: HubServer):
    hub.add_model("org/name", FILES)
    hub.fill_cache("org/name", names=("config.json", "model.safetensors"))
    model = resolve_model("org/name")
    assert model.origin == "hub cache"
    assert len(model.files) == len(FILES)
    url = join_url(model.url, "model.safetensors")
    assert read(url, version=store_for(url).info(url).version) == WEIGHTS
    assert [request.kind for request in hub.requests] == ["api"]


def test_a_partial_cache_serves_what_it_has(hub: HubServer):
    files = {**FILES, "extra.safetensors": WEIGHTS[:1000]}
    hub.add_model("org/name", files)
    hub.fill_cache("org/name", names=("config.json", "extra.safetensors"))
    model = resolve_model("org/name")
    assert model.origin == "range-read"
    assert read(join_url(model.url, "extra.safetensors"), nbytes=1000) == WEIGHTS[:1000]
    assert hub.count("resolve") == 0
    assert read(join_url(model.url, "model.safetensors")) == WEIGHTS


def test_offline(hub: HubServer, monkeypatch):
    hub.add_model("org/name", FILES)
    hub.add_model("org/other", FILES)
    hub.fill_cache("org/name")
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = resolve_model("org/name")
    assert read(join_url(model.url, "model.safetensors")) == WEIGHTS
    with pytest.raises(NotFoundError, match=r"org/other@main: is not in the hub cache .*HF_HUB_OFFLINE is set; unset"):
        resolve_model("org/other")
    assert hub.requests == []


def test_an_input_can_be_kept(hub: HubServer):
    commit = hub.add_model("org/name", FILES)
    url = join_url(resolve_model("org/name").url, "model.safetensors")
    keep_input(url)
    assert (hub.cache / "models--org--name" / "snapshots" / commit / "model.safetensors").read_bytes() == WEIGHTS
    served = hub.weight_bytes
    assert read(url, version=store_for(url).info(url).version) == WEIGHTS
    assert hub.weight_bytes == served
    with pytest.raises(StorageError, match="download failed"):
        keep_input(join_url(resolve_model("org/name").url, "none"))


def test_the_hub_is_not_written(hub: HubServer):
    hub.add_model("org/name", FILES)
    with pytest.raises(StorageError, match=re.escape("hf://org/name/x")):
        store_for("hf://").create("hf://org/name/x", nbytes=1)


def test_a_range_past_the_end(hub: HubServer):
    url = join_url(resolve_model("org/name", hub.add_model("org/name", FILES)).url, "model.safetensors")
    with pytest.raises(StorageError, match="ends at byte"):
        read(url, start=len(WEIGHTS) - 5, nbytes=6)


def test_files_behind_plain_http(hub: HubServer):
    hub.add_model("org/name", {**FILES, "weights.raw": WEIGHTS})
    url = f"{hub.endpoint}/org/name/resolve/main/weights.raw"
    info = store_for(url).info(url)
    assert info.nbytes == len(WEIGHTS)
    assert read(url, start=70_001, nbytes=100_000, version=info.version) == WEIGHTS[70_001:170_001]
    hub.add_model("org/name", {**FILES, "weights.raw": WEIGHTS[::-1]})
    _forget_all()
    with pytest.raises(ChangedError):
        read(url, version=info.version)
    with pytest.raises(NotFoundError):
        store_for(url).info(f"{hub.endpoint}/org/name/resolve/main/none")
