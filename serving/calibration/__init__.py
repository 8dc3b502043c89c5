"""`headrace calibrate`: how fast is a running engine? Measured over HTTP, written as a profile."""
