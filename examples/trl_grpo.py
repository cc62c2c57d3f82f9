"""VIP in TRL's GRPOTrainer: ``python examples/trl_grpo.py --output_dir runs/trl [--planner uniform ...]``.

Trains the small model that comes with Allotment on its own task, on a CPU in a minute; put your model, rewards and data
set in its place. Every field of TRL's configuration and of Allotment's is a flag, or a line of ``--config FILE.yaml``.
"""

from datasets import Dataset
from trl import TrlParser

from allotment.integrations.trl import AllotmentGRPOConfig, AllotmentGRPOTrainer
from allotment.lab.hugging_face import model_folder, rows, scratchpad_reward

DEFAULTS = {
    "per_device_train_batch_size": 128,  # rollouts of a step, spent exactly: 16 prompts, 8 rollouts each on average
    "num_generations": 8,
    "max_completion_length": 17,
    "loss_type": "dr_grpo",
    "scale_rewards": "none",  # VIP's price is the variance of advantages that are not divided
    "prompt_id_column": "prompt_id",
    "planner_kwargs": '{"bounds": [3, 32]}',
    "learning_rate": 1e-4,
    "max_steps": 60,
    "save_steps": 20,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
}


def main() -> None:
    """Train, and say what the counts did."""
    parser = TrlParser(AllotmentGRPOConfig)
    parser.set_defaults(**DEFAULTS)
    (arguments,) = parser.parse_args_and_config()
    trainer = AllotmentGRPOTrainer(
        model=str(model_folder()),
        reward_funcs=scratchpad_reward,
        args=arguments,
        train_dataset=Dataset.from_list(rows("pool")),
    )
    trainer.train()
    steps = [row for row in trainer.state.log_history if "loss" in row]
    for name in ("min_count", "max_count", "realised_variance_ratio", "dead_rollouts", "calibration_error"):
        values = [row[f"allotment/{name}"] for row in steps[len(steps) // 2 :]]
        print(f"{name}: {sum(values) / len(values):.3f}, mean over the second half of the steps")
    print(f"rollouts: {arguments.output_dir}/rollouts.jsonl (allotment audit reads it)")


if __name__ == "__main__":
    main()
