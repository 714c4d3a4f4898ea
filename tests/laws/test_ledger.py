"""Every op has met every law as both are today, says the ledger; and the ledger notices changes."""

import pytest

from attnjax.catalogue import OPS
from tests.laws import ledger, test_devices, test_kernels, test_one_device
from tests.laws.plugin import law_of, pair_of, select

