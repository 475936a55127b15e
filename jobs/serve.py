"""Serve a release over HTTP. `--help` lists the flags."""

from effnet_ray.cli.main import main
from effnet_ray.cli.serve import serve_job

if __name__ == "__main__":
    raise SystemExit(main(serve_job))
