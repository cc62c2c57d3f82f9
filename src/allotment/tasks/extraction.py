"""Where in a completion its answer stands: one rule per name."""

from __future__ import annotations

import re
from typing import Literal, get_args

from allotment.errors import ConfigError, needs_extra

Rule = Literal["answer_tag", "last_line", "last_number", "boxed", "whole"]

_NUMBER = re.compile(r"(?:(?<!\d)-)?\d[\d,]*(?:\.\d+)?")


def extract(completion: str, rule: Rule) -> str | None:
    r"""The answer in ``completion``, without surrounding white space; None where the rule finds none.

    ``answer_tag``: between the last ``<answer>`` and ``</answer>`` (reasoning-gym's own rule). ``last_line``: the last
    line that is not blank. ``last_number``: the last decimal number, commas left out. ``boxed``: inside the last
    ``\boxed{...}`` whose braces match. ``whole``: everything.
    """
    check_rule(rule)
    if rule == "answer_tag":
        with needs_extra("train"):
            from reasoning_gym.utils import extract_answer
        found: str | None = extract_answer(completion)
        return found
    if rule == "last_line":
        lines = completion.strip().splitlines()
        return lines[-1].strip() if lines else None
    if rule == "last_number":
        numbers = _NUMBER.findall(completion)
        return numbers[-1].replace(",", "") if numbers else None
    return _boxed(completion) if rule == "boxed" else completion.strip()


def check_rule(rule: str) -> None:
    """Refuse an unknown rule.

    Raises:
        ConfigError: naming the rules.
    """
    if rule not in get_args(Rule):
        rules = ", ".join(get_args(Rule))
        raise ConfigError("unknown extraction rule", got=repr(rule), allowed=rules, fix="name one of these")


def _boxed(completion: str) -> str | None:
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", completion)]):
        depth = 1
        for end in range(start, len(completion)):
            depth += (completion[end] == "{") - (completion[end] == "}")
            if depth == 0:
                return completion[start:end].strip()
    return None
