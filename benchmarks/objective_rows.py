"""The objectives' rows of docs/methods.md, in words."""

from __future__ import annotations

COLUMNS = ("objective", "what it changes", "limit to a known baseline", "source", "deviations and reconstructions")
ROWS: dict[str, tuple[str, str, str, str]] = {
    "rloo": (
        "advantage: reward less the mean of the other rollouts of the prompt",
        "the default",
        "arXiv 2402.14740",
        "none",
    ),
    "dr-grpo": (
        "advantage: reward less the mean of the group; `(n-1)/n` of RLOO's",
        "`rloo` for large groups",
        "arXiv 2503.20783",
        "lengths by `aggregation` ([weights](weights.md))",
    ),
    "grpo": (
        "advantage: standardised reward; weighs a prompt by about `1/sqrt(p(1-p))`",
        "`dr-grpo` for equal deviations",
        "arXiv 2402.03300",
        "epsilon 1e-4 (TRL)",
    ),
    "gdpo": (
        "several rewards: each standardised in its group, added with weights, standardised over the batch; conditioned "
        "rewards",
        "one reward and one group: `grpo` up to a scale",
        "arXiv 2601.05242; TRL, verl",
        "epsilon 1e-4 (TRL; verl 1e-6); no mean is subtracted over rollouts (it is 0); over tokens by name as in verl; "
        "one threshold for all conditions",
    ),
    "divergence-ppo": (
        "loss of a token: trust region on the probability mass that moved from the rollout policy, capped importance "
        "weights",
        "`delta` infinite: capped importance sampling; `gate=ratio`, no cap: PPO's gradient; on-policy: the policy "
        "gradient",
        "arXiv 2602.04879; verl's `dppo_tv`, `dppo_kl`",
        "thresholds and cap differ by source (docstring); one delta for both signs; top-K adds the drawn token (the "
        "code's replacement by name)",
    ),
    "jackpot": (
        "gate: rejects tokens of another actor by `min(1, p/(lambda q))`, weighs the rest by `max(lambda, p/q)`",
        "`lam` 0: truncated importance sampling; on-policy and `lam` at most 1: nothing",
        "arXiv 2602.06107",
        "average over all tokens without Z (the paper's as `average=accepted`); lambda from the drawn tokens; caps 2, "
        "distillation weight 1 and the actor's learning rate are choices",
    ),
    "flowrl": (
        "loss of a rollout: `w (log Z + (log pi - log pi_ref)/length - beta A)^2` with a trained log Z",
        "equal rewards: only the pull to the reference; without length normalisation, on-policy: twice the gradient of "
        "the reverse KL",
        "arXiv 2509.15207",
        "clip .2 is a reconstruction; the released code multiplies by the unclipped weight (by name); log Z sends no "
        "gradient into the trunk; all prompt tokens are pooled",
    ),
    "capo": (
        "gate: rejects tokens by the predicted change of objective and policy (output matrix, Adam's next step)",
        "both thresholds infinite: nothing, bit for bit",
        "arXiv 2510.00819",
        "rows of the vocabulary by least probability (top-k by name); all tokens in the denominator (kept by name); "
        "sentence, batch and penalty variants are not built",
    ),
    "on-policy-dpo": (
        "loss of a pair: DPO on two rollouts of a prompt whose verified rewards differ, against the fixed initial "
        "policy; or squared regression of reward differences (`loss_name=distillation`)",
        "policy at the reference: `beta` times the gradient of `rloo`; an actor of one long round: offline DPO",
        "arXiv 2601.08421 (abstract); DPO, arXiv 2305.18290",
        "a reconstruction: defaults, distillation loss; a tie counts 0 in the mean over all pairs of a prompt, so that "
        "its weight does not depend on how many rollouts it got",
    ),
    "representation-reward": (
        "reward: a probe of the starting policy's hidden states, fitted to verified pairs of other prompts, in the "
        "verifier's place; loss: conservative DPO on best and worst of n",
        "confidence 1: DPO on the probe's order; `train=policy-gradient`: advantages of the probe's reward",
        "arXiv 2503.10093 (abstract) and its code",
        "one pooling in training and scoring (the code has two); policy and reference are two models (the code binds "
        "one); states of the start and of the tokens drawn, pairs within and between prompts (the paper's by name); "
        "the zero of the score is calibrated",
    ),
    "ml-irl": (
        "reward: learnt from demonstrations, one step after each step of the policy",
        "demonstrations like the policy's own rollouts: no step of the reward",
        "arXiv 2210.01808 and its code",
        "the sequence version is a reconstruction (`pi` proportional to `pi_ref exp(r / beta)`) with a penalty on "
        "squared rewards, states of the starting policy and a rule of success of ours; the tabular one is exact",
    ),
}


def table() -> str:
    """The rows as a Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    return "\n".join([*lines, *(f"| {' | '.join((f'`{name}`', *cells))} |" for name, cells in ROWS.items())])
