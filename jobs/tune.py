"""Find the best EfficientNet for the money on a packed data set. `--help` says how."""

from effnet_ray.cli.main import main
from effnet_ray.cli.tune import tune_job

if __name__ == "__main__":
    raise SystemExit(main(tune_job))
