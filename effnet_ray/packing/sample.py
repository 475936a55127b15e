"""The built-in sample data set: 1,797 scans of handwritten digits that scikit-learn ships.

Real images without a download (E. Alpaydin and C. Kaynak, UCI Optical Recognition of Handwritten
Digits; 8×8 px, 17 grey levels). They are written as PNGs into class folders and packed like any
other images.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from effnet_ray.data.manifest import Manifest
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from effnet_ray.storage.temporary import temporary_folder


def write_images(folder: Path) -> None:
    """Write the digits as `folder`/<digit>/<number>.png."""
    from sklearn.datasets import load_digits  # the import takes a second

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        target = folder / str(label) / f"{number:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8)).save(target)


def pack_sample(out: str) -> Manifest:
    """Pack the digits into `out`, a fifth of them into the eval split."""
    with temporary_folder("digits") as folder:
        write_images(folder)
        return pack(str(folder), out, Packing(eval_fraction=0.2))
