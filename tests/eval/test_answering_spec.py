"""What a model or judge SPEC may be, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from thinkserve.errors import UsageError
from thinkserve.eval.answer import Answer, Answers
from thinkserve.eval.answering.spec import (
    DEFAULT_MODEL,
    AnswersSpec,
    CheckpointSpec,
    EndpointSpec,
    parse_judge,
    parse_model,
    unique_names,
)
from thinkserve.pocket import BY_NAME
from thinkserve.thoughts import Response


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("spec", "url", "model"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000", None),
        ("http://127.0.0.1:8000/v1#pocket", "http://127.0.0.1:8000", "pocket"),
        ("https://api.openai.com/v1/#gpt-4.1", "https://api.openai.com", "gpt-4.1"),
        ("http://host/prefix/v1#org/model:tag#2", "http://host/prefix", "org/model:tag#2"),
        ("HTTP://[::1]:80#", "HTTP://[::1]:80", None),
    ],
)
def test_a_url_names_a_server_and_after_the_hash_its_model(spec: str, url: str, model: str | None) -> None:
    assert parse_model(spec) == parse_judge(spec) == EndpointSpec(url, model)


def test_without_a_spec_the_model_is_the_server_that_runs_here() -> None:
    assert parse_model("http://127.0.0.1:8000/v1") == DEFAULT_MODEL


def test_a_checkpoint_is_called_as_its_folder(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse_model(str(checkpoint)) == CheckpointSpec(str(checkpoint), "my-model")
    monkeypatch.chdir(tmp_path)
    assert parse_judge("my-model/") == CheckpointSpec(str(checkpoint), "my-model")


@pytest.mark.parametrize(("name", "folder"), BY_NAME.items())
def test_the_pocket_models_are_called_so_by_path_and_by_name(name: str, folder: Path) -> None:
    assert parse_model(str(folder)) == parse_model(name) == CheckpointSpec(str(folder), name)


def test_a_name_on_the_hub_is_a_checkpoint() -> None:
    assert parse_model("Qwen/Qwen3-0.6B") == CheckpointSpec("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B")


def test_files_of_answers_are_read_by_whoever_knows_their_format(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text("[]")
    known = Answers("gpt", {"1": Answer("1", Response("hi"))})
    spec = parse_model(f"answers:{path}", read=lambda file: known if file == path else Answers("", {}))
    assert isinstance(spec, AnswersSpec)
    assert spec.answers() is known


def test_answers_of_another_run_are_read_and_called_as_their_file(tmp_path: Path) -> None:
    path = tmp_path / "tuned.jsonl"
    path.write_text('{"id": "1", "response": "hi"}\n')
    spec = parse_model(f"answers:{path}")
    assert isinstance(spec, AnswersSpec)
    assert spec.answers() == Answers("tuned", {"1": Answer("1", Response("hi"))})


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("nowhere", "there is no such checkpoint"),
        ("./no/where", "there is no such checkpoint"),
        ("", "there is no such checkpoint"),
        ("localhost:8000", "there is no such checkpoint"),
        ("ftp://host/model", "there is no such checkpoint"),
        ("http://#gpt", "names no host"),
        ("http://host:port#gpt", "malformed"),
        ("https://host/v1?key=1#gpt", "has a query"),
    ],
)
def test_a_wrong_spec_is_named_with_the_forms_there_are(spec: str, problem: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_model(spec)
    message = str(error.value)
    assert repr(spec) in message and problem in message and "\n" not in message
    assert "a checkpoint folder" in message and "URL#MODEL" in message and "answers:FILE" in message
    with pytest.raises(UsageError, match="^judge "):
        parse_judge(spec)


def test_a_folder_without_a_model_in_it_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the folder has no config\.json; a model is a checkpoint folder"):
        parse_model(str(tmp_path))


def test_a_file_without_its_prefix_is_told_the_prefix(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("{}")
    with pytest.raises(UsageError, match=rf"for answers write answers:{path}"):
        parse_model(str(path))
    with pytest.raises(UsageError, match="there is no file '/no/such.json'"):
        parse_model("answers:/no/such.json")


def test_answers_are_no_judge(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"judge 'answers:x\.json'.*a judge is URL#MODEL, or a checkpoint"):
        parse_judge("answers:x.json")


def test_a_key_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match=r"--api-key-file") as error:
        parse_model("https://me:sk-secret@host/v1#gpt")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "unique"),
    [
        (["a", "b"], ("a", "b")),
        (["a", "a", "a"], ("a", "a-2", "a-3")),
        (["a", "a-2", "a"], ("a", "a-2", "a-3")),
        (["a", "a", "a-2"], ("a", "a-3", "a-2")),
        (["a", "a", "a-2", "a-2"], ("a", "a-3", "a-2", "a-2-2")),
    ],
)
def test_no_two_models_of_a_run_share_a_name(names: list[str], unique: tuple[str, ...]) -> None:
    assert unique_names(names) == unique
