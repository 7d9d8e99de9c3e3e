"""Model architectures that we write as GGUF: their metadata, tensor names and tensor layouts.

Keys are those of the GGUF specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); tensor names come
from the `gguf` library.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ivr_dagster.core.export.llama_cpp import OTHER_FORMATS
from ivr_dagster.core.model.files import CONFIG, read_config
from ivr_dagster.core.model.folder import ModelFolder
from ivr_dagster.errors import InputError

if TYPE_CHECKING:
    import torch

# by `model_type`; llama.cpp has the same names
ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3")
# buffers that old checkpoints contain
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
_CONV1D = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")  # GPT-2 stores these [in, out]
_OUTPUT = "lm_head.weight"


@dataclass(frozen=True)
class Architecture:
    """How a model is written as GGUF.

    Attributes:
        name: its architecture.
        layers: number of blocks.
        rows: V, the number of embedding rows.
        metadata: keys and values.
        heads, kv_heads: number of attention heads, and of heads of keys and values.
        is_tied: whether the embedding matrix is also the output matrix.
        rope_factors: float32 [head dimension / 2], divisors of the rotary frequencies; None if they are 1.
    """

    name: str
    layers: int
    rows: int
    metadata: Mapping[str, Any]
    heads: int
    kv_heads: int
    is_tied: bool
    rope_factors: np.ndarray | None = None

    def is_skipped(self, key: str) -> bool:
        """Whether a tensor of the checkpoint is left out: a buffer, or a copy of tied embeddings."""
        return key.endswith(_BUFFERS) or (self.is_tied and key == _OUTPUT)

    def names(self, keys: list[str]) -> dict[str, str]:
        """The GGUF names of a checkpoint's tensors, without those that are left out.

        Raises:
            InputError: a tensor has no name in this architecture.
        """
        import gguf

        known = gguf.get_tensor_name_map(gguf.MODEL_ARCH[self.name.upper()], self.layers)
        wanted = [key for key in keys if not self.is_skipped(key)]
        names = {key: known.get_name(key, try_suffixes=(".weight", ".bias")) for key in wanted}
        if unknown := [key for key, name in names.items() if name is None]:
            raise InputError(
                f"GGUF was requested, but llama.cpp's {self.name} has no tensor for {unknown[0]}",
                remedy="Name llama.cpp's converter with --gguf-converter.",
            )
        return {key: str(name) for key, name in names.items()}

    def shape(self, key: str, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of a checkpoint's tensor in llama.cpp's layout, slowest dimension first."""
        return tuple(reversed(shape) if self._is_transposed(key) else shape)

    def convert(self, key: str, tensor: "torch.Tensor") -> np.ndarray:
        """A checkpoint's tensor as float32 in llama.cpp's layout."""
        values = tensor.float()
        if self._is_transposed(key):
            values = values.T
        if self.name == "llama" and ".q_proj." in key:
            values = _interleave_rotary_halves(values, self.heads)
        if self.name == "llama" and ".k_proj." in key:
            values = _interleave_rotary_halves(values, self.kv_heads)
        return np.ascontiguousarray(values.numpy())

    def _is_transposed(self, key: str) -> bool:
        return self.name == "gpt2" and key.endswith(_CONV1D)


def _interleave_rotary_halves(values: "torch.Tensor", heads: int) -> "torch.Tensor":
    """Rows of each head in the order in which llama.cpp rotates pairs: (0, 1), not (0, d/2) as transformers does."""
    rows: torch.Tensor = values.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(values.shape)
    return rows


def read_architecture(model: ModelFolder) -> Architecture:
    """How to write a model as GGUF. No tensor is read.

    Raises:
        InputError: its architecture, or a setting of it, is not supported.
    """
    kind = str(read_config(model.path)["model_type"])
    if kind not in ARCHITECTURES:
        raise InputError(
            f"GGUF was requested, but the model's architecture is {kind}; supported are {', '.join(ARCHITECTURES)}",
            where=model.path / CONFIG,
            remedy="Name llama.cpp's converter with --gguf-converter, or export the other formats: "
            "`ivr export --formats huggingface,tiktoken`.",
        )
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(model.path, local_files_only=True, trust_remote_code=False)
    for name, expected in _required(kind, config).items():
        found = getattr(config, name, expected[0])
        if found not in expected:
            raise InputError(
                f"GGUF was requested, but {name} is {found!r}; llama.cpp's {kind} has {expected[0]!r}",
                where=model.path / CONFIG,
                remedy=f"{OTHER_FORMATS}.",
            )
    return _gpt2(config) if kind == "gpt2" else _llama_like(kind, config)


def _required(kind: str, config: Any) -> dict[str, tuple[Any, ...]]:
    """The values of settings that llama.cpp fixes."""
    if kind == "gpt2":
        return {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
        }
    required: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu",), "mlp_bias": (False,)}
    if kind == "qwen2":
        required["use_sliding_window"] = (False,)
    if kind == "qwen3":
        required |= {"use_sliding_window": (False,), "attention_bias": (False,)}
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if rope not in ("default", "linear", "llama3"):
        required["rope_parameters"] = ({"rope_type": "default"},)
    return required


def _gpt2(config: Any) -> Architecture:
    values = {
        "context_length": config.n_positions,
        "embedding_length": config.n_embd,
        "feed_forward_length": config.n_inner or 4 * config.n_embd,
        "block_count": config.n_layer,
        "attention.head_count": config.n_head,
        "attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
    }
    return Architecture(
        name="gpt2",
        layers=config.n_layer,
        rows=config.vocab_size,
        metadata={f"gpt2.{key}": value for key, value in values.items()},
        heads=config.n_head,
        kv_heads=config.n_head,
        is_tied=bool(config.tie_word_embeddings),
    )


def _llama_like(kind: str, config: Any) -> Architecture:
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = config.rope_parameters or {}
    values: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_size,
        "attention.value_length": head_size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": head_size,
        "rope.freq_base": float(rope.get("rope_theta", 10_000.0)),
        "vocab_size": config.vocab_size,
    }
    if rope.get("rope_type") == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    return Architecture(
        name=kind,
        layers=config.num_hidden_layers,
        rows=config.vocab_size,
        metadata={f"{kind}.{key}": value for key, value in values.items()},
        heads=heads,
        kv_heads=kv_heads,
        is_tied=bool(config.tie_word_embeddings),
        rope_factors=_llama3_rope_factors(config, head_size) if rope.get("rope_type") == "llama3" else None,
    )


def _llama3_rope_factors(config: Any, head_size: int) -> np.ndarray:
    """By how much Llama 3 divides each rotary frequency, from transformers' own implementation."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, None)
    exponents = np.arange(0, head_size, 2, dtype=np.float64) / head_size
    plain = float(config.rope_parameters["rope_theta"]) ** -exponents
    factors: np.ndarray = (plain / scaled.double().numpy()).astype(np.float32)
    return factors
