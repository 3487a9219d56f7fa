"""Datasets on the Hub: read by the real library from a hub on loopback, at a commit that is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from thinkserve.errors import UsageError
from thinkserve.training.prompts.hub import DatasetName
from thinkserve.training.recipe import PromptsRecipe

OLD, NEW = "01d" + "0" * 37, "4e3" + "1" * 37
READ = """
import json, sys
from thinkserve.errors import UsageError
from thinkserve.training.prompts.source import read_source
from thinkserve.training.recipe import PromptsRecipe
said = []
for name, keys, commit in json.loads(sys.argv[1]):
    try:
        source = read_source(name, PromptsRecipe(**keys), commit=commit)
        said.append([[one.text for one in source.instructions], source.description, source.bad])
    except UsageError as exc:
        said.append(str(exc))
print(json.dumps(said))
"""


def rows(*texts: str | None) -> bytes:
    return b"".join(json.dumps({"instruction": text}).encode() + b"\n" for text in texts)


class Hub:
    """Has `someone/set` in two commits, of which the newer one is `main` and the older one `v1`."""

    def __init__(self) -> None:
        self.commits = {
            OLD: {"train.jsonl": rows("old one", "old two"), "test.jsonl": rows("old test")},
            NEW: {"train.jsonl": rows("new one", None), "test.jsonl": rows("new test")},
        }
        self.names = {"main": NEW, "v1": OLD, OLD: OLD, NEW: NEW}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._answer()

            def do_GET(self) -> None:
                self.wfile.write(self._answer())

            def _answer(self) -> bytes:
                content, headers = hub.answer(self.path.partition("?")[0].strip("/").split("/"))
                self.send_response(404 if content is None else 200)
                for name, value in {**headers, "Content-Length": str(len(content or b""))}.items():
                    self.send_header(name, value)
                self.end_headers()
                return content or b""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def answer(self, path: list[str]) -> tuple[bytes | None, dict[str, str]]:
        match path:
            case ["api", "datasets", "someone", "set", *rest] if rest == [] or rest[0] == "revision":
                commit = self.names.get(rest[1] if rest else "main")
                files = [{"rfilename": name} for name in self.commits.get(commit or "", {})]
                about = {"id": "someone/set", "sha": commit, "siblings": files, "private": False, "tags": []}
                return (None if commit is None else json.dumps(about).encode()), {}
            case ["api", "datasets", "someone", "set", "tree", revision, *folder]:
                if folder:
                    return None, {"X-Error-Code": "EntryNotFound"}
                listed = [
                    {"type": "file", "path": name, "size": len(content), "oid": sha1(content).hexdigest()}
                    for name, content in self.commits[self.names[revision]].items()
                ]
                return json.dumps(listed).encode(), {}
            case ["datasets", "someone", "set", "resolve", revision, name]:
                commit = self.names[revision]
                content = self.commits[commit].get(name)
                headers = {"X-Repo-Commit": commit}
                if content is None:
                    return None, {**headers, "X-Error-Code": "EntryNotFound"}
                return content, {**headers, "ETag": f'"{sha1(content).hexdigest()}"'}
        return None, {}

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    served = Hub()
    yield served
    served.close()


def read(
    url: str, home: Path, *asked: tuple[str, dict[str, Any], str | None], offline: bool = False
) -> list[Any]:
    """In a process of its own: the library takes its settings from the environment when it is imported."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(asked)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


