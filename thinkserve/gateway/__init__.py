"""The gateway: what clients talk to. Policy in (what a client may ask), hiding out (what it may see).

The path of a request: `app.py` (routes) -> `policy.py` (fields) and `messages.py` (thought prompt, history) ->
`chat.py` (the route) -> `generation.py` (one choice: upstream, retries, failover) -> `upstream.py`,
`connection.py` and `sse.py` (the wire) -> `choice.py` (split, count, stop, cut) -> `sinks.py` (a stream, or one body).

Imports neither torch nor transformers nor vllm: engines run as their own processes.
"""
