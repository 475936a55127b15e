"""Show what is in a data set, with a page of pictures. `--help` lists the flags."""

from effnet_ray.cli.main import load_job, main

if __name__ == "__main__":
    raise SystemExit(main(load_job("data")))
