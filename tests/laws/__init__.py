"""Laws that every op of the catalogue obeys: to list an op is to test it.

    cases        one op in one form, its programs compiled once for all laws
    ledger       which op has met which law, by content hashes; `make laws` fills ledger.jsonl
    test_*       the laws: on one device, on eight, by the GPU kernels

A default run takes, by turns, the formulas and own tests of some leaves, always those that changed,
and all laws of the ops that passed them the longest time ago, within a budget of seconds.
A law is escaped only by a property of the op's record, or by a reason written in its `exempt`.
"""
