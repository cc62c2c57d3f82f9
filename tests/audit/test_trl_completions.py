"""The files that a real ``GRPOTrainer`` writes with ``log_completions=True``."""

import pytest

from allotment.audit import find_sources, read_log

trl = pytest.importorskip("trl")
pytest.importorskip("pyarrow")

CHARACTERS = "0123456789+="
SETTINGS = {
    "per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 3, "max_steps": 3,
    "num_iterations": 1, "logging_steps": 1, "log_completions": True, "num_completions_to_print": 0,
    "report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False,
    "disable_tqdm": True, "seed": 0,
}  # fmt: skip


def trained(folder, **settings):
    """Train a model of a few hundred numbers for three steps; the rewards that were given, in order."""
    import torch
    from datasets import Dataset
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, **{c: i + 2 for i, c in enumerate(CHARACTERS)}, "<unk>": len(CHARACTERS) + 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), num_key_value_heads=2, **size, **tokens))
    given = []

    def even(prompts, completions, **_):
        rewards = [float(completion[:1] in "02468=") for completion in completions]
        given.append(list(zip(prompts, rewards, strict=True)))
        return rewards

    trl.GRPOTrainer(
        model=model,
        reward_funcs=[even],
        args=trl.GRPOConfig(output_dir=str(folder), **(SETTINGS | settings)),
        train_dataset=Dataset.from_list([{"prompt": f"{i}+{i % 7}="} for i in range(8)]),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
        ),
    ).train()
    return given


@pytest.mark.parametrize("iterations", [1, 2])
def test_what_the_trainer_writes_is_what_was_rewarded(tmp_path, iterations):
    given = trained(tmp_path, num_iterations=iterations)
    (source,) = find_sources(tmp_path)
    assert (source.format, source.columns.reward, len(source.files)) == ("trl", "even", 3)
    log = read_log(tmp_path)
    expected = sorted(
        (prompt, sum(r for p, r in batch if p == prompt), 4) for batch in given for prompt in {p for p, _ in batch}
    )
    read = [(log.texts[q], float(k), int(n)) for q, k, n in zip(log.prompt, log.successes, log.trials, strict=True)]
    assert sorted(read) == expected
    assert len(given) == (3 if iterations == 1 else 2)
    assert any("rollouts of the one before it" in note for note in log.notes) == (iterations == 2)
