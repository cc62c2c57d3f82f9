"""A process that compares mathematical answers: reads lines ``[limit, gold, completion]``, writes 1.0, 0.0 or null.

A comparison can keep sympy busy for hours, some inside one long integer operation. An interval timer with its default
action ends the process even then; whoever holds the other end of the pipe sees it closed and starts another. The
package's own time limits use the same signal and are off. POSIX only.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys

from math_verify import parse, verify  # type: ignore[import-untyped, unused-ignore]

MEMORY = 4 << 30
"""Bytes of address space; a larger number than fits raises MemoryError instead of starving the trainer."""


def compare(gold: str, completion: str) -> float | None:
    """1.0 for equal, 0.0 for unequal or nothing to compare in ``completion``, None where ``gold`` is no mathematics."""
    expected = parse(as_mathematics(gold), parsing_timeout=None)
    if not expected:
        return None
    given = parse(completion, parsing_timeout=None) or parse(as_mathematics(completion), parsing_timeout=None)
    return float(verify(expected, given, timeout_seconds=None))


def as_mathematics(text: str) -> str:
    """A bare expression between dollar signs, without which only plain numbers are read; other texts as they are."""
    bare = not any(sign in text for sign in ("$", "\\boxed", "\\[", "\\(", "\n"))
    return f"${text}$" if bare else text


def main() -> None:
    """Answer until the pipe closes."""
    logging.disable()  # "timeout is disabled", once a process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    compare("1", "1")  # builds the grammar; counts against no one's limit
    print("ready", flush=True)
    for line in sys.stdin:
        limit, gold, completion = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            value = compare(gold, completion)
        except Exception:  # whatever sympy raises: not comparable
            value = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
