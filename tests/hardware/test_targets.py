"""Targets: who has which feature, which images load where, lookups."""

import re

import pytest

from sparkwell.errors import BadInput
from sparkwell.hardware.targets import (
    MEANINGS,
    SOURCES,
    TARGETS,
    Feature,
    Target,
    TensorPath,
    target,
)

ALL = [75, 80, 86, 87, 89, 90, 100, 103, 107, 110, 120, 121]
HOPPER_ON = [90, 100, 103, 107, 110, 120, 121]
TENSOR_MEMORY = [100, 103, 107, 110]

# What ptxas 13.5 accepts for a target and compiles to the native instruction.
HAS = {
    Feature.MMA_F16: ALL,
    Feature.MMA_BF16: ALL[1:],
    Feature.MMA_INT8: ALL,
    Feature.FP8_MMA: [89, *HOPPER_ON],
    Feature.FP8_MMA_SYNC: [89, 120, 121],
    Feature.FP4_BLOCK_MMA: HOPPER_ON[1:],
    Feature.FP8_CONVERT: [89, *HOPPER_ON],
    Feature.FP4_CONVERT: HOPPER_ON[1:],
    Feature.CP_ASYNC: ALL[1:],
    Feature.MBARRIER: HOPPER_ON,
    Feature.TMA: HOPPER_ON,
    Feature.TMA_GATHER: HOPPER_ON[1:],
    Feature.MULTICAST: [90, *TENSOR_MEMORY],
    Feature.CLUSTERS: HOPPER_ON,
    Feature.PDL: HOPPER_ON,
    Feature.SETMAXNREG: HOPPER_ON,
    Feature.WGMMA: [90],
    Feature.TCGEN05: TENSOR_MEMORY,
    Feature.TCGEN05_INT8: [100, 110],
    Feature.TMEM: TENSOR_MEMORY,
}


def test_every_target_is_listed_once():
    assert [row.sm for row in TARGETS] == ALL


@pytest.mark.parametrize("feature", Feature)
def test_who_has_a_feature(feature):
    assert [row.sm for row in TARGETS if feature in row.features] == HAS[feature]


def test_every_feature_says_what_it_is():
    assert set(MEANINGS) == set(Feature)
    assert all(meaning and source for meaning, source in MEANINGS.values())


def test_every_column_has_a_source():
    labels = {"sm", "architecture", "parts", "weak"}
    assert set(Target.__dataclass_fields__) - labels == set(SOURCES)
    for row in TARGETS:
        assert row.weak <= set(SOURCES)
    assert target(107).weak and not target(90).weak


# sm: KiB of shared memory per SM and per block, blocks and warps per SM, path.
LIMITS = {
    75: (64, 64, 16, 32, "mma.sync"),
    80: (164, 163, 32, 64, "mma.sync"),
    86: (100, 99, 16, 48, "mma.sync"),
    87: (164, 163, 16, 48, "mma.sync"),
    89: (100, 99, 24, 48, "mma.sync"),
    90: (228, 227, 32, 64, "wgmma"),
    100: (228, 227, 32, 64, "tcgen05"),
    103: (228, 227, 32, 64, "tcgen05"),
    107: (328, 227, 16, 48, "tcgen05"),
    110: (228, 227, 24, 48, "tcgen05"),
    120: (100, 99, 24, 48, "mma.sync"),
    121: (100, 99, 24, 48, "mma.sync"),
}


@pytest.mark.parametrize("row", TARGETS, ids=lambda row: row.name)
def test_limits(row):
    per_sm, per_block = row.shared_bytes_per_sm / 1024, row.shared_bytes_per_block / 1024
    limits = (per_sm, per_block, row.blocks_per_sm, row.warps_per_sm, row.tensor_path)
    assert limits == LIMITS[row.sm]
    assert (row.registers_per_sm, row.registers_per_thread) == (65536, 255)
    path = {TensorPath.WGMMA: Feature.WGMMA, TensorPath.TCGEN05: Feature.TCGEN05}
    assert (row.tensor_path in path) == bool(row.features & (Feature.WGMMA | Feature.TCGEN05))
    assert path.get(row.tensor_path, Feature.MMA_F16) in row.features


