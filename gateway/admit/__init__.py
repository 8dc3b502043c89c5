"""Admit: may this enter at all?

Asked before anything is spent on a request. Answers by returning, or raises Rejected with an honest
Retry-After. A request that is in is counted until it is out, by `with`.

It must never wait: what waits is held, not admitted.
"""
