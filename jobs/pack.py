"""Pack labelled images into Parquet shards and a manifest. `--help` lists the flags."""

from effnet_ray.cli.main import main
from effnet_ray.cli.pack import pack_job

if __name__ == "__main__":
    raise SystemExit(main(pack_job))
