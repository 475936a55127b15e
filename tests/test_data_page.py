"""The page of a data set: complete, inert, and readable on a phone."""

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.pages import LONG, NASTY, Page, browser, measured
from support.sources import write_hugging_face

from effnet_ray.cli.data import data_job
from effnet_ray.cli.pack import pack_job
from effnet_ray.data import manifest as manifests
from effnet_ray.data.decode import decode
from effnet_ray.data.row_group import RowGroup
from effnet_ray.data.views import eval_view
from effnet_ray.errors import DatasetError, RecipeError
from effnet_ray.packing import image_index
from effnet_ray.packing.options import Packing
from effnet_ray.packing.pack import pack
from effnet_ray.reporting import data_page
from effnet_ray.variants import SQUASH, VARIANTS, InputSpec

SPEC = InputSpec(resolution=64, crop=0.875)
SAFE_NASTY = NASTY.replace("/", "|")
"""As a file's name."""


@pytest.fixture(scope="module")
def source(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs with every kind of trouble."""
    folder = tmp_path_factory.mktemp("troubled") / "photos"
    shutil.copytree(photographs, folder)
    roof = sorted((folder / "roof").iterdir())
    shutil.copy(roof[0], folder / "garden/conflict.jpg")
    shutil.copy(roof[1], folder / "roof/again.jpg")
    shrunk = Image.open(roof[2]).resize((80, 60), Image.Resampling.LANCZOS)
    shrunk.save(folder / "roof/near.png")
    Image.open(roof[3]).resize((600, 20)).save(folder / "roof/panorama.png")
    (folder / "roof" / f"{SAFE_NASTY}.png").write_bytes(b"\x89PNG\r\n\x1a\n but no picture")
    (folder / "roof" / f"{LONG}.txt").write_text("notes")
    named = folder / SAFE_NASTY
    named.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (30, 30, 3), np.uint8)
        Image.fromarray(pixels).save(named / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def data(source: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("packed") / "data")
    pack(str(source), out, Packing(seed=3))
    return out


def test_the_index_says_where_every_image_is_and_how_large(data: str) -> None:
    manifest = manifests.load(data)
    rows = image_index.read_image_index(data).to_pylist()
    assert len(rows) == sum(manifest.images.values())
    for row in rows[::3]:
        group = RowGroup(manifest, data, row["split"], row["row_group"], limited=False)
        record = group.record(row["row"])
        assert (record.path, record.label) == (row["path"], row["label"])
        assert isinstance(record.data, bytes) and len(record.data) == row["bytes"]
        pixels = decode(record.data)
        assert pixels.shape[:2] == (row["height"], row["width"])
        assert abs(pixels.mean() - row["brightness"]) < 25


def test_the_page_loads_nothing_and_runs_nothing(data: str) -> None:
    page = Page(data_page.html(data, SPEC))
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert page.text.count(SAFE_NASTY) >= 2  # a class and a quarantined file, inert


def test_the_page_has_all_that_may_need_attention(data: str, source: Path) -> None:
    text = " ".join(Page(data_page.html(data, SPEC)).text.split())
    for part in (
        "files seen34",
        "packed32",
        "quarantined1",
        "set aside1",
        "label conflicts1",
        "Label conflicts",
        "garden/conflict.jpg",
        "roof/again.jpg",
        "roof/panorama.png",
        "600×20 px",
        "64×64 px, centre crop 0.875",
        f"{LONG}.txt",
        f"source{source}",
    ):
        assert part in text, part
    assert text.index("roof/panorama.png") < text.index("Label conflicts")


def test_what_is_cut_away_is_what_the_view_lacks(data: str) -> None:
    index = image_index.read_image_index(data)
    for spec in (SPEC, InputSpec(resolution=64, crop=0.9, crop_mode=SQUASH)):
        shares = data_page._cut_away(index, spec)
        for row in (0, 5, int(np.argmax(index["width"].to_numpy()))):
            height, width = (index[name][row].as_py() for name in ("height", "width"))
            ramp = np.zeros((height, width, 3), np.uint8)
            ramp[..., 0] = np.linspace(0, 255, width)[None, :]
            ramp[..., 1] = np.linspace(0, 255, height)[:, None]
            view = eval_view(ramp, spec).astype(float)
            seen = np.prod([np.ptp(view[..., channel]) / 255 for channel in (0, 1)])
            assert abs(1 - seen - shares[row]) < 0.05


def test_similar_pictures_of_two_classes_are_no_label_conflict(
    photographs: Path, tmp_path: Path
) -> None:
    shutil.copytree(photographs, tmp_path / "source")
    image = Image.open(min((photographs / "roof").iterdir()))
    image.resize((80, 60), Image.Resampling.LANCZOS).save(tmp_path / "source/garden/alike.png")
    pack(str(tmp_path / "source"), str(tmp_path / "out"))
    text = Page(data_page.html(str(tmp_path / "out"), SPEC)).text
    assert "Nearly identical, different labels" in text and "Label conflicts" not in text


def test_many_classes_are_the_largest_and_the_smallest(tmp_path: Path) -> None:
    for number in range(60):
        folder = tmp_path / "source" / f"class {number:02d}"
        folder.mkdir(parents=True)
        for index in range(2 + number // 10):
            pixels = np.random.default_rng(100 * number + index).integers(0, 255, (8, 8, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    pack(str(tmp_path / "source"), str(tmp_path / "out"))
    page = data_page.html(str(tmp_path / "out"), SPEC)
    assert "The largest and the smallest 20 of 60" in Page(page).text
    rows = re.findall(r'<td class="name">class (\d+)</td>', page.decode())
    assert len(rows) == 40 and rows[0] > "49" and rows[-1] < "10"
    assert len(page) < 500_000


def test_a_multilabel_data_set_has_a_page(photographs: Path, tmp_path: Path) -> None:
    files = sorted(photographs.rglob("*.*"))
    lines = [f"{path},{path.parent.name}|any" for path in files]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *lines]))
    packing = Packing(task="multilabel")
    pack(str(tmp_path / "table.csv"), str(tmp_path / "out"), packing)
    assert "any" in Page(data_page.html(str(tmp_path / "out"), SPEC)).text


def test_an_image_that_was_damaged_since_is_named_without_a_picture(
    data: str, tmp_path: Path, flip_byte: Callable[[Path], None]
) -> None:
    shutil.copytree(data, tmp_path / "data")
    flip_byte(tmp_path / "data/train/00000.parquet")
    assert "not readable" in Page(data_page.html(str(tmp_path / "data"), SPEC)).text


@pytest.fixture
def flip_byte() -> Callable[[Path], None]:
    """Changes a byte of the first image in a shard."""

    def flip(shard: Path) -> None:
        image = pq.read_table(shard)["image"][0].as_py()["bytes"]
        changed = bytearray(image)
        changed[len(image) // 2] ^= 1
        # Parquet's statistics may contain it too.
        shard.write_bytes(shard.read_bytes().replace(image, bytes(changed)))

    return flip


def test_packing_writes_the_page_and_data_writes_it_for_a_network(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "data")
    line = pack_job(["--source", str(source), "--out", out])
    assert line["page"] == f"{out}/report.html" and "224×224" in Path(line["page"]).read_text()
    written = Path(line["page"]).stat().st_mtime_ns
    pack_job(["--source", str(source), "--out", out])
    assert Path(line["page"]).stat().st_mtime_ns == written
    page = str(tmp_path / "b3.html")
    line = data_job([out, "--page", page, "--variant", "b3", "--image-size", "256"])
    assert line["page"] == page and line["label_conflicts"] == 1 and line["set_aside"] == 1
    assert f"256×256 px, centre crop {VARIANTS['b3'].input_spec('best').crop:g}" in Path(
        page
    ).read_text().replace("\n", " ")
    assert "label conflicts" in capfd.readouterr().err


def test_data_takes_images(source: Path, tmp_path: Path) -> None:
    line = data_job([str(source), "--runs", str(tmp_path)])
    assert Path(line["page"]).parent == Path(line["data"])
    assert "<title>photos</title>" in Path(line["page"]).read_text()


def test_a_data_set_without_an_index_is_refused_and_packing_it_again_is_not(
    source: Path, data: str, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / image_index.NAME).unlink()
    with pytest.raises(DatasetError, match="pack its images again"):
        data_job([str(tmp_path / "data")])
    line = pack_job(["--source", str(source), "--out", str(tmp_path / "data"), "--seed", "3"])
    assert line["page"] is None


def test_shards_in_place_have_no_page(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    for number, path in enumerate(sorted(photographs.rglob("*.*"), key=lambda p: p.name)):
        target = tmp_path / "mixed" / path.parent.name / f"{number:02d}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    mixed, hf = tmp_path / "mixed", tmp_path / "hf"
    data = write_hugging_face(mixed, hf, splits=("train", "validation"), group=64)
    pack(data, data, Packing(in_place=True))
    with pytest.raises(DatasetError, match="an earlier version packed it, or --in-place"):
        data_job([data])


def test_a_small_picture_is_enlarged_without_smoothing() -> None:
    from base64 import b64decode

    from effnet_ray.reporting.data_pictures import to_jpeg

    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    image = np.asarray(Image.open(io.BytesIO(b64decode(to_jpeg(pixels)))))
    assert image.shape[:2] == (128, 128) and image[:60].min() > 240 and image[68:].max() < 15


@browser
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_all_of_it_without_scrolling_sideways(
    data: str, width: int, tmp_path: Path
) -> None:
    wide, title, shown, images, plots = measured(data_page.html(data, SPEC), width, tmp_path)
    assert int(wide) <= width
    assert title == "photos" and int(shown) == int(images) > 30 and int(plots) == 3


def test_a_page_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    for page in ("s3://x.html", str(tmp_path), "page.txt"):
        with pytest.raises(RecipeError, match="page is"):
            data_job([str(tmp_path / "nothing"), "--page", page])
