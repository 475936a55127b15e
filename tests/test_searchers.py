"""Searchers: reproducible random search, and a TPE that learns."""

from effnet_ray.recipe import Recipe
from effnet_ray.sweep import searchers
from effnet_ray.sweep.searchers import RandomSampler, TpeSampler
from effnet_ray.sweep.space import Settings, default, parse
from effnet_ray.sweep.sweep_record import Trial, TrialPoint

SPACE = parse(
    {"lr": "log:1e-4:1e-1", "batch_size": "int:8:16", "batchnorm": "choice:train,frozen"}
)


def trial(number: int, settings: Settings) -> Trial:
    """The nearer lr is to 1e-4, the better."""
    top1 = 1 - (settings["lr"] / 0.1) ** 0.5
    curve = (TrialPoint(reached=1.0, eval_top1=top1, device_seconds=1),)
    return Trial(
        number=number, variant="b0", settings=settings, state="finished", run="r", curve=curve
    )


def test_a_number_has_its_settings_whatever_came_before() -> None:
    space = parse(default(Recipe()))
    first, second = RandomSampler(space, 3), RandomSampler(space, 3)
    assert first(7) == [second(n) for n in range(8)][7]
    assert first(7) != first(8)
    assert first(7) != RandomSampler(space, 4)(7)


def test_tpe_draws_from_the_space_and_learns_where_it_is_good() -> None:
    search = searchers.sampler("tpe", SPACE, 0)
    rates = []
    for number in range(60):
        settings = search(number)
        assert 1e-4 <= settings["lr"] <= 1e-1
        assert settings["batch_size"] in range(8, 17) and type(settings["batch_size"]) is int
        assert settings["batchnorm"] in ("train", "frozen")
        rates.append(settings["lr"])
        search.observe(trial(number, settings))
    chance = RandomSampler(SPACE, 0)
    by_chance = sorted(chance(number)["lr"] for number in range(60))[30]
    assert sorted(rates[30:])[15] < by_chance / 3


def test_tpe_learns_from_an_earlier_call_and_from_failures() -> None:
    search = TpeSampler(SPACE, 0)
    chance = RandomSampler(SPACE, 1)
    for number in range(40):
        search.observe(trial(number, chance(number)))
    good = [search(number)["lr"] for number in range(40, 50)]
    assert sorted(good)[5] < 1e-2
    failed = Trial(number=40, variant="b0", settings={}, state="failed", run="r")
    search.observe(failed)
    assert search(50)
