"""Use of what a library has deprecated stops a test, if it is in any module of the package."""

import contextlib
import warnings

import pytest


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
@pytest.mark.parametrize(
    ("module", "stops"), [("rlhf_ext", True), ("rlhf_ext.trainer.ppo_config", True), ("rlhf_extras", False)]
)
def test_a_deprecation_in_the_package_is_an_error_and_elsewhere_it_is_not(module, stops, category):
    with warnings.catch_warnings(record=True):
        with pytest.raises(category) if stops else contextlib.nullcontext():
            warnings.warn_explicit("use the other one", category, "file.py", 1, module=module)
