"""The LightningDataModule of supervised fine-tuning: conversations in, padded batches out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from appo.policy.loading import load_tokenizer
from appo.prompts.base import PromptSource
from appo.prompts.loading import write_account
from appo.sft.conversations import ConversationSource, ConversationSplit
from appo.sft.encoding import ConversationEncoder, Example
from appo.sft.loading import ConversationLoader
from appo.sft.sampler import Pack, PackSampler


@dataclass(frozen=True, eq=False)
class SupervisedBatch:
    """Rows of conversations.

    Attributes:
        token_ids: ``[B, T]`` int64, 0 on padding.
        loss_mask: ``[B, T]`` bool, True on tokens that are learned; False on position 0, which nothing predicts.
        num_tokens: that the sum of the tokens' losses is divided by. Over the batches of an optimizer step the mean is
            that of all of its tokens, in whichever way they are batched.
    """

    token_ids: Tensor
    loss_mask: Tensor
    num_tokens: float

    def to(self, device: torch.device, non_blocking: bool = False) -> SupervisedBatch:
        """The same rows on another device."""
        return replace(
            self,
            token_ids=self.token_ids.to(device, non_blocking=non_blocking),
            loss_mask=self.loss_mask.to(device, non_blocking=non_blocking),
        )


class _Batches(Dataset[SupervisedBatch]):
    """What goes through the model, by pack, or by the number of a row."""

    def __init__(self, data: SupervisedDataModule, batches_of_step: int) -> None:
        self.examples = data.examples["train"]
        self.data = data
        self.batches_of_step = batches_of_step

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, pack: Pack | int) -> SupervisedBatch:
        if isinstance(pack, int):  # a sampler of the trainer's, as with `overfit_batches`
            pack = Pack((pack,), (pack,))
        batch = self.data.collate([self.examples[row] for row in pack.rows])
        num_learned = sum(self.data.num_learned(self.examples[row]) for row in pack.step)
        return replace(batch, num_tokens=num_learned / self.batches_of_step if pack.step else math.inf)


class SupervisedDataModule(L.LightningDataModule):
    """Batches of conversations in a seeded random order, packed within an optimizer step.

    Several processes share the rows of a step: their batches of one moment have similar sizes.

    Args:
        source: where the conversations come from.
        tokenizer: Hugging Face folder or name; the command line sets it to `model.policy`.
        loss_on: `assistant` learns what the assistant wrote; `all` learns every token, prompts and tool output
            included, which a policy that starts from nothing needs.
        batch_size: rows that go through the model at once on each device, on average: `trainer.accumulate_grad_batches`
            such batches, which have about the same number of tokens, make an optimizer step.
        max_tokens: longest row.
        seed: of the order of rows.
        template_options: further variables of the chat template, such as ``enable_thinking``; those of `appo fit`.
        tool_schemas: descriptions of the tools for chat templates that take them (``tools=``), in the JSON form of
            function calls, of conversations that have none of their own.
        unusable_rows: `error` refuses data with a row that is no conversation, that the chat template refuses, or that
            is longer than `max_tokens`; `skip` leaves such rows out. The log counts them, with the reasons, and the
            run's folder lists them in ``skipped_rows_<split>.jsonl``.
        contamination_sources: sources whose validation and test questions are compared with what users say in training
            conversations. Those that equal one after normalization are counted in the log and listed, without their
            text, in ``contaminated_rows.jsonl`` in the run's folder.
        contaminated_rows: `report` keeps such conversations, `remove` leaves them out.
    """

    def __init__(
        self,
        source: ConversationSource,
        tokenizer: str,
        loss_on: Literal["assistant", "all"] = "assistant",
        batch_size: int = 16,
        max_tokens: int = 4096,
        seed: int = 0,
        template_options: Mapping[str, Any] | None = None,
        tool_schemas: list[dict[str, Any]] | None = None,
        unusable_rows: Literal["error", "skip"] = "error",
        contamination_sources: tuple[PromptSource, ...] = (),
        contaminated_rows: Literal["report", "remove"] = "report",
    ) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "max_tokens": max_tokens}.items():
            if value < 1:
                raise ValueError(f"data.{name} must be positive, got {value}")
        self.source = source
        self.tokenizer = tokenizer
        self.loss_on = loss_on
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.seed = seed
        self.template_options = template_options
        self.tool_schemas = tool_schemas
        self.unusable_rows = unusable_rows
        self.contamination_sources = contamination_sources
        self.contaminated_rows = contaminated_rows
        self.examples: dict[ConversationSplit, list[Example]] = {}

    def setup(self, stage: str) -> None:
        encoder = ConversationEncoder(load_tokenizer(self.tokenizer), self.template_options, self.tool_schemas or ())
        load = ConversationLoader(
            encoder, self.max_tokens, self.unusable_rows, self.contamination_sources, self.contaminated_rows
        )
        for split in ("train", "validation"):
            if split not in self.examples:
                loaded = load(self.source, split)
                self.examples[split] = loaded.examples
                if self.trainer is None or self.trainer.is_global_zero:
                    folder = None if self.trainer is None else Path(self.trainer.default_root_dir)
                    write_account(loaded, split, self.contaminated_rows == "remove", folder)

    def train_dataloader(self) -> DataLoader[SupervisedBatch]:
        examples = self.examples["train"]
        shared, batches_per_step = {"num_replicas": 1, "rank": 0}, 1
        if self.trainer is not None:
            shared = self.trainer.distributed_sampler_kwargs or shared
            batches_per_step = self.trainer.accumulate_grad_batches
        rows = [example.token_ids for example in examples]
        sampler = PackSampler(rows, self.batch_size, batches_per_step, **shared, seed=self.seed)
        batches = _Batches(self, batches_per_step * shared["num_replicas"])
        return DataLoader(batches, batch_size=None, sampler=sampler)

    def val_dataloader(self) -> DataLoader[Example] | list[DataLoader[Example]]:
        examples = sorted(self.examples["validation"], key=len)
        if not examples:
            return []
        return DataLoader(examples, self.batch_size, collate_fn=self.collate)  # type: ignore[arg-type]

    def num_learned(self, example: Example) -> int:
        """Counts the tokens that are learned of a row."""
        return len(example) - 1 if self.loss_on == "all" else sum(example.is_written[1:])

    def collate(self, examples: Sequence[Example]) -> SupervisedBatch:
        """Rows as a batch of their own."""
        token_ids = [torch.tensor(example.token_ids) for example in examples]
        masks = [torch.tensor(example.is_written) | (self.loss_on == "all") for example in examples]
        loss_mask = pad_sequence(masks, batch_first=True)
        loss_mask[:, 0] = False
        return SupervisedBatch(pad_sequence(token_ids, batch_first=True), loss_mask, float(loss_mask.sum()))
