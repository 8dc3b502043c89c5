"""Scaling rules in a closed loop, in virtual time: what each costs, and what it keeps waiting."""
