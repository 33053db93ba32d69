"""Where questions come from."""

from appo.prompts.base import PROMPT_SOURCES, PromptSource, Question, Split, UnusableRow
from appo.prompts.benchmarks import BENCHMARKS, Benchmark, BenchmarkQuestions
from appo.prompts.chat import ChatEncoder, ToolInstructions
from appo.prompts.contamination import BenchmarkIndex, ContaminatedRow, normalize_question
from appo.prompts.files import CsvQuestions, JsonlQuestions, JsonQuestions, ParquetQuestions, ReleaseQuestions
from appo.prompts.huggingface import DatasetQuestions
from appo.prompts.loading import LoadedPrompts, PromptLoader, PromptStore, RowAccount, write_account
from appo.prompts.mixture import MixedQuestions
from appo.prompts.order import PromptStream
from appo.prompts.rows import Record, TableQuestions
from appo.prompts.world import CodeQuestions, ForkQuestions, GateQuestions, HouseQuestions, WorldQuestions

__all__ = [
    "BENCHMARKS",
    "PROMPT_SOURCES",
    "Benchmark",
    "BenchmarkIndex",
    "BenchmarkQuestions",
    "ChatEncoder",
    "CodeQuestions",
    "ContaminatedRow",
    "CsvQuestions",
    "DatasetQuestions",
    "ForkQuestions",
    "GateQuestions",
    "HouseQuestions",
    "JsonQuestions",
    "JsonlQuestions",
    "LoadedPrompts",
    "MixedQuestions",
    "ParquetQuestions",
    "PromptLoader",
    "PromptSource",
    "PromptStore",
    "PromptStream",
    "Question",
    "Record",
    "ReleaseQuestions",
    "RowAccount",
    "Split",
    "TableQuestions",
    "ToolInstructions",
    "UnusableRow",
    "WorldQuestions",
    "normalize_question",
    "write_account",
]
