"""The doctor: is a replica set up so that the gateway can do its best with it?

Asked by `headrace doctor URL...`, beside the road and without a gateway: each replica is examined
end to end (`examine`, on the shore: HTTP, its event sockets, one short prompt asked twice), and
what was seen is judged (`checks`, pure): a finding a line, each with what to change.

It must never judge what it has not seen: a check that could not be made says so. It changes
nothing on a replica but what one short request leaves in its cache.
"""
