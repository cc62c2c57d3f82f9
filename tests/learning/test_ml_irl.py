import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import relu

from allotment.errors import ConfigError, InvalidInputError
from allotment.methods.objectives.ml_irl import RewardNetwork, reward_loss, soft_rewards, squared_rewards

PROMPTS, COMPLETIONS, FEATURES = 3, 6, 5
BETA = 0.5


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class World:
    """Prompts whose completions can all be listed; expectations are exact.

    ``reward_loss`` takes a mean over rollouts. One rollout of each completion whose reward is multiplied by
    ``COMPLETIONS * probability`` has the expectation as its mean.
    """

    def __init__(self, seed=0):
        random = torch.Generator().manual_seed(seed)
        shape = (PROMPTS, COMPLETIONS)
        self.features_NF = torch.randn(PROMPTS * COMPLETIONS, FEATURES, generator=random)
        self.ids_N = torch.arange(PROMPTS).repeat_interleave(COMPLETIONS)
        self.log_reference_QK = torch.randn(shape, generator=random).log_softmax(1)
        self.expert_QK = torch.randn(shape, generator=random).softmax(1)

    def log_optimal(self, rewards_N):
        """[Q, K] the soft-optimal policy."""
        return (self.log_reference_QK + rewards_N.view(PROMPTS, COMPLETIONS) / BETA).log_softmax(1)

    def likelihood(self, log_policy_QK):
        return (self.expert_QK * log_policy_QK).sum(1).mean()

    def sides(self, rewards_N, policy_QK):
        """Arguments of the losses in exact expectation."""
        agent_N, expert_N = (COMPLETIONS * p.flatten() * rewards_N for p in (policy_QK, self.expert_QK))
        return agent_N, self.ids_N, expert_N, self.ids_N


@pytest.fixture
def world():
    return World()


def network(seed=0):
    """A reward that is not 0: the last layer drawn, too."""
    model = RewardNetwork(FEATURES, seed=seed)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.layers[-1].weight.copy_(torch.randn(1, 64, generator=random))
    return model


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def gradient(model, loss):
    return flat(torch.autograd.grad(loss, list(model.parameters())))


def test_the_network_is_an_mlp_with_relu_and_a_clamp(world):
    model = network()
    first, _, second, _, last = model.layers
    hidden_NF = relu(world.features_NF @ first.weight.T + first.bias)
    hidden_NF = relu(hidden_NF @ second.weight.T + second.bias)
    plain_N = (hidden_NF @ last.weight.T)[:, 0]
    torch.testing.assert_close(model(world.features_NF), plain_N.clamp(-10, 10))
    model.bound = plain_N.abs().median().item()
    rewards_N = model(world.features_NF)
    assert rewards_N.abs().max() == model.bound
    over_N = plain_N.abs() > model.bound
    assert (gradient(model, model(world.features_NF)[over_N].sum()) == 0).all()
    assert (gradient(model, model(world.features_NF)[~over_N].sum()) != 0).any()


