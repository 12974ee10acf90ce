import pytest

from nnunetv2_swinfuse.architecture.tensor_names import block_of, part_of, pretrained, stage_of, stage_prefix

from .networks import HALVINGS, build


@pytest.mark.parametrize(
    ("name", "stage", "part"),
    [
        ("patch_embed.proj.weight", None, "patch embedding"),
        ("encoder.domain_invariance.ct_block.layers.0.query.weight", None, "Domain Invariance Module"),
        ("encoder.stages.0.merging.norm.bias", 0, "encoder stage 0"),
        ("encoder.stages.12.blocks.3.norm1.weight", 12, "encoder stage 12"),
        ("encoder.stages.x.norm1.weight", None, "encoder"),
        ("encoder.stages", None, "encoder"),
        ("decoder.stages.3.convs.0.conv.weight", None, "decoder"),
        ("skips.2.convs.0.conv.weight", None, "skip convolutions"),
        ("inpainting_head.out.weight", None, "inpainting head"),
    ],
)
def test_names(name, stage, part):
    assert stage_of(name) == stage
    assert part_of(name) == part
    if stage is not None:
        assert name.startswith(stage_prefix(stage))


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("encoder.stages.0.blocks.11.norm1.weight", "11"),
        ("encoder.stages.0.merging.norm.bias", None),
        ("patch_embed.proj.weight", None),
    ],
)
def test_blocks(name, block):
    assert block_of(name) == block


def test_what_is_pretrained_is_what_both_backbones_have(settings, residual_settings):
    for sizes in (settings, residual_settings):
        state = build(HALVINGS, sizes).state_dict()
        parts = {part_of(name) for name in pretrained(state)}
        stages = {"encoder stage 0", "encoder stage 1"}
        assert parts >= {"patch embedding", "Domain Invariance Module", *stages}
        assert not parts & {part_of(name) for name in state.keys() - pretrained(state).keys()}
