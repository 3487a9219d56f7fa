"""`openapi.json`: what is served, as OpenAPI 3.1, made of the tables that requests are read by.

Fields that are refused are left out, and no others are let in, so a client made of it asks for nothing that is not served.
A field that is null counts as absent.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from thinkserve.gateway.endpoint import Endpoint
from thinkserve.gateway.fields import DROP, REFUSE
from thinkserve.gateway.openapi_schemas import (
    ANSWERS,
    ANTHROPIC_ERROR,
    ERROR,
    INSIDE,
    MODEL,
    MODELS,
    STRING,
    Schema,
    nullable,
    record,
)

_ERRORS = {
    "400": "The request asks for what is not served, or is malformed.",
    "401": "The key is missing or unknown.",
    "403": "The key may not do this.",
    "404": "There is no such model for this key.",
    "413": "The body is too large.",
    "429": "The key is over a limit, or the engine is busy.",
    "500": "The gateway failed.",
    "502": "The model's output was malformed.",
    "503": "The engine is not available, the queue is full, or the server shuts down.",
}
_OF_A_KEY = ("401", "403", "404")
_JSON = "application/json"


def document(
    endpoints: Sequence[Endpoint], *, version: str, allow: Collection[str] = (), keys: bool = True
) -> dict[str, Any]:
    """The description of a gateway.

    Args:
        endpoints: those that generate.
        version: of this package.
        allow: refused or unknown fields, message fields and content parts that the operator lets pass.
        keys: whether callers need one.
    """
    schemas: dict[str, Schema] = {
        "Error": ERROR,
        "AnthropicError": ANTHROPIC_ERROR,
        "Model": MODEL,
        "Models": MODELS,
    }
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        name = type(endpoint).__name__
        schemas[f"{name}Request"] = _request(endpoint, allow)
        schemas[f"{name}Answer"] = ANSWERS.get(endpoint.path, {"type": "object"})
        paths[endpoint.path] = {"post": _generating(endpoint, name)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "thinkserve",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Serves a model that thinks before it responds; clients get the response.",
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"x-api-key": []}] if keys else [],
        "paths": {**paths, **_others()},
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(name: str, description: str) -> dict[str, Any]:
    return {"description": description, "content": {_JSON: {"schema": _reference(name)}}}


def _request(endpoint: Endpoint, allow: Collection[str]) -> Schema:
    """The body that an endpoint takes, by its table."""
    properties: dict[str, Schema] = {}
    for name, field in endpoint.fields.items():
        if field.action == REFUSE:
            continue
        schema = dict(field.check.schema) if field.check is not None else {}
        schema = dict(INSIDE.get((endpoint.path, name), schema))
        if name not in endpoint.required:
            schema = nullable(schema)
        said = [schema.get("description", ""), "Taken, without effect." if field.action == DROP else ""]
        if description := " ".join(filter(None, dict.fromkeys([*said, field.why]))):
            schema["description"] = description
        properties[name] = schema
    let_by = {name: {"description": "Let by to the engine."} for name in allow if name not in properties}
    return {
        "type": "object",
        "properties": {**properties, **let_by},
        "required": list(endpoint.required),
        "additionalProperties": False,
    }


def _generating(endpoint: Endpoint, name: str) -> dict[str, Any]:
    """An endpoint that generates."""
    anthropic = endpoint.path == "/v1/messages"
    error = "AnthropicError" if anthropic else "Error"
    return {
        "operationId": name,
        "requestBody": {"required": True, "content": {_JSON: {"schema": _reference(f"{name}Request")}}},
        "responses": {
            "200": {
                "description": "The answer; with `stream`, its events.",
                "content": {
                    _JSON: {"schema": _reference(f"{name}Answer")},
                    "text/event-stream": {},
                },
            },
            **{status: _json(error, description) for status, description in _ERRORS.items()},
        },
    }


def _others() -> dict[str, Any]:
    """The routes that do not generate."""
    failed = _json("Error", _ERRORS["500"])
    of_a_key = {status: _json("Error", _ERRORS[status]) for status in _OF_A_KEY}
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    status = {_JSON: {"schema": record(status=STRING)}}
    told = {"description": "Its state.", "content": status}

    def get(operation: str, answer: dict[str, Any], **responses: dict[str, Any]) -> dict[str, Any]:
        return {"operationId": operation, "responses": {"200": answer, "500": failed, **responses}}

    return {
        "/v1/models": {"get": get("Models", _json("Models", "The models that the key may use."), **of_a_key)},
        "/v1/models/{model}": {
            "get": get("Model", _json("Model", "The model."), **of_a_key) | {"parameters": [name]}
        },
        "/health": {"get": get("Health", told) | {"security": []}},
        "/ready": {
            "get": get("Ready", told, **{"503": {**told, "description": "Not ready."}}) | {"security": []}
        },
        "/metrics": {
            "get": get(
                "Metrics",
                {"description": "Prometheus metrics.", "content": {"text/plain": {"schema": STRING}}},
            )
            | {"security": []}
        },
        "/version": {
            "get": get(
                "Version",
                {"description": "The version.", "content": {_JSON: {"schema": record(version=STRING)}}},
            )
            | {"security": []}
        },
        "/openapi.json": {
            "get": get(
                "OpenAPI",
                {"description": "This document.", "content": {_JSON: {"schema": {"type": "object"}}}},
            )
            | {"security": []}
        },
    }
