"""`headrace replica`: one engine as a pod runs it, from a small file, watched over."""
