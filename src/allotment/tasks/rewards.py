"""Verifiers as reward functions in TRL's form."""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, get_args

from allotment.errors import ConfigError, InvalidInputError, needs_extra
from allotment.tasks.datasets import is_reasoning_gym
from allotment.tasks.entries import decode_entry, scorer

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
    """Refuse an unknown rule. Raises ConfigError: naming the rules."""
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


Verifier = Literal["exact", "reasoning-gym", "math-verify"]
Completion = str | Sequence[dict[str, Any]]
Values = list[float | None]

DEFAULT_RULES: dict[Verifier, Rule] = {"exact": "whole", "reasoning-gym": "answer_tag", "math-verify": "whole"}


def make_reward(
    verifier: Verifier | None = None,
    *,
    source: str | Path = "",
    rule: Rule | None = None,
    strict: bool = True,
    limit: float = 5.0,
    workers: int | None = None,
) -> Reward:
    """The reward function for a data set of :mod:`allotment.tasks.datasets`.

    Args:
        verifier: ``exact``: the extracted text equals ``answer``, both without surrounding white space.
            ``reasoning-gym``: the task's own score. ``math-verify``: mathematically equal, in processes of their own.
            None: ``reasoning-gym`` where ``source`` is one of its tasks, else ``exact``.
        source: what :func:`~allotment.tasks.datasets.load_rows` loads; only read where ``verifier`` is None.
        rule: where the answer stands in a completion; :data:`DEFAULT_RULES` where None. math-verify finds answers in
            whole completions itself.
        strict: reasoning-gym only: 1.0 for the full score and 0.0 for anything less. Almost all tasks give partial
            credit, which is no success.
        limit: math-verify only: seconds a comparison may take.
        workers: math-verify only: processes.

    Raises:
        ConfigError: unknown verifier or rule.
        InvalidInputError: ``limit`` or ``workers`` is not positive.
        MissingExtraError: the verifier's package is not installed.
    """
    chosen: Any = verifier or ("reasoning-gym" if is_reasoning_gym(source) else "exact")
    if chosen not in get_args(Verifier):
        names = ", ".join(get_args(Verifier))
        raise ConfigError("unknown verifier", got=repr(chosen), allowed=names, fix="name one of these")
    rule = DEFAULT_RULES[chosen] if rule is None else rule
    if chosen == "exact":
        return Exact(rule)
    return ReasoningGym(rule, strict) if chosen == "reasoning-gym" else MathVerify(rule, limit, workers)


class Reward:
    """A reward function: ``(prompts, completions, completion_ids=None, **columns) -> [N] rewards``.

    1.0 is right, 0.0 wrong. A completion without an answer where the rule looks is wrong. None is unscorable, which
    TRL leaves out of baselines: not known to be wrong. Where TRL passes ``log_metric``, the share of unscorable
    completions is logged as ``unscorable/NAME``.
    """

    column = "answer"
    """The column that the verifier reads."""

    def __init__(self, name: str, rule: Rule) -> None:
        check_rule(rule)
        self.__name__ = name
        self.rule = rule

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], completion_ids: Any = None, **columns: Any
    ) -> Values:
        """[N] rewards of N completions, each a text or a list of messages. Raises InvalidInputError: the verifier's
        column is missing, or lengths differ.
        """
        if self.column not in columns:
            raise InvalidInputError(
                f"the verifier {self.__name__} needs a column that the data set lacks",
                got=", ".join(columns) or "no columns",
                allowed=f"a column {self.column!r}",
                fix="load the data set with load_rows, or name the answer's column",
            )
        references = columns[self.column]
        if not len(prompts) == len(completions) == len(references):
            got = f"{len(prompts)} prompts, {len(completions)} completions, {len(references)} of {self.column}"
            raise InvalidInputError("lengths differ", got=got, allowed="one each", fix="pass one a rollout")
        answers = [extract(completion_text(completion), self.rule) for completion in completions]
        found = [
            (answer, reference) for answer, reference in zip(answers, references, strict=True) if answer is not None
        ]
        scores = iter(self.score([answer for answer, _ in found], [reference for _, reference in found]))
        values = [0.0 if answer is None else next(scores) for answer in answers]
        log_metric = columns.get("log_metric")
        if log_metric is not None and values:
            log_metric(f"unscorable/{self.__name__}", values.count(None) / len(values))
        return values

    def score(self, answers: list[str], references: list[Any]) -> Values:
        """[M] rewards of extracted answers, given the verifier's column."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what the verifier holds; also done at exit."""


