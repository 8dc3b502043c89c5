"""How does an OpenAI-compatible endpoint fare under this load, and what did its users feel?"""
