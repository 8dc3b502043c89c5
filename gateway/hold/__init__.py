"""Whose turn is it, and may its replica be given more now?

Asked once per attempt, between the choice of a replica and the relay to it. Under light load the
answer is "yours, at once". Requests wait here, bound to the replica that was chosen but not yet
sent, so that the order is ours and a choice can still be taken back.
"""
