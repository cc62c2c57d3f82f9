"""One module a format family: files become the common normal form, :class:`~allotment.audit.log.Log`."""
