"""Pictures of masks and mechanisms."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, masks
from attnjax.catalogue import OPS
from attnjax.cli import main
from attnjax.core.pairwise.attend import attention_weights
from attnjax.lab import UserError, draw
from attnjax.probes import influence
from tests.helpers import near, qkv


def test_a_mask_is_read_as_python_says_it():
    for text, want in (
        ("causal", masks.causal),
        ("causal & (window(3) | sinks(2))", masks.causal & (masks.window(3) | masks.sinks(2))),
        ("~causal | dilated(3, 2)", ~masks.causal | masks.dilated(3, 2)),
        ("neighborhood((3, 4), (3, 3))", masks.neighborhood((3, 4), (3, 3))),
    ):
        got = draw.mask_of(text)
        assert np.array_equal(got.dense(12, 12), want.dense(12, 12))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("causall", "causall is no mask"),
        ("causal +", "invalid syntax"),
        ("causal + causal", "is no mask, expected names, calls"),
        ("window(open('x'))", "malformed node"),
        ("__import__('os').system('true')", "is no mask"),
        ("window", "is function, expected a mask"),
        ("window()", "missing 1 required"),
    ],
)
def test_other_text_is_told_and_not_executed(text, told):
    with pytest.raises(UserError, match=told):
        draw.mask_of(text)


def test_influence_by_values_is_the_weights():
    q, k, v = qkv(1, 5, 2, 4)
    got = influence(lambda v: attend(q, k, v, mask=masks.causal), v)
    want = attention_weights(q, k, mask=masks.causal)[0]
    near(got, want, 1e-5)
    assert influence(lambda x: jnp.cumsum(x, 1), jnp.ones((1, 4, 3))).shape == (1, 4, 4)


@pytest.mark.parametrize("name", ["softpick_attention", "retention"])
def test_a_mechanism_has_a_picture(name, tmp_path, capsys):
    path = tmp_path / "one.png"
    assert main(["draw", name, "--length", "9", "--out", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG") and capsys.readouterr().out == f"{path}\n"


def test_a_wrong_name_has_a_suggestion(capsys):
    assert main(["draw", "softpick_atention"]) == 2
    assert "did you mean 'softpick_attention'?" in capsys.readouterr().err
    loss = next(op for op in OPS if op.kind == "loss")
    with pytest.raises(UserError, match="takes neither|expected one array"):
        draw.picture_of_op(loss, 9)
