"""The errors that the package raises on purpose: one base class, which holds the exit code of the
command line."""

DONE, BAD, USAGE, NO_SPACE, INTERRUPTED = 0, 1, 2, 28, 130
"""Exit codes of the command line; 28 is the number that Unix gives to a full disk, 130 is a shell's
for SIGINT."""


class MvlError(Exception):
    """A fault of data, settings or the machine, said in words that name the file and the remedy."""

    exit_code = BAD
