"""Agentic Procedural Policy Optimization in one file, on torch and transformers alone.

An agent answers token by token and may call a tool on the way; only the end is rewarded. Which of its tokens made the
difference? APPO returns to tokens at which the agent was undecided and after which the policy has come to favor what
followed, and lets the agent decide anew there. How these branches end tells what the roots they left are worth:

    question -> N roots -> log-probs and entropies of the current policy -> Branching Score -> B tokens of each root
             -> a branch from before each of them -> rewards -> advantages in two groups -> clipped loss -> update

This is Algorithm 1 of "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384), whose equations are
quoted by their numbers, with the constants of `configs/appo_paper.yaml`. Where the paper says nothing, both do this:

- in an iteration's first mini-batch the gain is the same everywhere, and the score is the entropy's alone;
- a group whose rewards are all equal has no scale to measure by, and counts 0 in Eq. (6);
- the last token of a root is never drawn anew; roots too short for B others have fewer branches, and M counts these;
- the importance ratio is clipped to [0.8, 1.2]. The gain is clipped to [1, 1.2], as the authors implement it.

`python examples/appo_in_one_file.py` takes half a minute on a CPU: an agent that mostly guesses learns to calculate.
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

NUM_ROOTS, NUM_BEST, MAX_TOKENS = 4, 3, 48  # roots of a question, N; tokens of a root that are drawn anew, B; length


class Token(NamedTuple):
    """One token of a trajectory."""

    id: int
    is_sampled: bool = False  # by the policy: not in the question, nor where the tool wrote
    log_prob: float = 0.0  # if so: under the policy as it was then, pi_old


Trajectory = list[Token]  # a question and all that followed


def update(policy: PreTrainedModel, optimizer: Optimizer, roots: list[Trajectory], is_changed: bool) -> None:
    """One mini-batch of Algorithm 1: branches, credits and trains the `NUM_ROOTS` roots of each of some questions.

    The roots were sampled by `pi_old`, when the iteration began. `is_changed`: other mini-batches have changed the
    policy `pi` since; without that, `rho = pi / pi_old` is 1 everywhere and the likelihood gain says nothing.
    """
    token_ids, mask, old_log_probs = collate(roots)
    log_probs, entropies = evaluate(policy, token_ids)
    log_ratio = (log_probs - old_log_probs).where(mask, 0.0)
    gain = likelihood_gain(log_ratio.detach())
    points = choose_branch_points(roots, branching_scores(gain, entropies.detach(), mask, is_changed))
    branches = rollout(policy, [roots[row][:t] for row, t in points])
    base = base_advantages(roots, branches, torch.tensor([row // NUM_ROOTS for row, _ in points]))
    loss = policy_loss(log_ratio, base, gain, mask, num_trajectories=len(roots) + len(branches))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()


def collate(trajectories: list[Trajectory]) -> list[Tensor]:
    """``[B, T]`` token ids, whether they were sampled, and their log-probs under `pi_old`, padded with zeros."""
    columns = ([torch.tensor([token[i] for token in trajectory]) for trajectory in trajectories] for i in range(3))
    return [nn.utils.rnn.pad_sequence(column, batch_first=True) for column in columns]


def evaluate(policy: PreTrainedModel, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """``[B, T]`` log-prob of each token, and entropy over the whole vocabulary of what it was drawn from.

    Logits at `t` predict token ``t + 1``, and this is where they move there. Causal attention does not see the padding.
    """
    log_softmax = policy(input_ids=token_ids).logits[:, :-1].log_softmax(-1)
    log_probs = log_softmax.gather(-1, token_ids[:, 1:, None]).squeeze(-1)
    entropies = -(log_softmax.exp() * log_softmax).sum(-1)
    return nn.functional.pad(log_probs, (1, 0)), nn.functional.pad(entropies, (1, 0))


def likelihood_gain(log_ratio: Tensor) -> Tensor:
    """``[B, T]`` how much likelier the policy has become to go on as the root did: `Omega`, of Eqs. (3) to (5) and (7).

    ``Omega_t = clip(exp(sum_{k >= t} g**(k - t) * log rho_k), 1, 1.2)``, where ``g = 2**(-1 / 32)``: from the end on, a
    sum is the log-ratio of its token plus `g` times the next sum. Tokens that nobody sampled have log-ratio 0.
    """
    sums = [torch.zeros_like(log_ratio[:, 0])]
    for column in reversed(log_ratio.unbind(-1)):
        sums.append(column + 2.0 ** (-1 / 32) * sums[-1])
    return torch.stack(sums[:0:-1], dim=-1).exp().clamp(1.0, 1.2)


def branching_scores(gain: Tensor, entropies: Tensor, mask: Tensor, is_changed: bool) -> Tensor:
    """``[B, T]`` Branching Score ``z(Omega)_t * z(H)_t`` among the sampled tokens of each root, Eqs. (3) to (5)."""
    scores = torch.full_like(entropies, float("-inf"))
    for row, is_sampled in enumerate(mask):
        z_gain, z_entropy = (z_scores(x[row, is_sampled], x[row, is_sampled]) for x in (gain, entropies))
        # While pi is still pi_old, gains differ by rounding alone, and entropy has to do.
        scores[row, is_sampled] = z_gain * z_entropy if is_changed else z_entropy
    return scores


def z_scores(x: Tensor, group: Tensor) -> Tensor:
    """How many standard deviations of `group` each value lies above its mean; 0 where the group is all equal."""
    if group.min() == group.max():
        return torch.zeros_like(x)
    return (x - group.mean()) / (group.std(correction=0) + 1e-6)


def choose_branch_points(roots: list[Trajectory], scores: Tensor) -> list[tuple[int, int]]:
    """Row and position of the `NUM_BEST` best tokens of each root."""
    points = []
    for row, root in enumerate(roots):
        best = scores[row, : len(root) - 1].argsort(descending=True, stable=True)[:NUM_BEST]
        points += [(row, int(t)) for t in best if root[t].is_sampled]
    return points


def base_advantages(roots: list[Trajectory], branches: list[Trajectory], question_of_branch: Tensor) -> Tensor:
    """``[B]`` advantages of the roots, Eq. (6): the mean of two z-scores of the reward.

    A root is compared with the roots of its question, and again with the branches, which start from chosen tokens and
    are no fair sample of its answers. Branches are not trained.
    """
    rewards, of_branches = (torch.tensor([reward(t) for t in trajectories]) for trajectories in (roots, branches))
    advantages = []
    for number, own in enumerate(rewards.split(NUM_ROOTS)):
        groups = [own, of_branches[question_of_branch == number]]
        advantages.append(torch.stack([z_scores(own, group) for group in groups if len(group)]).mean(0))
    return torch.cat(advantages)


def policy_loss(log_ratio: Tensor, base: Tensor, gain: Tensor, mask: Tensor, num_trajectories: int) -> Tensor:
    """The clipped loss, Eq. (8): the mean over each root's sampled tokens, summed over roots and divided by all M.

    By Eq. (7) a token counts more, for better or worse, if the policy has become likelier to go on as the root did.
    ``min(rho * A, clip(rho, 0.8, 1.2) * A)`` ends its gradient once `rho` has moved far enough the way `A` says.
    """
    advantages = base[:, None] * (1.0 + 0.5 * gain)
    ratio = log_ratio.exp()
    objective = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    return -(objective.where(mask, 0.0).sum(-1) / mask.sum(-1)).sum() / num_trajectories


@torch.no_grad()
def rollout(policy: PreTrainedModel, trajectories: list[Trajectory]) -> list[Trajectory]:
    """Lets the policy go on with all trajectories, roots or branches, to their end; the tool answers every call."""
    while running := [t for t in trajectories if t[-1].id != END and len(t) < MAX_TOKENS]:
        last = torch.tensor([len(t) - 1 for t in running])
        log_softmax = policy(input_ids=collate(running)[0]).logits[torch.arange(len(last)), last].log_softmax(-1)
        drawn = torch.multinomial(log_softmax.exp(), 1)
        for trajectory, token_id, log_prob in zip(running, drawn, log_softmax.gather(-1, drawn), strict=True):
            trajectory.append(Token(int(token_id), True, float(log_prob)))
            if call := re.search("<add>([^<]*)</add>$", decode(trajectory)):
                trajectory += encode(use_tool(call[1]))[: MAX_TOKENS - len(trajectory)]
    return trajectories


# The task: "7+5+9=" is to be answered with "21<end>". The tool adds two numbers, so that it takes two calls: to
# "<add>7+5</add>" it writes "<result>12</result>", and to "<add>12+9</add>" then "<result>21</result>".
VOCABULARY = ["<pad>", "<end>", "<add>", "</add>", "<result>", "</result>", "+", "=", *"0123456789"]
END = 1


def encode(text: str) -> Trajectory:
    """A text as tokens that nobody sampled: a tag is one, and so is any other character."""
    return [Token(VOCABULARY.index(token)) for token in re.findall("<[^>]*>|.", text)]


def decode(trajectory: Trajectory) -> str:
    """The text of a trajectory."""
    return "".join(VOCABULARY[token.id] for token in trajectory)


def use_tool(call: str) -> str:
    """What the tool writes behind a call; nothing between its tags if the call is not a sum of two numbers."""
    return f"<result>{sum(map(int, call.split('+'))) if re.fullmatch('[0-9]+[+][0-9]+', call) else ''}</result>"


def reward(trajectory: Trajectory) -> float:
    """1 if the sum stands behind the question or behind a result, and nothing else before the end; otherwise 0."""
    text = decode(trajectory)
    total = sum(map(int, text.partition("=")[0].split("+")))
    return float(text.endswith((f"={total}<end>", f">{total}<end>")))


def demonstration() -> str:
    """A question and an answer as the untrained agent gives it: before every call it may lose patience and guess."""
    terms = [random.randint(1, 9) for _ in range(3)]
    text, total = "+".join(map(str, terms)) + "=", terms[0]
    for term in terms[1:]:
        if random.random() < 0.5:
            return f"{text}{random.randint(3, 27)}<end>"
        text, total = f"{text}<add>{total}+{term}</add>" + use_tool(f"{total}+{term}"), total + term
    return f"{text}{total}<end>"


def make_policy(num_steps: int = 500) -> PreTrainedModel:
    """A tiny language model that has learned from demonstrations."""
    sizes = {"vocab_size": len(VOCABULARY), "hidden_size": 64, "intermediate_size": 128}
    policy = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.1))
    optimizer = AdamW(policy.parameters(), lr=4e-3)
    for _ in range(num_steps):
        token_ids, _, _ = collate([encode(demonstration()) for _ in range(32)])
        (-evaluate(policy, token_ids)[0][token_ids > 0].mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy


def main() -> None:
    """Trains a policy on 32 questions an iteration, 8 an update, and prints the mean reward of its roots."""
    random.seed(0)
    torch.manual_seed(0)
    policy = make_policy()
    optimizer = AdamW(policy.parameters(), lr=5e-4, weight_decay=0.0)
    for iteration in range(12):
        questions = [demonstration().partition("=")[0] + "=" for _ in range(32)]
        roots = rollout(policy, [encode(question) for question in questions for _ in range(NUM_ROOTS)])
        for first in range(0, len(roots), 8 * NUM_ROOTS):
            update(policy, optimizer, roots[first : first + 8 * NUM_ROOTS], is_changed=first > 0)
        print(f"iteration {iteration:2}   reward {sum(map(reward, roots)) / len(roots):.2f}   {decode(roots[0])}")


if __name__ == "__main__":
    main()
