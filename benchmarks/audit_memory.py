"""Time and peak memory of reading and auditing a large log: a generated dump as verl writes it.

    python benchmarks/audit_memory.py [--gigabytes 2] [--prompts 8000] [--folder /tmp] [--read-only]

Writes the dump into a new folder under ``--folder``, audits it in a process of its own, prints one JSON object, and
deletes the dump. 128 prompts a step, 8 rollouts each, completions of 600 to 3,400 characters; success probabilities
are Beta(1/2, 1/2) and never change.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEP_PROMPTS, ROLLOUTS = 128, 8
READ = "import sys; from allotment.audit import read_log; read_log(sys.argv[1])"
AUDIT = "import sys; from allotment.cli.main import main; sys.exit(main(['audit', sys.argv[1], '--json']))"


def write_dump(folder: Path, size: float, n_prompts: int) -> dict[str, float]:
    """Files ``STEP.jsonl`` of ``size`` bytes in all, with the fields of verl's ``_dump_generations``."""
    rng = random.Random(0)
    probability = [rng.betavariate(0.5, 0.5) for _ in range(n_prompts)]
    words = "".join(f"w{rng.randrange(1000):03d} " for _ in range(4000))
    written, step, order = 0, 0, []
    while written < size:
        step += 1
        lines = []
        for _ in range(STEP_PROMPTS):
            order = order or rng.sample(range(n_prompts), n_prompts)
            prompt = order.pop()
            lines += _group(rng, prompt, probability[prompt], step, words)
        data = "\n".join(lines) + "\n"
        (folder / f"{step}.jsonl").write_text(data)
        written += len(data)
    return {"bytes": written, "steps": step, "rollouts": step * STEP_PROMPTS * ROLLOUTS}


def _group(rng: random.Random, prompt: int, probability: float, step: int, words: str) -> list[str]:
    """The lines of one prompt's rollouts."""
    lines = []
    for _ in range(ROLLOUTS):
        length, right = rng.randint(600, 3400), rng.random() < probability
        start = rng.randrange(len(words) - length)
        row = {
            "input": f"user\nProblem {prompt}: {words[prompt % 900 : prompt % 900 + 300]}\nassistant\n",
            "output": words[start : start + length],
            "gts": str(prompt),
            "score": float(right),
            "step": step,
            "acc": right,
        }
        lines.append(json.dumps(row, ensure_ascii=False))
    return lines


def main() -> None:
    """Generate, measure, delete, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--prompts", type=int, default=8000)
    parser.add_argument("--folder", type=Path, default=Path("/tmp"))
    parser.add_argument("--read-only", action="store_true", help="read the log, replay nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        dump = write_dump(Path(folder), arguments.gigabytes * 1e9, arguments.prompts)
        start = time.perf_counter()
        code = READ if arguments.read_only else AUDIT
        subprocess.run([sys.executable, "-c", code, folder], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        json.dumps(
            {
                **dump,
                "prompts": arguments.prompts,
                "seconds": round(seconds, 1),
                "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
                "peak_mib": round(used.ru_maxrss / 1024),
            }
        )
    )


if __name__ == "__main__":
    main()
