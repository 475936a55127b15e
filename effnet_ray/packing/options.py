"""Options of packing: how a source is read, and how the data set is made."""

from dataclasses import dataclass
from typing import Literal

from effnet_ray.errors import DatasetError
from effnet_ray.recipe import MULTILABEL, TASKS

MIN_SIDE = 32
"""px: the smallest `max_side`, as no network takes smaller images (`Recipe.image_size`)."""


@dataclass(frozen=True, kw_only=True)
class SourceColumns:
    """Names of a table's columns, of Parquet columns, or of keys in a WebDataset's JSON."""

    path_column: str = "path"
    """Column of a table with each image's URI, or its path relative to the table."""
    label_column: str = "label"
    """Column with the class, as a name or a number."""
    group_column: str = ""
    """Column with a group, such as the patient, product or camera. Images of one group stay in
    one split. Default: no groups."""
    split_column: str = ""
    """Column with the split: train, eval (or val, validation) or test. Default: the split in the
    names of folders or files, if they contain one."""
    keep_columns: str = ""
    """Other columns to keep in images.parquet, separated by commas, such as camera,site: `evaluate
    --group-column` reads them. The column of groups is kept in any case."""
    task: Literal["multiclass", "multilabel"] = "multiclass"
    """`multiclass`: each image has one class. `multilabel`: each image has any number of classes,
    as a list (Parquet, JSON) or as text with separators."""
    label_separator: str = "|"
    """Separator between the labels in a multilabel text."""
    classes: str = ""
    """URI of a file with one class name per line; the first line is class 0. Default: the class
    names of the source, sorted."""
    corrections: str = ""
    """URI of a CSV with the columns `path` and `decision`, as `evaluate --corrections` writes it:
    images to drop, to keep, or to give another class (relabel:CLASS)."""
    merge_similar_classes: bool = False
    """Make one class of those whose names differ in upper and lower case or in blanks only."""
    allow_empty_classes: bool = False
    """Accept classes that no image trains: the source has them in its eval or test split only, or
    none of their train images can be read. Leave out classes whose folders are empty."""

    @property
    def kept(self) -> list[str]:
        """The columns to keep, without that of groups."""
        names = (name.strip() for name in self.keep_columns.split(","))
        return [name for name in dict.fromkeys(names) if name and name != self.group_column]

    @property
    def separator(self) -> str:
        """Separator between the labels of one image; empty if each has one label."""
        return self.label_separator if self.task == MULTILABEL else ""


@dataclass(frozen=True, kw_only=True)
class Packing(SourceColumns):
    """How a source is read, and how the data set is made."""

    eval_fraction: float = 0.2
    """Fraction of each class for the eval split, 0 to 1. Ignored if the source has an eval
    split."""
    test_fraction: float = 0.0
    """Fraction of each class for the test split, 0 to 1. Ignored if the source has a test
    split."""
    seed: int = 0
    """Random seed of the split and the shuffle."""
    max_side: int | None = None
    """Downscale images whose longer side exceeds this, px (JPEG, quality 92). Default: keep the
    original files."""
    duplicates: Literal["move", "refuse"] = "move"
    """For byte-identical images in different splits. `move`: all go to train if any is there, else
    to eval; `refuse`: stop."""
    in_place: bool = False
    """Write only a manifest beside Parquet shards in Hugging Face's image layout, without copying
    them. Images are not shuffled, split, checked or quarantined."""

    def __post_init__(self) -> None:
        """Raise DatasetError for invalid values."""
        for_eval, for_test = self.eval_fraction, self.test_fraction
        if not 0 < for_eval < 1:
            raise DatasetError(f"eval-fraction is {for_eval:g}: expected above 0, below 1")
        if not 0 <= for_test < 1:
            raise DatasetError(f"test-fraction is {for_test:g}: expected 0 or more, below 1")
        if for_eval + for_test >= 1:
            raise DatasetError(
                f"eval-fraction {for_eval:g} and test-fraction {for_test:g} leave no train "
                "images: expected a sum below 1"
            )
        if self.seed < 0:
            raise DatasetError(f"seed is {self.seed}: expected 0 or more")
        if self.max_side is not None and self.max_side < MIN_SIDE:
            raise DatasetError(f"max-side is {self.max_side} px: expected {MIN_SIDE} or more")
        if self.task not in TASKS:
            raise DatasetError(f"task is {self.task!r}: expected {' or '.join(TASKS)}")
        if self.task == MULTILABEL and not self.label_separator:
            raise DatasetError(
                "label-separator is empty: expected the separator between labels in a text; if "
                "labels are lists, omit the flag"
            )
        if self.corrections and self.in_place:
            raise DatasetError("--in-place leaves the shards as they are: omit --corrections")
        if self.keep_columns and self.in_place:
            raise DatasetError("--in-place writes no images.parquet: omit --keep-columns")
        if self.duplicates not in ("move", "refuse"):
            raise DatasetError(f"duplicates is {self.duplicates!r}: expected move or refuse")
