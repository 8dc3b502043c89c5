"""What is going on? The page at /console, and what it is told every second while somebody looks.

recent      pure: the last decisions, and the beginnings of prompts that are asked for most
snapshot    pure: what the owners of state know, as one struct
broadcast   one snapshot, encoded once, to all who watch
routes      the page's files, and the stream; what they may load
"""
