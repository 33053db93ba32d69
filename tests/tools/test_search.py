import pytest

from appo.tools import SearchBackend, SearchTool, ToolError


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
        return [passage for passage in self.passages if query in passage]


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


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="max_results must be positive, got 0"):
        SearchTool(Substrings(), max_results=0)
    with pytest.raises(ValueError, match=r"timeout_s must be positive and finite, got -1.0"):
        SearchTool(Substrings(), timeout_s=-1.0)
