"""Number formats to compute in, by the names that a command line has for them."""

AUTO = "auto"
NAMES = (AUTO, "float32", "bfloat16", "float16")
