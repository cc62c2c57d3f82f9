"""One run with known truth, and dumps of it with every field that the writers write."""

import random
from collections import Counter, defaultdict
from dataclasses import dataclass

DRAW = random.Random(7)
CHANCES = [0.0, 1.0, *(DRAW.random() for _ in range(10))]


@dataclass(frozen=True)
class Rollout:
    step: int
    prompt: int
    number: int
    reward: float

    @property
    def text(self):
        return f"What is {self.prompt} + {self.prompt * 7}?"

    @property
    def answer(self):
        return f"<think>Let me see, \u00e9 {self.number}</think> \\boxed{{{self.prompt * 8 if self.reward else -1}}}"

    @property
    def prompt_tokens(self):
        return [151644, 872, 198, 4000 + self.prompt, 17, 151645]

    @property
    def answer_tokens(self):
        return list(range(20 + self.prompt + self.number))

    @property
    def tokens(self):
        return len(self.answer_tokens)

    @property
    def messages(self):
        return [{"role": "system", "content": "Think."}, {"role": "user", "content": self.text}]


def run(steps=6, per_step=4, n=8):
    """Each prompt is met every third step."""
    return [
        Rollout(step, prompt, number, float(DRAW.random() < CHANCES[prompt]))
        for step in range(1, steps + 1)
        for prompt in range((step - 1) % 3 * per_step, (step - 1) % 3 * per_step + per_step)
        for number in range(n)
    ]


ROLLOUTS = run()
EVALUATION = [r for r in ROLLOUTS if r.step <= 3]
"""Every prompt once, eight times."""


def of_step(step, rollouts=ROLLOUTS):
    return [r for r in rollouts if r.step == step]


def steps_of(rollouts=ROLLOUTS):
    return sorted({r.step for r in rollouts})


def shuffled(rows, seed=0):
    return random.Random(seed).sample(rows, len(rows))


def history(rollouts, *, with_steps=True, by_visit=False):
    """The visits of each prompt as (step, successes, rollouts), prompts in any order."""
    found = defaultdict(Counter), defaultdict(Counter)
    for r in rollouts:
        found[0][r.prompt][r.step] += r.reward > 0
        found[1][r.prompt][r.step] += 1
    prompts = [
        tuple(
            (step if with_steps else i, int(found[0][p][step]), n)
            for i, (step, n) in enumerate(sorted(steps.items()), 1)
        )
        for p, steps in found[1].items()
    ]
    return sorted((visit,) for visits in prompts for visit in visits) if by_visit else sorted(prompts)


def history_of(log, *, with_steps=True, by_visit=False):
    """The same of a log that was read."""
    steps = log.step if with_steps and log.step is not None else log.visit
    visits = defaultdict(list)
    for v in range(len(log.visit)):
        visits[log.prompt[v]].append((int(steps[v]), int(log.successes[v]), int(log.trials[v])))
    assert len(visits) == len(log.ids)
    found = sorted(tuple(sorted(v)) for v in visits.values())
    return sorted((visit,) for visits in found for visit in visits) if by_visit else found


def counted(log):
    """Prompts, visits, rollouts, rollouts in groups that all failed, in groups that all succeeded."""
    failed, succeeded = log.successes == 0, log.successes == log.trials
    return tuple(
        int(x)
        for x in (len(log.ids), len(log.visit), log.trials.sum(), log.trials[failed].sum(), log.trials[succeeded].sum())
    )


def truth(rollouts, prompts=None):
    visits = [visit for visits in history(rollouts) for visit in visits]
    return (
        len({r.prompt for r in rollouts}) if prompts is None else prompts,
        len(visits),
        len(rollouts),
        sum(n for _, k, n in visits if k == 0),
        sum(n for _, k, n in visits if k == n),
    )
