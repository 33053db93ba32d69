"""Agentic Procedural Policy Optimization in one file, on torch and transformers alone.

An agent answers token by token and may call a tool on the way; only the end is rewarded. Which of its tokens made the
difference? APPO returns to tokens at which the agent was undecided and after which the policy has come to favor what
followed, lets the agent go on from there once more, and credits the tokens before by how that ends:

    question -> N roots -> log-probs and entropies of the current policy -> Branching Score -> branch points
             -> branches -> rewards -> advantages in two groups -> clipped loss, weighted by future likelihood -> update

Equations are numbered as in "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384). What is
computed, and every constant of it, is that of `configs/appo.yaml`. Like the authors' code it departs from the paper:

- a branch keeps the token that was chosen, which the paper draws anew, and all roots of a question share one budget;
- credit depends on the position: a root's z-score among the roots, plus that of the branches that share the token;
  Eq. (6) is one number a root, the mean of the z-scores of its own reward in both groups;
- the loss is a token mean with a dual clip, not the row means over M of Eq. (8); the future's constants differ.

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

NUM_ROOTS, NUM_BRANCHES, MAX_TOKENS = 6, 6, 48  # a question: N, and M - N, of the paper; tokens of a trajectory


class Token(NamedTuple):
    """One token of a trajectory."""

    id: int
    is_sampled: bool = False  # by the policy: not in the question, nor where the tool wrote
    log_prob: float = 0.0  # if so: under the policy as it was then, pi_old


Trajectory = list[Token]  # a question and all that followed


def update(policy: PreTrainedModel, optimizer: Optimizer, roots: list[Trajectory], is_changed: bool) -> None:
    """One mini-batch of Algorithm 1: branches, credits and trains `NUM_ROOTS` roots of each of some questions.

    The roots were sampled by `pi_old`, when the iteration began. `is_changed`: other mini-batches have changed the
    policy `pi` since; without that, `pi / pi_old` is 1 everywhere and the likelihood gain says nothing.
    """
    token_ids, mask, old_log_probs = collate(roots)
    log_probs, entropies = evaluate(policy, token_ids)
    log_ratio = (log_probs - old_log_probs).where(mask, 0.0)
    scores = branching_scores(log_ratio.detach(), entropies.detach(), mask, is_changed)
    points = choose_branch_points(roots, *scores)
    branches = rollout(policy, [roots[row][: t + 1] for row, t in points])
    loss = policy_loss(log_ratio, credit(roots, points, branches), mask)
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


def branching_scores(log_ratio: Tensor, entropies: Tensor, mask: Tensor, is_changed: bool) -> tuple[Tensor, Tensor]:
    """``[B, T]`` Branching Score, Eqs. (3) to (5), and True on tokens that are taken before any other.

    The likelihood gain ``Omega_t = clip(exp(sum_{k >= t} g**(k - t) * log rho_k), 0.8, 1.2)``, ``rho = pi / pi_old``,
    tells how much likelier the policy has become to go on as the root did. The score is ``z(entropy)_t * z(Omega)_t``.
    Since two small factors make a large product, tokens at which both are above their mean are taken first.
    """
    gain = discounted_future(log_ratio, 2.0 ** (-1 / 32)).exp().clamp(0.8, 1.2)
    z_entropy = z_scores(entropies, mask)
    # In an iteration's first mini-batch pi is pi_old: gains differ by rounding alone, and entropy has to do.
    z_gain = z_scores(gain, mask) if is_changed else torch.ones_like(gain)
    return z_entropy * z_gain, (z_entropy > 0) & (z_gain > 0)


def z_scores(x: Tensor, mask: Tensor) -> Tensor:
    """Z-scores of the values that `mask` selects in each row, 0 elsewhere."""
    count = mask.sum(-1, keepdim=True)
    centered = (x - x.where(mask, 0.0).sum(-1, keepdim=True) / count).where(mask, 0.0)
    std = (centered.square().sum(-1, keepdim=True) / count).sqrt()
    return centered / (std + 1e-6)


def discounted_future(x: Tensor, discount: float) -> Tensor:
    """``y_t = sum_{k >= t} discount**(k - t) * x_k``, as ``y_t = x_t + discount * y_{t + 1}`` from the end on."""
    sums = [torch.zeros_like(x[:, 0])]
    for column in reversed(x.unbind(-1)):
        sums.append(column + discount * sums[-1])
    return torch.stack(sums[:0:-1], dim=-1)


def choose_branch_points(roots: list[Trajectory], scores: Tensor, is_preferred: Tensor) -> list[tuple[int, int]]:
    """Row and position of the `NUM_BRANCHES` best tokens of each question."""
    points = [
        (row, t)
        for row, root in enumerate(roots)
        for t, token in enumerate(root[:-1])  # behind the last one nothing is decided
        if token.is_sampled and token.id not in TAGS
    ]
    points.sort(key=lambda point: (bool(is_preferred[point]), float(scores[point])), reverse=True)
    by_question = [[p for p in points if p[0] // NUM_ROOTS == number] for number in range(len(roots) // NUM_ROOTS)]
    return [point for candidates in by_question for point in candidates[:NUM_BRANCHES]]


def credit(roots: list[Trajectory], points: list[tuple[int, int]], branches: list[Trajectory]) -> Tensor:
    """``[B, T]`` advantages of the roots; takes the place of Eq. (6).

    ``A_t = z(reward of the root) + mean of z(reward of the branch) over those of its branches that share token t``

    Roots of a question are compared with one another, and so are branches, which start from chosen tokens and are no
    fair sample of its answers. Branches are not trained; they tell what the tokens were worth that they share.
    """
    rows, ends = torch.tensor(points).unbind(-1)
    z_roots = z_of_rewards(roots, torch.arange(len(roots)) // NUM_ROOTS)
    z_branches = z_of_rewards(branches, rows // NUM_ROOTS)
    is_shared = (torch.arange(max(map(len, roots))) <= ends[:, None]).to(z_branches.dtype)
    is_parent = (torch.arange(len(roots))[:, None] == rows).to(z_branches.dtype)
    total, count = is_parent @ (z_branches[:, None] * is_shared), is_parent @ is_shared
    return z_roots[:, None] + total / count.clamp(min=1)


def z_of_rewards(trajectories: list[Trajectory], question: Tensor) -> Tensor:
    """``[N]`` z-scores of rewards among trajectories of the same question; 0 where all are equal."""
    rewards = torch.tensor([reward(trajectory) for trajectory in trajectories])
    return z_scores(rewards.expand(len(rewards), -1), question[:, None] == question).diagonal()


def policy_loss(log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """The clipped loss of Eq. (8), on advantages that look ahead as in Eq. (7).

    ``A_t * (1 + clip(exp(sum_{k >= t} 2**(-(k - t) / 64) * log rho_k), 1, 1.2))``: a token counts more, for better or
    worse, if the policy has become likelier to go on from it as the root did.

    ``max(-A * rho, -A * clip(rho, 0.8, 1.28))`` ends a token's gradient once `rho` has moved far enough; what it leaves
    unbounded, ``A < 0`` with a large `rho`, a second clip ends at 3. Tokens beyond that have no part in the future of
    others, and a root with two of them is left out.
    """
    past = log_ratio.detach()
    future = discounted_future(past.where(past.exp() <= 3.0, 0.0), 2.0 ** (-1 / 64)).exp().clamp(1.0, 1.2)
    advantages = advantages * (1.0 + future)
    ratio = log_ratio.exp()
    losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.28))
    losses = torch.where(advantages < 0, torch.minimum(losses, -advantages * 3.0), losses)
    runs_away = mask & (advantages < 0) & (ratio > 3.0)
    is_kept = mask & (runs_away.sum(-1, keepdim=True) < 2)
    return losses.where(is_kept, 0.0).sum() / mask.sum()


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
TAGS, END = range(6), 1


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
    """Trains a policy on 16 questions an iteration, 8 an update, and prints the mean reward of its roots."""
    random.seed(0)
    torch.manual_seed(0)
    policy = make_policy()
    optimizer = AdamW(policy.parameters(), lr=5e-4, weight_decay=0.0)
    for iteration in range(12):
        questions = [demonstration().partition("=")[0] + "=" for _ in range(16)]
        roots = rollout(policy, [encode(question) for question in questions for _ in range(NUM_ROOTS)])
        for first in range(0, len(roots), 8 * NUM_ROOTS):
            update(policy, optimizer, roots[first : first + 8 * NUM_ROOTS], is_changed=first > 0)
        print(f"iteration {iteration:2}   reward {sum(map(reward, roots)) / len(roots):.2f}   {decode(roots[0])}")


if __name__ == "__main__":
    main()
