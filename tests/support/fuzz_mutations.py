"""Mutations of files: of any bytes, and of what the formats that the project reads hold."""

import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from support.poison import edit_length, flip_bits, insert, overwrite, splice, truncate

Random = np.random.Generator
MARK = "\ue000"
"""Stands for a text that JSON's writer could not write."""
DEEP, TWICE = "[" * 100_000, '{"a": 1, "a": 2}'
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**63, 2**200, 1.5, 1e308, float("nan"), float("inf"), "", "x",
    "../../out", "/etc/passwd", "file:///etc/passwd", "a\0b", "\ud800", "a\nb", "é" * 300,
    "x" * 100_000, [], {}, [[]], [None], {"a": {}}, {"": 0}, list(range(3000)), "NaN", "1",
)  # fmt: skip
NAMES = (
    "../../out/x",
    "/tmp/x",
    "..",
    ".",
    "",
    "a/../../x",
    "a\0b",
    "x" * 300,
    "\\x",
    "con\n",
    "é",
)


def pick(random: Random, choices: Any) -> Any:
    return choices[int(random.integers(len(choices)))]


def mutate(name: str, data: bytes, random: Random) -> bytes:
    """A file's content after one to three mutations that fit its name, or of its bytes."""
    change = next((each for suffix, each in BY_SUFFIX if name.endswith(suffix)), None)
    for _ in range(int(random.integers(1, 4))):
        if change and random.random() < 0.8:
            try:
                data = change(data, random)
                continue
            except Exception:  # it is damaged already
                pass
        data = mutate_bytes(data, random)
    return data


