"""Questions from Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from appo.core.extras import import_extra
from appo.prompts.base import PROMPT_SOURCES, Question, Split, only_usable
from appo.prompts.files import BATCH_ROWS
from appo.prompts.rows import Record, TableQuestions


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class DatasetQuestions(TableQuestions):
    """One question a row of a Hugging Face dataset, on the hub or on disk. Needs the extra `data`."""

    place: ClassVar[str] = "split of the dataset"

    path: str = field(kw_only=True)
    """Dataset on the hub, folder, folder of `save_to_disk`, or a format (`json`, `csv`, `parquet`, ...) with
    `data_files`."""
    config: str | None = None
    """Configuration of the dataset; `null`: its default."""
    data_files: str | list[str] | dict[str, str | list[str]] | None = None
    """Files to read, by split where there are several splits; wild cards allowed."""
    revision: str | None = None
    """Version of a dataset on the hub: a tag, a branch or a commit; `null`: the newest, which may change."""
    train: str | None = "train"
    """Split of the dataset to learn from; a part of one is written ``train[:90%]``."""
    validation: str | None = None
    """Split of the dataset that training is watched with."""
    test: str | None = None
    """Split of the dataset for the final measurement."""
    streaming: bool = False
    """Whether rows are read as they arrive, without a copy of the dataset on disk; prompts stay in memory."""
    max_rows: int | None = None
    """Rows read from the beginning of each split; `null`: all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ValueError("path must name a dataset, got ''")
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows must be positive, got {self.max_rows}")

    def origin(self, split: Split) -> str:
        return f"{self.path}/{self.location(split)}"

    def load(self, split: Split) -> list[Question]:
        # Whether splits share a question is for training to find out: evaluation need not read a large training split.
        return only_usable(self.rows(split))

    def records(self, split: Split) -> Iterator[Record]:
        dataset = self._open(split)
        columns = dataset.column_names or []  # a stream may not know them ahead
        used = [self.question_key, self.answer_key, *filter(None, [self.id_key, self.source_key]), *self.columns]
        wanted = [column for column in columns if any(key == column or key.startswith(f"{column}.") for key in used)]
        if wanted:
            # Others, images say, are not decoded.
            dataset = dataset.select_columns(wanted)
        rows = (row for batch in dataset.iter(BATCH_ROWS) for row in _rows(batch))
        for number, values in enumerate(islice(rows, self.max_rows)):
            yield Record(number, values)

    def _open(self, split: Split) -> Any:
        name = self.location(split)
        datasets = import_extra("datasets", type(self).__name__, "data")
        folder = Path(self.path).expanduser()
        saved = [folder / file for file in ("dataset_dict.json", "state.json")]
        if not any(file.is_file() for file in saved):
            return datasets.load_dataset(
                self.path,
                self.config,
                data_files=self.data_files,
                revision=self.revision,
                split=name,
                streaming=self.streaming,
            )
        if self.streaming or self.config or self.data_files:
            raise ValueError(
                f"streaming, config and data_files must be left out for a folder of save_to_disk, got {self.path!r}"
            )
        dataset = datasets.load_from_disk(str(folder))
        if not saved[0].is_file():
            if len(self.splits) > 1:
                raise ValueError(
                    f"one of train, validation and test alone must be named, as {self.path} has no splits, got "
                    f"{', '.join(self.splits)}"
                )
            return dataset
        if name not in dataset:
            raise ValueError(f"{split} must name a split of {self.path}: {', '.join(dataset)}, got {name!r}")
        return dataset[name]


def _rows(batch: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))