def test_a_new_reward_is_zero_and_a_function_of_its_seed(world):
    before = torch.random.get_rng_state()
    one, same, other = (RewardNetwork(FEATURES, seed=seed) for seed in (0, 0, 1))
    assert (one(world.features_NF) == 0).all()
    weights = [flat(model.parameters()) for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_reward_loss_is_minus_beta_times_the_gradient_of_the_likelihood(world):
    """Finite differences of the log-likelihood under the soft-optimal policy of every parameter's reward."""
    model = RewardNetwork(FEATURES, hidden=(4, 3))
    with torch.no_grad():
        model.layers[-1].weight.copy_(torch.tensor([[1.0, -2.0, 1.5]]))
    policy_QK = world.log_optimal(model(world.features_NF)).exp().detach()
    given = -gradient(model, reward_loss(*world.sides(model(world.features_NF), policy_QK))) / BETA
    wanted, step = [], 1e-6
    with torch.no_grad():
        for parameter in model.parameters():
            for place in range(parameter.numel()):
                values = []
                for sign in (1, -1):
                    parameter.view(-1)[place] += sign * step
                    values.append(world.likelihood(world.log_optimal(model(world.features_NF))))
                    parameter.view(-1)[place] -= sign * step
                wanted.append((values[0] - values[1]) / (2 * step))
    assert given.abs().max() > 0.01
    torch.testing.assert_close(given, torch.stack(wanted), atol=1e-8, rtol=1e-6)


def test_sampled_rollouts_and_demonstrations_have_the_exact_gradient_in_the_mean(world):
    """With groups of unequal size; 4 standard errors."""
    model, random = network(), torch.Generator().manual_seed(0)
    rewards_N = model(world.features_NF)
    policy_QK = world.log_optimal(rewards_N).exp().detach()
    (exact_N,) = torch.autograd.grad(reward_loss(*world.sides(rewards_N, policy_QK)), rewards_N)
    drawn = []
    for _ in range(1500):
        sides = []
        for probabilities_QK, sizes in ((policy_QK, (1, 4, 2)), (world.expert_QK, (3, 1, 1))):
            ids = torch.arange(PROMPTS).repeat_interleave(torch.tensor(sizes))
            taken = torch.multinomial(probabilities_QK[ids], 1, generator=random)[:, 0]
            sides += [ids * COMPLETIONS + taken, ids]
        free_N = torch.zeros(len(rewards_N), requires_grad=True)
        (one_N,) = torch.autograd.grad(reward_loss(free_N[sides[0]], sides[1], free_N[sides[2]], sides[3]), free_N)
        drawn.append(one_N)
    drawn_SN = torch.stack(drawn)
    error_N = drawn_SN.std(0) / len(drawn) ** 0.5
    assert ((drawn_SN.mean(0) - exact_N).abs() <= 4 * error_N + 1e-12).all()


def test_rollouts_like_the_demonstrations_have_no_gradient(world):
    model = network()
    rows_N = torch.tensor([0, 1, 7, 13, 14, 15])
    order, others = torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([1, 2, 5])
    gradients = []
    for chosen in (order, others):
        rewards_N, ids_N = model(world.features_NF[rows_N]), world.ids_N[rows_N]
        gradients.append(gradient(model, reward_loss(rewards_N, ids_N, rewards_N[chosen], ids_N[chosen])))
    assert gradients[0].abs().max() < 1e-14
    assert gradients[1].abs().max() > 0.01


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 2**31))
def test_what_depends_on_the_prompt_alone_drops_out_of_the_reward_loss(sizes, seed):
    random = np.random.default_rng(seed)
    ids = [np.repeat(np.arange(len(sizes)), random.permutation(sizes)) for _ in range(2)]
    agent, expert = (torch.from_numpy(random.normal(size=len(each))) for each in ids)
    shifts = torch.from_numpy(random.normal(scale=100, size=len(sizes)))
    ids = [torch.from_numpy(each * 7 - 3) for each in ids]
    shifted = (values + shifts[(each + 3) // 7] for values, each in zip((agent, expert), ids, strict=True))
    moved = [*shifted]
    torch.testing.assert_close(
        reward_loss(agent, ids[0], expert, ids[1]),
        reward_loss(moved[0], ids[0], moved[1], ids[1]),
        atol=1e-10,
        rtol=1e-10,
    )
    by_hand = [agent[ids[0] == q].mean() - expert[ids[1] == q].mean() for q in ids[0].unique()]
    torch.testing.assert_close(reward_loss(agent, ids[0], expert, ids[1]), torch.stack(by_hand).mean())


def test_soft_rewards_are_equal_for_all_completions_of_a_prompt_where_the_policy_is_soft_optimal(world):
    """They are beta log Z there, which is also the largest value of their mean."""
    rewards_N = network()(world.features_NF).detach()
    log_policy_QK = world.log_optimal(rewards_N)
    log_ratios_N = (log_policy_QK - world.log_reference_QK).flatten()
    soft_QK = soft_rewards(rewards_N, log_ratios_N, BETA).view(PROMPTS, COMPLETIONS)
    log_z_Q = (world.log_reference_QK + rewards_N.view(PROMPTS, COMPLETIONS) / BETA).logsumexp(1)
    torch.testing.assert_close(soft_QK, BETA * log_z_Q[:, None].expand_as(soft_QK))
    for seed in range(5):
        noise_QK = torch.randn(soft_QK.shape, generator=torch.Generator().manual_seed(seed))
        other_QK = (log_policy_QK + 0.1 * noise_QK).log_softmax(1)
        ratios_N = (other_QK - world.log_reference_QK).flatten()
        worse_QK = soft_rewards(rewards_N, ratios_N, BETA).view(PROMPTS, COMPLETIONS)
        assert ((other_QK.exp() * worse_QK).sum(1) < BETA * log_z_Q).all()


def test_the_single_loop_makes_the_policy_the_experts(world):
    """One exact policy step, one reward step, in turns; a reward for each completion."""
    rewards_N = torch.zeros(PROMPTS * COMPLETIONS, requires_grad=True)
    likelihoods = []
    for _ in range(1500):
        policy_QK = world.log_optimal(rewards_N).exp().detach()
        likelihoods.append(world.likelihood(policy_QK.log()).item())
        (slope_N,) = torch.autograd.grad(reward_loss(*world.sides(rewards_N, policy_QK)), rewards_N)
        rewards_N = (rewards_N - 2.0 * slope_N).detach().requires_grad_()
    assert (np.diff(likelihoods) > -1e-15).all()
    assert likelihoods[0] < likelihoods[-1] - 0.1
    torch.testing.assert_close(policy_QK, world.expert_QK, atol=1e-5, rtol=0)


def test_the_single_loop_with_the_network_and_policy_gradients_raises_the_likelihood(world):
    """The policy is a table of logits, moved by the policy gradient of its soft rewards, faster than the reward is."""
    model, logits_QK = RewardNetwork(FEATURES), world.log_reference_QK.clone().requires_grad_()
    reward_steps = torch.optim.Adam(model.parameters(), lr=1e-3)
    policy_steps = torch.optim.SGD([logits_QK], lr=4.0)
    before = world.likelihood(world.log_reference_QK).item()
    for _ in range(400):
        log_policy_QK = logits_QK.log_softmax(1)
        ratios_N = (log_policy_QK - world.log_reference_QK).flatten().detach()
        soft_QK = soft_rewards(model(world.features_NF).detach(), ratios_N, BETA).view(PROMPTS, COMPLETIONS)
        policy_steps.zero_grad()
        (-(log_policy_QK.exp() * soft_QK).sum()).backward()
        policy_steps.step()
        policy_QK = logits_QK.softmax(1).detach()
        reward_steps.zero_grad()
        reward_loss(*world.sides(model(world.features_NF), policy_QK)).backward()
        reward_steps.step()
    best = world.likelihood(world.expert_QK.log()).item()
    assert best - world.likelihood(policy_QK.log()).item() < 0.02 * (best - before)


@pytest.mark.parametrize("penalty", [0.1, 2.0])
def test_with_squared_rewards_the_best_reward_is_bounded_and_has_no_free_shift(world, penalty):
    agent_QK = world.log_reference_QK.exp()
    wanted_QK = (world.expert_QK - agent_QK) / (penalty * (world.expert_QK + agent_QK))
    rewards_N = wanted_QK.flatten().requires_grad_()

    def weighted(rewards_N):
        """Squares weighted as the rewards are: the loss in exact expectation."""
        roots_N = [(COMPLETIONS * p.flatten()).sqrt() * rewards_N for p in (agent_QK, world.expert_QK)]
        squares = squared_rewards(roots_N[0], world.ids_N, roots_N[1], world.ids_N)
        return reward_loss(*world.sides(rewards_N, agent_QK)) + penalty / 2 * squares

    (slope_N,) = torch.autograd.grad(weighted(rewards_N), rewards_N)
    assert slope_N.abs().max() < 1e-14
    assert rewards_N.abs().max() < 1 / penalty
    for shift in (-0.1, 0.1):
        assert weighted(rewards_N + shift) > weighted(rewards_N)


def test_squared_rewards_are_means_of_prompts():
    agent_N, expert_M = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0.0, 5.0])
    ids_N, ids_M = torch.tensor([4, 4, 9]), torch.tensor([9, 4])
    assert squared_rewards(agent_N, ids_N, expert_M, ids_M) == ((1 + 9) / 2 + 25 + 4 + 0) / 2