def mutate_bytes(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    if changed:
        pick(random, (flip_bits, overwrite, truncate, splice, insert, edit_length))(
            changed, random
        )
    return bytes(changed)


def mutate_text(data: bytes, random: Random) -> bytes:
    """Lines and words repeated, removed and replaced: for YAML and tables."""
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    at = int(random.integers(len(lines)))
    ways: tuple[Callable[[str], str], ...] = (
        lambda line: "", lambda line: f"{line}\n{line}", lambda line: line * 2,
        lambda line: f"  {line}", lambda line: line.strip(), lambda line: line.replace(" ", "\t"),
        lambda line: line.rpartition(":")[0] + ": " + str(pick(random, VALUES)),
        lambda line: line.partition(",")[0] + "," + str(pick(random, NAMES)),
        lambda line: str(pick(random, NAMES)) + "," + line.partition(",")[2],
        lambda line: line.partition(",")[2], lambda line: f'"{line}', lambda line: f"\ufeff{line}",
        lambda line: line + ": &a [*a]", lambda line: line.replace(",", ";"),
        lambda line: "," * 5000, lambda line: "x" * 200_000, lambda line: line + "\r",
        lambda line: line.swapcase(), lambda line: f"- {line}", lambda line: line + ": !!int x",
    )  # fmt: skip
    lines[at] = pick(random, ways)(lines[at])
    return "\n".join(lines).encode(
        "utf-8", "surrogatepass" if random.random() < 0.1 else "replace"
    )


# --- JSON


def mutate_json(data: bytes, random: Random) -> bytes:
    content = [json.loads(data)]
    mutate_value(content, random)
    text = json.dumps(content[0], ensure_ascii=bool(random.integers(2)), indent=1)
    text = text.replace(f'"{MARK}"', pick(random, (DEEP, TWICE, "1e999", "-0", "1" * 5000)))
    return text.encode("utf-8", "surrogatepass")


def mutate_value(content: list[Any], random: Random) -> None:
    """Change one place of the value in a list of one."""
    places = list(places_in(content))
    holder, key = pick(random, places)
    way = int(random.integers(6))
    if way == 0 and isinstance(holder, dict):
        del holder[key]
    elif way == 1 and isinstance(holder, dict):
        holder[str(pick(random, (*VALUES, "path", "files", key)))] = holder[key]
    elif way == 2 and isinstance(holder[key], list) and holder[key]:
        holder[key] *= int(random.integers(4))
    elif way == 3:
        other, name = pick(random, places)
        holder[key] = json.loads(json.dumps(other[name]))
    elif way == 4:
        holder[key] = MARK
    else:
        holder[key] = pick(random, VALUES)


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (list or object, index or key) inside a value."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], list | dict):
            yield from places_in(value[key])


# --- Parquet


def mutate_parquet(data: bytes, random: Random) -> bytes:
    """Other columns, types, values and metadata; or altered bytes of the footer."""
    if random.random() < 0.2:
        footer = int.from_bytes(data[-8:-4], "little")
        start = max(0, len(data) - 8 - footer)
        return data[:start] + mutate_bytes(data[start:-8], random) + data[-8:]
    table = pq.read_table(io.BytesIO(data))
    table = pick(random, TABLE_WAYS)(table, random)
    sink = io.BytesIO()
    groups = pick(random, (1, 3, 64, 10**6))
    codec = pick(random, ("none", "zstd", "gzip"))
    pq.write_table(table, sink, row_group_size=groups, compression=codec,
                   use_dictionary=bool(random.integers(2)), write_page_checksum=True)  # fmt: skip
    return sink.getvalue()


def without_column(table: pa.Table, random: Random) -> pa.Table:
    return table.drop_columns(pick(random, table.column_names))


def renamed_column(table: pa.Table, random: Random) -> pa.Table:
    names = list(table.column_names)
    names[int(random.integers(len(names)))] = str(
        pick(random, (*names, "", "a.b", "é", "x" * 999))
    )
    return table.rename_columns(names)


def other_column(table: pa.Table, random: Random) -> pa.Table:
    """A column of another type or of other values."""
    at, count = int(random.integers(table.num_columns)), len(table)
    arrays = (
        pa.nulls(count), pa.nulls(count, pa.string()), pa.array(["x"] * count),
        pa.array([1.5] * count), pa.array([float("nan")] * count), pa.array([2**40] * count),
        pa.array([-1] * count), pa.array([[0]] * count), pa.array([[]] * count),
        pa.array([{"bytes": b"", "path": None}] * count), pa.array([{"a": 1}] * count),
        pa.array([{"bytes": "x", "path": 1}] * count), pa.array([None, *["x"] * count][:count]),
        pa.array([b"\xff\x00"] * count), pa.array([True] * count), pa.array([10**30] * count),
        pa.array(["x"] * count).dictionary_encode(), pa.array([0] * count, pa.timestamp("us")),
        pa.array([[("a", 1)]] * count, pa.map_(pa.string(), pa.int64())),
        pa.array([b"x" * 16] * count, pa.uuid()), pa.array(["x" * 100_000] * count),
        pa.array([0] * count, pa.int8()), pa.array([{"bytes": None, "path": "x"}] * count),
    )  # fmt: skip
    name = table.column_names[at]
    return table.set_column(at, name, pick(random, arrays))


def other_rows(table: pa.Table, random: Random) -> pa.Table:
    ways = (
        lambda: table.slice(0, 0), lambda: table.slice(1), lambda: pa.concat_tables([table] * 3),
        lambda: table.take(random.permutation(len(table))), lambda: table.slice(0, 1),
        lambda: pa.concat_tables([table.slice(0, 1)] * 1000),
    )  # fmt: skip
    return pick(random, ways)()


def other_metadata(table: pa.Table, random: Random) -> pa.Table:
    metadata = dict(table.schema.metadata or {})
    key = pick(random, [*metadata, b"huggingface", b"bad", b"shard", b"plan", b"pandas"])
    old = metadata.get(key, b"{}")
    metadata[key] = pick(
        random, (b"", b"x", b"-1", b"[]", DEEP.encode(), mutate_bytes(old, random))
    )
    return table.replace_schema_metadata(metadata)


def extension_column(table: pa.Table, random: Random) -> pa.Table:
    """A column of a type that Ray Data registers, with a pickle as its values or parameters."""
    at, pickled = int(random.integers(table.num_columns)), b"cposix\nsystem\n(S'true'\ntR."
    name = pick(random, (b"ray.data.arrow_pickled_object", b"ray.data.arrow_tensor",
                         b"ray.data.arrow_tensor_v2", b"ray.data.arrow_variable_shaped_tensor",
                         b"arrow.json", b"arrow.fixed_shape_tensor"))  # fmt: skip
    storage: pa.Array = pa.array([pickled] * len(table), pa.large_binary())
    if b"tensor" in name:
        storage = pa.array([[0, 1]] * len(table), pa.list_(pa.int64(), 2))
    metadata = {b"ARROW:extension:name": name,
                b"ARROW:extension:metadata": pick(random, (pickled, b"[2]", b"", b"{}")),
                }  # fmt: skip
    field = pa.field(table.column_names[at], storage.type, metadata=metadata)
    if table.column_names[at] == "image":
        field = pa.field("bytes", storage.type, metadata=metadata)
        paths, of_path = pa.array(["x"] * len(table)), pa.field("path", pa.string())
        storage = pa.StructArray.from_arrays([storage, paths], fields=[field, of_path])
        field = pa.field("image", storage.type)
    return table.set_column(at, field, storage)


TABLE_WAYS = (
    without_column, renamed_column, other_column, other_column, other_column, other_rows,
    other_metadata, extension_column, extension_column,
)  # fmt: skip


# --- Safetensors


def mutate_safetensors(data: bytes, random: Random) -> bytes:
    """Another header: names, types, shapes, offsets, its length; or other numbers."""
    length = struct.unpack("<Q", data[:8])[0]
    if random.random() < 0.2:
        return struct.pack("<Q", int(pick(random, (0, 1, 2**31, 2**63, len(data))))) + data[8:]
    if random.random() < 0.2:
        return data[: 8 + length] + np.full(len(data[8 + length :]), 255, np.uint8).tobytes()
    header = mutate_json(data[8 : 8 + length], random)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


# --- archives


def mutate_tar(data: bytes, random: Random) -> bytes:
    """Members with other names, types, sizes and contents."""
    whole = io.BytesIO(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    sink = io.BytesIO()
    with tarfile.open(fileobj=whole) as old, tarfile.open(fileobj=sink, mode="w") as new:
        members = old.getmembers()
        chosen = int(random.integers(len(members)))
        for number, member in enumerate(members):
            file = old.extractfile(member)
            content = file.read() if file else b""
            if number == chosen:
                content = pick(random, MEMBER_WAYS)(member, content, random)
            member.size = len(content) if member.isreg() else 0
            new.addfile(member, io.BytesIO(content))
            if number == chosen and random.random() < 0.2:
                new.addfile(member, io.BytesIO(content))
    plain = sink.getvalue()
    if random.random() < 0.3:
        plain = with_size(plain, random)
    return gzip.compress(plain, 1) if data[:2] == b"\x1f\x8b" else plain


def other_name(member: tarfile.TarInfo, content: bytes, random: Random) -> bytes:
    member.name = str(pick(random, NAMES)) + pick(random, ("", ".jpg", ".cls", ".json"))
    return content


def other_type(member: tarfile.TarInfo, content: bytes, random: Random) -> bytes:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
             tarfile.DIRTYPE, tarfile.CONTTYPE, b"Z")  # fmt: skip
    member.type, member.linkname = pick(random, kinds), str(pick(random, NAMES[:6]))
    member.devmajor, member.devminor = 1, 5
    return content


def other_content(member: tarfile.TarInfo, content: bytes, random: Random) -> bytes:
    if member.name.endswith("json"):
        return mutate_json(content, random)
    return pick(random, (b"", b"\xff\xfe", b"0" * 10**6, mutate_bytes(content, random)))


def other_headers(member: tarfile.TarInfo, content: bytes, random: Random) -> bytes:
    """Extended headers, whose values win over those in the member's own."""
    key = pick(
        random, ("path", "size", "linkpath", "GNU.sparse.map", "GNU.sparse.realsize", "mtime")
    )
    member.pax_headers = {key: str(pick(random, (*NAMES, -1, 2**62, "1,2,3")))}
    return content


MEMBER_WAYS = (other_name, other_type, other_content, other_content, other_headers)


def with_size(tar: bytes, random: Random) -> bytes:
    """Another size in a header whose checksum is right."""
    at = 512 * int(random.integers(max(1, len(tar) // 512)))
    header = bytearray(tar[at : at + 512])
    if header[257:262] != b"ustar":
        return tar
    header[124:136] = pick(random, (b"77777777777\0", b"00000000001\0", b"-0000000001\0",
                                    b"\x80" + b"\0" * 3 + b"\x7f" * 8, b"\xff" * 12))  # fmt: skip
    header[156:157] = pick(random, (header[156:157], b"L", b"K", b"x", b"g", b"S"))
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return tar[:at] + bytes(header) + tar[at + 512 :]


def mutate_zip(data: bytes, random: Random) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(sink, "w") as new:
        for name in old.namelist():
            info = zipfile.ZipInfo(str(pick(random, (*NAMES, name))) or "x")
            info.external_attr = pick(random, (0, 0o120777 << 16))
            new.writestr(info, old.read(name), zipfile.ZIP_DEFLATED)
    return sink.getvalue()


BY_SUFFIX: tuple[tuple[str, Callable[[bytes, Random], bytes]], ...] = (
    (".json", mutate_json), (".parquet", mutate_parquet), (".safetensors", mutate_safetensors),
    (".tar", mutate_tar), (".tgz", mutate_tar), (".zip", mutate_zip), (".yaml", mutate_text),
    (".csv", mutate_text), (".txt", mutate_text),
)  # fmt: skip
