"""Readable bases of mangled names, and families."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkwell.doctor.names import base_name, family_of

BASES = {
    "_Z3foov": "foo",
    "_ZL4statv": "stat",
    "plain_kernel": "plain_kernel",
    "_ZN2at6native11elementwiseILi4EEEvv": "at::native::elementwise",
    "_ZN2at6native12_GLOBAL__N_14kernEv": "at::native::(anonymous)::kern",
    "_ZSt4sortv": "std::sort",
    "_ZNSt3foo3barEv": "std::foo::bar",
    # S_ is the first part that was seen, S0_ the second.
    "_ZN7cutlass7Kernel2INS_4gemm6kernel4GemmIiEEEEvNT_E": "cutlass::gemm::kernel::Gemm",
    "_ZN7cutlass13device_kernelIN5flash11enable_sm90INS1_16FlashAttnFwdSm90INS1_1aEEEEEEvNT_6ParamsE":
        "flash::FlashAttnFwdSm90",
    "_ZN7cutlass13device_kernelINS0_4DeepIiEEEvv": "cutlass::device_kernel::Deep",
    # A wrapper around something that has no name: the wrapper's own.
    "_ZN7cutlass13device_kernelILi4EEEvv": "cutlass::device_kernel",
    "_ZZN3fooEvE3bar": "foo",
    "_ZNK3foo3barEv": "foo::bar",
    "__nv_static_52__f45_22_cuda_device_runtime_cu_3e_23__Z6memcpyIjEvT_": "memcpy",
    # What cannot be taken apart stays whole.
    "_ZN9": "_ZN9",
    "_Z": "_Z",
    "_ZN0E": "_ZN0E",
    "_Z99999foo": "_Z99999foo",
    "_ZNS9_3fooEv": "_ZNS9_3fooEv",
    "_ZNIiEE": "_ZNIiEE",
    "_ZNS_3fooEv": "_ZNS_3fooEv",
    "__nv_static_1": "__nv_static_1",
}  # fmt: skip
FAMILIES = {
    "foo_sm90_kernel": "foo_Sm*_kernel",
    "foo_sm_120a": "foo_Sm*",
    "fmhaSm100aKernel_Qkv": "fmhaSm*Kernel_Qkv",
    "fmhaSm100fKernel_Qkv": "fmhaSm*Kernel_Qkv",
    "_Z21Sm100FmhaFwdMainloopXv": "Sm*FmhaFwdMainloopX",
    "_Z10SM90Kernelv": "Sm*Kernel",
    "_ZN3cub29CUB_300001_SM_800_900_1000_NS1xEv": "cub::CUB_Sm*_NS::x",
    "_ZN3cub29CUB_200302_600_700_750_800_NS1xEv": "cub::CUB_Sm*_NS::x",
    "_ZN3cub17CUDASM_800_900_NS1xEv": "cub::CUDASm*_NS::x",
    "gemm_4bit_sm75_m16n8k8": "gemm_4bit_Sm*",
    "gemm_4bit_sm80_m16n8k16": "gemm_4bit_Sm*",
    "Small90": "Small90",
    "prism90": "prism90",
    "item4n5k6x": "item4n5k6x",
}


@pytest.mark.parametrize(("mangled", "base"), BASES.items())
def test_bases(mangled: str, base: str) -> None:
    assert base_name(mangled) == base


@pytest.mark.parametrize(("name", "family"), FAMILIES.items())
def test_families(name: str, family: str) -> None:
    assert family_of(name) == family


@settings(max_examples=300, deadline=1000)
@given(st.text("_ZNSILKE0123456789abT", max_size=200))
def test_no_name_is_too_odd(tail: str) -> None:
    for name in (tail, "_Z" + tail, "_ZN" + tail, "_ZN7cutlass13device_kernelI" + tail):
        assert isinstance(base_name(name), str) and isinstance(family_of(name), str)


def test_a_name_that_never_ends_is_cut() -> None:
    assert len(base_name("_Z" + "9" * 10_000_000)) <= 1 << 16
    deep = "_ZN" + "1a" * 30_000 + "E"
    assert base_name(deep) == deep
