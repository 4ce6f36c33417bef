"""What is computed.  OPS is the index: name of an op -> the module that exports it.

Beside each public op, its module exports `<op>_reference`, the op's meaning in fp32 torch.
"""

from collections.abc import Mapping
from types import MappingProxyType

OPS: Mapping[str, str] = MappingProxyType(
    {
        "rms_norm": "sparkwell.ops.norm",
        "add_rms_norm": "sparkwell.ops.norm",
        "rms_norm_quantized": "sparkwell.ops.norm",
        "add_rms_norm_quantized": "sparkwell.ops.norm",
        "layer_norm": "sparkwell.ops.norm",
        "rope": "sparkwell.ops.rope",
        "swiglu": "sparkwell.ops.activation",
        "swiglu_quantized": "sparkwell.ops.activation",
        "quantize_activations": "sparkwell.ops.quantize",
        "linear": "sparkwell.ops.linear",
        "route_sigmoid": "sparkwell.ops.moe",
        "route_softmax": "sparkwell.ops.moe",
        "experts": "sparkwell.ops.moe",
        "grouped_linear": "sparkwell.ops.moe",
        "attention_prefill": "sparkwell.ops.attention",
        "attention_paged": "sparkwell.ops.attention",
        "mla_paged": "sparkwell.ops.mla",
        "mla_sparse": "sparkwell.ops.mla",
        "index_select": "sparkwell.ops.indexer",
        "index_logits": "sparkwell.ops.indexer",
        "index_logits_paged": "sparkwell.ops.indexer",
        "topk_select": "sparkwell.ops.indexer",
        "logical_to_physical": "sparkwell.ops.indexer",
        "cache_write": "sparkwell.ops.cache",
        "cache_gather": "sparkwell.ops.cache",
        "latent_write": "sparkwell.ops.cache",
        "index_key_write": "sparkwell.ops.cache",
        "greedy": "sparkwell.ops.sampling",
        "draw": "sparkwell.ops.sampling",
        "sample": "sparkwell.ops.sampling",
        "logprobs": "sparkwell.ops.sampling",
    }
)

__all__ = ["OPS"]
