"""Check a training run or a cluster file before it costs anything. `--help` lists the flags."""

from effnet_ray.cli.main import load_job, main

if __name__ == "__main__":
    raise SystemExit(main(load_job("check")))
