"""Official files: found in a folder, or fetched from a real HTTP server on loopback, checked, kept."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from thinkserve.errors import UsageError
from thinkserve.eval.data import ENDINGS, EvalData
from thinkserve.eval.sources import SOURCES, Source, source_of

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("THINKSERVE_EVAL_DATA", ROOT.parent / "shared" / "data"))

COMMIT = "c0ffee" + "0" * 34
CONTENT = b'{"uid": "1", "prompt": "Hello"}\n'
SUM = sha256(CONTENT).hexdigest()
GITHUB = Source("github", "someone/bench", COMMIT, "data/question.jsonl", "bench/question.jsonl", SUM)
HUB = Source("hub", "someone/set", COMMIT, "baseline.json", "set/baseline.json", SUM)


class Origin:
    """Serves one content under every path, as GitHub and the hub do, and notes what was asked for."""

    def __init__(self, content: bytes) -> None:
        self.content, self.cut, self.status = content, False, 200
        self.asked: list[str] = []
        this = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._head()

            def do_GET(self) -> None:
                this.asked.append(self.path)
                self._head()
                if this.status == 200:
                    self.wfile.write(this.content[: len(this.content) // 2] if this.cut else this.content)

            def _head(self) -> None:
                self.send_response(this.status)
                self.send_header("Content-Length", str(len(this.content) if this.status == 200 else 0))
                self.send_header("ETag", f'"{sha256(this.content).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whatever the environment says of networks, loopback is there, and the hub's own cache is empty; returns that."""
    cache = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return cache


@pytest.fixture
def origin() -> Iterator[Origin]:
    served = Origin(CONTENT)
    yield served
    served.close()


def data(origin: Origin | str, cache: Path, source: Source = GITHUB) -> EvalData:
    url = origin if isinstance(origin, str) else origin.url
    return EvalData(None, cache, sources=lambda name: source, hub=url, github=url)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_in_the_folder_is_found_with_any_ending(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "arena_hard_v2.0" / f"question{ending}"
    path.parent.mkdir()
    path.write_bytes(b"")
    assert EvalData(tmp_path).find("arena_hard_v2.0/question") == path
    assert EvalData(tmp_path).find_if_given("arena_hard_v2.0/question") == path


def test_a_dot_in_the_name_of_a_model_is_not_taken_for_an_ending(tmp_path: Path) -> None:
    answers = tmp_path / "arena_hard_v2.0" / "model_answer"
    answers.mkdir(parents=True)
    (answers / "llama3.1-8b.jsonl").write_bytes(b"")
    assert EvalData(tmp_path).find("arena_hard_v2.0/model_answer/llama3.1-8b").name == "llama3.1-8b.jsonl"
    with pytest.raises(UsageError):
        EvalData(tmp_path).find("arena_hard_v2.0/model_answer/llama3")


def test_a_file_missing_from_the_folder_is_named_with_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        EvalData(tmp_path).find("alpaca_eval/glm/df_gamed")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/alpaca_eval/glm/df_gamed.jsonl is missing")
    assert "tatsu-lab/alpaca_eval/resolve/2edc6fad8be6b14ea7230aabfd08188da6b8b814/df_gamed.csv" in message
    assert "\n" not in message
    assert EvalData(tmp_path).find_if_given("alpaca_eval/glm/df_gamed") is None


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--data {tmp_path}/none: there is no such folder"):
        EvalData(tmp_path / "none").find("arena_hard_v2.0/question")


def test_a_file_from_github_is_fetched_once_from_its_commit(origin: Origin, tmp_path: Path) -> None:
    found = data(origin, tmp_path).find("bench/question")
    assert found == tmp_path / "bench" / "question.jsonl"
    assert found.read_bytes() == CONTENT
    assert origin.asked == [f"/someone/bench/{COMMIT}/data/question.jsonl"]
    assert data(origin, tmp_path).find("bench/question") == found
    assert len(origin.asked) == 1
    assert files(tmp_path) == ["bench/question.jsonl"]


def test_a_file_from_the_hub_is_fetched_once_from_its_commit(origin: Origin, tmp_path: Path) -> None:
    found = data(origin, tmp_path, HUB).find("set/baseline")
    assert found.read_bytes() == CONTENT
    assert origin.asked == [f"/datasets/someone/set/resolve/{COMMIT}/baseline.json"]
    data(origin, tmp_path, HUB).find("set/baseline")
    assert len(origin.asked) == 1
    assert files(tmp_path) == ["set/baseline.json"]


@pytest.mark.parametrize("source", [GITHUB, HUB])
def test_a_file_with_a_wrong_sum_is_not_kept(origin: Origin, tmp_path: Path, source: Source) -> None:
    origin.content = b"<html>Please log in</html>"
    with pytest.raises(UsageError) as caught:
        data(origin, tmp_path, source).find("x")
    found = sha256(origin.content).hexdigest()
    assert f"its sha256 is {found}, and must be {SUM}" in str(caught.value)
    assert str(tmp_path / source.place) in str(caught.value)
    assert files(tmp_path) == []


def test_a_download_that_breaks_off_leaves_nothing(origin: Origin, tmp_path: Path) -> None:
    origin.cut = True
    with pytest.raises(UsageError, match="cannot be fetched"):
        data(origin, tmp_path).find("bench/question")
    assert files(tmp_path) == []
    origin.cut = False
    assert data(origin, tmp_path).find("bench/question").read_bytes() == CONTENT


@pytest.mark.parametrize("source", [GITHUB, HUB])
def test_offline_one_line_says_what_is_missing_and_where_to_put_it(tmp_path: Path, source: Source) -> None:
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(UsageError) as caught:
            data(url, tmp_path, source).find("bench/question")
    message = str(caught.value)
    assert message.startswith(f"bench/question is not at hand, and {url}/")
    assert f"put that file at {tmp_path / source.place}" in message
    assert "bench/question.jsonl in it with --data" in message
    assert "\n" not in message
    assert len(message) < 600
    assert files(tmp_path) == []


@pytest.mark.parametrize("source", [GITHUB, HUB])
def test_a_server_that_refuses_is_an_error_too(origin: Origin, tmp_path: Path, source: Source) -> None:
    origin.status = 404
    with pytest.raises(UsageError, match="cannot be fetched .*404"):
        data(origin, tmp_path, source).find("bench/question")


def test_the_hub_is_not_asked_where_its_library_is_told_to_stay_offline(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="cannot be fetched"):
        data(origin, tmp_path, HUB).find("set/baseline")
    assert origin.asked == []


def test_what_the_hubs_library_has_already_is_taken_from_it_if_the_sum_is_right(
    origin: Origin, tmp_path: Path, online: Path
) -> None:
    snapshot = online / "datasets--someone--set" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "baseline.json").write_bytes(CONTENT)
    assert data("http://127.0.0.1:1", tmp_path / "a", HUB).find("set/baseline").read_bytes() == CONTENT
    (snapshot / "baseline.json").write_bytes(b"damaged")
    assert data(origin, tmp_path / "b", HUB).find("set/baseline").read_bytes() == CONTENT
    assert len(origin.asked) == 1


