"""The command line: flags, and what each job does.

tyro makes the flags from typed dataclasses. Precedence: a flag, then the recipe file, then the
settings of `--local` or of the sample data, then `EFFNET_*` in the environment, then the field's
default. Progress and tables go to stderr; the last line of stdout is one JSON object. Exit code 2
means invalid input, 1 a run that failed.

Modules here import libraries inside the functions that use them, so that `--help` and refused
flags answer at once; `tests/test_startup.py` checks it.
"""
