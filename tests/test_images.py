"""Decoding and the two views: timm's eval view to the pixel, a seeded training view."""

import contextlib
import io
import random as python_random
import struct
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import simplejpeg
import timm
import torch
from hypothesis import given, settings, strategies as st
from PIL import ExifTags, Image, ImageOps
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_data_config
from timm.data.transforms import RandomResizedCropAndInterpolation

from effnet_ray.data.decode import Pixels, decode
from effnet_ray.data.image_checks import MAX_PIXELS
from effnet_ray.data.views import crop_box, eval_view, train_view
from effnet_ray.errors import ImageError
from effnet_ray.recipe import Recipe
from effnet_ray.variants import (
    CENTER,
    CROP_MODES,
    DEFAULT_VARIANTS,
    SQUASH,
    VARIANTS,
    InputSpec,
    variant,
)

PHOTOGRAPHS: list[Pixels] = load_sample_images().images
SMALL = InputSpec(resolution=64, crop=0.875)

seeds = st.integers(0, 2**32)
shapes = st.tuples(st.integers(1, 400), st.integers(1, 400))


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    """The image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def noise(shape: tuple[int, int], seed: int = 0) -> Pixels:
    """An image in which every pixel matters."""
    return np.random.default_rng(seed).integers(256, size=(*shape, 3), dtype=np.uint8)


# --- the eval view


def timm_view(pixels: Pixels, spec: InputSpec) -> np.ndarray:
    """What timm's own transform makes of an image, un-normalised, 0 to 1."""
    config = resolve_data_config(
        {
            "input_size": (3, spec.resolution, spec.resolution),
            "crop_pct": spec.crop,
            "interpolation": spec.interpolation,
            "mean": spec.mean,
            "std": spec.std,
            "crop_mode": spec.crop_mode,
        }
    )
    view = create_transform(**config, is_training=False)(Image.fromarray(pixels))
    return view.permute(1, 2, 0).numpy() * np.array(spec.std) + np.array(spec.mean)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *((family, name) for family in ("ap", "ns") for name in DEFAULT_VARIANTS),
        *(("in1k", name) for name in ("lite0", "lite3", "v2_b0", "v2_b3", "v2_s", "v2_m")),
        ("in21k_ft", "v2_b3"),
    ],
)
def test_the_eval_view_is_timms_for_every_variant(name: str, family: str) -> None:
    spec, cfg = (
        variant(name).input_spec(family),
        timm.get_pretrained_cfg(variant(name).weights_tag(family)),
    )
    config = resolve_data_config(pretrained_cfg=cfg.to_dict(), use_test_size=True)
    transform = create_transform(**config)
    for photograph in PHOTOGRAPHS:
        view = transform(Image.fromarray(photograph)).permute(1, 2, 0).numpy()
        off = np.abs(
            view * np.array(spec.std) + np.array(spec.mean) - eval_view(photograph, spec) / 255
        )
        assert off.mean() <= 1 / 255 and off.max() <= 2 / 255


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@given(shapes, st.integers(32, 96), st.floats(0.5, 1), st.sampled_from(["bicubic", "bilinear"]))
def test_the_eval_view_is_timms_for_any_shape_and_spec(
    crop_mode: str, shape: tuple[int, int], resolution: int, crop: float, interpolation: str
) -> None:
    spec = InputSpec(
        resolution=resolution, crop=crop, interpolation=interpolation, crop_mode=crop_mode
    )
    view = eval_view(noise(shape), spec)
    assert view.shape == (resolution, resolution, 3) and view.dtype == np.uint8
    assert np.abs(timm_view(noise(shape), spec) - view / 255).max() <= 1 / 255


def test_no_shape_is_too_long_to_be_squashed() -> None:
    line, squashed = noise((1, 10_000)), replace(SMALL, resolution=512, crop_mode=SQUASH)
    with pytest.raises(ImageError, match="too long and narrow: 10000×1 px, resized to 585 px"):
        eval_view(line, replace(squashed, crop_mode=CENTER))
    assert eval_view(line, squashed).shape == (512, 512, 3)


