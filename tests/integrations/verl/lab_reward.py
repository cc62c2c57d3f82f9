"""The reward function of the runs of ``lab_verl.py``: verl loads it by its path, in processes of its own."""

from allotment.lab.hugging_face import SCRATCHPAD


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_) -> dict[str, float]:
    """1 for the right answer in the scratchpad form."""
    score = float(SCRATCHPAD.answer_of(solution_str) == ground_truth)
    return {"score": score, "acc": score}
