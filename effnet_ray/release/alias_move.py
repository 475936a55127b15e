"""A move of an alias."""

from dataclasses import asdict, dataclass

from effnet_ray.train.metric_definitions import Score


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """One entry of an alias's history."""

    version: int
    """The version that the alias points to after the move."""
    previous: int | None
    """The version before the move; None for the first move."""
    when: str
    """Time of the move: ISO 8601, UTC."""
    eval_top1: float | None
    """Eval top-1 of the release; None if its metrics.json has none."""
    record: str
    """`sha256` of the release's release.json."""
    newest: int
    """The newest version at the time of the move. `best` is not compared with older ones again."""
    forced: bool
    """Whether the score was ignored."""
    id: str
    """Random id, so that no two moves have the same bytes."""
    eval_map: float | None = None
    """Mean average precision, the score of multi-label releases."""

    @property
    def score(self) -> Score | None:
        """The score of the release."""
        return Score.of(asdict(self))
