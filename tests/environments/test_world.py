from __future__ import annotations

import pytest

from appo.environments.gates import GateWorld
from appo.environments.search import WorldSearch
from appo.environments.world import RELATIONS, World

SMALL = World(seed=3, num_people=30, num_cities=8, num_countries=3)


def test_equal_options_make_equal_worlds_and_another_seed_makes_another():
    assert World(seed=3, num_people=30, num_cities=8, num_countries=3).facts == SMALL.facts
    assert World(seed=4, num_people=30, num_cities=8, num_countries=3).facts != SMALL.facts


def test_every_relation_is_known_of_every_entity_it_fits_and_names_something_that_exists():
    assert len(SMALL.facts) == sum(len(SMALL.entities[relation.subject]) for relation in RELATIONS)
    kinds = {relation.name: relation for relation in RELATIONS}
    for fact in SMALL.facts:
        relation = kinds[fact.relation]
        assert fact.subject in SMALL.entities[relation.subject]
        assert fact.value.isdigit() if relation.value == "number" else fact.value in SMALL.entities[relation.value]
        assert fact.value != fact.subject


def test_a_capital_lies_in_its_own_country():
    for country in SMALL.entities["country"]:
        assert SMALL.value("country", SMALL.value("capital", country)) == country


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"num_people": 1}, "num_people"),
        ({"num_people": 10_000}, "num_people"),
        ({"num_countries": 0}, "num_countries"),
        ({"num_cities": 2, "num_countries": 3}, "num_cities"),
    ],
)
def test_a_world_that_cannot_be_named_is_refused(options, key):
    with pytest.raises(ValueError, match=f"{key} must lie .*got {options[key]}"):
        World(**options)


@pytest.mark.parametrize("world", [World(), GateWorld(num_people=150)], ids=["places", "gates"])
def test_a_search_for_a_fact_finds_that_fact_first(world):
    alone, ranked = WorldSearch(world), WorldSearch(world, distractors=2)
    for fact in world.facts:
        query = f"{fact.relation} of {fact.subject}"
        assert ranked.search(query, 3)[0] == fact.sentence
        # Found by its name, it is what the ranking puts first.
        assert alone.search(query, 3) == [fact.sentence]


def test_distractors_follow_the_best_fact_up_to_the_limit():
    fact = SMALL.facts[0]
    query = f"{fact.relation} of {fact.subject}"
    assert WorldSearch(SMALL).search(query, 5) == [fact.sentence]
    found = WorldSearch(SMALL, distractors=3).search(query, 5)
    assert len(set(found)) == 4
    assert found[0] == fact.sentence
    assert WorldSearch(SMALL, distractors=3).search(query, 2) == found[:2]


def test_ranks_as_the_definition_does():
    def terms(text):
        words = text.lower().replace(".", "").split()
        return {" ".join(words[i : i + n]) for n in (1, 2, 3) for i in range(len(words) + 1 - n)}

    import math

    sentences = [fact.sentence for fact in SMALL.facts]
    query = "mentor of Ana " + SMALL.entities["person"][4]
    scores = []
    for sentence in sentences:
        shared = terms(sentence) & terms(query)
        scores.append(
            sum(math.log(len(sentences) / sum(term in terms(s) for s in sentences)) for term in sorted(shared))
        )
    expected = sorted(range(len(sentences)), key=lambda i: (-round(scores[i], 9), i))[:5]
    assert WorldSearch(SMALL, distractors=4).search(query, 5) == [sentences[i] for i in expected]


def test_a_query_without_a_known_word_finds_nothing():
    assert WorldSearch(SMALL).search("zzz qqq", 3) == []


def test_negative_distractors_are_refused():
    with pytest.raises(ValueError, match="distractors must not be negative, got -1"):
        WorldSearch(distractors=-1)
