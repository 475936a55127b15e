"""The jobs' flags, made by tyro from the typed dataclasses, and what each job does.

Precedence: a flag, else the recipe file, else `--local`'s or the sample data's settings, else
`EFFNET_*` in the environment, else the field's default. People's output goes to stderr; the last
line of stdout is one JSON object. Exit 2 for a person's mistake, 1 for a run that failed.
"""
