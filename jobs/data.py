"""Show what is in a data set, with a page of pictures. `--help` lists the flags."""

from effnet_ray.cli.data import data_job
from effnet_ray.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(data_job))
