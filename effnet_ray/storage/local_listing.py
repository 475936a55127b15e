"""Lists the files below a folder on disk, also through symbolic links."""

import errno
import os
import stat
from pathlib import Path

from effnet_ray.errors import StorageError
from effnet_ray.storage.backend import Entry

Item = os.DirEntry[str]


def list_files(root: str, *, follow_links: bool) -> dict[str, Entry]:
    """Every regular file by its path below `root`; see `local.entries`. Raises OSError too."""
    result, folders = dict[str, Entry](), [""]
    while folders:
        folder = folders.pop()
        for item in _scan(os.path.join(root, folder)):
            path = f"{folder}/{item.name}" if folder else item.name
            if _is_folder(item):
                if _is_followed(item, root, follow_links=follow_links):
                    folders.append(path)
            elif entry := _entry(item, follow_links=follow_links):
                result[path] = entry
    return result


def _scan(folder: str) -> list[Item]:
    """What is in a folder; nothing if it was deleted meanwhile."""
    try:
        with os.scandir(folder) as items:
            return list(items)
    except FileNotFoundError:
        return []


def _is_folder(item: Item) -> bool:
    """Whether it is a folder, or a link to one; a link to itself is neither."""
    try:
        return item.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _entry(item: Item, *, follow_links: bool) -> Entry | None:
    """A file's entry; None for what is no regular file: reading a pipe or a device may never end.

    If links are followed, raises StorageError for what is neither, and for a link to nothing.
    """
    try:
        status = item.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        if follow_links and item.is_symlink() and not item.name.startswith("."):
            raise StorageError(
                f"{item.path} is a link to {os.readlink(item.path)}, which does not exist or "
                "leads back to it: restore it, or delete the link"
            ) from None
        return None
    if stat.S_ISREG(status.st_mode):
        return Entry(status.st_size, status.st_mtime)
    if follow_links and not item.name.startswith("."):
        raise StorageError(f"{item.path} is a pipe, a socket or a device: delete it, or move it")
    return None


def _is_followed(folder: Item, root: str, *, follow_links: bool) -> bool:
    """Whether what is in a folder below `root` is listed."""
    if not folder.is_symlink():
        return True
    return follow_links and not _is_loop(Path(folder.path), Path(root))


def _is_loop(folder: Path, root: Path) -> bool:
    """Whether a symbolic link leads to a folder that the path from `root` goes through."""
    target, parents = folder.resolve(), folder.relative_to(root).parents
    return any((root / parent).resolve().is_relative_to(target) for parent in parents)
