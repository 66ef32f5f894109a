"""From a command line to components: Hydra overrides checked, composed and built. The only caller of ``instantiate``.

Whatever is wrong becomes a ``ValueError`` of one line that says what would have been right. Hydra's working folders, logging and
launchers are not used: a sweep is a list of override lists, each composed alone.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..backend.request import Sampling
from .groups import groups

OPTIONAL = ("verifier", "strategy/stop")
"""Groups of which there may be none, ``GROUP=null``."""
ASKING = ("config", "eval", "demo")
"""Configs of commands that ask questions: below ``chat`` they take whatever the checkpoint's template knows."""


def compose(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The config ``conf/NAME.yaml`` with ``overrides``, interpolations resolved; an unknown key is an error, set or read."""
    with _hydra():
        final = [override for given in overrides for override in _spell_out(given)]
        if name in ASKING:
            final = [f"++{override}" if override.startswith("chat.") else override for override in final]
        try:
            for parsed in _parse(final):
                if parsed.is_delete() and parsed.key_or_group not in groups():
                    raise ValueError(f"{parsed.input_line}: a setting cannot be taken out; give it a value, or null")
                if parsed.is_sweep_override():
                    raise ValueError(f"{parsed.input_line}: several values need --multirun")
                _check_group(parsed)
            config = hydra.compose(name, final)
            OmegaConf.resolve(config)
        except ConfigCompositionException as e:
            raise ValueError(_explain(name, final, e)) from e
        except (HydraException, OmegaConfBaseException) as e:
            raise ValueError(_first_line(e)) from e
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ValueError(f"{missing[0]} has no value: give one, {missing[0]}=…")
    return config


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """A sweep: every combination of the values that ``overrides`` list, in order, the last one varying fastest."""
    with _hydra():
        choices = []
        for parsed in _parse(overrides):
            if not parsed.is_sweep_override():
                choices.append([parsed.input_line])
            elif parsed.is_discrete_sweep():
                key = parsed.get_key_element()
                choices.append([f"{key}={value}" for value in parsed.sweep_string_iterator()])
                if not choices[-1]:
                    raise ValueError(f"{parsed.input_line}: a sweep over nothing")
            else:
                raise ValueError(f"{parsed.input_line}: a sweep is over listed values, a,b,c or range(…)")
    return [list(combination) for combination in itertools.product(*choices)]


def compose_each(name: str, group: str, options: Sequence[str], overrides: Sequence[str]) -> dict[str, DictConfig]:
    """The config ``name`` once with each of ``options`` of ``group``: lists of components are composed one by one."""
    for override in overrides:
        if override.partition("=")[0] == group:
            raise ValueError(f"{override}: {name} takes a list, {name}.{group}s=[{override.partition('=')[2]}]")
    return {option: compose(name, [*overrides, f"{group}={option}"]) for option in options}


def build(node: DictConfig) -> Any:
    """The component that a config node describes. Errors are the component's own."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ValueError(f"{node!r} stands where the config describes a component: give its settings one by one, name.setting=…")
    known = inspect.signature(instantiate).parameters
    # Hydra 1.4 wants to be told which targets are trusted, and has renamed the argument once; 1.3 does not know it.
    whitelist = {name: ["forethought.*"] for name in ("_target_whitelist_", "_execution_whitelist_") if name in known}
    try:
        return instantiate(node, _convert_="all", **whitelist)
    except InstantiationException as e:
        if isinstance(e.__cause__, Exception):
            raise e.__cause__ from None
        raise ValueError(_first_line(e)) from e


def options(config: DictConfig) -> dict[str, Any]:
    """The options of ``generate`` that a config holds; those that are null are left to the checkpoint."""
    sampling = {name: value for name, value in config.sampling.items() if value is not None}
    Sampling(**sampling)  # refuses bad values before a model is loaded
    limits = {name: config[name] for name in ("max_tokens", "seed") if config[name] is not None}
    for name, value in limits.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{name}={value!r}: a whole number")
    return {**sampling, **limits, **encoding(config)}


def encoding(config: DictConfig) -> dict[str, Any]:
    """The options of ``generate`` that say how a question becomes token ids."""
    chat, parse = config.chat, config.parse_special
    chat = OmegaConf.to_container(chat) if isinstance(chat, DictConfig) else chat
    if not isinstance(chat, Mapping | None):
        raise ValueError(f"chat={chat!r}: options of a chat template, chat.enable_thinking=false")
    if not isinstance(parse, bool):
        raise ValueError(f"parse_special={parse!r}: true or false")
    return {"chat": chat, "parse_special": parse}


@contextmanager
def _hydra() -> Iterator[None]:
    # 1.3 warns without the argument, 1.4 with it.
    base = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}
    with hydra.initialize_config_module("forethought.conf", **base):
        yield


def _spell_out(override: str) -> list[str]:
    """Short forms: ``model=./folder`` and ``model=org/name`` for ``hf`` and its path, ``a.b=NAME`` for the group ``a/b``."""
    key, given, value = override.partition("=")
    if given and (inner := key.replace(".", "/")) in groups() and inner != key:
        return _spell_out(f"{inner}={value}")
    if key in OPTIONAL and value == "null":
        return []  # as it is anyway, and Hydra does not know how to say it
    if key != "model" or not given or ("/" not in value and not value.startswith((".", "~")) and not value.endswith(".gguf")):
        return [override]
    return ["model=hf", f"model.name_or_path={QuotedString(value, Quote.single).with_quotes()}"]


def _parse(overrides: Sequence[str]) -> list[Any]:
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = []
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise ValueError(f"{override!r} is not KEY=VALUE (a question of several words is one argument, in quotes)")
        try:
            parsed += parser.parse_overrides([override])
        except HydraException as e:
            quoted = f"'{override.partition('=')[0]}=\"…\"'"
            raise ValueError(f"{override}: not a value Hydra can read; inside two pairs of quotes it is, {quoted}") from e
    return parsed


def _check_group(parsed: Any) -> None:
    """Hydra merges the options of ``group=[a,b]`` without a word, and its error for a wrong option is a page."""
    name, known = parsed.key_or_group, groups()
    if name not in known:
        return
    if parsed.is_delete():
        raise ValueError(f"{parsed.input_line}: there is always one {name}; choose another with {name}=…")
    value = parsed.value()
    if isinstance(value, list):
        several = f"{name}={','.join(map(str, value))}"
        raise ValueError(f"{parsed.input_line}: one option at a time; to run several, --multirun {several}")
    if value not in known[name]:
        hint = f", a folder (./{value}) or a Hub id (org/name)" if name == "model" and value else ""
        raise ValueError(f"{parsed.input_line}: no such {name}; there is {', '.join(known[name])}{hint}")


def _explain(name: str, overrides: Sequence[str], error: Exception) -> str:
    """What to write instead of an override of a key that does not exist."""
    every = _parse(overrides)
    for parsed in every:
        key = parsed.key_or_group
        if f"'{key}'" in str(error):
            chosen = [given.input_line for given in every if given.key_or_group in groups() and given.key_or_group != key]
            config = hydra.compose(name, chosen)
            parent = key.rpartition(".")[0]
            node = OmegaConf.select(config, parent) if parent else config
            if not isinstance(node, Mapping):
                parent, node = "", config
            settings = ", ".join(str(k) for k in node if not str(k).startswith("_"))
            return f"{parsed.input_line}: no such setting; {parent or name} has {settings}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
