"""Which C functions and structs of llama.cpp do we call, and are they laid out as we believe?

llama.cpp passes structs by value, and their fields move from release to release. So nothing here is trusted before
``load_library`` has compared what the library itself writes into its default structs with what our fields would read.
"""

import ctypes
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from potstill.core.errors import ResourceError

__all__ = ["PINNED", "Batch", "ContextParams", "GgufParams", "Library", "ModelParams", "check_defaults", "load_library"]

PINNED = "2026.10.11549"
"""The xllamacpp release whose llama.cpp these layouts were read from."""

_TAIL_BYTES = 512
_ERROR = 4
_MOST_COMPLAINTS = 20
_POINTER = ctypes.c_void_p
_INT = ctypes.c_int32
_UINT = ctypes.c_uint32
_FLOAT = ctypes.c_float
_BOOL = ctypes.c_bool

LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class ModelParams(ctypes.Structure):
    """``llama_model_params``, and a tail that carries whatever a longer struct holds behind it there and back."""

    _fields_: ClassVar[Any] = [
        ("devices", _POINTER),
        ("tensor_buft_overrides", _POINTER),
        ("n_gpu_layers", _INT),
        ("split_mode", _INT),
        ("load_mode", _INT),
        ("lazy_mode", _INT),
        ("main_gpu", _INT),
        ("tensor_split", _POINTER),
        ("progress_callback", _POINTER),
        ("progress_callback_user_data", _POINTER),
        ("kv_overrides", _POINTER),
        ("vocab_only", _BOOL),
        ("check_tensors", _BOOL),
        ("use_extra_bufts", _BOOL),
        ("no_host", _BOOL),
        ("no_alloc", _BOOL),
        ("load_mtp", _BOOL),
        ("tail", ctypes.c_uint8 * _TAIL_BYTES),
    ]


class ContextParams(ctypes.Structure):
    """``llama_context_params`` up to the last field that we set, and a tail as in ``ModelParams``."""

    _fields_: ClassVar[Any] = [
        ("n_ctx", _UINT),
        ("n_batch", _UINT),
        ("n_ubatch", _UINT),
        ("n_seq_max", _UINT),
        ("n_rs_seq", _UINT),
        ("n_outputs_max", _UINT),
        ("n_outputs_max_per_seq", _UINT),
        ("n_threads", _INT),
        ("n_threads_batch", _INT),
        ("ctx_type", _INT),
        ("rope_scaling_type", _INT),
        ("pooling_type", _INT),
        ("attention_type", _INT),
        ("flash_attn_type", _INT),
        ("rope_freq_base", _FLOAT),
        ("rope_freq_scale", _FLOAT),
        ("yarn_ext_factor", _FLOAT),
        ("yarn_attn_factor", _FLOAT),
        ("yarn_beta_fast", _FLOAT),
        ("yarn_beta_slow", _FLOAT),
        ("yarn_orig_ctx", _UINT),
        ("defrag_thold", _FLOAT),
        ("cb_eval", _POINTER),
        ("cb_eval_user_data", _POINTER),
        ("type_k", _INT),
        ("type_v", _INT),
        ("tail", ctypes.c_uint8 * _TAIL_BYTES),
    ]


class Batch(ctypes.Structure):
    """``llama_batch``: tokens, and for each its position, its sequences, and whether its logits are wanted."""

    _fields_: ClassVar[Any] = [
        ("n_tokens", _INT),
        ("token", _POINTER),
        ("embd", _POINTER),
        ("pos", _POINTER),
        ("n_seq_id", _POINTER),
        ("seq_id", _POINTER),
        ("logits", _POINTER),
    ]


class GgufParams(ctypes.Structure):
    """``gguf_init_params``: read the header only, make no tensors."""

    _fields_: ClassVar[Any] = [("no_alloc", _BOOL), ("ctx", _POINTER)]


