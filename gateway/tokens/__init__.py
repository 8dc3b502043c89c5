"""Asked: which tokens will the engine see? Answered off the critical path, never before routing."""
