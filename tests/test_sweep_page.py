"""The page of a sweep, with made-up trials: complete, inert, and readable on a phone."""

from pathlib import Path

import pytest
from support.pages import NASTY, Page, browser, measured

from effnet_ray.model.profile import Cost
from effnet_ray.recipe import Recipe
from effnet_ray.sweep import report, sweep_record
from effnet_ray.sweep.objective import Objective
from effnet_ray.sweep.results import Outcome, summarize
from effnet_ray.sweep.sweep_record import Sweep, Trial, TrialPoint
from effnet_ray.train.metric_definitions import EVAL_TOP1

VARIANTS = ("b0", "b1", "b3")
STATES = (
    [sweep_record.FINISHED] * 5
    + [sweep_record.STOPPED] * 5
    + [sweep_record.FAILED, sweep_record.SKIPPED]
)


def trial(number: int, state: str) -> Trial:
    reached = {sweep_record.FINISHED: 1.0, sweep_record.SKIPPED: 0.0}.get(state, 0.5)
    top1 = 0.7 + 0.02 * (number % 3) + 0.01 * number
    curve = tuple(
        TrialPoint(reached=at / 4, eval_top1=top1 * (0.6 + at / 10), device_seconds=100.0 * at)
        for at in range(1, 1 + int(4 * reached))
    )
    return Trial(
        number=number,
        variant=VARIANTS[number % 3],
        settings={"lr": 0.001 * (number + 1), "aa": "rand-m9"},
        state=state,
        run=f"pets-{number:03d}",
        curve=curve,
        reason=f"out of memory {NASTY}" if state == sweep_record.FAILED else "",
    )


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    sweep = Sweep(
        name="pets",
        recipe=Recipe(),
        variants=VARIANTS,
        trials=12,
        space={"lr": "log:1e-4:1e-2", "aa": ["none", "rand-m9"]},
        searcher="random",
        budget=5000.0,
        data=f"s3://{NASTY}",
        fingerprint="0" * 64,
    )
    costs = {
        number: Cost(
            params_m=5.3 * scale, gmacs=0.4 * scale, latency_ms=12.0 * scale, device="cpu"
        )
        for number in range(12)
        for scale in [1.0 + number % 3]
    }
    trials = [trial(number, state) for number, state in enumerate(STATES)]
    return summarize(sweep, "s3://bucket/sweeps/pets", trials, costs, Objective(), 4000.0, 500)


def test_the_page_shows_the_leaderboard_and_runs_nothing(outcome: Outcome) -> None:
    page = report.html(outcome)
    text = " ".join(Page(page).text.split())
    parsed = Page(page)
    assert not {"script", "link", "iframe", "object", "form"} & set(parsed.tags)
    assert all(link.startswith("#") for link in parsed.links)
    assert b"default-src 'none'" in page and NASTY in parsed.text
    best = outcome.best.trial
    assert f"{100 * best.eval_top1:.2f} %" in text and f"is trial {best.number}." in text
    low, high = EVAL_TOP1.interval(best.eval_top1, 500) or (0, 0)
    assert text.count(f"{100 * low:.1f} % to {100 * high:.1f} %") >= 2  # tile and table
    assert "Trials: 5 finished, 5 stopped, 1 failed, 1 skipped" in text
    assert page.count(b'<td class="remark">') == 12 and page.count(b"<svg") == 3


@browser
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_it_without_scrolling_sideways(
    outcome: Outcome, width: int, tmp_path: Path
) -> None:
    wide, title, _, images, plots = measured(report.html(outcome), width, tmp_path)
    assert int(wide) <= width and title == "pets"
    assert (int(images), int(plots)) == (0, 3)
