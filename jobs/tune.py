"""Find the best EfficientNet for its cost on a packed data set. `--help` lists the flags."""

from effnet_ray.cli.main import main
from effnet_ray.cli.tune import tune_job

if __name__ == "__main__":
    raise SystemExit(main(tune_job))
