"""``trt-native cache``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any

import typer

from trt_native.builder.plan_cache import (
    FOLDER_VARIABLE,
    SIZE_VARIABLE,
    CacheEntry,
    EngineCache,
    PruneResult,
)
from trt_native.cli.console import print_json, report_errors, stdout, table
from trt_native.cli.help_pages import CommandTree
from trt_native.errors import SpecError
from trt_native.units import counted, format_age, format_bytes, parse_bytes, parse_duration

__all__ = ["cache_app"]

cache_app = CommandTree(
    name="cache",
    help="The plans and layer timings kept between builds.\n\n$ trt-native cache list",
)

_Folder = Annotated[
    str | None,
    typer.Option(
        "--cache",
        envvar=FOLDER_VARIABLE,
        metavar="FOLDER",
        show_envvar=True,
        help="Folder of the cache. \\[default: the user's cache folder]",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")]


@cache_app.command("list")
@report_errors
def list_entries(folder: _Folder = None, json: _Json = False) -> None:
    """List the plans, the last used first.

    $ trt-native cache list
    """
    cache = _opened(folder)
    entries = cache.entries()
    total = sum(entry.bytes for entry in entries)
    timings = cache.timing_caches()
    if json:
        print_json(
            {
                "folder": str(cache.folder),
                "bytes": total,
                "max_bytes": cache.max_bytes,
                "plans": [_entry_json(entry) for entry in entries],
                "timing_caches": [
                    {"file": file.name, "bytes": file.stat().st_size} for file in timings
                ],
            }
        )
        return
    if entries:
        names = ("key", "model", "precision", "options", "backend", "size", "unused for")
        table("Plans", names, map(_row, entries))
    if timings:
        rows = ((file.name, format_bytes(file.stat().st_size)) for file in timings)
        table("Timing caches", ("file", "size"), rows)
    stdout.print(
        f"{cache.folder}: {counted(len(entries), 'plan')},"
        f" {format_bytes(total)} of at most {format_bytes(cache.max_bytes)}",
        markup=False,
        highlight=False,
    )


@cache_app.command()
@report_errors
def prune(
    folder: _Folder = None,
    cache_size: Annotated[
        str | None,
        typer.Option(
            envvar=SIZE_VARIABLE,
            show_envvar=True,
            help="Size to get down to. \\[default: 20GiB, or a tenth of the disk]",
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION", help="Also remove plans unused for this time, such as 12h or 30d."
        ),
    ] = None,
    json: _Json = False,
) -> None:
    """Remove damaged plans, then those unused for longest until the size limit is kept.

    $ trt-native cache prune --older-than 30d
    $ trt-native cache prune --cache-size 10GiB
    """
    seconds = parse_duration(older_than) if older_than is not None else None
    cache = _opened(folder, parse_bytes(cache_size) if cache_size is not None else None)
    _tell(cache, cache.prune(seconds), json)


@cache_app.command()
@report_errors
def remove(
    keys: Annotated[
        list[str],
        typer.Argument(metavar="KEY...", help="Keys as listed, or their first digits."),
    ],
    folder: _Folder = None,
    json: _Json = False,
) -> None:
    """Remove single plans by their keys.

    $ trt-native cache remove 3f2a91c0
    """
    cache = _opened(folder)
    _tell(cache, cache.remove(keys), json)


@cache_app.command()
@report_errors
def clear(folder: _Folder = None, json: _Json = False) -> None:
    """Remove all plans, layer timings and remembered hashes; nothing else in the folder.

    $ trt-native cache clear
    """
    cache = _opened(folder)
    _tell(cache, cache.clear(), json)


def _opened(folder: str | None, max_bytes: int | None = None) -> EngineCache:
    cache = EngineCache(folder, max_bytes)
    if cache.folder.exists() and not cache.folder.is_dir():
        raise SpecError(f"{cache.folder} is a file, not a cache folder")
    return cache


def _tell(cache: EngineCache, removed: PruneResult, json: bool) -> None:
    if json:
        data = {"plans": removed.plans, "files": removed.files, "bytes": removed.bytes}
        print_json({"folder": str(cache.folder), "removed": data})
        return
    stdout.print(
        f"{cache.folder}: removed {counted(removed.plans, 'plan')},"
        f" {counted(removed.files, 'file')} in all, {format_bytes(removed.bytes)}",
        markup=False,
        highlight=False,
    )


def _entry_json(entry: CacheEntry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "bytes": entry.bytes,
        "last_used": _time(entry.used),
        "manifest": entry.manifest.to_json() if entry.manifest else None,
    }


def _row(entry: CacheEntry) -> tuple[str | tuple[str, ...], ...]:
    manifest = entry.manifest
    about: tuple[str | tuple[str, ...], ...] = ("damaged", "", "", "")
    if manifest is not None:
        backend = f"{manifest.backend} {manifest.backend_version}"
        about = (
            str(manifest.model["file"]),
            manifest.arithmetic,
            tuple(_option_lines(manifest.options)),
            (backend, manifest.gpu or "no GPU"),
        )
    age = format_age(time.time() - entry.used)
    return (entry.key[:8], *about, format_bytes(entry.bytes), age)


def _option_lines(options: Mapping[str, Any]) -> Iterator[str]:
    """The profiles of a build, and its options but for the precision."""
    for profile in options.get("profiles", ()):
        for name, text in (*profile["dims"].items(), *profile["shapes"].items()):
            yield f"{name} {text}"
    for name, value in options.items():
        if name not in ("precision", "profiles"):
            yield f"{name} {value}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")
