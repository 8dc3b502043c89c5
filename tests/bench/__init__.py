"""What does one request, one streamed chunk and one idle gateway cost?

`python -m tests.bench.hotpath` answers in whole-process CPU time on one core, against real peers
and nginx within the same run, so that the answer is a ratio and not a property of the machine.
`upstream` is the replica that costs next to nothing, `load` the client, `subjects` the gateways
under test, `processes` starts, pins, meters and ends them, `figures` is the pure arithmetic and
`report` the words. It is a benchmark, never a timed test; `tests/unit/bench` holds its counting
to account.
"""
