import copy
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from appo.core.trajectory import Prompt
from appo.policy.text import decode, encode
from appo.prompts import ChatEncoder, PromptStore, Question, ToolInstructions
from appo.tools import TagSyntax

SYSTEM = {"role": "system", "content": "Think."}
USER = {"role": "user", "content": "Who is it?"}
SCHEMA = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Finds.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
    },
}
TOOL_TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if not thinking|default(true) %}<think></think>{% endif %}{% endif %}"
)


def question(*messages):
    return Question("1", messages or (USER,), ("me",))


@pytest.fixture
def tool_tokenizer(tokenizer):
    """A tokenizer whose chat template takes tools."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TOOL_TEMPLATE
    return tokenizer


def test_prompts_end_where_the_response_begins(tokenizer):
    (text,) = ChatEncoder(tokenizer).render([question(SYSTEM, USER)])
    assert text == "<|system|>Think.<|end|><|user|>Who is it?<|end|><|assistant|>"


def test_a_batch_is_encoded_like_each_of_its_prompts(tokenizer):
    encoder = ChatEncoder(tokenizer)
    questions = [question({"role": "user", "content": f"Who is {'very ' * i}old, é?"}) for i in range(5)]
    for one, token_ids in zip(questions, encoder(questions), strict=True):
        assert token_ids == encode(tokenizer, encoder.render([one])[0])
        assert decode(tokenizer, token_ids) == encoder.render([one])[0]
    assert encoder([]) == []


def test_special_tokens_are_left_to_the_template(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    # As many tokenizers do to every text: a first token that a chat template writes itself.
    first = ("<|pad|>", tokenizer.convert_tokens_to_ids("<|pad|>"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|pad|> $A", special_tokens=[first])
    assert tokenizer("a")["input_ids"][0] == first[1]
    (token_ids,) = ChatEncoder(tokenizer)([question()])
    assert decode(tokenizer, token_ids) == "<|user|>Who is it?<|end|><|assistant|>"


def test_addition_stands_behind_the_system_prompt_or_for_it(tokenizer):
    encoder = ChatEncoder(tokenizer, system_addition="Mark stages.")
    with_system, without = encoder.render([question(SYSTEM, USER), question(USER)])
    assert with_system.startswith("<|system|>Think.\n\nMark stages.<|end|><|user|>")
    assert without.startswith("<|system|>Mark stages.<|end|><|user|>")


def test_a_system_prompt_for_all_stands_in_the_place_of_each_ones_own(tokenizer):
    encoder = ChatEncoder(tokenizer, system_addition="Mark stages.", system_prompt="Use tools.")
    first, second = encoder.render([question(SYSTEM, USER), question(USER)])
    assert first == second
    assert first.startswith("<|system|>Use tools.\n\nMark stages.<|end|><|user|>")


INSTRUCTIONS = ToolInstructions(TagSyntax(instructions="Tools:{tools}"), [SCHEMA])
TOLD = "Tools:<search>query</search>: Finds."


def test_tools_are_told_behind_the_system_message(tokenizer):
    encoder = ChatEncoder(tokenizer, system_addition="Mark stages.", tool_instructions=INSTRUCTIONS)
    (text,) = encoder.render([question(SYSTEM, USER)])
    assert text.startswith(f"<|system|>Think.\n\nMark stages.\n\n{TOLD}<|end|>")
    (text,) = ChatEncoder(tokenizer, tool_instructions=INSTRUCTIONS).render([question()])
    assert text.startswith(f"<|system|>{TOLD}<|end|><|user|>Who is it?")


def test_what_needs_no_word_of_tools_gets_none(tokenizer):
    encoder = ChatEncoder(tokenizer, tool_instructions=INSTRUCTIONS)
    named = question({"role": "user", "content": "Ask with <search>."})
    untold = replace(question(), tool_instructions=False)
    assert encoder.render([named, untold]) == ChatEncoder(tokenizer).render([named, untold])


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}",
        "{% for message in messages if message.role == 'user' %}{{ message.content }}{% endfor %}",
    ],
)
def test_a_template_without_system_messages_has_the_user_tell(tokenizer, template):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    assert ChatEncoder(tokenizer, tool_instructions=INSTRUCTIONS).render([question()]) == [f"{TOLD}\n\nWho is it?"]


def test_tools_reach_a_template_that_takes_them(tool_tokenizer):
    (text,) = ChatEncoder(tool_tokenizer, tool_schemas=[SCHEMA]).render([question()])
    assert text.startswith("<tools>[")
    assert '"name": "search"' in text
    assert text.endswith("[user]Who is it?[assistant]")
    assert ChatEncoder(tool_tokenizer, tool_schemas=[]).render([question()]) == ["[user]Who is it?[assistant]"]


def test_tools_are_refused_for_a_template_that_leaves_them_out(tokenizer):
    with pytest.raises(ValueError, match=r"chat template of model\.policy must take `tools` for data\.tool_schemas"):
        ChatEncoder(tokenizer, tool_schemas=[SCHEMA])


def test_options_reach_the_template(tool_tokenizer):
    (text,) = ChatEncoder(tool_tokenizer, template_options={"thinking": False}).render([question()])
    assert text.endswith("[assistant]<think></think>")


def test_a_template_that_refuses_a_role_is_quoted(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}?"
    )
    assert ChatEncoder(tokenizer).render([question()]) == ["?"]
    message = r"chat template of model\.policy must take conversations of system, user, it says: System role not supp"
    with pytest.raises(ValueError, match=message):
        ChatEncoder(tokenizer).render([question(SYSTEM, USER)])


def test_a_tokenizer_without_a_template_is_refused(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"tokenizer of model\.policy must have a chat template"):
        ChatEncoder(tokenizer)


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=6))
def test_a_store_gives_back_what_was_put_in(rows):
    store = PromptStore()
    for number, token_ids in enumerate(rows):
        store.append(Question(str(number), (USER,), ("a", "b"), "web", part="p"), token_ids)
    assert len(store) == len(rows)
    assert list(store) == [
        Prompt(str(number), "Who is it?", tuple(token_ids), ("a", "b"), "web") for number, token_ids in enumerate(rows)
    ]
    assert store.parts == ["p"] * len(rows)
    for number in (-1, len(rows)):
        with pytest.raises(IndexError, match=f"got {number}"):
            store[number]
