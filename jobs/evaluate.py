"""Evaluate a release on a split of a packed data set. `--help` lists the flags."""

from effnet_ray.cli.evaluate import evaluate_job
from effnet_ray.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(evaluate_job))
