"""A server that can be asked for a model's answers: another's, or our own gateway that runs for the run alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from thinkserve.errors import ThinkserveError
from thinkserve.eval.answering.spec import EndpointSpec
from thinkserve.eval.config import is_openai
from thinkserve.thoughts import ThoughtFormat

LIST_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class ModelServer:
    """Where a model is asked. Keys are in no text that is made of it."""

    url: str
    """Without `/v1`."""
    model: str
    api_key: str | None = field(default=None, repr=False)
    operator_key: str | None = field(default=None, repr=False)
    """Of our own gateway: it tells how long thoughts are, and takes them out of the content all the same."""
    identity: str | None = None
    """Tells the model from another of its name, such as a checkpoint that was trained further; None: the URL does."""
    raw_format: ThoughtFormat | None = None
    """How to cut the content, where the server shows whole outputs; None: its content is the response already."""

    @property
    def private(self) -> bool:
        """Whether it is our own gateway, which is known to hide thoughts."""
        return self.operator_key is not None


async def find_server(
    spec: EndpointSpec, *, api_key: str | None = None, raw_format: ThoughtFormat | None = None
) -> ModelServer:
    """The server of a SPEC, asked for its first model where the SPEC names none.

    Raises:
        ThinkserveError: it does not answer, refuses the key, or lists no model.
    """
    model = spec.model or await _first_model(spec.url, api_key)
    return ModelServer(spec.url, model, api_key, raw_format=raw_format)


async def _first_model(url: str, api_key: str | None) -> str:
    import openai

    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key=api_key or "none", max_retries=1, timeout=LIST_SECONDS
    ) as client:
        if not is_openai(url):  # else what the environment has for OpenAI would be told to any server
            client.organization = client.project = None
        try:
            models = (await client.models.list()).data
        except openai.APIConnectionError:
            raise ThinkserveError(
                f"no server answers at {url}; start one with `thinkserve serve`, or give another --model"
            ) from None
        except openai.APIStatusError as exc:
            raise ThinkserveError(
                f"{url} does not list its models (HTTP {exc.status_code}); name one: {url}#MODEL"
            ) from None
        except openai.OpenAIError as exc:
            raise ThinkserveError(f"{url} does not list its models ({exc}); name one: {url}#MODEL") from exc
    if not models:
        raise ThinkserveError(f"{url} lists no model; name one: {url}#MODEL")
    return models[0].id