def test_a_dataset_is_read_at_a_commit_that_is_told_and_can_be_read_again(hub: Hub, tmp_path: Path) -> None:
    about = {"kind": "hub", "name": "someone/set", "split": "train"}
    skip = {"bad_lines": "skip"}
    now, tag, pinned, test, refused, no_split, no_field, no_set, no_revision = read(
        hub.url,
        tmp_path,
        ("someone/set", skip, None),
        ("someone/set", {"source": "someone/set", "revision": "v1"}, None),
        ("someone/set", skip, OLD),
        ("someone/set:test", {}, None),
        ("someone/set", {}, None),
        ("someone/set", {"split": "validation"}, None),
        ("someone/set", {"field": "prompt"}, None),
        ("someone/none", {}, None),
        ("someone/set@v2", {}, None),
    )
    bad = f"someone/set@{NEW[:12]} train: row 2: field 'instruction' is null, and must be a string"
    assert now == [["new one"], {**about, "revision": None, "commit": NEW}, [bad]]
    assert tag == [["old one", "old two"], {**about, "revision": "v1", "commit": OLD}, []]
    assert pinned == [["old one", "old two"], {**about, "revision": None, "commit": OLD}, []]
    assert test[0] == ["new test"]
    assert refused.startswith(f"{bad}; `prompts.bad_lines: skip`")
    assert no_split.startswith("someone/set: split 'validation' cannot be had from the Hub (")
    assert "has no column 'prompt'" in no_field
    assert "it has 'instruction'" in no_field
    assert no_set.startswith("someone/none: split 'train' cannot be had from the Hub (")
    assert no_revision.startswith("someone/set@v2: split 'train' cannot be had from the Hub (")
    assert not any("\n" in said for said in (refused, no_split, no_field, no_set, no_revision))


def test_without_the_network_only_the_commit_that_was_asked_for_is_read(hub: Hub, tmp_path: Path) -> None:
    """The library takes whatever commit it has then, and says so in a warning only."""
    named = {"source": "someone/set"}
    read(hub.url, tmp_path, ("someone/set", {**named, "revision": "v1"}, None))
    hub.close()
    same, any_of_them, other, branch, none = read(
        hub.url,
        tmp_path,
        ("someone/set", {**named, "revision": OLD}, None),
        ("someone/set", named, None),
        ("someone/set", named, NEW),
        ("someone/set", {**named, "revision": "v1"}, None),
        ("someone/none", {}, None),
        offline=True,
    )
    assert same[0] == any_of_them[0] == ["old one", "old two"]
    assert same[1]["commit"] == any_of_them[1]["commit"] == OLD
    assert other == (
        f"someone/set: commit {NEW} is not in the cache, which has {OLD}; let it be fetched, or set prompts.revision to "
        f"{OLD}"
    )
    assert "'v1' of someone/set: without the network nobody knows which commit that is" in branch
    assert none.startswith("someone/none: split 'train' cannot be had from the Hub (")


def test_a_hub_that_is_down_is_an_error_in_one_line(tmp_path: Path) -> None:
    (said,) = read("http://127.0.0.1:9", tmp_path, ("someone/set", {}, None))
    assert said.startswith("someone/set: split 'train' cannot be had from the Hub (")
    assert said.endswith("the network, or give a file as `prompts.source`")


RECIPE = PromptsRecipe(source="someone/set", revision="v1")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("someone/set", ("someone/set", "v1", "train")),
        ("someone/set:test", ("someone/set", "v1", "test")),
        ("someone/set@abc:test[:100]", ("someone/set", "abc", "test[:100]")),
        ("other/set", ("other/set", None, "train")),
        ("squad", ("squad", None, "train")),
    ],
)
def test_a_name_may_say_revision_and_split(text: str, name: tuple[str, str | None, str]) -> None:
    assert DatasetName.parse(text, RECIPE, "source") == DatasetName(*name)


def test_a_name_with_a_revision_of_its_own_does_not_take_the_recipes() -> None:
    recipe = replace(RECIPE, source="someone/set@v2:train", revision="v1", split="test")
    assert DatasetName.parse("someone/set", recipe, "evaluation_source") == DatasetName(
        "someone/set", "v1", "test"
    )
    assert DatasetName.parse(recipe.source, recipe, "source") == DatasetName("someone/set", "v2", "train")


@pytest.mark.parametrize("text", ["", "a b", "a/b/c", "@v1", "a@", "a:"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"prompts\.source .* is no file, and no dataset on the Hub"):
        DatasetName.parse(text, RECIPE, "source")
