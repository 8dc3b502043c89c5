"""Gateways that know of each other. Asked: what have the others before the same replicas?

Each gateway, be it a worker of this one, a pod or a process on another machine, tells all others
its own rows of figures, and adds up theirs. Nobody leads, and nothing is kept elsewhere.
`share` has the law by which what is heard becomes what is believed, `voice` what is said, `wire`
how it is written, `book` to whom it goes, and `link` the socket.
"""