_MODEL_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "devices": None,
        "tensor_buft_overrides": None,
        "n_gpu_layers": -1,
        "split_mode": 1,
        "load_mode": -1,
        "lazy_mode": 1,
        "main_gpu": 0,
        "tensor_split": None,
        "progress_callback": None,
        "kv_overrides": None,
        "vocab_only": False,
        "check_tensors": False,
        "use_extra_bufts": True,
        "no_host": False,
        "no_alloc": False,
        "load_mtp": False,
    }
)
_CONTEXT_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "n_ctx": 512,
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_seq_max": 1,
        "n_rs_seq": 0,
        "n_outputs_max": 0,
        "n_outputs_max_per_seq": 1,
        "n_threads": 4,
        "n_threads_batch": 4,
        "ctx_type": 0,
        "rope_scaling_type": -1,
        "pooling_type": -1,
        "attention_type": -1,
        "flash_attn_type": -1,
        "rope_freq_base": 0.0,
        "rope_freq_scale": 0.0,
        "yarn_ext_factor": -1.0,
        "yarn_orig_ctx": 0,
        "defrag_thold": -1.0,
        "cb_eval": None,
        "type_k": 1,
        "type_v": 1,
    }
)
_PROTOTYPES: Mapping[str, tuple[Any, tuple[Any, ...]]] = MappingProxyType(
    {
        "llama_backend_init": (None, ()),
        "llama_log_set": (None, (LogCallback, _POINTER)),
        "llama_model_default_params": (ModelParams, ()),
        "llama_context_default_params": (ContextParams, ()),
        "llama_model_load_from_file": (_POINTER, (ctypes.c_char_p, ModelParams)),
        "llama_model_free": (None, (_POINTER,)),
        "llama_model_get_vocab": (_POINTER, (_POINTER,)),
        "llama_model_n_params": (ctypes.c_uint64, (_POINTER,)),
        "llama_model_n_ctx_train": (_INT, (_POINTER,)),
        "llama_model_meta_val_str": (_INT, (_POINTER, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)),
        "llama_vocab_n_tokens": (_INT, (_POINTER,)),
        "llama_init_from_model": (_POINTER, (_POINTER, ContextParams)),
        "llama_free": (None, (_POINTER,)),
        "llama_n_ctx": (_UINT, (_POINTER,)),
        "llama_n_batch": (_UINT, (_POINTER,)),
        "llama_n_ubatch": (_UINT, (_POINTER,)),
        "llama_n_seq_max": (_UINT, (_POINTER,)),
        "llama_n_threads": (_INT, (_POINTER,)),
        "llama_n_threads_batch": (_INT, (_POINTER,)),
        "llama_get_memory": (_POINTER, (_POINTER,)),
        "llama_memory_clear": (None, (_POINTER, _BOOL)),
        "llama_decode": (_INT, (_POINTER, Batch)),
        "llama_get_logits": (ctypes.POINTER(ctypes.c_float), (_POINTER,)),
        "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), (_POINTER, _INT)),
        "llama_vocab_bos": (_INT, (_POINTER,)),
        "llama_vocab_eos": (_INT, (_POINTER,)),
        "llama_detokenize": (_INT, (_POINTER, _POINTER, _INT, _POINTER, _INT, _BOOL, _BOOL)),
        "gguf_init_from_file": (_POINTER, (ctypes.c_char_p, GgufParams)),
        "gguf_free": (None, (_POINTER,)),
        "gguf_find_key": (ctypes.c_int64, (_POINTER, ctypes.c_char_p)),
        "gguf_get_kv_type": (_INT, (_POINTER, ctypes.c_int64)),
        "gguf_get_val_str": (ctypes.c_char_p, (_POINTER, ctypes.c_int64)),
        "gguf_get_val_u32": (_UINT, (_POINTER, ctypes.c_int64)),
        "gguf_get_val_f32": (_FLOAT, (_POINTER, ctypes.c_int64)),
        "gguf_get_arr_type": (_INT, (_POINTER, ctypes.c_int64)),
        "gguf_get_arr_n": (ctypes.c_size_t, (_POINTER, ctypes.c_int64)),
        "gguf_get_arr_str": (ctypes.c_char_p, (_POINTER, ctypes.c_int64, ctypes.c_size_t)),
        "ggml_quantize_chunk": (
            ctypes.c_size_t,
            (_INT, _POINTER, _POINTER, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, _POINTER),
        ),
        "llama_tokenize": (_INT, (_POINTER, ctypes.c_char_p, _INT, _POINTER, _INT, _BOOL, _BOOL)),
    }
)


class Library:
    """llama.cpp's functions with their types, and the errors it logged.

    Its own log goes nowhere; ``complaints`` keeps the errors since ``forget`` for our messages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.complaints: list[str] = []
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise _unusable(path, f"can't be loaded: {error}") from error
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(library, name, None)
            if function is None:
                raise _unusable(path, f"has no function {name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self._log = LogCallback(self._listen)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - a C function, set in __init__
        raise AttributeError(name)

    def start(self) -> None:
        """Silence the log and start the backend; call only after ``check_defaults``."""
        self.llama_log_set(self._log, None)
        self.llama_backend_init()

    def forget(self) -> None:
        """Forget the complaints so far."""
        self.complaints.clear()

    def first_complaint(self) -> str:
        """The first error that llama.cpp logged since ``forget``: the cause, where later ones are effects."""
        return self.complaints[0] if self.complaints else "it gives no reason"

    def _listen(self, level: int, text: bytes | None, _data: int | None) -> None:
        line = (text or b"").decode(errors="replace").strip()
        if level == _ERROR and line and len(self.complaints) < _MOST_COMPLAINTS:
            self.complaints.append(line)


@cache
def load_library() -> Library:
    """Find llama.cpp inside the installed ``xllamacpp``, check its layouts, and start it; once per process.

    The package itself isn't imported.

    Raises: ResourceError: it isn't installed, or is laid out in another way than these bindings expect.
    """
    spec = importlib.util.find_spec("xllamacpp")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    candidates = [path for folder in folders for path in sorted(folder.glob("xllamacpp*")) if path.suffix in _SUFFIXES]
    if not candidates:
        raise ResourceError(
            "llama.cpp isn't installed", where="xllamacpp", next_step=f"pip install xllamacpp=={PINNED}"
        )
    library = Library(candidates[0])
    check_defaults(library)
    library.start()
    return library


def check_defaults(library: Library) -> None:
    """Compare every field that we know of the default structs with its known default.

    Raises: ResourceError: a field differs, which means that fields have moved.
    """
    for get, expected in (
        (library.llama_model_default_params, _MODEL_DEFAULTS),
        (library.llama_context_default_params, _CONTEXT_DEFAULTS),
    ):
        params = get()
        for field, value in expected.items():
            if getattr(params, field) != value:
                found = getattr(params, field)
                what = f"{type(params).__name__}.{field} reads {found!r} by default, where {value!r} is expected"
                raise _unusable(library.path, what)


_SUFFIXES = frozenset({".so", ".dylib", ".pyd"})


def _unusable(path: Path, what: str) -> ResourceError:
    return ResourceError(
        f"is not the llama.cpp that potstill is bound to: {what}",
        where=str(path),
        next_step=f"pip install xllamacpp=={PINNED}",
    )
