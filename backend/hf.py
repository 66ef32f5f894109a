"""Any causal language model of transformers on our KV pool and kernels, through transformers' public seams.

The model's own code runs on one flat row of ragged tokens; only its attention is ours, registered in
``AttentionInterface``: it writes K and V to the pool's slots and attends through the views. Scale, softcap, sinks and
windows come from the model; keys are stored as it rotates and scales them. Every model is tried when it is loaded: two
sequences, mixed and cut in two, must give the logits of its own eager code. So what has any other state (recurrence,
ALiBi, cross-attention, masks of other shapes) is refused, never wrong. Exact; each layer costs some Python more than in
``transformer.py``. Not here: making up a head that a checkpoint lacks, images and sound.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..forks import OwnFolder
from ..kernels.attention import attend
from ..kernels.rotary import Rotary, rotate
from .batch import Output, Row, TokenBatch
from .checkpoint import Checkpoint
from .kv import LayerSpec
from .model import Defaults, Model, ModelInfo
from .rope import positions
from .text import Text

NAME, PROBE = "forethought", "forethought_probe"
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Error that passes for rounding, relative to what is compared; in half precision more, which each use says."""


# ---- the seams ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Call:
    """What the model's code meets on its way through the layers, during one call."""

    attention: Callable[..., Tensor]
    """(attention module, q, k, v, each [1, heads, T, dim], mask, options by name) -> [T, heads, dim_v]."""
    enter: Callable[[int, Tensor], None] = lambda _layer, _x: None
    """(layer, residual stream [T, width]); the layer after the last is the final norm's output."""
    instead: Tensor | None = None
    """[1, T, width], what every layer gives back, uncomputed; None: layers run."""
    fed: Sequence[Tensor] = ()
    """[T, width] that each layer works on, in place of what the one before gave; empty: layers run one after another."""


_CALL: ContextVar[_Call] = ContextVar("call")


@contextmanager
def _during(call: _Call) -> Iterator[None]:
    token = _CALL.set(call)
    try:
        yield
    finally:
        _CALL.reset(token)


