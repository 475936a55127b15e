"""Judge a release by a split's images, and look at its mistakes. `--help` says how."""

from effnet_ray.cli.evaluate import evaluate_job
from effnet_ray.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(evaluate_job))
