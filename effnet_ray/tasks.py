"""What an image's label is: one class, or any number of them. Pure."""

MULTICLASS, MULTILABEL = "multiclass", "multilabel"
TASKS = (MULTICLASS, MULTILABEL)
