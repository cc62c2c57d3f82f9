"""Score sketches of Hugging Face models against the exact gradient of each rollout."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from transformers import (  # noqa: E402
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MambaConfig,
    MambaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.pytorch_utils import Conv1D  # noqa: E402

from allotment.errors import ConfigError  # noqa: E402
from allotment.integrations.trl.sketches import ScoreSketch  # noqa: E402

VOCABULARY, PROMPT, COMPLETION, TEMPERATURE = 29, 5, 6, 0.7
KINDS = ("last-layer", "last-block")


def _llama(cls=LlamaForCausalLM):
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = {LlamaForCausalLM: LlamaConfig, LlamaModel: LlamaConfig, Qwen2ForCausalLM: Qwen2Config}[cls]
    return cls(config(vocab_size=VOCABULARY, initializer_range=0.3, attention_dropout=0.5, **size, **heads))


def _gpt2():
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": VOCABULARY, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(**size, resid_pdrop=0.5, tie_word_embeddings=False))


def _neox():
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**size, vocab_size=VOCABULARY, initializer_range=0.3))


def _mamba():
    size = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
    return MambaForCausalLM(MambaConfig(**size, initializer_range=0.3, tie_word_embeddings=False))


MODELS = {
    "llama": (_llama, "model.layers.1.self_attn.o_proj"),
    "qwen2": (lambda: _llama(Qwen2ForCausalLM), "model.layers.1.self_attn.o_proj"),
    "gpt2": (_gpt2, "transformer.h.1.attn.c_proj"),
    "gpt-neox": (_neox, "gpt_neox.layers.1.attention.dense"),
    "mamba": (_mamba, "backbone.layers.1.mixer.out_proj"),
}


def made(name: str, seed: int = 0):
    torch.manual_seed(seed)
    return MODELS[name][0]().train()


@pytest.fixture
def batch():
    """Prompts of 1 to 5 tokens padded on the left, completions of 0 to 6 padded on the right."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(0, VOCABULARY, (7, PROMPT), generator=generator)
    tokens = torch.randint(0, VOCABULARY, (7, COMPLETION), generator=generator)
    prompt_lengths, lengths = torch.tensor([1, 5, 3, 2, 5, 4, 3]), torch.tensor([6, 1, 4, 2, 0, 6, 3])
    prompt_mask = (torch.arange(PROMPT) >= PROMPT - prompt_lengths[:, None]).long()
    return prompts, prompt_mask, tokens, (torch.arange(COMPLETION) < lengths[:, None]).long()


def exact(model, module, batch, directions, counted=None):
    """[N, K] by one backward pass a rollout through the whole model, positions and padding as TRL has them."""
    prompts, prompt_mask, tokens, mask = batch
    was, projected = model.training, []
    model.eval()
    for n in range(len(prompts)):
        ids = torch.cat([prompts[n], tokens[n]])[None]
        logits = model(input_ids=ids, attention_mask=torch.cat([prompt_mask[n], mask[n]])[None]).logits
        log_p = (logits[0, PROMPT - 1 : -1] / TEMPERATURE).log_softmax(-1)[torch.arange(COMPLETION), tokens[n]]
        (gradient,) = torch.autograd.grad((log_p * (mask if counted is None else counted)[n]).sum(), module.weight)
        if isinstance(module, Conv1D):
            gradient = gradient.T
        projected.append(((directions.outputs_KO @ gradient) * directions.inputs_KI).sum(1))
    model.train(was)
    return torch.stack(projected)


def matrix(model, name: str, kind: str):
    return model.get_submodule(MODELS[name][1] if kind == "last-block" else "lm_head")


