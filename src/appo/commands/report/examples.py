"""Trajectories of a run that were chosen to differ: what went well, what did not, and where they parted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from urllib.parse import urlencode

from appo.commands.inert import inert
from appo.commands.report.document import Example, SpanKind
from appo.commands.report.records import SavedTrajectory

Decode = Callable[[Sequence[int]], str]
"""The text of token ids."""

Chosen = tuple[str, SavedTrajectory]
"""Why a trajectory is shown, and the trajectory."""

FEWEST, MOST = 4, 6
"""Trajectories that are shown, if there are so many."""

_LONGEST = 4000
"""Characters of a text; of a longer one the middle is left out."""


def examples(records: Sequence[SavedTrajectory], decode: Decode, step: str, page: str) -> list[Example]:
    """Up to `MOST` trajectories of an iteration.

    Args:
        records: all of it.
        decode: by the policy's tokenizer.
        step: names the iteration in the page of `appo view`.
        page: path of that page; empty if there is none.
    """
    by_id = {record["id"]: record for record in records}
    branches: defaultdict[int, list[SavedTrajectory]] = defaultdict(list)
    for record in records:
        if record["parent_id"] is not None:
            branches[record["parent_id"]].append(record)
    return [
        Example(
            title,
            inert(record["prompt"]["question"] or ""),
            _facts(record, by_id),
            _shortened(_spans(record, branches[record["id"]], decode)),
            _link(record, step, page) if page else "",
        )
        for title, record in chosen(records)
    ]


def chosen(records: Sequence[SavedTrajectory]) -> list[Chosen]:
    """A success and a failure of one question, branches with other outcomes, a failing call, a truncated one."""
    known = [record for record in records if record.get("reward") is not None and record["token_ids"] is not None]
    taken: list[Chosen] = []

    def take(*found: Chosen) -> None:
        ids = {record["id"] for _, record in taken}
        taken.extend(each for each in found if each[1]["id"] not in ids)

    take(*_success_and_failure(known))
    take(*_unlike_branches(known, {record["prompt"]["id"] for _, record in taken}))
    for title_of, is_one in _KINDS:
        if len(taken) < MOST:
            ids = {record["id"] for _, record in taken}
            take(*[(title_of(record), record) for record in known if record["id"] not in ids and is_one(record)][:1])
    for title, size in _EXTREMES:
        ids = {record["id"] for _, record in taken}
        rest = [record for record in known if record["id"] not in ids]
        if rest and len(taken) < FEWEST:
            take((title, max(rest, key=size)))
    return taken[:MOST]


def _own_failures(record: SavedTrajectory) -> list[str]:
    start = -1 if record["branch_position"] is None else record["branch_position"]
    return [call["failure"] for call in record["tool_calls"] if call["failure"] and call["position"] > start]


_KINDS: tuple[tuple[Callable[[SavedTrajectory], str], Callable[[SavedTrajectory], bool]], ...] = (
    (lambda record: f"A call that failed ({_own_failures(record)[0]})", lambda record: bool(_own_failures(record))),
    (lambda record: f"Cut off ({record['finish_reason']})", lambda record: record["finish_reason"] != "eos"),
)

_EXTREMES: tuple[tuple[str, Callable[[SavedTrajectory], float]], ...] = (
    ("The most tool calls", lambda record: len(record["tool_calls"])),
    ("The longest response", lambda record: sum(record["response_mask"])),
    ("The shortest response", lambda record: -sum(record["response_mask"])),
    ("The lowest reward that is left", lambda record: -float(record["reward"])),
)


def _success_and_failure(records: Sequence[SavedTrajectory]) -> list[Chosen]:
    """Of the question whose roots lie farthest apart; of none if all are equal."""
    low, high = _farthest(
        _grouped([each for each in records if each["parent_id"] is None], lambda r: r["prompt"]["id"])
    )
    if low is None or high is None:
        return []
    return [("A success", high), ("A failure of the same question", low)]


def _unlike_branches(records: Sequence[SavedTrajectory], asked: set[str]) -> list[Chosen]:
    """Two that left one token, or one trajectory, and fared most differently, of another question if there is one."""
    branches = [record for record in records if record["parent_id"] is not None]
    others = [record for record in branches if record["prompt"]["id"] not in asked]
    for pool in (others, branches):
        for key in (lambda r: (r["parent_id"], r["branch_position"]), lambda r: r["parent_id"]):
            low, high = _farthest(_grouped(pool, key))
            if low is not None and high is not None:
                place = "token" if low["branch_position"] == high["branch_position"] else "trajectory"
                return [("A branch that went well", high), (f"A branch of the same {place} that did not", low)]
    return []


def _grouped(
    records: Sequence[SavedTrajectory], key: Callable[[SavedTrajectory], object]
) -> Iterator[list[SavedTrajectory]]:
    groups: defaultdict[object, list[SavedTrajectory]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    yield from groups.values()


def _farthest(
    groups: Iterator[list[SavedTrajectory]],
) -> tuple[SavedTrajectory, SavedTrajectory] | tuple[None, None]:
    """The least and the most that one of the groups earned, of that in which they lie farthest apart."""

    def reward(record: SavedTrajectory) -> float:
        return float(record["reward"])

    pairs = [(min(group, key=reward), max(group, key=reward)) for group in groups]
    low, high = max(pairs, key=lambda pair: reward(pair[1]) - reward(pair[0]), default=(None, None))
    return (low, high) if low is not None and high is not None and reward(high) > reward(low) else (None, None)


def _facts(record: SavedTrajectory, by_id: Mapping[int, SavedTrajectory]) -> list[str]:
    facts = [
        f"reward {record['reward']:.2f}",
        f"expected {inert(' or '.join(record['prompt']['answers'] or ['nothing']))}",
        f"{sum(record['response_mask'])} sampled tokens",
    ]
    if calls := record["tool_calls"]:
        failed = [call["failure"] for call in calls if call["failure"]]
        plural = "s" if len(calls) > 1 else ""
        facts.append(
            f"{len(calls)} tool call{plural}" + (f", {len(failed)} failed ({', '.join(failed)})" if failed else "")
        )
    if record["finish_reason"] != "eos":
        facts.append(f"cut off: {record['finish_reason']}")
    if record["parent_id"] is not None:
        score = "" if record["branch_score"] is None else f", score {record['branch_score']:.2f}"
        facts.append(f"left a trajectory of reward {by_id[record['parent_id']]['reward']:.2f}{score}")
    if reason := record.get("reward_reason"):
        facts.append(inert(reason))
    return facts


def _spans(
    record: SavedTrajectory, branches: Sequence[SavedTrajectory], decode: Decode
) -> Iterator[tuple[SpanKind, str]]:
    """The response: what a branch shares, where others left, and what tools said."""
    ids, mask, start = record["token_ids"], record["response_mask"], len(record["prompt"]["token_ids"])
    own = start if record["branch_position"] is None else record["branch_position"] + 1
    points: defaultdict[int, list[float]] = defaultdict(list)
    for branch in branches:
        points[branch["branch_position"] + 1].append(branch["reward"])
    edges = {start, own, len(ids), *points}
    edges |= {place for place in range(start + 1, len(ids)) if mask[place] != mask[place - 1]}
    places = sorted(edge for edge in edges if start <= edge <= len(ids))
    for place, end in zip(places, [*places[1:], len(ids)], strict=True):
        if place == own and own > start:
            yield "mark", "the branch begins"
        if place in points:
            rewards = ", ".join(f"{reward:.2f}" for reward in points[place])
            yield "mark", f"{len(points[place])} left: reward {rewards}"
        if end > place:
            kind: SpanKind = "result" if not mask[place] else "shared" if place < own else "sampled"
            yield kind, inert(decode(ids[place:end]), "\n\t")


def _shortened(spans: Iterator[tuple[SpanKind, str]]) -> list[tuple[SpanKind, str]]:
    """Leaves out the middle of what is long."""
    kept = list(spans)
    total = sum(len(text) for _, text in kept)
    if total <= _LONGEST:
        return kept
    half = _LONGEST // 2
    left = _first(kept, half)
    right = [(kind, text[::-1]) for kind, text in _first([(k, t[::-1]) for k, t in reversed(kept)], half)]
    return [*left, ("mark", f"{total - 2 * half:,} characters left out"), *reversed(right)]


def _first(spans: Sequence[tuple[SpanKind, str]], number: int) -> list[tuple[SpanKind, str]]:
    found = []
    for kind, text in spans:
        if number <= 0:
            break
        found.append((kind, text[:number]))
        number -= len(text)
    return found


def _link(record: SavedTrajectory, step: str, page: str) -> str:
    return f"{page}#{urlencode({'step': step, 'q': record['prompt']['id'], 't': record['id']})}"
