"""Options of packing: how a source is read and what is made of it."""

from dataclasses import dataclass
from typing import Literal

from effnet_ray.errors import DatasetError
from effnet_ray.recipe import MULTILABEL, TASKS


@dataclass(frozen=True, kw_only=True)
class SourceColumns:
    """What the columns of a table, the features of Parquet rows or the keys of a WebDataset's
    JSON are called."""

    path_column: str = "path"
    """Column of a table with each image's path, relative to the table, or URI."""
    label_column: str = "label"
    """Column with the class: a name, or a number."""
    group_column: str = ""
    """Column whose equal values stay in one split: the patient, the product, the camera trap."""
    split_column: str = ""
    """Column that says train, eval (val, validation) or test. Default: as folders or files are
    named, where they are named so."""
    task: Literal["multiclass", "multilabel"] = "multiclass"
    """`multilabel`: an image may have any number of classes, none too. Its label is then a list
    (Parquet, JSON) or a text of several."""
    label_separator: str = "|"
    """What stands between the labels of such a text."""
    classes: str = ""
    """URI of a file with one class name per line, in the order of the labels. Default: the names
    found, sorted."""

    @property
    def separator(self) -> str:
        """Between the labels of one image; empty where each has one."""
        return self.label_separator if self.task == MULTILABEL else ""


@dataclass(frozen=True, kw_only=True)
class Packing(SourceColumns):
    """How a source is read and what is made of it."""

    eval_fraction: float = 0.2
    """Share of every class for the eval split, 0 to 1. Not used where the source has one."""
    test_fraction: float = 0.0
    """Share of every class for the test split, 0 to 1. Not used where the source has one."""
    seed: int = 0
    """Seeds the split and the shuffle."""
    max_side: int | None = None
    """px: larger photographs are encoded again (JPEG, quality 92) with this longer side."""
    duplicates: Literal["move", "refuse"] = "move"
    """Images equal byte for byte that would be in different splits: `move` them to the same one
    (the first of train, eval, test), or `refuse`."""
    in_place: bool = False
    """Leave Parquet shards in Hugging Face's layout where they are and write only a manifest
    beside them. Nothing is shuffled, split, looked at or set aside."""

    def __post_init__(self) -> None:
        """Raises DatasetError for values that cannot be."""
        low, high = self.eval_fraction, self.test_fraction
        if not (0 < low < 1 and 0 <= high and low + high < 1):
            raise DatasetError(
                f"eval-fraction {low:g} and test-fraction {high:g} leave no train images: "
                "expected 0 < eval-fraction, and a sum below 1"
            )
        if self.max_side is not None and self.max_side < 32:
            raise DatasetError(f"max-side is {self.max_side} px: expected 32 or more")
        if self.task not in TASKS:
            raise DatasetError(f"task is {self.task!r}: expected {' or '.join(TASKS)}")
        if self.task == MULTILABEL and not self.label_separator:
            raise DatasetError(
                "label-separator is empty: expected what stands between the labels of a text; "
                "lists of labels need none, so leave it as it is"
            )
        if self.duplicates not in ("move", "refuse"):
            raise DatasetError(f"duplicates is {self.duplicates!r}: expected move or refuse")
