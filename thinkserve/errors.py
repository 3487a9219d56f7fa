"""The errors that thinkserve raises on purpose.

    ThinkserveError            shown to the user in one line; the command line exits 1
    +-- UsageError             an option or a file the user gave is wrong; exits 2
    |   +-- ThoughtFormatError     a thought format that is unknown or malformed
    +-- EngineError            the engine could not be started, or has died
        +-- EngineUnavailableError  no engine is installed that could serve this checkpoint

A class exists only where a caller catches it. Every message says what happened, names the value, and says what
to do.
"""


class ThinkserveError(Exception):
    """Something went wrong that the message explains; `exit_code` is what the command line exits with."""

    exit_code = 1


class UsageError(ThinkserveError):
    """An option, a path or a file given by the user is wrong."""

    exit_code = 2


class ThoughtFormatError(UsageError):
    """A thought format is unknown, or its definition is malformed."""


class EngineError(ThinkserveError):
    """The engine could not be started, died, or answered with something that is not an answer."""


class EngineUnavailableError(EngineError):
    """No installed engine can serve this checkpoint."""
