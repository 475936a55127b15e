"""Manage the releases of a model store. `--help` lists the flags."""

from effnet_ray.cli.main import main
from effnet_ray.cli.models import models_job

if __name__ == "__main__":
    raise SystemExit(main(models_job))