def _attention(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> tuple[Tensor, None]:
    return _CALL.get().attention(module, q, k, v, mask, **options)[None], None


@cache
def _register() -> None:
    """Without a mask function of its name, transformers makes no mask for an attention function."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionInterface.register(PROBE, _attention)
    AttentionMaskInterface.register(PROBE, _window_mask)


def _window_mask(*, q_length: int, kv_length: int, mask_function: Callable[..., Tensor], config: Any, **_: Any) -> Tensor:
    """A mask whose every cell is the window it stands for: 0 for none, -1 for what is no causal window."""
    return torch.full((1, 1, q_length, kv_length), float(_window(mask_function, _positions(config))))


def _window(mask_function: Callable[..., Tensor], positions: int) -> int:
    keys, zero = torch.arange(positions), torch.zeros(1, 1, 1, 1, dtype=torch.long)
    queries = torch.tensor(sorted({0, 1, positions // 2, positions - 1}))[:, None]
    try:
        seen = mask_function(zero, zero, queries[None, None], keys[None, None, None]).expand(1, 1, len(queries), -1)[0, 0]
    except (RuntimeError, IndexError, TypeError):  # made for these very tokens, not a function of positions
        return -1
    window = int(seen[-1].sum())
    if not torch.equal(seen, (keys <= queries) & (queries - keys < window)):
        return -1
    return 0 if window == positions else window


def _positions(config: Any) -> int:
    """How many positions there are. LongRoPE and dynamic scaling turn a whole batch by its longest row: they end before that."""
    config = config.get_text_config()
    limit: Any = getattr(config, "max_position_embeddings", None)
    if limit is None:
        raise ValueError(f"{config.model_type} cannot run on a KV pool: no max_position_embeddings, as for ALiBi or recurrence")
    settings = getattr(config, "rope_parameters", None) or {}
    kinds = [settings, *(nested for nested in settings.values() if isinstance(nested, dict))]
    if any(one.get("rope_type") == "longrope" for one in kinds):
        return int(min(limit, *(one.get("original_max_position_embeddings", limit) for one in kinds)))
    return limit if settings.get("rope_type") == "dynamic" else positions(settings, limit)


# ---- the model ----------------------------------------------------------------------------------------------------


class Adapter(Model):
    """A causal language model of transformers, loaded with ``attn_implementation=PROBE``, behind the one model interface.

    Raises ``ValueError`` with the reason for one that cannot run on a KV pool.
    """

    def __init__(
        self, model: Any, *, name: str, defaults: Defaults | None = None, text: Text | None = None, impl: str = "auto"
    ) -> None:
        self.text, self.impl = text, impl
        self._model, self._title = model, f"{name} ({type(model).__name__})"
        self._sliced = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._tuples = False
        config = model.config.get_text_config()
        limit = _positions(config)
        modules, specs, self._windows = self._look(config.num_hidden_layers)
        self._layer_of = {module: i for i, module in enumerate(modules)}
        body, blocks = self._body(modules)
        for i, block in enumerate(blocks):
            block.forward = partial(self._block, i, block.forward)
        body.register_forward_hook(lambda _module, _args, output: _CALL.get().enter(len(specs), output[0][0]))
        parameters = sum(p.numel() for p in model.parameters())
        self.info = ModelInfo(name, config.vocab_size, config.hidden_size, limit, parameters, model.dtype,
                              specs[0].device, specs, defaults or Defaults())  # fmt: skip
        model.set_attn_implementation(NAME)
        self._check()
        self.info = replace(self.info, layers=self._rotated(specs))

    @classmethod
    def load(
        cls, path: Path, config: Any, *, device: torch.device, dtype: torch.dtype, device_map: Any, trust_remote_code: bool,
        name: str, defaults: Defaults | None = None, text: Text | None = None, impl: str = "auto", headless: bool = False,
    ) -> Adapter:  # fmt: skip
        """Read a checkpoint folder. ``device_map`` None: all of it on ``device``.

        ``headless``: of a class with another head than an LM's, which stays unread; hidden states are right, logits are noise.
        """
        from transformers import AutoModelForCausalLM

        _register()
        if config.is_encoder_decoder:
            raise ValueError(f"{name} ({config.model_type}) is an encoder-decoder: only decoders run on a KV pool")
        Checkpoint.open(path)  # says better than transformers what is missing
        offload = None if device_map is None else OwnFolder()
        placement = {} if offload is None else {"device_map": device_map, "offload_folder": offload.name}
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                path, config=config, dtype=dtype, attn_implementation=PROBE, use_safetensors=True, local_files_only=True,
                trust_remote_code=trust_remote_code, output_loading_info=True, **placement,
            )  # fmt: skip
        except Exception as e:  # a model's own code raises what it likes: a KeyError where its attention cannot be replaced
            kind, reason = config.model_type, f"{type(e).__name__}: {e}"
            raise ValueError(f"{name}: transformers cannot load this {kind} with attention of ours ({reason})") from e
        if not headless and config.architectures and type(model).__name__ not in config.architectures:
            raise ValueError(f"{path}: a {config.architectures[0]}, which has no LM head to read for {type(model).__name__}")
        if missing := sorted(key for key in found["missing_keys"] if not (headless and key == "lm_head.weight")):
            raise ValueError(f"{path}: the checkpoint has no tensor {', '.join(missing[:4])}")
        if strange := _strange(model, found["unexpected_keys"]):
            raise ValueError(f"{path}: tensors that this {config.model_type} has no place for: {', '.join(strange[:4])}")
        model.eval()
        if offload is None:
            model.to(device)
        else:
            model._offload = offload  # the weights on disk live as long as the model
        return cls._tried(model, name=name, defaults=defaults, text=text, impl=impl)

    @classmethod
    def of(
        cls, model: Any, *, name: str, defaults: Defaults | None = None, text: Text | None = None, impl: str = "auto"
    ) -> Adapter:
        """A model in memory: its modules are copied, its weights shared. Raises as :meth:`load`."""
        _register()
        if model.config.is_encoder_decoder:
            raise ValueError(f"{name} ({model.config.model_type}) is an encoder-decoder: only decoders run on a KV pool")
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        try:
            own = copy.deepcopy(model, shared).eval()
        except Exception as e:
            raise ValueError(f"{name} ({type(model).__name__}) cannot be copied ({type(e).__name__}: {e})") from e
        own.set_attn_implementation(PROBE)
        return cls._tried(own, name=name, defaults=defaults, text=text, impl=impl)

    @classmethod
    def _tried(cls, model: Any, *, name: str, **options: Any) -> Adapter:
        try:
            return cls(model, name=name, **options)
        except ValueError:
            raise
        except Exception as e:
            reason = f"{type(e).__name__}: {e}"
            raise ValueError(f"{name} ({type(model).__name__}) cannot run without a cache of its own ({reason})") from e

    @torch.inference_mode()
    def forward(self, batch: TokenBatch) -> Output:
        self.check(batch)
        device, layers, pool = self.info.device, self.info.layers, batch.pool
        ids, places, slots = batch.tensors(device)
        wanted = None if batch.wanted is None else torch.from_numpy(batch.wanted).to(device)
        hidden: dict[int, Tensor] = {}

        def enter(i: int, x: Tensor) -> None:
            if i in batch.taps:
                batch.taps[i](x)
            if i in batch.hidden:
                hidden[i] = x if wanted is None else x[wanted.to(x.device)]

        def attention(
            module: nn.Module, q: Tensor, k: Tensor, v: Tensor, _mask: Tensor | None, *, scaling: float | None = None,
            softcap: float | None = None, s_aux: Tensor | None = None, **_: Any,
        ) -> Tensor:  # fmt: skip
            i, where = self._layer_of[module], slots.to(k.device)
            rows, keys, values = (x[0].transpose(0, 1).to(pool.dtype) for x in (q, k, v))
            pool.k[i].index_copy_(0, where, keys)
            pool.v[i].index_copy_(0, where, values)
            scale = q.shape[-1] ** -0.5 if scaling is None else scaling
            out, _lse = attend(rows, pool.k[i], pool.v[i], batch.views, scale=scale, window=self._windows[i], softcap=softcap,
                               sinks=s_aux, rotary=layers[i].rotary, impl=self.impl)  # fmt: skip
            return out.to(q.dtype)

        inputs = {"input_ids": ids[None], "position_ids": places[None]}
        if batch.embeddings is not None:
            index, vectors = batch.embeddings
            x = self.embed(inputs.pop("input_ids"))
            x[0, index.to(x.device)] = vectors.to(x)
            inputs["inputs_embeds"] = x
        if wanted is not None and self._sliced:
            inputs["logits_to_keep"] = wanted
        with _during(_Call(attention, enter)):
            logits: Tensor = self._model(**inputs, use_cache=False).logits[0]
        return Output(logits if wanted is None or self._sliced else logits[wanted], hidden)

    @torch.inference_mode()
    def embed(self, ids: Tensor) -> Tensor:
        vectors: Tensor = self._model.get_input_embeddings()(ids)
        return vectors

    @torch.inference_mode()
    def head(self, hidden: Tensor) -> Tensor:
        """Logits of a residual stream: the model's own code runs, with its layers left out."""
        flat = hidden.reshape(1, -1, hidden.shape[-1])
        ids = torch.zeros(flat.shape[:2], dtype=torch.long, device=self.info.device)
        with _during(_Call(_none, instead=flat)):
            logits: Tensor = self._model(input_ids=ids, position_ids=ids, use_cache=False).logits
        return logits.view(*hidden.shape[:-1], -1)

    def _block(self, i: int, forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """One decoder layer, as the model calls it."""
        call = _CALL.get()
        x: Tensor = args[0] if args else options["hidden_states"]
        if call.instead is not None:
            instead = call.instead.to(x.device)
            return (instead,) if self._tuples else instead
        call.enter(i, x[0])
        if call.fed:
            fed = call.fed[i][None].to(x)
            args, options = ((fed, *args[1:]), options) if args else (args, {**options, "hidden_states": fed})
        output = forward(*args, **options)
        self._tuples = isinstance(output, tuple)
        return output

    # ---- what loading finds out -----------------------------------------------------------------------------------

    def _refusal(self, reason: str) -> ValueError:
        return ValueError(f"{self._title} cannot run on a KV pool: {reason}")

    def _run(self, ids: list[int], call: _Call) -> Tensor:
        """Logits [tokens, vocabulary] of the model's own code on one sequence."""
        with _during(call), torch.inference_mode():
            logits: Tensor = self._model(input_ids=torch.tensor([ids], device=self._model.device), use_cache=False).logits[0]
        return logits

    def _look(self, expected: int) -> tuple[list[nn.Module], list[LayerSpec], list[int | None]]:
        """Which modules attend, in order; what each keeps; its window."""
        modules, specs, windows = list[nn.Module](), list[LayerSpec](), list[int | None]()

        def look(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **_: Any) -> Tensor:
            window = -1 if mask is None else int(mask[0, 0, 0, 0])
            if window < 0:
                raise self._refusal("its attention is not causal, with or without a sliding window")
            modules.append(module)
            specs.append(LayerSpec(k.shape[1], k.shape[3], v.shape[3], k.device))
            windows.append(window or None)
            return q.new_zeros(q.shape[2], q.shape[1], v.shape[3])

        self._run(_ids(5, self._model.config.get_text_config().vocab_size), _Call(look))
        if len(modules) != expected or len(set(modules)) != expected:
            raise self._refusal(
                f"{expected} layers call transformers' attention interface {len(modules)} times; a recurrent state, or a bias"
                " or cache of the model's own, cannot be kept as keys and values"
            )
        return modules, specs, windows

    def _body(self, modules: list[nn.Module]) -> tuple[nn.Module, nn.ModuleList]:
        """The module that runs the decoder layers and the final norm; those layers, which hold one of ``modules`` each."""
        for body in self._model.modules():
            for blocks in body.children():
                fits = isinstance(blocks, nn.ModuleList) and len(blocks) == len(modules)
                if fits and all(module in block.modules() for block, module in zip(blocks, modules, strict=True)):
                    return body, blocks
        raise self._refusal("its decoder layers are not one list with one attention in each")

    def _check(self) -> None:
        """Compare with the model's own eager code: two sequences, side by side and in two pieces.

        Layer by layer, each of the model's own fed with what ours was: roundings do not add up over layers, as they do in
        half precision until two right results differ by more than a wrong one would.
        """
        sequences = [_ids(7, self.info.vocab_size), _ids(5, self.info.vocab_size, 3)]
        depth = len(self.info.layers)
        pool = self.new_pool(12)
        contexts, pieces = [pool.new_context() for _ in sequences], []
        for cut in (slice(0, 3), slice(3, None)):
            rows = [Row(context, ids[cut]) for context, ids in zip(contexts, sequences, strict=True)]
            batch = TokenBatch(pool, rows, hidden=range(depth))
            output = self.forward(batch)
            assert output.logits is not None
            batch.commit()
            counts = batch.counts.tolist()
            pieces.append([x.split(counts) for x in (*(output.hidden[i] for i in range(depth)), output.logits)])
        self._model.set_attn_implementation("eager")
        for r, ids in enumerate(sequences):
            mine = [torch.cat((first[r], second[r])) for first, second in zip(*pieces, strict=True)]
            self._compare(ids, mine[:-1], mine[-1].float())
        self._model.set_attn_implementation(NAME)

    def _compare(self, ids: list[int], entering: Sequence[Tensor], logits: Tensor) -> None:
        """``entering``: the residual stream before each layer, as ours had it."""
        own: dict[int, Tensor] = {}
        theirs = self._run(ids, _Call(_none, own.__setitem__, fed=entering)).float()
        if not theirs.isfinite().all():
            raise ValueError(f"{self._title}: logits that are not finite in {self.info.dtype}")
        tolerance, step = TOLERANCE.get(self.info.dtype, 0.05), torch.finfo(self.info.dtype).eps
        errors = [(logits - theirs).norm(dim=-1) / theirs.sub(theirs.mean(-1, keepdim=True)).norm(dim=-1)]
        before = torch.zeros_like(entering[0])
        for i, x in enumerate(entering):
            x, before = x.float(), before.to(x).float()
            # A layer adds to the stream, which is as coarse as its own size makes it.
            size = (x - before).norm(dim=-1) + step / tolerance * x.norm(dim=-1)
            errors.append((x - own[i].to(x.device).float()).norm(dim=-1) / size.clamp_min(1e-30))
            before = x
        worst = max(float(error.nan_to_num(torch.inf).max()) for error in errors)
        if not worst < tolerance:
            raise self._refusal(f"its results differ from those of its own code by up to {worst:.1%} in a layer")

    def _rotated(self, specs: Sequence[LayerSpec]) -> list[LayerSpec]:
        """``specs`` with the rotation of each layer's keys, where one of the model's tables proves to explain them.

        One token alone has the same keys at every position but for their rotation: pair of channels by pair of channels.
        """
        distances = [d for d in (1, 7, 100) if d < self.info.max_positions]
        pool = self.new_pool(len(distances) + 1)
        rows = [Row(pool.new_context(), _ids(1, self.info.vocab_size), positions=np.array([d])) for d in (0, *distances)]
        batch = TokenBatch(pool, rows)
        self.forward(batch)
        tables = {tuple(t.tolist()): t.float() for name, t in self._model.named_buffers() if name.endswith("inv_freq")}
        kinds = [Rotary(t, interleaved) for t in (torch.zeros(1), *tables.values()) for interleaved in (False, True)]

        def rotation(spec: LayerSpec, keys: Tensor) -> Rotary | None:
            moved = torch.tensor(distances, device=spec.device)
            for kind in kinds:
                rotary = replace(kind, frequencies=kind.frequencies.to(spec.device))
                if rotary.width <= spec.dim:
                    quarter = torch.ones_like(rotary.frequencies)
                    length = torch.hypot(keys[:1], rotate(keys[:1], 0 * quarter, quarter, rotary.interleaved))
                    error = rotary.rotate(keys[:1].expand_as(keys[1:]), moved) - keys[1:]
                    if (error.abs() <= TOLERANCE.get(self.info.dtype, 0.05) * length.clamp_min(length.median())).all():
                        return rotary
            return None

        slots = torch.from_numpy(batch.slots)
        keys = [k[slots.to(k.device)].float() for k in pool.k]
        return [replace(spec, rotary=rotation(spec, own)) for spec, own in zip(specs, keys, strict=True)]


def _strange(model: nn.Module, unexpected: Iterable[str]) -> list[str]:
    """Tensors that a checkpoint has beside those of a module of ``model``, such as scales, or of more layers than it has.

    Those of whole parts that the model lacks, such as a vision tower, say nothing about text.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())

    def known(name: str) -> nn.Module:
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return modules[name]

    return sorted(
        name for name in unexpected
        if not name.endswith("rotary_emb.inv_freq")
        and (name.rpartition(".")[0] in modules or isinstance(known(name), nn.ModuleList))
    )


def _none(*_: Any, **__: Any) -> Tensor:
    raise RuntimeError("attention of ours, called where the model's own was to run")


def _ids(n: int, vocabulary: int, seed: int = 1) -> list[int]:
    """Some token ids, always the same."""
    return [(seed * 7919 + i * 104729) % vocabulary for i in range(n)]
