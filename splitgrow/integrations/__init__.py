"""Growth inside the trainers of other libraries: one file a library, each behind its extra."""
