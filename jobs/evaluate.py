"""Evaluate a release on a split of a packed data set. `--help` lists the flags."""

from effnet_ray.cli.main import load_job, main

if __name__ == "__main__":
    raise SystemExit(main(load_job("evaluate")))