def test_a_spark_allows_99_kib_a_block():
    assert target("sm_121").shared_bytes_per_block == 101376


def test_missing_names_each_feature():
    spark = target("sm_121")
    assert spark.missing(Feature.FP8_MMA | Feature.TMA) == ()
    wanted = Feature.TCGEN05 | Feature.TMA | Feature.WGMMA
    assert spark.missing(wanted) == (Feature.WGMMA, Feature.TCGEN05)
    assert target("sm_80").missing(Feature.FP8_MMA) == (Feature.FP8_MMA,)


@pytest.mark.parametrize(
    ("sm", "features", "suffix"),
    [
        (80, Feature.MMA_BF16, ""),
        (90, Feature.TMA | Feature.CLUSTERS, ""),
        (90, Feature.WGMMA, "a"),
        (90, Feature.SETMAXNREG, "a"),
        (100, Feature.TCGEN05 | Feature.TMA, "f"),
        (100, Feature.TCGEN05_INT8, "a"),
        (110, Feature.TMEM, "f"),
        (120, Feature.FP8_MMA | Feature.TMA_GATHER, ""),
        (121, Feature.FP4_BLOCK_MMA, "f"),
        (121, Feature.FP4_CONVERT, "f"),
        (121, Feature.SETMAXNREG, "f"),
        (121, Feature(0), ""),
    ],
)
def test_weakest_suffix_that_admits(sm, features, suffix):
    assert target(sm).suffix_for(features) == suffix


def test_no_suffix_admits_what_is_not_there():
    with pytest.raises(BadInput, match="sm_121 has no WGMMA, TCGEN05: no suffix admits it"):
        target(121).suffix_for(Feature.TCGEN05 | Feature.WGMMA | Feature.TMA)


def test_suffixes_offered():
    offered = {row.sm: row.suffixes for row in TARGETS}
    assert offered[89] == offered[75] == ("",)
    assert offered[90] == ("", "a")
    assert offered[100] == offered[121] == ("", "f", "a")


# image: targets whose GPU loads its SASS, and can compile its PTX.
IMAGES = {
    "75": ([75], ALL),
    "80": ([80, 86, 89], ALL[1:]),
    "86": ([86, 89], ALL[2:]),
    "87": ([87], ALL[3:]),
    "89": ([89], ALL[4:]),
    "90": ([90], HOPPER_ON),
    "90a": ([90], [90]),
    "100": ([100, 103, 107], HOPPER_ON[1:]),
    "100f": ([100, 103, 107], [100, 103, 107]),
    "100a": ([100], [100]),
    "103f": ([103, 107], [103, 107]),
    "107f": ([107], [107]),
    "110": ([110], [110, 120, 121]),
    "110f": ([110], [110]),
    "120": ([120, 121], [120, 121]),
    "120f": ([120, 121], [120, 121]),
    "120a": ([120], [120]),
    "121": ([121], [121]),
    "121a": ([121], [121]),
}


@pytest.mark.parametrize(("image", "loads", "compiles"), [(k, *v) for k, v in IMAGES.items()])
def test_images(image, loads, compiles):
    assert [row.sm for row in TARGETS if row.loads_cubin(f"sm_{image}")] == loads
    assert [row.sm for row in TARGETS if row.compiles_ptx(f"compute_{image}")] == compiles


@pytest.mark.parametrize("image", ["", "sm_", "sm_9", "sm_90b", "gfx942", "sm_1200", "sm 90"])
def test_odd_image_names_are_refused(image):
    for ask in (target(90).loads_cubin, target(90).compiles_ptx):
        with pytest.raises(BadInput, match=re.escape(f"code target {image!r}: want a form like")):
            ask(image)


@pytest.mark.parametrize("name", ["sm_121", "SM121", "121", "12.1", "sm_121a", "compute_121f", 121])
def test_lookup(name):
    row = target(name)
    assert (row.sm, row.name, row.capability, row.major) == (121, "sm_121", "12.1", 12)


@pytest.mark.parametrize("name", ["sm_70", "130", "gb10", "", "9", "12.10", "sm_121x", 12, -90])
def test_unknown_targets_list_the_known_ones(name):
    with pytest.raises(
        BadInput, match=re.escape(f"target {name!r} is not known; want one of sm_75")
    ):
        target(name)
