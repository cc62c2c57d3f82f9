"""The embedded default: a tiny language model that really learns by RLVR on two CPU cores."""
