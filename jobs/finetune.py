"""Fine-tune an EfficientNet and publish a release. `--help` lists the flags."""

from effnet_ray.cli.main import load_job, main

if __name__ == "__main__":
    raise SystemExit(main(load_job("finetune")))