# --- the training view


PICTURES = [encoded(Image.fromarray(photograph)) for photograph in PHOTOGRAPHS]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@given(shape=shapes, seed=seeds)
def test_the_training_view_is_a_function_of_its_generator(
    kind: str, shape: tuple[int, int], seed: int
) -> None:
    views = [
        train_view(encoded(Image.fromarray(noise(shape)), kind), SMALL, Recipe(), Random(seed))
        for _ in range(2)
    ]
    assert np.array_equal(views[0], views[1])
    assert views[0].shape == (64, 64, 3) and views[0].dtype == np.uint8
    assert views[0].flags.c_contiguous


@given(seeds)
def test_another_generator_is_another_view(seed: int) -> None:
    one, other = (train_view(PICTURES[0], SMALL, Recipe(), Random(s)) for s in (seed, seed + 1))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@given(shape=shapes, seed=seeds)
def test_flip_decides_only_the_mirror(kind: str, shape: tuple[int, int], seed: int) -> None:
    data = encoded(Image.fromarray(noise(shape)), kind)
    never, always = (
        train_view(data, SMALL, Recipe(flip=flip), Random(seed)) for flip in (0.0, 1.0)
    )
    assert np.array_equal(never, always[:, ::-1])


@settings(max_examples=200)
@given(shapes, st.floats(0.01, 1), st.floats(1, 4), seeds)
def test_crops_stay_inside_the_image(
    shape: tuple[int, int], scale: float, ratio: float, seed: int
) -> None:
    recipe = Recipe(crop_scale=scale, crop_ratio=ratio)
    top, left, height, width = crop_box(*shape, recipe, Random(seed))
    assert 0 <= top < top + height <= shape[0]
    assert 0 <= left < left + width <= shape[1]


@given(st.floats(0.1, 0.9), seeds)
def test_crops_have_the_area_and_aspect_asked_for(scale: float, seed: int) -> None:
    recipe = Recipe(crop_scale=scale)
    _, _, height, width = crop_box(1000, 1000, recipe, Random(seed))
    assert scale - 0.01 <= height * width / 1e6 <= 1
    assert 0.74 <= width / height <= 1.35


