"""A made-up knowledge base of people, cities and countries."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from appo.environments.names import (
    CITIES,
    COUNTRIES,
    FIRST_NAMES,
    LAST_NAMES,
    MORE_FIRST_NAMES,
    MORE_LAST_NAMES,
)

Kind = Literal["person", "city", "country", "number", "sign", "metal", "shape"]
"""What a value is."""


@dataclass(frozen=True)
class Relation:
    """What may be known of an entity.

    Attributes:
        name: as facts and questions call it.
        subject: whom it is known of.
        value: what the known value is.
    """

    name: str
    subject: Kind
    value: Kind


RELATIONS = (
    Relation("boss", "person", "person"),
    Relation("mentor", "person", "person"),
    Relation("home", "person", "city"),
    Relation("birthplace", "person", "city"),
    Relation("age", "person", "number"),
    Relation("mayor", "city", "person"),
    Relation("country", "city", "country"),
    Relation("founding year", "city", "number"),
    Relation("population", "city", "number"),
    Relation("capital", "country", "city"),
    Relation("president", "country", "person"),
)

NUMBER_RANGES = {"age": (18, 90), "founding year": (10, 99), "population": (10, 99)}
"""Least and greatest value of each relation whose value is a number."""


@dataclass(frozen=True)
class Fact:
    """One thing that is known.

    Attributes:
        relation: name of the relation.
        subject: whom it is known of.
        value: the known value.
    """

    relation: str
    subject: str
    value: str

    @property
    def sentence(self) -> str:
        """The fact as the knowledge base states it."""
        return f"The {self.relation} of {self.subject} is {self.value}."


@dataclass(frozen=True)
class World:
    """A knowledge base that follows from its options alone: equal options, equal facts."""

    relations: ClassVar[tuple[Relation, ...]] = RELATIONS
    """What is known."""
    first_names: ClassVar[tuple[str, ...]] = FIRST_NAMES
    last_names: ClassVar[tuple[str, ...]] = LAST_NAMES

    seed: int = 0
    """Decides who exists and what is known of them."""
    num_people: int = 200
    """People, at least 2."""
    num_cities: int = 20
    """Cities, at least as many as countries."""
    num_countries: int = 5
    """Countries, at least 1."""

    def __post_init__(self) -> None:
        most = len(self.first_names) * len(self.last_names)
        if not 2 <= self.num_people <= most:
            raise ValueError(f"num_people must lie in [2, {most}], got {self.num_people}")
        if not 1 <= self.num_countries <= len(COUNTRIES):
            raise ValueError(f"num_countries must lie in [1, {len(COUNTRIES)}], got {self.num_countries}")
        if not self.num_countries <= self.num_cities <= len(CITIES):
            raise ValueError(
                f"num_cities must lie in [num_countries, {len(CITIES)}] with num_countries {self.num_countries}, "
                f"got {self.num_cities}"
            )

    @cached_property
    def entities(self) -> dict[Kind, tuple[str, ...]]:
        """Those that exist, by what they are."""
        rng = random.Random(f"entities {self.seed}")
        names = [f"{first} {last}" for first in self.first_names for last in self.last_names]
        return {
            "person": tuple(rng.sample(names, self.num_people)),
            "city": tuple(rng.sample(CITIES, self.num_cities)),
            "country": tuple(rng.sample(COUNTRIES, self.num_countries)),
        }

    @cached_property
    def facts(self) -> tuple[Fact, ...]:
        """All that is known, in a fixed order."""
        return tuple(Fact(relation, subject, value) for (relation, subject), value in self._values.items())

    def value(self, relation: str, subject: str) -> str:
        """What is known of `subject`.

        Raises:
            KeyError: if that is not known.
        """
        return self._values[relation, subject]

    def find(self, relation: str, subject: str) -> Fact | None:
        """The fact that says what is known of `subject`; None if that is not known."""
        value = self._values.get((relation, subject))
        return None if value is None else Fact(relation, subject, value)

    @cached_property
    def _values(self) -> dict[tuple[str, str], str]:
        rng = random.Random(f"facts {self.seed}")
        cities, countries = self.entities["city"], self.entities["country"]
        country_of = {city: countries[i % len(countries)] for i, city in enumerate(cities)}
        values = {}
        for relation in self.relations:
            for subject in self.entities[relation.subject]:
                values[relation.name, subject] = self._draw(relation, subject, country_of, rng)
        return values

    def _draw(self, relation: Relation, subject: str, country_of: dict[str, str], rng: random.Random) -> str:
        if relation.value == "number":
            return str(rng.randint(*NUMBER_RANGES[relation.name]))
        if relation.name == "country":
            return country_of[subject]
        if relation.name == "capital":
            return rng.choice([city for city, country in country_of.items() if country == subject])
        return rng.choice([entity for entity in self.entities[relation.value] if entity != subject])


@dataclass(frozen=True)
class PeopleWorld(World):
    """Many people, and nothing of countries."""

    first_names: ClassVar[tuple[str, ...]] = FIRST_NAMES + MORE_FIRST_NAMES
    last_names: ClassVar[tuple[str, ...]] = LAST_NAMES + MORE_LAST_NAMES

    num_people: int = 2000
    """People, at least 2."""
    num_countries: int = 1
    """Countries, at least 1; nothing is known of them."""