def sketched(model, kind: str, batch, *, batch_size: int = 3, **options):
    return ScoreSketch(model, kind, **options)(model, *batch, temperature=TEMPERATURE, batch_size=batch_size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_sketches_are_projections_of_each_rollouts_gradient(name, kind, batch):
    model = made(name)
    sketch = ScoreSketch(model, kind, sketches=5, seed=3)
    scores = sketch(model, *batch, temperature=TEMPERATURE, batch_size=3)
    want = exact(model, matrix(model, name, kind), batch, sketch.directions)
    assert scores.shape == (7, 5)
    assert scores.dtype == torch.float32
    assert want[batch[3].sum(1) > 0].abs().min() > 0
    assert (scores[4] == 0).all()
    torch.testing.assert_close(scores, want, rtol=1e-3, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_were_not_drawn_are_attended_to_and_not_counted(kind, batch):
    model = made("llama")
    drawn = batch[3].clone()
    drawn[[0, 5], 2:4] = 0
    sketch = ScoreSketch(model, kind, sketches=4)
    scores = sketch(model, *batch[:3], drawn, temperature=TEMPERATURE, batch_size=4)
    want = exact(model, matrix(model, "llama", kind), batch, sketch.directions, counted=drawn)
    torch.testing.assert_close(scores, want, rtol=1e-3, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_rows_at_once_and_padded_tokens_do_not_matter(kind, batch):
    model = made("gpt2")
    once = sketched(model, kind, batch, batch_size=100)
    prompts, prompt_mask, tokens, mask = batch
    other = (prompts, prompt_mask, torch.where(mask == 1, tokens, 0), mask.bool())
    for size in (1, 2, 7):
        torch.testing.assert_close(sketched(model, kind, other, batch_size=size), once, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_directions_are_a_function_of_the_seed(kind, batch):
    first = sketched(made("llama"), kind, batch, seed=1)
    torch.manual_seed(99)
    again = made("llama")
    assert torch.equal(sketched(again, kind, batch, seed=1), first)
    assert not torch.allclose(sketched(again, kind, batch, seed=2), first)


@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["plain", "reentrant", "not-reentrant"])
@pytest.mark.parametrize("kind", KINDS)
def test_leaves_the_model_as_it_was(kind, checkpointing, batch):
    model = made("llama")
    want = sketched(model, kind, batch)
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})  # as TRL does by default
    model.model.layers[0].eval()
    model.model.embed_tokens.weight.requires_grad_(False)
    before, random = state_of(model), torch.get_rng_state()
    torch.testing.assert_close(sketched(model, kind, batch), want)
    assert state_of(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    with torch.no_grad():  # as in TRL's generation phase
        torch.testing.assert_close(sketched(model, kind, batch), want)
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("kind", KINDS)
def test_leaves_the_model_as_it_was_after_an_error(kind, batch):
    model = made("llama")
    before = state_of(model)
    with pytest.raises(IndexError):
        sketched(model, kind, (batch[0], batch[1], batch[2] + VOCABULARY, batch[3]))
    assert state_of(model) == before
    assert torch.is_grad_enabled()


def state_of(model):
    modules = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    checkpointing = [getattr(m, "gradient_checkpointing", None) for m in model.modules()]
    parameters = [(p.grad, p.requires_grad, p.double().sum().item()) for p in model.parameters()]
    return modules, checkpointing, parameters


def test_frozen_parameters_do_not_matter(batch):
    model = made("llama")
    want = sketched(model, "last-block", batch)
    torch.testing.assert_close(sketched(model.requires_grad_(False), "last-block", batch), want)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9)), "last-layer"),
        (torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9)), "last-block"),
        (_llama(LlamaModel), "last-layer"),
    ],
)
def test_a_model_without_the_matrix_is_refused(model, kind):
    with pytest.raises(ConfigError, match=r"fix: .*take a planner without score sketches"):
        ScoreSketch(model, kind)


def test_a_model_that_gives_no_logits_is_refused(batch):
    model = _llama(LlamaModel)
    with pytest.raises(ConfigError, match="logits"):
        sketched(model, "last-block", batch)


def test_a_matrix_that_does_not_see_every_token_is_refused(batch):
    class Experts(torch.nn.Module):
        """A last layer whose matrix is given some of the tokens, as an expert is."""

        def __init__(self):
            super().__init__()
            self.config = SimpleNamespace(num_hidden_layers=1, hidden_size=4)
            self.config.get_text_config = lambda: self.config
            self.embedding = torch.nn.Embedding(VOCABULARY, 4)
            self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4)])

        def forward(self, input_ids, **_):
            hidden = self.embedding(input_ids)
            some = self.layers[0](hidden.flatten(0, 1)[::2])
            return SimpleNamespace(logits=(hidden + some.mean()) @ self.embedding.weight.T)

    with pytest.raises(ConfigError, match="not used once for every token"):
        sketched(Experts(), "last-block", batch)