@pytest.mark.parametrize("loss", [reward_loss, squared_rewards])
@pytest.mark.parametrize(("agent_ids", "expert_ids"), [([0, 1], [0, 0]), ([0, 0], [0, 1])])
def test_a_one_sided_prompt_is_refused(loss, agent_ids, expert_ids):
    with pytest.raises(InvalidInputError, match=r"prompts \[1\]: rollouts without a demonstration"):
        loss(torch.zeros(2), torch.tensor(agent_ids), torch.zeros(2), torch.tensor(expert_ids))


@pytest.mark.parametrize("side", ["rollouts", "demonstrations"])
def test_rewards_that_are_not_finite_are_refused(side):
    ids_N, good_N, bad_N = torch.tensor([0, 0]), torch.zeros(2), torch.tensor([0.0, torch.nan])
    given = (bad_N, ids_N, good_N, ids_N) if side == "rollouts" else (good_N, ids_N, bad_N, ids_N)
    with pytest.raises(InvalidInputError, match=f"the reward of {side} is not finite"):
        reward_loss(*given)


def test_features_that_are_not_finite_are_refused(world):
    world.features_NF[4, 2] = torch.inf
    with pytest.raises(InvalidInputError, match="the features of row 4 is not finite"):
        network()(world.features_NF)


@pytest.mark.parametrize(
    "shape", [{"width": 0}, {"hidden": (64, 0)}, {"bound": 0.0}, {"bound": float("inf")}, {"bound": float("nan")}]
)
def test_networks_that_cannot_be_are_refused(shape):
    with pytest.raises(ConfigError, match="cannot have this shape"):
        RewardNetwork(**{"width": 3, **shape})
