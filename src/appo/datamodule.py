"""The LightningDataModule: prompts in, the online rollout buffer out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from appo.batch import TrainBatch
from appo.policy import encode, load_tokenizer
from appo.prompts import PromptSource, Question
from appo.prompts.base import Split
from appo.rollouts import Evaluated, RolloutBuffer
from appo.seeding import derive_seed
from appo.trajectory import Prompt


class RolloutDataModule(L.LightningDataModule):
    """Prompts of a source, drawn anew every iteration, and the buffers of what came of them.

    Iteration *i* takes its prompts from an endless stream of seeded permutations of the training questions, a remainder
    left out, so a resumed run goes on where it stopped without any state.

    Args:
        source: where the questions come from.
        tokenizer: Hugging Face folder or name; the command line sets it to `model.policy`.
        prompts_per_iteration: prompts that one iteration samples and trains on.
        prompts_per_minibatch: prompts of one optimizer step; none takes all of the iteration. Must divide
            `prompts_per_iteration`.
        update_epochs: passes over the rollouts of an iteration.
        max_prompt_tokens: longest prompt, chat template included.
        num_validation: validation questions used, evenly spread over the split; none uses all.
        num_test: likewise.
        prompts_per_evaluation_batch: prompts that are evaluated at once.
        seed: of the order of the prompts.
    """

    def __init__(
        self,
        source: PromptSource,
        tokenizer: str,
        prompts_per_iteration: int = 16,
        prompts_per_minibatch: int | None = None,
        update_epochs: int = 1,
        max_prompt_tokens: int = 2048,
        num_validation: int | None = None,
        num_test: int | None = None,
        prompts_per_evaluation_batch: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        minibatch = prompts_per_minibatch or prompts_per_iteration
        _check_positive("prompts_per_iteration", prompts_per_iteration)
        _check_positive("prompts_per_minibatch", minibatch)
        _check_positive("update_epochs", update_epochs)
        _check_positive("max_prompt_tokens", max_prompt_tokens)
        _check_positive("prompts_per_evaluation_batch", prompts_per_evaluation_batch)
        if prompts_per_iteration % minibatch:
            raise ValueError(
                f"data.prompts_per_minibatch must divide data.prompts_per_iteration = {prompts_per_iteration}, "
                f"got {minibatch}"
            )
        self.source = source
        self.tokenizer_folder = tokenizer
        self.prompts_per_iteration = prompts_per_iteration
        self.num_minibatches = prompts_per_iteration // minibatch
        self.update_epochs = update_epochs
        self.max_prompt_tokens = max_prompt_tokens
        self.limits = {"validation": num_validation, "test": num_test}
        self.prompts_per_evaluation_batch = prompts_per_evaluation_batch
        self.seed = seed
        self.buffer: RolloutBuffer[TrainBatch] = RolloutBuffer(self.num_minibatches * update_epochs)
        self.evaluation_buffers: dict[Split, RolloutBuffer[Evaluated]] = {}
        self._prompts: dict[Split, list[Prompt]] = {}
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's tokenizer, loaded on first use."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.tokenizer_folder)
        return self._tokenizer

    def setup(self, stage: str) -> None:
        stages: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "validation"),
            "validate": ("validation",),
            "test": ("test",),
            "predict": ("test",),
        }
        for split in stages[stage]:
            if stage != "fit" or split == "train" or split in self.source.splits:
                self._load(split)
        if stage == "fit" and len(self._prompts["train"]) < self.prompts_per_iteration:
            raise ValueError(
                "data.prompts_per_iteration must not exceed the number of training questions "
                f"{len(self._prompts['train'])}, got {self.prompts_per_iteration}"
            )

    def iteration_prompts(self, iteration: int) -> list[Prompt]:
        """The training prompts of one iteration; none occurs twice in it.

        Args:
            iteration: counted from 0.
        """
        prompts = self._prompts["train"]
        per_pass = len(prompts) // self.prompts_per_iteration
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "prompts", iteration // per_pass))
        order = torch.randperm(len(prompts), generator=generator)
        start = (iteration % per_pass) * self.prompts_per_iteration
        return [prompts[i] for i in order[start : start + self.prompts_per_iteration].tolist()]

    def spare_prompts(self, iteration: int) -> Iterator[Prompt]:
        """The other training prompts, in an order of their own in each iteration.

        Args:
            iteration: counted from 0.
        """
        prompts = self._prompts["train"]
        taken = {prompt.id for prompt in self.iteration_prompts(iteration)}
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "spare", iteration))
        for i in torch.randperm(len(prompts), generator=generator).tolist():
            if prompts[i].id not in taken:
                yield prompts[i]

    def evaluation_batches(self, split: Split) -> list[Sequence[Prompt]]:
        """The prompts of a split in the batches in which they are evaluated."""
        prompts, size = self._prompts[split], self.prompts_per_evaluation_batch
        return [prompts[i : i + size] for i in range(0, len(prompts), size)]

    def train_dataloader(self) -> Any:
        return _loader(self.buffer)

    def val_dataloader(self) -> Any:
        return _loader(self.evaluation_buffers["validation"]) if "validation" in self.evaluation_buffers else []

    def test_dataloader(self) -> Any:
        return _loader(self.evaluation_buffers["test"])

    def predict_dataloader(self) -> Any:
        return _loader(self.evaluation_buffers["test"])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device) if isinstance(batch, TrainBatch) else batch

    def _load(self, split: Split) -> None:
        if split in self._prompts:
            return
        questions = self.source.load(split)
        limit = self.limits.get(split)
        if limit is not None and limit < len(questions):
            questions = [questions[i * len(questions) // limit] for i in range(limit)]
        self._prompts[split] = [self._tokenize(question) for question in questions]
        if split != "train" and questions:
            self.evaluation_buffers[split] = RolloutBuffer(len(self.evaluation_batches(split)))

    def _tokenize(self, question: Question) -> Prompt:
        text = self.tokenizer.apply_chat_template(list(question.messages), add_generation_prompt=True, tokenize=False)
        assert isinstance(text, str)
        token_ids = encode(self.tokenizer, text)
        if len(token_ids) > self.max_prompt_tokens:
            raise ValueError(
                f"prompts must have at most data.max_prompt_tokens = {self.max_prompt_tokens} tokens, "
                f"question {question.id!r} has {len(token_ids)}"
            )
        return Prompt(question.id, question.text, tuple(token_ids), question.answers, question.source)


def _loader(buffer: RolloutBuffer[Any]) -> DataLoader[Any]:
    return DataLoader(buffer, batch_size=None)


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"data.{name} must be positive, got {value}")
