"""How much nearer a turn brings the policy to the answer."""

from __future__ import annotations

import torch
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.functional import turn_numbers, turn_starts


def turn_gains(batch: TrajectoryBatch, context: BatchContext, opening: str) -> Tensor:
    """How much nearer turns bring the policy to the answer: ``[B, T]``, ``p_k - p_(k-1)`` on the tokens of turn `k`.

    ``p_k = exp(mean log-prob of the answer's tokens)`` behind turn `k` and its tool results, ``p_0`` behind the prompt.
    It is 0 on the last turn, which answers, and on what was not sampled. The answer is the first of those accepted.

    See "Information Gain-based Policy Optimization" (https://arxiv.org/abs/2510.14967).

    Args:
        batch: of trajectories.
        context: of the batch; all processes ask its policy at the same time.
        opening: text between the turns and the answer, as the policy opens its answers.

    Raises:
        ValueError: if a prompt has no answers.
    """
    starts = turn_starts(batch.response_mask)
    sequences, masks = [], []
    opened = context.encode(opening)
    for row, trajectory in enumerate(context.records()):
        answer = context.encode((*trajectory.prompt.answers, "")[0])
        if not len(answer):
            raise ValueError(
                "information gain must have prompts with answers that are not empty, got "
                f"{list(trajectory.prompt.answers)} for prompt {trajectory.prompt.id}"
            )
        positions = starts[row].nonzero()[:, 0].tolist()
        # Before each turn: behind the prompt, and behind all turns but the last; of a single turn nothing is asked.
        for position in positions if len(positions) > 1 else []:
            sequences.append(torch.cat([trajectory.token_ids[:position], opened, answer]))
            masks.append(torch.arange(len(sequences[-1])) >= position + len(opened))
    values = [float(log_probs.double().mean().exp()) for log_probs in context.log_probs(sequences, masks)]
    gains = torch.zeros_like(batch.entropies)
    turns = turn_numbers(batch.response_mask)
    first = 0
    for row, number in enumerate(starts.sum(-1).tolist()):
        if number > 1:
            before = gains.new_tensor(values[first : first + number])
            of_turn = torch.cat([before.diff(), gains.new_zeros(1)])
            gains[row] = of_turn[turns[row].clamp(min=0)].where(batch.response_mask[row], 0.0)
            first += number
    return gains
