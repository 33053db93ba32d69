"""The LightningDataModule: prompts in, the online rollout buffer out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from transformers import PreTrainedTokenizerBase

from appo.core.batch import TrajectoryBatch
from appo.core.trajectory import Prompt, Trajectory
from appo.distributed import comm
from appo.distributed.balancing import response_tokens
from appo.monitoring.evaluation_metrics import Evaluated
from appo.policy.loading import load_tokenizer
from appo.prompts import (
    ChatEncoder,
    PromptLoader,
    PromptSource,
    PromptStore,
    PromptStream,
    Split,
    ToolInstructions,
    write_account,
)
from appo.rollouts import RolloutBuffer
from appo.training.data_options import check_positive, loader, num_minibatches, own_share, with_columns
from appo.training.module import APPOModule


class RolloutDataModule(L.LightningDataModule):
    """Prompts of a source, drawn anew every iteration, and the buffers of what came of them.

    Iteration *i* takes its prompts from an endless stream of seeded permutations of the training questions, a remainder
    left out. A checkpoint holds how far the stream is drawn: a resumed run goes on from there, also with another number
    of prompts an iteration.

    Args:
        source: where the questions come from.
        tokenizer: Hugging Face folder or name. `null`: that of the policy.
        prompts_per_iteration: prompts that one iteration samples and trains on.
        prompts_per_minibatch: prompts of one optimizer step; must divide `prompts_per_iteration`. `null`: all of the
            iteration.
        update_epochs: passes over the rollouts of an iteration.
        max_prompt_tokens: longest prompt, chat template included; a longer one is unusable.
        unusable_rows: `error` refuses data with a row that makes no prompt (no question, no answer, too long, ...),
            `skip` leaves such rows out. They are counted in the log and listed in ``skipped_rows_<split>.jsonl`` in the
            run's folder.
        system_prompt: text that opens every conversation, of training and evaluation alike, in place of what the
            source has. `null`: as it is.
        system_addition: text that is put behind every system prompt; a conversation without one gets it as its own.
        tool_schemas: descriptions of the tools for chat templates that take them (``tools=``), in the JSON form of
            function calls, in place of what `rollout.syntax` says of them. `null`: it says so itself.
        template_options: further variables of the chat template, such as ``{enable_thinking: false}``.
        contamination_sources: sources whose validation and test questions training questions are compared with. Those
            that are equal but for case, white space and punctuation are counted in the log and listed, without
            text, in ``contaminated_rows.jsonl`` in the run's folder.
        contaminated_rows: `report` keeps such training questions, `remove` leaves them out.
        num_validation: validation questions used, evenly spread over the split. `null`: all.
        num_test: likewise.
        prompts_per_evaluation_batch: prompts that are evaluated at once.
        seed: of the order of the prompts.
    """

    def __init__(
        self,
        source: PromptSource,
        tokenizer: str | None = None,
        prompts_per_iteration: int = 16,
        prompts_per_minibatch: int | None = None,
        update_epochs: int = 1,
        max_prompt_tokens: int = 2048,
        unusable_rows: Literal["error", "skip"] = "error",
        system_prompt: str | None = None,
        system_addition: str | None = None,
        tool_schemas: list[dict[str, Any]] | None = None,
        template_options: dict[str, Any] | None = None,
        contamination_sources: tuple[PromptSource, ...] = (),
        contaminated_rows: Literal["report", "remove"] = "report",
        num_validation: int | None = None,
        num_test: int | None = None,
        prompts_per_evaluation_batch: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        minibatch = prompts_per_minibatch or prompts_per_iteration
        check_positive(
            prompts_per_iteration=prompts_per_iteration,
            prompts_per_minibatch=minibatch,
            update_epochs=update_epochs,
            max_prompt_tokens=max_prompt_tokens,
            prompts_per_evaluation_batch=prompts_per_evaluation_batch,
            num_validation=num_validation,
            num_test=num_test,
        )
        self.source = source
        self.tokenizer_folder = tokenizer
        self.prompts_per_iteration = prompts_per_iteration
        self.num_minibatches = num_minibatches(prompts_per_iteration, minibatch)
        self.update_epochs = update_epochs
        self.max_prompt_tokens = max_prompt_tokens
        self.unusable_rows = unusable_rows
        self.system_prompt = system_prompt
        self.system_addition = system_addition
        self.tool_schemas = tool_schemas
        self.template_options = template_options
        self.contamination_sources = contamination_sources
        self.contaminated_rows = contaminated_rows
        self.limits = {"validation": num_validation, "test": num_test}
        self.prompts_per_evaluation_batch = prompts_per_evaluation_batch
        self.seed = seed
        self.buffer: RolloutBuffer[TrajectoryBatch] = RolloutBuffer(self.num_minibatches * update_epochs)
        self.evaluation_buffers: dict[Split, RolloutBuffer[Evaluated]] = {}
        self._prompts: dict[Split, PromptStore] = {}
        self._stream: PromptStream | None = None
        self._response_tokens: dict[str, float] = {}
        """Of prompts that several processes have sampled, by id."""
        self._shares: dict[int, list[int]] = {}
        """Numbers of this process's prompts, by iteration: the next one's are sampled ahead."""
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._tool_instructions: ToolInstructions | None = None
        self._asks_only = False
        """Whether rows need no answers."""
        self.is_evaluated = False
        """Whether somebody, such as `EvaluationCallback`, fills `evaluation_buffers`; without, nothing is validated."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's tokenizer, loaded on first use."""
        if self._tokenizer is None:
            module = None if self.trainer is None else self.trainer.lightning_module
            if self.tokenizer_folder is not None:
                self._tokenizer = load_tokenizer(self.tokenizer_folder)
            elif isinstance(module, APPOModule):
                self._tokenizer = module.tokenizer or load_tokenizer(module.policy_folder)
            else:
                raise ValueError("data.tokenizer must be given where no APPOModule is trained, got None")
        return self._tokenizer

    @property
    def num_prompts(self) -> dict[Split, int]:
        """How many there are of the splits that are loaded."""
        return {split: len(prompts) for split, prompts in self._prompts.items()}

    def first_prompts(self, number: int) -> list[Prompt]:
        """Prompts that are loaded, so many of each split at most."""
        return [prompts[i] for prompts in self._prompts.values() for i in range(min(number, len(prompts)))]

    def setup(self, stage: str) -> None:
        stages: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "validation"),
            "validate": ("validation",),
            "test": ("test",),
            "predict": ("test",),
        }
        if (asks_only := stage == "predict") != self._asks_only:
            self._asks_only = asks_only
            self._prompts.pop("test", None)
        for split in stages[stage]:
            if stage != "fit" or split == "train" or split in self.source.splits:
                self._load(split)
        if stage == "fit" and self._stream is None:
            self._open_stream()

    def describe_tools(
        self, schemas: Sequence[Mapping[str, Any]], instructions: ToolInstructions | None = None
    ) -> bool:
        """Puts descriptions of tools that are known only now into prompts, in place of `tool_schemas`.

        Prompts that are loaded are made anew; call it before training and evaluation begin.

        Args:
            schemas: descriptions as chat templates take them in ``tools=``; none takes them out.
            instructions: what prompts say of tools in words, those of questions that take any.

        Returns:
            Whether prompts may have changed.

        Raises:
            ValueError: if the chat template leaves them out, or a prompt becomes too long.
        """
        if not any(prompts.takes_instructions for prompts in self._prompts.values()):
            instructions = None
        described = [dict(schema) for schema in schemas]
        if described == (self.tool_schemas or []) and instructions == self._tool_instructions:
            return False
        self.tool_schemas, self._tool_instructions = described, instructions
        loaded = list(self._prompts)
        self._prompts.clear()
        for split in loaded:
            self._load(split)
        if self._stream is not None:
            self._open_stream()
        return True

    def iteration_prompts(self, iteration: int) -> list[Prompt]:
        """The training prompts of one iteration; none occurs twice in it.

        With several processes these are the prompts of this one: its share of each mini-batch. If all have the
        same number of prompts, they are expected to have about the same number of tokens.

        Args:
            iteration: counted from 0.

        Raises:
            ValueError: if the resumed run had drawn this iteration with another `prompts_per_iteration`.
        """
        assert self._stream is not None, "setup('fit') comes first"
        numbers = self._stream.draw(iteration)
        if iteration not in self._shares:
            size = len(numbers) // self.num_minibatches
            minibatches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
            prompts, known = self._prompts["train"], self._response_tokens
            drawn = [number for minibatch in minibatches for number in own_share(minibatch, prompts, known)]
            self._shares = {iteration: drawn, **{i: share for i, share in self._shares.items() if i == iteration - 1}}
        return [self._prompts["train"][number] for number in self._shares[iteration]]

    def record_responses(self, trajectories: Sequence[Trajectory]) -> None:
        """Records how long responses were: when their prompts come again, they are spread by that.

        Args:
            trajectories: of this process; all processes call this.
        """
        if comm.num_ranks() > 1:
            for part in comm.all_gather(response_tokens(trajectories)):
                self._response_tokens |= part

    def with_columns(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        """Trajectories of a checkpoint, which holds no columns of rows, with those of their training questions."""
        return with_columns(trajectories, self._prompts["train"])

    def state_dict(self) -> dict[str, Any]:
        if self._stream is None:
            return {}
        return {**self._stream.state_dict(), "response_tokens": self._response_tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # An evaluation of the checkpoint draws no training prompts.
        if self._stream is not None:
            self._stream.load_state_dict(state_dict)
            self._response_tokens = dict(state_dict["response_tokens"])
            self._shares.clear()

    def replacement_prompts(self, iteration: int) -> Iterator[Prompt]:
        """Other training prompts for those of an iteration, by the same weights; the same in all processes.

        Args:
            iteration: counted from 0.
        """
        assert self._stream is not None, "setup('fit') comes first"
        return (self._prompts["train"][number] for number in self._stream.replacements(iteration))

    def evaluation_batches(self, split: Split) -> list[Sequence[Prompt]]:
        """The prompts of a split in the batches in which they are evaluated, by all processes together."""
        prompts, size = self._prompts[split], self.prompts_per_evaluation_batch
        num_used = min(len(prompts), self.limits.get(split) or len(prompts))
        used = [prompts[i * len(prompts) // num_used] for i in range(num_used)]
        return [used[i : i + size] for i in range(0, num_used, size)]

    def train_dataloader(self) -> Any:
        return loader(self.buffer)

    def val_dataloader(self) -> Any:
        has_batches = self.is_evaluated and "validation" in self.evaluation_buffers
        return loader(self.evaluation_buffers["validation"]) if has_batches else []

    def test_dataloader(self) -> Any:
        return loader(self.evaluation_buffers["test"])

    def predict_dataloader(self) -> Any:
        return loader(self.evaluation_buffers["test"])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device) if isinstance(batch, TrajectoryBatch) else batch

    def _open_stream(self) -> None:
        prompts, weights = self._prompts["train"], self.source.weights
        self._shares.clear()
        self._stream = PromptStream(prompts.ids, prompts.parts, weights, self.prompts_per_iteration, self.seed)

    def _load(self, split: Split) -> None:
        if split in self._prompts:
            return
        options, told = self.template_options, self._tool_instructions
        encode = ChatEncoder(self.tokenizer, self.system_addition, self.tool_schemas, options, self.system_prompt, told)
        load = PromptLoader(
            encode, self.max_prompt_tokens, self.unusable_rows, self.contamination_sources, self.contaminated_rows
        )
        loaded = load(self.source.without_answers() if self._asks_only else self.source, split)
        self._prompts[split] = loaded.prompts
        if self.trainer is None or self.trainer.is_global_zero:
            folder = None if self.trainer is None else Path(self.trainer.default_root_dir)
            write_account(loaded, split, self.contaminated_rows == "remove", folder)
        if split != "train":
            self.evaluation_buffers[split] = RolloutBuffer(len(self.evaluation_batches(split)))
