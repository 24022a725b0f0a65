"""Pictures as files: which there are, what their headers say, their labels, their pixels."""
