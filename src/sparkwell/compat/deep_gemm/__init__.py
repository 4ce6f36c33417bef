"""DeepGEMM's attention calls on every GPU: `from sparkwell.compat import deep_gemm`.

The interface of June 2026; `v2_8` has the calls that 2.8.1 changed.  GEMMs are not part of it.
"""

from sparkwell.compat.deep_gemm import testing, utils, v2_8
from sparkwell.compat.deep_gemm.logits import (
    fp8_fp4_mqa_logits,
    fp8_fp4_paged_mqa_logits,
    fp8_mqa_logits,
    fp8_paged_mqa_logits,
    get_num_sms,
    get_paged_mqa_logits_metadata,
)

__version__ = "2.6.1"  # of the interface

__all__ = [
    "fp8_fp4_mqa_logits",
    "fp8_fp4_paged_mqa_logits",
    "fp8_mqa_logits",
    "fp8_paged_mqa_logits",
    "get_num_sms",
    "get_paged_mqa_logits_metadata",
    "testing",
    "utils",
    "v2_8",
]
