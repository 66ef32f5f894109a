"""A run on disk: a folder of append-only JSON lines beside the config that made them, for one writer at a time.

A line counts once it is complete and synced: a torn last line, as a killed process leaves it, is cut off by the next writer and
overlooked by readers. What would mix two runs, another config or other weights, is refused. Not here: what the lines mean.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..checks import read_json

FORMAT = 3
"""Of the folder; a reader refuses others."""


class RunFolder:
    """Opened for writing. ``identity``: what must be the same whenever the run goes on, plain JSON values by name."""

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as e:
            raise ValueError(f"{self.path}: a run is a folder, and {e.filename} is a file") from e
        self._lock = open(self.path / "lock", "w")  # noqa: SIM115 - held as long as the run
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise RuntimeError(f"{self.path}: another process is writing this run") from None
        self.identity = {"format": FORMAT, **identity}
        try:
            self._identify(self.identity)
        except BaseException:
            self._lock.close()
            raise
        self._files: dict[str, IO[bytes]] = {}

    @classmethod
    def again(cls, path: str | Path) -> RunFolder:
        """The folder of a run that is there, whatever made it. Raises as :func:`identity` does."""
        return cls(path, identity(path))

    def _identify(self, identity: Mapping[str, Any]) -> None:
        file = self.path / "run.json"
        mine = json.loads(json.dumps(identity))
        if not file.exists():
            if any(self.path.glob("*.jsonl")):
                raise ValueError(f"{self.path}: has draws, but no run.json that says whose they are")
            write(file, json.dumps(mine, indent=1) + "\n")
            return
        theirs = read_json(file)
        if theirs != mine and not any(found.stat().st_size for found in self.path.glob("*.jsonl")):
            (self.path / "verifiers.json").unlink(missing_ok=True)  # nothing was drawn: what was wrong is put right
            write(file, json.dumps(mine, indent=1) + "\n")
            return
        if theirs.get("format") != FORMAT:
            raise ValueError(f"{self.path}: {_old(theirs)}; give run.path another folder")
        for key in sorted({*mine, *theirs}):
            if mine.get(key) != theirs.get(key):
                was, now = differ(theirs.get(key), mine.get(key))
                raise ValueError(
                    f"{self.path}: this run was begun with another {key}: {was}, now {now}; give run.path another folder"
                )

    def append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Lines at the end of ``NAME.jsonl``; on return they are on the disk."""
        if not rows:
            return
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = self._open(name)
        file.write(b"".join(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())

    def _open(self, name: str) -> IO[bytes]:
        path = self.path / f"{name}.jsonl"
        file = open(path, "ab")  # noqa: SIM115 - closed with the folder
        whole = path.read_bytes().rfind(b"\n") + 1
        if whole != file.tell():
            file.truncate(whole)
        return file

    def read(self, name: str) -> Iterator[dict[str, Any]]:
        """The complete lines of ``NAME.jsonl``, in order."""
        return read(self.path, name)

    def once(self, name: str, *keys: str) -> Iterator[dict[str, Any]]:
        """Those of ``NAME.jsonl``, each once; see :func:`once`."""
        return once(self.path, name, *keys)

    def write(self, name: str, text: str) -> None:
        """A whole file, in place of what there was, or not at all."""
        write(self.path / name, text)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read(path: str | Path, name: str) -> Iterator[dict[str, Any]]:
    """The complete lines of ``NAME.jsonl`` in a run's folder, in order; none where there is no such file.

    Raises ``ValueError`` with its number for a line in the middle that is no JSON object.
    """
    file = Path(path) / f"{name}.jsonl"
    if not file.exists():
        return
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line.decode("utf-8", "surrogatepass"))
            except ValueError as e:
                raise ValueError(f"{file}, line {number}: {e}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{file}, line {number}: not an object")
            yield row


def identity(path: str | Path) -> dict[str, Any]:
    """What a run's folder says it is. Raises ``FileNotFoundError`` or ``ValueError`` for what is no run."""
    file = Path(path) / "run.json"
    if not file.exists():
        raise FileNotFoundError(f"{path}: no run (there is no run.json)")
    found = read_json(file)
    if found.get("format") != FORMAT:
        raise ValueError(f"{path}: {_old(found)}")
    if lacking := [name for name in ("config", "truth") if name not in found]:
        raise ValueError(f"{file}: no {lacking[0]!r}, so not what a run says it is")
    return found


def _old(found: Mapping[str, Any]) -> str:
    """Why a folder of another format is not read."""
    was = found.get("format")
    older = isinstance(was, int) and was < FORMAT
    why = "; it does not say which tokenizer, chat template and generation settings made its draws" if older else ""
    return f"a run of format {was}, this version reads format {FORMAT}{why}"


def once(path: str | Path, name: str, *keys: str) -> Iterator[dict[str, Any]]:
    """The lines of ``NAME.jsonl``, one for each value of ``keys``: a line that stands there twice counts once.

    Raises ``ValueError`` naming two that contradict each other.
    """
    seen: dict[tuple[Any, ...], bytes] = {}
    for row in read(path, name):
        which = tuple(row[key] for key in keys)
        text = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()
        if which not in seen:
            seen[which] = text
            yield row
        elif seen[which] != text:
            said = ", ".join(f"{key} {value}" for key, value in zip(keys, which, strict=True))
            raise ValueError(f"{path}/{name}.jsonl: two lines for {said} that contradict each other")


def differ(was: Any, now: Any, key: str = "") -> tuple[str, str]:
    """The first difference of two JSON values, as text."""
    if isinstance(was, dict) and isinstance(now, dict):
        for name in sorted({*was, *now}):
            if was.get(name) != now.get(name):
                return differ(was.get(name), now.get(name), f"{key}.{name}" if key else name)
    prefix = f"{key}=" if key else ""
    return prefix + json.dumps(was), prefix + json.dumps(now)


def write(path: Path, text: str) -> None:
    """Replace a file as a whole: complete and synced, or untouched. Raises ``ValueError`` where a folder stands in its place."""
    if path.is_dir():
        raise ValueError(f"{path}: a folder, where a file is to be written")
    new = path.with_name(path.name + ".new")
    with open(new, "w", encoding="utf-8", errors="replace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
