"""Predict the classes of images with a release. `--help` lists the flags."""

from effnet_ray.cli.main import main
from effnet_ray.cli.predict import predict_job

if __name__ == "__main__":
    raise SystemExit(main(predict_job))
