import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from shardc.diagnostics import DiagnosticError
from shardc.pipeline import POLICY
from shardc.placers.policy import POLICY_FEATURES, load_policy


def test_the_shipped_weights_are_read():
    assert load_policy(POLICY).weights["hidden.weight"].shape[1] == POLICY_FEATURES


def test_scores_follow_the_devices_when_they_change_places():
    features = np.random.default_rng(0).normal(size=(3, 5, POLICY_FEATURES))
    policy, order = load_policy(POLICY), [3, 0, 4, 1, 2]
    assert policy.logits(features[:, order]) == pytest.approx(policy.logits(features)[:, order], rel=1e-9)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda arrays: arrays.pop("greed"), "not the arrays of a policy"),
        (lambda arrays: arrays.update({"mix.bias": np.zeros(3, np.float32)}), "not the arrays of a policy"),
        (lambda arrays: arrays.update(greed=np.full(1, np.nan, np.float32)), "not finite"),
    ],
)
def test_other_weights_are_refused(tmp_path: Path, change, reason):
    arrays = safetensors.numpy.load_file(POLICY)
    change(arrays)
    path = tmp_path / "policy.safetensors"
    path.write_bytes(safetensors.numpy.save(arrays, {"shardc": json.dumps({"format": "1"})}))
    with pytest.raises(DiagnosticError, match=reason):
        load_policy(path)


@pytest.mark.parametrize(
    "content", [None, b"", b"nonsense", safetensors.numpy.save({}, {"shardc": '{"format": "99"}'})]
)
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, content):
    path = tmp_path / "policy.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DiagnosticError, match="SH602"):
        load_policy(path)