@pytest.mark.parametrize(
    "size", [1, 2, 3, *(pytest.param(size, marks=pytest.mark.long) for size in (5, 9))]
)
def test_a_training_view_decoded_coarsely_is_the_one_decoded_finely(size: int) -> None:
    """The same crop of a photograph, from a JPEG that is shrunk while decoding and from a PNG."""
    height, width = (length * size // 2 for length in PHOTOGRAPHS[0].shape[:2])
    large = Image.fromarray(PHOTOGRAPHS[0]).resize((width, height), Image.Resampling.BICUBIC)
    differences = []
    for seed in range(12):
        jpeg, png = (
            train_view(encoded(large, kind), SMALL, Recipe(), Random(seed)).astype(int)
            for kind in ("JPEG", "PNG")
        )
        differences.append(np.abs(jpeg - png).mean())
    assert np.mean(differences) < 12  # another crop is 40 to 80 away


def test_crops_and_flips_are_distributed_as_timms() -> None:
    """Means and spreads of 20,000 draws of each; the standard error is below a third of this."""
    recipe, draws = Recipe(crop_scale=0.08), 20_000
    random, theirs = Random(0), RandomResizedCropAndInterpolation(224)
    image = Image.new("RGB", (500, 375))
    torch.manual_seed(0)
    python_random.seed(0)
    mine = np.array([crop_box(375, 500, recipe, random) for _ in range(draws)])
    other = np.array([theirs.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(draws)])
    assert np.allclose(mine.mean(0), other.mean(0), atol=3)
    assert np.allclose(mine.std(0), other.std(0), atol=3)
    areas = [(boxes[:, 2] * boxes[:, 3] / (375 * 500)) for boxes in (mine, other)]
    assert np.allclose(*(np.quantile(a, np.linspace(0.05, 0.95, 19)) for a in areas), atol=0.02)


# --- decoding


def chunk(content: bytes) -> bytes:
    """A PNG's chunk, from its kind and content."""
    size, crc = struct.pack(">I", len(content) - 4), struct.pack(">I", zlib.crc32(content))
    return size + content + crc


def png(width: int, height: int, idat: bytes, interlace: int = 0, colour: int = 2) -> bytes:
    """A PNG of 8 bits with these compressed pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, interlace)
    chunks = (b"IHDR" + header, b"IDAT" + idat, b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, chunks))


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""
    return png(width, height, zlib.compress(b""))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_colour_mode_becomes_rgb(kind: str, mode: str) -> None:
    image = Image.fromarray(PHOTOGRAPHS[0]).resize((60, 40)).convert(mode)
    try:
        data = encoded(image, kind)
    except (OSError, ValueError):
        pytest.skip(f"no {mode} in a {kind}")
    with Image.open(io.BytesIO(data)) as stored:
        expected = np.asarray(stored.convert("RGB"))
    pixels = decode(data)
    assert pixels.shape == (40, 60, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).mean() < 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_put_upright(kind: str, orientation: int) -> None:
    image = Image.fromarray(PHOTOGRAPHS[0]).resize((60, 40))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif)
    with Image.open(buffer) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB")).astype(int)
    pixels = decode(buffer.getvalue())
    assert pixels.shape == ((60, 40, 3) if orientation > 4 else (40, 60, 3))
    assert np.abs(pixels - expected).mean() < 1


def test_sixteen_bits_of_grey_keep_their_shades() -> None:
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    pixels = decode(encoded(Image.fromarray(grey), "PNG"))
    assert np.abs(pixels[..., 0].astype(int) - (grey >> 8)).max() <= 1


def test_photographs_decode_as_pillow_decodes_them(photographs: Path) -> None:
    for path in photographs.rglob("*.*"):
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(decode(path.read_bytes()) - expected).mean() < 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@given(share=st.floats(0, 0.98))
def test_truncated_data_is_refused(kind: str, share: float) -> None:
    data = encoded(Image.fromarray(noise((50, 40))), kind)
    with pytest.raises(ImageError):
        decode(data[: int(share * len(data))])


@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM"]), st.binary()
)
def test_no_bytes_raise_anything_but_image_error(magic: bytes, rest: bytes) -> None:
    try:
        assert decode(magic + rest).shape[2] == 3
    except ImageError as error:
        assert str(error)


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.sampled_from(["JPEG", "PNG"]))
def test_a_flipped_byte_raises_nothing_but_image_error(place: float, flip: int, kind: str) -> None:
    data = bytearray(encoded(Image.fromarray(noise((50, 40))), kind))
    data[int(place * len(data))] ^= flip
    try:
        assert decode(bytes(data)).shape[2] == 3
    except ImageError as error:
        assert str(error)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "CMYK"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("BMP", {}),
        ("WEBP", {}), ("WEBP", {"lossless": True}), ("TIFF", {}),
        ("TIFF", {"compression": "jpeg"}), ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_file_cut_short_is_the_whole_picture_or_refused(
    kind: str, options: dict[str, object], mode: str
) -> None:
    """A cut may take what is no pixel, such as a GIF's trailer; no pixel may be made up."""
    buffer = io.BytesIO()
    try:
        Image.fromarray(PHOTOGRAPHS[1]).resize((60, 40)).convert(mode).save(
            buffer, kind, **options
        )
    except (OSError, ValueError):
        pytest.skip(f"no {mode} in a {kind}")
    data = buffer.getvalue()
    whole = decode(data)
    for length in [
        *range(0, len(data), max(1, len(data) // 40)),
        *range(len(data) - 9, len(data)),
    ]:
        try:
            assert np.array_equal(decode(data[:length]), whole)
        except ImageError as error:
            assert str(error)


@pytest.mark.parametrize("colour", [0, 200])
@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize("rows", [0, 1, 3, 7])
def test_a_png_with_too_few_rows_is_refused(rows: int, interlace: int, colour: int) -> None:
    data = png(16, 8, zlib.compress((b"\0" + bytes([colour]) * 48) * rows), interlace)
    for read in (decode, lambda d: train_view(d, SMALL, Recipe(), Random(0))):
        with pytest.raises(ImageError):
            read(data)


def test_a_black_png_with_all_its_rows_is_a_picture() -> None:
    assert decode(encoded(Image.new("RGB", (300, 200)), "PNG")).max() == 0
    assert decode(png(16, 8, zlib.compress((b"\0" + bytes(48)) * 8))).shape == (8, 16, 3)


def test_an_interlaced_png_is_a_picture() -> None:
    """Every pass of a 5×5 picture: 1, 1, 2, 2, 3, 6 and 10 pixels, as one grey of 90."""
    sizes = ((1, 1), (1, 1), (2, 1), (1, 2), (3, 1), (2, 3), (5, 2))
    rows = b"".join((b"\0" + b"Z" * columns) * count for columns, count in sizes)
    assert (decode(png(5, 5, zlib.compress(rows), 1, colour=0)) == 90).all()
    with pytest.raises(ImageError, match="truncated"):
        decode(png(5, 5, zlib.compress(rows[:-6]), 1, colour=0))


def test_a_png_whose_crc_differs_is_refused() -> None:
    data = bytearray(encoded(Image.fromarray(noise((9, 9))), "PNG"))
    data[data.index(b"IDAT") + 20] ^= 1
    with pytest.raises(ImageError, match="CRC"):
        decode(bytes(data))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_without_its_last_scanlines_is_refused(mode: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    Image.fromarray(noise((60, 40))).convert(mode).save(buffer, "JPEG", exif=exif)
    with pytest.raises(ImageError):
        decode(buffer.getvalue()[:-600] + b"\xff\xd9")


def test_a_tiff_whose_strips_end_early_is_refused() -> None:
    data = bytearray(encoded(Image.fromarray(noise((40, 30))), "TIFF"))
    height = data.index(struct.pack("<HHII", 257, 4, 1, 40))
    data[height + 8] = 60
    with pytest.raises(ImageError, match="40 of 60 rows"):
        decode(bytes(data))


@pytest.mark.parametrize(
    "hidden_by", [b"", b"\xff" * 9, b"\xff\xfe\x00\x0b\xff\xda\x00\x08\x03abcd"]
)
def test_a_jpeg_of_endless_scans_is_refused(hidden_by: bytes) -> None:
    """Also with fill bytes before its segments, and with a comment that looks like a scan."""
    buffer = io.BytesIO()
    Image.fromarray(noise((16, 16))).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()[:2] + hidden_by + buffer.getvalue()[2:]
    last = data.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="scans"):
        decode(data[:last] + data[last:-2] * 101 + data[-2:])


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt"])
def test_a_bomb_in_a_pngs_texts_is_bounded(kind: bytes) -> None:
    """64 MB in 64 kB: refused or left packed, and never unpacked whole."""
    whole = png(8, 8, zlib.compress((b"\0" + b"a" * 24) * 8))
    bomb = chunk(kind + b"name\0\0" + zlib.compress(bytes(64 << 20)))
    tracemalloc.start()
    with contextlib.suppress(ImageError):
        decode(whole[:33] + bomb + whole[33:])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("colorspace", ["CMYK", "YCCK"])
def test_inks_are_inverted_as_pillow_inverts_them(colorspace: str) -> None:
    image = Image.fromarray(PHOTOGRAPHS[0]).resize((60, 40)).convert("CMYK")
    data = encoded(image)
    if colorspace == "YCCK":
        data = simplejpeg.encode_jpeg(255 - np.asarray(image), colorspace="CMYK")
    assert simplejpeg.decode_jpeg_header(data)[2] == colorspace
    with Image.open(io.BytesIO(data)) as stored:
        expected = np.asarray(stored.convert("RGB")).astype(int)
    assert np.abs(decode(data) - expected).mean() < 1
    assert np.abs(expected - np.asarray(image.convert("RGB"))).mean() < 30  # no negative


def test_a_jpeg_that_only_xmp_says_is_turned_is_put_upright() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    buffer = io.BytesIO()
    Image.fromarray(PHOTOGRAPHS[0]).resize((60, 40)).save(buffer, "JPEG", xmp=xmp)
    with Image.open(buffer) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB")).astype(int)
    assert decode(buffer.getvalue()).shape == expected.shape == (60, 40, 3)
    assert np.abs(decode(buffer.getvalue()) - expected).mean() < 1


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_read(kind: str) -> None:
    frames = [Image.fromarray(p).resize((60, 40)) for p in PHOTOGRAPHS]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    with Image.open(buffer) as stored:
        assert stored.n_frames == 2
        stored.seek(0)
        expected = np.asarray(stored.convert("RGB"))
    assert np.array_equal(decode(buffer.getvalue()), expected)


@pytest.mark.filterwarnings("ignore:Palette images")
def test_a_palettes_transparency_is_dropped_as_pillow_drops_it() -> None:
    image = Image.fromarray(PHOTOGRAPHS[0]).resize((60, 40)).convert("P")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes(range(256)))
    with Image.open(buffer) as stored:
        expected = np.asarray(stored.convert("RGB"))
    assert np.array_equal(decode(buffer.getvalue()), expected)


@pytest.mark.parametrize("data", [b"<!DOCTYPE html><html></html>", b"%PDF-1.7", b"%!PS-Adobe"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode(data)


def webp_bomb(kind: bytes) -> bytes:
    """A WebP of a few bytes that claims 16,383 × 16,383 px."""
    side = 16_382
    head = {
        b"VP8X": bytes(4) + side.to_bytes(3, "little") * 2,
        b"VP8L": b"/" + (side | side << 14).to_bytes(4, "little") + bytes(5),
        b"VP8 ": bytes(3) + b"\x9d\x01*" + struct.pack("<HH", side + 1, side + 1),
    }[kind]
    return b"RIFF" + struct.pack("<I", 22) + b"WEBP" + kind + struct.pack("<I", 10) + head


def jpeg_bomb(width: int, height: int) -> bytes:
    """A JPEG of a few bytes that claims a size."""
    data = bytearray(encoded(Image.new("RGB", (8, 8))))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


BOMBS = [
    png_bomb(20_000, 20_000),
    jpeg_bomb(65_000, 65_000),
    *(webp_bomb(kind) for kind in (b"VP8X", b"VP8L", b"VP8 ")),
]


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_header_bomb_is_refused(bomb: bytes) -> None:
    with pytest.raises(ImageError, match=r"px is more than|exceeds limit"):
        decode(bomb)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("make", [png_bomb, jpeg_bomb])
def test_one_row_of_pixels_too_many_is_refused(make: type[bytes]) -> None:
    with pytest.raises(ImageError, match=r"10000×8948 px is more than"):
        decode(make(10_000, MAX_PIXELS // 10_000 + 1))


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1), (20, 40_000)])
def test_what_is_too_narrow_to_be_enlarged_is_refused(shape: tuple[int, int]) -> None:
    spec = VARIANTS["b0"].input_spec()
    with pytest.raises(ImageError, match="too long and narrow"):
        eval_view(np.zeros((*shape, 3), np.uint8), spec)
