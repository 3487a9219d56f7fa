"""The gateway: what clients talk to. Policy in (what a client may ask), hiding out (what it may see).

The path of a request: `app.py` (routes, keys, errors) -> `route.py` (limits) -> `api/` (the endpoint: `fields.py` into a
`request.py`) -> `intake.py` (what there is; `history.py`: messages, thought prompt; a `job.py`) -> `generation.py` (one
choice: engine, retries, failover) -> `pool.py`, `upstream.py`, `connection.py` and `sse.py` (the wire) -> `choice.py`
(split, count, stop, cut, calls) -> `sinks.py` and the endpoint's writer (a stream, or one body).

Imports neither torch nor transformers nor vllm: engines run as their own processes.
"""
