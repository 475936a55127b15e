"""Check a training run or a cluster file before it costs anything. `--help` lists the flags."""

from effnet_ray.cli.check import check_job
from effnet_ray.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(check_job))
