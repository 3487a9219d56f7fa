"""Let schemathesis explore a gateway by its document: python explore.py URL DOCUMENT EXAMPLES. Prints what it found as JSON.

A process of its own, since what Hypothesis makes of a document hangs on the seed of Python's hashes too, and that can only be
set from outside: with some seeds it makes bodies for minutes.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

URL, DOCUMENT, EXAMPLES = sys.argv[1:]
ALWAYS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


def explore(operation: Any, mode: str, session: requests.Session) -> dict[str, Any]:
    """Send what fits the document, or (`negative`) what does not; tell the statuses and the first failure."""
    statuses: Counter[int] = Counter()
    failures: list[str] = []

    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    @settings(
        max_examples=int(EXAMPLES),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    def ask(case: Any) -> None:
        response = case.call(base_url=URL, session=session, timeout=20)
        statuses[response.status_code] += 1
        if b"SECRET" in response.content:
            failures.append("the thought was shown")
        refused = [checks.negative_data_rejection] if mode == "negative" else []
        # The engine of the test answers with nonsense at times, and 502 is the right word for that.
        wanted = [check for check in ALWAYS + refused if response.status_code != 502 or check != ALWAYS[0]]
        case.validate_response(response, checks=wanted)

    try:
        ask()
    except Exception as exc:  # noqa: BLE001 - whatever it is, the test shows it
        failures.append(f"{type(exc).__name__}: {exc}"[:3000])
    return {"statuses": statuses, "failures": failures}


def main() -> None:
    document = json.loads(Path(DOCUMENT).read_text(encoding="utf-8"))
    schema = schemathesis.openapi.from_dict(document)
    found = {}
    with requests.Session() as session:
        for path, item in document["paths"].items():
            for method in item:
                modes = ["positive", "negative"] if method == "post" else ["positive"]
                for mode in modes:
                    found[f"{mode} {path}"] = explore(schema[path][method.upper()], mode, session)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
