"""Everything this package refuses or reports, as one tree.

    EffnetRayError
    ├─ InputError                 a person's mistake: one sentence, exit 2
    │   ├─ RecipeError            a Recipe, Placement or flag cannot mean what it says
    │   ├─ StorageError           a URI cannot be read or written
    │   │   └─ ConflictError      an object was changed by somebody else since it was read
    │   ├─ DatasetError           a manifest or shard is missing, damaged or contradicts its record
    │   ├─ WeightsError           pretrained weights do not exist or cannot be had
    │   ├─ RunExistsError         a run's name is taken by another recipe or another data set
    │   ├─ ReleaseError           a Release is absent, incomplete, or would be overwritten
    │   ├─ TrackerError           a tracker is not installed, or cannot be reached
    │   └─ ClusterError           the cluster cannot run what was asked
    ├─ ImageError                 one image cannot be decoded; quarantined, never fatal
    ├─ EvaluationError            judging or predicting failed after it had started: exit 1
    ├─ CheckpointError            saved state is damaged or does not fit this Recipe
    └─ TrainingError              a run failed after it had started: exit 1
        ├─ NonFiniteError         losses or gradients are no finite numbers, step after step
        ├─ BadImagesError         more images than --max-bad-fraction allows cannot be read
        └─ LeaderLostError        the process that leads a run's workers died

Every class takes one message, so every one of them pickles and can cross processes.
A message says what was found, what was expected, and what to do.
"""


class EffnetRayError(Exception):
    """Root of the tree."""

    exit_code = 1


class InputError(EffnetRayError):
    """A person's mistake, refused on the driver before anything is leased."""

    exit_code = 2


class RecipeError(InputError):
    """A Recipe, Placement or flag cannot mean what it says."""


class StorageError(InputError):
    """A URI cannot be read or written."""


class ConflictError(StorageError):
    """An object was changed by somebody else since it was read."""


class DatasetError(InputError):
    """A manifest or shard is missing, damaged or contradicts its record."""


class WeightsError(InputError):
    """Pretrained weights do not exist or cannot be had."""


class RunExistsError(InputError):
    """A run's name is taken by another recipe or another data set."""


class ReleaseError(InputError):
    """A Release is absent, incomplete, or would be overwritten."""


class TrackerError(InputError):
    """A tracker is not installed, or cannot be reached."""


class ClusterError(InputError):
    """The cluster cannot run what was asked."""


class ImageError(EffnetRayError):
    """One image cannot be decoded."""


class EvaluationError(EffnetRayError):
    """Judging or predicting images failed after it had started."""


class CheckpointError(EffnetRayError):
    """Saved state is damaged or does not fit this Recipe."""


class TrainingError(EffnetRayError):
    """A run failed after it had started."""


class NonFiniteError(TrainingError):
    """Losses or gradients are no finite numbers, step after step."""


class BadImagesError(TrainingError):
    """More images than `--max-bad-fraction` allows cannot be read."""


class ControllerDiedError(TrainingError):
    """The process that leads a run's workers died."""


def one_line(error: BaseException) -> str:
    """The error's text with all whitespace runs as single spaces; its type's name if empty."""
    return " ".join(str(error).split()) or type(error).__name__
