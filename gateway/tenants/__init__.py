"""Asked: on whose account is this, and how much may they have?

Keys lead to tenants, tenants to what they may ask for, how much of it, and how their work is kept
apart from that of others. Off by default: then everybody is nobody in particular.
"""
