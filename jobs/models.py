"""List, show, promote, verify and delete releases of a model store. `--help` says how."""

from effnet_ray.cli.main import main
from effnet_ray.cli.models import models_job

if __name__ == "__main__":
    raise SystemExit(main(models_job))
