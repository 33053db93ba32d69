from pathlib import Path

from benchmarks.scale_tables import insert_tables

PAGE = Path(__file__).parents[3] / "docs/scale.md"


def test_the_page_shows_what_the_code_says():
    page = PAGE.read_text(encoding="utf-8")
    assert page == insert_tables(page), "python -m benchmarks.scale_tables docs/scale.md"
    assert "Llama-3.1-70B, 64 GPUs" in page
