"""Say of every image in a bucket what it shows. `--help` says how."""

from effnet_ray.cli.main import main
from effnet_ray.cli.predict import predict_job

if __name__ == "__main__":
    raise SystemExit(main(predict_job))
