"""The best checkpoints of a sweep's trials, for `train.average`."""

from effnet_ray import storage
from effnet_ray.errors import InputError
from effnet_ray.sweep import sweep_record
from effnet_ray.train.average import Candidate, best_candidate


def is_sweep(uri: str) -> bool:
    """Whether a folder is that of a sweep."""
    return storage.exists(storage.join(uri, sweep_record.SWEEP))


def trial_candidates(uri: str, variant: str) -> tuple[str, list[Candidate]]:
    """A variant of a sweep, and the best checkpoint of each of its finished trials.

    `variant` may be empty if the sweep has only one. Raises InputError.
    """
    trials = sweep_record.load_trials(uri).values()
    finished = [trial for trial in trials if trial.state == sweep_record.FINISHED]
    variants = sorted({trial.variant for trial in finished})
    if not variant and len(variants) == 1:
        variant = variants[0]
    if variant not in variants:
        raise InputError(
            f"sweep {uri} has finished trials of {', '.join(variants) or 'no variant'}, got "
            f"--variant {variant or '(none)'}: choose one of them"
        )
    runs = [trial.run for trial in finished if trial.variant == variant]
    folder = storage.join(uri, sweep_record.RUNS)
    return variant, [best_candidate(storage.join(folder, run)) for run in runs]
