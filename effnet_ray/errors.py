"""Every error that this package raises on purpose, as one tree.

    EffnetRayError
    ├─ InputError                     the user's input is wrong: one sentence, exit 2
    │   ├─ RecipeError                a Recipe, Placement or flag has an impossible value
    │   ├─ StorageError               a URI cannot be read or written
    │   │   ├─ NotFoundError          the object does not exist
    │   │   │   └─ BucketNotFoundError    its bucket does not exist either
    │   │   ├─ AlreadyExistsError     a create-only write found an existing object
    │   │   ├─ ConflictError          another writer changed the object since it was read
    │   │   ├─ DamagedError           the object's content is not in its format
    │   │   ├─ TooLargeError          the object has more bytes than it may have
    │   │   ├─ UnsupportedError       the storage server does not implement the request
    │   │   └─ OutageError            storage did not answer; the object may be fine
    │   ├─ DatasetError               a manifest or shard is missing, damaged or inconsistent
    │   ├─ WeightsError               pretrained weights do not exist or are unavailable
    │   ├─ RunExistsError             the run's name belongs to another recipe or data set
    │   ├─ ReleaseError               a release is missing, incomplete, or would be overwritten
    │   │   └─ IncompleteReleaseError  a file of it is missing, or larger than recorded
    │   ├─ TrackerError               a tracker is not installed or not reachable
    │   └─ ClusterError               the cluster cannot run the job
    ├─ MachineError                   this machine has no more disk space, open files, …: exit 1
    ├─ ImageError                     an image cannot be decoded; quarantined, never fatal
    ├─ EvaluationError                evaluation or prediction failed while running: exit 1
    │   └─ ReplicaStorageError        a serving replica could not read its release from storage
    ├─ CheckpointError                a checkpoint is damaged or does not fit this Recipe
    └─ TrainingError                  a run failed while running: exit 1
        ├─ NonFiniteError             loss or gradients were NaN or infinite in consecutive steps
        ├─ BadImagesError             more unreadable images than --max-bad-fraction allows
        └─ ControllerDiedError        the process that controls a run's workers died

Each class takes one message, so it can be pickled and sent between processes.
A message says what was found, what was expected, and what to do. `redact` has removed secrets.
"""

import errno

from effnet_ray.redaction import redact

MAX_MESSAGE_CHARS = 2000
"""Characters of a message. It may quote untrusted text, such as a name of a megabyte."""


class EffnetRayError(Exception):
    """Root of the tree. Its message is one line of printable text."""

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        text = redact(_shortened(str(message), 10 * MAX_MESSAGE_CHARS))
        if not text.isprintable():
            text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        super().__init__(_shortened(text, MAX_MESSAGE_CHARS))


def _shortened(text: str, chars: int) -> str:
    """The text without its middle if it is longer: what to do is at the end."""
    half = chars // 2
    return text if len(text) <= chars else f"{text[:half]} … {text[-half:]}"


class InputError(EffnetRayError):
    """The user's input is wrong; raised on the driver before resources are requested."""

    exit_code = 2


class RecipeError(InputError):
    """A Recipe, Placement or flag has an impossible value."""


class StorageError(InputError):
    """A URI cannot be read or written."""


class NotFoundError(StorageError):
    """The object does not exist."""


class BucketNotFoundError(NotFoundError):
    """The object's bucket does not exist."""


class AlreadyExistsError(StorageError):
    """A create-only write found an existing object."""


class ConflictError(StorageError):
    """Another writer changed the object since it was read."""


class DamagedError(StorageError):
    """The object's content is not in its format."""


class TooLargeError(StorageError):
    """The object has more bytes than it may have, so it was not read."""


class UnsupportedError(StorageError):
    """The storage server does not implement the request."""


class OutageError(StorageError):
    """Storage did not answer, or answered that it is busy; the object may be fine."""


class DatasetError(InputError):
    """A manifest or shard is missing, damaged or inconsistent."""


class WeightsError(InputError):
    """Pretrained weights do not exist or are unavailable."""


class RunExistsError(InputError):
    """The run's name belongs to another recipe or data set."""


class ReleaseError(InputError):
    """A release is missing, incomplete, or would be overwritten."""


class IncompleteReleaseError(ReleaseError):
    """A file of a release is missing, or larger than recorded."""


class TrackerError(InputError):
    """A tracker is not installed or not reachable."""


class ClusterError(InputError):
    """The cluster cannot run the job."""


class MachineError(EffnetRayError):
    """This machine has no more of a resource: disk space, open files, …"""


class ImageError(EffnetRayError):
    """An image cannot be decoded."""


class EvaluationError(EffnetRayError):
    """Evaluation or prediction failed while running."""


class ReplicaStorageError(EvaluationError):
    """A serving replica could not read its release from storage."""


class CheckpointError(EffnetRayError):
    """A checkpoint is damaged or does not fit this Recipe."""


class TrainingError(EffnetRayError):
    """A run failed while running."""


class NonFiniteError(TrainingError):
    """Loss or gradients were NaN or infinite in too many consecutive steps."""


class BadImagesError(TrainingError):
    """More images are unreadable than `--max-bad-fraction` allows."""


class ControllerDiedError(TrainingError):
    """The process that controls a run's workers died."""


REMEDIES = {
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "free some space, or choose another folder",
    errno.EFBIG: "allow larger files (ulimit -f), or choose another folder",
    errno.EMFILE: "allow more open files (ulimit -n 65536)",
    errno.ENFILE: "close other programs, or allow more open files (sysctl fs.file-max)",
    errno.EAGAIN: "allow more processes (ulimit -u)",
    errno.ENOMEM: "close other programs, or use a machine with more memory",
    errno.EROFS: "choose a folder that can be written",
}
"""What to do when a machine has no more of something, by the number of its error."""

MAX_QUOTED_CHARS = 300
"""Characters quoted of another library's message: enough for its sentence, and at most four lines
of a terminal. Arrow's and Ray's messages may have thousands."""


def remedy(error: OSError) -> str:
    """What to do about a limit of the machine; empty if the error is none."""
    return REMEDIES.get(error.errno or 0, "")


def one_line(error: BaseException) -> str:
    """The error's text with all whitespace runs as single spaces, without secrets; its type's name
    if empty."""
    return redact(" ".join(str(error).split())) or type(error).__name__


def quote(error: BaseException) -> str:
    """`one_line`, cut to its first MAX_QUOTED_CHARS characters."""
    return one_line(error)[:MAX_QUOTED_CHARS]


def quote_end(error: BaseException) -> str:
    """`one_line`, cut to its last characters: there a message with a traceback has its cause."""
    return one_line(error)[-MAX_QUOTED_CHARS:]
