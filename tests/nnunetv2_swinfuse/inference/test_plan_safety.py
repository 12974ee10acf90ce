from copy import deepcopy

import pytest

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.inference.plan_safety import LAYERS, NETWORKS, check_plans

PLANS = {
    "image_reader_writer": "SimpleITKIO",
    "configurations": {
        "3d_fullres": {
            "preprocessor_name": "DefaultPreprocessor",
            "normalization_schemes": ["CTNormalization"],
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                "_kw_requires_import": ["conv_op", "dropout_op"],
                "arch_kwargs": {"conv_op": "torch.nn.modules.conv.Conv3d", "dropout_op": None},
            },
        },
        "3d_lowres": {"previous_stage": None},
    },
}


def test_plans_of_nnunet_pass_and_every_name_of_the_lists_can_be_imported():
    from pydoc import locate

    check_plans(PLANS, "plans.json")
    missing = {name for name in NETWORKS | LAYERS if locate(name) is None}
    # Not in every version of dynamic-network-architectures.
    assert missing <= {name for name in NETWORKS if "primus" in name or "ResidualUNet" in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, b: p.update(image_reader_writer="evil.Reader"), r"image_reader_writer 'evil.Reader' \(plans\)"),
        (lambda p, b: b.update(preprocessor_name="evil.P"), r"preprocessor_name 'evil.P' \(3d_fullres\)"),
        (lambda p, b: b.update(normalization_schemes=["CTNormalization", "../x"]), "normalization_schemes '../x'"),
        (lambda p, b: b.update(preprocessor_name=["a", 3]), "preprocessor_name 3"),
        (lambda p, b: b["architecture"].update(network_class_name="os.system"), "network 'os.system'"),
        (lambda p, b: b["architecture"]["arch_kwargs"].update(conv_op="os.system"), "conv_op 'os.system'"),
        (lambda p, b: b["architecture"].pop("network_class_name"), "no plans of nnU-Net v2"),
        (lambda p, b: p.pop("configurations"), "no plans of nnU-Net v2"),
    ],
)
def test_other_names_are_refused(change, message):
    plans = deepcopy(PLANS)
    change(plans, plans["configurations"]["3d_fullres"])
    with pytest.raises(InputError, match=f"^plans.json: .*{message}"):
        check_plans(plans, "plans.json")
