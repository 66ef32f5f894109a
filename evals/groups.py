"""The config groups and their options, read from the folder of configs alone.

Help texts need them and must not wait for hydra, so nothing is imported here.
"""

from __future__ import annotations

from pathlib import Path

CONF = Path(__file__).resolve().parent.parent / "conf"


def groups() -> dict[str, list[str]]:
    """Each group with the names of its options; one inside another is called ``outer/inner``."""
    return {
        folder.relative_to(CONF).as_posix(): sorted(option.stem for option in folder.glob("*.yaml"))
        for folder in sorted(CONF.rglob("*"))
        if folder.is_dir() and any(folder.glob("*.yaml"))
    }
