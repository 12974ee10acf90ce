from torch import nn

from nnunetv2_swinfuse.architecture.attention import WindowAttention
from nnunetv2_swinfuse.architecture.weight_decay import weight_decay_groups


def test_matrices_decay_but_norms_biases_and_position_biases_do_not():
    network = nn.ModuleDict({"attention": WindowAttention(4, 2, (3, 3, 3)), "norm": nn.LayerNorm(4)})
    decayed, kept = weight_decay_groups(network, 0.1)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert {names[id(p)] for p in decayed["params"]} == {"attention.qkv.weight", "attention.proj.weight"}
    assert {names[id(p)] for p in kept["params"]} == {
        "attention.qkv.bias", "attention.proj.bias", "attention.relative_position_bias", "norm.weight", "norm.bias"
    }  # fmt: skip
