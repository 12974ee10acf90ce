"""Every option of the package's commands is explained by --help."""

import ast

from .structure import modules

# Its parser only finds nnU-Net's positional arguments; --help is nnU-Net's.
NOT_SHOWN = "nnunetv2_swinfuse.training.train"


def add_argument_calls():
    """Names of modules and their calls of `add_argument`."""
    return [
        (module.name, node)
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument"
    ]


def test_a_list_that_is_given_twice_is_joined():
    # By default argparse keeps the last one and says nothing.
    given = {
        f"{name}: {ast.unparse(call)}": {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        for name, call in add_argument_calls()
    }
    lists = {call: words for call, words in given.items() if "nargs" in words and words.get("default") == "[]"}
    assert len(lists) > 5
    assert [call for call, words in lists.items() if words.get("action") not in ("'extend'", "'append'")] == []


def test_every_option_has_a_help_text():
    calls = add_argument_calls()
    assert len(calls) > 100
    unexplained = [
        f"{name}: {ast.unparse(call)}"
        for name, call in calls
        # A keyword without a name is a mapping with further ones, as in pretraining/options.py.
        if name != NOT_SHOWN and not {keyword.arg for keyword in call.keywords} & {"help", None}
    ]
    assert unexplained == []
