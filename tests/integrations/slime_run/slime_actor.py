"""Slime's rollout manager as slime makes it: an actor of Ray, with what a CPU lacks as files on its path."""

import json
import os
import sys
from pathlib import Path

import conftest


def stubs(folder):
    """The stubs of :mod:`conftest` as packages, for processes that Ray starts."""
    for name, attributes in conftest.ATTRIBUTES.items():
        if name.startswith("megatron"):
            continue
        file = folder.joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"class {attribute}: pass\n" for attribute in attributes))


def main(folder):
    stubs(folder / "stubs")
    path = os.pathsep.join(map(str, (Path(conftest.SOURCE).absolute(), conftest.HERE, folder / "stubs")))
    import ray
    from slime.ray.rollout import RolloutManager
    from slime_cases import arguments

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    made = RolloutManager.options(num_cpus=1).remote(arguments(folder), None)
    parallel = {"dp_size": 2, "cp_size": 1, "vpp_size": 1, "microbatch_group_size_per_vp_stage": 1}
    ray.get(made.set_train_parallel_config.remote(parallel))
    rollouts = []
    for rollout_id in range(3):
        boxes = ray.get(made.generate.remote(rollout_id))
        rollouts.append(sum(len(ray.get(box.inner)["rewards"]) for box in boxes))
    wrong = RolloutManager.options(num_cpus=1).remote(arguments(folder, "--log-passrate"), None)
    try:
        ray.get(wrong.set_train_parallel_config.remote(parallel))
        refused = ""
    except ray.exceptions.RayActorError as error:
        refused = str(error).partition("ConfigError: ")[2]
    print(json.dumps({"rollouts": rollouts, "refused": refused}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
