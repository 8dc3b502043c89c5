"""Work that may wait, sent through a gateway. All here learn of it over HTTP alone."""