class Exact(Reward):
    """Equality of texts."""

    def __init__(self, rule: Rule = "whole") -> None:
        super().__init__("exact", rule)

    def score(self, answers: list[str], references: list[Any]) -> Values:
        """None where a row has no reference answer."""
        return [
            None if reference is None else float(answer.strip() == str(reference).strip())
            for answer, reference in zip(answers, references, strict=True)
        ]


class ReasoningGym(Reward):
    """The score of the task that an entry comes from; None where its code raises."""

    column = "entry"

    def __init__(self, rule: Rule = "answer_tag", strict: bool = True) -> None:
        super().__init__("reasoning_gym", rule)
        self.strict = strict

    def score(self, answers: list[str], references: list[Any]) -> Values:
        """Full score or nothing if ``strict``, else from 0 to 1."""
        return [self._one(answer, decode_entry(text)) for answer, text in zip(answers, references, strict=True)]

    def _one(self, answer: str, entry: dict[str, Any]) -> float | None:
        score_of = scorer(entry["metadata"]["source_dataset"])
        try:
            score = float(score_of(answer, entry))
        except Exception:  # the tasks parse answers as they like
            return None
        return float(score == 1.0) if self.strict else score


class MathVerify(Reward):
    """Mathematical equality; None where the reference is no mathematics, or the time limit or a crash ended it."""

    def __init__(self, rule: Rule = "whole", limit: float = 5.0, workers: int | None = None) -> None:
        super().__init__("math_verify", rule)
        self._pool = MathPool(limit, workers)

    def score(self, answers: list[str], references: list[Any]) -> Values:
        """Compared in processes."""
        return self._pool.compare([str(reference) for reference in references], answers)

    def close(self) -> None:
        """End the processes."""
        self._pool.close()


def completion_text(completion: Completion) -> str:
    """The text of a completion; of a list of messages, the content of the last one of the assistant."""
    if isinstance(completion, str):
        return completion
    for entry in reversed(completion):
        if entry.get("role") == "assistant":
            return str(entry.get("content") or "")
    return ""


class MathPool:
    """Compares answers in ``workers`` processes, started when first needed, ended by :meth:`close` or at exit.

    Args:
        limit: seconds a comparison may take.
        workers: processes; by default one a core, at most 4 (a comparison takes about a millisecond).

    Raises:
        InvalidInputError: ``limit`` or ``workers`` is not positive.
        MissingExtraError: math-verify is not installed.
    """

    def __init__(self, limit: float = 5.0, workers: int | None = None) -> None:
        workers = min(4, os.cpu_count() or 1) if workers is None else workers
        if limit <= 0 or workers < 1:
            raise InvalidInputError(
                "math pool", got=f"limit {limit}, workers {workers}", allowed="> 0", fix="use 5.0 and 1 or more"
            )
        with needs_extra("trl"):
            if find_spec("math_verify") is None:
                raise ImportError("no module named 'math_verify'", name="math_verify")
        self._limit, self._workers = limit, [_Worker() for _ in range(workers)]
        self._threads = ThreadPoolExecutor(workers)  # each waits for one process
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        atexit.register(self.close)

    def compare(self, golds: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        """[N] 1.0 equal, 0.0 unequal; None: the gold answer is no mathematics, or the limit or a crash ended it."""
        return list(self._threads.map(self._one, golds, completions))

    def close(self) -> None:
        """End the processes; a later :meth:`compare` is an error."""
        atexit.unregister(self.close)
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def _one(self, gold: str, completion: str) -> float | None:
        worker = self._idle.get()
        try:
            return worker.ask(self._limit, gold, completion)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process of ``math_worker``; replaced when it has ended.

    A plain child process on pipes rather than ``multiprocessing``: a process pool of the standard library does not
    survive the end of a worker, and its workers import the training script again.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, limit: float, gold: str, completion: str) -> float | None:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(json.dumps([limit, gold, completion]), file=process.stdin, flush=True)
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer.endswith("\n"):  # the process has ended
            self.close()
            return None
        value: float | None = json.loads(answer)
        return value

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            command = [sys.executable, "-m", "allotment.tasks.math_worker"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert self._process.stdout is not None
            if self._process.stdout.readline() != "ready\n":
                self.close()
                raise RuntimeError("the process that compares answers does not start; its message stands above")
        return self._process
