"""Every option of the package's commands is explained by --help."""

import ast

from .structure import modules

# Its parser only finds nnU-Net's positional arguments; --help is nnU-Net's.
NOT_SHOWN = "nnunetv2_swinfuse.training.train"


def test_every_option_has_a_help_text():
    calls = [
        (module.name, node)
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument"
    ]
    assert len(calls) > 100
    unexplained = [
        f"{name}: {ast.unparse(call)}"
        for name, call in calls
        # A keyword without a name is a mapping with further ones, as in pretraining/options.py.
        if name != NOT_SHOWN and not {keyword.arg for keyword in call.keywords} & {"help", None}
    ]
    assert unexplained == []
