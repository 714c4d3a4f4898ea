"""What a cached token costs: counts of a step, the table of Step-3."""

import pytest

from attnjax.parallel.model.decoding import factorized, factorized_key_reuse, grouped, latent


def step(N, K, H, D, S):
    """(numbers read, multiplications and additions) of one query token over S cached ones."""
    numbers = operations = 0
    for _ in range(S):
        numbers += K * (H + D)
        for _ in range(N):
            operations += 2 * H  # a score
            operations += 2 * D  # its share of the value
    return numbers, operations


@pytest.mark.parametrize("sizes", [(8, 8, 4, 4), (8, 2, 4, 6), (8, 1, 5, 5)])
def test_a_step_is_counted(sizes):
    one = grouped(*sizes)
    assert step(*sizes, S=7) == (7 * one.numbers, 7 * one.operations)


def test_the_models_of_the_paper():
    """Step-3: 64 heads of 256; DeepSeek-V3: 128 heads over 512 and 64; caches of 8 bits."""
    step3, deepseek = factorized(64, 256), latent(128, 512, 64)
    assert step3.numbers == 512 and step3.intensity(1) == 128
    assert deepseek.numbers == 576 and 480 < deepseek.intensity(1) < 512
    assert factorized_key_reuse(64, 256).numbers == 256
    assert grouped(96, 8, 128).intensity(2) == 96 / 8
    assert factorized(1, 8) == grouped(1, 1, 8) and factorized(9, 8).numbers == 16
    with pytest.raises(ValueError, match="N, K: 8, 3; expected N to be a multiple of K"):
        grouped(8, 3, 4)
