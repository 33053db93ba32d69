"""What there is to tell of an ablation as far as it has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appo.commands.ablate.cautions import Cautions, cautions_of_results
from appo.commands.ablate.curves import areas_by_run, curve_metric
from appo.commands.ablate.execution import Failure, Result
from appo.commands.ablate.spec import AblationSpec
from appo.commands.ablate.statistics import Comparison, compare


@dataclass(frozen=True)
class Summary:
    """The outcomes of runs, put together.

    Attributes:
        before: tests of policies before their training.
        trained: finished trainings.
        failures: runs that everything else is without.
        comparisons: of combinations, in their order.
        curve: the metric of the learning curves.
        cautions: sentences on what stands between this and a conclusion.
    """

    before: Sequence[Result]
    trained: Sequence[Result]
    failures: Sequence[Failure]
    comparisons: Sequence[Comparison]
    curve: str
    cautions: Cautions

    @classmethod
    def of(cls, outcomes: Sequence[Result | Failure], cautions: Cautions, spec: AblationSpec) -> Summary:
        """Compares what has ended.

        Args:
            outcomes: in the order of the runs.
            cautions: that were known before.
            spec: of the ablation.
        """
        results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
        trained = [result for result in results if result.history]
        return cls(
            before=[result for result in results if not result.history],
            trained=trained,
            failures=[outcome for outcome in outcomes if isinstance(outcome, Failure)],
            comparisons=compare(_metric_by_run(trained, spec), areas_by_run(trained, spec)),
            curve=curve_metric(trained, spec),
            cautions=cautions | cautions_of_results(trained, spec),
        )


def _metric_by_run(results: Sequence[Result], spec: AblationSpec) -> dict[str, dict[int, float]]:
    values: dict[str, dict[int, float]] = {combination.name: {} for combination in spec.combinations}
    for result in results:
        values[result.run.combination][result.run.seed] = result.metrics[spec.metric]
    return values
