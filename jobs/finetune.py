"""Fine-tune an EfficientNet and publish a release. `--help` lists the flags."""

from effnet_ray.cli.finetune import finetune_job
from effnet_ray.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(finetune_job))
