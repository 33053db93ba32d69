import pytest
import yaml

from appo.commands.cli import run
from appo.tools import SEARCH_BACKENDS, SearchBackend, SearchTool, TokenCodec, ToolError
from appo.tools.search.tool import fair_shares

CHARACTERS = TokenCodec(lambda text: [ord(c) for c in text], lambda token_ids: "".join(map(chr, token_ids)))
BYTES = TokenCodec(lambda text: list(text.encode()), lambda token_ids: bytes(token_ids).decode(errors="replace"))


class Substrings(SearchBackend):
    """Finds passages that contain the query; ignores the limit, as a careless back end would."""

    def __init__(self, *passages):
        self.passages = passages
        self.is_started = False

    def start(self):
        self.is_started = True

    def stop(self):
        self.is_started = False

    def search(self, query, limit):
        return [passage for passage in self.passages if query in passage or not passage.strip()]


def test_passages_are_the_lines_of_the_answer_up_to_the_limit():
    tool = SearchTool(Substrings("Rome is\nin  Italy.", "Rome was built.", "Rome fell.", "Paris"), max_results=2)
    assert tool("Rome") == "Rome is in Italy.\nRome was built."


def test_quotes_around_a_query_are_dropped():
    assert SearchTool(Substrings("Rome is old."))('"Rome is"') == "Rome is old."


def test_no_hit_is_a_result():
    assert SearchTool(Substrings("Rome"))("Oslo") == "No results found."


@pytest.mark.parametrize("query", ["", '""'])
def test_empty_query_is_an_error(query):
    with pytest.raises(ToolError, match="The query is empty"):
        SearchTool(Substrings("Rome"))(query)


def test_back_end_starts_and_stops_with_the_tool():
    backend = Substrings()
    tool = SearchTool(backend)
    tool.start()
    assert backend.is_started
    tool.stop()
    assert not backend.is_started


def test_passages_are_numbered_as_the_format_says():
    backend = Substrings("Rome is old.", "  ", "Rome has {number} hills: {passage}.")
    tool = SearchTool(backend, passage_format="Page {number}: {passage}")
    assert tool("Rome") == "Page 1: Rome is old.\nPage 2: Rome has {number} hills: {passage}."


def test_a_passage_is_cut_to_its_characters():
    assert SearchTool(Substrings("Rome is old.", "Rome"), max_passage_chars=7)("Rome") == "Rome is\nRome"


def test_long_passages_pay_for_what_a_result_has_too_many():
    tool = SearchTool(Substrings())
    # 20 tokens, two of them line ends: 18 for the lines, 3 for the short one, the others share 15
    assert tool.cut("0123456789\nabc\nABCDEFGHIJ", 20, CHARACTERS) == "0123456\nabc\nABCDEFGH"


def test_a_result_that_fits_stays_as_it_is():
    text = "one\n\n  two"
    assert SearchTool(Substrings()).cut(text, len(text), CHARACTERS) == text


def test_no_passage_has_more_tokens_than_it_may_have():
    tool = SearchTool(Substrings(), max_passage_tokens=4)
    assert tool.cut("0123456789\nabc\nABCDEFGHIJ", 100, CHARACTERS) == "0123\nabc\nABCD"


@pytest.mark.parametrize("max_tokens", range(1, 30))
def test_a_cut_result_never_has_too_many_tokens(max_tokens):
    text = SearchTool(Substrings()).cut("0123456789\nabc\nABCDEFGHIJ", max_tokens, CHARACTERS)
    assert 0 < len(text) <= max_tokens


def test_a_character_of_several_tokens_is_not_cut_in_two():
    assert BYTES.cut("Zürich", 2) == "Z"
    assert BYTES.cut("Zürich", 3) == "Zü"
    assert BYTES.cut("ééé", 5) == "éé"


def test_replacement_characters_of_the_text_itself_stay():
    assert BYTES.cut("a\N{REPLACEMENT CHARACTER}b", 4) == "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("sizes", "budget", "shares"),
    [
        ([5, 1, 9], 100, [5, 1, 9]),
        ([5, 1, 9], 9, [4, 1, 4]),
        ([7, 7, 7], 10, [3, 3, 4]),
        ([0, 8], 3, [0, 3]),
        ([4, 4], 0, [0, 0]),
        ([4, 4], -2, [0, 0]),
        ([], 5, []),
    ],
)
def test_a_budget_is_shared_fairly(sizes, budget, shares):
    assert fair_shares(sizes, budget) == shares


def test_a_back_end_that_does_not_show_its_options_has_no_identity():
    with pytest.raises(TypeError, match="Substrings must define `identity` to be cached"):
        _ = Substrings("Rome").identity


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="max_results must be positive, got 0"):
        SearchTool(Substrings(), max_results=0)
    with pytest.raises(ValueError, match="max_passage_tokens must be positive, got 0"):
        SearchTool(Substrings(), max_passage_tokens=0)
    with pytest.raises(ValueError, match=r"passage_format must be one line with {passage} in it, got 'Page'"):
        SearchTool(Substrings(), passage_format="Page")
    with pytest.raises(ValueError, match=r"timeout_s must be positive and finite, got -1.0"):
        SearchTool(Substrings(), timeout_s=-1.0)


def test_every_back_end_is_known_by_its_bare_name(tmp_path, capsys):
    config = tmp_path / "search.yaml"
    config.write_text("""
rollout:
  tools:
    - class_path: SearchTool
      init_args:
        backend:
          class_path: CachedSearch
          init_args:
            path: searches.sqlite
            backend:
              class_path: HTTPSearch
              init_args: {url: "http://localhost", headers: {Authorization: "Bearer {TEST_SEARCH_KEY}"}}
    - {class_path: SearchTool, init_args: {backend: {class_path: BM25Search, init_args: {corpus: passages.jsonl}}}}
""")
    with pytest.raises(SystemExit) as exit_info:
        run(["fit", "--config", str(config), "--print_config"])
    output = capsys.readouterr()
    assert exit_info.value.code == 0, output.err
    first, second = (tool["init_args"] for tool in yaml.safe_load(output.out)["rollout"]["tools"])
    assert first["backend"]["class_path"] == "appo.tools.CachedSearch"
    assert first["backend"]["init_args"]["backend"]["init_args"]["headers"] == {
        "Authorization": "Bearer {TEST_SEARCH_KEY}"
    }
    assert second["backend"]["class_path"] == "appo.tools.BM25Search"
    assert {"BM25Search", "CachedSearch", "HTTPSearch", "WorldSearch"} <= set(SEARCH_BACKENDS)
