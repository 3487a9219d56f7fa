"""Cutting a model's output into thought and response: the core, on the standard library alone.

`format.py` says how a model marks its thought, `markers.py` which variants of a marker count, `splitter.py` cuts,
`output.py` holds what comes out.
"""

from thinkserve.thoughts.format import BUILT_IN, ThoughtFormat, get_format
from thinkserve.thoughts.output import Output, Piece, Response
from thinkserve.thoughts.splitter import State, ThoughtSplitter, split, strip_thoughts

__all__ = [
    "BUILT_IN",
    "Output",
    "Piece",
    "Response",
    "State",
    "ThoughtFormat",
    "ThoughtSplitter",
    "get_format",
    "split",
    "strip_thoughts",
]
