"""What a run was asked: the folder of another run is left alone, and keys go where they belong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from thinkserve.errors import UsageError
from thinkserve.eval.config import OPENAI, Keys, RunConfig, claim, read_key_file

CONFIG = RunConfig(bench="pocket", models=("a", "b"), judges=(), out=Path("x"), keys=Keys(judge="sk-secret"))


def test_the_same_run_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    claim(path, CONFIG)
    before = path.read_bytes()
    claim(path, replace(CONFIG, concurrency=99, yes=True, out=Path("y"), cost_limit=0.0))
    with pytest.raises(UsageError, match=r"its seed is 0, and 1 is asked for now.*--out"):
        claim(path, replace(CONFIG, seed=1))
    with pytest.raises(UsageError, match="its models is"):
        claim(path, replace(CONFIG, models=("a",)))
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"asked": 3}', '{"other": {}}'])
def test_a_run_json_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"is no run.json of thinkserve; choose another --out"):
        claim(path, CONFIG)
    assert path.read_text() == content


def test_keys_are_never_shown_or_written(tmp_path: Path) -> None:
    keys = Keys(judge="sk-1", model="sk-2", openai="sk-3", by_url={"http://a": "sk-4"})
    claim(tmp_path / "run.json", replace(CONFIG, keys=keys))
    assert "sk-" not in repr(replace(CONFIG, keys=keys)) + (tmp_path / "run.json").read_text()


def test_the_key_of_openai_goes_to_openai_alone() -> None:
    keys = Keys(openai="sk-openai")
    assert keys.of(OPENAI, "judge") == keys.of(OPENAI, "model") == "sk-openai"
    assert keys.of("https://api.openai.com.evil.org/v1", "judge") is None
    assert keys.of("http://127.0.0.1:8000/v1", "judge") is None


def test_a_key_of_a_url_comes_before_that_of_a_role(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# keys\nhttp://a sk-a\n\nhttp://a/longer sk-longer\nsk-any\n")
    keys = Keys(judge="sk-judge", by_url=read_key_file(path))
    assert keys.of("http://a/v1", "judge") == "sk-a"
    assert keys.of("http://a/longer/v1", "judge") == "sk-longer"
    assert keys.of("http://b/v1", "model") == "sk-any"
    assert Keys(by_url={"http://a:1/v1": "sk-a"}).of("http://a:1", "judge") == "sk-a"
    assert Keys(by_url={"http://a:1": "sk-a"}).of("http://a:12", "judge") is None
    assert Keys(judge="sk-judge", model="sk-model").of("http://b", "model") == "sk-model"


@pytest.mark.parametrize(
    ("content", "message"), [("a b\n", ":1: give one key"), ("\n# x\n", "there is no key")]
)
def test_a_bad_key_file_is_told_without_what_is_in_it(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(UsageError, match=message) as failure:
        read_key_file(path)
    assert "a b" not in str(failure.value)