def test_a_file_put_into_the_cache_by_hand_is_used_without_a_network(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "question.jsonl").write_bytes(CONTENT)
    assert data("http://127.0.0.1:1", tmp_path).find("bench/question").read_bytes() == CONTENT


def test_a_damaged_file_in_the_cache_is_removed_and_fetched_again(
    origin: Origin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = data(origin, tmp_path).find("bench/question")
    path.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        assert data(origin, tmp_path).find("bench/question").read_bytes() == CONTENT
    assert f"its sha256 is {sha256(b'damaged').hexdigest()}, and must be {SUM}" in caplog.text


def test_a_damaged_file_is_told_of_where_it_cannot_be_fetched_again(tmp_path: Path) -> None:
    path = tmp_path / "bench" / "question.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    with pytest.raises(UsageError) as caught:
        data("http://127.0.0.1:1", tmp_path).find("bench/question")
    assert f"had the sha256 {sha256(b'damaged').hexdigest()} instead of {SUM}, and was removed" in str(
        caught.value
    )
    assert not path.exists()


def test_without_a_known_sum_the_first_one_is_recorded_and_must_stay(
    origin: Origin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = replace(GITHUB, sha256=None)
    with caplog.at_level(logging.WARNING):
        path = data(origin, tmp_path, unknown).find("bench/question")
    assert "no sum of it is known" in caplog.text
    assert path.with_name("question.jsonl.sha256").read_text() == f"{SUM}  question.jsonl\n"
    assert data(origin, tmp_path, unknown).find("bench/question") == path
    assert len(origin.asked) == 1
    path.unlink()
    origin.content = b"something else"
    with pytest.raises(UsageError, match=f"must be {SUM}"):
        data(origin, tmp_path, unknown).find("bench/question")
    assert not path.exists()


def test_a_changed_file_without_a_known_sum_is_not_used(tmp_path: Path) -> None:
    unknown = replace(GITHUB, sha256=None)
    path = tmp_path / "bench" / "question.jsonl"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    assert data("http://127.0.0.1:1", tmp_path, unknown).find("bench/question") == path
    path.write_bytes(CONTENT + b"{}\n")
    with pytest.raises(UsageError, match="and was removed"):
        data("http://127.0.0.1:1", tmp_path, unknown).find("bench/question")


def _find(url: str, cache: Path) -> None:
    assert data(url, cache).find("bench/question").read_bytes() == CONTENT


def test_several_processes_may_fetch_at_once(origin: Origin, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("forkserver")
    workers = [spawn.Process(target=_find, args=(origin.url, tmp_path)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert files(tmp_path) == ["bench/question.jsonl"]


def test_every_source_is_pinned_to_a_whole_commit_and_most_to_a_sum() -> None:
    for name, source in SOURCES.items():
        assert len(source.commit) == 40, name
        assert source.sha256 is None or len(source.sha256) == 64, name
    assert [name for name, source in SOURCES.items() if source.sha256 is None] == ["categories/instructions"]
    places = {source.place for source in SOURCES.values()}
    assert len(places) == len(SOURCES) - 1  # instructions and references of AlpacaEval are one file


def test_answers_of_any_model_come_from_the_same_commit_as_the_questions() -> None:
    source = source_of("arena_hard_v0.1/model_answer/gpt-4-0314")
    assert source is not None
    assert source.sha256 is None
    assert source.commit == SOURCES["arena_hard_v0.1/question"].commit
    assert source.path == "data/arena-hard-v0.1/model_answer/gpt-4-0314.jsonl"
    assert source.place == "arena_hard_v0.1/model_answer/gpt-4-0314.jsonl"


@pytest.mark.parametrize(
    "name",
    ["arena_hard_v2.0/model_answer/../../x", "arena_hard_v2.0/model_answer/a/b", "categories/topics", ""],
)
def test_names_that_are_published_nowhere_have_no_source(name: str, tmp_path: Path) -> None:
    assert source_of(name) is None
    with pytest.raises(UsageError, match="published nowhere"):
        EvalData(None, tmp_path).find(name)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the official data at {DATA}")
@pytest.mark.parametrize(
    "name",
    [
        "alpaca_eval/instructions",
        "alpaca_eval/reference_outputs/gpt4_1106_preview",
        "alpaca_eval/glm/df_gamed",
        "alpaca_eval/glm/instruction_difficulty",
        "arena_hard_v0.1/question",
        "arena_hard_v0.1/model_answer/gpt-4-0314",
        "arena_hard_v2.0/question",
        "arena_hard_v2.0/model_answer/o3-mini-2025-01-31",
    ],
)
def test_the_official_files_are_found_in_their_folder(name: str) -> None:
    assert EvalData(DATA).find(name).is_file()


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the official data at {DATA}")
def test_the_pinned_sums_of_arena_hard_are_those_of_the_rows_we_have() -> None:
    """The repository's files are the same rows as pandas writes them: compact, `/` escaped, times with 10 decimals."""
    import gzip
    import json

    def rows(name: str) -> list[dict[str, object]]:
        path = DATA / f"{name}.jsonl.gz"
        return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]

    def written(found: list[dict[str, object]]) -> str:
        lines = []
        for row in found:
            time = row.get("tstamp")
            line = json.dumps(
                {**row, **({"tstamp": "@@"} if time else {})}, ensure_ascii=False, separators=(",", ":")
            )
            lines.append(line.replace("/", "\\/").replace('"@@"', f"{time:.20g}" if time else "") + "\n")
        return sha256("".join(lines).encode()).hexdigest()

    old = [
        {
            "uid": row["question_id"],
            "category": row["category"],
            "cluster": row["cluster"],
            "prompt": row["turns"][0]["content"],  # type: ignore[index]
        }
        for row in rows("arena_hard_v0.1/question")
    ]
    assert written(old) == SOURCES["arena_hard_v0.1/question"].sha256
    for name in ("arena_hard_v2.0/question", "arena_hard_v2.0/model_answer/o3-mini-2025-01-31"):
        assert written(rows(name)) == SOURCES[name].sha256
