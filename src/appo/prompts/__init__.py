"""Where questions come from."""

from appo.prompts.base import PROMPT_SOURCES, PromptSource, Question, Split
from appo.prompts.jsonl import JsonlQuestions
from appo.prompts.world import WorldQuestions

__all__ = ["PROMPT_SOURCES", "JsonlQuestions", "PromptSource", "Question", "Split", "WorldQuestions"]
