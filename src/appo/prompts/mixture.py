"""Several sources as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from appo.prompts.base import PROMPT_SOURCES, PromptSource, Question, Split, UnusableRow, only_usable


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class MixedQuestions(PromptSource):
    """Questions of several sources; each split has those of the sources that have it.

    Ids begin with the name of the source. Questions that name no part of the data to report by are reported under that
    name as well.
    """

    sources: dict[str, PromptSource]
    """The sources by names of your choice."""
    training_weights: dict[str, float] | None = None
    """Share of each source that has a training split among the training questions that are drawn, relative to one
    another; `null`: every question is drawn equally often."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources must hold at least one source, got none")
        if any("/" in name or not name for name in self.sources):
            raise ValueError(f"names of sources must not be empty or have a '/', got {', '.join(self.sources)}")
        if self.training_weights is None:
            return
        trained = [name for name, source in self.sources.items() if "train" in source.splits]
        if sorted(self.training_weights) != sorted(trained):
            raise ValueError(
                f"training_weights must name the sources that have a training split: {', '.join(trained) or 'none'}, "
                f"got {', '.join(self.training_weights) or 'none'}"
            )
        if not all(0.0 < weight < float("inf") for weight in self.training_weights.values()):
            raise ValueError(f"training_weights must be positive, got {self.training_weights}")

    @property
    def splits(self) -> tuple[Split, ...]:
        return tuple(
            split for split in super().splits if any(split in source.splits for source in self.sources.values())
        )

    @property
    def weights(self) -> Mapping[str, float]:
        if self.training_weights is None:
            return super().weights
        weights: dict[str, float] = {}
        for name, weight in self.training_weights.items():
            parts = self.sources[name].weights
            total = sum(parts.values())
            weights |= {f"{name}/{part}": weight * share / total for part, share in parts.items()}
        return weights

    def without_answers(self) -> MixedQuestions:
        return replace(self, sources={name: source.without_answers() for name, source in self.sources.items()})

    def load(self, split: Split) -> list[Question]:
        return only_usable(self.rows(split))

    def rows(self, split: Split) -> Iterator[Question | UnusableRow]:
        if split not in self.splits:
            raise ValueError(f"sources must have one with a {split} split, got {', '.join(self.sources)} without")
        for name, source in self.sources.items():
            if split in source.splits:
                for row in source.rows(split):
                    yield self._renamed(name, row) if isinstance(row, Question) else row

    def _renamed(self, name: str, question: Question) -> Question:
        part = "" if self.training_weights is None else f"{name}/{question.part}"
        return replace(question, id=f"{name}/{question.id}", source=question.source or name, part=part)
