"""The request body: what is refused, and with which words."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from thinkserve.engines.transformers_server.request import ApiError, ChatRequest

HELLO = [{"role": "user", "content": "hello"}]


def parse(defaults: dict[str, Any] | None = None, **fields: Any) -> ChatRequest:
    return ChatRequest.from_body({"messages": HELLO, **fields}, defaults or {})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -2),
        ("top_k", 1.5),
        ("min_p", 1.1),
        ("seed", "x"),
        ("seed", 2**63),
        ("presence_penalty", 3),
        ("frequency_penalty", float("inf")),
        ("repetition_penalty", 0),
        ("n", 0),
        ("n", 17),
        ("max_tokens", 0),
        ("max_completion_tokens", -1),
        ("min_tokens", -1),
        ("stop", ""),
        ("stop", ["a", 1]),
        ("stop_token_ids", ["1"]),
        ("stream", "yes"),
        ("logprobs", 5),
        ("top_logprobs", 21),
        ("stream_options", []),
        ("chat_template_kwargs", "x"),
        ("model", 3),
        ("messages", []),
        ("messages", "hello"),
        ("messages", None),
        ("messages", ["hello"]),
        ("messages", [{"content": "no role"}]),
        ("messages", [{"role": "user", "content": 5}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
    ],
)
def test_wrong_types_and_ranges_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ApiError) as caught:
        ChatRequest.from_body({"messages": HELLO, field: value}, {})
    assert caught.value.status == 400
    assert caught.value.param is not None and caught.value.param.startswith(field)
    assert field in str(caught.value)


@pytest.mark.parametrize("body", [None, [], "text", 5])
def test_body_must_be_an_object(body: object) -> None:
    with pytest.raises(ApiError, match="object"):
        ChatRequest.from_body(body, {})


def test_unknown_fields_and_nulls_are_ignored() -> None:
    plain = parse()
    assert parse(tools=[1], logit_bias={}, priority="high") == plain
    assert parse(temperature=None, top_k=None, n=None, stop=None, stream=None, max_tokens=None) == plain


def test_generation_config_gives_the_defaults_and_the_request_overrides_them() -> None:
    defaults = {"temperature": 0.6, "top_k": 20, "top_p": 0.8, "max_new_tokens": 9, "do_sample": False}
    request = parse(defaults)
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.top_p) == (0.6, 20, 0.8)
    assert request.max_tokens == 9
    request = parse(defaults, temperature=0, top_k=-1, max_tokens=11)
    assert (request.sampling.temperature, request.sampling.top_k, request.max_tokens) == (0.0, 0, 11)


def test_the_smaller_token_limit_counts() -> None:
    assert parse(max_tokens=5, max_completion_tokens=3).max_tokens == 3
    assert parse(max_tokens=5, max_completion_tokens=8).max_tokens == 5


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    request = parse(messages=[{"role": "user", "content": parts}, {"role": "assistant"}])
    assert [message["content"] for message in request.messages] == ["one\ntwo", ""]


def test_top_logprobs_need_logprobs() -> None:
    with pytest.raises(ApiError, match="logprobs"):
        parse(top_logprobs=2)
    assert parse(logprobs=True).top_logprobs == 0
    assert parse(logprobs=True, top_logprobs=4).top_logprobs == 4
    assert parse(top_logprobs=0).top_logprobs is None


def test_continuing_a_message_opens_no_new_one() -> None:
    assert parse().add_generation_prompt
    assert not parse(continue_final_message=True).add_generation_prompt
    with pytest.raises(ApiError, match="both"):
        parse(continue_final_message=True, add_generation_prompt=True)


def test_continuous_usage_needs_include_usage() -> None:
    """As in vLLM."""
    assert not parse(stream_options={"continuous_usage_stats": True}).continuous_usage
    assert parse(stream_options={"continuous_usage_stats": True, "include_usage": True}).continuous_usage


def test_template_arguments_cannot_change_how_the_prompt_is_made() -> None:
    request = parse(
        chat_template_kwargs={"enable_thinking": False, "tokenize": True, "add_generation_prompt": False}
    )
    assert request.chat_template_kwargs == {"enable_thinking": False}
