"""The core stands on the standard library alone: judges, clients and benchmarks import it at no cost."""

import subprocess
import sys

PROGRAM = """
import sys
before = set(sys.modules)
import thinkserve.thoughts
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - sys.stdlib_module_names - {"thinkserve"}))
print(*sorted(name for name in sys.modules if name.startswith("thinkserve.")))
"""


def test_importing_the_core_loads_no_third_party_module() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    foreign, own = result.stdout.splitlines()
    assert foreign == ""
    assert {name.split(".")[1] for name in own.split()} == {"errors", "thoughts"}


def test_public_names_are_these() -> None:
    from thinkserve import thoughts

    assert sorted(thoughts.__all__) == [
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
    assert all(hasattr(thoughts, name) for name in thoughts.__all__)
